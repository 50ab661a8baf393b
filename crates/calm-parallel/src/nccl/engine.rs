//! Processes that nothing but their GPUs joins: those of torchrun, or of a build without MPI.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use candle_core::Device;

use super::{Gpus, ID, id};
use crate::collective::{Collective, IN_VAIN, LOST, Patience, missing};
use crate::error::{Error, Result};
use crate::meeting::Point;
use crate::world::World;

/// Bytes of everybody that are exchanged at once: nearly all there is.
const FRAME: usize = 256;
/// Bytes before them: how many there are.
const HEAD: usize = 8;
/// How long rank 0 has to say what others know as well: a launcher ends all as soon as it has ended.
const SILENCE: Duration = Duration::from_secs(2);
/// How long others may take to say that they are still there: they notice a wait in vain a step later than this process at most.
const ROLL_CALL: Duration = Duration::from_secs(8);

/// This process among others whose GPUs NCCL joins.
#[derive(Debug)]
pub(crate) struct OverGpus {
    world: World,
    hosts: Vec<String>,
    gpus: Arc<Gpus>,
    point: Point,
    step: AtomicU64,
    limit: Duration,
}

impl OverGpus {
    /// Meets the others at the point that the surroundings name, and joins the GPUs.
    ///
    /// # Errors
    /// No meeting point; somebody who does not come; no NCCL.
    pub(crate) fn start(world: World, device: &Device, limit: Duration) -> Result<Self> {
        let point = Point::here(&world)?;
        let own = if world.rank == 0 { id()?.to_vec() } else { Vec::new() };
        let (handed, hosts) = point.meet(&world, &host(), &own, limit)?;
        let id: [u8; ID] = handed.try_into().map_err(|_| {
            Error::new(
                format!("rank 0 at {point} hands out no id of NCCL"),
                "start all with the same program",
            )
        })?;
        let gpus = Arc::new(Gpus::join(device, &world, id, limit)?);
        Ok(Self { world, hosts, gpus, point, step: AtomicU64::new(0), limit })
    }

    pub(crate) fn gpus(&self) -> Arc<Gpus> {
        Arc::clone(&self.gpus)
    }

    /// Everybody's bytes, by rank. Nearly all there is goes at once; what is longer goes again, as long as the longest.
    fn bytes(&self, own: &[u8], what: &str, limit: Option<Duration>) -> Result<Vec<Vec<u8>>> {
        let round = |length: usize| -> Result<Vec<(usize, Vec<u8>)>> {
            let mut frame = (own.len() as u64).to_le_bytes().to_vec();
            frame.extend_from_slice(&own[..own.len().min(length)]);
            frame.resize(HEAD + length, 0);
            let all = self.gpus.all_gather(&frame, self.world.size, what, limit)?;
            let read = |frame: &[u8]| {
                let (head, bytes) = frame.split_at(HEAD);
                let count = head.iter().rev().fold(0usize, |n, byte| n << 8 | usize::from(*byte));
                (count, bytes[..count.min(length)].to_vec())
            };
            Ok(all.chunks(HEAD + length).map(read).collect())
        };
        let mut all = round(FRAME)?;
        let longest = all.iter().map(|(count, _)| *count).max().unwrap_or(0);
        if longest > FRAME {
            all = round(longest)?;
        }
        Ok(all.into_iter().map(|(_, bytes)| bytes).collect())
    }
}

/// The name of this machine.
fn host() -> String {
    let named = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
    named.ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "?".into())
}

impl Collective for OverGpus {
    fn world(&self) -> &World {
        &self.world
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn gather(&self, own: &[u8], what: &str, patience: Patience) -> Result<Vec<Vec<u8>>> {
        let limit = (patience == Patience::Limited).then_some(self.limit);
        // While rank 0 works by itself it calls no roll: it would seem to be the one who is gone.
        let explained = |e| if limit.is_some() { self.explained(e, what) } else { e };
        self.bytes(own, what, limit).map_err(explained)
    }

    fn explained(&self, error: Error, what: &str) -> Error {
        if !error.what.starts_with(IN_VAIN) && !error.what.starts_with(LOST) {
            return error;
        }
        // Rank 0 answers as long as it calls; others may have noticed a little before it.
        let limit = if self.world.rank == 0 { ROLL_CALL } else { 2 * ROLL_CALL };
        let came = self.point.roll_call(&self.world, &host(), limit);
        let absent: Vec<_> = match self.world.rank {
            0 => came
                .iter()
                .enumerate()
                .filter(|(_, came)| !**came)
                .map(|(rank, _)| (rank, Some(false)))
                .collect(),
            _ if !came[0] => vec![(0, Some(false))],
            _ => Vec::new(),
        };
        if absent.is_empty() {
            return error;
        }
        let limit = (!error.what.starts_with(LOST)).then_some(self.limit);
        missing(&self.hosts, &absent, what, self.step.load(Ordering::Relaxed), limit)
    }

    fn finished_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    /// Each says itself what it failed of, since a word to another one could only go where that one may wait for values: rank 0 at
    /// once, others a little later, unless it has ended all by then. Of a wait in vain rank 0 speaks; where it is the one who is
    /// gone, or nobody knows who is, the first of each machine, and the first of those that are left on its own.
    fn failed(&self, error: &Error) -> bool {
        let begins = |with: &str| error.what.starts_with(with);
        let first = self.world.rank <= 1 || self.world.local_rank == 0;
        let speaks =
            if begins("rank 0 (") || begins(LOST) { first } else { self.world.rank == 0 || !begins(IN_VAIN) };
        if self.world.rank > 0 {
            std::thread::sleep(SILENCE);
        }
        speaks
    }

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }

    fn leave(&self) -> Result<()> {
        self.gather(&[], "the end", Patience::Limited).map(|_| ())
    }
}
