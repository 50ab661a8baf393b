//! What turns the hidden state of a position into the tokens of the next chunk.

use candle_core::{Result, Tensor};

/// From hidden states `[R, D]` to those of the K tokens that follow, each of width W, which the vocabulary is asked
/// with. Token k may depend on the hidden state and on the tokens of the chunk before k, never on k or later ones.
pub(in crate::family) trait ChunkDecoder: Send + Sync {
    /// W.
    fn width(&self) -> usize;

    /// See [`crate::Backbone::set_recompute`].
    fn set_recompute(&mut self, recompute: bool);

    /// Hidden states `[R, D]` and the true chunks, U32 `[R, K]` -> `[R, K, W]`.
    ///
    /// # Errors
    /// Shapes that do not fit; what a GPU answers.
    fn teacher_forced(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor>;

    /// The same token by token, without gradient.
    ///
    /// # Errors
    /// As [`Self::teacher_forced`].
    fn start(&self, hidden: &Tensor) -> Result<Box<dyn ChunkTokens + '_>>;
}

/// R chunks whose tokens are chosen one after another.
pub(in crate::family) trait ChunkTokens {
    /// The token before in each of the R chunks (None at the first) -> hidden states `[R, W]` of the next.
    ///
    /// # Errors
    /// More than K calls; what a GPU answers.
    fn next(&mut self, before: Option<&[u32]>) -> Result<Tensor>;
}
