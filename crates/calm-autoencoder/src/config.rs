//! Settings of the autoencoder.

use calm_config::Problems;
use calm_nn::WeightInit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shape and regularisation of the autoencoder. Defaults are the paper's regularisation at a size that a
/// CPU trains in minutes. Its blocks have no attention, and so no direction of it: a chunk is read whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AutoencoderConfig {
    /// L, numbers in a latent vector; null: 32 per token of a chunk, as in the paper.
    pub latent_size: Option<usize>,
    /// D, width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLPs.
    pub intermediate_size: usize,
    /// Blocks of the encoder: half on single tokens, half after the squeeze (even).
    pub encoder_layers: usize,
    /// Blocks of the decoder: half before the expansion, half on single tokens (even).
    pub decoder_layers: usize,
    /// DropToken: share of the encoder's input tokens that are replaced in training.
    pub token_dropout: f64,
    /// The id that replaces a dropped token; null: BOS, which never occurs inside a chunk of text.
    pub dropped_token_id: Option<u32>,
    /// Share of the training tokens that a uniformly drawn id replaces, in input and target alike: ids that
    /// the text hardly ever shows (single bytes of rare characters) are rebuilt as well. The paper has none.
    pub uniform_tokens: f64,
    /// Dropout on the sampled latent vector in training.
    pub latent_dropout: f64,
    /// Weight of the KL term.
    pub kl_weight: f64,
    /// KL clipping: the least KL that a dimension is charged for, in nats.
    pub kl_clip: f64,
    /// Epsilon of the RMS norms.
    pub norm_eps: f64,
    /// How weights start.
    #[serde(alias = "init_std")]
    pub init: WeightInit,
}

impl Default for AutoencoderConfig {
    fn default() -> Self {
        Self {
            latent_size: None,
            hidden_size: 256,
            intermediate_size: 640,
            encoder_layers: 2,
            decoder_layers: 2,
            token_dropout: 0.15,
            dropped_token_id: None,
            uniform_tokens: 0.0,
            latent_dropout: 0.15,
            kl_weight: 1e-3,
            kl_clip: 0.5,
            norm_eps: 1e-6,
            init: WeightInit::REFERENCE,
        }
    }
}

impl AutoencoderConfig {
    /// L for chunks of `chunk_size` tokens.
    pub fn latent_size(&self, chunk_size: usize) -> usize {
        self.latent_size.unwrap_or(32 * chunk_size)
    }

    /// Adds what is impossible, by key.
    pub fn validate(&self, problems: &mut Problems) {
        let positive = [
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("latent_size", self.latent_size.unwrap_or(1)),
        ];
        for (key, value) in positive {
            if value == 0 {
                problems.add(key, "must be at least 1");
            }
        }
        if self.latent_size.unwrap_or(1) > 1024 {
            problems.add("latent_size", "must be at most 1024");
        }
        for (key, value) in [("encoder_layers", self.encoder_layers), ("decoder_layers", self.decoder_layers)]
        {
            if value % 2 != 0 || value == 0 {
                problems.add(
                    key,
                    format!(
                        "is {value}: must be even and at least 2 (half the blocks work on tokens, half on the chunk)"
                    ),
                );
            }
        }
        for (key, value) in [
            ("token_dropout", self.token_dropout),
            ("uniform_tokens", self.uniform_tokens),
            ("latent_dropout", self.latent_dropout),
        ] {
            if !(0.0..1.0).contains(&value) {
                problems.add(key, format!("is {value}: must be at least 0 and below 1"));
            }
        }
        for (key, value) in [("kl_weight", self.kl_weight), ("kl_clip", self.kl_clip)] {
            if !(value >= 0.0 && value.is_finite()) {
                problems.add(key, format!("is {value}: must be 0 or more"));
            }
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            problems.add("norm_eps", format!("is {}: must be above 0", self.norm_eps));
        }
        if let Some(problem) = self.init.problem() {
            problems.add("init", problem);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &AutoencoderConfig) -> Vec<String> {
        let mut problems = Problems::new();
        config.validate(&mut problems);
        problems.paths()
    }

    #[test]
    fn an_odd_number_of_layers_is_refused() {
        let config = AutoencoderConfig { encoder_layers: 3, ..Default::default() };
        assert_eq!(problems(&config), ["encoder_layers"]);
    }

    #[test]
    fn the_defaults_are_valid_and_have_32_numbers_per_token() {
        assert!(problems(&AutoencoderConfig::default()).is_empty());
        assert_eq!(AutoencoderConfig::default().latent_size(4), 128);
    }
}
