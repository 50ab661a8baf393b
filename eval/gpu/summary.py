"""Turns the logs of run.sh into a page: python3 summary.py LOGS > summary.md. Plain Python 3.

What is missing, because a step failed or was left out, is said to be missing; nothing is estimated.
"""

import json
import re
import sys
from pathlib import Path

# Dense rates by the makers' data sheets, TFLOP/s: bf16 by the tensor cores, f32 outside of them. First match counts.
PEAKS = (
    ("H100 PCIe", 756, 51),
    ("H100 NVL", 835, 60),
    ("H100", 989, 67),
    ("H200", 989, 67),
    ("A100", 312, 19.5),
    ("L40S", 362, 91.6),
    ("RTX 4090", 165, 82.6),
)


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def read(path):
    return path.read_text(errors="replace").strip() if path.exists() else ""


def table(header, rows):
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)


def number(value, digits=3):
    """About so many digits, without an exponent."""
    if value is None:
        return "?"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def spread(values, unit="", scale=1.0):
    """`median [q1, q3]` of a dict that compare.py wrote."""
    if values is None:
        return "?"
    median, low, high = (number(values[k] * scale) for k in ("median", "q1", "q3"))
    return f"{median}{unit} [{low}, {high}]"


class Logs:
    def __init__(self, folder):
        self.folder = folder
        self.doctor = read_json(folder / "doctor.json") or {}
        gpus = self.doctor.get("gpus") or [{}]
        self.gpu = next((g for g in gpus if g.get("rates")), gpus[0])
        self.speed, self.failed = {}, {}  # (size, what) -> record of compare.py, and why a program failed
        for path in sorted((folder / "speed").glob("*.json")):
            record = read_json(path) or dict(summary=[], failed={})
            for row in record["summary"]:
                self.speed[record["size"], row["what"]] = record
            for what, programs in record["failed"].items():
                self.failed.update({(record["size"], what, name): why for name, why in programs.items()})
        name = self.gpu.get("name", "")
        if not name:
            lines = [m["device"] for r in self.speed.values() for one in r["rounds"] for m in one.values()]
            name = next((n for n in lines if n != "cpu"), "")
        self.name = name
        self.peak, self.peak_f32 = next(((b, f) for key, b, f in PEAKS if key in name), (None, None))

    def row(self, size, what, runner):
        record = self.speed.get((size, what), {})
        rows = [r for r in record.get("summary", []) if r["what"] == what and r["runner"] == runner]
        return rows[0] if rows else None

    def measured_peak(self):
        """The best bf16 product that the doctor measured, FLOP/s."""
        rates = (self.gpu.get("rates") or {}).get("matrix", [])
        return max((r["flops_per_second"] for r in rates if r["shape"].startswith("bf16")), default=None)


def times(logs, size, what, peer):
    """How many times as long the peer takes, by rounds: (values, rounds), or None."""
    row = logs.row(size, what, peer)
    return (row["ratio"], row["rounds"]) if row and row["ratio"] and row["ratio_to"] == "calm" else None


def goals(logs):
    rows = []

    def goal(text, threshold, found, least=True):
        """found: (shown, value, n) or None."""
        if found is None:
            return rows.append([text, "not measured", "", ""])
        shown, value, n = found
        reached = value >= threshold if least else value <= threshold
        rows.append([text, shown, n, "reached" if reached else "**missed**"])

    def faster(size, what, peer):
        found = times(logs, size, what, peer)
        return found and (f"{spread(found[0])} ×", found[0]["median"], found[1])

    def memory(peer):
        ours, theirs = (logs.row("calm-m", "energy", runner) for runner in ("calm", peer))
        if not ours or not theirs or ours["step_memory"] is None or not theirs["step_memory"]:
            return None
        share = ours["step_memory"] / theirs["step_memory"]
        mib = [row["step_memory"] / 2**20 for row in (ours, theirs)]
        shown = f"1/{number(1 / share)} ({number(mib[0])} of {number(mib[1])} MiB)" if share else "0"
        return shown, share, ours["rounds"]

    calm = logs.row("calm-m", "lm", "calm")
    mfu = None
    if calm and logs.peak:
        share = calm["gflops"] / 1e3 / logs.peak
        mfu = f"{share:.1%} of {logs.peak} TFLOP/s", share, calm["rounds"]
    tuned, eager = "pytorch-tuned", "pytorch-eager"
    goal("CALM-M training, tokens/s: at least 1.3 × the tuned peer's", 1.3, faster("calm-m", "lm", tuned))
    goal("CALM-M training, model FLOPs of the card's bf16 peak: at least 50 %", 0.5, mfu)
    goal("energy loss: at least 10 × as fast as eager", 10, faster("calm-m", "energy", eager))
    goal("energy loss: at least 3 × as fast as compiled", 3, faster("calm-m", "energy", tuned))
    goal("energy loss: at most 1/50 of the compiled one's memory", 1 / 50, memory(tuned), least=False)
    goal("energy loss: at most 1/50 of the eager one's memory", 1 / 50, memory(eager), least=False)
    return table(["goal", "median [quartiles]", "rounds", ""], rows)


