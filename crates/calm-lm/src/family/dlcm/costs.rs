//! Parameters, FLOPs and memory of a dynamic concept model, by formula (conventions: [`calm_nn::costs`],
//! [`calm_nn::held`]), at the ratio R that the settings aim at: layers over concepts run once in R tokens.

use calm_nn::costs::{Breakdown, Count, Flops, Parameters, flops, weights};
use calm_nn::{Footing, Held};

use super::DlcmConfig;
use super::config::{BoundaryRule, CrossKeys};

/// What the layers over tokens keep.
const TOKENS: &str = "kept in the token layers";
/// What the layers over concepts keep.
const CONCEPTS: &str = "kept in the concepts";
/// What the way between them keeps.
const CROSS: &str = "kept between tokens and concepts";

/// Weights of the projections that find boundaries.
fn boundary_weights(c: &DlcmConfig) -> u64 {
    let d = c.tokens.hidden_size;
    if matches!(c.boundaries.by, BoundaryRule::Learnt(_)) { 2 * weights(d, d) } else { 0 }
}

/// Widths of queries and of keys in cross-attention.
fn cross_widths(c: &DlcmConfig) -> (usize, usize) {
    let ((heads, kv), size) = (c.cross_heads(), c.tokens.head_size());
    (heads * size, kv * size)
}

pub(super) fn parameters(c: &DlcmConfig, vocab: usize) -> Parameters {
    let (d, wide) = (c.tokens.hidden_size, c.concepts.hidden_size);
    let (queries, keys) = cross_widths(c);
    let embedding = Count(weights(vocab, d));
    let cross = 2 * weights(d, queries) + 2 * weights(wide, keys) + 2 * c.tokens.head_size() as u64;
    Breakdown {
        parts: vec![
            ("embedding", embedding),
            ("encoder", Count(c.encoder().layer_parameters())),
            ("boundaries", Count(boundary_weights(c))),
            ("concepts", Count(weights(d, wide) + c.concepts.layer_parameters() + wide as u64)),
            ("cross", Count(cross)),
            ("decoder", Count(c.decoder().layer_parameters())),
            ("norm", Count(d as u64)),
            ("vocabulary", embedding),
        ],
    }
}

pub(super) fn inference_flops(c: &DlcmConfig, vocab: usize, context: usize) -> Flops {
    let (d, wide, ratio) = (c.tokens.hidden_size, c.concepts.hidden_size, c.boundaries.ratio);
    let (queries, keys) = cross_widths(c);
    let slots = context as f64 / ratio;
    let seen = match c.cross.keys {
        CrossKeys::Concepts => slots,
        CrossKeys::Replicated => context as f64,
    };
    let among_concepts = c.concepts.attention_flops(1) * slots;
    let cross = flops(2 * weights(d, queries)) + flops(2 * weights(wide, keys)) / ratio;
    Breakdown {
        parts: vec![
            ("encoder", c.encoder().matrix_flops()),
            ("boundaries", flops(boundary_weights(c))),
            ("concepts", (flops(weights(d, wide)) + c.concepts.matrix_flops()) / ratio),
            ("cross", cross + 4.0 * queries as f64 * seen),
            ("decoder", c.decoder().matrix_flops()),
            ("attention", c.tokens.attention_flops(context) + among_concepts / ratio),
            ("vocabulary", flops(weights(d, vocab))),
        ],
    }
}

pub(super) fn held(c: &DlcmConfig, vocab: usize, tokens: f64, on: Footing, recompute: bool) -> Held {
    let (d, wide) = (c.tokens.hidden_size as f64, c.concepts.hidden_size as f64);
    // A learnt predictor begins at p of about a half, whatever the ratio that it is to reach.
    let share = 1.0 / c.boundaries.ratio;
    let slots = tokens * if c.has_probability() { share.max(0.5) } else { share };
    let (queries, keys) = cross_widths(c);
    let (queries, keys) = (queries as f64, keys as f64);
    let mut held = Held::default();
    for (name, part, rows) in [(TOKENS, &c.tokens, tokens), (CONCEPTS, &c.concepts, slots)] {
        let inside = part.held(rows, on, recompute);
        held.keep(name, inside.kept.iter().map(|(_, bytes)| bytes).sum());
        held.temporary(inside.temporary);
    }
    // In f32: q and k of boundaries, their squares and products; contents, wide, before and after smoothing.
    let boundaries = if c.has_probability() { 8.0 * tokens * d * 4.0 } else { 0.0 };
    let contents = slots * (d + 3.0 * wide) * on.activation;
    // Queries and keys before and after their norms, values, what attention gives, and the sum with the residual.
    let repeated = match c.cross.keys {
        CrossKeys::Concepts => slots,
        CrossKeys::Replicated => slots + tokens,
    };
    let cross = (tokens * (3.0 * queries + 2.0 * d) + 3.0 * repeated * keys) * on.activation;
    held.keep(CROSS, boundaries + contents + cross);
    held.temporary(tokens * (7.0 * queries + 3.0 * keys) * on.activation);
    on.cross_entropy(&mut held, vocab, c.tokens.hidden_size, tokens, true);
    held
}
