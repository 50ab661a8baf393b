//! What processes exchange in a step, and how fast: the engine's sum and the tree of `reduction: fixed`, beside a copy in memory.

use std::time::Instant;

use calm_parallel::{Error, Patience, Ranks, Result, tree};
use candle_core::Device;
use serde::Serialize;

use crate::clock::Seconds;

/// Bytes that are exchanged at a time.
const SIZES: [usize; 5] = [1_000_000, 4_000_000, 16_000_000, 64_000_000, 256_000_000];
/// Repetitions, however long one takes and however short.
const LEAST: usize = 3;
const MOST: usize = 200;

/// A way to exchange values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// None: a copy in the memory of each.
    Copy,
    /// The engine's own sum: `reduction: engine`.
    Sum,
    /// A sum whose bits do not show the number of processes: `reduction: fixed`.
    Tree,
}

impl Way {
    /// Words for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Copy => "copy in memory",
            Self::Sum => "sum of the engine",
            Self::Tree => "sum as a tree",
        }
    }
}

/// What an exchange took, as rank 0 saw it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Exchanged {
    /// How.
    pub what: Way,
    /// Bytes of each process.
    pub bytes: usize,
    /// Seconds.
    #[serde(flatten)]
    pub seconds: Seconds,
    /// These bytes a second.
    pub bytes_per_second: f64,
    /// Bytes that each process sends a second, where a sum of W sends 2 (W - 1) / W of them: what a forecast calls a link.
    pub sent_per_second: Option<f64>,
}

impl Exchanged {
    fn new(what: Way, bytes: usize, seconds: Seconds, processes: usize) -> Self {
        let rate = bytes as f64 / seconds.median;
        let size = processes as f64;
        let sent = (what != Way::Copy).then_some(rate * 2.0 * (size - 1.0) / size);
        Self { what, bytes, seconds, bytes_per_second: rate, sent_per_second: sent }
    }
}

/// Measures every way at every size, for about so many seconds each, from GPU to GPU where they are joined; all processes call it.
/// A tree needs CPUs, and a power of two of them.
///
/// # Errors
/// As [`calm_parallel::Collective`]; a sum that is wrong.
pub fn exchange(ranks: &Ranks, device: &Device, seconds: f64, done: &mut dyn FnMut(Exchanged)) -> Result<()> {
    #[cfg(feature = "nccl")]
    if ranks.joins_gpus() {
        return on_gpus::exchange(ranks, device, seconds, done);
    }
    let _ = device;
    let tree = ranks.size().is_power_of_two();
    check(ranks, Way::Sum)?;
    if tree {
        check(ranks, Way::Tree)?;
    }
    for bytes in SIZES {
        let mut values = vec![1.0f32; bytes / 4];
        let mut copy = vec![0.0f32; values.len()];
        for what in [Way::Copy, Way::Sum, Way::Tree] {
            if what == Way::Tree && !tree {
                continue;
            }
            let mut work = || match what {
                Way::Copy => {
                    copy.copy_from_slice(std::hint::black_box(&values));
                    std::hint::black_box(&copy);
                    Ok(())
                }
                _ => sum(ranks, what, &mut values),
            };
            let times = together(ranks, seconds, &mut work)?;
            // Sums of sums grow without end.
            values.fill(1.0);
            done(Exchanged::new(what, bytes, times, ranks.size()));
        }
    }
    Ok(())
}

fn sum(ranks: &Ranks, way: Way, values: &mut [f32]) -> Result<()> {
    match way {
        Way::Tree => tree::across(ranks, values),
        _ => ranks.sum(values),
    }
}

/// Repeats work that all do at a time, as often as rank 0 finds right; the first time is not counted.
fn together(ranks: &Ranks, seconds: f64, work: &mut dyn FnMut() -> Result<()>) -> Result<Seconds> {
    let mut once = || {
        ranks.meet("the next round", Patience::Limited)?;
        let began = Instant::now();
        work()?;
        Ok::<f64, Error>(began.elapsed().as_secs_f64())
    };
    once()?;
    let wanted = (seconds / once()?.max(1e-9)) as usize;
    let wanted = wanted.clamp(LEAST, MOST) as u64;
    let all = ranks.gather(&wanted.to_le_bytes(), "the number of rounds", Patience::Limited)?;
    let number = all[0].as_slice().try_into().map_or(LEAST as u64, u64::from_le_bytes);
    Ok(Seconds::of((0..number).map(|_| once()).collect::<Result<_>>()?))
}

