//! Weights that are to be taken from other runs: looked for before anything is made or read.

use std::path::Path;

use calm_run::checkpoint::Which;
use calm_run::config::RunConfig;
use calm_run::{Error, Result, Run, Stage};

/// Looks whether other runs have the weights that `--init-from` and `--autoencoder` name.
///
/// # Errors
/// A run is not there or has no weights of a stage that is trained, with the option that named it.
pub fn check(
    config: &RunConfig,
    only: Option<Stage>,
    init_from: Option<&Path>,
    autoencoder: Option<&Path>,
) -> Result<()> {
    let weights = |folder: &Path, stage: Stage, option: &str| -> Result<()> {
        let found = Run::open(folder).and_then(|run| run.checkpoints(stage).step(Which::Best));
        found.map(|_| ()).map_err(|e| {
            let remedy =
                format!("give {option} the folder of a run (runs/NAME) with weights of stage {stage}");
            Error::user(format!("{option}: {e}"), remedy)
        })
    };
    let has_autoencoder = config.model.autoencoder().is_some();
    if let Some(folder) = autoencoder.filter(|_| has_autoencoder) {
        weights(folder, Stage::Autoencoder, "--autoencoder")?;
    }
    if let Some(folder) = init_from {
        for stage in Stage::ALL.into_iter().filter(|stage| only.is_none_or(|only| only == *stage)) {
            // An autoencoder that is taken from elsewhere is not trained.
            let trained = stage == Stage::Lm || (has_autoencoder && autoencoder.is_none());
            if trained {
                weights(folder, stage, "--init-from")?;
            }
        }
    }
    Ok(())
}
