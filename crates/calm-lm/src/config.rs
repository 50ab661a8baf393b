//! Settings of backbone and heads.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
    /// Base of the rotary angles.
    pub rope_theta: f64,
    /// Epsilon of the RMS norms.
    pub norm_eps: f64,
    /// Standard deviation of initial weights.
    pub init_std: f64,
}

impl Default for BackboneConfig {
    fn default() -> Self {
        Self {
            layers: 4,
            hidden_size: 256,
            intermediate_size: 704,
            heads: 4,
            kv_heads: None,
            rope_theta: 1e4,
            norm_eps: 1e-6,
            init_std: 0.02,
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

    /// Calls `problem(key, message)` for every impossible value.
    pub fn validate(&self, mut problem: impl FnMut(&str, String)) {
        for (key, value) in [
            ("layers", self.layers),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads()),
        ] {
            if value == 0 {
                problem(key, "must be at least 1".into());
                return;
            }
        }
        if self.hidden_size % self.heads != 0 || self.head_size() % 2 != 0 {
            problem(
                "heads",
                format!(
                    "hidden_size {} must be a multiple of heads {} with an even head size (rotary pairs)",
                    self.hidden_size, self.heads
                ),
            );
        }
        if self.heads % self.kv_heads() != 0 {
            problem("kv_heads", format!("heads {} must be a multiple of kv_heads {}", self.heads, self.kv_heads()));
        }
        for (key, value) in
            [("rope_theta", self.rope_theta), ("norm_eps", self.norm_eps), ("init_std", self.init_std)]
        {
            if !(value > 0.0 && value.is_finite()) {
                problem(key, format!("is {value}: must be above 0"));
            }
        }
    }
}

/// Which generative head.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum HeadConfig {
    /// One pass, trained with the energy score.
    Energy(EnergyConfig),
}

impl Default for HeadConfig {
    fn default() -> Self {
        Self::Energy(EnergyConfig::default())
    }
}

/// The energy head (paper, section 3) and its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EnergyConfig {
    /// Residual blocks; null: a quarter of the backbone's layers, at least 1.
    pub blocks: Option<usize>,
    /// Numbers of uniform noise per sample.
    pub noise_size: usize,
    /// N, model samples per position in the loss.
    pub samples: usize,
    /// M, draws of the target posterior per position in the loss.
    pub targets: usize,
    /// Exponent of the distances; the score is strictly proper for 0 < α < 2.
    pub alpha: f64,
}

impl Default for EnergyConfig {
    fn default() -> Self {
        Self { blocks: None, noise_size: 64, samples: 8, targets: 100, alpha: 1.0 }
    }
}

impl EnergyConfig {
    /// Residual blocks for a backbone of `layers`.
    pub fn blocks(&self, layers: usize) -> usize {
        self.blocks.unwrap_or((layers / 4).max(1))
    }
}

impl HeadConfig {
    /// Calls `problem(key, message)` for every impossible value.
    pub fn validate(&self, mut problem: impl FnMut(&str, String)) {
        match self {
            Self::Energy(c) => {
                if c.blocks == Some(0) {
                    problem("energy.blocks", "must be at least 1".into());
                }
                if c.noise_size == 0 {
                    problem("energy.noise_size", "must be at least 1: without noise all samples coincide".into());
                }
                if c.samples < 2 {
                    problem("energy.samples", format!("is {}: the energy score compares pairs, at least 2", c.samples));
                }
                if c.targets == 0 {
                    problem("energy.targets", "must be at least 1".into());
                }
                if !(c.alpha > 0.0 && c.alpha < 2.0) {
                    problem(
                        "energy.alpha",
                        format!("is {}: the energy score is strictly proper for 0 < alpha < 2 only", c.alpha),
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_shapes_and_exponents_are_refused() {
        let mut found = Vec::new();
        BackboneConfig { heads: 3, ..Default::default() }.validate(|k, _| found.push(k.to_owned()));
        BackboneConfig { kv_heads: Some(3), ..Default::default() }.validate(|k, _| found.push(k.to_owned()));
        HeadConfig::Energy(EnergyConfig { alpha: 2.0, samples: 1, ..Default::default() })
            .validate(|k, _| found.push(k.to_owned()));
        assert_eq!(found, ["heads", "kv_heads", "energy.samples", "energy.alpha"]);
        BackboneConfig::default().validate(|k, m| panic!("{k} {m}"));
        HeadConfig::default().validate(|k, m| panic!("{k} {m}"));
    }
}
