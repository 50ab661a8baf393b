//! The training loop: reads from top to bottom, the same for every stage.

use std::collections::BTreeMap;
use std::time::Instant;

use calm_data::{Batch, RowPlan};
use calm_nn::{AdamW, GradientBucket};
use candle_core::Tensor;

use crate::objective::{Objective, scalar};
use calm_run::checkpoint::{Best, Checkpoints, StageState};
use calm_run::config::StageConfig;
use calm_run::{Error, Result, Stage};

/// What happens while a stage runs. All methods may do nothing.
pub trait Observer {
    /// Before the first step; `from` steps were done earlier.
    fn begin(&mut self, stage: Stage, from: u64, steps: u64);
    /// After every step.
    fn step(&mut self, report: &StepReport);
    /// After a validation.
    fn validation(&mut self, stage: Stage, step: u64, validation: &Validation);
    /// After the last step.
    fn end(&mut self, stage: Stage, state: &StageState);
    /// Whether to stop at the next step, with a checkpoint.
    fn should_stop(&self) -> bool;
}

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
    /// Whether this step is to be written to the metrics.
    pub log: bool,
}

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

/// A validation.
#[derive(Clone, Debug, Default)]
pub struct Validation {
    /// The loss that decides which checkpoint is best.
    pub loss: f64,
    /// More numbers, by name.
    pub numbers: Vec<(String, Option<f64>)>,
    /// A sample text, if the stage can produce one.
    pub sample: Option<String>,
}

/// The training of a stage: everything the loop needs besides the objective.
pub struct Training<'a> {
    /// How long and how.
    pub config: &'a StageConfig,
    /// Training rows.
    pub plan: &'a RowPlan,
    /// Where checkpoints go.
    pub checkpoints: &'a Checkpoints,
    /// Written into every weights file.
    pub metadata: &'a BTreeMap<String, String>,
    /// Seed of batches and noise.
    pub seed: u64,
    /// Continue from the latest checkpoint, if there is one.
    pub resume: bool,
}

