//! Many processes, one training: who is who, what they exchange, and waits that end.
//!
//! An engine is a [`Collective`]: [`Alone`], threads of one process for tests ([`threads`]), MPI (feature `mpi`), or the GPUs
//! themselves (feature `nccl`). Others hold [`Ranks`]. [`forecast`] says what a step would take on GPUs that are not there. Nothing here knows a model, a run or a
//! file.

pub mod agree;
mod alone;
mod collective;
mod error;
pub mod forecast;
mod limit;
pub mod meeting;
#[cfg(feature = "mpi")]
mod mpi;
#[cfg(feature = "nccl")]
mod nccl;
mod parts;
mod ranks;
pub mod threads;
pub mod tree;
mod world;

pub use alone::Alone;
pub use collective::{Collective, Patience, Pending};
pub use error::{Error, Result};
pub use limit::{LIMIT, limit};
pub use parts::Parts;
pub use ranks::Ranks;
pub use world::{Launcher, World};

/// Whether this build joins processes by MPI.
pub fn has_mpi() -> bool {
    cfg!(feature = "mpi")
}

/// Whether this build joins GPUs by NCCL.
pub fn has_nccl() -> bool {
    cfg!(feature = "nccl")
}

/// Whether this process is the first of its world, which speaks for all; also where the surroundings contradict themselves.
pub fn speaks() -> bool {
    World::here().map_or(true, |world| world.rank == 0)
}

/// Whether MPI joins the processes of this world, in this build. torchrun starts processes that have none, and so does a plain `srun`.
pub fn by_mpi(world: &World) -> bool {
    has_mpi() && world.launcher.offers_mpi(|name| std::env::var(name).ok())
}

/// Meets the other processes of the world that this one finds itself in, by MPI.
///
/// # Errors
/// Surroundings that contradict themselves; no MPI in this build, or none for this launcher; an engine that counts otherwise
/// than the surroundings.
pub fn connect() -> Result<Ranks> {
    let world = World::here()?;
    if world.size == 1 {
        return Ok(Ranks::alone());
    }
    if world.launcher == Launcher::Torchrun {
        return Err(Error::new(
            format!("{world}: processes of torchrun are joined by their GPUs"),
            "--device cuda, one GPU a process; CPU processes are started with `mpirun -n N calm train ...` or \
             `calm train --processes N`",
        ));
    }
    #[cfg(feature = "mpi")]
    if !by_mpi(&world) {
        return Err(Error::new(
            format!("{world}, and srun started them without MPI"),
            "`srun --mpi=pmix calm train ...` (`srun --mpi=list` names what there is); only processes that have a GPU each need no MPI",
        ));
    }
    #[cfg(feature = "mpi")]
    return Ok(Ranks::new(mpi::Mpi::start(world, limit()?)?));
    #[cfg(not(feature = "mpi"))]
    Err(Error::new(
        format!("{world}, and this build has nothing that joins processes: the feature `mpi` is missing"),
        "build with `cargo build --release -p calm-cli --features mpi` (needs libopenmpi-dev and libclang-dev), or start one \
         process",
    ))
}

/// Meets the other processes of the world that this one finds itself in over their GPUs alone: by NCCL, whose id is handed out
/// at the [meeting point](meeting).
///
/// # Errors
/// Surroundings that contradict themselves; no meeting point is named; somebody who does not come; no NCCL on this machine.
#[cfg(feature = "nccl")]
pub fn connect_gpus(device: &candle_core::Device) -> Result<Ranks> {
    let world = World::here()?;
    if world.size == 1 {
        return Ok(Ranks::alone());
    }
    Ok(Ranks::over_gpus(nccl::OverGpus::start(world, device, limit()?)?))
}
