//! The thread that speaks MPI.
//!
//! Every exchange is begun without waiting and then asked for until it is done: in between this thread hears of processes that
//! failed, and answers those who ask whether it is there. An exchange that was given up is never touched again, and its memory
//! never freed: MPI may still write there.

use std::mem::forget;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use ::mpi::Threading;
use ::mpi::collective::SystemOperation;
use ::mpi::environment::{Universe, initialize_with_threading, processor_name};
use ::mpi::point_to_point::MatchedReceiveVec;
use ::mpi::request::{Request, StaticScope};
use ::mpi::topology::SimpleCommunicator;
use ::mpi::traits::{Communicator, CommunicatorCollectives, Destination, Equivalence, Source};

use crate::collective::{LOST, Patience, failure, missing};
use crate::error::{Error, Result};
use crate::world::World;

/// What this thread is asked to do.
pub(super) enum Job {
    /// Sums over all.
    Sum(Vec<f32>),
    /// See [`crate::Collective::all_to_all`].
    AllToAll(Vec<f32>),
    /// See [`crate::Collective::reduce_scatter`].
    ReduceScatter(Vec<f32>),
    /// See [`crate::Collective::all_gather`].
    AllGather(Vec<f32>),
    /// See [`crate::Collective::gather`].
    Gather { own: Vec<u8>, what: String, patience: Patience },
    /// This process failed by itself.
    Failed(Error),
    /// An exchange that did not go by MPI failed: who does not answer any more?
    Explain { error: Error, what: String },
    /// The end, together.
    Leave,
    /// The end of all, at once.
    Abort(i32),
}

/// What it answers.
pub(super) enum Answer {
    Values(Vec<f32>),
    Records(Vec<Vec<u8>>),
    Error(Error),
    /// Somebody else says it; nobody came to end this process within the time limit otherwise.
    Heard,
    /// Done, or: this process has to say it itself.
    Done,
}

/// What it knows from the beginning.
pub(super) struct Setting {
    pub world: World,
    pub limit: Duration,
    /// The last step that was finished.
    pub step: Arc<AtomicU64>,
}

/// Kinds of messages.
const FAILED: i32 = 101;
const HEARD: i32 = 102;
const ASK: i32 = 103;
const ANSWER: i32 = 104;
const TAKEN: i32 = 105;

/// How long an answer takes at most, of a process that is there.
const ANSWERS_WITHIN: Duration = Duration::from_secs(3);
/// How long a process that failed looks whether another one speaks in its place already.
const LATE: Duration = Duration::from_millis(200);
/// How often this thread looks for messages while it has nothing to do.
const IDLE: Duration = Duration::from_millis(10);
/// And while it waits for an exchange.
const BUSY: Duration = Duration::from_millis(1);
/// Bytes of a record that go with its length in one exchange.
const FRAME: usize = 252;

struct Worker {
    comm: SimpleCommunicator,
    rank: usize,
    setting: Setting,
    hosts: Vec<String>,
    /// Exchanges begun.
    entered: u64,
    /// Who failed, and of what.
    heard: Option<(usize, Error)>,
    /// Whether somebody speaks in this one's place, which did not answer: it was stopped, and goes on now.
    taken: bool,
}

/// Meets the others and does what comes, until the end.
pub(super) fn run(
    setting: Setting,
    jobs: &Receiver<(Job, Sender<Result<Answer>>)>,
    ready: &Sender<Result<Vec<String>>>,
) {
    let (universe, mut worker) = match meet(setting) {
        Ok(met) => met,
        Err(e) => {
            let _ = ready.send(Err(e));
            return;
        }
    };
    let host = processor_name().unwrap_or_else(|_| "?".into());
    let hosts = worker.gather(host.into_bytes(), "the meeting", Patience::Limited).map(|hosts| {
        worker.hosts = hosts.iter().map(|host| String::from_utf8_lossy(host).into_owned()).collect();
        worker.hosts.clone()
    });
    let _ = ready.send(hosts);
    loop {
        let (job, answer) = match jobs.recv_timeout(IDLE) {
            Ok(job) => job,
            Err(RecvTimeoutError::Timeout) => {
                worker.listen();
                continue;
            }
            // Nobody asked for the end: MPI must see that this process is gone, not that it left.
            Err(RecvTimeoutError::Disconnected) => {
                forget(universe);
                return;
            }
        };
        let leaves = matches!(job, Job::Leave);
        let done = worker.work(job);
        if leaves && done.is_ok() {
            // Before the answer: who has it may end the process, and MPI has to know first that it left.
            drop(worker);
            drop(universe);
            let _ = answer.send(done);
            return;
        }
        let _ = answer.send(done);
    }
}

