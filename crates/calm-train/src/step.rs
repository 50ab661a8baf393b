//! One optimiser step on a global batch: what the training loop repeats, and what is timed.

use std::cell::Cell;

use calm_data::Batch;
use calm_nn::{AdamW, GradientBucket, ParamStore};
use calm_run::checkpoint::Checkpoints;
use calm_run::config::StageConfig;
use calm_run::{Error, Result, Stage};
use candle_core::Tensor;

use crate::objective::{Objective, scalar};

/// One step.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Stage.
    pub stage: Stage,
    /// Steps done.
    pub step: u64,
    /// Steps of the stage.
    pub steps: u64,
    /// What the step computed; on a GPU only of steps that are logged, validated or saved: to read it is to wait.
    pub values: Option<StepValues>,
    /// Of this step.
    pub learning_rate: f64,
    /// Tokens of targets in this step.
    pub tokens: u64,
    /// Seconds of this step; on a GPU, which works behind, steps that read their values wait for those before.
    pub seconds: f64,
    /// Seconds of these in which it waited for its rows; 0 where they lay ready.
    pub data_seconds: f64,
    /// Whether this step is to be written to the metrics.
    pub log: bool,
    /// Whether its update was left out.
    pub skipped: bool,
    /// Updates that the stage has left out so far, this one among them.
    pub left_out: u64,
}

/// Looks at a step before its update, and says whether it is made.
pub type Guard<'a> = &'a mut dyn FnMut(&Result<StepValues>) -> bool;

/// What a step computed.
#[derive(Clone, Debug, PartialEq)]
pub struct StepValues {
    /// Mean training loss of the step.
    pub loss: f64,
    /// Parts of it.
    pub parts: Vec<(&'static str, f64)>,
    /// Before clipping.
    pub gradient_norm: f64,
}

/// What a stage keeps between its steps, besides the parameters.
pub struct Stepper {
    config: StageConfig,
    seed: u64,
    optimizer: AdamW,
    bucket: GradientBucket,
    /// Steps that a GPU had left out when it was looked at last: it counts them from the first on.
    left_out: Cell<u64>,
}

impl Stepper {
    /// Fresh moments and an empty bucket for the parameters of `store`.
    ///
    /// # Errors
    /// No memory left on a GPU.
    pub fn new(store: &ParamStore, config: &StageConfig, seed: u64) -> Result<Self> {
        let optimizer = AdamW::new(store, config.adamw)?;
        let bucket = GradientBucket::new(store)?;
        Ok(Self { config: config.clone(), seed, optimizer, bucket, left_out: Cell::new(0) })
    }

    /// The optimiser, for a checkpoint.
    pub fn optimizer(&self) -> &AdamW {
        &self.optimizer
    }

    /// Restores parameters and moments as a checkpoint holds them.
    ///
    /// # Errors
    /// Files that are missing, damaged or of another model.
    pub fn load(&mut self, checkpoints: &Checkpoints, step: u64, store: &ParamStore) -> Result<()> {
        checkpoints.load_model(step, store)?;
        checkpoints.load_optimizer(step, store, &mut self.optimizer)
    }

    /// Looks at the gradients of the last step, if nobody has: on a GPU that is to wait for it.
    ///
    /// # Errors
    /// A norm that is not finite.
    pub fn look_back(&mut self, stage: Stage, step: u64) -> Result<()> {
        let found = self.bucket.clip(self.config.clip_norm)?.read()?;
        let more = found.skipped > self.left_out.replace(found.skipped);
        if !found.norm.is_finite() || more {
            return Err(not_finite(stage, "the gradient norm", f64::NAN, step));
        }
        Ok(())
    }

    /// Step `step` (0-based) on a global batch cut into micro-batches: loss, gradients, clipping and update. Without
    /// `read` nothing waits for a GPU. A batch with nothing to predict is no step: it leaves all as it is.
    ///
    /// # Errors
    /// A loss or gradient that is not finite; what a GPU answers.
    pub fn step<O: Objective + ?Sized>(
        &mut self,
        objective: &O,
        batches: &[Batch],
        step: u64,
        read: bool,
    ) -> Result<StepReport> {
        self.guarded(objective, batches, step, read, None)
    }

