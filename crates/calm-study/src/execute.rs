//! Trains what a plan asks for and is not there yet, one process a run: a run that fails, or is killed for its
//! memory, does not take the others along, and each peak of memory is its own.

use std::collections::BTreeMap;
use std::path::Path;

use calm_data::Corpus;
use calm_run::checked::{read_json, write_json};
use calm_run::checkpoint::Checkpoints;
use calm_run::config::RunConfig;
use calm_run::lock::Lock;
use calm_run::run::CONFIG;
use calm_run::{Begin, Error, Result, Resumption, Run, Stage};

use crate::plan::{Ablation, PLAN, SharedAutoencoder};
use crate::settings::autoencoder_key;

/// File of an ablation's folder with the runs that failed and why; gone when all are well.
const FAILURES: &str = "failures.json";

/// A process to be started.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// What is trained, for people: `k4-seed1 (3 of 15)`.
    pub title: &'a str,
    /// Folder of the run; its `config.yaml` is there.
    pub folder: &'a Path,
    /// Folder of the run whose autoencoder it takes.
    pub autoencoder: Option<&'a Path>,
    /// Train the autoencoder and nothing else.
    pub only_autoencoder: bool,
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Trained to its last step.
    Done,
    /// Stopped by the user, with a checkpoint: the whole ablation stops.
    Stopped,
    /// Anything else, with what is known of why.
    Failed(String),
}

