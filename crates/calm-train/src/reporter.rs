//! What a run shows while it works.

use crate::plan::Plan;
use crate::training::Observer;

/// What a run shows while it works.
pub trait Reporter: Observer {
    /// Reading, tokenising.
    fn data(&mut self, progress: &calm_data::Progress);
    /// The data are ready.
    fn data_done(&mut self);
    /// One line about what happens.
    fn note(&mut self, text: &str);
    /// Before the first step.
    fn plan(&mut self, plan: &Plan);
    /// Batches scored.
    fn scoring(&mut self, what: &str, done: usize, total: usize);
    /// Something that does not stop the run.
    fn warn(&mut self, text: &str);
}