    /// As [`Stepper::step`]; a guard sees the values, or that they are not finite, before the update, for which a GPU
    /// is waited for, and may leave it out.
    ///
    /// # Errors
    /// As [`Stepper::step`], but for what the guard saw.
    pub fn guarded<O: Objective + ?Sized>(
        &mut self,
        objective: &O,
        batches: &[Batch],
        step: u64,
        read: bool,
        guard: Option<Guard<'_>>,
    ) -> Result<StepReport> {
        let c = &self.config;
        let targets: usize = batches.iter().map(|b| objective.targets(b)).sum();
        let mean = 1.0 / targets.max(1) as f64;
        self.bucket.clear();
        let mut sums = Sums::default();
        for batch in batches {
            if objective.targets(batch) == 0 {
                continue;
            }
            let loss = objective.loss(batch, self.seed, "train", step as u32)?;
            self.bucket.backward(&(&loss.sum * mean)?)?;
            sums.add("loss", &loss.sum.detach(), loss.targets)?;
            for part in &loss.parts {
                sums.add(part.name, &part.sum, part.count)?;
            }
        }
        let learning_rate = c.learning_rate * c.schedule.factor(step, c.steps, c.warmup_steps);
        let stage = objective.stage();
        let mut report = StepReport {
            stage,
            step: step + 1,
            steps: c.steps,
            values: None,
            learning_rate,
            tokens: (targets * objective.tokens_per_target()) as u64,
            seconds: 0.0,
            data_seconds: 0.0,
            log: false,
            skipped: true,
            left_out: 0,
        };
        if targets == 0 {
            self.optimizer.skip();
            return Ok(report);
        }
        let clip = self.bucket.clip(c.clip_norm)?;
        // The parameters of a step that cannot be stay as they were: on the CPU because it is looked at first, on a
        // GPU because the optimiser lets out a step whose gradients have no finite norm.
        let look = || -> Result<StepValues> {
            let mut means = sums.means()?;
            let loss = if means.is_empty() { 0.0 } else { means.remove(0).1 };
            // Also of a loss that is no number: what a GPU has counted of this step is not the next one's.
            let found = clip.read()?;
            let more = found.skipped > self.left_out.replace(found.skipped);
            if !loss.is_finite() {
                return Err(not_finite(stage, "the training loss", loss, step + 1));
            }
            if !found.norm.is_finite() || more {
                let norm = if found.norm.is_finite() { f64::NAN } else { found.norm };
                return Err(not_finite(stage, "the gradient norm", norm, step + 1));
            }
            Ok(StepValues { loss, parts: means, gradient_norm: found.norm })
        };
        let on_cpu = objective.store().device().is_cpu();
        if let Some(guard) = guard {
            let seen = look();
            let goes_on = guard(&seen);
            match seen {
                Err(e) if !matches!(e, Error::NotFinite { .. }) => return Err(e),
                seen => report.values = seen.ok(),
            }
            if !goes_on || report.values.is_none() {
                self.optimizer.skip();
                return Ok(report);
            }
        } else if on_cpu {
            report.values = Some(look()?);
        }
        self.optimizer.update(&mut self.bucket, learning_rate, &clip)?;
        report.skipped = false;
        if read && report.values.is_none() {
            report.values = Some(look()?);
        }
        Ok(report)
    }
}

pub(crate) fn not_finite(stage: Stage, what: &'static str, value: f64, step: u64) -> Error {
    Error::NotFinite { stage, what, value, step, good: None, best: None }
}

/// Sums over micro-batches, where the loss is computed, with what they are sums over.
#[derive(Default)]
struct Sums(Vec<(&'static str, Tensor, usize)>);

impl Sums {
    fn add(&mut self, name: &'static str, value: &Tensor, count: usize) -> candle_core::Result<()> {
        match self.0.iter_mut().find(|(n, ..)| *n == name) {
            Some((_, sum, n)) => {
                *sum = (&*sum + value)?;
                *n += count;
            }
            None => self.0.push((name, value.clone(), count)),
        }
        Ok(())
    }

    /// The means, in the order in which the sums came; waits for a GPU.
    fn means(&self) -> candle_core::Result<Vec<(&'static str, f64)>> {
        let mean = |(name, sum, count): &(&'static str, Tensor, usize)| {
            Ok((*name, scalar(sum)? * (1.0 / (*count).max(1) as f64)))
        };
        self.0.iter().map(mean).collect()
    }
}
