"""FLOPs of a step by formula: 2 a weight and use, full attention, training = 3 × forward, nothing else counted.

The conventions of `calm-nn`'s costs. Per chunk unless said otherwise.
"""

import math


def encode(s, k, latent):
    d, half = s["ae_hidden"], s["ae_encoder_layers"] // 2
    blocks = (half * k + s["ae_encoder_layers"] - half) * 3 * d * s["ae_intermediate"]
    return 2 * (blocks + k * d * d + 2 * d * latent)


def decode(s, k, latent):
    """With the logits."""
    d, half = s["ae_hidden"], s["ae_decoder_layers"] // 2
    blocks = (half + (s["ae_decoder_layers"] - half) * k) * 3 * d * s["ae_intermediate"]
    return 2 * (blocks + latent * d + k * d * d + k * d * s["vocab"])


def backbone(s, context):
    """A position."""
    d, kv = s["hidden"], s["hidden"] // s["heads"] * s["kv_heads"]
    layer = 2 * (2 * d * d + 2 * d * kv + 3 * d * s["intermediate"]) + 4 * context * d
    return s["layers"] * layer


def inputs(s, k):
    d = s["hidden"]
    return 2 * (k * d * 2 * d + 2 * d * d)


def head(s, latent):
    d = s["hidden"]
    return 2 * (s["noise"] * d + 2 * d * d + d * latent + s["head_blocks"] * 6 * d * d)


def energy(s):
    """A position, forward and backward: difference, square, sum, and twice that for the gradient."""
    n, m = s["samples"], s["targets"]
    return 6 * s["latent"] * (n * m + n * (n - 1) // 2)


def flops_per_step(what, s):
    k, latent = s["chunk_size"], s["latent"]
    chunks = s["batch_rows"] * s["context_chunks"]
    if what == "ae":
        return 3 * s["ae_rows"] * s["ae_context"] * (encode(s, k, latent) + decode(s, k, latent))
    if what == "lm":
        trained = inputs(s, k) + backbone(s, s["context_chunks"]) + s["samples"] * head(s, latent)
        return chunks * (encode(s, k, latent) + 3 * trained)
    if what == "baseline":
        return 3 * chunks * k * (backbone(s, s["context_chunks"] * k) + 2 * s["hidden"] * s["vocab"])
    if what == "energy":
        return chunks * energy(s)
    if what == "attention":
        t = s["context_chunks"]  # two products forward and five backward, over the keys up to each position
        return 14 * s["batch_rows"] * s["hidden"] * t * (t + 1) // 2
    if what == "generate":
        new, context = s["new_chunks"], s["prompt_chunks"] + s["new_chunks"]
        read = (context - 1) * (inputs(s, k) + backbone(s, context))
        return s["generate_rows"] * (read + new * s["candidates"] * (head(s, latent) + decode(s, k, latent)))
    k = int(what.removeprefix("brier_k"))
    latent, positions = k * s["brier_latent_per_token"], s["brier_tokens"] // k
    draws = inputs(s, k) + backbone(s, positions) + 2 * (head(s, latent) + decode(s, k, latent))
    later = math.ceil(4 / k) - 1
    rolled = (positions - later - 1) * later if later else 0
    return s["brier_rows"] * (positions + rolled) * draws
