//! Generative heads: from a hidden state to samples of the next latent vector.
//!
//! **Adding a head** takes three steps: a file here with a struct that implements [`Head`]; a variant of
//! [`HeadConfig`] with its settings and their validation; a line in [`build`].

mod adaln;
mod diffusion;
mod energy;
mod flow;
mod schedule;
#[cfg(test)]
mod testing;

use calm_autoencoder::Posterior;
use calm_nn::{Builder, Context, Noise};
use candle_core::{DType, Result, Tensor};

use crate::{BackboneConfig, HeadConfig};
pub use adaln::AdaLnNet;
pub use diffusion::{DiffusionHead, DiffusionTerms};
pub use energy::EnergyHead;
pub use flow::{FlowHead, FlowTerms};
pub use schedule::Schedule;

/// A generative head is a loss and a sampler. All noise comes in through [`Noise`]: keyed streams in
/// training, given tensors in tests.
pub trait Head: Send + Sync {
    /// Loss per row: `hidden [R, D]`, posterior of the next chunk `[R, L]` -> `[R]`.
    fn loss(&self, hidden: &Tensor, posterior: &Posterior, noise: &Noise<'_>) -> Result<Tensor>;

    /// N samples per row: `hidden [R, D]` -> `[R, N, L]`.
    fn sample(&self, hidden: &Tensor, samples: usize, noise: &Noise<'_>) -> Result<Tensor>;
}

/// Creates the configured head's parameters under `b` (the root of the model's names).
pub fn build(
    b: &Builder,
    config: &HeadConfig,
    backbone: &BackboneConfig,
    latent_size: usize,
) -> Result<Box<dyn Head>> {
    match config {
        HeadConfig::Energy(c) => Ok(Box::new(EnergyHead::new(b, c, backbone, latent_size)?)),
        HeadConfig::Flow(c) => Ok(Box::new(FlowHead::new(b, c, backbone, latent_size)?)),
        HeadConfig::Diffusion(c) => Ok(Box::new(DiffusionHead::new(b, c, backbone, latent_size)?)),
    }
}

/// n samples of the posterior per row, `[R, n, L]`, constants; noise stream `target`.
fn draw_targets(posterior: &Posterior, n: usize, noise: &Noise<'_>, context: &Context) -> Result<Tensor> {
    let (mean, log_std) = (posterior.mean.detach(), posterior.log_std.detach());
    let eps = noise.normal("target", n, mean.dim(1)?, context)?.to_dtype(mean.dtype())?;
    mean.unsqueeze(1)?.broadcast_add(&log_std.exp()?.unsqueeze(1)?.broadcast_mul(&eps)?)
}

/// At least f32, for sums.
fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 })
}
