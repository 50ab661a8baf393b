//! Processes joined by MPI.
//!
//! All calls of MPI come from one thread, which also answers the others while this process computes: so a process that does not
//! answer is gone or stopped, and one that answers is at work.

mod worker;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use crate::collective::{Collective, Patience, Pending};
use crate::error::{Error, Result};
use crate::world::World;
use worker::{Answer, Job};

/// Values that are summed at a time: while one part is on its way the next is copied.
const PART: usize = 1 << 20;

/// This process among others that MPI joins.
#[derive(Debug)]
pub(crate) struct Mpi {
    world: World,
    hosts: Vec<String>,
    jobs: Sender<(Job, Sender<Result<Answer>>)>,
    step: Arc<AtomicU64>,
}

impl Mpi {
    /// Starts MPI and meets the others.
    pub(crate) fn start(world: World, limit: Duration) -> Result<Self> {
        let (jobs, to_do) = channel();
        let step = Arc::new(AtomicU64::new(0));
        let worker = worker::Setting { world: world.clone(), limit, step: Arc::clone(&step) };
        let (ready, started) = channel();
        let work = move || worker::run(worker, &to_do, &ready);
        std::thread::Builder::new()
            .name("mpi".into())
            .spawn(work)
            .map_err(|e| Error::new(format!("no thread for MPI: {e}"), "allow more threads (`ulimit -u`)"))?;
        let hosts = started.recv().unwrap_or_else(|_| Err(gone()))?;
        Ok(Self { world, hosts, jobs, step })
    }

    fn begin(&self, job: Job) -> Receiver<Result<Answer>> {
        let (answer, answered) = channel();
        // Where the thread is gone nobody answers, which is an error below.
        let _ = self.jobs.send((job, answer));
        answered
    }

    fn ask(&self, job: Job) -> Result<Answer> {
        self.begin(job).recv().unwrap_or_else(|_| Err(gone()))
    }

    fn values(&self, job: Job) -> Result<Vec<f32>> {
        match self.ask(job)? {
            Answer::Values(values) => Ok(values),
            _ => Err(gone()),
        }
    }
}

fn gone() -> Error {
    Error::new(
        "the connection with the other processes has ended",
        "go on from the last checkpoint with --resume",
    )
}

impl Collective for Mpi {
    fn world(&self) -> &World {
        &self.world
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let begun: Vec<_> = values.chunks(PART).map(|part| self.begin(Job::Sum(part.to_vec()))).collect();
        for (part, answered) in values.chunks_mut(PART).zip(begun) {
            match answered.recv().unwrap_or_else(|_| Err(gone()))? {
                Answer::Values(sum) => part.copy_from_slice(&sum),
                _ => return Err(gone()),
            }
        }
        Ok(())
    }

    fn begin_sum(&self, values: Vec<f32>) -> Pending {
        let answered = self.begin(Job::Sum(values));
        Pending::new(move || match answered.recv().unwrap_or_else(|_| Err(gone()))? {
            Answer::Values(sum) => Ok(sum),
            _ => Err(gone()),
        })
    }

    fn all_to_all(&self, values: &[f32]) -> Result<Vec<f32>> {
        self.values(Job::AllToAll(values.to_vec()))
    }

    fn reduce_scatter(&self, values: &[f32]) -> Result<Vec<f32>> {
        self.values(Job::ReduceScatter(values.to_vec()))
    }

    fn all_gather(&self, own: &[f32]) -> Result<Vec<f32>> {
        self.values(Job::AllGather(own.to_vec()))
    }

    fn gather(&self, own: &[u8], what: &str, patience: Patience) -> Result<Vec<Vec<u8>>> {
        match self.ask(Job::Gather { own: own.to_vec(), what: what.to_owned(), patience })? {
            Answer::Records(all) => Ok(all),
            _ => Err(gone()),
        }
    }

    fn explained(&self, error: Error, what: &str) -> Error {
        match self.ask(Job::Explain { error: error.clone(), what: what.to_owned() }) {
            Ok(Answer::Error(error)) => error,
            _ => error,
        }
    }

    fn finished_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    fn failed(&self, error: &Error) -> bool {
        !matches!(self.ask(Job::Failed(error.clone())), Ok(Answer::Heard))
    }

    fn abort(&self, code: i32) -> ! {
        let _ = self.ask(Job::Abort(code));
        std::process::exit(code)
    }

    fn leave(&self) -> Result<()> {
        self.ask(Job::Leave).map(|_| ())
    }
}