fn meet(setting: Setting) -> Result<(Universe, Worker)> {
    let (universe, _) = initialize_with_threading(Threading::Funneled)
        .ok_or_else(|| Error::new("MPI was started before in this process", ""))?;
    let comm = universe.world();
    let (rank, size) = (comm.rank() as usize, comm.size() as usize);
    let world = &setting.world;
    if (rank, size) != (world.rank, world.size) {
        let what = format!("{world}, but MPI says rank {rank} of {size}");
        let remedy = "start with the mpirun of the MPI that this program was built with; `srun` needs --mpi=pmix for Open MPI";
        // Such a process leaves nobody waiting.
        drop(universe);
        return Err(Error::new(what, remedy));
    }
    let worker =
        Worker { comm, rank, setting, hosts: vec!["?".into(); size], entered: 0, heard: None, taken: false };
    Ok((universe, worker))
}

impl Worker {
    fn size(&self) -> usize {
        self.setting.world.size
    }

    fn work(&mut self, job: Job) -> Result<Answer> {
        match job {
            Job::Sum(values) => {
                let n = values.len();
                let start = |comm: &SimpleCommunicator, send: &'static [f32], receive: &'static mut [f32]| {
                    comm.immediate_all_reduce_into(StaticScope, send, receive, SystemOperation::sum())
                };
                self.exchange(values, n, start, "the sum of gradients", Patience::Limited).map(Answer::Values)
            }
            Job::AllToAll(values) => {
                let n = values.len();
                let start = |comm: &SimpleCommunicator, send: &'static [f32], receive: &'static mut [f32]| {
                    comm.immediate_all_to_all_into(StaticScope, send, receive)
                };
                self.exchange(values, n, start, "the exchange of gradients", Patience::Limited)
                    .map(Answer::Values)
            }
            Job::ReduceScatter(values) => {
                let n = values.len() / self.size();
                let start = |comm: &SimpleCommunicator, send: &'static [f32], receive: &'static mut [f32]| {
                    let sum = SystemOperation::sum();
                    comm.immediate_reduce_scatter_block_into(StaticScope, send, receive, sum)
                };
                self.exchange(values, n, start, "the sum of gradients", Patience::Limited).map(Answer::Values)
            }
            Job::AllGather(values) => {
                let n = values.len() * self.size();
                let start = |comm: &SimpleCommunicator, send: &'static [f32], receive: &'static mut [f32]| {
                    comm.immediate_all_gather_into(StaticScope, send, receive)
                };
                self.exchange(values, n, start, "the exchange of sums", Patience::Limited).map(Answer::Values)
            }
            Job::Gather { own, what, patience } => self.gather(own, &what, patience).map(Answer::Records),
            Job::Failed(error) => Ok(if self.tell(&error) { Answer::Heard } else { Answer::Done }),
            Job::Explain { error, what } => Ok(Answer::Error(self.explained(error, &what))),
            Job::Leave => self.gather(Vec::new(), "the end", Patience::Limited).map(|_| Answer::Done),
            Job::Abort(code) => self.comm.abort(code),
        }
    }

