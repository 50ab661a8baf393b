//! Runs in processes of their own: this program, called with `train` and `bench`.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use calm_kernels::device::Choice;
use calm_run::{Error, Result, Run, RunRecord, Stage};
use calm_study::costs::Meter;
use calm_study::execute::{Job, Outcome, Worker};
use calm_train::measure::MeasuredCosts;

use crate::ui::{Printer, Verbosity};

/// Starts children, one at a time, and hands a stop on to them.
pub struct Children<'a> {
    threads: Option<usize>,
    device: Choice,
    cache: PathBuf,
    printer: &'a Printer,
    interrupted: Arc<AtomicBool>,
    /// Process id of the child at work; 0: none.
    child: Arc<AtomicU32>,
}

impl<'a> Children<'a> {
    /// Children that work with so many threads on this device.
    pub fn new(threads: Option<usize>, device: Choice, cache: &Path, printer: &'a Printer) -> Self {
        Self {
            threads,
            device,
            cache: cache.to_owned(),
            printer,
            interrupted: Arc::default(),
            child: Arc::default(),
        }
    }

    /// Makes the first Ctrl-C (or SIGTERM) stop the child at work with a checkpoint, and this process after it;
    /// without a child at work, or the second time, it ends this process at once.
    pub fn catch_interrupts(&self) {
        let (flag, child) = (Arc::clone(&self.interrupted), Arc::clone(&self.child));
        let printer = self.printer.clone();
        let _ = ctrlc::set_handler(move || {
            let id = child.load(Ordering::SeqCst);
            let again = flag.swap(true, Ordering::SeqCst);
            if id > 0 {
                stop(id);
            }
            if id == 0 {
                printer.warn("stopped; run the same command again to go on");
            }
            if id == 0 || again {
                std::process::exit(130);
            }
        });
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

    fn start(&self, command: &mut Command) -> Result<Child> {
        let child = command.spawn().map_err(|e| Error::user(format!("cannot start a process: {e}"), ""))?;
        self.child.store(child.id(), Ordering::SeqCst);
        // A stop that came between the last child and this one.
        if self.interrupted.load(Ordering::SeqCst) {
            stop(child.id());
        }
        Ok(child)
    }

    fn ended<T>(&self, result: std::io::Result<T>) -> Result<T> {
        self.child.store(0, Ordering::SeqCst);
        result.map_err(|e| Error::user(format!("cannot wait for a process: {e}"), ""))
    }
}

impl Drop for Children<'_> {
    fn drop(&mut self) {
        let id = self.child.load(Ordering::SeqCst);
        if id > 0 {
            stop(id);
        }
    }
}

/// Asks a process to stop.
fn stop(id: u32) {
    #[cfg(unix)]
    if let Ok(id) = i32::try_from(id) {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(id), nix::sys::signal::Signal::SIGTERM);
    }
    // Elsewhere the console tells all its processes itself.
    #[cfg(not(unix))]
    let _ = id;
}

impl Worker for Children<'_> {
    fn train(&mut self, job: &Job<'_>) -> Result<Outcome> {
        if self.interrupted.load(Ordering::SeqCst) {
            return Ok(Outcome::Stopped);
        }
        self.printer.note(format!("\n== {}", job.title));
        let mut command = self.command(&["train", "--resume", "--skip-scores"])?;
        command.arg("--config").arg(job.folder.join("config.yaml")).arg("--out").arg(job.folder);
        if let Some(autoencoder) = job.autoencoder {
            command.arg("--autoencoder").arg(autoencoder);
        }
        if job.only_autoencoder {
            command.args(["--stage", Stage::Autoencoder.name()]);
        }
        let mut child = self.start(command.stdin(Stdio::null()))?;
        let status = self.ended(child.wait())?;
        if status.success() {
            return Ok(Outcome::Done);
        }
        if self.interrupted.load(Ordering::SeqCst) {
            return Ok(Outcome::Stopped);
        }
        let reason = reason(job.folder, status);
        self.printer.warn(format!("{} failed: {reason}", job.title));
        Ok(Outcome::Failed(reason))
    }
}

/// Why a run ended: what it noted itself, or how its process ended.
fn reason(folder: &Path, status: ExitStatus) -> String {
    #[cfg(unix)]
    if let Some(signal) = std::os::unix::process::ExitStatusExt::signal(&status) {
        let memory = if signal == 9 { " (often: out of memory)" } else { "" };
        return format!("its process was ended by signal {signal}{memory}");
    }
    let record = Run::open(folder).and_then(|run| run.record()).ok().flatten();
    let noted = |record: RunRecord| record.history.last().and_then(|last| last.failure.clone());
    record.and_then(noted).unwrap_or_else(|| format!("its process ended with {status}"))
}

impl Meter for Children<'_> {
    fn measure(&mut self, folder: &Path, draws: usize, title: &str) -> Result<Option<MeasuredCosts>> {
        if self.interrupted.load(Ordering::SeqCst) {
            return Ok(None);
        }
        self.printer.note(title);
        let draws = draws.to_string();
        let mut command = self.command(&["bench", "--format", "json", "--draws", &draws])?;
        command.arg("--run").arg(folder).stdin(Stdio::null()).stdout(Stdio::piped());
        let child = self.start(&mut command)?;
        let output = self.ended(child.wait_with_output())?;
        if self.interrupted.load(Ordering::SeqCst) {
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
