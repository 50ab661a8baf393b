//! Many processes, one training: who is who, what they exchange, and waits that end.
//!
//! An engine is a [`Collective`]: [`Alone`], threads of one process for tests ([`threads`]), or MPI (feature `mpi`). Others
//! hold [`Ranks`]. [`forecast`] says what a step would take on GPUs that are not there. Nothing here knows a model, a run or a
//! file.

pub mod agree;
mod alone;
mod collective;
mod error;
pub mod forecast;
mod limit;
#[cfg(feature = "mpi")]
mod mpi;
mod parts;
mod ranks;
pub mod threads;
pub mod tree;
mod world;

pub use alone::Alone;
pub use collective::{Collective, Patience};
pub use error::{Error, Result};
pub use limit::{LIMIT, limit};
pub use parts::Parts;
pub use ranks::Ranks;
pub use world::{Launcher, World};

/// Whether this build has an engine between processes.
pub fn has_mpi() -> bool {
    cfg!(feature = "mpi")
}

/// Whether this process is the first of its world, which speaks for all; also where the surroundings contradict themselves.
pub fn speaks() -> bool {
    World::here().map_or(true, |world| world.rank == 0)
}

/// Meets the other processes of the world that this one finds itself in.
///
/// # Errors
/// Surroundings that contradict themselves; several processes, and no engine between them in this build; an engine that
/// counts otherwise than the surroundings.
pub fn connect() -> Result<Ranks> {
    let world = World::here()?;
    if world.size == 1 {
        return Ok(Ranks::alone());
    }
    join(world)
}

#[cfg(feature = "mpi")]
fn join(world: World) -> Result<Ranks> {
    if world.launcher == Launcher::Torchrun {
        return Err(no_nccl(&world));
    }
    Ok(Ranks::new(mpi::Mpi::start(world, limit()?)?))
}

#[cfg(not(feature = "mpi"))]
fn join(world: World) -> Result<Ranks> {
    if world.launcher == Launcher::Torchrun {
        return Err(no_nccl(&world));
    }
    Err(Error::new(
        format!("{world}, and this build has nothing that joins processes: the feature `mpi` is missing"),
        "build with `cargo build --release -p calm-cli --features mpi` (needs libopenmpi-dev and libclang-dev), or start one \
         process",
    ))
}

/// torchrun starts processes that have no MPI.
fn no_nccl(world: &World) -> Error {
    Error::new(
        format!("{world}: processes of torchrun are joined by NCCL, which this version does not have yet"),
        "start CPU processes with `mpirun -n N calm train ...` or `calm train --processes N`",
    )
}
