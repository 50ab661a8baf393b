//! Parameters, FLOPs and memory of a patch model, by formula (conventions: [`calm_nn::costs`], [`calm_nn::held`]).
//!
//! The backbone runs once a chunk, the local decoder and the vocabulary once a token.

use calm_nn::costs::{Breakdown, Count, Flops, Parameters, flops, weights};
use calm_nn::{Footing, Held};

use super::PatchConfig;
use crate::family::input::ChunkInput;

/// What the local decoder keeps.
const LOCAL: &str = "kept in the local decoder";

pub(super) fn parameters(c: &PatchConfig, vocab: usize) -> Parameters {
    let (d, k, local) = (c.backbone.hidden_size, c.chunk_size, c.local_backbone());
    let w = local.hidden_size;
    let before = if k > 1 { weights(vocab, w) } else { 0 };
    Breakdown {
        parts: vec![
            ("embedding", Count(weights(vocab, d))),
            ("input", Count(ChunkInput::parameters(k, d))),
            ("backbone", Count(c.backbone.layer_parameters())),
            ("norm", Count(d as u64)),
            ("local", Count(weights(d, k * w) + before + local.layer_parameters() + w as u64)),
            ("vocabulary", Count(weights(vocab, w))),
        ],
    }
}

pub(super) fn inference_flops(c: &PatchConfig, vocab: usize, context: usize) -> Flops {
    let (d, local) = (c.backbone.hidden_size, c.local_backbone());
    let (w, k) = (local.hidden_size, c.chunk_size as f64);
    Breakdown {
        parts: vec![
            ("input", ChunkInput::flops(c.chunk_size, d) / k),
            ("backbone", c.backbone.matrix_flops() / k),
            ("attention", c.backbone.attention_flops(context) / k),
            ("local", flops(weights(d, w)) + local.matrix_flops() + local.attention_flops(c.chunk_size)),
            ("vocabulary", flops(weights(w, vocab))),
        ],
    }
}

pub(super) fn held(c: &PatchConfig, vocab: usize, positions: f64, on: Footing, recompute: bool) -> Held {
    let local = c.local_backbone();
    let (w, tokens) = (local.hidden_size, positions * c.chunk_size as f64);
    let mut held = c.backbone.held(positions, on, recompute);
    ChunkInput::hold(&mut held, c.chunk_size, c.backbone.hidden_size, positions, on);
    let inside = local.held(tokens, on, recompute);
    let kept: f64 = inside.kept.iter().map(|(_, bytes)| bytes).sum();
    // What the hidden states say, the tokens before, and their sum, which is the first layer's input.
    held.keep(LOCAL, kept + 2.0 * tokens * w as f64 * on.activation);
    held.temporary(inside.temporary);
    on.cross_entropy(&mut held, vocab, w, tokens, true);
    held
}
