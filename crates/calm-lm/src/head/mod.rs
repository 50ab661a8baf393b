//! Generative heads: from a hidden state to samples of the next latent vector.
//!
//! **Adding a head** is one file here: its settings, which implement [`HeadSettings`] (validation, costs, memory,
//! the head they build), and the head itself, which implements [`Head`] (a loss and a sampler); and its line in
//! [`SHIPPED`]. `crates/calm-lm/tests/toy_head.rs` shows a whole one.

mod adaln;
mod diffusion;
mod energy;
mod flow;
mod schedule;
#[cfg(test)]
mod testing;

use std::sync::RwLock;

use calm_autoencoder::Posterior;
use calm_config::Problems;
use calm_nn::{Builder, Context, Footing, Held, Noise};
use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;

use crate::BackboneConfig;
use crate::registry::{Choice, Entry, Plain, Registered};
pub use adaln::AdaLnNet;
pub use diffusion::{DiffusionConfig, DiffusionHead, DiffusionTerms, VariationalTerm};
pub use energy::{EnergyConfig, EnergyHead};
pub use flow::{FlowConfig, FlowHead, FlowTerms, FlowTime, Solver};
pub use schedule::NoiseSchedule;

/// A generative head is a loss and a sampler. All noise comes in through [`Noise`]: keyed streams in
/// training, given tensors in tests.
pub trait Head: Send + Sync {
    /// Loss per row: `hidden [R, D]`, posterior of the next chunk `[R, L]` -> `[R]`.
    fn loss(&self, hidden: &Tensor, posterior: &Posterior, noise: &Noise<'_>) -> Result<Tensor>;

    /// N samples per row: `hidden [R, D]` -> `[R, N, L]`.
    fn sample(&self, hidden: &Tensor, samples: usize, noise: &Noise<'_>) -> Result<Tensor>;
}

/// Settings of a head: what it is made of and what it costs. D is the backbone's width, L the latent size.
pub trait HeadSettings: Plain {
    /// Its key under `head` in a configuration.
    fn name(&self) -> &'static str;

    /// Adds what is impossible, by key of these settings.
    fn validate(&self, problems: &mut Problems);

    /// Creates the head's parameters under `b` (the root of the model's names).
    ///
    /// # Errors
    /// No memory left on a GPU.
    fn build(&self, b: &Builder, backbone: &BackboneConfig, latent_size: usize) -> Result<Box<dyn Head>>;

    /// Parameters under `backbone`, for latents of `latent_size` numbers.
    fn parameters(&self, backbone: &BackboneConfig, latent_size: usize) -> u64;

    /// FLOPs of one pass through the head's net.
    fn pass_flops(&self, backbone: &BackboneConfig, latent_size: usize) -> f64;

    /// Passes through the net for each position in training.
    fn training_passes(&self) -> usize;

    /// Passes through the net for one sample.
    fn sampling_passes(&self) -> usize {
        1
    }

    /// What the head holds in a training step on `rows` positions.
    fn held(&self, backbone: &BackboneConfig, latent_size: usize, rows: f64, on: Footing) -> Held;
}

/// Which generative head: `{NAME: settings}`.
pub type HeadConfig = Choice<dyn HeadSettings>;

/// The heads of this crate.
const SHIPPED: &[Entry<dyn HeadSettings>] = &[
    Entry::head::<EnergyConfig>("energy", "One pass, trained with the energy score."),
    Entry::head::<FlowConfig>("flow", "Several passes along a learned flow from noise to the latent vector."),
    Entry::head::<DiffusionConfig>("diffusion", "Many passes that take the noise out step by step."),
];

static ADDED: RwLock<Vec<Entry<dyn HeadSettings>>> = RwLock::new(Vec::new());

impl Registered for dyn HeadSettings {
    const SCHEMA: &'static str = "HeadConfig";

    fn name(&self) -> &'static str {
        HeadSettings::name(self)
    }

    fn shipped() -> &'static [Entry<Self>] {
        SHIPPED
    }

    fn added() -> &'static RwLock<Vec<Entry<Self>>> {
        &ADDED
    }
}

impl Entry<dyn HeadSettings> {
    /// The entry of a head whose settings are a `T`.
    pub const fn head<T: HeadSettings + DeserializeOwned + JsonSchema>(
        name: &'static str,
        about: &'static str,
    ) -> Self {
        Self {
            name,
            about,
            read: |settings| Ok(Box::new(erased_serde::deserialize::<T>(settings)?)),
            schema: |generator| generator.subschema_for::<T>(),
        }
    }
}

impl<T: HeadSettings> From<T> for HeadConfig {
    fn from(settings: T) -> Self {
        Self::boxed(Box::new(settings))
    }
}

impl Default for HeadConfig {
    fn default() -> Self {
        EnergyConfig::default().into()
    }
}

/// Bytes that a head keeps.
const KEPT: &str = "kept in the head";

/// Residual blocks of a head under a backbone of `layers`: a quarter of them, unless the settings say.
fn blocks(configured: Option<usize>, layers: usize) -> usize {
    configured.unwrap_or((layers / 4).max(1))
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