    /// Everybody's bytes: short ones in one exchange, longer ones in a second.
    fn gather(&mut self, own: Vec<u8>, what: &str, patience: Patience) -> Result<Vec<Vec<u8>>> {
        let mut frame = (own.len() as u32).to_le_bytes().to_vec();
        frame.extend(&own[..own.len().min(FRAME)]);
        frame.resize(4 + FRAME, 0);
        let frames = self.all_gather(frame, what, patience)?;
        let length = |frame: &[u8]| u32::from_le_bytes([frame[0], frame[1], frame[2], frame[3]]) as usize;
        let frames: Vec<&[u8]> = frames.chunks(4 + FRAME).collect();
        let longest = frames.iter().map(|frame| length(frame)).max().unwrap_or(0);
        if longest <= FRAME {
            return Ok(frames.iter().map(|frame| frame[4..4 + length(frame)].to_vec()).collect());
        }
        let mut padded = own;
        padded.resize(longest, 0);
        let all = self.all_gather(padded, what, patience)?;
        let cut = |(frame, all): (&&[u8], &[u8])| all[..length(frame)].to_vec();
        Ok(frames.iter().zip(all.chunks(longest)).map(cut).collect())
    }

    fn all_gather(&mut self, own: Vec<u8>, what: &str, patience: Patience) -> Result<Vec<u8>> {
        let n = own.len() * self.size();
        let start = |comm: &SimpleCommunicator, send: &'static [u8], receive: &'static mut [u8]| {
            comm.immediate_all_gather_into(StaticScope, send, receive)
        };
        self.exchange(own, n, start, what, patience)
    }

