"""Programs in turn: python compare.py --size small --what lm,ae --rounds 5 --seconds 10 --json OUT.

Every measurement is a process of its own (with --stay, a peer's process stays for all rounds, so that it compiles once);
a round runs each runner once, in an order that rotates, so that slow drifts of the machine hit all alike. A ratio is
taken within a round: seconds of the runner / seconds of the first. Shown are medians over the rounds with their quartiles.
"""

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

WHAT = ("ae", "lm", "baseline", "energy", "attention", "generate", "brier_k1", "brier_k2", "brier_k4")

HERE = Path(__file__).parent


class Failed(Exception):
    """A runner that gave no measurement, and why."""


def reason(text):
    """The line that names the error, else the last one."""
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    return next((line for line in lines if "rror:" in line), "".join(lines[-1:]))


class Runner:
    """A program, started anew for every measurement unless it stays. A measurement is {what, size, peer,
    seconds_per_step, tokens_per_second, …}."""

    def __init__(self, name, what, a, end):
        self.name, self.what, self.a, self.end = name, what, a, end
        self.process, self.timer, self.errors = None, None, None

    def command(self):
        a = self.a
        common = ["--size", a.size, "--what", self.what, "--seconds", str(a.seconds), "--precision", a.precision]
        if self.name == "calm":
            device = "cuda:0" if a.device == "cuda" else a.device
            return [a.calm, "bench", *common, "--device", device, "--format", "json", "--quiet"]
        peer = self.name.removeprefix("pytorch-")
        return [sys.executable, str(HERE / "bench.py"), "--peer", peer, "--device", a.device, *common]

    def start(self, *more):
        threads = str(self.a.threads)
        environment = dict(os.environ, OMP_NUM_THREADS=threads, RAYON_NUM_THREADS=threads)
        self.errors = tempfile.TemporaryFile("w+")
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)
        self.process = subprocess.Popen([*self.command(), *more], env=environment, **pipes)
        if self.end is not None:
            self.timer = threading.Timer(max(self.end - time.monotonic(), 1.0), self.process.kill)
            self.timer.start()

    def prepare(self):
        """Lets a peer that stays make its model; all of them do at once."""
        if self.a.stay and self.name != "calm":
            self.start("--turns")

    def ready(self):
        if self.process is not None:
            self.line()

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            self.fail()
        return json.loads(line)

    def fail(self, why=""):
        status = self.process.wait()
        self.errors.seek(0)
        text = self.errors.read()[-2000:].strip()
        self.stop()
        raise Failed(f"{' '.join(self.command())} ended with {status}\n{why}{text}")

    def measure(self):
        if self.process is not None:
            try:
                self.process.stdin.write("\n")
                self.process.stdin.flush()
            except BrokenPipeError:
                self.fail()
            return self.line()
        self.start()
        out, _ = self.process.communicate()
        if self.process.returncode != 0 or not out:
            self.fail()
        if self.name == "calm":
            found = json.loads(out)
            if not found["work"]:
                self.fail("; ".join(s["reason"] for s in found["skipped"]))
            result = found["work"][0]
        else:
            result = json.loads(out.splitlines()[-1])
        self.stop()
        return result

    def stop(self):
        if self.timer is not None:
            self.timer.cancel()
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.process = self.timer = None


def spread(values):
    """Median and quartiles."""
    if len(values) == 1:
        return dict(median=values[0], q1=values[0], q3=values[0])
    q1, median, q3 = statistics.quantiles(values, n=4, method="inclusive")
    return dict(median=median, q1=q1, q3=q3)


def known(values):
    """Median of those that the system told; None without any."""
    values = [v for v in values if v is not None]
    return statistics.median(values) if values else None


def summarise(what, runners, rounds):
    rows, base = [], runners[0]
    for runner in runners:
        lines = [r[runner] for r in rounds if runner in r]
        if not lines:
            continue
        pairs = [(r[runner], r[base]) for r in rounds if runner in r and base in r]
        seconds = [line["seconds_per_step"] for line in lines]
        rows.append(
            dict(
                what=what,
                runner=runner,
                seconds=spread(seconds),
                tokens_per_second=statistics.median(line["tokens_per_second"] for line in lines),
                gflops=lines[0]["flops_per_step"] / statistics.median(seconds) / 1e9,
                step_memory=known(line["step_memory"] for line in lines),
                peak_memory=known(line.get("peak_gpu") or line["peak_rss"] for line in lines),
                rounds=len(lines),
                ratio=spread([one["seconds_per_step"] / first["seconds_per_step"] for one, first in pairs]) if pairs else None,
                ratio_to=base,
                first_result=lines[0].get("first_result"),
            )
        )
    return rows


