"""Runs both peers on the golden cases: python check.py ../../golden [--size small] [--no-compile] [--device cuda].

Prints the largest error of every case and peer, relative to the largest magnitude of the expected tensor, and ends
with status 1 if a value is off by more than 2e-5, a gradient by more than 5e-5, or an integer at all. With --size, the
losses and gradients of a training step of that size are compared between the peers, as well: compilers choose other
code for other shapes.
"""

import argparse
import json
import math
import struct
import sys
from pathlib import Path

import numpy as np
import torch

from model import Autoencoder, Backbone, Baseline, Calm, initialise
from sampling import batched_weights, brier, generate, pool_weights, roll_batched, roll_one_by_one
from work import Peer, build

SIZES = Path(__file__).parent.parent / "sizes.json"
VALUE, GRADIENT = 2e-5, 5e-5
DTYPES = {"F32": np.float32, "F64": np.float64, "I64": np.int64}


def tensors(path, device):
    raw = path.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    found = {}
    for name, about in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            start, end = (8 + size + o for o in about["data_offsets"])
            array = np.frombuffer(raw[start:end], DTYPES[about["dtype"]]).reshape(about["shape"])
            found[name] = torch.from_numpy(array.copy()).to(device)
    return found


def settings(folder):
    c = json.loads((folder / "config.json").read_text())
    names = dict(
        vocab="vocab_size", chunk_size="patch_size", latent="latent_size", hidden="hidden_size",
        intermediate="intermediate_size", encoder_layers="num_encoder_layers", decoder_layers="num_decoder_layers",
        layers="num_hidden_layers", heads="num_attention_heads", kv_heads="num_key_value_heads", pad="pad_token_id",
        head_blocks="num_mlp_layers", noise="noise_size", samples="num_samples", alpha="beta", eos="eos_token_id",
        kl_weight="kl_weight", kl_clamp="kl_clamp",
    )  # fmt: skip
    return {ours: c.get(theirs) for ours, theirs in names.items()}


