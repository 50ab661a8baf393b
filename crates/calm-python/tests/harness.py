"""Runs as models of lm-evaluation-harness, on that package's own task files with a few documents of ours in place of their data:
`python harness.py FOLDER`, where FOLDER/runs holds the tiny runs `calm` and `baseline`. Nothing is downloaded.
"""

import json
import math
import os
import pathlib
import sys

# Before anything of a hub is imported.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
folder = pathlib.Path(sys.argv[1])
os.chdir(folder)
os.environ["HF_HOME"] = str(folder / "hub")

import lm_eval  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

import calm_lm  # noqa: E402
import calm_lm.harness  # noqa: E402

TASKS = pathlib.Path(lm_eval.__file__).parent / "tasks"
WORDS = "ana bolo du elf fugo gina hodo".split()


def sentence(i, n=8):
    return " ".join(WORDS[(i * 3 + j * (1 + i % 3)) % len(WORDS)] for j in range(n))


DATA = {
    # Log-likelihood of a last word; of one of four choices; of whole texts; and text until a stop.
    ("lambada", "lambada_openai"): [{"text": sentence(i)} for i in range(6)],
    ("sciq", "sciq"): [
        {
            "support": sentence(i) + ".",
            "question": sentence(i + 1, 4) + "?",
            "correct_answer": sentence(i, 2),
            "distractor1": "#@!",
            "distractor2": "elf elf",
            "distractor3": "du",
        }
        for i in range(5)
    ],
    ("wikitext", "wikitext"): [{"page": sentence(i, 60 + 40 * i)} for i in range(3)],
    ("triviaqa", "default"): [
        {"question": sentence(i, 5), "answer": {"aliases": [sentence(i, 1), "bolo"]}} for i in range(4)
    ],
}

included = folder / "tasks"
included.mkdir()
names = []
for (task, file), documents in DATA.items():
    data = included / f"{task}.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in documents))
    splits = {split: str(data) for split in ("train", "validation", "test")}
    own = {
        "include": str(TASKS / task / f"{file}.yaml"),
        "task": f"here_{task}",
        "tag": [],
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": splits},
        "should_decontaminate": False,
    }
    names.append(own["task"])
    # JSON is YAML.
    (included / f"{task}.yaml").write_text(json.dumps(own))
manager = TaskManager(include_path=str(included))


def evaluate(model, run, tasks, **arguments):
    found = lm_eval.simple_evaluate(
        model=model,
        model_args={"run": run, "device": "cpu", "draws": 8, **arguments},
        tasks=tasks,
        task_manager=manager,
        bootstrap_iters=0,
        log_samples=True,
    )
    assert found["config"]["model"] == model
    return found


def asked(found, task):
    return [(s["arguments"], s["resps"], s["filtered_resps"]) for s in found["samples"][task]]


def raises(call, part):
    try:
        call()
    except ValueError as error:
        assert part in str(error), error
        return
    raise AssertionError(f"nothing said {part}")


runs = {"calm": "runs/baseline", "calm-bound-8": "runs/calm"}
for model, run in runs.items():
    found = evaluate(model, run, names)
    results = found["results"]
    print(model, {task: {k: v for k, v in r.items() if isinstance(v, float)} for task, r in results.items()})
    opened = calm_lm.open(run, device="cpu")
    # The harness computes from what the module says of the same texts.
    texts = [d["text"] for d in DATA["lambada", "lambada_openai"]]
    pairs = [(t.rsplit(" ", 1)[0], " " + t.rsplit(" ", 1)[1]) for t in texts]
    answers = opened.log_likelihoods(pairs, samples=8)
    perplexity = math.exp(-sum(log_p for log_p, _ in answers) / len(answers))
    assert math.isclose(results["here_lambada"]["perplexity,none"], perplexity, rel_tol=1e-4)
    assert results["here_lambada"]["acc,none"] == sum(g for _, g in answers) / len(answers)
    pages = [d["page"] for d in DATA["wikitext", "wikitext"]]
    rolled = sum(log_p for log_p, _ in opened.log_likelihoods([("", p) for p in pages], samples=8, greedy=False))
    bits = -rolled / math.log(2) / sum(len(p.encode()) for p in pages)
    assert math.isclose(results["here_wikitext"]["bits_per_byte,none"], bits, rel_tol=1e-4), (results, bits)
    assert 0.0 <= results["here_sciq"]["acc,none"] <= 1.0
    for sample in found["samples"]["here_triviaqa"]:
        (text,), = sample["resps"]
        assert isinstance(text, str) and not any(stop in text for stop in ("\n", ".", ",")), text

# A CALM writes text under either name, and has no probabilities under the plain one.
plain = evaluate("calm", "runs/calm", ["here_triviaqa"])
bounded = evaluate("calm-bound-64", "runs/calm", ["here_triviaqa"])
texts = [[s["resps"] for s in found["samples"]["here_triviaqa"]] for found in (plain, bounded)]
assert texts[0] == texts[1]
raises(lambda: evaluate("calm", "runs/calm", ["here_sciq"]), "--model calm-bound-64")
raises(lambda: evaluate("calm-bound-64", "runs/baseline", ["here_sciq"]), "--model calm")

# As it is typed; results are filed with the name.
calm_lm.harness.main(
    ["run", "--model", "calm-bound-1", "--model_args", "run=runs/calm", "--tasks", "here_lambada"]
    + ["--include_path", str(included), "--output_path", str(folder / "out.json")]
)
written, = folder.glob("out*.json")
assert json.loads(written.read_text())["config"]["model"] == "calm-bound-1"
print("task files of lm-evaluation-harness run on both kinds of models")
