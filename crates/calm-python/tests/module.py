"""What the installed module does, beyond its documentation's examples: `python module.py FOLDER`, where FOLDER/runs holds the
tiny runs `calm` and `baseline`, and FOLDER/book the book's page of the module.
"""

import ast
import doctest
import faulthandler
import inspect
import json
import math
import os
import pathlib
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import calm_lm
from calm_lm import _native

folder = pathlib.Path(sys.argv[1])
os.chdir(folder)


def raises(kind, call, *parts):
    try:
        call()
    except kind as error:
        assert all(part in str(error) for part in parts), error
        return error
    raise AssertionError(f"no {kind.__name__}")


def documented(holder, name):
    """What has a text of its own, with its name."""
    yield name, holder
    if inspect.isclass(holder):
        for key, value in vars(holder).items():
            if not key.startswith("_") and getattr(value, "__doc__", None):
                yield f"{name}.{key}", value


def examples_hold():
    runner, parser, tried = doctest.DocTestRunner(), doctest.DocTestParser(), 0
    texts = [("calm_lm", calm_lm.__doc__)]
    for name in calm_lm.__all__:
        texts += [(n, v.__doc__) for n, v in documented(getattr(calm_lm, name), f"calm_lm.{name}") if n != "calm_lm.__version__"]
    page = (folder / "book" / "python.md").read_text()
    # A fence ends what an example prints.
    texts.append(("python.md", "\n".join("" if line.startswith("```") else line for line in page.splitlines())))
    for name, text in texts:
        test = parser.get_doctest(text or "", {"calm_lm": calm_lm}, name, name, 0)
        tried += len(test.examples)
        runner.run(test)
    assert runner.failures == 0, f"{runner.failures} examples fail"
    assert tried > 30, f"only {tried} examples were found"


def types_are_those_of_what_is_compiled():
    text = (pathlib.Path(_native.__file__).parent / "_native.pyi").read_text()
    described = {}

    def walk(body, prefix):
        for node in body:
            if isinstance(node, ast.ClassDef):
                described[prefix + node.name] = None
                walk(node.body, f"{prefix}{node.name}.")
            elif isinstance(node, ast.FunctionDef):
                a = node.args
                described[prefix + node.name] = [p.arg for p in a.posonlyargs + a.args], [p.arg for p in a.kwonlyargs]

    walk(ast.parse(text).body, "")
    there = [k for k in vars(_native) if not k.startswith("_")]
    for name in there:
        value = getattr(_native, name)
        members = {f"{name}.{k}": v for k, v in vars(value).items() if not k.startswith("_")} if inspect.isclass(value) else {}
        for path, member in {name: value, **members}.items():
            assert path in described or path == "CalmError", f"{path} has no type"
            if described.get(path) and callable(member) and not inspect.isclass(member):
                parameters = inspect.signature(member).parameters.values()
                plain = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
                named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
                assert (plain, named) == described[path], f"{path}: {plain}, {named}; typed as {described[path]}"
    for path in described:
        holder, _, member = path.partition(".")
        known = holder in there or holder in ("_Buffer", "Scores")
        assert known and (not member or holder in ("_Buffer", "CalmError") or hasattr(getattr(_native, holder), member)), path
    assert (pathlib.Path(calm_lm.__file__).parent / "py.typed").is_file()


def metrics_are_those_of_the_file():
    run = calm_lm.open("runs/calm")
    lines = [json.loads(line) for line in open("runs/calm/metrics.jsonl")]
    for stage, columns in run.metrics().items():
        values = [line for line in lines if line["stage"] == stage and "values" in line]
        assert columns["step"].tolist() == [line["step"] for line in values]
        for name in set(columns) - {"step", "wall_time"}:
            for was, line in zip(columns[name].tolist(), values):
                expected = line["values"].get(name)
                assert was == expected or (math.isnan(was) and expected is None), (stage, name, was, expected)