class Case:
    """Compares with the tensors of one file and keeps the worst errors."""

    def __init__(self, expected):
        self.expected, self.worst, self.compared = expected, {}, 0

    def same(self, name, found, expected=None):
        expected = self.expected[name] if expected is None else expected
        assert found.shape == expected.shape, f"{name}: {tuple(found.shape)}, expected {tuple(expected.shape)}"
        found, expected = found.detach().double(), expected.double()
        error = (found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
        error = math.inf if error.isnan() else error.item()  # a NaN is no agreement
        kind = "integer" if name in INTEGERS else "gradient" if name.startswith("grad.") else "value"
        self.worst[kind] = max(self.worst.get(kind, (-1.0, "")), (error, name))
        self.compared += 1

    def all(self, parts):
        for name, tensor in parts.items():
            if name in self.expected:
                self.same(name, tensor)

    def gradients(self, model, loss):
        loss.backward()
        found = {f"grad.{n}": p.grad for n, p in model.named_parameters() if p.requires_grad}
        expected = {n for n in self.expected if n.startswith("grad.")}
        assert set(found) == expected, f"gradients differ by name: {set(found) ^ expected}"
        for name, gradient in found.items():
            self.same(name, gradient)


INTEGERS = {"argmax", "predictions_1", "predictions_2", "output_ids", "collision", "step_predictions", "low.collision"}


def load(model, path, device, prefix=""):
    weights = {prefix + n: t for n, t in tensors(path, device).items()}
    missing, _ = model.to(device).load_state_dict(weights, strict=False)
    assert not missing, missing
    return model.eval()


def load_calm(folder, device):
    autoencoder = load(Autoencoder(settings(folder / "ae")), folder / "ae/model.safetensors", device)
    return load(Calm(settings(folder), autoencoder), folder / "model.safetensors", device)


def check_autoencoder(folder, io, peer, device):
    case, model = Case(io), load(Autoencoder(settings(folder)), folder / "model.safetensors", device)
    c = settings(folder)
    masks = io.get("token_mask"), io.get("latent_mask")
    loss, parts = peer.autoencoder_loss(model, io["input_ids"], io["eps"], *masks, c["kl_weight"], c["kl_clamp"])
    case.all(dict(parts, total_loss=loss, argmax=parts["logits"].argmax(-1)))
    case.gradients(model, loss)
    return case


def check_calm(folder, io, peer, device):
    if "prompt" in io:
        return check_generate(folder, io, peer, device)
    case, model, c = Case(io), load_calm(folder, device), settings(folder)
    alpha = c["alpha"]
    if "beta" in io:  # the inputs of io.safetensors with another exponent
        alpha, io = float(io["beta"]), tensors(folder / "io.safetensors", device)
    loss, parts = peer.calm_loss(model, io["input_ids"], io["noise"], io["eps"], alpha, io.get("row_mask"))
    case.all(dict(parts, loss=loss))
    case.gradients(model, loss)
    if "predictions_1" in case.expected:
        check_brier_of_model(case, model, c["chunk_size"], io, peer)
    return case


def check_brier_of_model(case, model, k, io, peer):
    """Brier of the model's first two samples; for K < 4 with the golden noise of every rolled step."""
    with torch.no_grad():
        ids = io["input_ids"]
        hidden, cache = model.transformer(model.embed(ids[:, :-k]))
        targets = ids[:, k:].unflatten(1, (-1, k))
        b, p = targets.shape[:2]
        pair = peer.draw_tokens(model, hidden.flatten(0, 1), io["noise"][:2])
        first, second = pair.unflatten(1, (b, p))
        steps = None
        if k < 4:
            assert (io["step_index"][:, 1] == 1).all() and len(io["step_index"]) == p - 2, "one step a start: K = 2"
            numbers = io["step_noise"][:, :, :, 0]  # [start, 2, B, noise]
            if peer.roll is roll_one_by_one:
                queue = iter(numbers)
                noise = lambda *_: next(queue)
            else:
                noise = lambda *_: numbers.permute(1, 2, 0, 3).flatten(1, 2)
            steps = peer.roll(model, cache, first, second, lambda h, n: peer.draw_tokens(model, h, n), noise)
            case.same("step_predictions", steps[0].permute(2, 0, 1, 3))
        scores, collision = brier(first, second, targets, steps)
        case.all(dict(predictions_1=first, predictions_2=second, brier=scores))
        if k < 4:
            case.same("collision", collision.transpose(0, 1))


def check_generate(folder, io, peer, device):
    """Chunks drawn one sample each, then what the reference makes of EOS and PAD."""
    case, model, c = Case(io), load_calm(folder, device), settings(folder)
    prompt, k, pad, eos = io["prompt"], c["chunk_size"], c["pad"], c["eos"]
    prompt = torch.nn.functional.pad(prompt, (0, -prompt.shape[1] % k), value=pad)
    queue = iter(io["noise"])
    new = generate(
        model, prompt, len(io["noise"]), 1, 1,
        lambda h, n: peer.draw_tokens(model, h, n), lambda *_: next(queue).unsqueeze(0), peer.select,
    )  # fmt: skip
    rows = []
    for before, drawn in zip(prompt.tolist(), new.unflatten(1, (-1, k)).tolist()):
        row, ended = list(before), False
        for chunk in drawn:
            row += [pad] * k if ended else chunk
            ended |= eos in chunk
        kept = [t for t in row if t != pad]
        rows.append(kept + [pad] * (len(row) - len(kept)))
    case.same("output_ids", torch.tensor(rows, device=device))
    return case


def check_baseline(folder, io, peer, device):
    case, model = Case(io), load(Baseline(settings(folder)), folder / "model.safetensors", device)
    loss, parts = peer.baseline_loss(model, io["input_ids"])
    case.same("loss", loss)
    case.same("logits", parts["logits"], io["logits"][:, :-1])
    case.gradients(model, loss)
    return case


@torch.no_grad()
def check_backbone(folder, io, peer, device):
    case, model = Case(io), load(Backbone(settings(folder)), folder / "model.safetensors", device)
    for length in (1, 5, 17, 80):
        case.same(f"hidden_{length}", model(io["inputs_embeds"][:, :length])[0])
    pieces, cache, start = [], None, 0
    for length in io["chunks"].tolist():
        hidden, cache = model(io["inputs_embeds"][:, start : start + length], cache)
        pieces.append(hidden)
        start += length
    case.same("hidden_cached", torch.cat(pieces, 1))
    return case


def check_energy(folder, io, peer, device):
    """α < 1: the eager gradient is NaN, as the reference's is, so only the tuned one is compared."""
    case, about = Case(io), json.loads((folder / "config.json").read_text())
    for name in about["cases"]:
        eps = io[f"{name.split('_')[0]}.eps"]
        for alpha in about["betas"]:
            label = f"{name}.beta_{alpha}"
            if f"{label}.score" not in io:
                continue
            x = io[f"{name}.x"].clone().requires_grad_()
            energy = peer.energy if alpha == 1 else peer.plain_energy  # only α = 1 is timed, so only that is compiled
            per_row = energy(x, io[f"{name}.mean"], io[f"{name}.log_std"], eps, alpha)
            case.same(f"{label}.score", -per_row)
            per_row.mean().backward()
            if alpha >= 1 or peer.tuned:
                case.same(f"grad.{label}.x", x.grad)
    return case


def check_brier(folder, io, peer, device):
    case = Case(io)
    for low in ("", "low."):
        first, second, targets = (io[f"{low}{n}"] for n in ("predictions_1", "predictions_2", "targets"))
        steps = io.get(f"{low}step_predictions")  # [start, step, sample, B, K]
        scores, collision = brier(first, second, targets, None if steps is None else steps.permute(1, 2, 3, 0, 4))
        case.same(f"{low}brier", scores)
        expected = io[f"{low}collision"]  # K >= 4: [B, P, K]; K < 4: [start, B, 4]
        case.same(f"{low}collision", collision, expected[..., :4] if steps is None else expected.transpose(0, 1))
    return case


def check_temperature(folder, io, peer, device):
    """Selection probabilities of the pools."""
    case = Case({})
    for pool in json.loads((folder / "pools.json").read_text())["pools"]:
        tokens = torch.tensor(pool["tokens"], device=device)
        for result in pool["results"]:
            expected = {tuple(p["chunk"]): p["prob"] for p in result["probs"]}
            if peer.tuned:
                weights = batched_weights(tokens.unsqueeze(1), result["n"])[0].tolist()
                chunks = [tuple(t) for t in tokens.tolist()]
            else:
                chunks, weights = pool_weights(tokens, result["n"])
            total, found = sum(weights), dict.fromkeys(expected, 0.0)
            for chunk, weight in zip(chunks, weights):
                if weight > 0:
                    found[chunk] = found.get(chunk, 0.0) + weight / total
            assert found.keys() == expected.keys(), f"{pool['name']}: other candidates"
            pair = (torch.tensor([d[c] for c in expected], dtype=torch.float64) for d in (found, expected))
            case.same(f"{pool['name']} at {result['temperature']}", *pair)
    return case


def check_size(size, what, compiled, device):
    """The tuned peer's loss and gradients against the eager peer's, the same weights and draws; no weight is 0."""
    found = []
    for name in ("eager", "tuned"):
        step = build(what, size, Peer(name, compiled), device)
        torch.manual_seed(2)
        initialise(step.model)
        result = torch.tensor(step())
        gradients = {f"grad.{n}": p.grad for n, p in step.model.named_parameters() if p.grad is not None}
        found.append(dict(gradients, loss=result))
    case = Case(found[0])
    assert found[0].keys() == found[1].keys(), f"gradients differ by name: {found[0].keys() ^ found[1].keys()}"
    case.all(found[1])
    return case


CHECKS = dict(
    autoencoder=check_autoencoder,
    calm_energy=check_calm,
    ar_baseline=check_baseline,
    llama_rope=check_backbone,
    energy_score=check_energy,
    brier=check_brier,
    temperature_sampling=check_temperature,
)


def report(path, peer, case):
    """Prints a line; whether something is off."""
    bad = [
        f"{kind} {case.worst[kind][1]} is off by {case.worst[kind][0]:.1e}"
        for kind, limit in (("value", VALUE), ("gradient", GRADIENT), ("integer", 0.0))
        if kind in case.worst and not case.worst[kind][0] <= limit
    ]
    show = lambda kind: f"{case.worst[kind][0]:.1e}" if kind in case.worst else "-"
    exact = "-" if "integer" not in case.worst else "equal" if case.worst["integer"][0] == 0 else "differ"
    print(f"{path:28}{peer:7}{case.compared:8}  {show('value'):>8}  {show('gradient'):>9}  {exact}", *bad, flush=True)
    return bool(bad)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("golden", type=Path)
    arguments.add_argument("--peer", choices=("eager", "tuned"), action="append")
    arguments.add_argument("--case", help="only cases whose name begins so")
    arguments.add_argument("--size", help="a name in ../sizes.json: compare the peers there, too")
    arguments.add_argument("--no-compile", action="store_true", help="the tuned formulas without torch.compile")
    arguments.add_argument("--device", default="cpu")
    a = arguments.parse_args()
    torch._dynamo.config.cache_size_limit = 64  # every case has its own shapes
    failed = []
    print(f"{'case':28}{'peer':7}{'tensors':>8}  {'values':>8}  {'gradients':>9}  integers")
    for about in json.loads((a.golden / "manifest.json").read_text())["cases"]:
        name, kind = about["name"], about["kind"]
        if not name.startswith(a.case or ""):
            continue
        if kind not in CHECKS:
            print(f"{name:28}not measured: skipped")
            continue
        for file in [f for f in about["files"] if Path(f).name.startswith(("io", "pools"))]:
            for peer in a.peer or ("eager", "tuned"):
                folder = a.golden / name
                io = tensors(folder / file, a.device) if file.endswith(".safetensors") else {}
                case = CHECKS[kind](folder, io, Peer(peer, not a.no_compile), a.device)
                failed.append(report(f"{name}/{Path(file).stem}", peer, case))
    if a.size:
        size = json.loads(SIZES.read_text())[a.size]
        for what in ("energy", "ae", "lm", "baseline"):
            case = check_size(size, what, not a.no_compile, a.device)
            failed.append(report(f"{a.size}/{what}", "both", case))
    sys.exit(1 if any(failed) else 0)


if __name__ == "__main__":
    main()
