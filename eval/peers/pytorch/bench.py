"""Times the work: python bench.py --peer tuned --size small --what lm,ae --seconds 30 [--json OUT].

One JSON line for each piece of work, to standard output and to OUT. Times are medians over the steps after warm-up.
"""

import argparse
import ctypes
import gc
import json
import statistics
import time
from pathlib import Path

import torch

from flops import flops_per_step
from work import WHAT, Peer, build

SIZES = Path(__file__).parent.parent / "sizes.json"
WARMUP = 2


def resident(key):
    """VmRSS or VmHWM of this process in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")


class Memory:
    """Peak of the process (on CUDA: of the allocator) and what steps take above the state that exists between them.

    Made after warm-up, when parameters, gradients and optimiser state exist and free pages are handed back.
    """

    def __init__(self, device):
        self.cuda = device != "cpu"
        gc.collect()
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
            self.state = torch.cuda.memory_allocated()
        else:
            ctypes.CDLL(None).malloc_trim(0)
            self.state = resident("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew

    def peak(self):
        return torch.cuda.max_memory_allocated() if self.cuda else resident("VmHWM")


def measure(what, size_name, peer, seconds, device):
    size = json.loads(SIZES.read_text())[size_name]
    step = build(what, size, peer, device)
    first = [step() for _ in range(WARMUP)][0]
    memory, times = Memory(device), []
    end, processor = time.perf_counter() + seconds, time.process_time()
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        step()  # reads its result back, which waits for the device
        times.append(time.perf_counter() - start)
    processor = (time.process_time() - processor) / len(times)
    median = statistics.median(times)
    quartiles = statistics.quantiles(times, n=4, method="inclusive")
    peak = memory.peak()
    return dict(
        what=what,
        size=size_name,
        peer=f"pytorch-{peer.name}",
        seconds_per_step=median,
        seconds_quartiles=[quartiles[0], quartiles[2]],
        cpu_seconds_per_step=processor,  # of all threads: with --threads 1 it hardly feels other programs
        tokens_per_second=step.tokens / median,
        peak_rss=peak,
        step_memory=peak - memory.state,
        flops_per_step=flops_per_step(what, size),
        n=len(times),
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if memory.cuda else "cpu",
        version=torch.__version__,
        first_result=first,  # loss or scores of the first step: what ran is the same work
    )


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--peer", choices=("eager", "tuned"), required=True)
    arguments.add_argument("--size", required=True, help="a name in ../sizes.json")
    arguments.add_argument("--what", required=True, help=f"one or more of {','.join(WHAT)}")
    arguments.add_argument("--seconds", type=float, default=10.0, help="for each piece of work, after warm-up")
    arguments.add_argument("--json", type=Path, help="the lines are appended to this file, too")
    arguments.add_argument("--threads", type=int, help="default: PyTorch's choice")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--tf32", action="store_true", help="CUDA: matrix products of float32 in TF32")
    arguments.add_argument("--no-compile", action="store_true")
    a = arguments.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.set_float32_matmul_precision("high" if a.tf32 else "highest")
    for what in a.what.split(","):
        if what not in WHAT:
            arguments.error(f"--what {what}: one of {', '.join(WHAT)}")
        torch._dynamo.reset()
        line = json.dumps(measure(what, a.size, Peer(a.peer, not a.no_compile), a.seconds, a.device))
        print(line, flush=True)
        if a.json:
            with a.json.open("a") as file:
                file.write(line + "\n")


if __name__ == "__main__":
    main()
