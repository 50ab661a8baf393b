//! What all commands that draw text have in common.

use calm_eval::generate::GenerateError;
use calm_stats::temperature::TemperatureError;

use crate::error::Hinted;

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
