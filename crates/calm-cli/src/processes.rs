//! `calm train` as one of several processes: how they are started, what they compare, and how they end with one message.

use std::io::ErrorKind;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Result;
use calm_config::Resolved;
use calm_kernels::device::Choice;
use calm_parallel::{Ranks, World};
use calm_run::checkpoint::file_hash;
use calm_run::config::RunConfig;
use serde_json::{Value, json};

use crate::args::TrainArgs;
use crate::error::{Hinted, is_stop};
use crate::fitting::Fitting;
use crate::stop::{Stop, leave};
use crate::ui::Printer;
use crate::version;

/// The exit code of a process that ends because another one was asked to: that of SIGTERM, which a scheduler sends to one.
const ASKED_ELSEWHERE: i32 = 143;
/// How long another process than the first waits before it ends where the first one has the same to say.
const AFTER_THE_FIRST: Duration = Duration::from_secs(2);

/// As an error of the program.
pub fn hinted(e: calm_parallel::Error) -> Hinted {
    Hinted::new(e.what, e.remedy)
}

/// How many processes this one has to start; none if it is one of them, or the only one.
///
/// # Errors
/// A number that cannot be; an environment that contradicts itself.
pub fn to_start(asked: Option<usize>) -> Result<Option<usize>> {
    match asked {
        Some(0) => Err(Hinted::new("--processes 0", "give 1 or more").into()),
        Some(number) if number > 1 && World::here().map_err(hinted)?.size == 1 => Ok(Some(number)),
        _ => Ok(None),
    }
}

/// Starts `mpirun` with this program as often as asked, and ends as its first process does.
///
/// # Errors
/// A build without MPI; no mpirun here; processes that failed, which say why themselves.
pub fn start(number: usize, stop: &Stop, printer: &Printer) -> Result<()> {
    if !calm_parallel::has_mpi() {
        return Err(Hinted::new(
            format!("--processes {number}: this build has nothing that joins processes: the feature `mpi` is missing"),
            "build with `cargo build --release -p calm-cli --features mpi` (needs libopenmpi-dev and libclang-dev)",
        )
        .into());
    }
    let program = std::env::current_exe()
        .map_err(|e| Hinted::new(format!("cannot find this program: {e}"), "start it by its whole path"))?;
    let mut command = Command::new("mpirun");
    command.args(["--quiet", "--oversubscribe", "--bind-to", "none", "-n", &number.to_string()]);
    command.arg(program).args(std::env::args_os().skip(1));
    // Whoever may start this program may start it twice; mpirun asks for this where that is root.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    let asked = std::env::args_os().any(|argument| argument.to_string_lossy().starts_with("--threads"));
    let here = rayon::current_num_threads();
    let threads = if asked { here } else { here.div_ceil(number).max(1) };
    if !asked {
        command.env("RAYON_NUM_THREADS", threads.to_string());
    }
    // A terminal's Ctrl-C reaches a whole group of processes: these hear of it from us alone, once.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    printer.note(format!("{number} processes with {threads} threads each"));
    let mut child = command.env(crate::stop::LEASH, "1").stdin(Stdio::piped()).spawn().map_err(|e| {
        let hint = match e.kind() {
            ErrorKind::NotFound => {
                "install Open MPI (Debian: `apt-get install openmpi-bin`), or leave --processes away"
            }
            _ => "check mpirun by itself: `mpirun -n 2 hostname`",
        };
        Hinted::new(format!("cannot start mpirun: {e}"), hint)
    })?;
    let mut leash = child.stdin.take();
    stop.patient(true);
    stop.ends_at_once(child.id());
    let status = loop {
        if stop.asked() {
            // Its end is what the first process hears as the wish to stop.
            drop(leash.take());
        }
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(20)),
            Ok(Some(status)) => break status,
            Err(e) => return Err(Hinted::new(format!("cannot wait for mpirun: {e}"), "").into()),
        }
    };
    stop.patient(false);
    stop.ends_at_once(0);
    match status.code() {
        Some(0) => Ok(()),
        code if stop.was_stopped(code) => leave(stop.code()),
        // It has been said.
        Some(1) => leave(1),
        _ => Err(Hinted::new(
            format!("one of the {number} processes ended without a word ({status})"),
            "what was saved stays: go on with --resume (where memory is short the system kills; take fewer processes, or more \
             accumulation)",
        )
        .into()),
    }
}

