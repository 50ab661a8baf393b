//! What a model has to know of the text it reads.

use crate::sampler::SpecialIds;

/// The text as a model meets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextFormat {
    /// V.
    pub vocab_size: usize,
    /// Ids with a meaning.
    pub special: SpecialIds,
    /// S, the longest trained sequence in positions.
    pub context: usize,
    /// Whether a document begins with an input-only chunk of BOS.
    pub bos_chunk: bool,
}
