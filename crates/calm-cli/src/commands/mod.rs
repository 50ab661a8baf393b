//! One file a command.

pub mod ablate;
pub mod bench;
pub mod config;
pub mod doctor;
pub mod eval;
pub mod export;
pub mod generate;
pub mod import;
pub mod init;
pub mod latents;
pub mod protocols;
pub mod report;
pub mod train;

use std::path::Path;

use anyhow::Result;
use calm_data::{TokenFile, Tokenizer};
use calm_run::Run;
use calm_run::checkpoint::Which;
use calm_train::pipeline::{Reporter, prepare_data};

use crate::args::{CheckpointName, RunSource};
use crate::screen::Screen;

/// Folder that holds the runs.
pub const RUNS: &str = "runs";

/// The run that was asked for, or the latest.
pub fn open_run(source: &RunSource) -> Result<Run> {
    Ok(match &source.run {
        Some(folder) => Run::open(folder)?,
        None => Run::latest(Path::new(RUNS))?,
    })
}

/// The checkpoint that was asked for.
pub fn which(source: &RunSource) -> Which {
    match source.checkpoint {
        CheckpointName::Best => Which::Best,
        CheckpointName::Latest => Which::Latest,
    }
}

/// Held-out text of a run, or the text of a file with the run's tokenizer.
pub fn text_of(
    run: &Run,
    data: Option<&Path>,
    cache: &Path,
    screen: &mut Screen<'_>,
) -> Result<(TokenFile, Tokenizer)> {
    match data {
        Some(path) => {
            let tokenizer = run.tokenizer()?;
            let file = calm_data::prepare_file(path, &tokenizer, cache, &mut |p| screen.data(&p))?;
            screen.data_done();
            Ok((file, tokenizer))
        }
        None => {
            let corpus = prepare_data(run, cache, screen)?;
            Ok((corpus.validation, corpus.tokenizer))
        }
    }
}
