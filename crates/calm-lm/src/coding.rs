//! What a lossless coder asks of a model: how likely each token is to be the next, in integers that come out the same to
//! the bit wherever and however they are computed.
//!
//! ```text
//! texts  ── chunks of all, one after the other ── [`Coding::read`] ── hidden states [1, N, D]
//!        ── those that are followed by a chunk [R, D] ── [`Coding::chunks`] ── weights [R, V], token by token
//! ```
//! The one who writes reads a text in one pass and the one who reads token by token: both must see the same numbers. They
//! do once the model's contexts are fixed ([`calm_kernels::Context::fix`]), on the CPU in 32 bits: no number of a position
//! depends then on how many others were computed beside it, on threads or on the processor.

use calm_nn::{ParamStore, RowId};
use candle_core::{Result, Tensor};

use crate::Cache;
use crate::family::TextFormat;

/// A model that tells the probabilities of tokens.
pub trait Coding: Send + Sync {
    /// The text as the model meets it.
    fn format(&self) -> &TextFormat;

    /// K.
    fn chunk_size(&self) -> usize;

    /// The parameters that texts go through.
    fn stores(&self) -> Vec<&ParamStore>;

    /// Whether probabilities are means over draws of latent vectors, of which a coder says how many.
    fn is_drawn(&self) -> bool {
        false
    }

    /// Chunks of several texts, one text after the other, with the number of chunks of each and their caches -> hidden
    /// states `[1, N, D]`; the caches grow.
    ///
    /// # Errors
    /// Lengths that do not fit; an id outside the vocabulary.
    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut Cache]) -> Result<Tensor>;

    /// The chunks that follow hidden states `[R, D]`. What is drawn for a chunk is keyed by its row.
    ///
    /// # Errors
    /// Another number of rows than of hidden states.
    fn chunks(&self, hidden: &Tensor, rows: &[RowId], draws: usize) -> Result<Box<dyn CodedChunks + '_>>;
}

/// R chunks whose tokens become known one after another.
pub trait CodedChunks {
    /// The token before in each of the R chunks (None at the first) -> for each how likely every token is to be the next,
    /// `[R][V]`: weights whose sum is at most 2⁶⁰, possibly 0.
    ///
    /// # Errors
    /// More than K calls; numbers of the model that are none.
    fn next(&mut self, before: Option<&[u32]>) -> Result<Vec<Vec<u64>>>;
}