    /// One exchange, from the first word to the end.
    fn exchange<T: Equivalence + Clone + Default + 'static>(
        &mut self,
        send: Vec<T>,
        receive: usize,
        start: impl FnOnce(&SimpleCommunicator, &'static [T], &'static mut [T]) -> Request<'static, [T]>,
        what: &str,
        patience: Patience,
    ) -> Result<Vec<T>> {
        if let Some((rank, error)) = &self.heard {
            return Err(failure(&self.hosts, *rank, error.clone()));
        }
        self.entered += 1;
        let send = Box::into_raw(send.into_boxed_slice());
        let receive = Box::into_raw(vec![T::default(); receive].into_boxed_slice());
        // SAFETY: both are whole and lent to MPI alone. They are taken back below when it is done with them, and never
        // otherwise: where the wait is given up they stay as they are to the end of the process.
        let request = unsafe { start(&self.comm, &*send, &mut *receive) };
        self.wait(request, what, patience)?;
        // SAFETY: from `Box::into_raw` above; the request is complete, so MPI knows them no more.
        let (_, received) = unsafe { (Box::from_raw(send), Box::from_raw(receive)) };
        Ok(received.into_vec())
    }

    /// Waits for an exchange; it ends also if others do not come.
    fn wait<T>(&mut self, mut request: Request<'static, [T]>, what: &str, patience: Patience) -> Result<()> {
        let (mut since, mut listened, mut turns) = (Instant::now(), Instant::now(), 0u32);
        let mut over = false;
        loop {
            request = match request.test() {
                Ok(_) => return Ok(()),
                Err(request) => request,
            };
            turns = turns.saturating_add(1);
            if turns < 500 {
                std::thread::yield_now();
                continue;
            }
            std::thread::sleep(Duration::from_micros(30));
            if listened.elapsed() >= BUSY {
                self.listen();
                listened = Instant::now();
                if let Some((rank, error)) = &self.heard {
                    forget(request);
                    return Err(failure(&self.hosts, *rank, error.clone()));
                }
            }
            if since.elapsed() < self.setting.limit {
                continue;
            }
            let there = self.who_is_there();
            let others = || (0..there.len()).filter(|rank| *rank != self.rank);
            let silent: Vec<_> = others().filter(|rank| there[*rank].is_none()).collect();
            let behind: Vec<_> =
                others().filter(|rank| there[*rank].is_some_and(|entered| entered < self.entered)).collect();
            let waits_on = patience == Patience::WhileTheyAnswer || behind.is_empty();
            if silent.is_empty() && waits_on && !over {
                // All have come to this exchange in the meantime, or may take as long as they need.
                over = behind.is_empty();
                since = Instant::now();
                continue;
            }
            let absent: Vec<_> = match silent.as_slice() {
                [] if behind.is_empty() => others().map(|rank| (rank, Some(true))).collect(),
                [] => behind.into_iter().map(|rank| (rank, Some(true))).collect(),
                silent => silent.iter().map(|rank| (*rank, Some(false))).collect(),
            };
            forget(request);
            let step = self.setting.step.load(Ordering::Relaxed);
            return Err(missing(&self.hosts, &absent, what, step, Some(self.setting.limit)));
        }
    }

    /// An error of an exchange that did not go by MPI, with those who do not answer any more.
    fn explained(&mut self, error: Error, what: &str) -> Error {
        if let Some((rank, error)) = &self.heard {
            return failure(&self.hosts, *rank, error.clone());
        }
        let there = self.who_is_there();
        let silent = there.iter().enumerate().filter(|(_, there)| there.is_none());
        let silent: Vec<_> = silent.map(|(rank, _)| (rank, Some(false))).collect();
        if silent.is_empty() {
            return error;
        }
        let step = self.setting.step.load(Ordering::Relaxed);
        let limit = (!error.what.starts_with(LOST)).then_some(self.setting.limit);
        missing(&self.hosts, &silent, what, step, limit)
    }

    /// Asks all others whether they are there. By rank: the exchanges that each has begun; none of one that does not answer.
    fn who_is_there(&mut self) -> Vec<Option<u64>> {
        let mut there = vec![None; self.size()];
        there[self.rank] = Some(self.entered);
        (0..self.size()).filter(|rank| *rank != self.rank).for_each(|rank| self.send(rank, ASK, Vec::new()));
        let asked = Instant::now();
        while asked.elapsed() < ANSWERS_WITHIN && there.contains(&None) {
            while let Some((rank, bytes)) = self.receive(ANSWER) {
                let entered = bytes.try_into().map_or(0, u64::from_le_bytes);
                there[rank] = Some(entered);
            }
            self.listen();
            std::thread::sleep(BUSY);
        }
        there
    }

    /// Hears of failures, and answers those who ask.
    fn listen(&mut self) {
        while let Some((rank, _)) = self.receive(ASK) {
            self.send(rank, ANSWER, self.entered.to_le_bytes().to_vec());
        }
        while let Some((rank, bytes)) = self.receive(FAILED) {
            let error = serde_json::from_slice(&bytes).unwrap_or_else(|_| {
                Error::new("it failed, and could not say of what", "look at its own output")
            });
            self.heard.get_or_insert((rank, error));
            self.send(rank, HEARD, Vec::new());
        }
        while self.receive(TAKEN).is_some() {
            self.taken = true;
        }
    }

    /// Tells whoever speaks for all what this process failed of, and waits for the end. False: this process speaks.
    fn tell(&mut self, error: &Error) -> bool {
        let began = Instant::now();
        while began.elapsed() < LATE && !self.taken {
            self.listen();
            std::thread::sleep(BUSY);
        }
        if self.taken {
            return true;
        }
        let mut speaker = 0;
        while speaker != self.rank {
            self.send(speaker, FAILED, serde_json::to_vec(error).unwrap_or_default());
            let told = Instant::now();
            let mut heard = false;
            // The end comes from outside.
            while told.elapsed() < if heard { self.setting.limit + ANSWERS_WITHIN } else { ANSWERS_WITHIN } {
                heard |= self.receive(HEARD).is_some();
                self.listen();
                std::thread::sleep(BUSY);
            }
            if heard {
                return false;
            }
            self.send(speaker, TAKEN, Vec::new());
            let there = self.who_is_there();
            let next = there.iter().position(Option::is_some).unwrap_or(self.rank);
            // Who answers now and did not before has had its chance.
            speaker = if next > speaker { next } else { self.rank };
        }
        false
    }

    /// A message on its way; nobody waits for it here.
    fn send(&self, rank: usize, kind: i32, bytes: Vec<u8>) {
        let bytes: &'static [u8] = Box::leak(bytes.into_boxed_slice());
        let to = self.comm.process_at_rank(rank as i32);
        // Small ones are gone at once; they are few, and live to the end of the process.
        forget(to.immediate_send_with_tag(StaticScope, bytes, kind));
    }

    /// A message of a kind, if one has come: from whom, and what.
    fn receive(&self, kind: i32) -> Option<(usize, Vec<u8>)> {
        let message = self.comm.any_process().immediate_matched_probe_with_tag(kind)?;
        let (bytes, status) = message.matched_receive_vec::<u8>();
        Some((status.source_rank() as usize, bytes))
    }
}
