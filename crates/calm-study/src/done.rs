//! Whether runs are trained to their end.

use std::path::Path;

use calm_run::checkpoint::Checkpoints;
use calm_run::config::RunConfig;
use calm_run::{Run, Stage};

/// Whether a stage of a run in this folder is trained to its end; one whose state cannot be read is not.
pub fn finished(folder: &Path, config: &RunConfig, stage: Stage) -> bool {
    let run = Run { folder: folder.to_owned(), config: config.clone() };
    let steps = config.train.stage(stage).map_or(0, |c| c.steps);
    // One whose state is damaged is resumed from the checkpoint before it.
    let state = run.checkpoints(stage).latest().ok().flatten();
    state.is_some_and(|s| s.step >= steps || (s.finished && s.step == 0))
}

/// Whether the checkpoints of a stage are what was written: damaged ones are trained again from the one before.
fn whole(folder: &Path, stage: Stage) -> bool {
    let checkpoints = Checkpoints::new(&folder.join(stage.name()));
    checkpoints.steps().into_iter().all(|step| checkpoints.check(step).is_ok())
}

/// Whether a stage of a run is trained to its end, and its checkpoints are what was written.
pub(crate) fn trained(folder: &Path, config: &RunConfig, stage: Stage) -> bool {
    finished(folder, config, stage) && whole(folder, stage)
}
