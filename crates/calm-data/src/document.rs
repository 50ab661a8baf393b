//! A document: the unit that begins with BOS and ends with EOS.

use std::ops::Range;

/// One text with a name. Documents are never joined and never cut before tokenising.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    /// Where the text comes from: a path inside its source, with the record or piece number.
    pub id: String,
    /// The text itself, byte for byte.
    pub text: String,
    /// The bytes of the text that are answers and alone count in loss and scores, ascending; none: everything counts.
    pub answers: Option<Vec<Range<usize>>>,
}

impl Document {
    /// A document of a name and a text, all of which counts.
    pub fn new(id: impl Into<String>, text: impl Into<String>) -> Self {
        Self { id: id.into(), text: text.into(), answers: None }
    }

    /// BLAKE3 of the text (not of the name).
    pub fn content_hash(&self) -> blake3::Hash {
        blake3::hash(self.text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_content_hash_ignores_the_name() {
        assert_eq!(Document::new("a", "x").content_hash(), Document::new("b", "x").content_hash());
        assert_ne!(Document::new("a", "x").content_hash(), Document::new("a", "y").content_hash());
    }
}