def speed(logs):
    rows = []
    best = logs.measured_peak()
    for (size, what), record in logs.speed.items():
        for row in (r for r in record["summary"] if r["what"] == what):
            lines = [r[row["runner"]] for r in record["rounds"] if row["runner"] in r]
            rate = row["gflops"] * 1e9
            peak = logs.peak_f32 if what == "energy" else logs.peak
            rows.append(
                [
                    f"{size} {what}",
                    row["runner"],
                    spread(row["seconds"], " ms", 1e3),
                    number(row["tokens_per_second"]),
                    number(rate / 1e12),
                    f"{rate / 1e12 / peak:.1%}" if peak else "?",
                    f"{rate / best:.1%}" if best and what != "energy" else "",
                    number(row["step_memory"] and row["step_memory"] / 2**20),
                    spread(row["ratio"]),
                    f"{row['rounds']} × {min(m['n'] for m in lines)}",
                    number(row["first_result"]) if isinstance(row["first_result"], float) else row["first_result"],
                ]
            )
    header = [
        "work", "runner", "a step", "tokens/s", "TFLOP/s", "of peak", "of measured product", "step MiB",
        "time / calm's", "rounds × times at least", "first result",
    ]  # fmt: skip
    page = table(header, rows) if rows else "Not measured."
    failed = [
        f"- {size} {what}, {runner}: {' / '.join(why.strip().splitlines()[-2:])[-400:]}"
        for (size, what, runner), why in logs.failed.items()
    ]
    return "\n".join([page, *(["", "What failed:", "", *failed] if failed else [])])


def tests(logs):
    rows = []
    for line in read(logs.folder / "tests/status.tsv").splitlines():
        name, status = line.split("\t")
        text = read(logs.folder / f"tests/{name}.log")
        passed, failed = (sum(map(int, re.findall(rf"(\d+) {word}", text))) for word in ("passed", "failed"))
        names = sorted(set(re.findall(r"^test (\S+) \.\.\. FAILED", text, re.M)))
        summary = re.findall(r"=+ (ERROR SUMMARY.*|RACECHECK SUMMARY.*)", text)
        said = {"0": "ok", "124": "time limit"}.get(status, f"status {status}")
        rows.append([name, said, passed, failed, ", ".join(names + summary)])
    for name, label in (("peers", "not compiled"), ("peers-compiled", "compiled energy loss")):
        peers = read(logs.folder / f"tests/{name}.log")
        if not peers:
            continue
        lines = [line for line in peers.splitlines() if " is off by " in line or "Error" in line]
        count = len(re.findall(r" (eager|tuned) ", peers))
        what = f"PyTorch peers on the golden numbers, {label}"
        rows.append([what, "see right" if lines else "ok", count - len(lines), len(lines), "; ".join(lines)[:300]])
    return table(["program", "", "passed", "failed", "which"], sorted(rows, key=lambda r: r[0])) if rows else "Not run."


def brier_of(scores):
    """The scores in what `calm eval brierlm` prints, wherever they lie in it."""
    if isinstance(scores, dict):
        if "brierlm" in scores and "brier" in scores:
            return scores
        return next((found for found in map(brier_of, scores.values()) if found), {})
    if isinstance(scores, list):
        return next((found for found in map(brier_of, scores) if found), {})
    return {}


