//! Trains what a plan asks for and is not there yet, one process a run: a run that fails, or is killed for its
//! memory, does not take the others along, and each peak of memory is its own. Several processes may work on one
//! ablation: each run is claimed by the one that trains it.

use std::path::Path;

use calm_data::Corpus;
use calm_run::checked::{read_json, write_json};
use calm_run::checkpoint::Checkpoints;
use calm_run::lock::Owner;
use calm_run::run::CONFIG;
use calm_run::{Begin, Claim, Error, Lock, Result, Resumption, Run, Stage};

use crate::done::{finished, trained};
use crate::plan::{Ablation, PLAN, PlannedRun, SharedAutoencoder};
pub use crate::queue::{Failures, Job, Outcome, Worker};
use crate::queue::{Task, work};
use crate::settings::autoencoder_key;

/// File of an ablation's folder with the runs that failed and why; gone when all are well.
const FAILURES: &str = "failures.json";

/// The runs that failed when this ablation was last executed, and that nobody has trained to their end since.
///
/// # Errors
/// The list of them is damaged.
pub fn failures(ablation: &Ablation) -> Result<Failures> {
    let remedy = "run `calm ablate` again to write it anew, or remove it";
    let mut failures: Failures = read_json(&ablation.folder.join(FAILURES), remedy)?.unwrap_or_default();
    let autoencoders = ablation.autoencoders.iter().map(of_autoencoder);
    let runs = ablation.runs.iter().map(|run| of_run(ablation, run, None));
    for task in autoencoders.chain(runs) {
        if finished(task.folder, task.config, task.stage) {
            failures.remove(&task.name);
        }
    }
    Ok(failures)
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
    let autoencoders = ablation.autoencoders.iter().map(|a| (&a.folder, &a.config, true));
    let runs = ablation.runs.iter().map(|run| (&run.folder, &run.config, false));
    for (folder, config, is_autoencoder) in autoencoders.chain(runs) {
        let there = folder.join(CONFIG).is_file();
        // What another process works on is as it shall be.
        let claim = Lock::claim_briefly(folder)?;
        let free = matches!(claim, Claim::Ours(_)) && Lock::holder(folder).is_none();
        if there && free {
            settle(folder)?;
        }
        if !there || (free && !is_autoencoder) {
            Run::create(folder, config, Begin::New)?;
        }
    }
    if ablation.folder.join(PLAN).is_file() {
        settle(&ablation.folder)?;
    }
    ablation.save()
}

/// Removes what a process left that was killed while it scored, or with the last checkpoint of a stage. Only of folders that
/// are known to be ours.
fn settle(folder: &Path) -> Result<()> {
    calm_files::settle(folder, false).map_err(|e| Error::io("write", folder, e))?;
    Stage::ALL.iter().try_for_each(|stage| Checkpoints::new(&folder.join(stage.name())).tidy())
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

/// What is left to train: autoencoders and runs, by their place in the plan.
pub fn missing(ablation: &Ablation) -> (Vec<usize>, Vec<usize>) {
    let mut runs = Vec::new();
    for (i, run) in ablation.runs.iter().enumerate() {
        if !trained(&run.folder, &run.config.value, Stage::Lm) {
            runs.push(i);
        }
    }
    let mut autoencoders = Vec::new();
    for (i, autoencoder) in ablation.autoencoders.iter().enumerate() {
        let needed = runs.iter().any(|r| ablation.runs[*r].autoencoder == Some(i));
        if needed && !trained(&autoencoder.folder, &autoencoder.config.value, Stage::Autoencoder) {
            autoencoders.push(i);
        }
    }
    (autoencoders, runs)
}

/// What is left to train, in order: each autoencoder just before the first run that needs it.
fn tasks(ablation: &Ablation) -> Vec<Task<'_>> {
    let (autoencoders, runs) = missing(ablation);
    let mut tasks: Vec<Task<'_>> = Vec::new();
    let mut places = vec![None; ablation.autoencoders.len()];
    for run in runs.iter().map(|i| &ablation.runs[*i]) {
        if let Some(i) = run.autoencoder.filter(|i| autoencoders.contains(i))
            && places[i].is_none()
        {
            places[i] = Some(tasks.len());
            tasks.push(of_autoencoder(&ablation.autoencoders[i]));
        }
        tasks.push(of_run(ablation, run, run.autoencoder.and_then(|i| places[i])));
    }
    tasks
}

fn of_autoencoder(autoencoder: &SharedAutoencoder) -> Task<'_> {
    Task {
        name: format!("autoencoder {}", autoencoder.name),
        folder: &autoencoder.folder,
        config: &autoencoder.config.value,
        stage: Stage::Autoencoder,
        autoencoder: None,
        needs: None,
        awaited: true,
    }
}

