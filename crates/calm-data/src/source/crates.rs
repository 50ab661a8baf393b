//! The sources of pinned crates as a corpus: the same bytes on every machine that has built the project.
//!
//! The manifest is the whole truth about the text: each crate with its version and checksum (as in `Cargo.lock`),
//! its split, the files that were left out, and the number, size and hash of the documents that remain. Nothing
//! is filtered when the corpus is read. How the manifest came about is in [`super::curate`].

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calm_files::seal::{BROKEN, is_broken};
use serde::{Deserialize, Serialize};

use super::documents::{self, Documents, Found, HeldOut, Input, Opened, Part, Text};
use super::loaded::{Loaded, Skipped};
use super::locate::{self, CrateKey};
use crate::document::Document;
use crate::error::{Error, Result};

/// The version of the manifest's form.
pub const MANIFEST_VERSION: u32 = 1;

/// `datasets/crates.yaml`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`MANIFEST_VERSION`].
    pub version: u32,
    /// Crates that are held out, all their versions. Read when the manifest is written anew.
    pub held_out: Vec<String>,
    /// Crates that are left out, with the reason. Read when the manifest is written anew.
    pub excluded: BTreeMap<String, String>,
    /// The corpus, by name and version.
    pub crates: Vec<PinnedCrate>,
}

/// A crate of the corpus.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedCrate {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// SHA-256 of the package, as in `Cargo.lock`.
    pub checksum: String,
    /// Training or held out.
    pub split: Split,
    /// Number of documents (files).
    pub documents: usize,
    /// Bytes of text.
    pub bytes: u64,
    /// [`content_hash`] of the documents.
    pub hash: String,
    /// Files that are left out, by reason.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub dropped: BTreeMap<String, Vec<String>>,
}

/// On which side a crate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// To train on.
    Train,
    /// Held out.
    Validation,
}

impl PinnedCrate {
    fn key(&self) -> CrateKey {
        (self.name.clone(), self.version.clone())
    }
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// When it is missing or not one.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        let fail = |message: String| Error::Manifest { path: path.into(), message };
        if is_broken(text.as_bytes()) {
            return Err(fail(BROKEN.to_owned()));
        }
        let manifest: Self =
            serde_yaml::from_str(text.trim_start_matches('\u{feff}')).map_err(|e| fail(e.to_string()))?;
        if manifest.version != MANIFEST_VERSION {
            return Err(fail(format!(
                "it has version {}, this program reads {MANIFEST_VERSION}",
                manifest.version
            )));
        }
        Ok(manifest)
    }
}

/// The `.rs` and `.md` files below a crate's folder, hidden ones excepted: paths with `/`, in byte order.
///
/// # Errors
/// When a folder cannot be read.
pub fn text_files(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    fn walk(folder: &Path, prefix: &str, files: &mut Vec<(String, PathBuf)>) -> Result<()> {
        let fail = |e| Error::io("read", folder, e);
        for entry in fs::read_dir(folder).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let kind = entry.file_type().map_err(fail)?;
            let id = format!("{prefix}{name}");
            if name.starts_with('.') {
                continue;
            } else if kind.is_dir() {
                walk(&entry.path(), &format!("{id}/"), files)?;
            } else if kind.is_file() && (name.ends_with(".rs") || name.ends_with(".md")) {
                files.push((id, entry.path()));
            }
        }
        Ok(())
    }
    let mut files = Vec::new();
    walk(folder, "", &mut files)?;
    files.sort_unstable();
    Ok(files)
}

/// Hash of names and texts of a crate's documents: BLAKE3 of length and bytes of each, in order.
pub fn content_hash<'a>(documents: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, text) in documents {
        for part in [name, text] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
    }
    hasher.finalize().to_hex().to_string()
}

