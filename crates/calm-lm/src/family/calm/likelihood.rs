//! The likelihood of the next chunk through the decoder, as a loss.
//!
//! ```text
//! loss = −1/K ln [ 1/N Σ_n Π_k p_dec(x_k | ẑ_n) ],   ẑ_n = head(hidden, noise_n)   nats a position
//! ∂loss/∂ẑ_n = −w_n/K Σ_k ∂ ln p_dec(x_k | ẑ_n)/∂ẑ_n,   w_n = Π_k p_dec(x_k | ẑ_n) / Σ_m Π_k p_dec(x_k | ẑ_m)
//! ```
//! The product runs over the tokens up to EOS, the mean over all K positions. In expectation over the noise this bounds the cross-entropy of drawing a
//! latent vector and sampling the decoder from above (as importance-weighted autoencoders do, arXiv 1509.00519; it
//! holds with any N, and tightens as N grows). A model trained by it is decoded by sampling: its latent vectors need
//! not lie where one token is certain.
//!
//! The shares w_n are computed first, without gradient; then one weighted cross-entropy has the gradient. No tensor has
//! a side of V.

use calm_config::Problems;
use calm_kernels as ops;
use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::DecoderKind;
use super::decoder::LatentDecoder;
use crate::family::filler::up_to_end;

/// The likelihood loss.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LikelihoodConfig {
    /// Its weight.
    pub weight: f64,
    /// N, samples of the head for each chunk.
    pub samples: usize,
    /// Weight of the head's own loss beside it; 0 leaves that out.
    pub head_weight: f64,
    /// Which decoder it goes through; the model decodes by the same.
    pub decoder: DecoderKind,
}

impl Default for LikelihoodConfig {
    fn default() -> Self {
        Self { weight: 1.0, samples: 8, head_weight: 0.0, decoder: DecoderKind::Frozen }
    }
}

impl LikelihoodConfig {
    /// Adds what is impossible; `possible`: whether a loss on the head's samples trains it.
    pub(super) fn validate(&self, possible: bool, problems: &mut Problems) {
        if !possible {
            problems
                .add("", "needs a head that draws a sample in one differentiable pass")
                .remedy("choose such a head (energy), or leave `likelihood` out");
        }
        if !(self.weight > 0.0 && self.weight.is_finite()) {
            problems.add("weight", format!("is {}: must be above 0", self.weight));
        }
        if self.samples == 0 {
            problems.add("samples", "must be at least 1");
        }
        if !(self.head_weight >= 0.0 && self.head_weight.is_finite()) {
            problems.add("head_weight", format!("is {}: must be 0 or more", self.head_weight));
        }
    }
}

/// Σ over rows of the loss above, f32 scalar, differentiable in the samples `[R, N, L]`, in what a conditioned decoder
/// is given of the hidden states `[R, D]`, and in the parameters of a decoder that is trained along; targets U32
/// `[R, K]`.
pub(super) fn nats(
    decoder: &LatentDecoder,
    samples: &Tensor,
    hidden: &Tensor,
    targets: &Tensor,
    eos: u32,
) -> Result<Tensor> {
    let (r, n, _) = samples.dims3()?;
    let (k, table) = (decoder.decoder.chunk_size(), decoder.decoder.table());
    let hidden = decoder.hidden(samples, hidden)?;
    let ids = targets.unsqueeze(1)?.repeat((1, n, 1))?.flatten_all()?;
    let counts = up_to_end(targets, eos)?.unsqueeze(1)?;
    let (each, _) = ops::tied_cross_entropy_rows(&hidden.detach(), table, &ids)?;
    // ln p of the whole chunk under each sample, `[R, N]`.
    let log_p = each.to_dtype(DType::F32)?.reshape((r, n, k))?.broadcast_mul(&counts)?.sum(2)?.neg()?;
    let top = log_p.max_keepdim(1)?;
    let scaled = log_p.broadcast_sub(&top)?.exp()?;
    let sum = scaled.sum_keepdim(1)?;
    let shares = scaled.broadcast_div(&sum)?;
    let log_mean = ((sum.log()? + top)? - (n as f64).ln())?;
    let value = (log_mean.sum_all()?.neg()? / k as f64)?;
    let weights = (shares.unsqueeze(2)?.broadcast_mul(&counts)? / k as f64)?.flatten_all()?;
    let weights = if hidden.device().is_cpu() { weights.to_dtype(hidden.dtype())? } else { weights };
    let led = ops::tied_cross_entropy(&hidden, table, &ids, Some(&weights))?.to_dtype(DType::F32)?;
    // The value of the loss with the gradient of the weighted cross-entropy.
    let offset = (value - led.detach())?;
    led + offset
}
