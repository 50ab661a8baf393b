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
        if !self.hidden_size.is_multiple_of(self.heads) || !self.head_size().is_multiple_of(2) {
            problem(
                "heads",
                format!(
                    "hidden_size {} must be a multiple of heads {} with an even head size (rotary pairs)",
                    self.hidden_size, self.heads
                ),
            );
        }
        if !self.heads.is_multiple_of(self.kv_heads()) {
            problem(
                "kv_heads",
                format!("heads {} must be a multiple of kv_heads {}", self.heads, self.kv_heads()),
            );
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
    /// Several passes along a learned flow from noise to the latent vector.
    Flow(FlowConfig),
    /// Many passes that take the noise out step by step.
    Diffusion(DiffusionConfig),
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

/// How a flow is followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Solver {
    /// One pass a step.
    Euler,
    /// Two passes a step, second order.
    #[default]
    Midpoint,
}

/// Which time the flow's net is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowTime {
    /// 1000·t, the time itself.
    #[default]
    Continuous,
    /// ⌊1000·t⌋, as the reference implementation: the field becomes a staircase in time. Needed for
    /// checkpoints trained so.
    Floor,
}

/// The flow-matching head: straight path from normal noise to the latent vector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FlowConfig {
    /// Residual blocks; null: a quarter of the backbone's layers, at least 1.
    pub blocks: Option<usize>,
    /// Draws of target, noise and time per position in the loss.
    pub repeats: usize,
    /// How samples are computed.
    pub solver: Solver,
    /// Steps of the solver; null: 10 of midpoint or 20 of Euler, 20 passes either way.
    pub steps: Option<usize>,
    /// Which time the net is told.
    pub time: FlowTime,
}

impl Default for FlowConfig {
    fn default() -> Self {
        Self { blocks: None, repeats: 1, solver: Solver::default(), steps: None, time: FlowTime::default() }
    }
}

impl FlowConfig {
    /// The behaviour of the reference implementation, for its checkpoints.
    pub fn reference() -> Self {
        Self { time: FlowTime::Floor, ..Self::default() }
    }

    /// Residual blocks for a backbone of `layers`.
    pub fn blocks(&self, layers: usize) -> usize {
        self.blocks.unwrap_or((layers / 4).max(1))
    }

    /// Steps of the solver.
    pub fn steps(&self) -> usize {
        self.steps.unwrap_or(match self.solver {
            Solver::Euler => 20,
            Solver::Midpoint => 10,
        })
    }

    /// Passes through the net for one sample.
    pub fn calls(&self) -> usize {
        match self.solver {
            Solver::Euler => self.steps(),
            Solver::Midpoint => 2 * self.steps(),
        }
    }
}

/// What trains the variances of the diffusion head. All forms agree at steps t > 0; they differ in the
/// last step, from a slightly noisy vector to the vector itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VariationalTerm {
    /// The Gaussian density of the vector: latents are continuous and unbounded.
    #[default]
    Gaussian,
    /// The mass of a bin of ±1/255, with open tails beyond ±0.999: the likelihood of 8-bit images, which
    /// the reference implementation keeps. Needed to continue its training runs; sampling is the same.
    Discretised,
    /// No such term: variances are not trained and stay halfway between their bounds.
    None,
}

/// The diffusion head: cosine schedule, learned variances.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DiffusionConfig {
    /// Residual blocks; null: a quarter of the backbone's layers, at least 1.
    pub blocks: Option<usize>,
    /// Draws of target, noise and step per position in the loss.
    pub repeats: usize,
    /// T, steps of the process in training.
    pub steps: usize,
    /// Steps, and passes through the net, for one sample.
    pub sampling_steps: usize,
    /// What trains the variances.
    pub variational_term: VariationalTerm,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        Self {
            blocks: None,
            repeats: 1,
            steps: 1000,
            sampling_steps: 100,
            variational_term: VariationalTerm::default(),
        }
    }
}

impl DiffusionConfig {
    /// The behaviour of the reference implementation, for its checkpoints.
    pub fn reference() -> Self {
        Self { variational_term: VariationalTerm::Discretised, ..Self::default() }
    }

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
                    problem(
                        "energy.noise_size",
                        "must be at least 1: without noise all samples coincide".into(),
                    );
                }
                if c.samples < 2 {
                    problem(
                        "energy.samples",
                        format!("is {}: the energy score compares pairs, at least 2", c.samples),
                    );
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
            Self::Flow(c) => {
                for (key, value) in [
                    ("flow.blocks", c.blocks.unwrap_or(1)),
                    ("flow.repeats", c.repeats),
                    ("flow.steps", c.steps()),
                ] {
                    if value == 0 {
                        problem(key, "must be at least 1".into());
                    }
                }
            }
            Self::Diffusion(c) => {
                for (key, value) in
                    [("diffusion.blocks", c.blocks.unwrap_or(1)), ("diffusion.repeats", c.repeats)]
                {
                    if value == 0 {
                        problem(key, "must be at least 1".into());
                    }
                }
                if c.steps < 2 {
                    problem("diffusion.steps", format!("is {}: a process has at least 2 steps", c.steps));
                } else if c.sampling_steps < 2 || c.sampling_steps > c.steps {
                    problem(
                        "diffusion.sampling_steps",
                        format!("is {}: must be between 2 and steps = {}", c.sampling_steps, c.steps),
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
        for head in [
            HeadConfig::default(),
            HeadConfig::Flow(FlowConfig::reference()),
            HeadConfig::Diffusion(DiffusionConfig::reference()),
        ] {
            head.validate(|k, m| panic!("{k} {m}"));
        }
    }

    #[test]
    fn impossible_counts_of_steps_and_draws_are_refused() {
        let mut found = Vec::new();
        let mut add = |k: &str, _| found.push(k.to_owned());
        HeadConfig::Flow(FlowConfig { blocks: Some(0), repeats: 0, steps: Some(0), ..Default::default() })
            .validate(&mut add);
        HeadConfig::Diffusion(DiffusionConfig {
            blocks: Some(0),
            repeats: 0,
            steps: 1,
            ..Default::default()
        })
        .validate(&mut add);
        for sampling_steps in [1, 1001] {
            HeadConfig::Diffusion(DiffusionConfig { sampling_steps, ..Default::default() })
                .validate(&mut add);
        }
        let expected = ["flow.blocks", "flow.repeats", "flow.steps", "diffusion.blocks", "diffusion.repeats"];
        assert_eq!(found[..5], expected);
        assert_eq!(found[5..], ["diffusion.steps", "diffusion.sampling_steps", "diffusion.sampling_steps"]);
    }

    #[test]
    fn both_solvers_call_the_net_twenty_times_by_default() {
        assert_eq!(FlowConfig::default().calls(), 20);
        assert_eq!(FlowConfig { solver: Solver::Euler, ..Default::default() }.calls(), 20);
        assert_eq!(FlowConfig { steps: Some(3), ..Default::default() }.calls(), 6);
    }
}
