//! A run's folder in order before it is worked on.

use calm_run::run::CONFIG;
use calm_run::{Error, Result, Run, Stage};

use crate::options::TrainOptions;
use crate::reporter::Reporter;

/// Puts the folder in order after processes that were killed in it. Who goes on with a run goes on from what is whole.
/// Returns what was said of damaged files.
pub(crate) fn settle(run: &Run, options: &TrainOptions, reporter: &mut dyn Reporter) -> Result<Vec<String>> {
    let mut all = Vec::new();
    // Another folder's contents are not ours to throw away.
    if !run.folder.join(CONFIG).is_file() {
        return Ok(all);
    }
    if options.resume {
        for stage in Stage::ALL {
            for said in run.checkpoints(stage).settle()? {
                reporter.warn(&format!("{stage}: {said}"));
                all.push(said);
            }
        }
    }
    calm_files::settle(&run.folder, false).map_err(|e| Error::io("write", &run.folder, e))?;
    Ok(all)
}

/// An error that may come of damaged files says so.
pub(crate) fn because(error: Error, damage: &[String]) -> Error {
    match error {
        Error::User { what, remedy } if !damage.is_empty() => {
            Error::User { what: format!("{what} ({})", damage.join("; ")), remedy }
        }
        error => error,
    }
}
