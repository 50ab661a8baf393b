//! Generative heads: from a hidden state to samples of the next latent vector.
//!
//! **Adding a head** is one file here: its settings, which implement [`HeadSettings`] (validation, costs, memory,
//! the head they build), and the head itself, which implements [`Head`] (a loss and a sampler); and its line in
//! `registry/shipped.rs`. A head whose checkpoints come as folders of the reference implementation says so too
//! ([`PublishedHead`], [`HeadSettings::published`]). `crates/calm-lm/tests/toy_head.rs` shows a whole one.

mod adaln;
pub(crate) mod diffusion;
pub(crate) mod energy;
pub(crate) mod flow;
mod schedule;
#[cfg(test)]
mod testing;

use calm_autoencoder::Posterior;
use calm_config::Problems;
use calm_nn::{Builder, Context, Footing, Held, Noise};
use candle_core::{DType, Result, Tensor};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::BackboneConfig;
use crate::published::{ConfigJson, Keys, Names, object};
use crate::registry::{Choice, Entry, Plain};
pub use adaln::AdaLnNet;
pub use diffusion::{DiffusionConfig, DiffusionHead, DiffusionTerms, VariationalTerm};
pub use energy::{EnergyConfig, EnergyHead};
pub use flow::{FlowConfig, FlowHead, FlowTerms, FlowTime, Solver};
pub use schedule::NoiseSchedule;

/// A generative head is a loss and a sampler. All noise comes in through [`Noise`]: keyed streams in
/// training, given tensors in tests.
pub trait Head: Send + Sync {
    /// Loss per row: `hidden [R, D]`, posterior of the next chunk `[R, L]` -> `[R]`.
    ///
    /// # Errors
    /// Shapes that do not fit; as [`Noise::uniform`].
    fn loss(&self, hidden: &Tensor, posterior: &Posterior, noise: &Noise<'_>) -> Result<Tensor>;

    /// N samples per row: `hidden [R, D]` -> `[R, N, L]`.
    ///
    /// # Errors
    /// Shapes that do not fit; as [`Noise::uniform`].
    fn sample(&self, hidden: &Tensor, samples: usize, noise: &Noise<'_>) -> Result<Tensor>;

    /// Whether [`Self::sample`] takes no function of the C library on its way, so that in a fixed context
    /// ([`calm_kernels::Context::fix`]) samples are the same to the bit on every machine.
    fn is_fixed(&self) -> bool {
        false
    }
}

/// Settings of a head: what it is made of and what it costs. D is the backbone's width, L the latent size.
pub trait HeadSettings: Plain {
    /// Its key under `head` in a configuration.
    fn name(&self) -> &'static str;

    /// Adds what is impossible, by key of these settings.
    fn validate(&self, problems: &mut Problems);

    /// Whether gradients flow through [`Head::sample`] in one pass, so that a loss on its samples trains the head.
    fn samples_lead_back(&self) -> bool {
        false
    }

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

    /// What they write into the `config.json` of a published checkpoint, under a backbone of `layers`; None without a
    /// published form.
    fn published(&self, _layers: usize) -> Option<ConfigJson> {
        None
    }
}

/// Which generative head: `{NAME: settings}`.
pub type HeadConfig = Choice<dyn HeadSettings>;

/// How a head is read from a published checkpoint: there the head names the whole model.
#[derive(Clone, Copy, Debug)]
pub struct PublishedHead {
    /// What the model is called.
    pub names: Names,
    /// Its settings from the keys of such a model.
    pub read: fn(&mut Keys<'_>) -> HeadConfig,
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
            published: None,
            read: |settings| Ok(Box::new(erased_serde::deserialize::<T>(settings)?)),
            schema: |generator| generator.subschema_for::<T>(),
        }
    }

    /// The same entry, which published checkpoints are read by.
    pub const fn published(self, form: PublishedHead) -> Self {
        Self { published: Some(form), ..self }
    }
}

impl<T: HeadSettings> From<T> for HeadConfig {
    fn from(settings: T) -> Self {
        Self::boxed(Box::new(settings))
    }
}

/// Bytes that a head keeps.
const KEPT: &str = "kept in the head";

/// Residual blocks of a head under a backbone of `layers`: a quarter of them, unless the settings say.
fn blocks(configured: Option<usize>, layers: usize) -> usize {
    configured.unwrap_or((layers / 4).max(1))
}

/// Residual blocks of a published head.
fn published_blocks(keys: &mut Keys<'_>) -> Option<usize> {
    Some(keys.size("num_mlp_layers"))
}

/// N of a published head: samples in the energy loss; the flow and diffusion losses repeat every target so often.
fn published_samples(keys: &mut Keys<'_>) -> usize {
    keys.size_or("num_samples", 8)
}

/// Keys of a head and its notes.
fn config_json(names: Names, keys: Value, notes: Vec<String>) -> Option<ConfigJson> {
    Some(ConfigJson { names, keys: object(keys), constants: Map::new(), notes })
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
