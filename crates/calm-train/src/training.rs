//! The training loop: reads from top to bottom, the same for every stage.

use std::collections::BTreeMap;
use std::time::Instant;

use calm_data::{Prefetch, RowPlan, RowSource};
use calm_nn::finite::non_finite;
use calm_parallel::{Patience, Ranks};

use crate::objective::{Objective, counted};
pub use crate::observer::{Observer, Validation};
use crate::share::{Cut, Share, fingerprint, told};
pub use crate::step::{StepReport, StepValues};
use crate::step::{Stepper, not_finite};
use crate::watch::{Course, Watch};
use calm_run::checkpoint::{Best, Checkpoints, Rows, StageState};
use calm_run::config::StageConfig;
use calm_run::{Error, Result, Stage};

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
    /// The processes that train together, each with this loop and a part of every batch.
    pub ranks: &'a Ranks,
}

/// Steps after which several processes with GPUs, which work behind, look at what there is, and whether anybody asked to stop.
const TOGETHER: u64 = 8;

/// Validates after so many steps; whether they are the last.
type Validate<'a> = &'a mut dyn FnMut(u64, bool) -> Result<Validation>;

impl Training<'_> {
    /// Trains `objective` to the last step. `validate(steps done, last)` is called at the configured interval
    /// and at the end.
    ///
    /// # Errors
    /// A loss, gradient or parameter that is not finite, as far as the configuration does not say what to do then; a
    /// stop; files that cannot be read or written.
    pub fn run<O: Objective + ?Sized>(
        &self,
        objective: &O,
        validate: Validate<'_>,
        observer: &mut dyn Observer,
    ) -> Result<StageState> {
        let c = self.config;
        let stage = objective.stage();
        let ranks = self.ranks;
        let mut stepper = Stepper::among(ranks, objective.store(), c, self.seed)?;
        let cut = Cut::new(c, ranks)?;
        let mut state = StageState::default();
        let mut watch = Watch::new(stage, &c.divergence, self.checkpoints);
        if self.resume
            && let Some(saved) = self.checkpoints.latest()?
        {
            stepper.load(self.checkpoints, saved.step, objective.store())?;
            state = saved;
            self.same_rows(stage, &cut, &state)?;
            // One that was set aside as damaged counts no more.
            state.best = state.best.filter(|best| self.checkpoints.steps().contains(&best.step));
            // It stays until a step from the last one has been seen.
            state.keep = self.checkpoints.steps().into_iter().rfind(|step| *step < state.step);
            watch.saved(state.step);
        }
        let mut ahead = self.ahead(stage, &cut);
        if state.step < c.steps {
            ahead.start(state.batch(), last_batch(&state, c.steps));
        }
        if !ranks.is_alone() {
            let begins = format!("step {} with parameters {}", state.step, fingerprint(objective.store())?);
            ranks.same(&begins, &format!("where stage {stage} begins")).map_err(told)?;
        }
        ranks.finished_step(state.step);
        observer.begin(stage, state.step, c.steps);
        if std::mem::take(&mut state.validation_due) {
            // The stage was stopped when it was due. It may be the best, and is not made a second time.
            let found = validate(state.step, false).and_then(|v| checked(stage, state.step, v));
            let found = found.map_err(|e| watch.explain(e, &state))?;
            self.validated(stage, &mut state, found, observer);
            observer.saving();
            stepper.save(self.checkpoints, &state, objective.store(), self.metadata)?;
        }
        let on_cpu = objective.store().device().is_cpu();
        // A checkpoint that was due in a spike is written when it has passed.
        let mut postponed = false;
        while state.step < c.steps {
            let next = state.step + 1;
            let last = next == c.steps;
            let log = last || next == 1 || next % c.log_every == 0;
            let due = |every: u64| every > 0 && next % every == 0;
            // Several processes look at the same steps.
            let asked = if ranks.is_alone() { observer.should_stop() } else { due(TOGETHER) };
            let read =
                on_cpu || log || due(c.eval_every) || due(c.checkpoint_every) || asked || watch.unproven();
            let started = Instant::now();
            let (share, waited) = ahead.get(state.batch(), last_batch(&state, c.steps));
            let share = share?;
            let mut guard = |seen: &Result<StepValues>| watch.before_update(seen, &mut state.trend);
            let guard: Option<crate::step::Guard<'_>> =
                if c.divergence.looks_first() { Some(&mut guard) } else { None };
            let mut report = stepper
                .shared(objective, &share.pieces, share.targets, state.step, read, guard)
                .map_err(|e| watch.explain(e, &state))?;
            report.seconds = started.elapsed().as_secs_f64();
            report.data_seconds = waited.as_secs_f64();
            report.log = log;
            state.seconds += report.seconds;
            match watch.after_step(&report, &mut state, observer)? {
                Course::On => {}
                Course::Back(to) => {
                    stepper.load(self.checkpoints, to, objective.store())?;
                    state = watch.back(to, state)?;
                    observer.went_back(stage, to);
                    let back = format!("step {to} with parameters {}", fingerprint(objective.store())?);
                    ranks.same(&back, "what the stage goes back to").map_err(told)?;
                    ranks.finished_step(to);
                    continue;
                }
            }
            state.step = next;
            state.tokens += report.tokens;
            state.units += report.units;
            state.left_out += u64::from(report.skipped);
            report.left_out = state.left_out;
            state.rows = Some(Rows::after(state.rows.take(), &share.hash, (c.batch_rows, c.context)));
            observer.step(&report);

            ranks.finished_step(next);
            let together = read || ranks.is_alone();
            let stop =
                together && ranks.any(observer.should_stop(), "the end of a step").map_err(told)? && !last;
            let mut save = last || stop || due(c.checkpoint_every) || postponed;
            state.validation_due = stop && due(c.eval_every);
            if last || (due(c.eval_every) && !stop) {
                let found = validate(state.step, last).and_then(|v| checked(stage, state.step, v));
                let found = found.map_err(|e| watch.explain(e, &state))?;
                // A better validation than ever is no spike's.
                let better = self.validated(stage, &mut state, found, observer);
                postponed = save && !better && !last && !watch.may_save(&state);
                save = better || (save && !postponed);
            } else if save {
                // Who stops loses nothing: the one before stays as well.
                postponed = !stop && !watch.may_save(&state);
                save = !postponed;
            }
            if save && report.values.is_none() && !report.skipped {
                // A stop that came in the middle of a step on a GPU: nobody has looked at it yet.
                stepper.look_back(stage, state.step).map_err(|e| watch.explain(e, &state))?;
            }
            if save {
                let store = objective.store();
                let parameters = store.params();
                let all = parameters.iter().map(|(name, p)| (name.as_str(), p.var.as_tensor()));
                if non_finite(all)?.is_some() {
                    let e = not_finite(stage, "a parameter", f64::NAN, state.step);
                    return Err(watch.explain(e, &state));
                }
                state.finished = last;
                state.keep = match (last, stop) {
                    (true, _) => None,
                    (_, true) => watch.latest(),
                    _ => watch.to_keep(),
                };
                if !ranks.is_alone() {
                    // The sum of the gradients is the same everywhere whatever went into it.
                    let read = state.rows.as_ref().map_or("", |rows| &rows.all);
                    let here = format!("parameters {} after rows {read}", fingerprint(store)?);
                    ranks.same(&here, &format!("the checkpoint of step {}", state.step)).map_err(told)?;
                }
                observer.saving();
                stepper.save(self.checkpoints, &state, store, self.metadata)?;
                watch.saved(state.step);
            }
            if stop {
                let step = watch.latest().unwrap_or_default();
                return Err(Error::Interrupted { stage, step });
            }
        }
        // What comes next reads what the first of them has written.
        ranks.meet("the end of a stage", Patience::Limited).map_err(told)?;
        observer.end(stage, &state);
        Ok(state)
    }

    /// Takes a validation into the state; whether it is the best so far.
    fn validated(
        &self,
        stage: Stage,
        state: &mut StageState,
        found: Validation,
        observer: &mut dyn Observer,
    ) -> bool {
        observer.validation(stage, state.step, &found);
        let better = state.best.is_none_or(|b| found.loss < b.loss);
        if better {
            state.best = Some(Best { step: state.step, loss: found.loss });
        }
        better
    }

    /// Trains `objective` for at least `seconds` and at least five steps, and keeps nothing: the seconds of each
    /// step. The first step, which takes memory for the first time, is not among them.
    ///
    /// # Errors
    /// A loss or gradient that is not finite; what a GPU answers.
    pub fn time<O: Objective + ?Sized>(&self, objective: &O, seconds: f64) -> Result<Vec<StepReport>> {
        let mut stepper = Stepper::new(objective.store(), self.config, self.seed)?;
        let cut = Cut::new(self.config, &Ranks::alone())?;
        let mut reports = Vec::new();
        let mut spent = 0.0;
        for step in 0.. {
            let started = Instant::now();
            let share = cut.share(self.plan, step, counted(objective.stage()))?;
            let mut report = stepper.shared(objective, &share.pieces, share.targets, step, true, None)?;
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

    /// The batches of one place after the other, made while the step before is computed.
    fn ahead(&self, stage: Stage, cut: &Cut) -> Prefetch<Result<Share>> {
        let (plan, rows, cut) = (self.plan.clone(), self.config.batch_rows, cut.clone());
        Prefetch::new(move |place| {
            let share = cut.share(&plan, place, counted(stage))?;
            plan.look_ahead(place, rows)?;
            Ok(share)
        })
    }

    /// Whether the rows of the last step are those that a checkpoint saw. Who changes the size of a batch has others.
    fn same_rows(&self, stage: Stage, cut: &Cut, state: &StageState) -> Result<()> {
        let Some((rows, last)) = state.rows.as_ref().zip(state.last_batch()) else { return Ok(()) };
        let size = (self.config.batch_rows, self.config.context);
        if size != rows.size || cut.share(self.plan, last, counted(stage))?.hash == rows.last {
            return Ok(());
        }
        Err(Error::user(
            format!("the rows of step {} are not those that the run was trained on", state.step),
            "the token files are not those of the checkpoint, or another version made it: restore them, or begin anew with \
             --restart",
        ))
    }
}

/// The place of the last batch that the loop will ask for, as it stands.
fn last_batch(state: &StageState, steps: u64) -> u64 {
    state.batch() + steps.saturating_sub(state.step + 1)
}

/// A validation whose loss is a number.
fn checked(stage: Stage, step: u64, found: Validation) -> Result<Validation> {
    if found.loss.is_finite() {
        return Ok(found);
    }
    Err(not_finite(stage, "the validation loss", found.loss, step))
}
