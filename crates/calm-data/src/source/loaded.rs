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
    /// What was left out.
    pub skipped: Skipped,
}

/// What was left out.
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
    /// Documents that the filter does not take.
    #[serde(default)]
    pub filtered: usize,
    /// Documents that cannot be read, where they are to be left out.
    #[serde(default)]
    pub bad: usize,
}

impl std::ops::AddAssign for Skipped {
    fn add_assign(&mut self, other: Self) {
        self.binary += other.binary;
        self.hidden += other.hidden;
        self.without_text += other.without_text;
        self.own += other.own;
        self.filtered += other.filtered;
        self.bad += other.bad;
    }
}
