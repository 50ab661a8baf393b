//! Trainings in the order in which they may begin: several at a time, each after what it needs, none twice, whoever else works
//! on the same folders.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use calm_run::config::RunConfig;
use calm_run::lock::Owner;
use calm_run::{Claim, Error, Lock, Result, Stage};

use crate::done::trained;

/// How often somebody who waits looks whether another process has ended, and whether to stop.
const GLANCE: Duration = Duration::from_millis(200);

/// A process to be started.
#[derive(Clone, Copy, Debug)]
pub struct Job<'a> {
    /// What is trained: `k4-seed1`, `autoencoder k4`.
    pub name: &'a str,
    /// The same with its number: `k4-seed1 (3 of 15)`.
    pub title: &'a str,
    /// Folder of the run; its `config.yaml` is there.
    pub folder: &'a Path,
    /// Folder of the run whose autoencoder it takes.
    pub autoencoder: Option<&'a Path>,
    /// The stage that it ends with; an autoencoder is trained and nothing else.
    pub stage: Stage,
    /// Steps of that stage.
    pub steps: u64,
    /// Which of those that are trained at a time, from 0.
    pub lane: usize,
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

/// Trains runs, several at a time.
pub trait Worker: Sync {
    /// Trains one, or goes on with it.
    ///
    /// # Errors
    /// No process can be started, or the folder cannot be written. A training that fails is an [`Outcome`].
    fn train(&self, job: &Job<'_>) -> Result<Outcome>;

    /// Whether the user asked to stop.
    fn stopped(&self) -> bool;

    /// Another process trains this one, and is waited for or not; heard of now and then until it has ended.
    fn taken(&self, name: &str, owner: Option<Owner>, awaited: bool);
}

/// Why runs failed, by name.
pub type Failures = BTreeMap<String, String>;

/// A training that is left to do.
#[derive(Clone, Debug)]
pub(crate) struct Task<'a> {
    /// Its name, for people and in the list of failures: `k4-seed1`, `autoencoder k4`.
    pub name: String,
    /// Folder of its run.
    pub folder: &'a Path,
    /// Configuration of its run.
    pub config: &'a RunConfig,
    /// The stage that it ends with.
    pub stage: Stage,
    /// Folder of the run whose autoencoder it takes.
    pub autoencoder: Option<&'a Path>,
    /// Place of the task that trains that autoencoder, if it is to be trained; before this one.
    pub needs: Option<usize>,
    /// Whether another process that trains it is waited for; else it is left to that one.
    pub awaited: bool,
}

/// What has become of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It can begin, as soon as what it needs is done.
    Open,
    /// Another process had it at this time.
    Taken(Instant),
    /// It is trained here.
    Working,
    Done,
    /// Another process trains it.
    Left,
    Failed,
}

struct Progress {
    states: Vec<State>,
    /// Trainings that were begun here.
    begun: usize,
    /// Who has what is left to others.
    left: Vec<Option<Owner>>,
    failures: Failures,
    stopped: bool,
    /// What ends all.
    error: Option<Error>,
}

/// What has become of all tasks.
#[derive(Debug, Default)]
pub(crate) struct Worked {
    /// Trainings that were begun here.
    pub begun: usize,
    /// Who has what was left to others, as far as that is known.
    pub left: Vec<Option<Owner>>,
    /// What failed.
    pub failures: Failures,
}

struct Queue<'a> {
    tasks: &'a [Task<'a>],
    worker: &'a dyn Worker,
    save: &'a (dyn Fn(&Failures) -> Result<()> + Sync),
    progress: Mutex<Progress>,
    changed: Condvar,
}

