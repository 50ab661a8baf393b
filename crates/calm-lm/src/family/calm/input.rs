//! From the K tokens of a chunk to the backbone's input.

use calm_kernels as ops;
use calm_nn::{Builder, Init, LayerNorm, Linear};
use candle_core::{Result, Tensor};

/// `LayerNorm(W2 · silu(W0 · concat(K embeddings)))`, widths K·D -> 2D -> D.
#[derive(Clone, Debug)]
pub(crate) struct ChunkInput {
    first: Linear,
    second: Linear,
    norm: LayerNorm,
}

impl ChunkInput {
    pub(crate) fn new(b: &Builder, chunk_size: usize, hidden: usize, init: Init) -> Result<Self> {
        Ok(Self {
            first: Linear::new(b, "0", chunk_size * hidden, 2 * hidden, init)?,
            second: Linear::new(b, "2", 2 * hidden, hidden, init)?,
            norm: LayerNorm::new(b, "3", hidden, 1e-6)?,
        })
    }

    /// `[B, S, K·D] -> [B, S, D]`
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.second.forward(&ops::silu(&self.first.forward(x)?)?)?)
    }
}
