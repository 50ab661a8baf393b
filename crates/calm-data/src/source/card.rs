//! What the page of a data set says of its files: the `configs` in the header of its `README.md`.
//!
//! ```yaml
//! ---
//! configs:
//! - config_name: en
//!   default: true
//!   data_files:                      # or one path, or a list of paths: then no split is named
//!   - { split: train, path: "en/train-*" }
//!   - { split: test, path: [en/test-0.parquet, en/test-1.parquet] }
//! - config_name: de
//!   data_dir: de
//! ---
//! ```

use serde::Deserialize;

use super::select::is_same_split;
use crate::error::{Error, Result};

/// The name of a page.
pub(super) const PAGE: &str = "README.md";
/// The name of the configuration that is meant where none is named.
const DEFAULT: &str = "default";

#[derive(Deserialize)]
struct Header {
    #[serde(default)]
    configs: Vec<Config>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(default = "default_name")]
    config_name: String,
    #[serde(default)]
    default: bool,
    data_dir: Option<String>,
    data_files: Option<DataFiles>,
}

fn default_name() -> String {
    DEFAULT.to_owned()
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DataFiles {
    Path(String),
    Each(Vec<PathOrSplit>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum PathOrSplit {
    Path(String),
    Split { split: String, path: Paths },
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Paths {
    One(String),
    Several(Vec<String>),
}

/// Which files are meant.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Meant {
    /// Patterns of their paths.
    pub files: Vec<String>,
    /// Whether the split that was asked for is theirs; else it is to be found in their names.
    pub of_split: bool,
}

/// What a page says of a configuration (or of the one that it means by default) and a split; none if it has no
/// configurations and none was asked for.
///
/// # Errors
/// No such configuration or split; several configurations of which none is the default.
pub(super) fn meant(
    source: &str,
    page: Option<&str>,
    config: Option<&str>,
    split: Option<&str>,
) -> Result<Option<Meant>> {
    let fail =
        |what: String, remedy: String| Error::Selection { source_name: source.to_owned(), what, remedy };
    let configs = page.map_or_else(Vec::new, configs);
    let names: Vec<&str> = configs.iter().map(|c| c.config_name.as_str()).collect();
    let names = names.join(", ");
    let chosen = match config {
        Some(name) => configs.iter().find(|c| c.config_name == name),
        None if configs.len() < 2 => configs.first(),
        None => configs.iter().find(|c| c.default).or(configs.iter().find(|c| c.config_name == DEFAULT)),
    };
    let Some(chosen) = chosen else {
        return match (config, configs.is_empty()) {
            (None, true) => Ok(None),
            (Some(name), true) => Err(fail(
                format!("its {PAGE} names no configurations, so that it has no `{name}`"),
                "leave `config` away, or name files with `files: [PATTERN]`".to_owned(),
            )),
            (Some(name), false) => Err(fail(
                format!("it has no configuration `{name}`"),
                format!("name one of {names} with `config`"),
            )),
            (None, false) => Err(fail(
                "it has several configurations, none of which is the default".to_owned(),
                format!("name one of {names} with `config`"),
            )),
        };
    };
    let inside = |path: &str| match chosen.data_dir.as_deref().map(|dir| dir.trim_matches('/')) {
        Some(dir) if !dir.is_empty() && dir != "." => format!("{dir}/{path}"),
        _ => path.trim_start_matches("./").to_owned(),
    };
    let each = match &chosen.data_files {
        None => return Ok(Some(Meant { files: vec![inside("**")], of_split: false })),
        Some(DataFiles::Path(path)) => {
            return Ok(Some(Meant { files: vec![inside(path)], of_split: false }));
        }
        Some(DataFiles::Each(each)) => each,
    };
    let (mut files, mut splits, mut of_split) = (Vec::new(), Vec::new(), false);
    for one in each {
        match one {
            PathOrSplit::Path(path) => files.push(inside(path)),
            PathOrSplit::Split { split: theirs, path } => {
                splits.push(theirs.as_str());
                if split.is_none_or(|split| is_same_split(split, theirs)) {
                    of_split = split.is_some();
                    match path {
                        Paths::One(path) => files.push(inside(path)),
                        Paths::Several(paths) => files.extend(paths.iter().map(|path| inside(path))),
                    }
                }
            }
        }
    }
    if let (true, Some(split)) = (files.is_empty(), split) {
        let (name, splits) = (&chosen.config_name, splits.join(", "));
        return Err(fail(
            format!("its configuration `{name}` has no split `{split}`"),
            format!("name one of {splits} with `split`"),
        ));
    }
    Ok(Some(Meant { files, of_split }))
}

/// The configurations of a page; none where it has no header, or one that says something else.
fn configs(page: &str) -> Vec<Config> {
    let page = page.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let header = page.strip_prefix("---\n").and_then(|rest| rest.split("\n---").next());
    header.and_then(|header| serde_yaml::from_str::<Header>(header).ok()).map_or_else(Vec::new, |h| h.configs)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "---\nlicense: mit\nconfigs:\n- config_name: en\n  default: true\n  data_files:\n  - split: train\n    \
        path: en/train-*\n  - split: valid\n    path: [en/a.jsonl, ./en/b.jsonl]\n- config_name: de\n  data_dir: de/\n\
        - config_name: all\n  data_files: '*/*.jsonl'\n---\n# Name\n---\nmore\n";

    fn files(config: Option<&str>, split: Option<&str>) -> Vec<String> {
        meant("x", Some(PAGE), config, split).unwrap().unwrap().files
    }

    #[test]
    fn a_page_says_which_files_a_configuration_and_a_split_have() {
        assert_eq!(files(None, Some("train")), ["en/train-*"]);
        assert_eq!(files(Some("en"), Some("validation")), ["en/a.jsonl", "en/b.jsonl"]);
        assert_eq!(files(None, None).len(), 3);
        assert_eq!(files(Some("all"), Some("train")), ["*/*.jsonl"]);
        let de = meant("x", Some(PAGE), Some("de"), Some("train")).unwrap();
        assert_eq!(de, Some(Meant { files: vec!["de/**".to_owned()], of_split: false }));
    }

    #[test]
    fn pages_without_configurations_say_nothing() {
        for page in ["# Name", "---\nlicense: mit\n---\n", "---\nconfigs: 3\n---\n", "---\n: [\n---\n", ""] {
            assert_eq!(meant("x", Some(page), None, Some("train")).unwrap(), None);
        }
        assert_eq!(meant("x", None, None, None).unwrap(), None);
    }

    #[test]
    fn what_there_is_not_is_told_with_what_there_is() {
        let told = |page: &str, config, split| meant("x", Some(page), config, split).unwrap_err().told();
        assert!(told(PAGE, Some("fr"), None).contains("en, de, all"));
        assert!(told(PAGE, None, Some("test")).contains("train, valid"));
        assert!(told("# Name", Some("en"), None).contains("no configurations"));
        let several = PAGE.replace("  default: true\n", "");
        assert!(told(&several, None, None).contains("name one of en, de, all with `config`"));
    }
}