def buffers_go_in_and_out():
    run = calm_lm.open("runs/calm")
    ids = run.encode("ana bolo du elf fugo ")
    k = run.chunk_size
    ids = ids[: len(ids) // k * k]
    mean, log_std = run.encode_chunks(ids)
    assert mean.format == log_std.format == "f" and mean.shape == (len(ids) // k, 24)
    assert not mean.readonly and all(math.isfinite(x) for row in mean.tolist() for x in row)
    # Lists, buffers of any whole numbers, rows of chunks: the same.
    import array

    rows = [ids.tolist()[i : i + k] for i in range(0, len(ids), k)]
    for same in (ids.tolist(), array.array("q", ids.tolist()), array.array("H", ids.tolist()), rows):
        assert run.encode_chunks(same)[0] == mean
    assert run.decode_latents(mean.tolist()) == run.decode_latents(mean)
    assert run.decode_latents(mean).shape == (len(ids) // k, k)
    assert run.decode(ids) == run.decode(ids.tolist())
    # Less than a chunk of nothing is nothing.
    assert run.encode("").shape == (0,)
    raises(ValueError, lambda: run.encode_chunks(ids[1:]), "whole chunks of 3")
    raises(ValueError, lambda: run.decode([300]), "300 is no token")
    raises(ValueError, lambda: run.decode([-1]), "-1 is no token")
    raises(ValueError, lambda: run.decode([[1, 2], [3]]), "one length")
    raises(TypeError, lambda: run.decode(array.array("d", [1.0])), "whole numbers")
    raises(TypeError, lambda: run.decode(["a"]))
    endless = []
    endless.append(endless)
    raises(ValueError, lambda: run.decode(endless), "8 deep")
    raises(calm_lm.CalmError, lambda: run.decode_latents([[0.0] * 23]), "[n, 24]")


def errors_say_what_helps():
    error = raises(calm_lm.CalmError, lambda: calm_lm.open("nowhere"), "nowhere is not a run", "hint: ")
    assert "name the folder of a run" in error.remedy
    raises(ValueError, lambda: calm_lm.open("runs/calm", checkpoint="worst"), "latest")
    raises(ValueError, lambda: calm_lm.open("runs/calm", device="tpu"), "tpu")
    raises(calm_lm.CalmError, lambda: calm_lm.open("runs/baseline", decode="sample"), "latent")
    raises(calm_lm.CalmError, lambda: calm_lm.open("runs/baseline").encode_chunks([1, 2]), "no autoencoder")
    run = calm_lm.open("runs/calm")
    raises(calm_lm.CalmError, lambda: run.generate("a", temperature=0.0), "temperature", "above 0")
    raises(calm_lm.CalmError, lambda: run.generate("a", top_p=0.5), "whole chunks", 'decode="sample"')
    raises(calm_lm.CalmError, lambda: calm_lm.open("runs/baseline").generate("a", temperature=-1.0))
    raises(ValueError, lambda: run.log_likelihoods([("a", "b")], samples=0))
    raises(ValueError, lambda: run.generate("a", temperature=0.5, draws=0), "draws=0")
    raises(ValueError, lambda: run.generate(["a"], places=0), "places=0")


def text_is_that_of_the_program(generated):
    prompt = "ana bolo du elf fugo "
    for name in ("calm", "baseline"):
        run = calm_lm.open(f"runs/{name}")
        text = run.generate(prompt, max_tokens=24)
        # What `calm generate` printed ends with a new line.
        assert prompt + text.text + "\n" == (generated / f"generated-{name}.txt").read_text(), name
        assert len(text.tokens) <= 24 and not text.stopped
        # Company changes nothing, and neither does where a text stands.
        prompts = [prompt, "ana ", "bolo du elf ", "du"]
        together = run.generate(prompts, max_tokens=12, seed=5)
        apart = [run.generate([p], max_tokens=12, seed=5, number=i)[0] for i, p in enumerate(prompts)]
        assert [t.text for t in together] == [t.text for t in apart]
        # A stop ends a text before it.
        whole = next(t.text for t in together if len(t.text) > 4)
        i = [t.text for t in together].index(whole)
        stop = whole[2:4]
        cut = run.generate(prompts, max_tokens=12, seed=5, until=[stop, "\0"])[i]
        assert cut.stopped and cut.text == whole[: whole.index(stop)], (cut.text, whole)
    greedy = calm_lm.open("runs/baseline")
    assert greedy.generate(prompt, max_tokens=9, temperature=0.0, seed=1).text == greedy.generate(
        prompt, max_tokens=9, temperature=0.0, seed=2
    ).text
    sampled = calm_lm.open("runs/calm", decode="sample")
    assert sampled.has_probabilities and not sampled.exact
    sampled.generate(prompt, max_tokens=6, temperature=0.0)


def probabilities_are_probabilities():
    run = calm_lm.open("runs/baseline")
    context, text = "ana bolo du ", "elf fugo ana bolo"
    # The chain rule, cut where a beginning has the tokens of the whole: nothing is lost between two questions.
    (whole, _), = run.log_likelihoods([("", context + text)])
    ids = run.encode(context + text).tolist()
    begun = [run.decode(ids[:i]) for i in range(len(ids) + 1)]
    same = lambda i: all(run.encode(t).tolist() == ids[:i] for t in (begun[i], begun[i].rstrip()))
    cuts = [begun[i] for i in range(len(ids) + 1) if same(i)]
    assert len(cuts) > 4 and cuts[-1] == context + text, cuts
    parts = [(a, b[len(a) :]) for a, b in zip(cuts, cuts[1:])]
    chained = sum(log_p for log_p, _ in run.log_likelihoods(parts))
    assert abs(chained - whole) < 1e-3 * abs(whole), (chained, whole)
    # What the most probable text is, is greedy; another is not.
    said = run.generate(context, max_tokens=5, temperature=0.0).text
    (sure, yes), (_, no) = run.log_likelihoods([(context, said), (context, "#@!?")])
    assert yes and not no and sure < 0.0
    # From below, and nearer with more draws (of the mean over questions).
    calm = calm_lm.open("runs/calm")
    pairs = [(context, text), ("", text), ("du ", text), (context * 30, text), (context, text * 30)]
    bounds = [
        sum(log_p for log_p, _ in calm.log_likelihoods(pairs, samples=n, seed=s)) for n in (1, 64) for s in range(4)
    ]
    assert all(math.isfinite(b) and b < 0.0 for b in bounds)
    assert sum(bounds[:4]) < sum(bounds[4:])
    # What is asked beside does not matter.
    alone = [calm.log_likelihoods([pair])[0] for pair in pairs]
    for (a, _), (b, _) in zip(alone, calm.log_likelihoods(pairs)):
        assert abs(a - b) < 1e-3 * abs(a), (a, b)
    assert calm.log_likelihoods([("a", "")]) == [(0.0, True)] and calm.log_likelihoods([]) == []


def a_signal_ends_work():
    if not hasattr(signal, "setitimer"):
        return

    def handler(number, frame):
        raise TimeoutError("enough")

    run = calm_lm.open("runs/baseline")
    run.generate("ana ", max_tokens=1)
    before = signal.signal(signal.SIGALRM, handler)
    started = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    # Hours of text.
    raises(TimeoutError, lambda: run.generate(["ana "] * 1000, max_tokens=100_000), "enough")
    signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - started < 60.0
    # It goes on as before.
    run.generate("ana ", max_tokens=1)


def threads_have_one_run():
    # Who waits for another here waits for ever.
    faulthandler.dump_traceback_later(300, exit=True)
    # The first of them loads the model.
    run = calm_lm.open("runs/calm")
    write = lambda seed: run.generate("ana ", max_tokens=6, seed=seed).text
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(write, range(24)))
    faulthandler.cancel_dump_traceback_later()
    assert together == [write(seed) for seed in range(24)]


def scores_of_arrays_and_of_a_file_are_equal():
    targets = [[i % 5, 1, 2, 3, 9] for i in range(12)]
    samples = [[[i % 5, 1, j, 3, 8] for j in (2, 4, 2)] for i in range(12)]
    documents = [i // 3 for i in range(12)]
    with open("samples.jsonl", "w") as out:
        for d, t, s in zip(documents, targets, samples):
            out.write(json.dumps({"document": d, "target": t, "samples": s}) + "\n")
    scores = calm_lm.brierlm(targets, samples, documents)
    assert scores == calm_lm.brierlm_file("samples.jsonl") and scores["documents"] == 4
    assert scores["brierlm"] is not None and scores["positions"] == 12
    ended = calm_lm.brierlm([[1, 7, 0, 0]] * 2, [[[1, 7, 5, 5], [1, 7, 6, 6]]] * 2, eos=7)
    assert ended["brier"] == [100.0] * 4
    raises(calm_lm.CalmError, lambda: calm_lm.brierlm(targets, [s[:1] for s in samples]), "2 samples", "draw more")
    raises(ValueError, lambda: calm_lm.brierlm(targets, targets), "[P, N, n]")
    raises(ValueError, lambda: calm_lm.brierlm(targets, samples[1:]), "11")
    raises(calm_lm.CalmError, lambda: calm_lm.brierlm_file("nowhere.jsonl"), "nowhere.jsonl")


def numpy_shares_the_memory():
    try:
        import numpy
    except ImportError:
        return "skipped: numpy shares the memory (needs numpy)"
    run = calm_lm.open("runs/calm")
    mean, _ = run.encode_chunks(numpy.arange(12, dtype=numpy.int64).reshape(4, 3))
    array = numpy.asarray(mean)
    assert array.dtype == numpy.float32 and array.shape == (4, 24)
    array[0, 0] = 7.0
    assert mean[0, 0] == 7.0
    assert run.decode_latents(array.astype(numpy.float64)) == run.decode_latents(array)
    # Columns of a larger array are copied in their order.
    wide = numpy.zeros((4, 48), numpy.float32)
    wide[:, ::2] = array
    assert run.decode_latents(wide[:, ::2]) == run.decode_latents(array)
    return None


metrics_are_those_of_the_file()
buffers_go_in_and_out()
errors_say_what_helps()
text_is_that_of_the_program(folder / "runs")
probabilities_are_probabilities()
a_signal_ends_work()
threads_have_one_run()
scores_of_arrays_and_of_a_file_are_equal()
types_are_those_of_what_is_compiled()
note = numpy_shares_the_memory()
examples_hold()
print(note or "the module is what its documentation says")
