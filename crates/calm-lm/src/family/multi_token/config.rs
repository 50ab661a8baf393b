//! Settings of a multi-token model.

use calm_config::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::BackboneConfig;

/// A transformer over chunks with a head for each of the K next tokens.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MultiTokenConfig {
    /// K, tokens per chunk.
    pub chunk_size: usize,
    /// The transformer over chunks.
    #[serde(default)]
    pub backbone: BackboneConfig,
    /// The heads.
    #[serde(default)]
    pub heads: HeadsConfig,
}

/// K gated MLPs beside each other, on one vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct HeadsConfig {
    /// Width of each head's gated MLP; null: the backbone's.
    pub intermediate_size: Option<usize>,
}

impl MultiTokenConfig {
    /// Width of a head's gated MLP.
    pub fn head_intermediate(&self) -> usize {
        self.heads.intermediate_size.unwrap_or(self.backbone.intermediate_size)
    }

    /// Adds what is impossible about the heads, by their keys.
    pub(super) fn validate_heads(&self, problems: &mut Problems) {
        if self.heads.intermediate_size == Some(0) {
            problems.add("intermediate_size", "must be at least 1");
        }
    }
}
