//! Where a language model is scored: the two protocols.
//!
//! ```text
//! aligned     the same documents at the same tokens for every chunk size K and for the baseline: multiples of
//!             `every` counted from the document's start, read in windows of `context` tokens that overlap by
//!             `every` tokens
//!
//!   document   0 . . . 8 . . . 16 . . . 24 . . . 32 . . .        every = 8: scored at 0, 8, 16, ...
//!   window 0   [--------------------------)                      context = 32: the first window has BOS and
//!   window 1                      [----------------------)       24 tokens; the overlap is read, not scored again
//!
//! reference   as the reference implementation of the paper (arXiv 2510.27688) measures: documents joined without
//!             EOS, cut in blocks, the tail dropped; no BOS chunk, so the first chunk of a block is never
//!             predicted; CALM at chunk starts, the baseline everywhere; for K < 4 the last start is left out
//! ```
//!
//! At a token p of window w an aligned model has p − w·(context − every) + every tokens of text before it (p in the
//! first window): the same number for every K, and at most context − every.
//!
//! Positions follow from lengths alone, never from the target. The n-gram of a position must lie in its window
//! (or end with the text); with `every` < 4 the last starts of a window therefore fall out, for all models alike.

use calm_data::{
    Batch, EvaluationOptions, EvaluationRows, Layout, ReferenceBlocks, RowPlan, SpecialTokens, TokenFile,
};
use calm_lm::DrawKind;
use serde::Serialize;
use thiserror::Error;

use calm_stats::brier::{NGRAM, chunks_per_gram};

/// Tokens in a block of the reference for models that are sampled.
pub const REFERENCE_SAMPLED_BLOCK: usize = 8192;
/// Tokens in a block of the reference for models with probabilities.
pub const REFERENCE_EXACT_BLOCK: usize = 2048;

/// A protocol with its numbers, as used (it stands like this in results).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "name", rename_all = "lowercase")]
pub enum Protocol {
    /// Comparable between chunk sizes, and with the baseline.
    Aligned {
        /// Tokens between positions: chunk starts of the largest K compared.
        every: usize,
        /// Tokens in a window: no position has more to its left.
        context: usize,
        /// First token scored in a document. A model without BOS chunk predicts nothing before `every`.
        first: usize,
        /// At most so many tokens from the start of each document; None: all.
        tokens_per_document: Option<usize>,
    },
    /// As the reference implementation.
    Reference {
        /// Tokens in a block.
        block: usize,
        /// Whether every document begins with BOS, as with a tokenizer that adds it to every text.
        document_bos: bool,
    },
}

/// What a protocol has to know of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reader {
    /// K.
    pub chunk_size: usize,
    /// S: the longest trained sequence in chunks.
    pub context: usize,
    /// Whether documents begin with a chunk of BOS.
    pub bos_chunk: bool,
    /// What the model draws: the reference scores what has probabilities at every token.
    pub draws: DrawKind,
}

impl Reader {
    /// S·K: the longest trained sequence in tokens.
    pub fn tokens(&self) -> usize {
        self.context * self.chunk_size
    }
}

/// A protocol that a model cannot follow.
#[derive(Debug, Error)]
pub enum ProtocolError {
    /// Chunk starts of this K are no multiples of each other's.
    #[error("aligned positions every {every} tokens: chunks of K = {chunk_size} do not start there")]
    Every {
        /// Tokens between positions.
        every: usize,
        /// K.
        chunk_size: usize,
    },
    /// The window must hold whole steps, at least two.
    #[error("an aligned context of {context} tokens with positions every {every}")]
    Windows {
        /// Tokens in a window.
        context: usize,
        /// Tokens between positions.
        every: usize,
    },
    /// The model was trained on shorter sequences.
    #[error("a context of {context} tokens: this model was trained on {trained} (its context times K)")]
    TooLong {
        /// Tokens asked for.
        context: usize,
        /// Tokens trained on.
        trained: usize,
    },
    /// The text does not fill one block.
    #[error("the text does not fill one block of {block} tokens")]
    NoBlock {
        /// Tokens in a block.
        block: usize,
    },
    /// Batches cannot be made.
    #[error(transparent)]
    Data(#[from] calm_data::Error),
}

impl ProtocolError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<String> {
        Some(match self {
            Self::Every { .. } => "take a multiple of K".into(),
            Self::Windows { every, .. } => format!("take a multiple of {every}, at least {}", 2 * every),
            Self::TooLong { .. } => "take no more".into(),
            Self::NoBlock { .. } => {
                "score more documents, or shorten the block with a smaller context".into()
            }
            Self::Data(e) => return e.remedy(),
        })
    }
}

/// Which positions of a batch are scored, and which belong together in standard errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// All with a whole n-gram ahead, by document.
    #[default]
    All,
    /// Multiples of `every` from `first` on, by document.
    Multiples {
        /// Tokens between positions.
        every: usize,
        /// First token scored.
        first: usize,
        /// Whether chunk 0 is the BOS chunk.
        bos_chunk: bool,
    },
    /// Blocks of joined documents, by block; without the last `left_out` starts of each.
    Blocks {
        /// Last starts left out.
        left_out: usize,
    },
}

impl Rule {
    /// The token at which the n-gram after position `(b, s)` begins: in its document, or (in blocks) in the
    /// joined text.
    pub fn token(&self, batch: &Batch, b: usize, s: usize) -> usize {
        let bos = match self {
            Self::Multiples { bos_chunk, .. } => usize::from(*bos_chunk),
            Self::All | Self::Blocks { .. } => 0,
        };
        (batch.chunk_index[b * batch.context + s] as usize + 1 - bos) * batch.chunk_size
    }