fn of_run<'a>(ablation: &'a Ablation, run: &'a PlannedRun, needs: Option<usize>) -> Task<'a> {
    Task {
        name: run.name.clone(),
        folder: &run.folder,
        config: &run.config.value,
        stage: Stage::Lm,
        autoencoder: run.autoencoder.map(|i| ablation.autoencoders[i].folder.as_path()),
        needs,
        awaited: true,
    }
}

/// Trains what is missing, up to `lanes` runs at a time. What another process trains is waited for. Returns the failures, or
/// None if it was stopped.
///
/// # Errors
/// The list of failures cannot be written, or no process can be started.
pub fn execute(ablation: &Ablation, worker: &dyn Worker, lanes: usize) -> Result<Option<Failures>> {
    let path = ablation.folder.join(FAILURES);
    let worked = work(&tasks(ablation), worker, lanes, &|failures| write_json(&path, failures))?;
    let failures = worked.map(|worked| worked.failures);
    if failures.as_ref().is_some_and(Failures::is_empty) {
        let _ = calm_files::remove(&path);
    }
    Ok(failures)
}

/// What is left to train, each by its folder's path in that of the ablation, in groups: autoencoders, runs that need none of
/// these, runs that do.
pub fn jobs(ablation: &Ablation) -> [Vec<String>; 3] {
    let mut groups = [const { Vec::new() }; 3];
    for task in tasks(ablation) {
        let group = match (task.stage, task.needs) {
            (Stage::Autoencoder, _) => 0,
            (Stage::Lm, None) => 1,
            (Stage::Lm, Some(_)) => 2,
        };
        groups[group].push(name_of(ablation, task.folder));
    }
    groups
}

/// Path of a run's folder in that of the ablation, with `/` everywhere.
fn name_of(ablation: &Ablation, folder: &Path) -> String {
    let inner = folder.strip_prefix(&ablation.folder).unwrap_or(folder);
    inner.iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// What has become of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobEnd {
    /// Its run is trained now: here, or by the process that had it.
    Trained,
    /// Its run was trained before.
    WasTrained,
    /// A process of this machine trains it, and is at work.
    AtWork,
    /// Its run is not trained, and another process has it that cannot be seen from here: which, as far as that is known.
    Left(Option<Owner>),
    /// A run failed: this one, or the autoencoder that it needs.
    Failed {
        /// Which.
        run: String,
        /// What is known of why.
        reason: String,
    },
    /// Stopped by the user, with a checkpoint.
    Stopped,
}

/// Trains one of [`jobs`] alone, and before it the autoencoder that it needs, if nobody has. What another process trains is
/// left to it, an autoencoder waited for. Nothing of the ablation itself is written.
///
/// # Errors
/// The ablation has no such run; as [`execute`].
pub fn execute_job(ablation: &Ablation, name: &str, worker: &dyn Worker) -> Result<JobEnd> {
    let is = |folder: &Path| name_of(ablation, folder) == name.trim_end_matches('/');
    let mut tasks = Vec::new();
    if let Some(autoencoder) = ablation.autoencoders.iter().find(|a| is(&a.folder)) {
        tasks.push(Task { awaited: false, ..of_autoencoder(autoencoder) });
    } else if let Some(run) = ablation.runs.iter().find(|run| is(&run.folder)) {
        let autoencoder = run.autoencoder.map(|i| of_autoencoder(&ablation.autoencoders[i]));
        tasks.extend(autoencoder.filter(|a| !trained(a.folder, a.config, a.stage)));
        let needs = (!tasks.is_empty()).then_some(0);
        tasks.push(Task { awaited: false, ..of_run(ablation, run, needs) });
    } else {
        return Err(Error::user(
            format!("{} has no run {name}", ablation.folder.display()),
            "`calm ablate --print-jobs` says which there are",
        ));
    }
    let Some(worked) = work(&tasks, worker, 1, &|_| Ok(()))? else { return Ok(JobEnd::Stopped) };
    // What is needed stands before what needs it: the first one is the cause.
    let cause = tasks.iter().find_map(|task| worked.failures.get_key_value(&task.name));
    if let Some((run, reason)) = cause {
        return Ok(JobEnd::Failed { run: run.clone(), reason: reason.clone() });
    }
    let Some(owner) = worked.left.into_iter().next() else {
        return Ok(if worked.begun > 0 { JobEnd::Trained } else { JobEnd::WasTrained });
    };
    // In this order: it may end in between.
    let at_work = owner.as_ref().is_some_and(Owner::lives_here);
    let done = tasks.last().is_some_and(|task| trained(task.folder, task.config, task.stage));
    Ok(match (done, at_work) {
        (true, _) => JobEnd::Trained,
        (false, true) => JobEnd::AtWork,
        (false, false) => JobEnd::Left(owner),
    })
}