/// Compares a sum of whole numbers, which is exact in any order, with what it must be.
fn check(ranks: &Ranks, way: Way) -> Result<()> {
    const VALUES: usize = 1_000_003;
    let value = |rank: usize, i: usize| ((i * 7919 + rank * 104_729) % 10_007) as f32;
    let mut values: Vec<f32> = (0..VALUES).map(|i| value(ranks.rank(), i)).collect();
    sum(ranks, way, &mut values)?;
    let right = |i: usize| (0..ranks.size()).map(|rank| value(rank, i)).sum::<f32>();
    let wrong = (0..VALUES).find(|i| values[*i] != right(*i));
    let found = wrong.map_or_else(String::new, |i| format!("value {i} is {}, not {}", values[i], right(i)));
    let all = ranks.gather(found.as_bytes(), "the comparison of sums", Patience::Limited)?;
    match all.iter().enumerate().find(|(_, found)| !found.is_empty()) {
        None => Ok(()),
        Some((rank, found)) => Err(Error::new(
            format!("{} is wrong on rank {rank}: {}", way.name(), String::from_utf8_lossy(found)),
            "what joins the processes does not work here: the same version of it must be on all machines",
        )),
    }
}

/// The same on GPUs, by NCCL.
#[cfg(feature = "nccl")]
mod on_gpus {
    use candle_core::cuda_backend::cudarc::driver::CudaSlice;

    use super::{Device, Error, Exchanged, Ranks, Result, SIZES, Way, together};

    fn failed(e: impl std::fmt::Display) -> Error {
        Error::new(format!("the GPU fails: {e}"), "see `calm doctor`")
    }

    pub(super) fn exchange(
        ranks: &Ranks,
        device: &Device,
        seconds: f64,
        done: &mut dyn FnMut(Exchanged),
    ) -> Result<()> {
        let stream = device.as_cuda_device().map_err(failed)?.cuda_stream();
        // As many as there are processes, which is exact.
        let mut ones: CudaSlice<f32> = stream.clone_htod(&vec![1.0f32; 1 << 20]).map_err(failed)?;
        ranks.sum_on_gpu(&mut ones)?;
        let sums = stream.clone_dtoh(&ones).map_err(failed)?;
        if sums.iter().any(|sum| *sum != ranks.size() as f32) {
            return Err(Error::new("NCCL's sum is wrong", "NCCL_DEBUG=INFO says which way it takes"));
        }
        for bytes in SIZES {
            let mut values = stream.alloc_zeros::<f32>(bytes / 4).map_err(failed)?;
            let mut copy = stream.alloc_zeros::<f32>(bytes / 4).map_err(failed)?;
            for what in [Way::Copy, Way::Sum] {
                let times = together(ranks, seconds, &mut || {
                    match what {
                        Way::Copy => stream.memcpy_dtod(&values, &mut copy).map_err(failed)?,
                        _ => ranks.sum_on_gpu(&mut values)?,
                    }
                    stream.synchronize().map_err(failed)
                })?;
                done(Exchanged::new(what, bytes, times, ranks.size()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_parallel::threads;

    #[test]
    fn sums_are_right_and_all_repeat_them_as_often() {
        let found = threads::run(2, |ranks| {
            check(&ranks, Way::Sum)?;
            check(&ranks, Way::Tree)?;
            let mut times = 0;
            let seconds = together(&ranks, 0.0, &mut || {
                times += 1;
                Ok(())
            })?;
            Ok::<_, Error>((times, seconds.n))
        });
        for found in found {
            assert_eq!(found.unwrap(), (LEAST + 2, LEAST));
        }
    }
}