def show(row):
    s, r = row["seconds"], row["ratio"] or dict.fromkeys(("median", "q1", "q3"), math.nan)
    memory = math.nan if row["step_memory"] is None else row["step_memory"] / 2**20
    print(
        f"{row['what']:9} {row['runner']:14} {s['median']:9.4f} {'[%.4f, %.4f]' % (s['q1'], s['q3']):18}"
        f" {row['tokens_per_second']:9.0f} {row['gflops']:8.1f} {memory:9.0f}"
        f" {r['median']:7.2f} [{r['q1']:.2f}, {r['q3']:.2f}]",
        flush=True,
    )


def rounds_of(what, runners, a, save):
    """Measures what until all rounds are done or the time is over; whoever fails is left out from there."""
    end = None if a.limit is None else time.monotonic() + a.limit
    running = [Runner(name, what, a, end) for name in runners]
    rounds, failed = [], {}

    def attempt(runner, do):
        try:
            return do()
        except Failed as e:
            if not a.go_on:
                raise
            failed[runner.name] = str(e)
            print(f"{what:9} {runner.name:14} failed: {reason(str(e))}", flush=True)
            running.remove(runner)

    try:
        for runner in running:
            runner.prepare()
        for runner in list(running):
            attempt(runner, runner.ready)
        for turn in range(a.rounds):
            if rounds and end is not None and time.monotonic() + 1.2 * longest > end:
                break
            began, one = time.monotonic(), {}
            at = turn % max(len(running), 1)
            for runner in running[at:] + running[:at]:
                result = attempt(runner, runner.measure)
                if result is not None:
                    one[runner.name] = result
            longest = time.monotonic() - began
            if one:
                rounds.append(one)
                save(rounds, failed)
    finally:
        for runner in running:
            runner.stop()
    save(rounds, failed)
    return rounds


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--size", required=True)
    arguments.add_argument("--what", default=",".join(WHAT))
    arguments.add_argument("--runners", default="pytorch-tuned,pytorch-eager", help="of calm and pytorch-{eager,tuned,autocast}")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=10.0, help="a measurement, after warm-up")
    arguments.add_argument("--threads", type=int, default=os.cpu_count())
    arguments.add_argument("--device", default="cpu", help="cpu or cuda, the first GPU")
    arguments.add_argument("--precision", choices=("f32", "bf16"), default="f32", help="of activations and products")
    arguments.add_argument("--stay", action="store_true", help="a peer's process stays for all rounds")
    arguments.add_argument("--go-on", action="store_true", help="a runner that fails does not end the others' rounds")
    arguments.add_argument("--limit", type=float, help="seconds for each piece of work; it has the rounds that fit")
    arguments.add_argument("--calm", default="calm", help="the calm program")
    arguments.add_argument("--json", type=Path, help="every measurement and the summary")
    a = arguments.parse_args()
    runners = a.runners.split(",")
    if "calm" in runners and not shutil.which(a.calm):
        arguments.error(f"{a.calm} is not there: name it with --calm, or leave calm out of --runners")
    print(f"{a.size}, {a.precision}, {a.device}, {a.threads} threads, {a.rounds} rounds of {a.seconds:g} s;", end=" ")
    print(f"ratio: seconds / those of {runners[0]}")
    print(f"{'what':9} {'runner':14} {'s/step':>9} {'[quartiles]':18}", end=" ")
    print(f"{'tokens/s':>9} {'GFLOP/s':>8} {'step MiB':>9} {'ratio':>7} [quartiles]")
    measured, summary, failures = [], [], {}

    def save(what, rounds, failed):
        if failed:
            failures[what] = failed
        if a.json:
            record = dict(
                date=datetime.now(timezone.utc).isoformat(),
                machine=platform.platform(),
                size=a.size,
                precision=a.precision,
                threads=a.threads,
                seconds=a.seconds,
                summary=summary + summarise(what, runners, rounds),
                failed=failures,
                rounds=measured + rounds,
            )
            a.json.write_text(json.dumps(record, indent=1) + "\n")

    for what in a.what.split(","):
        try:
            rounds = rounds_of(what, runners, a, lambda rounds, failed: save(what, rounds, failed))
        except Failed as e:
            sys.exit(f"error: {e}")
        measured += rounds
        rows = summarise(what, runners, rounds)
        summary += rows
        for row in rows:
            show(row)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
