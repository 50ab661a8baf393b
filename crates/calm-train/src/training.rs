//! The training loop: reads from top to bottom, the same for every stage.

use std::collections::BTreeMap;
use std::time::Instant;

use calm_data::{Batch, RowPlan};

use crate::objective::Objective;
pub use crate::step::{StepReport, StepValues};
use crate::step::{Stepper, not_finite};
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
    /// Before a checkpoint is written: what was recorded so far must not be lost if it is kept.
    fn saving(&mut self) {}
    /// After the last step.
    fn end(&mut self, stage: Stage, state: &StageState);
    /// Whether to stop at the next step, with a checkpoint.
    fn should_stop(&self) -> bool;
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
        let mut stepper = Stepper::new(objective.store(), c, self.seed)?;
        let mut state = StageState::default();
        if self.resume
            && let Some(saved) = self.checkpoints.latest()?
        {
            stepper.load(self.checkpoints, saved.step, objective.store())?;
            state = saved;
            // One that was set aside as damaged counts no more.
            state.best = state.best.filter(|best| self.checkpoints.steps().contains(&best.step));
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
            let mut report = stepper.step(objective, &self.batches(state.step), state.step, read)?;
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
                    let stage = objective.stage();
                    return Err(not_finite(stage, "the validation loss", validation.loss, state.step));
                }
                observer.validation(objective.stage(), state.step, &validation);
                if state.best.is_none_or(|b| validation.loss < b.loss) {
                    state.best = Some(Best { step: state.step, loss: validation.loss });
                    save = true;
                }
            }
            if save && report.values.is_none() {
                // A stop that came in the middle of a step on a GPU: nobody has looked at it yet.
                stepper.look_back(objective.stage(), state.step)?;
            }
            if save {
                state.finished = last;
                observer.saving();
                self.checkpoints.save(&state, objective.store(), stepper.optimizer(), self.metadata)?;
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
        let mut stepper = Stepper::new(objective.store(), self.config, self.seed)?;
        let mut reports = Vec::new();
        let mut spent = 0.0;
        for step in 0.. {
            let started = Instant::now();
            let mut report = stepper.step(objective, &self.batches(step), step, true)?;
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

    /// The micro-batches of a step.
    fn batches(&self, step: u64) -> Vec<Batch> {
        let c = self.config;
        let piece = c.batch_rows / c.accumulation;
        (0..c.accumulation).map(|i| self.plan.batch(step, i * piece..(i + 1) * piece, c.batch_rows)).collect()
    }
}
