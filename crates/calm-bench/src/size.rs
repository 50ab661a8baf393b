//! The sizes that are measured: a model, its batch, and the workloads, every number written out.

use std::collections::BTreeMap;

use calm_autoencoder::AutoencoderConfig;
use calm_lm::{BackboneConfig, CalmConfig, EnergyConfig};
use serde::Deserialize;

/// A size of `eval/peers/sizes.json`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "the names are those of the model's settings")]
pub struct Size {
    pub layers: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
    /// K of `ae`, `lm` and `generate`.
    pub chunk_size: usize,
    pub latent: usize,
    pub head_blocks: usize,
    pub noise: usize,
    /// N.
    pub samples: usize,
    /// M.
    pub targets: usize,
    /// Exponent of the energy score.
    pub alpha: f64,
    pub batch_rows: usize,
    /// Predicted positions of a row.
    pub context_chunks: usize,
    pub ae_hidden: usize,
    pub ae_intermediate: usize,
    pub ae_encoder_layers: usize,
    pub ae_decoder_layers: usize,
    pub ae_rows: usize,
    pub ae_context: usize,
    /// Draws a chunk of the batch sampler.
    pub candidates: usize,
    pub generate_rows: usize,
    pub prompt_chunks: usize,
    pub new_chunks: usize,
    pub brier_rows: usize,
    /// Scored tokens of a row.
    pub brier_tokens: usize,
    pub brier_latent_per_token: usize,
}

impl Size {
    /// All sizes by name.
    ///
    /// # Panics
    /// Never: a test reads the same text.
    pub fn all() -> BTreeMap<String, Size> {
        serde_json::from_str(include_str!("sizes.json")).unwrap_or_default()
    }

    /// The settings of the backbone.
    pub fn backbone(&self) -> BackboneConfig {
        BackboneConfig {
            layers: self.layers,
            hidden_size: self.hidden,
            intermediate_size: self.intermediate,
            heads: self.heads,
            kv_heads: Some(self.kv_heads),
            ..Default::default()
        }
    }

    /// The settings of the energy head.
    pub fn head(&self) -> EnergyConfig {
        EnergyConfig {
            blocks: Some(self.head_blocks),
            noise_size: self.noise,
            samples: self.samples,
            targets: self.targets,
            alpha: self.alpha,
        }
    }

    /// The settings of the autoencoder.
    pub fn autoencoder(&self, latent: usize) -> AutoencoderConfig {
        AutoencoderConfig {
            latent_size: Some(latent),
            hidden_size: self.ae_hidden,
            intermediate_size: self.ae_intermediate,
            encoder_layers: self.ae_encoder_layers,
            decoder_layers: self.ae_decoder_layers,
            ..Default::default()
        }
    }

    /// The settings of a CALM of chunks of `chunk_size` tokens.
    pub fn calm(&self, chunk_size: usize, latent: usize) -> CalmConfig {
        CalmConfig {
            chunk_size,
            autoencoder: self.autoencoder(latent),
            backbone: self.backbone(),
            head: self.head().into(),
            decode: Default::default(),
            likelihood: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_config::Problems;
    use calm_lm::FamilyConfig;

    #[test]
    fn every_size_is_read_and_makes_valid_models() {
        let sizes = Size::all();
        assert!(["tiny", "small", "medium"].iter().all(|name| sizes.contains_key(*name)));
        for (name, size) in sizes {
            let mut problems = Problems::new();
            size.calm(size.chunk_size, size.latent).validate(&mut problems);
            assert!(problems.is_empty(), "{name}: {:?}", problems.paths());
        }
    }
}
