//! A run's folder in order before it is worked on.

use calm_run::run::CONFIG;
use calm_run::{Error, Result, Run, Stage};

use crate::options::TrainOptions;
use crate::reporter::Reporter;

/// Puts the folder in order after processes that were killed in it. Who goes on with a run goes on from what is whole.
pub(crate) fn settle(run: &Run, options: &TrainOptions, reporter: &mut dyn Reporter) -> Result<()> {
    if options.resume {
        for stage in Stage::ALL {
            for said in run.checkpoints(stage).settle()? {
                reporter.warn(&format!("{stage}: {said}"));
            }
        }
    }
    // Another folder's contents are not ours to throw away.
    if !run.folder.join(CONFIG).is_file() {
        return Ok(());
    }
    let swept = calm_files::settle(&run.folder, false);
    swept.map(|_| ()).map_err(|e| Error::io("write", &run.folder, e))
}