def training(logs):
    rows = []
    for name in ("calm-k4", "baseline"):
        result = read_json(logs.folder / f"training/{name}.json") or {}
        scores = read_json(logs.folder / f"training/{name}-scores.json")
        if not result and not (logs.folder / f"training/{name}-metrics.jsonl").exists():
            continue
        brier = result.get("brier") or brier_of(scores)
        values = list(zip(brier.get("brier") or [], brier.get("brier_se") or []))
        pair = lambda value, error: f"{value:.2f} ± {error or 0:.2f}"
        score = brier.get("brierlm")
        metrics = read(logs.folder / f"training/{name}-metrics.jsonl").splitlines()
        lines = [json.loads(line) for line in metrics if line.endswith("}")]
        rates = [m["values"]["train/tokens_per_second"] for m in lines
                 if m["stage"] == "lm" and "train/tokens_per_second" in m.get("values", {})]  # fmt: skip
        stages = {}
        for m in lines:
            stages.setdefault(m["stage"], []).append(m["wall_time"])
        spent = ", ".join(f"{stage} {max(t) - min(t):.0f} s" for stage, t in stages.items())
        autoencoder = result.get("autoencoder") or {}
        rows.append(
            [
                name,
                brier.get("step", "?") if result else f"{max((m['step'] for m in lines if m['stage'] == 'lm'), default=0)}, stopped",
                spent,
                number(sorted(rates)[len(rates) // 2]) if rates else "?",
                f"{autoencoder['token_accuracy']:.2%}" if autoencoder else "",
                ", ".join(pair(v, e) for v, e in values) or "?",
                pair(score, brier.get("brierlm_se")) if score is not None else "undefined" if brier else "?",
                brier.get("positions", "?"),
            ]
        )
        if name == "calm-k4":
            for gram, score in (brier.get("ngram") or {}).items():
                both = ", ".join(pair(v, e) for v, e in zip(score["brier"], score["brier_se"]))
                whole = score["brierlm"]
                lm = pair(whole, score["brierlm_se"]) if whole is not None else "undefined"
                rows.append([gram, "", "", "", "", both, lm, score.get("positions", "?")])
    header = ["run", "steps", "time", "tokens/s, median", "tokens rebuilt", "Brier-1..4, percent", "BrierLM", "positions"]
    return table(header, rows) if rows else "Not run."


def operators(logs):
    report = read_json(logs.folder / "operators.json")
    if not report:
        return "Not measured."
    rows = []
    best = max((r["flops_per_second"] for r in report["matrix"]), default=None)
    copy = report["copy_bytes_per_second"]
    for o in report["operators"]:
        whole, plain = o["both"] or o["forward"], o["plain"]
        flops, moved = o["flops_per_second"], o["bytes_per_second"]
        rows.append(
            [
                o["name"],
                o["shape"],
                number(o["forward"]["median"] * 1e3),
                spread(dict(median=whole["median"], q1=whole["quartiles"][0], q3=whole["quartiles"][1]), "", 1e3),
                whole["n"],
                number(plain["median"] / whole["median"]) if plain else "",
                f"{number(flops / 1e12)} TFLOP/s" if flops else f"{number(moved / 1e9)} GB/s",
                f"{flops / best:.0%}" if flops and best else f"{moved / copy:.0%}" if moved and copy else "",
            ]
        )
    header = ["operator", "shape", "forward, ms", "whole, ms", "n", "composition / whole", "rate", "of measured peak"]
    skipped = [f"- {s['name']}: {s['reason']}" for s in report.get("skipped", [])]
    return "\n".join([table(header, rows), *skipped])


def hardware(logs):
    rates = logs.gpu.get("rates") or {}
    matrix = ", ".join(f"{r['shape']} {number(r['flops_per_second'] / 1e12)}" for r in rates.get("matrix", []))
    smi = read(logs.folder / "nvidia-smi.log")
    driver = re.search(r"Driver Version: (\S+)", smi)
    rows = [
        ["date", read(logs.folder / "date")],
        ["commit", read(logs.folder / "commit") or "?"],
        ["GPU", f"{logs.name or '?'}, {number((logs.gpu.get('memory_bytes') or 0) / 2**30)} GiB, "
                f"{logs.gpu.get('multiprocessors', '?')} multiprocessors"],  # fmt: skip
        ["data sheet, TFLOP/s", f"bf16 {logs.peak or '?'}, f32 {logs.peak_f32 or '?'}"],
        ["measured products, TFLOP/s", matrix or "?"],
        ["measured copy, GB/s", number(rates["copy_bytes_per_second"] / 1e9) if rates else "?"],
        ["driver, CUDA", f"{driver[1] if driver else logs.doctor.get('gpu_driver') or '?'}, {logs.doctor.get('cuda', '?')}"],
        ["built with", read(logs.folder / "nvcc") or "?"],
        ["PyTorch", read(logs.folder / "torch") or "none that finds the GPU"],
        ["processor", f"{logs.doctor.get('cores', '?')} cores, {logs.doctor.get('device', '?')}"],
    ]
    problems = [f"- {p['what']}; {p['remedy']}" for p in logs.doctor.get("problems", [])]
    return "\n".join([table(["", ""], rows), *(["", *problems] if problems else [])])


def steps(logs):
    rows = []
    for line in read(logs.folder / "steps.tsv").splitlines():
        name, status, spent, limit = line.split("\t")
        said = {"0": "done", "124": "**time limit**", "skipped": "left out: no time"}.get(status, f"**status {status}**")
        rows.append([name, said, spent, limit])
    return table(["step", "", "seconds", "limit"], rows)


def main():
    logs = Logs(Path(sys.argv[1]))
    print(
        f"""# calm on {logs.name or 'a GPU'}

{hardware(logs)}

## Goals

{goals(logs)}

A round runs all programs in turn on the same card; a ratio is taken within a round. Model FLOPs by formula (full
attention, training = 3 × forward, nothing for recomputation), the same for all programs. The tuned peer is compiled,
with bf16 copies of float32 masters, as calm has them; the eager one computes under autocast.

## Speed, in bf16

{speed(logs)}

Of peak: of the data sheet's bf16 rate; for the energy loss alone of the f32 rate outside of the tensor cores, at 6
FLOPs a pair and dimension. Step MiB: most memory in a step above what stays between steps. First results show that the
same was computed; they differ by the random numbers drawn.

## The same results as on the CPU

{tests(logs)}

## Training for a minute

{training(logs)}

## Operators

{operators(logs)}

## Steps

{steps(logs)}"""
    )


if __name__ == "__main__":
    main()
