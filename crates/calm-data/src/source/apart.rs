//! What is held out is not trained on: no file is both.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use super::documents::{HeldOut, Input, Opened};
use crate::config::{DataConfig, Source, Validation};
use crate::error::{Error, Result};

/// What to do where held-out text is all there is.
pub(super) const REMEDY: &str =
    "hold out another file or split, or a share of the documents such as `data.validation: 0.05`";

/// Files that are known again by whatever names and links they are reached.
#[derive(Default)]
pub(super) struct Known {
    names: HashSet<String>,
    files: HashSet<(u64, u64, Option<u64>)>,
    /// Where files have no numbers.
    paths: HashSet<PathBuf>,
}

impl Known {
    pub(super) fn new<'a>(inputs: impl IntoIterator<Item = &'a Input>) -> Self {
        let mut known = Self::default();
        for input in inputs {
            known.names.insert(input.name.clone());
            match input.file {
                Some(file) => drop(known.files.insert((file, input.length, input.modified))),
                None => known.paths.extend(fs::canonicalize(&input.name).ok()),
            }
        }
        known
    }

    pub(super) fn has(&self, input: &Input) -> bool {
        let on_disk = || match input.file {
            Some(file) => self.files.contains(&(file, input.length, input.modified)),
            None if self.paths.is_empty() => false,
            None => fs::canonicalize(&input.name).is_ok_and(|path| self.paths.contains(&path)),
        };
        self.names.contains(&input.name) || on_disk()
    }
}

/// Looks for files that would be trained on and held out.
///
/// # Errors
/// Names one.
pub(super) fn check(config: &DataConfig, opened: &Opened) -> Result<()> {
    let HeldOut::Text(held_out) = &opened.held_out else { return Ok(()) };
    let trained = Known::new(opened.parts.iter().flat_map(|part| part.text.inputs()));
    let mut both = held_out.inputs().iter().filter(|input| trained.has(input));
    let Some(first) = both.next() else { return Ok(()) };
    let more = match both.count() {
        0 => String::new(),
        n => format!(" and {n} more files"),
    };
    let remedy = match (&config.source, &config.validation) {
        (Source::Hub(hub), Validation::Split(_)) if hub.split.is_none() => {
            "name the split that is to be trained on: `split: train` in `data.source.hub`"
        }
        (Source::Dataset(_), Validation::Share(_)) => {
            "let the patterns of `train` and `validation` in the manifest fit different files"
        }
        _ => REMEDY,
    };
    Err(Error::Selection {
        source_name: config.source.name().display().to_string(),
        what: format!("{}{more} would be held out and trained on", first.name),
        remedy: remedy.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{MixedSource, ValidationPath};
    use crate::source::open;

    fn config(source: Source, held_out: &Path) -> DataConfig {
        let validation = Validation::Path(ValidationPath { path: held_out.to_owned() });
        DataConfig { source, validation, ..DataConfig::default() }
    }

    /// Names of the files that are trained on.
    fn trained(config: &DataConfig) -> Result<Vec<String>> {
        let name = |input: &Input| Path::new(&input.name).file_name().unwrap().to_string_lossy().into_owned();
        Ok(open(config)?.parts.iter().flat_map(|part| part.text.inputs()).map(name).collect())
    }

    #[test]
    fn a_held_out_file_or_folder_inside_the_source_is_not_trained_on() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("text/held")).unwrap();
        for name in ["text/a.txt", "text/b.txt", "text/held/c.txt", "text/held/d.txt", "e.txt"] {
            fs::write(at(name), name).unwrap();
        }
        let source = || Source::Path(at("text"));
        assert_eq!(trained(&config(source(), &at("text/a.txt"))).unwrap(), ["b.txt", "c.txt", "d.txt"]);
        assert_eq!(trained(&config(source(), &at("text/held"))).unwrap(), ["a.txt", "b.txt"]);
        assert_eq!(trained(&config(source(), &at("text/held/../a.txt"))).unwrap().len(), 3);
        assert_eq!(trained(&config(source(), &at("e.txt"))).unwrap().len(), 4);
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(at("text/b.txt"), at("link.txt")).unwrap();
            fs::hard_link(at("text/b.txt"), at("hard.txt")).unwrap();
            for name in ["link.txt", "hard.txt"] {
                assert_eq!(
                    trained(&config(source(), &at(name))).unwrap(),
                    ["a.txt", "c.txt", "d.txt"],
                    "{name}"
                );
            }
        }
        let part = |source| MixedSource { source, weight: 1.0, column: None, filter: None };
        let mix = Source::Mix(vec![part(source()), part(Source::Path(at("e.txt")))]);
        assert_eq!(trained(&config(mix.clone(), &at("text/held"))).unwrap(), ["a.txt", "b.txt", "e.txt"]);
        // Where nothing else is left it is a slip.
        for (source, held_out) in [
            (source(), at("text")),
            (Source::Path(at("text/held")), at("text")),
            (Source::Path(at("e.txt")), at("e.txt")),
            (mix, at("e.txt")),
        ] {
            let error = trained(&config(source, &held_out)).unwrap_err().told();
            assert!(error.contains(".txt") && error.contains("would be held out and trained on"), "{error}");
            assert!(error.contains("data.validation: 0.05"), "{error}");
        }
    }
}
