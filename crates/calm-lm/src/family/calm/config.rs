//! Settings of a CALM.

use calm_autoencoder::AutoencoderConfig;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{DecoderKind, LikelihoodConfig};
use crate::family::Decode;
use crate::{BackboneConfig, HeadConfig};

/// A continuous autoregressive language model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CalmConfig {
    /// K, tokens per chunk: the semantic bandwidth of one step.
    pub chunk_size: usize,
    /// Stage 1.
    #[serde(default)]
    pub autoencoder: AutoencoderConfig,
    /// Stage 2: the transformer.
    #[serde(default)]
    pub backbone: BackboneConfig,
    /// Stage 2: the generative head.
    #[serde(default)]
    pub head: HeadConfig,
    /// The likelihood of the next chunk through the decoder as a loss; null: the head's own alone.
    #[serde(default)]
    pub likelihood: Option<LikelihoodConfig>,
    /// How a latent vector becomes tokens when the model is scored and generates.
    #[serde(default)]
    pub decode: Decode,
}

impl CalmConfig {
    /// L.
    pub fn latent_size(&self) -> usize {
        self.autoencoder.latent_size(self.chunk_size)
    }

    /// Which decoder turns latent vectors into tokens.
    pub fn decoder(&self) -> DecoderKind {
        self.likelihood.map_or(DecoderKind::Frozen, |likelihood| likelihood.decoder)
    }
}
