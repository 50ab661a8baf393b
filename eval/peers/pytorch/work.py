"""What is measured: each piece of work as a function without arguments that does one step."""

from functools import partial

import torch

from energy import energy_eager, energy_tuned
from losses import DROPOUT, autoencoder_loss, baseline_loss, calm_loss, draw_tokens
from model import autoencoder_of, baseline_of, calm_of, initialise
from sampling import brier_of_rows, generate, roll_batched, roll_one_by_one, select_batched, select_counted

WHAT = ("ae", "lm", "baseline", "energy", "generate", "brier_k1", "brier_k2", "brier_k4")


class Peer:
    """eager: as the formulas are usually written. tuned: the fastest we know in PyTorch."""

    def __init__(self, name, compiled=True):
        tuned = {"eager": False, "tuned": True}[name]
        compile_ = partial(torch.compile, dynamic=False) if tuned and compiled else lambda f: f
        self.name, self.tuned, self.compile = name, tuned, compile_
        energy = self.plain_energy = energy_tuned if tuned else energy_eager
        self.energy = compile_(energy)
        self.autoencoder_loss = compile_(autoencoder_loss)
        self.calm_loss = compile_(partial_loss(energy, tuned))
        self.baseline_loss = compile_(baseline_loss)
        self.draw_tokens = compile_(partial_draw(tuned))
        self.select = select_batched if tuned else select_counted
        self.roll = roll_batched if tuned else roll_one_by_one

    def optimizer(self, model):
        """AdamW as in SPEC: no decay on biases and norms. Returns the trained parameters, too."""
        trained = [p for p in model.parameters() if p.requires_grad]
        groups = [
            dict(params=[p for p in trained if p.dim() > 1], weight_decay=0.1),
            dict(params=[p for p in trained if p.dim() < 2], weight_decay=0.0),
        ]
        fused = dict(fused=True) if self.tuned else {}
        return torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, **fused), trained


def partial_loss(energy, shared):
    def loss(model, ids_BT, noise, eps, alpha, row_mask=None):
        return calm_loss(model, ids_BT, noise, eps, energy, shared, alpha, row_mask)

    return loss


def partial_draw(shared):
    def draw(model, hidden, noise):
        return draw_tokens(model, hidden, noise, shared)

    return draw


class Step:
    """A step, the tokens it works on, and the model that it trains or uses."""

    def __init__(self, run, tokens, model):
        self.run, self.tokens, self.model = run, tokens, model

    def __call__(self):
        return self.run()


def training_step(peer, model, loss):
    """forward, backward, clip to norm 1, AdamW; the loss is read back."""
    optimizer, trained = peer.optimizer(model)

    def step():
        optimizer.zero_grad(set_to_none=True)
        value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0, foreach=peer.tuned or None)
        optimizer.step()
        return value.item()

    return step


def build(what, size, peer, device="cpu"):
    """The step. Ids are uniform; no PAD, so every position counts."""
    s, k, latent = size, size["chunk_size"], size["latent"]
    torch.manual_seed(1)
    uniform = partial(torch.rand, device=device)
    normal = partial(torch.randn, device=device)

    def ids(rows, length):
        return torch.randint(s["vocab"] - 1, (rows, length), device=device)

    def noise(samples, rows):
        return uniform(samples, rows, s["noise"]) - 0.5

    if what == "ae":
        model = initialise(autoencoder_of(s)).to(device)
        b, p = s["ae_rows"], s["ae_context"]
        x = ids(b, p * k)

        def loss():
            kept = (uniform(b, p * k) > DROPOUT).long()
            dropped = (uniform(b, p, latent) > DROPOUT).float() / (1 - DROPOUT)
            return peer.autoencoder_loss(model, x, normal(b, p, latent), kept, dropped)[0]

        return Step(training_step(peer, model, loss), x.numel(), model)

    b, p = s["batch_rows"], s["context_chunks"]
    rows = b * p
    if what == "lm":
        model = calm_of(s).to(device)
        x = ids(b, (p + 1) * k)

        def loss():
            return peer.calm_loss(
                model, x, noise(s["samples"], rows), normal(s["targets"], rows, latent), s["alpha"]
            )[0]

        return Step(training_step(peer, model, loss), rows * k, model)

    if what == "baseline":
        model = baseline_of(s).to(device)
        x = ids(b, p * k + 1)
        return Step(training_step(peer, model, lambda: peer.baseline_loss(model, x)[0]), rows * k, model)

    if what == "energy":
        x = torch.nn.Parameter(normal(s["samples"], rows, latent))
        mean, log_std = normal(rows, latent), normal(rows, latent) * 0.1 - 1.2

        def step():
            x.grad = None
            value = peer.energy(x, mean, log_std, normal(s["targets"], rows, latent), s["alpha"]).mean()
            value.backward()
            return value.item()

        return Step(step, rows * k, torch.nn.ParameterDict(dict(x=x)))

    if what == "generate":
        model = calm_of(s).to(device).eval()
        prompt = ids(s["generate_rows"], s["prompt_chunks"] * k)
        draw = partial(peer.draw_tokens, model)
        new = s["new_chunks"]
        step = lambda: generate(model, prompt, new, s["candidates"], 2, draw, noise, peer.select)[0, 0].item()
        return Step(step, s["generate_rows"] * new * k, model)

    k = int(what.removeprefix("brier_k"))
    model = calm_of(s, k, k * s["brier_latent_per_token"]).to(device).eval()
    x = ids(s["brier_rows"], s["brier_tokens"] + k)
    draw = partial(peer.draw_tokens, model)
    # The reference evaluates with batches of one row, and walks the positions of a short-chunk row one by one.
    batches = [x] if peer.tuned else x.split(1)
    score = lambda rows: brier_of_rows(model, rows, draw, noise, peer.roll)[0]
    step = lambda: torch.stack([score(rows) for rows in batches]).mean(0).tolist()
    return Step(step, s["brier_rows"] * s["brier_tokens"], model)