/// Does all tasks, up to `lanes` at a time; `save` hears of each failure at once. Returns what has become of them, or None if
/// it was stopped. A folder that cannot be claimed is the failure of its task.
///
/// # Errors
/// The failures cannot be saved, or no process can be started: what has begun is finished before.
pub(crate) fn work(
    tasks: &[Task<'_>],
    worker: &dyn Worker,
    lanes: usize,
    save: &(dyn Fn(&Failures) -> Result<()> + Sync),
) -> Result<Option<Worked>> {
    let progress = Progress {
        states: vec![State::Open; tasks.len()],
        begun: 0,
        left: Vec::new(),
        failures: Failures::new(),
        stopped: false,
        error: None,
    };
    let queue = Queue { tasks, worker, save, progress: Mutex::new(progress), changed: Condvar::new() };
    std::thread::scope(|scope| {
        let queue = &queue;
        for lane in 1..lanes.min(tasks.len()) {
            // One that cannot be started costs time, no training.
            let thread = std::thread::Builder::new().name(format!("lane {lane}"));
            let _ = thread.spawn_scoped(scope, move || queue.lane(lane));
        }
        queue.lane(0);
    });
    let progress = queue.progress.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(e) = progress.error {
        return Err(e);
    }
    let Progress { begun, left, failures, stopped, .. } = progress;
    Ok((!stopped).then_some(Worked { begun, left, failures }))
}

impl Queue<'_> {
    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one task after another, until none is left that it could do.
    fn lane(&self, lane: usize) {
        while let Some(at) = self.next() {
            let done = self.train(at, lane).and_then(|state| self.settle(at, state));
            if let Err(e) = done {
                self.lock().error.get_or_insert(e);
            }
            self.changed.notify_all();
        }
    }

    /// The next task, as soon as there is one; none if nothing is left to begin.
    fn next(&self) -> Option<usize> {
        let mut progress = self.lock();
        loop {
            let left = |state: &State| matches!(state, State::Open | State::Taken(_));
            if progress.error.is_some() || !progress.states.iter().any(left) {
                return None;
            }
            if progress.stopped || self.worker.stopped() {
                progress.stopped = true;
                return None;
            }
            let ready = |at: &usize| {
                let needed = self.tasks[*at].needs.map(|needed| progress.states[needed]);
                let again = match progress.states[*at] {
                    State::Open => true,
                    State::Taken(since) => since.elapsed() >= GLANCE,
                    _ => false,
                };
                again && needed.is_none_or(|state| state == State::Done)
            };
            if let Some(at) = (0..self.tasks.len()).find(ready) {
                progress.states[at] = State::Working;
                return Some(at);
            }
            progress = self.changed.wait_timeout(progress, GLANCE).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Trains a task, unless another process does or did.
    fn train(&self, at: usize, lane: usize) -> Result<State> {
        let task = &self.tasks[at];
        let taken = |owner: Option<Owner>| {
            if !task.awaited {
                self.lock().left.push(owner.clone());
            }
            self.worker.taken(&task.name, owner, task.awaited);
            if task.awaited { State::Taken(Instant::now()) } else { State::Left }
        };
        let _claim = match Lock::claim(task.folder) {
            Ok(Claim::Ours(claim)) => claim,
            Ok(Claim::Theirs(owner)) => return Ok(taken(owner)),
            Err(e) => return Ok(self.failed(at, e.to_string())),
        };
        // One that was started by hand, or outlives an ablation that was killed and writes its checkpoint.
        if let Some(owner) = Lock::holder(task.folder) {
            return Ok(taken(owner));
        }
        if trained(task.folder, task.config, task.stage) {
            return Ok(State::Done);
        }
        let number = {
            let mut progress = self.lock();
            progress.begun += 1;
            progress.begun
        };
        let job = Job {
            name: &task.name,
            title: &format!("{} ({number} of {})", task.name, self.tasks.len()),
            folder: task.folder,
            autoencoder: task.autoencoder,
            stage: task.stage,
            steps: task.config.train.stage(task.stage).map_or(0, |settings| settings.steps),
            lane,
        };
        match self.worker.train(&job)? {
            Outcome::Done => Ok(State::Done),
            Outcome::Stopped => {
                self.lock().stopped = true;
                Ok(State::Open)
            }
            Outcome::Failed(reason) => Ok(self.failed(at, reason)),
        }
    }

    fn failed(&self, at: usize, reason: String) -> State {
        self.lock().failures.insert(self.tasks[at].name.clone(), reason);
        State::Failed
    }

    /// Writes down what has become of a task: what needs it fails with it.
    fn settle(&self, at: usize, state: State) -> Result<()> {
        let mut progress = self.lock();
        progress.states[at] = state;
        if state != State::Failed {
            return Ok(());
        }
        for (other, task) in self.tasks.iter().enumerate().filter(|(_, task)| task.needs == Some(at)) {
            progress.states[other] = State::Failed;
            progress.failures.insert(task.name.clone(), format!("{} failed", self.tasks[at].name));
        }
        (self.save)(&progress.failures)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use calm_config::{ConfigText, load};

    /// Notes what it trains, and fails, stops or waits as it is told.
    #[derive(Default)]
    struct Told {
        fails: &'static str,
        stops: &'static str,
        log: Mutex<Vec<String>>,
        at_work: AtomicUsize,
        most: AtomicUsize,
    }

    impl Told {
        fn log(&self, text: String) {
            self.log.lock().unwrap().push(text);
        }
    }

    impl Worker for Told {
        fn train(&self, job: &Job<'_>) -> Result<Outcome> {
            let now = self.at_work.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            self.log(format!("+{}", job.name));
            std::thread::sleep(Duration::from_millis(100));
            self.log(format!("-{}", job.name));
            self.at_work.fetch_sub(1, Ordering::SeqCst);
            Ok(match job.name {
                name if name == self.fails => Outcome::Failed("no luck".into()),
                name if name == self.stops => Outcome::Stopped,
                _ => Outcome::Done,
            })
        }

        fn stopped(&self) -> bool {
            false
        }

        fn taken(&self, name: &str, _: Option<Owner>, _: bool) {
            self.log(format!("taken {name}"));
        }
    }

    /// Two autoencoders, each with two runs, and two runs without, in this order: a, a1, b, b1, c1, a2, b2, c2.
    struct Plan {
        dir: tempfile::TempDir,
        config: RunConfig,
        folders: Vec<PathBuf>,
    }

    const NAMES: [&str; 8] = ["a", "a1", "b", "b1", "c1", "a2", "b2", "c2"];

    impl Plan {
        fn new() -> Self {
            let text = "version: 1\nmodel: { baseline: {} }\ntrain:\n  lm: { steps: 10, batch_rows: 2, context: 32, \
                        learning_rate: 1e-3 }\n";
            let config = load::<RunConfig>(ConfigText::new("a.yaml", text), &[]).unwrap().value;
            let dir = tempfile::tempdir().unwrap();
            let folders = NAMES.map(|name| dir.path().join(name)).to_vec();
            Self { dir, config, folders }
        }

        fn tasks(&self) -> Vec<Task<'_>> {
            let needs = |name: &str| match name.as_bytes() {
                [b'a', _] => Some(0),
                [b'b', _] => Some(2),
                _ => None,
            };
            let mut tasks = Vec::new();
            for (name, folder) in NAMES.iter().zip(&self.folders) {
                tasks.push(Task {
                    name: (*name).to_owned(),
                    folder,
                    config: &self.config,
                    stage: if name.len() == 1 { Stage::Autoencoder } else { Stage::Lm },
                    autoencoder: None,
                    needs: needs(name),
                    awaited: true,
                });
            }
            tasks
        }

        fn work(&self, worker: &Told, lanes: usize) -> (Option<Failures>, Vec<Failures>) {
            let saved = Mutex::new(Vec::new());
            let save = |failures: &Failures| {
                saved.lock().unwrap().push(failures.clone());
                Ok(())
            };
            let done = work(&self.tasks(), worker, lanes, &save).unwrap();
            (done.map(|worked| worked.failures), saved.into_inner().unwrap())
        }
    }

    fn begun(worker: &Told) -> Vec<String> {
        let log = worker.log.lock().unwrap();
        log.iter().filter_map(|line| line.strip_prefix('+').map(str::to_owned)).collect()
    }

    #[test]
    fn one_lane_does_all_in_order_and_several_keep_what_is_needed_first() {
        let plan = Plan::new();
        let one = Told::default();
        assert_eq!(plan.work(&one, 1), (Some(Failures::new()), vec![]));
        assert_eq!(begun(&one), NAMES);
        for lanes in [2, 3, 20] {
            let several = Told::default();
            assert_eq!(plan.work(&several, lanes).0, Some(Failures::new()));
            let log = several.log.lock().unwrap().clone();
            let at = |text: &str| log.iter().position(|line| line == text).unwrap();
            for (run, autoencoder) in [("a1", "a"), ("a2", "a"), ("b1", "b"), ("b2", "b")] {
                assert!(at(&format!("+{run}")) > at(&format!("-{autoencoder}")), "{log:?}");
            }
            assert_eq!(log.len(), 16, "each once: {log:?}");
            let most = several.most.load(Ordering::SeqCst);
            assert!(most > 1 && most <= lanes, "{most} at a time of {lanes}");
        }
    }

    #[test]
    fn what_fails_takes_along_what_needs_it_and_nothing_else() {
        let plan = Plan::new();
        let worker = Told { fails: "a", ..Told::default() };
        let (failures, saved) = plan.work(&worker, 2);
        let reasons = BTreeMap::from(
            [("a", "no luck"), ("a1", "a failed"), ("a2", "a failed")]
                .map(|(n, r)| (n.to_owned(), r.to_owned())),
        );
        assert_eq!((failures, saved), (Some(reasons.clone()), vec![reasons]));
        assert_eq!(begun(&worker).len(), 6);
    }

    #[test]
    fn a_folder_that_cannot_be_claimed_is_the_failure_of_its_task_alone() {
        let mut plan = Plan::new();
        let file = plan.dir.path().join("file");
        std::fs::write(&file, "no folder").unwrap();
        plan.folders[4] = file.join("c1");
        let worker = Told::default();
        let (failures, saved) = plan.work(&worker, 2);
        let failed: Vec<String> = failures.unwrap().into_keys().collect();
        assert_eq!((failed, saved.len()), (vec!["c1".to_owned()], 1));
        assert_eq!(begun(&worker).len(), NAMES.len() - 1);
    }

    #[test]
    fn one_that_is_stopped_stops_all() {
        let plan = Plan::new();
        let worker = Told { stops: "b", ..Told::default() };
        assert_eq!(plan.work(&worker, 2).0, None);
        assert!(begun(&worker).len() < NAMES.len());
    }

    #[test]
    fn what_another_process_has_is_waited_for_or_left_to_it_while_others_are_trained() {
        let plan = Plan::new();
        let Claim::Ours(claim) = Lock::claim(&plan.dir.path().join("c1")).unwrap() else {
            panic!("it is free")
        };
        let end = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_secs(5));
            drop(claim);
        });
        let worker = Told::default();
        assert_eq!(plan.work(&worker, 2).0, Some(Failures::new()));
        end.join().unwrap();
        assert_eq!(begun(&worker).last().map(String::as_str), Some("c1"));
        let _held = Lock::claim(&plan.dir.path().join("c1")).unwrap();
        let tasks: Vec<Task<'_>> =
            plan.tasks().into_iter().map(|task| Task { awaited: false, ..task }).collect();
        let worker = Told::default();
        let worked = work(&tasks, &worker, 1, &|_| Ok(())).unwrap().unwrap();
        assert_eq!((worked.failures, worked.begun), (Failures::new(), 7));
        let left: Vec<_> = worked.left.into_iter().flatten().map(|owner| owner.process).collect();
        assert_eq!(left, [std::process::id()]);
        assert_eq!(begun(&worker), ["a", "a1", "b", "b1", "a2", "b2", "c2"]);
        assert!(worker.log.lock().unwrap().contains(&"taken c1".to_owned()));
    }
}