impl Training<'_> {
    /// Trains `objective` to the last step. `validate(steps done, last)` is called at the configured interval
    /// and at the end.
    pub fn run<O: Objective + ?Sized>(
        &self,
        objective: &O,
        validate: &mut dyn FnMut(u64, bool) -> Result<Validation>,
        observer: &mut dyn Observer,
    ) -> Result<StageState> {
        let c = self.config;
        let mut optimizer = AdamW::new(objective.store(), c.adamw)?;
        let mut bucket = GradientBucket::new(objective.store())?;
        let mut state = StageState::default();
        if self.resume
            && let Some(saved) = self.checkpoints.latest()?
        {
            self.checkpoints.load_model(saved.step, objective.store())?;
            self.checkpoints.load_optimizer(saved.step, objective.store(), &mut optimizer)?;
            state = saved;
        }
        observer.begin(objective.stage(), state.step, c.steps);
        let on_cpu = objective.store().device().is_cpu();
        while state.step < c.steps {
            let next = state.step + 1;
            let last = next == c.steps;
            let log = last || next == 1 || next % c.log_every == 0;
            let due = |every: u64| every > 0 && next % every == 0;
            let read =
                on_cpu || log || due(c.eval_every) || due(c.checkpoint_every) || observer.should_stop();
            let started = Instant::now();
            let mut report = self.step(objective, &mut optimizer, &mut bucket, state.step, read)?;
            state.step = next;
            report.seconds = started.elapsed().as_secs_f64();
            report.log = log;
            state.seconds += report.seconds;
            state.tokens += report.tokens;
            observer.step(&report);

            let stop = observer.should_stop() && !last;
            let mut save = last || stop || (c.checkpoint_every > 0 && state.step % c.checkpoint_every == 0);
            if last || (c.eval_every > 0 && state.step % c.eval_every == 0 && !stop) {
                let validation = validate(state.step, last)?;
                if !validation.loss.is_finite() {
                    return Err(self.not_finite(
                        objective.stage(),
                        "validation loss",
                        validation.loss,
                        state.step,
                    ));
                }
                observer.validation(objective.stage(), state.step, &validation);
                if state.best.is_none_or(|b| validation.loss < b.loss) {
                    state.best = Some(Best { step: state.step, loss: validation.loss });
                    save = true;
                }
            }
            if save && report.values.is_none() {
                // A stop that came in the middle of a step on a GPU: nobody has looked at it yet.
                let found = bucket.clip(c.clip_norm)?.read()?;
                if !found.norm.is_finite() || found.skipped > 0 {
                    return Err(self.not_finite(
                        objective.stage(),
                        "the gradient norm",
                        f64::NAN,
                        state.step,
                    ));
                }
            }
            if save {
                state.finished = last;
                self.checkpoints.save(&state, objective.store(), &optimizer, self.metadata)?;
            }
            if stop {
                return Err(Error::Interrupted { stage: objective.stage(), step: state.step });
            }
        }
        observer.end(objective.stage(), &state);
        Ok(state)
    }

    /// Trains `objective` for at least `seconds` and at least five steps, and keeps nothing: the seconds of each
    /// step. The first step, which takes memory for the first time, is not among them.
    pub fn time<O: Objective + ?Sized>(&self, objective: &O, seconds: f64) -> Result<Vec<StepReport>> {
        let mut optimizer = AdamW::new(objective.store(), self.config.adamw)?;
        let mut bucket = GradientBucket::new(objective.store())?;
        let mut reports = Vec::new();
        let mut spent = 0.0;
        for step in 0.. {
            let started = Instant::now();
            let mut report = self.step(objective, &mut optimizer, &mut bucket, step, true)?;
            report.seconds = started.elapsed().as_secs_f64();
            if step > 0 {
                spent += report.seconds;
                reports.push(report);
            }
            if spent >= seconds && reports.len() >= 5 {
                break;
            }
        }
        Ok(reports)
    }

    /// One optimiser step on a global batch cut into micro-batches. Without `read` nothing waits for a GPU.
    fn step<O: Objective + ?Sized>(
        &self,
        objective: &O,
        optimizer: &mut AdamW,
        bucket: &mut GradientBucket,
        step: u64,
        read: bool,
    ) -> Result<StepReport> {
        let c = self.config;
        let piece = c.batch_rows / c.accumulation;
        let batches: Vec<Batch> = (0..c.accumulation)
            .map(|i| self.plan.batch(step, i * piece..(i + 1) * piece, c.batch_rows))
            .collect();
        let targets: usize = batches.iter().map(|b| objective.targets(b)).sum();
        let mean = 1.0 / targets.max(1) as f64;
        bucket.clear();
        let mut sums = Sums::default();
        for batch in &batches {
            if objective.targets(batch) == 0 {
                continue;
            }
            let loss = objective.loss(batch, self.seed, "train", step as u32)?;
            bucket.backward(&(&loss.sum * mean)?)?;
            sums.add("loss", &loss.sum.detach(), loss.targets)?;
            for part in &loss.parts {
                sums.add(part.name, &part.sum, part.count)?;
            }
        }
        let clip = bucket.clip(c.clip_norm)?;
        let learning_rate = c.learning_rate * c.schedule.factor(step, c.steps, c.warmup_steps);
        // The parameters of a step that cannot be stay as they were: on the CPU because it is looked at first, on a
        // GPU because the optimiser lets out a step whose gradients have no finite norm.
        let look = || -> Result<StepValues> {
            let mut means = sums.means()?;
            let loss = if means.is_empty() { 0.0 } else { means.remove(0).1 };
            if !loss.is_finite() {
                return Err(self.not_finite(objective.stage(), "the training loss", loss, step + 1));
            }
            let found = clip.read()?;
            if !found.norm.is_finite() || found.skipped > 0 {
                let norm = if found.norm.is_finite() { f64::NAN } else { found.norm };
                return Err(self.not_finite(objective.stage(), "the gradient norm", norm, step + 1));
            }
            Ok(StepValues { loss, parts: means, gradient_norm: found.norm })
        };
        let on_cpu = objective.store().device().is_cpu();
        let mut values = if on_cpu { Some(look()?) } else { None };
        optimizer.update(bucket, learning_rate, &clip)?;
        if read && values.is_none() {
            values = Some(look()?);
        }
        Ok(StepReport {
            stage: objective.stage(),
            step: step + 1,
            steps: c.steps,
            values,
            learning_rate,
            tokens: (targets * objective.tokens_per_target()) as u64,
            seconds: 0.0,
            log: false,
        })
    }

    fn not_finite(&self, stage: Stage, what: &'static str, value: f64, step: u64) -> Error {
        Error::NotFinite { stage, what, value, step }
    }
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
