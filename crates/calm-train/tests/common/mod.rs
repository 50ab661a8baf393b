//! Shared by the tests of runs.

#![allow(dead_code, reason = "each test uses a part")]

use calm_run::Stage;
use calm_run::checkpoint::StageState;
use calm_train::pipeline::Reporter;
use calm_train::plan::{Plan, StagePlan};
use calm_train::training::{Observer, StepReport, Validation};

/// Notes what a run reports.
#[derive(Default)]
pub struct Watch {
    /// Of every step that was read.
    pub losses: Vec<f64>,
    /// Of every validation, with its stage.
    pub validations: Vec<(Stage, Validation)>,
    /// Of all stages of the plan.
    pub parameters: u64,
}

impl Observer for Watch {
    fn begin(&mut self, _: Stage, _: u64, _: u64) {}
    fn step(&mut self, report: &StepReport) {
        self.losses.extend(report.values.as_ref().map(|v| v.loss));
    }
    fn validation(&mut self, stage: Stage, _: u64, validation: &Validation) {
        self.validations.push((stage, validation.clone()));
    }
    fn end(&mut self, _: Stage, _: &StageState) {}
    fn should_stop(&self) -> bool {
        false
    }
}

impl Reporter for Watch {
    fn data(&mut self, _: &calm_data::Progress) {}
    fn data_done(&mut self) {}
    fn note(&mut self, _: &str) {}
    fn plan(&mut self, plan: &Plan) {
        self.parameters = plan.stages.iter().map(StagePlan::parameter_count).sum();
    }
    fn scoring(&mut self, _: &str, _: usize, _: usize) {}
    fn warn(&mut self, _: &str) {}
}
