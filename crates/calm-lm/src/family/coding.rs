//! What a lossless coder asks of a model: how likely each token is to be the next, in integers that come out the same to
//! the bit wherever and however they are computed.
//!
//! The one who writes reads a text in one pass and the one who reads token by token: both must see the same numbers. They
//! do once the contexts of the stores are fixed ([`calm_kernels::Context::fix`]), on the CPU in 32 bits: no number of a
//! position depends then on how many others were computed beside it, on threads or on the processor.

use calm_nn::{ParamStore, RowId};
use candle_core::{Result, Tensor, bail};

use super::text_format::TextFormat;

/// A model's probabilities for a lossless coder.
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

    /// So many texts of which nothing was read yet.
    fn texts(&self, count: usize) -> Box<dyn CodedTexts + '_>;

    /// The chunks that follow hidden states `[R, D]`. What is drawn for a chunk is keyed by its row.
    ///
    /// # Errors
    /// Another number of rows than of hidden states.
    fn chunks(&self, hidden: &Tensor, rows: &[RowId], draws: usize) -> Result<Box<dyn CodedChunks + '_>>;
}

/// Texts that are read side by side, with what is kept of each.
pub trait CodedTexts {
    /// From now on nothing was read of this text.
    ///
    /// # Panics
    /// If there is no such text.
    fn forget(&mut self, text: usize);

    /// Chunks of some of the texts, one text after the other: of which, each after the one before it, and how many
    /// chunks -> hidden states `[1, N, D]`.
    ///
    /// # Errors
    /// Lengths that do not fit; texts that do not rise; an id outside the vocabulary.
    fn read(&mut self, tokens: &[u32], of: &[(usize, usize)]) -> Result<Tensor>;
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

/// Texts of a family that keeps a `C` of each and reads with `read` (tokens, chunks of each text, caches).
pub(super) struct Texts<C, F> {
    caches: Vec<C>,
    read: F,
}

impl<C: Default, F: Fn(&[u32], &[usize], &mut [&mut C]) -> Result<Tensor>> Texts<C, F> {
    pub(super) fn new(count: usize, read: F) -> Self {
        Self { caches: std::iter::repeat_with(C::default).take(count).collect(), read }
    }
}

impl<C: Default, F: Fn(&[u32], &[usize], &mut [&mut C]) -> Result<Tensor>> CodedTexts for Texts<C, F> {
    fn forget(&mut self, text: usize) {
        self.caches[text] = C::default();
    }

    fn read(&mut self, tokens: &[u32], of: &[(usize, usize)]) -> Result<Tensor> {
        let mut named = of.iter().map(|(text, _)| *text).peekable();
        let all = self.caches.iter_mut().enumerate();
        let mut caches: Vec<&mut C> =
            all.filter_map(|(text, cache)| named.next_if_eq(&text).map(|_| cache)).collect();
        if caches.len() != of.len() {
            bail!("texts are read in order, each once: {of:?} of {}", self.caches.len())
        }
        let lengths: Vec<usize> = of.iter().map(|(_, chunks)| *chunks).collect();
        (self.read)(tokens, &lengths, &mut caches)
    }
}
