//! Continuous autoregressive language models (arXiv 2510.27688): a Transformer over chunks predicts the next latent
//! vector, which a frozen autoencoder turns into K tokens (or a copy of its decoder that is trained along: `decoder.rs`).
//!
//! ```text
//! ids [B,S,K] -> own embeddings, K·D concatenated -> input MLP -> backbone, one position a chunk
//!   -> hidden [R,D] -> head -> latent [R,N,L] -> frozen autoencoder -> tokens [R,N,K]
//! ```

mod coding;
mod config;
mod costs;
mod decode;
mod decoder;
mod language_model;
mod likelihood;
mod model;
mod published;
mod sampler;

use calm_autoencoder::{Autoencoder, AutoencoderConfig};
use calm_config::Problems;
use calm_nn::costs::{Flops, Parameters};
use calm_nn::{Footing, Held, ParamStore};
use candle_core::{Result, bail};

use super::input::validate_chunk_size;
use super::{Decode, DrawKind, FamilyConfig, LanguageModel, ModelConfig, TextFormat};
use crate::HeadConfig;
use crate::published::ConfigJson;
use crate::registry::Registered;
pub use config::CalmConfig;
pub use decoder::DecoderKind;
pub use likelihood::LikelihoodConfig;
pub use model::Calm;
pub(crate) use published::PUBLISHED;

/// Its key in configurations.
pub const NAME: &str = "calm";

/// Most numbers of a latent vector.
const LARGEST_LATENT: usize = 1024;

impl FamilyConfig for CalmConfig {
    fn name(&self) -> &'static str {
        NAME
    }

    fn title(&self) -> &'static str {
        "a CALM"
    }

    fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    fn draws(&self) -> DrawKind {
        DrawKind::Sampled
    }

    fn autoencoder(&self) -> Option<&AutoencoderConfig> {
        Some(&self.autoencoder)
    }

    fn head(&self) -> Option<&HeadConfig> {
        Some(&self.head)
    }

    fn decode(&self) -> Option<Decode> {
        Some(self.decode)
    }

    fn decoded_by(&self, decode: Decode) -> Option<ModelConfig> {
        Some(Self { decode, ..self.clone() }.into())
    }

    fn head_sizes(&self) -> Vec<usize> {
        vec![self.backbone.head_size()]
    }

    fn reads_input(&self) -> bool {
        !self.backbone.attention.is_causal()
    }

    fn validate(&self, problems: &mut Problems) {
        let k = self.chunk_size;
        validate_chunk_size(k, problems);
        if self.autoencoder.latent_size.is_none() && self.latent_size() > LARGEST_LATENT {
            problems
                .add(
                    "chunk_size",
                    format!("{k} gives latents of 32 numbers a token, more than {LARGEST_LATENT}"),
                )
                .remedy(format!("set model.{NAME}.autoencoder.latent_size to at most {LARGEST_LATENT}"));
        }
        problems.within("autoencoder", |p| self.autoencoder.validate(p));
        problems.within("backbone", |p| self.backbone.validate(p));
        if let Some(likelihood) = &self.likelihood {
            problems.within("likelihood", |p| likelihood.validate(self.head.samples_lead_back(), p));
        }
        problems.within("head", |p| p.within(Registered::name(&*self.head), |p| self.head.validate(p)));
    }

    fn build(
        &self,
        store: &ParamStore,
        text: &TextFormat,
        autoencoder: Option<Autoencoder>,
    ) -> Result<Box<dyn LanguageModel>> {
        let Some(autoencoder) = autoencoder else { bail!("a {NAME} is built on a trained autoencoder") };
        Ok(Box::new(Calm::new(store, self, autoencoder, text)?))
    }

    fn parameters(&self, vocab: usize) -> Parameters {
        costs::parameters(self, vocab)
    }

    fn training_flops(&self, vocab: usize, context: usize) -> Flops {
        costs::training_flops(self, vocab, context)
    }

    fn inference_flops(&self, vocab: usize, context: usize, draws: usize) -> Flops {
        costs::inference_flops(self, vocab, context, draws)
    }

    fn held(&self, vocab: usize, positions: f64, on: Footing, recompute: bool) -> Held {
        costs::held(self, vocab, positions, on, recompute)
    }

    fn published(&self) -> Option<ConfigJson> {
        self.backbone.attention.is_causal().then(|| published::write(self)).flatten()
    }

    fn on_autoencoder(&self, chunk_size: usize, autoencoder: &AutoencoderConfig) -> Option<ModelConfig> {
        Some(Self { chunk_size, autoencoder: autoencoder.clone(), ..self.clone() }.into())
    }
}