/// Trains runs.
pub trait Worker {
    /// Trains one, or goes on with it.
    ///
    /// # Errors
    /// No process can be started, or the folder cannot be written. A training that fails is an [`Outcome`].
    fn train(&mut self, job: &Job<'_>) -> Result<Outcome>;
}

/// Why runs failed, by name.
pub type Failures = BTreeMap<String, String>;

/// The runs that failed when this ablation was last executed.
///
/// # Errors
/// The list of them is damaged.
pub fn failures(ablation: &Path) -> Result<Failures> {
    let remedy = "run `calm ablate` again to write it anew, or remove it";
    Ok(read_json(&ablation.join(FAILURES), remedy)?.unwrap_or_default())
}

/// Whether the folders of runs that are there hold the same runs. Nothing is touched.
///
/// # Errors
/// A folder holds another run, or one that was begun on another text or tokenizer.
pub fn check(ablation: &Ablation, corpus: &Corpus) -> Result<()> {
    let folders =
        ablation.autoencoders.iter().map(|a| &a.folder).chain(ablation.runs.iter().map(|r| &r.folder));
    for folder in folders.filter(|f| f.join(CONFIG).is_file()) {
        let record = Run::open(folder)?.record()?.unwrap_or_default();
        for (what, old, new) in [
            ("text", &record.corpus_hash, &corpus.hash),
            ("tokenizer", &record.tokenizer_hash, &corpus.tokenizer_hash),
        ] {
            if !old.is_empty() && old != new {
                return Err(Error::user(
                    format!("the {what} has changed since {} was begun", folder.display()),
                    other_folder(&ablation.folder),
                ));
            }
        }
    }
    for autoencoder in &ablation.autoencoders {
        same_autoencoder(autoencoder)?;
    }
    for run in &ablation.runs {
        Resumption::decide(&run.folder, &run.config, Begin::New).map_err(|e| match e {
            Error::User { what, .. } => Error::user(what, other_folder(&ablation.folder)),
            e => e,
        })?;
    }
    Ok(())
}

/// Makes the folders of all runs, after the same checks.
///
/// # Errors
/// As [`check`]; a folder that cannot be written.
pub fn prepare(ablation: &Ablation, corpus: &Corpus) -> Result<()> {
    check(ablation, corpus)?;
    // What a process left that was killed while it scored, or with the last checkpoint of a stage.
    let folders =
        ablation.autoencoders.iter().map(|a| &a.folder).chain(ablation.runs.iter().map(|r| &r.folder));
    // Another folder's contents are not ours to throw away, nor what a process still works on that outlived its parent.
    let ours = |folder: &&std::path::PathBuf| {
        [CONFIG, PLAN].iter().any(|name| folder.join(name).is_file())
            && (**folder == ablation.folder || Lock::holder(folder).is_none())
    };
    for folder in folders.chain([&ablation.folder]).filter(ours) {
        calm_files::settle(folder, false).map_err(|e| Error::io("write", folder, e))?;
        for stage in Stage::ALL {
            Checkpoints::new(&folder.join(stage.name())).tidy()?;
        }
    }
    for autoencoder in ablation.autoencoders.iter().filter(|a| !a.folder.join(CONFIG).is_file()) {
        Run::create(&autoencoder.folder, &autoencoder.config, Begin::New)?;
    }
    for run in &ablation.runs {
        Run::create(&run.folder, &run.config, Begin::New)?;
    }
    ablation.save()
}

fn other_folder(ablation: &Path) -> String {
    format!(
        "give the changed ablation its own folder with --out, or remove what is stale from {}",
        ablation.display()
    )
}

/// An autoencoder's folder holds the configuration of the first run that needed it; whatever of it does not
/// concern the autoencoder may have changed since.
fn same_autoencoder(autoencoder: &SharedAutoencoder) -> Result<()> {
    if !autoencoder.folder.join(CONFIG).is_file() {
        return Ok(());
    }
    let old = Run::resolved(&autoencoder.folder)?;
    if autoencoder_key(&old.value) == autoencoder_key(&autoencoder.config.value) {
        return Ok(());
    }
    let root = autoencoder.folder.parent().and_then(Path::parent).unwrap_or(&autoencoder.folder);
    Err(Error::user(
        format!("{} holds another autoencoder", autoencoder.folder.display()),
        other_folder(root),
    ))
}

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

/// What is left to train: autoencoders and runs, by their place in the plan.
pub fn missing(ablation: &Ablation) -> (Vec<usize>, Vec<usize>) {
    let mut runs = Vec::new();
    for (i, run) in ablation.runs.iter().enumerate() {
        let done = finished(&run.folder, &run.config.value, Stage::Lm);
        if !(done && whole(&run.folder, Stage::Lm)) {
            runs.push(i);
        }
    }
    let mut autoencoders = Vec::new();
    for (i, autoencoder) in ablation.autoencoders.iter().enumerate() {
        let needed = runs.iter().any(|r| ablation.runs[*r].autoencoder == Some(i));
        let done = finished(&autoencoder.folder, &autoencoder.config.value, Stage::Autoencoder);
        if needed && !(done && whole(&autoencoder.folder, Stage::Autoencoder)) {
            autoencoders.push(i);
        }
    }
    (autoencoders, runs)
}

/// Trains what is missing, each autoencoder just before the first run that needs it. Returns the failures, or
/// None if it was stopped.
///
/// # Errors
/// The folder cannot be read or written, or no process can be started.
pub fn execute(ablation: &Ablation, worker: &mut dyn Worker) -> Result<Option<Failures>> {
    let (autoencoders, runs) = missing(ablation);
    let total = autoencoders.len() + runs.len();
    let mut failures = Failures::new();
    let mut done = 0;
    let mut settled: Vec<bool> =
        (0..ablation.autoencoders.len()).map(|i| !autoencoders.contains(&i)).collect();
    for run in runs.iter().map(|i| &ablation.runs[*i]) {
        let autoencoder = run.autoencoder.map(|i| &ablation.autoencoders[i]);
        if let (Some(i), Some(autoencoder)) = (run.autoencoder, autoencoder) {
            let name = format!("autoencoder {}", autoencoder.name);
            if !std::mem::replace(&mut settled[i], true) {
                done += 1;
                let job = Job {
                    title: &format!("{name} ({done} of {total})"),
                    folder: &autoencoder.folder,
                    autoencoder: None,
                    only_autoencoder: true,
                };
                match worker.train(&job)? {
                    Outcome::Done => {}
                    Outcome::Stopped => return Ok(None),
                    Outcome::Failed(reason) => fail(ablation, &mut failures, &name, reason)?,
                }
            }
            if failures.contains_key(&name) {
                done += 1;
                fail(ablation, &mut failures, &run.name, format!("{name} failed"))?;
                continue;
            }
        }
        done += 1;
        let job = Job {
            title: &format!("{} ({done} of {total})", run.name),
            folder: &run.folder,
            autoencoder: autoencoder.map(|a| a.folder.as_path()),
            only_autoencoder: false,
        };
        match worker.train(&job)? {
            Outcome::Done => {}
            Outcome::Stopped => return Ok(None),
            Outcome::Failed(reason) => fail(ablation, &mut failures, &run.name, reason)?,
        }
    }
    if failures.is_empty() {
        let _ = calm_files::remove(&ablation.folder.join(FAILURES));
    }
    Ok(Some(failures))
}

fn fail(ablation: &Ablation, failures: &mut Failures, name: &str, reason: String) -> Result<()> {
    failures.insert(name.to_owned(), reason);
    write_json(&ablation.folder.join(FAILURES), failures)
}
