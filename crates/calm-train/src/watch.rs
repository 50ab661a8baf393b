//! Keeps an eye on a stage: spikes and what is no number, what is done about them, and which checkpoints are good.
//!
//! A checkpoint is good once a step from it was finite. Until then the one before is kept beside it; where the first
//! step from it is no number, it is dead whatever is changed, and discarded, so that `--resume` goes on from the good
//! one. With `action: stop` nothing is saved while a spike lasts: the same steps would come again from the checkpoint
//! before it.

use calm_run::checkpoint::{Checkpoints, Skipped, StageState};
use calm_run::divergence::{Action, DivergenceConfig, Sight, Trend};
use calm_run::{Error, Result, Stage};

use crate::observer::Observer;
use crate::step::{StepReport, StepValues, not_finite};

/// How often a stage goes back to the same checkpoint.
const RETURNS: u32 = 8;

/// What becomes of a stage after a step.
pub(crate) enum Course {
    /// It goes on.
    On,
    /// It goes back to a checkpoint.
    Back(u64),
}

pub(crate) struct Watch<'a> {
    stage: Stage,
    config: DivergenceConfig,
    checkpoints: &'a Checkpoints,
    /// What the guard saw of the step at hand.
    seen: Option<Sight>,
    /// What was no number in it.
    bad: Option<(&'static str, f64)>,
    /// The latest checkpoint of this stage.
    latest: Option<u64>,
    /// Whether a step from it was seen to be finite.
    proven: bool,
    /// The latest checkpoint that a step was seen to be finite from.
    good: Option<u64>,
    /// Where the stage went back to last, and how often.
    returns: (u64, u32),
    /// Spikes of this process.
    spikes: u32,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(stage: Stage, config: &DivergenceConfig, checkpoints: &'a Checkpoints) -> Self {
        Self {
            stage,
            config: *config,
            checkpoints,
            seen: None,
            bad: None,
            latest: None,
            proven: false,
            good: None,
            returns: (0, 0),
            spikes: 0,
        }
    }

    /// A checkpoint was written, or read to go on from it.
    pub(crate) fn saved(&mut self, step: u64) {
        (self.latest, self.proven) = (Some(step), false);
    }

    pub(crate) fn latest(&self) -> Option<u64> {
        self.latest
    }

    /// The checkpoint that a new one does not replace at once.
    pub(crate) fn to_keep(&self) -> Option<u64> {
        if self.proven { self.latest } else { self.good }
    }

    /// Whether nobody has seen a step from the latest checkpoint yet.
    pub(crate) fn unproven(&self) -> bool {
        self.latest.is_some() && !self.proven
    }

    /// Looks at a step before its update. False: it is left out.
    pub(crate) fn before_update(&mut self, seen: &Result<StepValues>, trend: &mut Trend) -> bool {
        self.bad = match seen {
            Err(Error::NotFinite { what, value, .. }) => Some((what, *value)),
            _ => None,
        };
        let sight = match (seen, self.bad) {
            (Ok(values), _) => trend.see(values.loss, values.gradient_norm, &self.config),
            (Err(_), bad) => {
                trend.see_nothing();
                let what = bad.map_or_else(String::new, |(what, value)| format!("{what} is {value}"));
                Sight::Spike { what, first: trend.spike_steps() == 1 }
            }
        };
        let goes_on = seen.is_ok() && !matches!(sight, Sight::Spike { .. });
        self.seen = Some(sight);
        goes_on
    }

    /// Judges a step that was made or left out, and says what happens next.
    ///
    /// # Errors
    /// A spike that nothing helps against.
    pub(crate) fn after_step(
        &mut self,
        report: &StepReport,
        state: &mut StageState,
        observer: &mut dyn Observer,
    ) -> Result<Course> {
        let sight = match (self.seen.take(), &report.values) {
            (Some(sight), _) => sight,
            (None, Some(values)) if !report.skipped => {
                state.trend.see(values.loss, values.gradient_norm, &self.config)
            }
            _ => return Ok(Course::On),
        };
        let step = report.step;
        match sight {
            Sight::Ordinary => {}
            Sight::Diverged(what) => {
                observer.alarm(self.stage, &format!("{} diverges at step {step}: {what}", self.stage));
            }
            Sight::Spike { what, first } => match self.config.action {
                Action::Stop if first => {
                    self.spikes += 1;
                    if let Some(so_far) = said(self.spikes) {
                        observer.alarm(self.stage, &format!("{}, step {step}: {what}{so_far}", self.stage));
                    }
                }
                Action::Stop => {}
                Action::Skip => {
                    let steps = state.trend.spike_steps();
                    if let Some((what, value)) = self.bad.filter(|_| steps >= self.config.window) {
                        return Err(self.explain(not_finite(self.stage, what, value, step), state));
                    }
                    if first {
                        let stage = self.stage;
                        observer.alarm(
                            stage,
                            &format!(
                                "{stage}, step {step} is left out: {what}; and so are all until it passes"
                            ),
                        );
                    }
                }
                Action::Rollback => return self.go_back(&what, report, state, observer),
            },
        }
        if report.values.is_some() && !std::mem::replace(&mut self.proven, true) {
            self.good = self.latest;
            let step = self.latest.unwrap_or_default();
            // What is left over is removed with the next checkpoint.
            let _ = self.checkpoints.clear(&StageState { step, keep: None, ..state.clone() });
        }
        Ok(Course::On)
    }

    fn go_back(
        &mut self,
        what: &str,
        report: &StepReport,
        state: &StageState,
        observer: &mut dyn Observer,
    ) -> Result<Course> {
        let step = report.step;
        // What is no number at the first step from a checkpoint is no number there, whatever the batch.
        let dead = report.values.is_none() && !self.proven;
        let to = self
            .checkpoints
            .steps()
            .into_iter()
            .rev()
            .find(|s| *s > 0 && *s <= state.step && !(dead && self.latest == Some(*s)));
        let Some(to) = to else {
            return Err(self.give_up(what, "no good checkpoint before it to go back to".into(), step, state));
        };
        self.returns = if self.returns.0 == to { (to, self.returns.1 + 1) } else { (to, 1) };
        if self.returns.1 > RETURNS {
            return Err(self.give_up(what, format!("went back to step {to} {RETURNS} times"), step, state));
        }
        observer.alarm(
            self.stage,
            &format!(
                "{}, step {step}: {what}; back to step {to}, the batches from there on are left out",
                self.stage
            ),
        );
        Ok(Course::Back(to))
    }

    /// Nothing helps: an error with what does.
    fn give_up(&self, what: &str, why: String, step: u64, state: &StageState) -> Error {
        let stage = self.stage;
        if let Some((what, value)) = self.bad {
            return self.explain(not_finite(stage, what, value, step), state);
        }
        Error::user(
            format!("{stage}, step {step}: {what}; {why}"),
            format!(
                "lower the learning rate (--set train.{stage}.learning_rate=...), raise train.{stage}.divergence.threshold, \
                 or let --set train.{stage}.divergence.action=skip leave the steps out, and go on with --resume"
            ),
        )
    }

    /// The state after going back: that of the checkpoint, without the batches that led to the spike. A stage that is
    /// killed before its next checkpoint meets the same spike and decides the same.
    pub(crate) fn back(&mut self, to: u64, spiked: StageState) -> Result<StageState> {
        let mut state = self.checkpoints.state(to)?;
        // What was left out after that is among the batches that are left out now.
        let place = spiked.batch();
        state.skipped = spiked.skipped;
        state.skipped.retain(|skipped| skipped.after <= to);
        let batches = (place + 1).saturating_sub(state.batch());
        state.skipped.push(Skipped { after: to, batches });
        let steps = self.checkpoints.steps();
        state.best = state.best.filter(|best| steps.contains(&best.step));
        state.seconds = spiked.seconds;
        // Later ones lead to the spike.
        for step in self.checkpoints.steps().into_iter().filter(|step| *step > to) {
            self.checkpoints.discard(step)?;
        }
        self.saved(to);
        Ok(state)
    }

    /// Whether a checkpoint may be written now.
    pub(crate) fn may_save(&self, state: &StageState) -> bool {
        let ordinary = match self.config.action {
            Action::Stop => !state.trend.in_spike(),
            Action::Skip | Action::Rollback => self.bad.is_none(),
        };
        ordinary || self.latest.is_none()
    }

    /// An error with the checkpoints that are good.
    pub(crate) fn explain(&self, error: Error, state: &StageState) -> Error {
        let Error::NotFinite { stage, what, value, step, .. } = error else { return error };
        let mut steps = self.checkpoints.steps();
        if let Some(latest) = self.latest.filter(|_| !self.proven) {
            let before = steps.iter().any(|step| *step < latest);
            // Nothing goes on from it: with another one there it would only be in its way.
            if before {
                let _ = self.checkpoints.discard(latest);
            }
            steps.retain(|step| *step != latest);
        }
        let good = steps.iter().copied().rev().find(|step| *step > 0 && *step <= state.step);
        let best = state.best.map(|best| best.step).filter(|step| steps.contains(step));
        Error::NotFinite { stage, what, value, step, good, best }
    }
}

/// What is added to the words about the n-th spike, if it has any: single hard batches spike in every long training, so the
/// first is said, and then every doubling.
fn said(n: u32) -> Option<String> {
    match n {
        1 => Some(String::new()),
        n if n.is_power_of_two() => {
            Some(format!("; {n} such steps so far, the next word comes after {}", n.saturating_mul(2)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_spikes_are_six_lines() {
        let lines: Vec<(u32, String)> = (1..=50).filter_map(|n| Some((n, said(n)?))).collect();
        assert_eq!(lines.iter().map(|line| line.0).collect::<Vec<_>>(), [1, 2, 4, 8, 16, 32]);
        assert_eq!(lines[0].1, "");
        assert_eq!(lines[5].1, "; 32 such steps so far, the next word comes after 64");
    }
}
