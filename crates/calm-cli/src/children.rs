//! Runs in processes of their own: this program, called with `train` and `bench`.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use calm_kernels::device::Choice;
use calm_run::lock::Owner;
use calm_run::{Error, Provenance, Result, Run, Stage, metrics};
use calm_study::costs::Meter;
use calm_study::execute::{Job, Outcome, Worker};
use calm_train::measure::MeasuredCosts;

use crate::stop::Stop;
use crate::ui::{Printer, Unit, Verbosity};

/// How often one of several that train is looked at.
const GLANCE: Duration = Duration::from_millis(100);

/// Starts children, one in each lane at a time, and hands a stop on to them.
pub struct Children<'a> {
    /// As asked for.
    threads: Option<usize>,
    /// Where those of each lane compute.
    lanes: Vec<Choice>,
    cache: PathBuf,
    printer: &'a Printer,
    stop: &'a Stop,
    /// What was said about runs of others.
    said: Mutex<BTreeSet<String>>,
}

impl<'a> Children<'a> {
    /// Children that compute on these devices at a time, the first of which measures. `threads`: of each, if asked for.
    pub fn new(
        threads: Option<usize>,
        lanes: Vec<Choice>,
        cache: &Path,
        stop: &'a Stop,
        printer: &'a Printer,
    ) -> Self {
        Self { threads, lanes, cache: cache.to_owned(), printer, stop, said: Mutex::default() }
    }

    /// How many train at a time.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// No more train at a time than there are.
    pub fn at_most(&mut self, number: usize) {
        self.lanes.truncate(number.max(1));
    }

    /// Threads of one that trains beside others: its share, if nobody says.
    fn share(&self) -> Option<usize> {
        let share = || (rayon::current_num_threads() / self.lanes.len().max(1)).max(1);
        self.threads.or_else(|| (self.lanes.len() > 1).then(share))
    }

    fn command(&self, arguments: &[&str], lane: usize, threads: Option<usize>) -> Result<Command> {
        let program =
            std::env::current_exe().map_err(|e| Error::user(format!("cannot find this program: {e}"), ""))?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--cache").arg(&self.cache);
        let device = self.lanes.get(lane).copied().unwrap_or_default();
        command.arg("--device").arg(device.to_string());
        if let Some(n) = threads {
            command.arg("--threads").arg(n.to_string());
        }
        if self.printer.verbosity() == Verbosity::Quiet {
            command.arg("--quiet");
        }
        // A terminal's Ctrl-C reaches a whole group of processes: the child gets it from us alone, once.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        Ok(command)
    }

    fn start(&self, command: &mut Command) -> Result<(Child, Option<ChildStdin>)> {
        self.stop.start(command).map_err(|e| Error::user(format!("cannot start a process: {e}"), ""))
    }

    /// Runs a process to its end. Its standard output is taken if it was piped.
    fn run(&self, command: &mut Command) -> Result<Output> {
        let (child, leash) = self.start(command)?;
        let id = child.id();
        let result = child.wait_with_output();
        drop(leash);
        self.stop.ended(id);
        result.map_err(waiting)
    }

    /// Runs a process that trains beside others: it says nothing but what goes wrong, and its metrics tell how far it is.
    fn run_beside(&self, command: &mut Command, job: &Job<'_>) -> Result<ExitStatus> {
        let device =
            self.lanes.get(job.lane).filter(|device| self.lanes.iter().any(|other| other != *device));
        let device = device.map_or_else(String::new, |device| format!(" on {device}"));
        self.printer.note(format!("{} begins{device}", job.title));
        let path = job.folder.join("metrics.jsonl");
        let line = || metrics::last_line(&path).filter(|line| line.stage == job.stage);
        let progress = self.printer.progress(job.name, job.steps, Unit::Steps);
        progress.start_at(line().map_or(0, |line| line.step));
        if self.printer.verbosity() != Verbosity::Quiet {
            command.arg("--quiet");
        }
        let (mut child, leash) = self.start(command.stderr(Stdio::piped()))?;
        let id = child.id();
        let errors = child.stderr.take();
        let ended = std::thread::scope(|scope| {
            // Whoever is not heard must not wait for somebody who listens.
            let hear = std::thread::Builder::new();
            let _ = errors.map(|errors| hear.spawn_scoped(scope, move || self.pass_on(job.name, errors)));
            let mut at = None;
            loop {
                match child.try_wait() {
                    Ok(Some(status)) => break Ok(status),
                    Ok(None) => std::thread::sleep(GLANCE),
                    Err(e) => break Err(e),
                }
                let now = line();
                if let Some(line) = now.filter(|line| at.replace(line.step) != Some(line.step)) {
                    let loss = line.values.get("train/loss").copied().flatten();
                    progress.set(line.step, &loss.map_or_else(String::new, |loss| format!("loss {loss:.3}")));
                }
            }
        });
        drop(leash);
        self.stop.ended(id);
        let status = ended.map_err(waiting)?;
        if status.success() {
            progress.set(job.steps, "");
            progress.finish("");
        }
        Ok(status)
    }

