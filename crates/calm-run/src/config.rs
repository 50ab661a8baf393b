//! The configuration of a run: what `calm train` reads and what a run folder records.

use calm_config::{Problems, Validate};
use calm_data::{DataConfig, Tokenizer, TokenizerConfig, Vocabulary};
use calm_eval::EvalConfig;
pub use calm_lm::ModelConfig;
use calm_nn::{AdamWConfig, Precision};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::divergence::{Action, DivergenceConfig};
use crate::stage::Stage;

/// The only schema version so far.
pub const SCHEMA_VERSION: u64 = 1;

/// A complete run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunConfig {
    /// Version of this schema: 1.
    pub version: u64,
    /// What the run is for; shown in plans and reports.
    #[serde(default)]
    pub description: String,
    /// Seed of everything random: initial weights, order of batches, noise, draws.
    #[serde(default = "one")]
    pub seed: u64,
    /// Number format of the matrix products.
    #[serde(default)]
    pub precision: Precision,
    /// The text.
    #[serde(default)]
    pub data: DataConfig,
    /// How text becomes tokens.
    #[serde(default)]
    pub tokenizer: TokenizerConfig,
    /// Vocabulary size and special ids of a model that was trained elsewhere; null: the tokenizer's own.
    #[serde(default)]
    pub vocabulary: Option<Vocabulary>,
    /// Whether a document begins with an input-only chunk of K BOS ids, so that its first chunk is predicted
    /// and an empty prompt works. The reference implementation's models have none.
    #[serde(default = "yes")]
    pub bos_chunk: bool,
    /// What is trained.
    pub model: ModelConfig,
    /// How long and how.
    pub train: TrainConfig,
    /// Scores during and after training.
    #[serde(default)]
    pub eval: EvalConfig,
}

fn one() -> u64 {
    1
}

fn yes() -> bool {
    true
}

/// The stages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Stage 1 of a family that works on an autoencoder's latents; absent elsewhere.
    #[serde(default)]
    pub autoencoder: Option<StageConfig>,
    /// The language model.
    pub lm: StageConfig,
}

/// One training stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StageConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// Rows of a global batch.
    pub batch_rows: usize,
    /// Chunk positions in a row.
    pub context: usize,
    /// Micro-batches a global batch is cut into (gradient accumulation); must divide the rows.
    #[serde(default = "one_piece")]
    pub accumulation: usize,
    /// In which order the gradients of a batch are added.
    #[serde(default)]
    pub reduction: Reduction,
    /// With `reduction: fixed`, pieces that a global batch is cut into: a power of two that divides the rows. As many processes can
    /// share them.
    #[serde(default = "eight")]
    pub pieces: usize,
    /// What several processes share out instead of holding it each.
    #[serde(default)]
    pub shard: Shard,
    /// Whether several processes sum their gradients while the backward pass still runs (`reduction: engine`, on CPUs
    /// without `shard`); the bits are the same.
    #[serde(default = "yes")]
    pub overlap: bool,
    /// Layers of the backbone keep only their input and compute the rest again in the backward pass: much less
    /// memory for a third more time in them. The autoencoder has no such layers.
    #[serde(default)]
    pub recompute: bool,
    /// Highest learning rate.
    pub learning_rate: f64,
    /// Steps of linear warm-up.
    #[serde(default)]
    pub warmup_steps: u64,
    /// What follows the warm-up.
    #[serde(default)]
    pub schedule: Schedule,
    /// The optimiser.
    #[serde(default)]
    pub adamw: AdamWConfig,
    /// Gradients are scaled down to this norm.
    #[serde(default = "unit")]
    pub clip_norm: f64,
    /// Steps between validations; 0: only at the end.
    #[serde(default)]
    pub eval_every: u64,
    /// Steps between checkpoints; 0: only at the end.
    #[serde(default)]
    pub checkpoint_every: u64,
    /// Steps between lines of the metrics.
    #[serde(default = "ten")]
    pub log_every: u64,
    /// What happens when it explodes.
    #[serde(default)]
    pub divergence: DivergenceConfig,
}

fn one_piece() -> usize {
    1
}

fn unit() -> f64 {
    1.0
}

fn ten() -> u64 {
    10
}

fn eight() -> usize {
    8
}

