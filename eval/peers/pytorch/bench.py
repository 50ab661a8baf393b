"""Times the work: python bench.py --peer tuned --size small --what lm,ae --seconds 30 [--json OUT].

One JSON line for each piece of work, to standard output and to OUT. Times are medians over the steps after warm-up.
With --turns (compare.py uses it) the program stays: it says when it is ready, measures for each line that it reads, and
ends when there are no more; so that models are made and compiled once for many rounds.
"""

import argparse
import ctypes
import gc
import json
import math
import statistics
import sys
import time
from pathlib import Path

import torch

from flops import flops_per_step
from work import PEERS, WHAT, Peer, build

SIZES = Path(__file__).parent.parent / "sizes.json"
WARMUP = 2
BLOCK = 0.1  # seconds between two waits for a GPU


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


def block_length(step):
    """Steps between two waits for a GPU, as many as take BLOCK: a step that is waited for pays for the wait."""
    step()
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    return min(max(math.ceil(BLOCK / (time.perf_counter() - start)), 1), 100)


def prepare(what, size_name, peer, device):
    """A step that has run, so is compiled; the size; and what it gave first."""
    size = json.loads(SIZES.read_text())[size_name]
    step = build(what, size, peer, device)
    first = [step() for _ in range(WARMUP)][0]
    return step, size, first


def measure(what, size_name, peer, seconds, device, prepared):
    step, size, first = prepared
    block = 1 if device == "cpu" else block_length(step)
    memory, times = Memory(device), []
    end, processor = time.perf_counter() + seconds, time.process_time()
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        for _ in range(block):
            step(block == 1)  # a result that is read waits for the device
        if memory.cuda:
            torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / block)
    processor = (time.process_time() - processor) / len(times) / block
    median = statistics.median(times)
    quartiles = statistics.quantiles(times, n=4, method="inclusive")
    peak = memory.peak()
    return dict(
        what=what,
        size=size_name,
        peer=f"pytorch-{peer.name}",
        precision="bf16" if peer.bf16 else "f32",
        seconds_per_step=median,
        seconds_quartiles=[quartiles[0], quartiles[2]],
        cpu_seconds_per_step=processor,  # of all threads: with --threads 1 it hardly feels other programs
        tokens_per_second=step.tokens / median,
        peak_rss=peak,
        step_memory=peak - memory.state,
        flops_per_step=flops_per_step(what, size),
        n=len(times),
        steps_per_time=block,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name() if memory.cuda else "cpu",
        version=torch.__version__,
        first_result=first,  # loss or scores of the first step: what ran is the same work
    )


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--peer", choices=PEERS, required=True)
    arguments.add_argument("--size", required=True, help="a name in ../sizes.json")
    arguments.add_argument("--what", required=True, help=f"one or more of {','.join(WHAT)}")
    arguments.add_argument("--seconds", type=float, default=10.0, help="for each piece of work, after warm-up")
    arguments.add_argument("--json", type=Path, help="the lines are appended to this file, too")
    arguments.add_argument("--threads", type=int, help="default: PyTorch's choice")
    arguments.add_argument("--device", default="cpu")
    arguments.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="of activations and products")
    arguments.add_argument("--turns", action="store_true", help="stay, and measure for each line of standard input")
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
        peer = Peer(a.peer, not a.no_compile, a.precision)
        prepared = prepare(what, a.size, peer, a.device)
        if a.turns:
            rest(a.device)
            print(json.dumps(dict(ready=what)), flush=True)
        for _ in sys.stdin if a.turns else [""]:
            line = json.dumps(measure(what, a.size, peer, a.seconds, a.device, prepared))
            if a.turns:
                rest(a.device)
            print(line, flush=True)
            if a.json:
                with a.json.open("a") as file:
                    file.write(line + "\n")


def rest(device):
    """Leaves the device's memory to others."""
    gc.collect()
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
