//! Parameters, FLOPs and memory of a multi-token model, by formula (conventions: [`calm_nn::costs`],
//! [`calm_nn::held`]).
//!
//! The backbone runs once a chunk, each head once a chunk, the vocabulary once a token.

use calm_nn::costs::{Breakdown, Count, Flops, Parameters, flops, weights};
use calm_nn::{Footing, Held};

use super::MultiTokenConfig;
use crate::family::input::ChunkInput;

/// What the heads keep.
const HEADS: &str = "kept in the heads";

/// Matrix weights of one head.
fn head_weights(c: &MultiTokenConfig) -> u64 {
    3 * weights(c.backbone.hidden_size, c.head_intermediate())
}

pub(super) fn parameters(c: &MultiTokenConfig, vocab: usize) -> Parameters {
    let (d, k) = (c.backbone.hidden_size, c.chunk_size);
    let embedding = Count(weights(vocab, d));
    let head = head_weights(c).saturating_add(2 * d as u64);
    Breakdown {
        parts: vec![
            ("embedding", embedding),
            ("input", Count(ChunkInput::parameters(k, d))),
            ("backbone", Count(c.backbone.layer_parameters())),
            ("norm", Count(d as u64)),
            ("heads", Count((k as u64).saturating_mul(head))),
            ("vocabulary", embedding),
        ],
    }
}

pub(super) fn inference_flops(c: &MultiTokenConfig, vocab: usize, context: usize) -> Flops {
    let (d, k) = (c.backbone.hidden_size, c.chunk_size as f64);
    Breakdown {
        parts: vec![
            ("input", ChunkInput::flops(c.chunk_size, d) / k),
            ("backbone", c.backbone.matrix_flops() / k),
            ("attention", c.backbone.attention_flops(context) / k),
            ("heads", flops(head_weights(c))),
            ("vocabulary", flops(weights(d, vocab))),
        ],
    }
}

pub(super) fn held(c: &MultiTokenConfig, vocab: usize, positions: f64, on: Footing, recompute: bool) -> Held {
    let (d, i) = (c.backbone.hidden_size, c.head_intermediate() as f64);
    let tokens = positions * c.chunk_size as f64;
    let width = d as f64;
    let mut held = c.backbone.held(positions, on, recompute);
    ChunkInput::hold(&mut held, c.chunk_size, d, positions, on);
    // The outputs of gate and up, of the MLP, of the norm, and all of them in one tensor; the hidden states themselves
    // are the backbone's.
    held.keep(HEADS, tokens * (2.0 * i + 3.0 * width) * on.activation);
    held.temporary(positions * 4.0 * (width + i) * on.activation);
    on.cross_entropy(&mut held, vocab, d, tokens, true);
    held
}