/// In which order the gradients of a batch are added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// As it is quickest: micro-batches one after the other, and over processes as their engine does. The same number of
    /// processes gives the same bits; another number the same to rounding.
    #[default]
    Engine,
    /// Pieces of the global batch, pairwise: the same bits for any number of processes, at the price of a backward pass for each
    /// piece.
    Fixed,
}

/// What several processes share out instead of holding it each. It changes no bit of the results under `reduction: fixed`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Shard {
    /// Nothing: each has all moments.
    #[default]
    None,
    /// The optimiser (ZeRO-1): each has the moments of its part of the parameters, updates these, and hands them to the others.
    Optimizer,
}

/// Learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Schedule {
    /// Stays at the highest rate.
    #[default]
    Constant,
    /// Half a cosine from the highest rate to `floor` times it.
    Cosine {
        /// Last rate as a share of the highest.
        floor: f64,
    },
    /// Constant, then linear down to `floor` times the highest rate over the last `share` of the steps.
    Decay {
        /// Share of the steps spent decaying.
        share: f64,
        /// Last rate as a share of the highest.
        floor: f64,
    },
}

impl TrainConfig {
    /// Settings of a stage; none of one that the model does not have.
    pub fn stage(&self, stage: Stage) -> Option<&StageConfig> {
        match stage {
            Stage::Autoencoder => self.autoencoder.as_ref(),
            Stage::Lm => Some(&self.lm),
        }
    }

    /// The same, to be changed.
    pub fn stage_mut(&mut self, stage: Stage) -> Option<&mut StageConfig> {
        match stage {
            Stage::Autoencoder => self.autoencoder.as_mut(),
            Stage::Lm => Some(&mut self.lm),
        }
    }
}

impl RunConfig {
    /// K, tokens a position of the model.
    pub fn chunk_size(&self) -> usize {
        self.model.chunk_size()
    }

    /// The tokenizer with this run's vocabulary.
    ///
    /// # Errors
    /// When the two do not fit.
    pub fn fit(&self, tokenizer: Tokenizer) -> calm_data::Result<Tokenizer> {
        match self.vocabulary {
            Some(vocabulary) => tokenizer.with_vocabulary(vocabulary),
            None => Ok(tokenizer),
        }
    }
}

impl Schedule {
    /// Share of the highest learning rate at `step` (0-based) of `steps`, after `warmup` steps.
    pub fn factor(self, step: u64, steps: u64, warmup: u64) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let done = (step - warmup) as f64 / (steps.saturating_sub(warmup)).max(1) as f64;
        match self {
            Self::Constant => 1.0,
            Self::Cosine { floor } => {
                floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())
            }
            Self::Decay { share, floor } => {
                let left = (1.0 - done) / share.max(f64::MIN_POSITIVE);
                if left >= 1.0 { 1.0 } else { floor + (1.0 - floor) * left }
            }
        }
    }
}

impl StageConfig {
    /// Adds what cannot be trained; key paths are relative to this block.
    fn validate(&self, problems: &mut Problems) {
        for (key, value) in [
            ("steps", self.steps),
            ("batch_rows", self.batch_rows as u64),
            ("accumulation", self.accumulation as u64),
            ("log_every", self.log_every),
        ] {
            if value == 0 {
                problems.add(key, "must be at least 1");
            }
        }
        if self.steps > u64::from(u32::MAX) {
            problems.add("steps", format!("is {}: at most {}", self.steps, u32::MAX));
        }
        if self.context < 2 {
            problems.add("context", "must be at least 2: one chunk to predict and one to predict it from");
        }
        if self.accumulation > 0 && !self.batch_rows.is_multiple_of(self.accumulation) {
            problems.add(
                "accumulation",
                format!("{} micro-batches do not divide batch_rows {}", self.accumulation, self.batch_rows),
            );
        }
        let fits = self.pieces.is_power_of_two() && self.batch_rows.is_multiple_of(self.pieces);
        if self.reduction == Reduction::Fixed && !fits {
            let rows = self.batch_rows;
            problems.add(
                "pieces",
                format!("is {}: must be a power of two that divides batch_rows {rows}", self.pieces),
            );
        }
        for (key, value) in [("learning_rate", self.learning_rate), ("clip_norm", self.clip_norm)] {
            if !(value > 0.0 && value.is_finite()) {
                problems.add(key, format!("is {value}: must be above 0"));
            }
        }
        if self.warmup_steps > self.steps {
            problems.add(
                "warmup_steps",
                format!("is {}: longer than the stage's {} steps", self.warmup_steps, self.steps),
            );
        }
        let a = &self.adamw;
        for (key, value) in [("adamw.beta1", a.beta1), ("adamw.beta2", a.beta2)] {
            if !(0.0..1.0).contains(&value) {
                problems.add(key, format!("is {value}: must be at least 0 and below 1"));
            }
        }
        if a.eps.is_nan() || a.eps <= 0.0 {
            problems.add("adamw.eps", format!("is {}: must be above 0", a.eps));
        }
        if !(a.weight_decay >= 0.0 && a.weight_decay.is_finite()) {
            problems.add("adamw.weight_decay", format!("is {}: must be 0 or more", a.weight_decay));
        }
        problems.within("divergence", |p| self.divergence.validate(p));
        if self.divergence.action == Action::Rollback && self.checkpoint_every == 0 {
            problems
                .add("divergence.action", "rollback goes back to checkpoints, and there are none on the way")
                .remedy("set `checkpoint_every` of this stage");
        }
        let (share, floor) = match self.schedule {
            Schedule::Constant => (1.0, 0.0),
            Schedule::Cosine { floor } => (1.0, floor),
            Schedule::Decay { share, floor } => (share, floor),
        };
        if !(share > 0.0 && share <= 1.0) {
            problems.add("schedule.decay.share", format!("is {share}: must be above 0 and at most 1"));
        }
        if !(0.0..=1.0).contains(&floor) {
            problems.add("schedule", format!("floor is {floor}: must lie between 0 and 1"));
        }
    }
}

