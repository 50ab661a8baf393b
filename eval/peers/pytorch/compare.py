"""Programs in turn: python compare.py --size small --what lm,ae --rounds 5 --seconds 10 --json OUT.

Every measurement is a process of its own; a round runs each runner once, in an order that rotates, so that slow drifts
of the machine hit all alike. A ratio is taken within a round: seconds of the runner / seconds of the first. Shown are medians over the rounds with their quartiles.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

WHAT = ("ae", "lm", "baseline", "energy", "generate", "brier_k1", "brier_k2", "brier_k4")

HERE = Path(__file__).parent


def command(runner, what, a):
    """How a runner is called. It prints a JSON line {what, size, peer, seconds_per_step, tokens_per_second, …}."""
    common = ["--size", a.size, "--what", what, "--seconds", str(a.seconds)]
    if runner == "calm":
        return [a.calm, "bench", *common, "--format", "json", "--quiet"]
    peer = runner.removeprefix("pytorch-")
    return [sys.executable, str(HERE / "bench.py"), "--peer", peer, "--device", a.device, *common]


def run(runner, what, a):
    threads = str(a.threads)
    environment = dict(os.environ, OMP_NUM_THREADS=threads, RAYON_NUM_THREADS=threads)
    done = subprocess.run(command(runner, what, a), env=environment, capture_output=True, text=True)
    if done.returncode != 0 or not done.stdout:
        sys.exit(f"error: {' '.join(command(runner, what, a))} ended with {done.returncode}\n{done.stderr[-2000:]}")
    if runner == "calm":
        return json.loads(done.stdout)["work"][0]
    return json.loads(done.stdout.splitlines()[-1])


def spread(values):
    """Median and quartiles."""
    if len(values) == 1:
        return dict(median=values[0], q1=values[0], q3=values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return dict(median=median, q1=q1, q3=q3)


def summarise(what, runners, rounds):
    rows, base = [], runners[0]
    for runner in runners:
        lines = [r[runner] for r in rounds]
        seconds = [line["seconds_per_step"] for line in lines]
        rows.append(
            dict(
                what=what,
                runner=runner,
                seconds=spread(seconds),
                tokens_per_second=statistics.median(line["tokens_per_second"] for line in lines),
                gflops=lines[0]["flops_per_step"] / statistics.median(seconds) / 1e9,
                step_memory=statistics.median(line["step_memory"] for line in lines),
                peak_rss=statistics.median(line["peak_rss"] for line in lines),
                ratio=spread([r[runner]["seconds_per_step"] / r[base]["seconds_per_step"] for r in rounds]),
                ratio_to=base,
                first_result=lines[0].get("first_result"),
            )
        )
    return rows


def show(row):
    s, r = row["seconds"], row["ratio"]
    print(
        f"{row['what']:9} {row['runner']:14} {s['median']:9.4f} {'[%.4f, %.4f]' % (s['q1'], s['q3']):18}"
        f" {row['tokens_per_second']:9.0f} {row['gflops']:8.1f} {row['step_memory'] / 2**20:9.0f}"
        f" {r['median']:7.2f} [{r['q1']:.2f}, {r['q3']:.2f}]",
        flush=True,
    )


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--size", required=True)
    arguments.add_argument("--what", default=",".join(WHAT))
    arguments.add_argument("--runners", default="pytorch-tuned,pytorch-eager")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=10.0, help="a measurement, after warm-up")
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--device", default="cpu", help="of the peers")
    arguments.add_argument("--calm", default="calm", help="the calm program")
    arguments.add_argument("--json", type=Path, help="every measurement and the summary")
    a = arguments.parse_args()
    runners = a.runners.split(",")
    if "calm" in runners and not shutil.which(a.calm):
        arguments.error(f"{a.calm} is not there: name it with --calm, or leave calm out of --runners")
    print(f"{a.size}, {a.threads} threads, {a.rounds} rounds of {a.seconds:g} s; ratio: seconds / those of {runners[0]}")
    print(f"{'what':9} {'runner':14} {'s/step':>9} {'[quartiles]':18}", end=" ")
    print(f"{'tokens/s':>9} {'GFLOP/s':>8} {'step MiB':>9} {'ratio':>7} [quartiles]")
    measured, summary = [], []
    for what in a.what.split(","):
        rounds = []
        for turn in range(a.rounds):
            order = runners[turn % len(runners) :] + runners[: turn % len(runners)]
            rounds.append({runner: run(runner, what, a) for runner in order})
        measured += rounds
        summary += summarise(what, runners, rounds)
        for row in summary[-len(runners) :]:
            show(row)
        if a.json:
            record = dict(
                date=datetime.now(timezone.utc).isoformat(),
                machine=platform.platform(),
                size=a.size,
                threads=a.threads,
                seconds=a.seconds,
                summary=summary,
                rounds=measured,
            )
            a.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
