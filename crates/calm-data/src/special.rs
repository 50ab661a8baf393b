//! The ids that stand beside the text: BOS, EOS and PAD, of a tokenizer or of a model that brings its own.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Ids that no text is encoded to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpecialTokens {
    /// Fills the input-only first chunk of a document.
    pub bos: u32,
    /// Ends a document.
    pub eos: u32,
    /// Fills the last chunk after EOS, and filler chunks.
    pub pad: u32,
}

/// Ids of a model that was trained elsewhere, where they are not the tokenizer's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Vocabulary {
    /// V: rows of the model's embedding.
    pub size: usize,
    /// Fills the input-only first chunk of a document.
    pub bos: u32,
    /// Ends a document.
    pub eos: u32,
    /// Fills the last chunk after EOS, and filler chunks.
    pub pad: u32,
}

impl Vocabulary {
    /// BOS, EOS and PAD.
    pub fn special(&self) -> SpecialTokens {
        SpecialTokens { bos: self.bos, eos: self.eos, pad: self.pad }
    }
}

/// What a token says of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// A piece of the vocabulary.
    Text,
    /// A byte of text that no piece stands for.
    Byte,
    /// Text that was lost.
    Nothing,
}