/// Reads the crates of a manifest and checks them against it. `reading` is called with bytes read and all bytes.
///
/// # Errors
/// When the manifest cannot be used, when crates are not on this machine (all of them are named), or when their
/// files are not those of the manifest.
pub fn load(manifest_path: &Path, reading: &mut dyn FnMut(u64, u64)) -> Result<Loaded> {
    let manifest_path = locate::project_file(manifest_path)?;
    let manifest = Manifest::read(&manifest_path)?;
    let keys: Vec<CrateKey> = manifest.crates.iter().map(PinnedCrate::key).collect();
    let project = locate::project_folder(&manifest_path, &keys);
    let (folders, failure) = locate::locate(project.as_deref(), &keys);
    let missing: Vec<&CrateKey> = keys.iter().filter(|key| !folders.contains_key(key)).collect();
    if !missing.is_empty() {
        return Err(missing_crates(&missing, project, failure));
    }
    let total = manifest.crates.iter().map(|c| c.bytes).sum();
    let mut done = 0;
    let mut loaded = Loaded::default();
    for pinned in &manifest.crates {
        let documents = load_crate(pinned, &folders[&pinned.key()])?;
        match pinned.split {
            Split::Train => &mut loaded.train,
            Split::Validation => &mut loaded.validation,
        }
        .extend(documents);
        done += pinned.bytes;
        reading(done, total);
    }
    let held_out = manifest.crates.iter().filter(|c| c.split == Split::Validation).count();
    loaded.description =
        format!("source text of {} crates, {held_out} of them held out", manifest.crates.len());
    loaded.skipped = Skipped::default();
    Ok(loaded)
}

/// Looks at a manifest, whose documents [`load`] gives: training and held-out ones are two texts.
///
/// # Errors
/// When the manifest is not there.
pub fn open(manifest_path: &Path) -> Result<Opened> {
    let path = locate::project_file(manifest_path)?;
    let input = Input::of_file(&path)?;
    let of = |split| OfManifest { path: path.clone(), inputs: vec![input.clone()], split };
    Ok(Opened {
        parts: vec![Part { text: Box::new(of(Split::Train)), weight: 1.0 }],
        held_out: HeldOut::Text(Box::new(of(Split::Validation))),
    })
}

/// One side of a manifest.
struct OfManifest {
    path: PathBuf,
    inputs: Vec<Input>,
    split: Split,
}

impl Text for OfManifest {
    fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    fn read(&self) -> Result<Box<dyn Documents + '_>> {
        let loaded = load(&self.path, &mut |_, _| ())?;
        let documents = match self.split {
            Split::Train => loaded.train,
            Split::Validation => loaded.validation,
        };
        let length = self.inputs.iter().map(|input| input.length).sum();
        let found = Found { description: loaded.description, skipped: loaded.skipped, bad: Vec::new() };
        Ok(Box::new(documents::Loaded::new(documents, length, found)))
    }
}

fn missing_crates(missing: &[&CrateKey], project: Option<PathBuf>, failure: Option<String>) -> Error {
    let lock = project.as_ref().and_then(|p| fs::read_to_string(p.join("Cargo.lock")).ok());
    let lock = lock.map(|text| locate::read_lock(&text)).unwrap_or_default();
    let note = if project.is_some() && missing.iter().any(|key| !lock.contains_key(key)) {
        "; Cargo.lock has other versions than the manifest: restore it, or pin the manifest anew with \
         `cargo run --release -p calm-data --example pin_crates`"
            .to_string()
    } else {
        failure.map(|f| format!(" (cargo metadata: {})", first_reason(&f))).unwrap_or_default()
    };
    Error::MissingCrates {
        crates: missing.iter().map(|(name, version)| format!("{name} {version}")).collect(),
        project: project.unwrap_or_else(|| PathBuf::from("the project folder")),
        note,
    }
}

/// The line of cargo's message that says why.
fn first_reason(message: &str) -> &str {
    let reason = message.rsplit("error: ").next().unwrap_or(message);
    reason.lines().next().unwrap_or_default().trim()
}

fn load_crate(pinned: &PinnedCrate, folder: &Path) -> Result<Vec<Document>> {
    let name = format!("{} {}", pinned.name, pinned.version);
    let mut documents = Vec::with_capacity(pinned.documents);
    for (id, path) in text_files(folder)? {
        if pinned.dropped.values().flatten().any(|dropped| *dropped == id) {
            continue;
        }
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        documents.push(Document::new(id, super::bytes::text(&path, bytes)?));
    }
    let differs = |what, expected: String, found: String| {
        Err(Error::CrateContent { name: name.clone(), path: folder.into(), what, expected, found })
    };
    if documents.len() != pinned.documents {
        return differs("files", pinned.documents.to_string(), documents.len().to_string());
    }
    let hash = content_hash(documents.iter().map(|d| (d.id.as_str(), d.text.as_str())));
    if hash != pinned.hash {
        return differs("contents", short(&pinned.hash), short(&hash));
    }
    for document in &mut documents {
        document.id = format!("{}-{}/{}", pinned.name, pinned.version, document.id);
    }
    Ok(documents)
}

