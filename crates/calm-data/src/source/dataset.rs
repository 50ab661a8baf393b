//! Manifests of published data sets: which repository at which commit, which files, under which licence.
//!
//! A manifest holds what was published and nothing else; what is not known is `null`.

use std::fs;
use std::path::Path;

use calm_files::seal::{BROKEN, is_broken};
use serde::{Deserialize, Serialize};

use super::locate;
use crate::error::{Error, Result};

/// The version of the manifest's form.
pub const MANIFEST_VERSION: u32 = 1;

/// A manifest of `datasets/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatasetManifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// `OWNER/NAME` on the hub.
    pub dataset: String,
    /// The commit; `null` where none was published: then it is `main`, and what that stands for is recorded.
    pub revision: Option<String>,
    /// Under which conditions it may be used, as its page says.
    pub licence: String,
    /// Where more is said of it.
    pub homepage: String,
    /// The column or field of the text.
    pub column: String,
    /// Patterns of the files to train on.
    pub train: Vec<String>,
    /// Patterns of those that are held out; empty where there are none: then a share of the documents is.
    pub validation: Vec<String>,
    /// Documents to train on, as published.
    pub documents: Option<u64>,
    /// Bytes of the files to train on, as published.
    pub bytes: Option<u64>,
    /// Files whose size or hash was published.
    #[serde(default)]
    pub files: Vec<PublishedFile>,
}

/// What was published of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedFile {
    /// Its path in the repository.
    pub path: String,
    /// Bytes.
    pub bytes: Option<u64>,
    /// SHA-256.
    pub sha256: Option<String>,
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(($name, include_str!(concat!("../../datasets/", $name, ".yaml")))),*]
    };
}

/// The manifests of `datasets/`, which a bare name means.
pub const SHIPPED: &[(&str, &str)] =
    shipped!["wikitext-103", "tinystories", "fineweb-edu-10bt", "pile-uncopyrighted", "the-stack-smol"];

impl DatasetManifest {
    /// A shipped manifest by its name, or one by its path.
    ///
    /// # Errors
    /// There is none, or it is not one.
    pub fn find(name: &Path) -> Result<Self> {
        let bare = name.to_str().and_then(|name| SHIPPED.iter().find(|(shipped, _)| *shipped == name));
        if let Some((_, text)) = bare {
            return Self::parse(name, text);
        }
        let path = locate::project_file(name).map_err(|error| {
            let names: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
            match name.components().count() {
                1 => Error::Selection {
                    source_name: name.display().to_string(),
                    what: "there is no data set of this name, and no manifest".to_owned(),
                    remedy: format!("name one of {}, or a manifest's path", names.join(", ")),
                },
                _ => error,
            }
        })?;
        Self::read(&path)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    /// When it is missing or not one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Self::parse(path, &text)
    }

    fn parse(path: &Path, text: &str) -> Result<Self> {
        let fail = |message: String| Error::Selection {
            source_name: path.display().to_string(),
            what: format!("not a usable manifest of a data set: {message}"),
            remedy: "write it like those that `datasets/README.md` describes".to_owned(),
        };
        if is_broken(text.as_bytes()) {
            return Err(fail(BROKEN.to_owned()));
        }
        let manifest: Self =
            serde_yaml::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| fail(e.to_string()))?;
        if manifest.version != MANIFEST_VERSION {
            let version = manifest.version;
            return Err(fail(format!("it has version {version}, this program reads {MANIFEST_VERSION}")));
        }
        Ok(manifest)
    }

    /// The branch or commit that is asked for.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }

    /// Holds what a hub says of a file to what was published; `found` are its bytes and its hash (`sha256:...`).
    ///
    /// # Errors
    /// They differ.
    pub fn check(&self, path: &str, bytes: u64, hash: &str) -> Result<()> {
        let Some(published) = self.files.iter().find(|file| file.path == path) else { return Ok(()) };
        let differs = |what: &str, expected: String, found: String| {
            Err(Error::Selection {
                source_name: self.dataset.clone(),
                what: format!("{path} is not what was published: its {what} is {found}, and was {expected}"),
                remedy:
                    "the data set was changed: name it with `source: { hub: ... }` to take it as it is now"
                        .to_owned(),
            })
        };
        if let Some(expected) = published.bytes.filter(|expected| *expected != bytes) {
            return differs("size", expected.to_string(), bytes.to_string());
        }
        match (&published.sha256, hash.strip_prefix("sha256:")) {
            (Some(expected), Some(found)) if expected != found => {
                differs("SHA-256", expected.clone(), found.to_owned())
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_manifest_is_one_and_lies_in_the_folder() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets");
        let mut names = Vec::new();
        for entry in fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().to_string_lossy().into_owned();
            names.extend(name.strip_suffix(".yaml").filter(|name| *name != "crates").map(str::to_owned));
        }
        names.sort();
        let mut shipped: Vec<&str> = SHIPPED.iter().map(|(name, _)| *name).collect();
        shipped.sort_unstable();
        assert_eq!(names, shipped);
        for name in shipped {
            let manifest = DatasetManifest::find(Path::new(name)).unwrap();
            assert!(manifest.dataset.contains('/') && !manifest.train.is_empty(), "{name}");
            let hex = |text: &str, len| text.len() == len && text.bytes().all(|b| b.is_ascii_hexdigit());
            assert!(manifest.revision.as_deref().is_none_or(|r| hex(r, 40)), "{name}");
            assert!(manifest.files.iter().all(|f| f.sha256.as_deref().is_none_or(|h| hex(h, 64))), "{name}");
        }
    }

    #[test]
    fn what_was_published_is_held_to_what_the_hub_says() {
        let mut manifest = DatasetManifest::find(Path::new("tinystories")).unwrap();
        let sha256 = Some("ab".repeat(32));
        manifest.files = vec![PublishedFile { path: "a".into(), bytes: Some(3), sha256 }];
        let hash = format!("sha256:{}", "ab".repeat(32));
        assert!(manifest.check("a", 3, &hash).is_ok() && manifest.check("b", 9, "x").is_ok());
        let error = manifest.check("a", 4, &hash).unwrap_err().told();
        assert!(error.contains("its size is 4, and was 3") && error.contains("hub"), "{error}");
        assert!(manifest.check("a", 3, &format!("sha256:{}", "cd".repeat(32))).is_err());
    }

    #[test]
    fn a_name_that_is_none_says_which_there_are() {
        let error = DatasetManifest::find(Path::new("fineweb")).unwrap_err().told();
        assert!(error.contains("fineweb-edu-10bt") && error.contains("wikitext-103"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.yaml");
        fs::write(&path, "version: 1\nsurprise: 2\n").unwrap();
        assert!(DatasetManifest::find(&path).unwrap_err().told().contains("surprise"));
    }
}
