//! What a command line means by a text.

use std::path::Path;

use super::dataset::{DatasetManifest, SHIPPED};
use crate::config::Source;
use crate::error::{Error, Result};

/// The source that a word of a command line names: the block of a `data.source` (`{hub: {dataset: OWNER/NAME}}`), a
/// shipped data set (`wikitext-103`) or the manifest of one, or a file or folder.
///
/// # Errors
/// A block that is no source, or a manifest that is none: it is not read as text.
pub fn named(text: &Path) -> Result<Source> {
    let word = text.to_str().unwrap_or_default();
    if word.trim_start().starts_with('{') {
        return serde_yaml::from_str(word).map_err(|e| Error::Selection {
            source_name: word.to_owned(),
            what: format!("this is no source of text ({e})"),
            remedy:
                "write it as `data.source` in a configuration: `{hub: {dataset: OWNER/NAME, split: test}}`, \
                     `{dataset: NAME}`, `{crates: FILE}` or `{path: FILE}`"
                    .to_owned(),
        });
    }
    let yaml = text.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
    if yaml && has_key(text, "dataset") {
        return DatasetManifest::read(text).map(|_| Source::Dataset(text.to_owned()));
    }
    if yaml && has_key(text, "crates") {
        return Ok(Source::Crates(text.to_owned()));
    }
    let shipped = !text.exists() && SHIPPED.iter().any(|(name, _)| *name == word);
    Ok(if shipped { Source::Dataset(text.to_owned()) } else { Source::Path(text.to_owned()) })
}

/// Whether a file has such a key at the beginning of a line, as manifests have.
fn has_key(path: &Path, key: &str) -> bool {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::settings::HubSource;

    #[test]
    fn words_name_files_data_sets_and_blocks() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("text.yaml"), "a: text\n").unwrap();
        std::fs::write(at("set.yaml"), SHIPPED[0].1).unwrap();
        assert_eq!(named(&at("none.txt")).unwrap(), Source::Path(at("none.txt")));
        assert_eq!(named(&at("text.yaml")).unwrap(), Source::Path(at("text.yaml")));
        assert_eq!(named(&at("set.yaml")).unwrap(), Source::Dataset(at("set.yaml")));
        // A slip in a manifest does not make a text of it.
        std::fs::write(at("slip.yaml"), SHIPPED[0].1.replace("revision", "revison")).unwrap();
        assert!(named(&at("slip.yaml")).unwrap_err().told().contains("revison"));
        std::fs::write(at("sources.yml"), "version: 1\ncrates:\n- a\n").unwrap();
        assert_eq!(named(&at("sources.yml")).unwrap(), Source::Crates(at("sources.yml")));
        assert_eq!(named(Path::new("tinystories")).unwrap(), Source::Dataset("tinystories".into()));
        let hub = HubSource { split: Some("test".into()), ..HubSource::new("a/b") };
        let block = Path::new("{hub: {dataset: a/b, split: test}}");
        assert_eq!(named(block).unwrap(), Source::Hub(hub));
        let error = named(Path::new("{hub: {datasets: a/b}}")).unwrap_err().told();
        assert!(error.contains("datasets") && error.contains("{path: FILE}"), "{error}");
    }
}