fn short(hash: &str) -> String {
    hash.chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (tempfile::TempDir, PinnedCrate) {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        fs::create_dir(folder.path().join(".github")).unwrap();
        for (name, text) in [
            ("src/lib.rs", "fn a() {}"),
            ("src/table.rs", "1, 2"),
            ("README.md", "# A"),
            ("Cargo.toml", "x"),
            (".github/a.md", "x"),
        ] {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let pinned = PinnedCrate {
            name: "a".into(),
            version: "1.0.0".into(),
            checksum: String::new(),
            split: Split::Train,
            documents: 2,
            bytes: 12,
            hash: content_hash([("README.md", "# A"), ("src/lib.rs", "fn a() {}")]),
            dropped: BTreeMap::from([("generated".to_string(), vec!["src/table.rs".to_string()])]),
        };
        (folder, pinned)
    }

    #[test]
    fn a_crate_gives_its_source_and_text_files_without_the_dropped_ones() {
        let (folder, pinned) = sample();
        let documents = load_crate(&pinned, folder.path()).unwrap();
        let ids: Vec<&str> = documents.iter().map(|d| d.id.as_str()).collect();
        assert_eq!(ids, ["a-1.0.0/README.md", "a-1.0.0/src/lib.rs"]);
    }

    #[test]
    fn a_changed_crate_is_an_error_that_names_it() {
        let (folder, pinned) = sample();
        fs::write(folder.path().join("src/lib.rs"), "fn b() {}").unwrap();
        let error = load_crate(&pinned, folder.path()).unwrap_err().told();
        assert!(
            error.contains("a 1.0.0") && error.contains("contents") && error.contains("cargo fetch"),
            "{error}"
        );
        fs::write(folder.path().join("src/new.rs"), "fn b() {}").unwrap();
        let error = load_crate(&pinned, folder.path()).unwrap_err().told();
        assert!(error.contains("expected 2, found 3"), "{error}");
    }

    #[test]
    fn missing_crates_are_listed_with_the_command_that_fetches_them() {
        let keys = [("a".to_string(), "1.0.0".to_string()), ("b".to_string(), "2.0.0".to_string())];
        let error = missing_crates(&[&keys[0], &keys[1]], None, Some("offline".into())).told();
        assert!(error.contains("2 crate(s)") && error.contains("a 1.0.0, b 2.0.0"), "{error}");
        assert!(error.contains("cargo fetch") && error.contains("offline"), "{error}");
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("Cargo.lock"), "").unwrap();
        let error = missing_crates(&[&keys[0]], Some(folder.path().into()), None).told();
        assert!(
            error.contains("pin_crates") && error.contains(&folder.path().display().to_string()),
            "{error}"
        );
    }

    #[test]
    fn a_broken_manifest_is_named_with_the_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("crates.yaml");
        fs::write(&path, "version: 1\nheld_out: []\nexcluded: {}\nsurprise: 1\n").unwrap();
        let error = Manifest::read(&path).unwrap_err().told();
        assert!(
            error.contains("surprise") && error.contains("line 4") && error.contains("crates.yaml"),
            "{error}"
        );
        fs::write(&path, "version: 9\nheld_out: []\nexcluded: {}\ncrates: []\n").unwrap();
        assert!(Manifest::read(&path).unwrap_err().told().contains("version 9"));
        let error = load(&folder.path().join("none.yaml"), &mut |_, _| ()).unwrap_err();
        assert!(matches!(error, Error::Missing { .. }));
    }

    #[test]
    fn the_content_hash_depends_on_names_texts_and_their_boundaries() {
        let hash = content_hash([("a", "bc")]);
        assert_ne!(hash, content_hash([("ab", "c")]));
        assert_ne!(hash, content_hash([("a", "bd")]));
        assert_ne!(content_hash([("a", "b"), ("c", "d")]), content_hash([("c", "d"), ("a", "b")]));
    }
}