impl Validate for RunConfig {
    const VERSION: u64 = SCHEMA_VERSION;
    const RENAMED: &'static [(&'static str, &'static str)] = calm_lm::family::RENAMED;

    fn validate(&self, problems: &mut Problems) {
        problems.within("data", |p| self.data.validate(p));
        problems.within("tokenizer", |p| self.tokenizer.validate(p));
        if let Some(v) = self.vocabulary {
            for (key, id) in [("bos", v.bos), ("eos", v.eos), ("pad", v.pad)] {
                if id as usize >= v.size {
                    problems
                        .add(&format!("vocabulary.{key}"), format!("is {id}: ids are below size {}", v.size));
                }
            }
            if v.pad == v.eos {
                problems.add("vocabulary.pad", format!("is {}: PAD must not be EOS", v.pad));
            }
        }
        let name = self.model.name();
        problems.within("model", |p| p.within(name, |p| self.model.validate(p)));
        // It would learn to read forward alone, and read every prompt in the other directions.
        if self.model.reads_input() && !self.data.loss_on.has_input() {
            problems
                .add(
                    &format!("model.{name}.backbone.attention"),
                    "looks at the input of documents, and where all text counts they have none",
                )
                .remedy("set data.loss_on to {after_share: 0.5} or answers, or attention to causal");
        }
        match (&self.train.autoencoder, self.model.autoencoder()) {
            (Some(stage), Some(_)) => {
                problems.within("train.autoencoder", |p| stage.validate(p));
                if stage.recompute {
                    let message = "only layers of a backbone are computed again: remove it here";
                    problems.add("train.autoencoder.recompute", message);
                }
            }
            (None, Some(_)) => {
                problems
                    .add("train.autoencoder", format!("{} needs its first stage", self.model.title()))
                    .remedy("add `autoencoder: { steps, batch_rows, context, learning_rate }` under `train`");
            }
            (Some(_), None) => {
                let message = format!("{} has no autoencoder: remove this stage", self.model.title());
                problems.add("train.autoencoder", message);
            }
            (None, None) => {}
        }
        problems.within("train.lm", |p| self.train.lm.validate(p));
        problems.within("eval", |p| self.eval.validate(p));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_warm_up_and_end_where_they_say() {
        assert_eq!(Schedule::Constant.factor(0, 100, 10), 0.1);
        assert_eq!(Schedule::Constant.factor(99, 100, 10), 1.0);
        let c = Schedule::Cosine { floor: 0.1 };
        assert!((c.factor(10, 100, 10) - 1.0).abs() < 1e-12);
        assert!((c.factor(100, 100, 10) - 0.1).abs() < 1e-12);
        let d = Schedule::Decay { share: 0.5, floor: 0.0 };
        assert_eq!(d.factor(49, 100, 0), 1.0);
        assert!((d.factor(75, 100, 0) - 0.5).abs() < 1e-12);
    }
}
