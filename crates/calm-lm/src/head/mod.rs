//! Generative heads: from a hidden state to samples of the next latent vector.
//!
//! **Adding a head** takes three steps: a file here with a struct that implements [`Head`]; a variant of
//! [`HeadConfig`](crate::HeadConfig) with its settings and their validation; a line in [`build`].

mod energy;

use calm_autoencoder::Posterior;
use calm_nn::{Builder, Noise};
use candle_core::{Result, Tensor};

use crate::{BackboneConfig, HeadConfig};
pub use energy::EnergyHead;

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
    }
}