    /// Whether the n-gram after position `(b, s)` is scored, if it is whole.
    pub fn scores(&self, batch: &Batch, b: usize, s: usize) -> bool {
        match *self {
            Self::All => true,
            Self::Multiples { every, first, .. } => {
                let token = self.token(batch, b, s);
                token >= first && token.is_multiple_of(every)
            }
            Self::Blocks { left_out } => s + chunks_per_gram(batch.chunk_size) + left_out < batch.context,
        }
    }

    /// What a position is resampled with: its document, or its block.
    pub fn group(&self, batch: &Batch, b: usize, s: usize) -> u32 {
        match self {
            Self::Blocks { .. } => batch.examples[b],
            Self::All | Self::Multiples { .. } => batch.documents[b * batch.context + s],
        }
    }
}

enum Rows {
    Windows(EvaluationRows),
    Blocks(ReferenceBlocks),
}

/// The batches of a protocol for one model, and the rule that goes with them.
pub struct View {
    rows: Rows,
    /// Which positions are scored.
    pub rule: Rule,
}

impl View {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        match &self.rows {
            Rows::Windows(w) => w.rows(),
            Rows::Blocks(b) => b.rows(),
        }
    }

    /// Number of batches of so many rows.
    pub fn batch_count(&self, rows_per_batch: usize) -> usize {
        self.rows().div_ceil(rows_per_batch.max(1))
    }

    /// All batches of `rows_per_batch` rows (the last may have fewer), in order.
    pub fn batches(&self, rows_per_batch: usize) -> impl Iterator<Item = Batch> + '_ {
        let size = rows_per_batch.max(1);
        (0..self.batch_count(size)).map(move |i| {
            let range = i * size..((i + 1) * size).min(self.rows());
            match &self.rows {
                Rows::Windows(w) => w.batch(range),
                Rows::Blocks(b) => b.batch(range),
            }
        })
    }
}

impl Protocol {
    /// Aligned with a model's own chunks and context: every chunk of the first `chunks` of each document.
    pub fn own(reader: &Reader, chunks: Option<usize>) -> Self {
        let every = reader.chunk_size;
        Self::Aligned {
            every,
            context: reader.tokens(),
            first: if reader.bos_chunk { 0 } else { every },
            tokens_per_document: chunks.map(|c| c * every),
        }
    }

    /// The reference's blocks, as far as the model's context allows; whole chunks.
    ///
    /// `sampled` and `exact`: tokens in a block of a black box, and of a model with probabilities.
    pub fn reference(reader: &Reader, sampled: usize, exact: usize, document_bos: bool) -> Self {
        let most = match reader.draws {
            DrawKind::Sampled => sampled,
            DrawKind::Exact => exact,
        };
        let chunks = most.min(reader.tokens()) / reader.chunk_size;
        Self::Reference { block: chunks * reader.chunk_size, document_bos }
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Aligned { .. } => "aligned",
            Self::Reference { .. } => "reference",
        }
    }

    /// Tokens in a row.
    pub fn row_tokens(&self) -> usize {
        match *self {
            Self::Aligned { context, .. } => context,
            Self::Reference { block, .. } => block,
        }
    }

    /// The batches of these documents for a model.
    ///
    /// # Errors
    /// When the model's chunks or context do not fit the protocol, a document does not exist, or no block is full.
    pub fn view(
        &self,
        file: &TokenFile,
        special: SpecialTokens,
        reader: &Reader,
        documents: &[usize],
    ) -> Result<View, ProtocolError> {
        let k = reader.chunk_size;
        let trained = reader.tokens();
        if self.row_tokens() > trained {
            return Err(ProtocolError::TooLong { context: self.row_tokens(), trained });
        }
        match *self {
            Self::Aligned { every, context, first, tokens_per_document } => {
                if every == 0 || !every.is_multiple_of(k) {
                    return Err(ProtocolError::Every { every, chunk_size: k });
                }
                if !context.is_multiple_of(every) || context < 2 * every {
                    return Err(ProtocolError::Windows { context, every });
                }
                let layout = Layout { chunk_size: k, context: context / k, bos_chunk: reader.bos_chunk };
                // A whole number of steps, so that every K reads the same tokens.
                let max_chunks = tokens_per_document.map(|t| (t / every).max(1) * every / k);
                let options = EvaluationOptions { max_chunks, overlap: every / k };
                let rows = RowPlan::evaluation(file, layout, special, documents, options)?;
                // Without a BOS chunk the first chunk of a text is no target: of the multiples of `every` this
                // is token 0 alone.
                let first = if reader.bos_chunk { first } else { first.max(every) };
                let rule = Rule::Multiples { every, first, bos_chunk: reader.bos_chunk };
                Ok(View { rows: Rows::Windows(rows), rule })
            }
            Self::Reference { block, document_bos } => {
                let layout = Layout { chunk_size: k, context: block / k, bos_chunk: false };
                let bos = document_bos.then_some(special.bos);
                let blocks = layout.reference_blocks_of(file, documents, bos)?;
                if blocks.rows() == 0 {
                    return Err(ProtocolError::NoBlock { block });
                }
                let left_out = usize::from(reader.draws == DrawKind::Sampled && k < NGRAM);
                Ok(View { rows: Rows::Blocks(blocks), rule: Rule::Blocks { left_out } })
            }
        }
    }
}