/// Meets the other processes, if there are any.
///
/// # Errors
/// As [`calm_parallel::connect`]; of several processes the first one says it.
pub fn join(asked: Option<usize>) -> Result<Ranks> {
    let found = calm_parallel::connect().map_err(hinted).and_then(|ranks| match asked {
        Some(asked) if asked != ranks.size() => Err(Hinted::new(
            format!("--processes {asked}, but this is one of {} processes", ranks.size()),
            "leave --processes away under mpirun, srun and torchrun",
        )),
        _ => Ok(ranks),
    });
    if found.is_err() && !calm_parallel::speaks() {
        // Not before the first one has said it: a launcher ends all as soon as one has failed.
        std::thread::sleep(AFTER_THE_FIRST);
        std::process::exit(1);
    }
    Ok(found?)
}

/// Compares program, options and configuration with those of all others.
///
/// # Errors
/// They differ, with what and where.
pub fn agree(ranks: &Ranks, args: &TrainArgs, device: Choice, resolved: &Resolved<RunConfig>) -> Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    let program = std::env::current_exe().ok().and_then(|path| file_hash(&path).ok());
    let short = program.map(|hash| hash.chars().take(12).collect::<String>());
    let path = |path: &Option<std::path::PathBuf>| path.as_ref().map(|path| path.display().to_string());
    let own = json!({
        "program": short,
        "features": version::features(),
        "options": {
            "--out": path(&args.out),
            "--stage": args.stage.map(|stage| stage.name()),
            "--resume": args.resume,
            "--restart": args.restart,
            "--init-from": path(&args.init_from),
            "--autoencoder": path(&args.autoencoder),
            "--skip-scores": args.skip_scores,
            "--dry-run": args.dry_run,
            "--device": device.to_string(),
            "CALM_WAIT_SECONDS": calm_parallel::limit().map_err(hinted)?.as_secs_f64(),
        },
        "config": serde_json::to_value(&resolved.tree).unwrap_or(Value::Null),
    });
    Ok(calm_parallel::agree::agree(ranks, &own).map_err(hinted)?)
}

/// The device of one of several processes.
///
/// # Errors
/// A GPU was asked for.
pub fn on_cpu(device: Choice) -> Result<Choice> {
    match device {
        Choice::Auto | Choice::Cpu => Ok(Choice::Cpu),
        gpu => Err(Hinted::new(
            format!("--device {gpu}: several processes train on CPUs alone so far, joined by MPI"),
            "--device cpu, or one process for the GPU",
        )
        .into()),
    }
}

/// Ends as one of several processes: together if all is well or all were asked to stop, else at once and with one message.
///
/// # Errors
/// What there was, for the one that speaks.
pub fn conclude(
    ranks: &Ranks,
    done: Result<()>,
    fitting: &Fitting,
    stop: &Stop,
    printer: &Printer,
) -> Result<()> {
    if ranks.is_alone() {
        return done;
    }
    let stopped = done.as_ref().is_err_and(is_stop);
    if stopped && !stop.asked() {
        // Another one was asked.
        stop.was_stopped(Some(ASKED_ELSEWHERE));
    }
    let failed = match done {
        Err(e) if !stopped => e,
        done => {
            if let Err(e) = &done {
                // Before any may end: a launcher ends all others at the first that ends with a code.
                printer.stopped(&e.to_string(), fitting.remedy(e).as_deref());
            }
            match ranks.leave() {
                Ok(()) if stopped => leave(stop.code()),
                Ok(()) => return done,
                Err(e) => hinted(e).into(),
            }
        }
    };
    let hint = fitting.remedy(&failed);
    let error = calm_parallel::Error::new(format!("{failed:#}"), hint.clone().unwrap_or_default());
    if ranks.failed(&error) {
        printer.error_with(&failed, hint.as_deref());
    }
    ranks.abort(1)
}
