//! Runs in processes of their own: this program, called with `train` and `bench`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use calm_kernels::device::Choice;
use calm_run::{Error, Lock, Provenance, Result, Run, Stage};
use calm_study::costs::Meter;
use calm_study::execute::{Job, Outcome, Worker};
use calm_train::measure::MeasuredCosts;

use crate::stop::Stop;
use crate::ui::{Printer, Verbosity};

/// Starts children, one at a time, and hands a stop on to them.
pub struct Children<'a> {
    threads: Option<usize>,
    device: Choice,
    cache: PathBuf,
    printer: &'a Printer,
    stop: &'a Stop,
}

/// How long a process that a killed ablation left behind may take to write its checkpoint.
const LEFT_BEHIND: Duration = Duration::from_secs(120);

impl<'a> Children<'a> {
    /// Children that work with so many threads on this device.
    pub fn new(
        threads: Option<usize>,
        device: Choice,
        cache: &Path,
        stop: &'a Stop,
        printer: &'a Printer,
    ) -> Self {
        Self { threads, device, cache: cache.to_owned(), printer, stop }
    }

    fn command(&self, arguments: &[&str]) -> Result<Command> {
        let program =
            std::env::current_exe().map_err(|e| Error::user(format!("cannot find this program: {e}"), ""))?;
        let mut command = Command::new(program);
        command.args(arguments).arg("--cache").arg(&self.cache);
        command.arg("--device").arg(self.device.to_string());
        if let Some(n) = self.threads {
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

    /// Runs a process to its end. Its standard output is taken if it was piped.
    fn run(&self, command: &mut Command) -> Result<Output> {
        let (child, leash) =
            self.stop.start(command).map_err(|e| Error::user(format!("cannot start a process: {e}"), ""))?;
        let result = child.wait_with_output();
        drop(leash);
        self.stop.ended();
        result.map_err(|e| Error::user(format!("cannot wait for a process: {e}"), ""))
    }

    /// Waits for a process that still works on a run: of an ablation that was killed, it stops with a checkpoint. False
    /// if this one was stopped meanwhile.
    fn wait_for(&self, folder: &Path) -> Result<bool> {
        let begun = Instant::now();
        let mut told = false;
        while let Some(owner) = Lock::holder(folder) {
            if self.stop.asked() {
                return Ok(false);
            }
            let who = owner.map_or_else(|| "a process".to_owned(), |owner| owner.to_string());
            if begun.elapsed() > LEFT_BEHIND {
                return Err(Error::user(
                    format!("{who} still works on {}", folder.display()),
                    "stop it, then run the same command again",
                ));
            }
            if !std::mem::replace(&mut told, true) {
                self.printer.note(format!("waiting for {who} to end"));
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(true)
    }
}

impl Worker for Children<'_> {
    fn train(&mut self, job: &Job<'_>) -> Result<Outcome> {
        if self.stop.asked() {
            return Ok(Outcome::Stopped);
        }
        self.printer.note(format!("\n== {}", job.title));
        if !self.wait_for(job.folder)? {
            return Ok(Outcome::Stopped);
        }
        let entries = history(job.folder).len();
        let mut command = self.command(&["train", "--resume", "--skip-scores"])?;
        command.arg("--config").arg(job.folder.join("config.yaml")).arg("--out").arg(job.folder);
        if let Some(autoencoder) = job.autoencoder {
            command.arg("--autoencoder").arg(autoencoder);
        }
        if job.only_autoencoder {
            command.args(["--stage", Stage::Autoencoder.name()]);
        }
        let status = self.run(&mut command)?.status;
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
        let mut command = self.command(&["bench", "--format", "json", "--draws", &draws])?;
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
