//! Processes of one training that this program has started: it waits for them, hands a stop on, and leaves none behind.

use std::io::{Error, ErrorKind, Result as IoResult};
use std::net::TcpListener;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Result;
use calm_parallel::meeting;

use crate::error::Hinted;
use crate::stop::{LEASH, Last, Stop};
use crate::ui::Printer;

/// Between two looks at them.
const GLANCE: Duration = Duration::from_millis(20);
/// How long the others have when one has failed: they hear of it, and say who is missing, or wait in vain.
const AFTER_A_FAILURE: Duration = Duration::from_secs(10);

/// Processes that were started: `mpirun`, or every one by itself.
pub struct Started {
    /// Whether the only child is one that has started the others.
    mpirun: bool,
    children: Vec<Child>,
    /// Its end is what the first of them hears as the wish to stop.
    leash: Option<ChildStdin>,
}

impl Started {
    /// Each with a GPU: they meet at a port of this machine.
    ///
    /// # Errors
    /// No port, no process.
    pub fn by_itself(number: usize, printer: &Printer) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let port =
            port.map_err(|e| Hinted::new(format!("no port to meet at: {e}"), "see `ip address`: is lo up?"))?;
        let token = format!("{} {:?}", std::process::id(), std::time::SystemTime::now());
        let threads = threads(number);
        printer.note(format!("{number} processes with a GPU and {threads} threads each"));
        let mut started = Self { mpirun: false, children: Vec::new(), leash: None };
        for rank in 0..number {
            let mut command = this_program(threads)?;
            command.env("RANK", rank.to_string()).env("LOCAL_RANK", rank.to_string());
            command.env("WORLD_SIZE", number.to_string());
            command.env(meeting::POINT, port.to_string()).env(meeting::TOKEN, &token);
            let stdin = if rank == 0 { Stdio::piped() } else { Stdio::null() };
            let child = command.stdin(stdin).spawn();
            let mut child = child.map_err(|e| {
                started.end();
                Hinted::new(format!("cannot start process {rank} of {number}: {e}"), "see `ulimit -u`")
            })?;
            started.leash = started.leash.take().or_else(|| child.stdin.take());
            started.children.push(child);
        }
        Ok(started)
    }

    /// On CPUs, joined by MPI: `mpirun` with this program.
    ///
    /// # Errors
    /// A build without MPI; no mpirun here.
    pub fn by_mpi(number: usize, printer: &Printer) -> Result<Self> {
        if !calm_parallel::has_mpi() {
            return Err(Hinted::new(
                format!(
                    "--processes {number}: this build has nothing that joins processes on CPUs: the feature `mpi` is missing"
                ),
                "build with `cargo build --release -p calm-cli --features mpi` (needs libopenmpi-dev and libclang-dev); GPUs are \
                 joined by the feature `nccl` alone",
            )
            .into());
        }
        let threads = threads(number);
        let own = this_program(threads)?;
        let mut command = Command::new("mpirun");
        command.args(["--quiet", "--oversubscribe", "--bind-to", "none", "-n", &number.to_string()]);
        command.arg(own.get_program()).args(own.get_args());
        let set = own.get_envs().filter_map(|(name, value)| Some((name, value?)));
        command.envs(set);
        // What was found here holds for all of them, whatever each would find by itself.
        command.env("CALM_DEVICE", "cpu");
        // Whoever may start this program may start it twice; mpirun asks for this where that is root.
        command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
        apart(&mut command);
        printer.note(format!("{number} processes with {threads} threads each"));
        let mut child = command.stdin(Stdio::piped()).spawn().map_err(|e| {
            let hint = match e.kind() {
                ErrorKind::NotFound => {
                    "install Open MPI (Debian: `apt-get install openmpi-bin`), or leave --processes away"
                }
                _ => "check mpirun by itself: `mpirun -n 2 hostname`",
            };
            Hinted::new(format!("cannot start mpirun: {e}"), hint)
        })?;
        Ok(Self { mpirun: true, leash: child.stdin.take(), children: vec![child] })
    }

    /// How they end at once: mpirun ends its own.
    pub fn last(&self) -> Last {
        match (self.mpirun, self.children.first()) {
            (true, Some(child)) => Last::Asked(child.id()),
            _ => Last::Killed(self.children.iter().map(Child::id).collect()),
        }
    }

    /// Waits for all. How the first ended that failed, rank 0 before others; when one has failed, the others are ended soon.
    ///
    /// # Errors
    /// The system does not say how a process ended.
    pub fn wait(&mut self, stop: &Stop) -> IoResult<ExitStatus> {
        let mut failed: Option<Instant> = None;
        let mut ended: Vec<Option<ExitStatus>> = vec![None; self.children.len()];
        while ended.contains(&None) {
            if stop.asked() {
                drop(self.leash.take());
            }
            for (child, ended) in self.children.iter_mut().zip(&mut ended) {
                if ended.is_none() {
                    *ended = child.try_wait()?;
                }
            }
            if failed.is_none() && ended.iter().flatten().any(|status| !status.success()) {
                failed = Some(Instant::now());
            }
            // The first one has said it.
            let said = ended.first().copied().flatten().is_some_and(|status| status.code() == Some(1));
            if said || failed.is_some_and(|since| since.elapsed() > AFTER_A_FAILURE) {
                // They count as ended by the failure, not by this.
                let gone = ended.iter().flatten().find(|status| !status.success()).copied();
                drop(self.leash.take());
                self.end();
                return gone.ok_or_else(|| Error::other("no process failed"));
            }
            std::thread::sleep(GLANCE);
        }
        let all: Vec<ExitStatus> = ended.into_iter().flatten().collect();
        let spoke = all.first().filter(|status| !status.success());
        let failed = spoke.or_else(|| all.iter().find(|status| !status.success()));
        failed.or(all.first()).copied().ok_or_else(|| Error::other("no process was started"))
    }

    /// Ends all that are left.
    fn end(&mut self) {
        for child in &mut self.children {
            // One that has ended is no error.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// This program with its arguments, for a child that has a share of the threads.
fn this_program(threads: usize) -> Result<Command> {
    let program = std::env::current_exe()
        .map_err(|e| Hinted::new(format!("cannot find this program: {e}"), "start it by its whole path"))?;
    let mut command = Command::new(program);
    command.args(std::env::args_os().skip(1)).env(LEASH, "1");
    if !asked_for_threads() {
        command.env("RAYON_NUM_THREADS", threads.to_string());
    }
    apart(&mut command);
    Ok(command)
}

/// A terminal's Ctrl-C reaches a whole group of processes: these hear of it from us alone, once.
fn apart(command: &mut Command) {
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(command, 0);
    #[cfg(not(unix))]
    let _ = command;
}

fn asked_for_threads() -> bool {
    std::env::args_os().any(|argument| argument.to_string_lossy().starts_with("--threads"))
}

/// Threads of each of so many processes.
fn threads(number: usize) -> usize {
    let here = rayon::current_num_threads();
    if asked_for_threads() { here } else { here.div_ceil(number).max(1) }
}
