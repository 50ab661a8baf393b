//! One file a command.

pub mod ablate;
pub mod attention;
pub mod bench;
mod chat;
pub mod compress;
pub mod compression;
pub mod config;
pub mod data;
pub mod doctor;
mod drawing;
pub mod eval;
pub mod explain;
pub mod export;
pub mod generate;
pub mod import;
pub mod init;
pub mod init_config;
pub mod latents;
pub mod man;
pub mod metrics;
mod prompts;
pub mod protocols;
pub mod report;
mod runs;
pub mod segments;
pub mod train;
pub mod watch;

use std::path::Path;

use anyhow::Result;
use calm_config::{ConfigText, load};
use calm_data::{DataConfig, TokenFile, Tokenizer};
use calm_lm::Decode;
use calm_run::checkpoint::Which;
use calm_run::{Run, RunConfig};
use calm_train::pipeline::prepare_data;
use calm_train::reporter::Reporter;

use crate::args::{CheckpointName, DecodeName, OtherText, RunSource};
use crate::error::Hinted;
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

/// The configuration in force of the run in a folder, whose own file this is.
fn of_run(file: &Path, folder: &Path) -> Result<ConfigText> {
    let text = ConfigText::read(file)?;
    let now = Run::resolved(folder)?;
    let began = load::<RunConfig>(text.clone(), &[])?;
    // As it stands in the file, so that errors name its lines, where nothing has changed since.
    Ok(if now.tree == began.tree { text } else { ConfigText { text: now.to_yaml(), ..text } })
}

/// The checkpoint that was asked for.
pub fn which(source: &RunSource) -> Which {
    match source.checkpoint {
        CheckpointName::Best => Which::Best,
        CheckpointName::Latest => Which::Latest,
    }
}

/// The run with the decoding that was asked for, if one was.
fn decoded_by(mut run: Run, decode: Option<DecodeName>) -> Result<Run> {
    let Some(name) = decode else { return Ok(run) };
    let decode = match name {
        DecodeName::Argmax => Decode::Argmax,
        DecodeName::Sample => Decode::Sample,
    };
    let model = run.config.model.decoded_by(decode).ok_or_else(|| {
        Hinted::new(
            format!("--decode: {} has no latent vectors to decode", run.config.model.title()),
            "leave --decode away",
        )
    })?;
    run.config.model = model;
    Ok(run)
}

/// Writes a file that someone named, and the folder it is in.
fn write_new(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let made = folder.map_or(Ok(()), calm_files::create_folder);
    made.and_then(|()| calm_files::write_bytes(path, bytes)).map_err(|e| {
        let what = format!("cannot write {}: {e}", path.display());
        Hinted::new(what, "name a place that may be written to and has room")
    })?;
    Ok(())
}

/// Held-out text of a run, or another text with the run's tokenizer.
pub fn text_of(
    run: &Run,
    other: Option<OtherText<'_>>,
    cache: &Path,
    screen: &mut Screen<'_>,
) -> Result<(TokenFile, Tokenizer)> {
    match other {
        Some(OtherText { data, column, documents, loss_on }) => {
            let tokenizer = run.tokenizer()?;
            let source = calm_data::source::named(data)?;
            let like = &run.config.data;
            let data = DataConfig { source, column: column.map(str::to_owned), ..DataConfig::default() }
                .read_like(like);
            let data = DataConfig { loss_on: loss_on.unwrap_or(data.loss_on), ..data };
            let file =
                calm_data::prepare_text(&data, documents, &tokenizer, cache, &mut |p| screen.data(&p))?;
            screen.data_done();
            Ok((file, tokenizer))
        }
        None => {
            let corpus = prepare_data(run, cache, screen)?;
            Ok((corpus.validation, corpus.tokenizer))
        }
    }
}
