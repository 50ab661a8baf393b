//! A source as a stream: what it consists of is known before it is read, its documents come one by one.
//!
//! ```text
//! config --open--> Opened { parts: [Part { text: Text, weight }], held_out }
//!                           Text::inputs()   what would be read: name, length, time, hash where it is known
//!                           Text::read()     --> Documents: Iterator<Item = Result<Document>>, in a fixed order
//!                                                .read_bytes()   how far it is, as the inputs lie on the disk
//!                                                .found()        description and what was left out, at the end
//! ```
//!
//! A text is read several times (its hash, a sample for the tokenizer, the tokens), each time from its start, and gives
//! the same documents in the same order as long as its inputs stay what they are. Nobody may hold all of it.

use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

use serde::{Deserialize, Serialize};

use super::loaded::Skipped;
use crate::document::Document;
use crate::error::{Error, Result};

/// A file that is read, as it lay there when it was looked at: what is equal in all of this was not changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Its path, or its address.
    pub name: String,
    /// Bytes.
    pub length: u64,
    /// When it was changed, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<u64>,
    /// Its number in the file system, where there are such.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<u64>,
    /// Hash of its content, where it is known without reading it (with its kind: `sha256:...`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}

impl Input {
    /// A file of this machine. Links are followed.
    ///
    /// # Errors
    /// When it is not there or may not be looked at.
    pub fn of_file(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        let modified = metadata.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        #[cfg(unix)]
        let file = Some(std::os::unix::fs::MetadataExt::ino(&metadata));
        #[cfg(not(unix))]
        let file = None;
        Ok(Self {
            name: path.to_string_lossy().into_owned(),
            length: metadata.len(),
            modified: modified.map(|since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)),
            file,
            hash: None,
        })
    }
}

/// What a person wants to know of a text that was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// One line for people: what this text is.
    pub description: String,
    /// What was left out.
    pub skipped: Skipped,
    /// Documents that cannot be read: where each is, and why. At most a hundred of them.
    pub bad: Vec<String>,
}

/// The documents of a text in their order. Documents without text are not among them; a text that has none at all ends
/// with an error that says so. After an error nothing more comes.
pub trait Documents: Iterator<Item = Result<Document>> + Send {
    /// Bytes of the inputs that were read so far, as they lie on the disk.
    fn read_bytes(&self) -> u64;

    /// What was found; complete when no more documents come.
    fn found(&self) -> Found;
}

/// A text that was looked at but not read.
pub trait Text: Send + Sync {
    /// What will be read, in this order. Where nothing of it has changed, neither have the documents.
    fn inputs(&self) -> &[Input];

    /// All documents from the first on.
    ///
    /// # Errors
    /// When it cannot be opened; everything later comes from the stream.
    fn read(&self) -> Result<Box<dyn Documents + '_>>;
}

/// One of the texts to train on.
pub struct Part {
    /// What is read.
    pub text: Box<dyn Text>,
    /// How often its rows come, in proportion to the weights of the others.
    pub weight: f64,
}

/// What is held out.
pub enum HeldOut {
    /// The documents of all parts whose content hash falls in the lowest share of all hashes.
    Share(f64),
    /// A text of its own.
    Text(Box<dyn Text>),
}

/// The texts of a configuration.
pub struct Opened {
    /// To train on.
    pub parts: Vec<Part>,
    /// To measure with.
    pub held_out: HeldOut,
}

/// What happens while a file is fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fetching {
    /// Bytes of a file that are there, of so many.
    Bytes {
        /// Its path in the data set.
        file: String,
        /// Bytes that are there.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Something that takes a while, for people.
    Note(String),
}

/// Hears what happens while files are fetched, from the thread that fetches.
pub type Watch = std::sync::Arc<dyn Fn(&Fetching) + Send + Sync>;

/// Documents that were read all at once.
pub(super) struct Loaded {
    documents: std::vec::IntoIter<Document>,
    length: u64,
    all: usize,
    found: Found,
}

impl Loaded {
    /// Of inputs of `length` bytes.
    pub(super) fn new(documents: Vec<Document>, length: u64, found: Found) -> Self {
        Self { all: documents.len(), documents: documents.into_iter(), length, found }
    }
}

impl Iterator for Loaded {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        self.documents.next().map(Ok)
    }
}

impl Documents for Loaded {
    fn read_bytes(&self) -> u64 {
        let left = self.documents.len() as u128;
        self.length - (u128::from(self.length) * left).div_ceil(self.all.max(1) as u128) as u64
    }

    fn found(&self) -> Found {
        self.found.clone()
    }
}
