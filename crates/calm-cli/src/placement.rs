//! The device of one of several processes: with GPUs each has its own.

use calm_kernels::device::{self, Choice};
use calm_parallel::{Launcher, World};

use crate::error::Hinted;

/// How GPUs of several processes are asked for.
const BUILD: &str =
    "build with `cargo build --release -p calm-cli --features nccl` (needs nvcc), or take --device cpu";

/// The device of this process: the GPU of its place among the processes of its machine, or the only one that it can see.
///
/// # Errors
/// A GPU by its number; GPUs in a build that cannot join them; fewer of them than processes, where they were asked for.
pub fn own(world: &World, asked: Choice) -> Result<Choice, Hinted> {
    let bound = std::env::var_os("CUDA_VISIBLE_DEVICES").is_some();
    choose(world, asked, calm_parallel::has_nccl(), bound, count)
}

/// How many GPUs this process sees.
fn count() -> Result<usize, Hinted> {
    device::count().map_err(|e| Hinted::new(e.reason, e.remedy))
}

/// Whether so many processes on this machine have a GPU each.
///
/// # Errors
/// As [`own`].
pub fn of_all(number: usize, asked: Choice) -> Result<bool, Hinted> {
    let last = World { rank: number - 1, size: number, local_rank: number - 1, launcher: Launcher::None };
    // Nobody has bound the last of them to the only GPU that this process sees.
    Ok(choose(&last, asked, calm_parallel::has_nccl(), false, count)? != Choice::Cpu)
}

/// As [`own`]: whether this build joins GPUs, whether a launcher has bound this process to some of them, and how many it sees.
fn choose(
    world: &World,
    asked: Choice,
    joins: bool,
    bound: bool,
    gpus: impl FnOnce() -> Result<usize, Hinted>,
) -> Result<Choice, Hinted> {
    match asked {
        Choice::Cpu => return Ok(Choice::Cpu),
        Choice::Auto if !joins => return Ok(Choice::Cpu),
        Choice::Cuda(_) if !joins => {
            let what = "--device cuda: this build does not join the GPUs of several processes: the feature `nccl` is missing";
            return Err(Hinted::new(what, BUILD));
        }
        Choice::Cuda(number) if number > 0 => {
            return Err(Hinted::new(
                format!(
                    "--device cuda:{number}: of several processes each takes the GPU of its place on its machine"
                ),
                "--device cuda; CUDA_VISIBLE_DEVICES says which GPUs there are",
            ));
        }
        Choice::Auto | Choice::Cuda(_) => {}
    }
    let seen = gpus();
    let place = world.local_rank;
    match seen {
        Ok(seen) if place < seen => Ok(Choice::Cuda(place)),
        Ok(1) if bound => Ok(Choice::Cuda(0)),
        _ if asked == Choice::Auto => Ok(Choice::Cpu),
        Ok(seen) => Err(Hinted::new(
            format!("--device cuda: process {} of this machine, which has {seen} GPUs", place + 1),
            "start as many processes on each machine as it has GPUs",
        )),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(local_rank: usize, asked: Choice, bound: bool, seen: usize) -> Result<Choice, Hinted> {
        let world = World { rank: local_rank, size: 8, local_rank, launcher: Launcher::Torchrun };
        let gpus = || if seen == 0 { Err(Hinted::new("no driver", "install it")) } else { Ok(seen) };
        choose(&world, asked, true, bound, gpus)
    }

    #[test]
    fn each_process_takes_the_gpu_of_its_place() {
        for asked in [Choice::Auto, Choice::Cuda(0)] {
            assert_eq!(chosen(3, asked, false, 4).unwrap(), Choice::Cuda(3));
            // A launcher may show each process its own GPU alone.
            assert_eq!(chosen(3, asked, true, 1).unwrap(), Choice::Cuda(0));
        }
        assert_eq!(chosen(0, Choice::Cpu, false, 4).unwrap(), Choice::Cpu);
    }

    #[test]
    fn where_there_are_too_few_auto_takes_the_cpu_and_cuda_is_an_error() {
        for (place, seen) in [(4, 4), (1, 1), (0, 0)] {
            assert_eq!(chosen(place, Choice::Auto, false, seen).unwrap(), Choice::Cpu);
            assert!(chosen(place, Choice::Cuda(0), false, seen).is_err());
        }
        let e = chosen(4, Choice::Cuda(0), false, 4).unwrap_err();
        assert!(e.to_string().contains("process 5 of this machine, which has 4 GPUs"), "{e}");
        assert!(chosen(1, Choice::Cuda(1), false, 4).is_err());
    }

    #[test]
    fn a_build_without_nccl_says_so() {
        let world = World { rank: 1, size: 2, local_rank: 1, launcher: Launcher::OpenMpi };
        let none = || -> Result<usize, Hinted> { unreachable!() };
        assert_eq!(choose(&world, Choice::Auto, false, false, none).unwrap(), Choice::Cpu);
        let e = choose(&world, Choice::Cuda(0), false, false, none).unwrap_err();
        assert!(e.to_string().contains("`nccl` is missing") && e.remedy.contains("--features nccl"));
    }
}
