//! What a source gives.

use crate::document::Document;

/// Documents of a source with what was found on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Documents to train on, in a fixed order.
    pub train: Vec<Document>,
    /// Held-out documents, in a fixed order.
    pub validation: Vec<Document>,
    /// One line for people: what this text is.
    pub description: String,
    /// Files that were left out.
    pub skipped: Skipped,
}

/// Files of a folder that were left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Skipped {
    /// Not UTF-8, or with zero bytes.
    pub binary: usize,
    /// Names that begin with a dot (a hidden folder counts once).
    pub hidden: usize,
    /// Without text: empty files, and JSON files that hold no records with a `text` field.
    pub without_text: usize,
    /// Outputs of this program: runs, ablations, reports, caches (a folder counts once).
    #[serde(default)]
    pub own: usize,
}
