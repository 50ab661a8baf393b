//! Weights of other runs: a finished autoencoder, or a start for fine-tuning. They are looked for before anything is
//! made or read ([`look`]), and whether they fit is known before anything is touched.

use std::path::Path;

use calm_data::Corpus;

use crate::options::TrainOptions;
use crate::reporter::Reporter;
use calm_run::checkpoint::{Checkpoints, Which};
use calm_run::config::RunConfig;
use calm_run::{Error, Result, Resumption, Run, Stage};

/// Looks whether other runs have the weights that `--init-from` and `--autoencoder` name.
///
/// # Errors
/// A run is not there or has no weights of a stage that is trained, with the option that named it.
pub fn look(
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

/// Whether the weights that are to be taken from other runs are there and fit. Nothing is taken yet.
///
/// # Errors
/// They are not, or do not.
pub(crate) fn check_others(resumption: &Resumption, corpus: &Corpus, options: &TrainOptions) -> Result<()> {
    let run = resumption.run();
    if let Some(other) = &options.autoencoder_from {
        finished_autoencoder(run, corpus, other)?;
    }
    let Some(folder) = &options.init_from else { return Ok(()) };
    let mut wanted = Vec::new();
    for stage in Stage::ALL.into_iter().filter(|stage| run.config.train.stage(*stage).is_some()) {
        let given = stage == Stage::Autoencoder && options.autoencoder_from.is_some();
        // A stage that goes on has its own by now.
        let own = options.resume && resumption.latest(stage)?.is_some();
        if options.only.is_none_or(|only| only == stage) && !given && !own {
            wanted.push(stage);
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let other = Run::open(folder)?;
    same_tokenizer(&other, corpus)?;
    wanted.into_iter().try_for_each(|stage| other.checkpoints(stage).step(Which::Best).map(|_| ()))
}

/// The finished autoencoder of another run that fits: its checkpoints, and its best step.
fn finished_autoencoder(run: &Run, corpus: &Corpus, other: &Path) -> Result<(Checkpoints, u64)> {
    let other = Run::open(other)?;
    let shape = |run: &Run| run.config.model.autoencoder().map(|a| (run.config.chunk_size(), a.clone()));
    let fits = shape(run).is_some() && shape(run) == shape(&other);
    if !fits {
        return Err(Error::user(
            format!("the autoencoder of {} has another shape", other.folder.display()),
            format!(
                "chunk_size and model.{}.autoencoder of both runs must be equal",
                run.config.model.name()
            ),
        ));
    }
    same_tokenizer(&other, corpus)?;
    let from = other.checkpoints(Stage::Autoencoder);
    // One that a language model stands on is as good, if its last checkpoint was damaged.
    let stands = || -> Result<bool> {
        Ok(other.checkpoints(Stage::Lm).latest()?.is_some() && other.fits_autoencoder()?)
    };
    if from.latest()?.is_some_and(|s| !s.finished) && !stands()? {
        return Err(Error::user(
            format!("the autoencoder of {} is not finished", other.folder.display()),
            "finish it first: run its own command with --resume",
        ));
    }
    let step = from.step(Which::Best)?;
    Ok((from, step))
}

/// Copies the finished autoencoder of another run, after checking that it fits; returns the hash of its
/// weights file.
pub(crate) fn import_autoencoder(
    run: &Run,
    corpus: &Corpus,
    other: &Path,
    reporter: &mut dyn Reporter,
) -> Result<String> {
    let (from, step) = finished_autoencoder(run, corpus, other)?;
    let hash = from.model_hash(step)?;
    let to = run.checkpoints(Stage::Autoencoder);
    if to.latest()?.is_none() {
        to.copy_imported(&from, step)?;
    } else if run.autoencoder_hash()? != hash {
        return Err(Error::user(
            format!("{} has an autoencoder of its own", run.folder.display()),
            "leave --autoencoder away to keep it; --restart or another --out begins anew",
        ));
    }
    reporter.note(&format!("autoencoder: taken from {}", from.path(step).display()));
    Ok(hash)
}

/// Weights mean something with their own tokenizer only.
fn same_tokenizer(other: &Run, corpus: &Corpus) -> Result<()> {
    if other.tokenizer()?.hash() == corpus.tokenizer_hash {
        return Ok(());
    }
    let file = other.folder.join("tokenizer.json");
    // Quoted for YAML, and then for the shell.
    let setting = format!("tokenizer={{file: {}}}", serde_json::json!(file.to_string_lossy()));
    let setting = shlex::try_quote(&setting).map_or_else(|_| setting.clone(), Into::into);
    Err(Error::user(
        format!("{} uses another tokenizer than this run", other.folder.display()),
        format!("give this run the same one: --set {setting}"),
    ))
}

/// Loads the weights of another run's stage.
pub(crate) fn init_from(
    run: &Run,
    corpus: &Corpus,
    options: &TrainOptions,
    stage: Stage,
    store: &calm_nn::ParamStore,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    let Some(folder) = &options.init_from else { return Ok(()) };
    if options.resume && run.checkpoints(stage).latest()?.is_some() {
        return Ok(());
    }
    let other = Run::open(folder)?;
    same_tokenizer(&other, corpus)?;
    let checkpoints = other.checkpoints(stage);
    let step = checkpoints.step(Which::Best)?;
    checkpoints.load_model(step, store)?;
    reporter.note(&format!("{stage}: starts from {}", checkpoints.path(step).display()));
    Ok(())
}
