"""What is measured: each piece of work as a function that does one step."""

from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F

from energy import energy_eager, energy_tuned
from losses import DROPOUT, autoencoder_loss, baseline_loss, calm_loss, draw_tokens
from model import autoencoder_of, baseline_of, calm_of, initialise
from sampling import brier_of_rows, generate, roll_batched, roll_one_by_one, select_batched, select_counted

WHAT = ("ae", "lm", "baseline", "energy", "attention", "generate", "brier_k1", "brier_k2", "brier_k4")
PEERS = ("eager", "tuned", "autocast")


class Peer:
    """eager: as the formulas are usually written. tuned: the fastest we know in PyTorch.

    In bf16, tuned holds parameters in bfloat16 beside float32 masters that AdamW updates, as calm does; eager, and
    autocast (else the same as tuned), keep them in float32 and compute under torch.autocast, as most trainers do.
    """

    def __init__(self, name, compiled=True, precision="f32"):
        assert name in PEERS, name
        tuned = name != "eager"
        self.bf16 = precision == "bf16"
        self.copies = self.bf16 and name == "tuned"
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

    def cast(self, device):
        """In which the forward pass runs."""
        if self.bf16 and not self.copies:
            return torch.autocast(torch.device(device).type, torch.bfloat16)
        return nullcontext()

    def format(self):
        """Of an activation that is made outside of a model."""
        return torch.bfloat16 if self.bf16 else torch.float32

    def optimizer(self, model):
        return Optimizer(model, self)


class Optimizer:
    """Clip to norm 1, then AdamW, without decay on biases and norms; float32 masters if the peer computes with copies."""

    def __init__(self, model, peer):
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.masters, self.foreach = self.trained, peer.tuned or None
        if peer.copies:
            self.masters = [torch.nn.Parameter(p.detach().clone()) for p in self.trained]
            model.to(torch.bfloat16)
        groups = [
            dict(params=[p for p in self.masters if p.dim() > 1], weight_decay=0.1),
            dict(params=[p for p in self.masters if p.dim() < 2], weight_decay=0.0),
        ]
        fused = dict(fused=True) if peer.tuned else {}
        self.adamw = torch.optim.AdamW(groups, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, **fused)

    def zero_grad(self):
        for p in self.trained:
            p.grad = None

    @torch.no_grad()
    def step(self):
        if self.masters is not self.trained:
            for master, p in zip(self.masters, self.trained):
                master.grad = torch.empty_like(master) if master.grad is None else master.grad
            torch._foreach_copy_([m.grad for m in self.masters], [p.grad for p in self.trained])
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0, foreach=self.foreach)
        self.adamw.step()
        if self.masters is not self.trained:
            torch._foreach_copy_(self.trained, self.masters)


def partial_loss(energy, shared):
    def loss(model, ids_BT, noise, eps, alpha, row_mask=None):
        return calm_loss(model, ids_BT, noise, eps, energy, shared, alpha, row_mask)

    return loss


def partial_draw(shared):
    def draw(model, hidden, noise):
        return draw_tokens(model, hidden, noise, shared)

    return draw


class Step:
    """A step, the tokens it works on, and the model that it trains or uses.

    A training step that is told not to read its loss does not wait for the device.
    """

    def __init__(self, run, tokens, model):
        self.run, self.tokens, self.model = run, tokens, model

    def __call__(self, read=True):
        return self.run(read)


def training_step(peer, model, device, loss):
    """forward, backward, clip to norm 1, AdamW."""
    optimizer = peer.optimizer(model)

    def step(read):
        optimizer.zero_grad()
        with peer.cast(device):
            value = loss()
        value.backward()
        optimizer.step()
        return value.item() if read else None

    return step


def inference_step(peer, device, run):
    """Its result is tokens or scores, which are read."""

    def step(_):
        with peer.cast(device):
            return run()

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

    def made(function, *arguments):
        """A model, its weights drawn on the device."""
        with torch.device(device):
            return function(*arguments)

    def inferring(model):
        return model.to(torch.bfloat16).eval() if peer.copies else model.eval()

    if what == "ae":
        model = made(lambda: initialise(autoencoder_of(s)))
        b, p = s["ae_rows"], s["ae_context"]
        x = ids(b, p * k)

        def loss():
            kept = (uniform(b, p * k) > DROPOUT).long()
            dropped = (uniform(b, p, latent) > DROPOUT).float() / (1 - DROPOUT)
            return peer.autoencoder_loss(model, x, normal(b, p, latent), kept, dropped)[0]

        return Step(training_step(peer, model, device, loss), x.numel(), model)

    b, p = s["batch_rows"], s["context_chunks"]
    rows = b * p
    if what == "lm":
        model = made(calm_of, s)
        x = ids(b, (p + 1) * k)

        def loss():
            return peer.calm_loss(
                model, x, noise(s["samples"], rows), normal(s["targets"], rows, latent), s["alpha"]
            )[0]

        return Step(training_step(peer, model, device, loss), rows * k, model)

    if what == "baseline":
        model = made(baseline_of, s)
        x = ids(b, p * k + 1)
        return Step(training_step(peer, model, device, lambda: peer.baseline_loss(model, x)[0]), rows * k, model)

    if what == "energy":
        x = torch.nn.Parameter(normal(s["samples"], rows, latent).to(peer.format()))
        mean, log_std = normal(rows, latent), normal(rows, latent) * 0.1 - 1.2

        def step(read):
            x.grad = None
            value = peer.energy(x, mean, log_std, normal(s["targets"], rows, latent), s["alpha"]).mean()
            value.backward()
            return value.item() if read else None

        return Step(step, rows * k, torch.nn.ParameterDict(dict(x=x)))

    if what == "attention":
        heads, kv, width = s["heads"], s["kv_heads"], s["hidden"] // s["heads"]
        q, k_, v = (torch.nn.Parameter(normal(b, h, p, width).to(peer.format())) for h in (heads, kv, kv))
        slope = torch.ones(b, heads, p, width, device=device, dtype=peer.format())

        def step(read):
            q.grad = k_.grad = v.grad = None
            keys, values = (t.repeat_interleave(heads // kv, 1) if kv != heads else t for t in (k_, v))
            y = F.scaled_dot_product_attention(q, keys, values, is_causal=True)
            y.backward(slope)
            return y[0, 0, 0, 0].item() if read else None

        return Step(step, rows * k, torch.nn.ParameterDict(dict(q=q, k=k_, v=v)))

    if what == "generate":
        model = inferring(made(calm_of, s))
        prompt = ids(s["generate_rows"], s["prompt_chunks"] * k)
        draw = partial(peer.draw_tokens, model)
        new = s["new_chunks"]
        run = lambda: generate(model, prompt, new, s["candidates"], 2, draw, noise, peer.select)[0, 0].item()
        return Step(inference_step(peer, device, run), s["generate_rows"] * new * k, model)

    k = int(what.removeprefix("brier_k"))
    model = inferring(made(calm_of, s, k, k * s["brier_latent_per_token"]))
    x = ids(s["brier_rows"], s["brier_tokens"] + k)
    draw = partial(peer.draw_tokens, model)
    # The reference evaluates with batches of one row, and walks the positions of a short-chunk row one by one.
    batches = [x] if peer.tuned else x.split(1)
    score = lambda rows: brier_of_rows(model, rows, draw, noise, peer.roll)[0]
    run = lambda: torch.stack([score(rows) for rows in batches]).mean(0).tolist()
    return Step(inference_step(peer, device, run), s["brier_rows"] * s["brier_tokens"], model)
