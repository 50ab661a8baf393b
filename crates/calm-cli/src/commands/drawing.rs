//! What all commands that draw text have in common.

use calm_data::Tokenizer;
use calm_eval::generate::{GenerateError, GenerateReport};
use calm_lm::Sampler;
use calm_run::Run;
use calm_stats::temperature::TemperatureError;
use candle_core::Device;

use crate::error::Hinted;
use crate::ui::Printer;

/// A model that draws, and what belongs to it.
pub(super) struct Model<'a> {
    pub(super) run: &'a Run,
    pub(super) device: &'a Device,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) sampler: &'a dyn Sampler,
}

/// Candidates for a chunk that the prompt ends inside of.
pub(super) const REMAINDER_BUDGET: usize = 4096;

/// In the words of the command line.
pub(super) fn explain(e: GenerateError) -> anyhow::Error {
    let remedy = match &e {
        GenerateError::Temperature(TemperatureError::Budget { .. } | TemperatureError::NoMatch { .. }) => {
            "raise --draws (the budget), add --fallback, or raise --temperature".to_owned()
        }
        e => e.remedy().unwrap_or_default(),
    };
    Hinted::new(e.to_string(), remedy).into()
}

/// What of many texts is not drawn as the model would have it.
#[derive(Default)]
pub(super) struct Bent {
    forced: usize,
    fallbacks: usize,
}

impl Bent {
    pub(super) fn add(&mut self, report: &GenerateReport) {
        self.forced += usize::from(report.forced);
        self.fallbacks += report.fallbacks;
    }

    /// Says it, if there is something to say; `what` are the texts that were continued.
    pub(super) fn tell(&self, what: &str, printer: &Printer) {
        let Self { forced, fallbacks } = self;
        if *forced > 0 {
            printer.note(format!(
                "{forced} {what} end inside a chunk that no candidate reproduced; the rest was written over the best one"
            ));
        }
        if *fallbacks > 0 {
            printer.warn(format!("{fallbacks} chunks came from the biased fallback: their budget was spent"));
        }
    }
}
