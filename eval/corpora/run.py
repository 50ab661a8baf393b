#!/usr/bin/env python3
"""Prepares a large text, starts it a second time, trains some steps on it, and says what that took.

    run.py GIGABYTES FOLDER

`FOLDER` gets the text and the cache, and is left to be deleted. Times are wall-clock seconds, memory the peak resident set
of the process (`getrusage`), which counts pages of mapped files that it touched. The same steps on a small text say what
training takes by itself.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CALM = ROOT / "target" / "release" / "calm"
SYNTHESISE = ROOT / "target" / "release" / "examples" / "synthesise"


def run(name, command):
    started = time.monotonic()
    # A process between, so that the peak is that of this command alone.
    code = (
        "import resource, subprocess, sys\n"
        "done = subprocess.run(sys.argv[1:], capture_output=True, text=True)\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "print(done.stdout)\n"
        "print(done.stderr[-2000:], file=sys.stderr)\n"
        "sys.exit(done.returncode)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, command)], capture_output=True, text=True)
    seconds = time.monotonic() - started
    if done.returncode != 0:
        sys.exit(f"{name} failed:\n{done.stderr}")
    peak, _, out = done.stdout.partition("\n")
    print(f"{name:40} {seconds:9.1f} s  {int(peak) / 1024:9.0f} MiB", flush=True)
    return out


def main():
    gigabytes, folder = sys.argv[1], Path(sys.argv[2])
    cache = folder / "cache"
    print(run("synthesise", [SYNTHESISE, folder / "text", gigabytes]).strip())
    run("synthesise the small one", [SYNTHESISE, folder / "small", "0.02"])
    text = lambda name: ["--set", f"data.source={{path: {folder / name}}}", "--cache", cache]
    config = ["--config", "baseline", "--set", "tokenizer.bpe.vocab_size=8192"]
    summary = run("prepare", [CALM, "data", "prepare", *config, *text("text"), "--format", "json"])
    print(json.dumps(json.loads(summary)["train"]))
    run("prepare the small one", [CALM, "data", "prepare", *config, *text("small")])
    run("second start", [CALM, "data", "prepare", *config, *text("text")])
    run("one step's rows (data sample)", [CALM, "data", "sample", *config, *text("text")])
    steps = ["--set", "train.lm.steps=30", "--set", "train.lm.eval_every=0", "--skip-scores", "--restart"]
    for name in ("small", "text"):
        out = folder / f"run-{name}"
        run(f"30 steps on the {name}", [CALM, "train", *config, *text(name), *steps, "--out", out])
        waits = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        waits = [line["values"]["train/data_wait"] for line in waits if "train/data_wait" in line.get("values", {})]
        print(f"  share of the time that steps waited for rows: {waits}")
    run("a fifth of the way through an epoch", [CALM, "data", "sample", *config, *text("text"), "--step", "20000"])


if __name__ == "__main__":
    main()
