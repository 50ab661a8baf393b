//! `calm train` as one of several processes: how they are started, what they compare, and how they end with one message.

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
use crate::placement;
use crate::started::Started;
use crate::stop::{Last, Stop, leave};
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

/// Starts this program as often as asked, and ends as its first process does: with a GPU for each by itself, on CPUs by `mpirun`.
///
/// # Errors
/// A build that joins none of them; no mpirun here; processes that failed, which say why themselves.
pub fn start(number: usize, device: Choice, stop: &Stop, printer: &Printer) -> Result<()> {
    let mut started = match placement::of_all(number, device)? {
        true => Started::by_itself(number, printer)?,
        false => Started::by_mpi(number, printer)?,
    };
    stop.patient(true);
    stop.ends_at_once(started.last());
    let status = started.wait(stop);
    stop.patient(false);
    stop.ends_at_once(Last::Nobody);
    let status = status.map_err(|e| Hinted::new(format!("cannot wait for the processes: {e}"), ""))?;
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

/// Meets the other processes, if there are any; and the device of this one among them.
///
/// # Errors
/// As [`calm_parallel::connect`]; GPUs that are not there for all; of several processes the first one says it.
pub fn join(asked: Option<usize>, device: Choice, printer: &Printer) -> Result<(Ranks, Choice)> {
    let found = World::here().map_err(hinted).and_then(|world| match asked {
        _ if world.size == 1 => Ok((Ranks::alone(), device)),
        Some(asked) if asked != world.size => Err(Hinted::new(
            format!("--processes {asked}, but this is one of {} processes", world.size),
            "leave --processes away under mpirun, srun and torchrun",
        )),
        _ => meet(&world, device),
    });
    if let (Err(e), false) = (&found, calm_parallel::speaks()) {
        // The first one may have the same to say: a launcher ends all as soon as it has. What it cannot know is said here.
        std::thread::sleep(AFTER_THE_FIRST);
        printer.error_with(&anyhow::anyhow!("{}: {e}", here()), Some(&e.remedy));
        leave(1);
    }
    Ok(found?)
}

/// Which process this is, in words.
fn here() -> String {
    World::here().map_or_else(|_| "a process".to_owned(), |world| format!("rank {}", world.rank))
}

/// Meets the others: by MPI if this build and the launcher have it, else over the GPUs themselves.
fn meet(world: &World, device: Choice) -> Result<(Ranks, Choice), Hinted> {
    let own = placement::own(world, device)?;
    #[cfg(feature = "nccl")]
    let open =
        || calm_kernels::device::open(own).map_err(|e| Hinted::new(e.to_string(), "see `calm doctor`"));
    #[cfg(feature = "nccl")]
    if own != Choice::Cpu && !calm_parallel::by_mpi(world) {
        return Ok((calm_parallel::connect_gpus(&open()?).map_err(hinted)?, own));
    }
    let ranks = calm_parallel::connect().map_err(hinted)?;
    // Where one has no GPU of its own, none takes one.
    if ranks.any(own == Choice::Cpu, "the choice of their devices").map_err(hinted)? {
        return Ok((ranks, Choice::Cpu));
    }
    #[cfg(feature = "nccl")]
    let ranks = ranks.with_gpu(&open()?).map_err(hinted)?;
    Ok((ranks, own))
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
            "--device": if device == Choice::Cpu { "cpu" } else { "cuda" },
            "CALM_WAIT_SECONDS": calm_parallel::limit().map_err(hinted)?.as_secs_f64(),
        },
        "config": serde_json::to_value(&resolved.tree).unwrap_or(Value::Null),
    });
    Ok(calm_parallel::agree::agree(ranks, &own).map_err(hinted)?)
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
    // MPI ends all others; a launcher does where the GPUs alone join them.
    if calm_parallel::by_mpi(ranks.world()) { ranks.abort(1) } else { leave(1) }
}
