//! What scoring needs of a model: draws at every predicting position of a batch.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Longest n-gram that is scored.
pub const GRAM: usize = 4;

/// What a family draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrawKind {
    /// Samples of a black box.
    Sampled,
    /// Exact probabilities: cross-entropy, and temperature by logits.
    Exact,
}

/// Which draws. The noise of a draw is that of its row, never of its batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawRequest<'a> {
    /// N, draws a position (families with probabilities need none).
    pub samples: usize,
    /// Chunks rolled forward, so that an n-gram of [`GRAM`] tokens is whole.
    pub steps: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Purpose in the noise's streams.
    pub purpose: &'a str,
}

/// Draws at the R predicting positions of a batch.
#[derive(Clone, Debug)]
pub enum Draws {
    /// Samples of a black box.
    Sampled(SampledDraws),
    /// Probabilities of what is there, and samples for what two draws have in common.
    Exact(ExactDraws),
}

/// Samples of a black box.
#[derive(Clone, Debug)]
pub struct SampledDraws {
    /// `[R, steps, N, K]`; step j > 0 continues sample 0 of the steps before it, and is PAD where no other
    /// sample agrees with sample 0 so far.
    pub tokens: Vec<u32>,
    /// R.
    pub rows: usize,
    /// Chunks rolled forward.
    pub steps: usize,
    /// N.
    pub samples: usize,
    /// K.
    pub chunk_size: usize,
}

impl SampledDraws {
    /// Tokens of one draw.
    pub fn chunk(&self, row: usize, step: usize, sample: usize) -> &[u32] {
        let at = ((row * self.steps + step) * self.samples + sample) * self.chunk_size;
        &self.tokens[at..at + self.chunk_size]
    }
}

/// Exact probabilities.
#[derive(Clone, Debug, Default)]
pub struct ExactDraws {
    /// `[R, K]`: ln p of every token of the next chunk, teacher-forced; 0 of PAD, which follows EOS by definition.
    pub log_p: Vec<f64>,
    /// `[R]`: ln p of each of the next [`GRAM`] true tokens given those before it. Meaningful as far as the text goes
    /// on in its row; what stands after that is the ln p of anything.
    pub gram_log_p: Vec<[f64; GRAM]>,
    /// `[R]`: two sampled continuations of `GRAM − 1` tokens. Both follow the first one's context: the second is
    /// meaningful up to its first difference.
    pub paths: Vec<[[u32; GRAM - 1]; 2]>,
    /// `[R]`: Σ p² of the next token after 0 to `GRAM − 1` tokens of the first path.
    pub squares: Vec<[f64; GRAM]>,
}

/// Latent vectors drawn without looking at the next chunk, and what a softmax decoder makes of it under each.
#[derive(Clone, Debug, Default)]
pub struct DecodedDraws {
    /// `[R, N]`: ln p of the true chunk, its tokens up to EOS.
    pub log_p: Vec<f64>,
    /// `[R]`: how many tokens these are.
    pub tokens: Vec<usize>,
    /// N.
    pub samples: usize,
}

/// How a latent vector becomes tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decode {
    /// The most probable token of every position, as the paper does.
    #[default]
    Argmax,
    /// Each token drawn from the decoder's softmax: what is not certain of a vector is drawn too.
    Sample,
}
