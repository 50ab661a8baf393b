//! Settings of the backbone.

use calm_config::Problems;
use calm_nn::WeightInit;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::direction::Direction;

/// A Llama decoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BackboneConfig {
    /// Decoder layers.
    pub layers: usize,
    /// D, width of the residual stream.
    pub hidden_size: usize,
    /// Width of the gated MLPs.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads, each serving heads/kv_heads query heads; null: as many as query heads.
    pub kv_heads: Option<usize>,
    /// In which direction positions look at the input of a document.
    #[serde(skip_serializing_if = "Direction::is_causal")]
    pub attention: Direction,
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Epsilon of the RMS norms.
    pub norm_eps: f64,
    /// How weights start, those of the parts around the backbone too.
    #[serde(alias = "init_std")]
    pub init: WeightInit,
}

impl Default for BackboneConfig {
    fn default() -> Self {
        Self {
            layers: 4,
            hidden_size: 256,
            intermediate_size: 704,
            heads: 4,
            kv_heads: None,
            attention: Direction::Causal,
            rope_theta: 1e4,
            norm_eps: 1e-6,
            init: WeightInit::REFERENCE,
        }
    }
}

impl BackboneConfig {
    /// Key/value heads.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }

    /// Width of one head.
    pub fn head_size(&self) -> usize {
        self.hidden_size / self.heads.max(1)
    }

    /// Adds the problem that it does not look forward alone, where `why` nothing else is possible.
    pub(crate) fn must_be_causal(&self, why: &str, problems: &mut Problems) {
        if !self.attention.is_causal() {
            problems.add("attention", format!("must be causal: {why}"));
        }
    }

    /// Adds what is impossible, by key.
    pub fn validate(&self, problems: &mut Problems) {
        for (key, value) in [
            ("layers", self.layers),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads()),
        ] {
            if value == 0 {
                problems.add(key, "must be at least 1");
                return;
            }
        }
        if !self.hidden_size.is_multiple_of(self.heads) || !self.head_size().is_multiple_of(2) {
            problems.add(
                "heads",
                format!(
                    "hidden_size {} must be a multiple of heads {} with an even head size (rotary pairs)",
                    self.hidden_size, self.heads
                ),
            );
        }
        if !self.heads.is_multiple_of(self.kv_heads()) {
            problems.add(
                "kv_heads",
                format!("heads {} must be a multiple of kv_heads {}", self.heads, self.kv_heads()),
            );
        }
        self.attention.validate(self.heads, self.kv_heads(), problems);
        if let Some(problem) = self.init.problem() {
            problems.add("init", problem);
        }
        for (key, value) in [("rope_theta", self.rope_theta), ("norm_eps", self.norm_eps)] {
            if !(value > 0.0 && value.is_finite()) {
                problems.add(key, format!("is {value}: must be above 0"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_shapes_are_refused() {
        let found = |config: BackboneConfig| {
            let mut problems = Problems::new();
            config.validate(&mut problems);
            problems.paths()
        };
        assert_eq!(found(BackboneConfig { heads: 3, ..Default::default() }), ["heads"]);
        assert_eq!(found(BackboneConfig { kv_heads: Some(3), ..Default::default() }), ["kv_heads"]);
        assert!(found(BackboneConfig::default()).is_empty());
    }
}
