"""Generation with the batch temperature sampler, and BrierLM, each the reference's way and batched.

`draw(hidden [R, D], noise [N, R, noise]) -> tokens [N, R, K]` is head + decoder + argmax; `noise(N, R)` makes its
numbers. P positions a row, S = ⌈4/K⌉ chunks a 4-gram.
"""

import math
import random
from collections import Counter

import torch

from model import rope_tables

NGRAM = 4


# ---------------------------------------------------------------- batch temperature sampling, T = 1/n


def pool_weights(pool, n):
    """Distinct chunks of a pool [N, K] and their weights C(count, m), m the first of n, n−1, … reached by any."""
    counts = Counter(map(tuple, pool.tolist()))
    level = min(n, max(counts.values()))
    chosen = {chunk: math.comb(c, level) for chunk, c in counts.items() if c >= level}
    return list(chosen), list(chosen.values())


def select_counted(pools, n):
    """[N, R, K] -> [R, K], one pool at a time with Python's counter."""
    chosen = []
    for r in range(pools.shape[1]):
        chunks, weights = pool_weights(pools[:, r], n)
        chosen.append(random.choices(chunks, weights)[0])
    return torch.tensor(chosen, device=pools.device)


def batched_weights(pools, n):
    """[N, R, K] -> weights [R, N] of every candidate (a chunk's weight shared by its copies)."""
    pools = pools.transpose(0, 1)
    counts = (pools.unsqueeze(1) == pools.unsqueeze(2)).all(-1).sum(-1).double()  # [R, N]
    level = counts.amax(-1, keepdim=True).clamp(max=n)
    ways = torch.ones_like(counts)
    for i in range(n):  # C(c, m) = Π (c − i)/(i + 1), i < m
        ways = torch.where(i < level, ways * (counts - i).clamp(min=0) / (i + 1), ways)
    return ways / counts


def select_batched(pools, n):
    index = torch.multinomial(batched_weights(pools, n), 1)[:, 0]
    return pools[index, torch.arange(pools.shape[1], device=pools.device)]


@torch.no_grad()
def generate(model, prompt_BT, new_chunks, candidates, n, draw, noise, select):
    """Tokens [B, new_chunks·K] after a prompt of whole chunks; every chunk from `candidates` draws."""
    hidden, cache = model.transformer(model.embed(prompt_BT))
    chunks = []
    for step in range(new_chunks):
        rows = hidden[:, -1]
        chunks.append(select(draw(rows, noise(candidates, len(rows))), n))
        if step + 1 < new_chunks:
            hidden, cache = model.transformer(model.embed(chunks[-1]), cache)
    return torch.cat(chunks, 1)


# ---------------------------------------------------------------- BrierLM


def chained(tokens_BPK):
    """The 4-gram at each start: [B, P, K] -> [B, starts, 4]. K < 4 leaves out the last start, as the reference does."""
    k = tokens_BPK.shape[-1]
    if k >= NGRAM:
        return tokens_BPK[..., :NGRAM]
    s = math.ceil(NGRAM / k)
    starts = tokens_BPK.shape[1] - s
    return torch.cat([tokens_BPK[:, i : i + starts] for i in range(s)], -1)[..., :NGRAM]


def brier(first, second, targets, steps=None):
    """Brier-1..4 [4] as fractions, and the collisions, from two samples and targets [B, P, K].

    steps [S−1, 2, B, starts, K], for K < 4: the two samples of each later chunk along sample 1's own path.
    """
    agree = [(chained(x) == chained(targets)).cumprod(-1) for x in (first, second)]
    same = first == second
    if steps is not None:
        starts = steps.shape[3]
        same = torch.cat([same[:, :starts], *(steps[:, 0] == steps[:, 1])], -1)
    collision = same[..., :NGRAM].cumprod(-1)
    return (agree[0] + agree[1] - collision).double().mean((0, 1)), collision


@torch.no_grad()
def roll_one_by_one(model, cache, first, second, draw, noise):
    """The later chunks of K < 4, one start after the other with the cache cut there, until no row agrees."""
    b, p, k = first.shape
    s = math.ceil(NGRAM / k)
    steps = torch.zeros(s - 1, 2, b, p - s, k, dtype=first.dtype, device=first.device)
    steps[:, 1] = -1
    for i in range(p - s):
        past = [(keys[:, :, : i + 1], values[:, :, : i + 1]) for keys, values in cache]
        chunk, agree = first[:, i], (first[:, i] == second[:, i]).all(-1)
        for j in range(s - 1):
            if not agree.any():
                break
            hidden, past = model.transformer(model.embed(chunk), past)
            pair = draw(hidden[:, -1], noise(2, b))
            steps[j, :, :, i] = pair
            chunk, agree = pair[0], agree & (pair[0] == pair[1]).all(-1)
    return steps


@torch.no_grad()
def roll_batched(model, cache, first, second, draw, noise):
    """The same for all starts at once: start i attends to positions 0..i of the shared cache and to its own."""
    b, p, k = first.shape
    s = math.ceil(NGRAM / k)
    starts = p - s
    t = model.transformer
    cos, sin = rope_tables(t.head_size, p + s, device=first.device)
    hidden_from = torch.ones(starts, starts, dtype=torch.bool, device=first.device).triu(1)
    own = [[] for _ in t.layers]
    chunk, steps = first[:, :starts], []
    for j in range(1, s):
        x = model.embed(chunk.flatten(1))
        for layer, (keys, values), mine in zip(t.layers, cache, own):
            a = layer.self_attn
            angles = (table[j : j + starts].to(x.dtype) for table in (cos, sin))
            q, key, value = a.qkv(layer.input_layernorm(x), *angles)
            mine.append((key, value))
            scores = q @ keys[:, :, :starts].transpose(2, 3)
            scores = scores.masked_fill_(hidden_from, float("-inf"))
            scores = torch.cat([scores, *((q * m[0]).sum(-1, keepdim=True) for m in mine)], -1)
            weight = (scores * q.shape[-1] ** -0.5).softmax(-1)
            y = weight[..., :starts] @ values[:, :, :starts]
            for n, m in enumerate(mine):
                y = y + weight[..., starts + n, None] * m[1]
            x = x + a.o_proj(y.transpose(1, 2).flatten(2))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        pair = draw(t.norm(x).flatten(0, 1), noise(2, b * starts)).unflatten(1, (b, starts))
        steps.append(pair)
        chunk = pair[0]
    return torch.stack(steps)


@torch.no_grad()
def brier_of_rows(model, ids_BT, draw, noise, roll):
    """Brier-1..4 of rows of whole chunks; every chunk after the first is a target."""
    k = model.chunk
    hidden, cache = model.transformer(model.embed(ids_BT[:, :-k]))
    targets = ids_BT[:, k:].unflatten(1, (-1, k))
    b, p = targets.shape[:2]
    first, second = draw(hidden.flatten(0, 1), noise(2, b * p)).unflatten(1, (b, p))
    steps = roll(model, cache, first, second, draw, noise) if k < NGRAM else None
    return brier(first, second, targets, steps)