    /// Passes on what a process says, each line with its name. When all are asked to stop one message is enough: then errors
    /// alone.
    fn pass_on(&self, name: &str, said: impl Read) {
        let mut is_error = false;
        for line in BufReader::new(said).split(b'\n').map_while(std::result::Result::ok) {
            let line = String::from_utf8_lossy(&line);
            is_error = line.starts_with("error:") || (is_error && line.starts_with(' '));
            if is_error || !self.stop.asked() {
                self.printer.said_by(name, line.trim_end());
            }
        }
    }
}

fn waiting(e: std::io::Error) -> Error {
    Error::user(format!("cannot wait for a process: {e}"), "")
}

impl Worker for Children<'_> {
    fn train(&self, job: &Job<'_>) -> Result<Outcome> {
        if self.stop.asked() {
            return Ok(Outcome::Stopped);
        }
        let entries = history(job.folder).len();
        let mut command = self.command(&["train", "--resume", "--skip-scores"], job.lane, self.share())?;
        command.arg("--config").arg(job.folder.join("config.yaml")).arg("--out").arg(job.folder);
        if let Some(autoencoder) = job.autoencoder {
            command.arg("--autoencoder").arg(autoencoder);
        }
        if job.stage == Stage::Autoencoder {
            command.args(["--stage", Stage::Autoencoder.name()]);
        }
        let status = if self.lanes.len() > 1 {
            self.run_beside(&mut command, job)?
        } else {
            self.printer.note(format!("\n== {}", job.title));
            self.run(&mut command)?.status
        };
        if status.success() {
            return Ok(Outcome::Done);
        }
        if self.stop.asked() || self.stop.was_stopped(status.code()) {
            return Ok(Outcome::Stopped);
        }
        let reason = reason(history(job.folder).get(entries..).unwrap_or_default(), status);
        self.printer.warn(format!("{} failed: {reason}", job.title));
        Ok(Outcome::Failed(reason))
    }

    fn stopped(&self) -> bool {
        self.stop.asked()
    }

    fn taken(&self, name: &str, owner: Option<Owner>, awaited: bool) {
        if !self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned()) {
            return;
        }
        let who = owner.map_or_else(|| "another process".to_owned(), |owner| owner.to_string());
        self.printer.note(match awaited {
            true => format!("{name}: waiting for {who} to end"),
            false => format!("{name}: left to {who}"),
        });
    }
}

/// Entries of the record of a run; none where there is none.
fn history(folder: &Path) -> Vec<Provenance> {
    let record = Run::open(folder).and_then(|run| run.record()).ok().flatten();
    record.map_or_else(Vec::new, |record| record.history)
}

/// Why a run ended: what it noted itself in the entries that are new, or how its process ended.
fn reason(entries: &[Provenance], status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let memory = if signal == 9 { " (often: out of memory)" } else { "" };
        return format!("its process was ended by signal {signal}{memory}");
    }
    let noted = entries.last().and_then(|last| last.failure.clone());
    noted.unwrap_or_else(|| format!("its process ended with {status}"))
}

impl Meter for Children<'_> {
    fn measure(&mut self, folder: &Path, draws: usize, title: &str) -> Result<Option<MeasuredCosts>> {
        if self.stop.asked() {
            return Ok(None);
        }
        self.printer.note(title);
        let draws = draws.to_string();
        let mut command = self.command(&["bench", "--format", "json", "--draws", &draws], 0, self.threads)?;
        command.arg("--run").arg(folder).stdout(Stdio::piped());
        let output = self.run(&mut command)?;
        if self.stop.asked() || self.stop.was_stopped(output.status.code()) {
            return Ok(None);
        }
        if !output.status.success() {
            return Err(Error::user(
                format!(
                    "the costs of {} cannot be measured: its process ended with {}",
                    folder.display(),
                    output.status
                ),
                "see the message above; `score: { rounds: 0 }` leaves the measurement out",
            ));
        }
        serde_json::from_slice(&output.stdout)
            .map(Some)
            .map_err(|e| Error::user(format!("the costs of {}: {e}", folder.display()), ""))
    }
}
