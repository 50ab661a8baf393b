//! Who watches a stage.

use calm_run::Stage;
use calm_run::checkpoint::StageState;

use crate::step::StepReport;

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
    /// A spike, a divergence, or what was done about one: in words.
    fn alarm(&mut self, _stage: Stage, _text: &str) {}
    /// The stage went back: what was reported of later steps no longer counts.
    fn went_back(&mut self, _stage: Stage, _to: u64) {}
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
