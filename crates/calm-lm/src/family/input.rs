//! From the K tokens of a chunk to the backbone's input, for the families whose positions are chunks.

use calm_config::Problems;
use calm_kernels as ops;
use calm_nn::costs::{biased, flops, layer_norm, weights};
use calm_nn::{Builder, Footing, Held, Init, LayerNorm, Linear};
use candle_core::{Result, Tensor};

/// Most tokens of a chunk.
const LONGEST_CHUNK: usize = 64;
/// What the input module keeps.
const INPUT: &str = "kept in the input";

/// `LayerNorm(W2 · silu(W0 · concat(K embeddings)))`, widths K·D -> 2D -> D.
#[derive(Clone, Debug)]
pub(super) struct ChunkInput {
    first: Linear,
    second: Linear,
    norm: LayerNorm,
}

impl ChunkInput {
    pub(super) fn new(b: &Builder, chunk_size: usize, hidden: usize, init: Init) -> Result<Self> {
        Ok(Self {
            first: Linear::new(b, "0", chunk_size * hidden, 2 * hidden, init)?,
            second: Linear::new(b, "2", 2 * hidden, hidden, init)?,
            norm: LayerNorm::new(b, "3", hidden, 1e-6)?,
        })
    }

    /// `[B, S, K·D] -> [B, S, D]`
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.second.forward(&ops::silu(&self.first.forward(x)?)?)?)
    }

    /// Its parameters at K and D.
    pub(super) fn parameters(k: usize, d: usize) -> u64 {
        biased(k * d, 2 * d) + biased(2 * d, d) + layer_norm(d)
    }

    /// Forward FLOPs of a chunk.
    pub(super) fn flops(k: usize, d: usize) -> f64 {
        flops(weights(k * d, 2 * d) + weights(2 * d, d))
    }

    /// What it holds in a training step on `positions` chunks: embeddings, both sides of the SiLU, and what the
    /// LayerNorm is given.
    pub(super) fn hold(held: &mut Held, k: usize, d: usize, positions: f64, on: Footing) {
        let (k, d) = (k as f64, d as f64);
        held.keep(INPUT, positions * (k * d + 2.0 * d + 2.0 * d + d) * on.activation);
    }
}

/// Adds a number of tokens that no chunk has.
pub(super) fn validate_chunk_size(k: usize, problems: &mut Problems) {
    if k == 0 || k > LONGEST_CHUNK {
        problems.add("chunk_size", format!("is {k}: chunks have between 1 and {LONGEST_CHUNK} tokens"));
    }
}
