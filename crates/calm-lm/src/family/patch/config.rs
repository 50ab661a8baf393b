//! Settings of a patch model.

use calm_config::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BackboneConfig, Direction};

/// A transformer over chunks with a small decoder inside the chunk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PatchConfig {
    /// K, tokens per chunk.
    pub chunk_size: usize,
    /// The transformer over chunks.
    #[serde(default)]
    pub backbone: BackboneConfig,
    /// The decoder inside a chunk.
    #[serde(default)]
    pub local: LocalConfig,
}

/// A transformer over the K tokens of one chunk, with epsilon, rotary base and initialisation of the backbone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LocalConfig {
    /// Its layers; 0: each token knows the one before it and the hidden state of its chunk.
    pub layers: usize,
    /// W, its width; null: the backbone's.
    pub hidden_size: Option<usize>,
    /// Width of its gated MLPs; null: the backbone's in proportion to W.
    pub intermediate_size: Option<usize>,
    /// Its heads; null: as many as heads of the backbone's size fill W.
    pub heads: Option<usize>,
}

impl Default for LocalConfig {
    fn default() -> Self {
        Self { layers: 2, hidden_size: None, intermediate_size: None, heads: None }
    }
}

impl PatchConfig {
    /// The local decoder as a transformer of its own.
    pub fn local_backbone(&self) -> BackboneConfig {
        let LocalConfig { layers, hidden_size, intermediate_size, heads } = self.local;
        let global = &self.backbone;
        let width = hidden_size.unwrap_or(global.hidden_size);
        let share = |of: usize| (of.saturating_mul(width) / global.hidden_size.max(1)).max(1);
        BackboneConfig {
            layers,
            hidden_size: width,
            intermediate_size: intermediate_size.unwrap_or_else(|| share(global.intermediate_size)),
            heads: heads.unwrap_or_else(|| share(global.heads)),
            kv_heads: None,
            attention: Direction::Causal,
            ..global.clone()
        }
    }

    /// Adds what is impossible about the local decoder, by its keys.
    pub(super) fn validate_local(&self, problems: &mut Problems) {
        // Without layers the rest must still be a shape.
        let layers = self.local.layers.max(1);
        BackboneConfig { layers, ..self.local_backbone() }.validate(problems);
    }
}
