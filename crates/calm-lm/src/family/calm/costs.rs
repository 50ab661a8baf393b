//! Parameters, FLOPs and memory of a CALM, by formula (conventions: [`calm_nn::costs`], [`calm_nn::held`]).
//!
//! The head runs N times a chunk in training, the frozen autoencoder encodes every training chunk (forward only), and
//! decoding is part of inference. With this the inference column of the paper's table comes out within 3.5 %, its
//! training column within 5 % for CALM-M and CALM-L; the paper's training figure of CALM-XL is 10 % off (the tests
//! hold these margins).

use calm_nn::costs::{Breakdown, Count, Flops, Parameters, flops, weights};
use calm_nn::{Footing, Held};

use super::{CalmConfig, DecoderKind};
use crate::family::input::ChunkInput;

/// What the loss on decoded samples keeps.
const DECODER: &str = "kept in the decoder";

pub(super) fn parameters(c: &CalmConfig, vocab: usize) -> Parameters {
    let (d, k) = (c.backbone.hidden_size, c.chunk_size);
    let mut parts = vec![
        ("embedding", Count(weights(vocab, d))),
        ("input", Count(ChunkInput::parameters(k, d))),
        ("backbone", Count(c.backbone.layer_parameters())),
        ("norm", Count(d as u64)),
        ("head", Count(c.head.parameters(&c.backbone, c.latent_size()))),
    ];
    if c.decoder() != DecoderKind::Frozen {
        let copied = c.autoencoder.parameters(k, vocab);
        let copied: u64 =
            copied.parts.iter().filter(|(name, _)| *name != "encoder").map(|(_, count)| count.0).sum();
        parts.push(("decoder", Count(copied + condition_weights(c))));
    }
    Breakdown { parts }
}

/// The matrix that brings the hidden state into a conditioned decoder.
fn condition_weights(c: &CalmConfig) -> u64 {
    match c.decoder() {
        DecoderKind::Conditioned => weights(c.backbone.hidden_size, c.autoencoder.hidden_size),
        DecoderKind::Frozen | DecoderKind::Tuned => 0,
    }
}

fn input_flops(c: &CalmConfig) -> f64 {
    ChunkInput::flops(c.chunk_size, c.backbone.hidden_size)
}

pub(super) fn training_flops(c: &CalmConfig, vocab: usize, context: usize) -> Flops {
    let k = c.chunk_size as f64;
    let pass = c.head.pass_flops(&c.backbone, c.latent_size());
    let own = c.likelihood.is_none_or(|l| l.head_weight > 0.0);
    // Only the head's own loss looks at the posterior.
    let encoding = if own { c.autoencoder.encode_flops(c.chunk_size) / k } else { 0.0 };
    let mut parts = vec![
        ("encoding", encoding),
        ("input", 3.0 * input_flops(c) / k),
        ("backbone", 3.0 * c.backbone.matrix_flops() / k),
        ("attention", 3.0 * c.backbone.attention_flops(context) / k),
    ];
    let mut passes = if own { c.head.training_passes() } else { 0 };
    if let Some(l) = c.likelihood {
        passes += l.samples;
        let samples = l.samples as f64;
        // Through frozen weights a backward pass is as long as a forward pass, with gradients of them twice as long. Of
        // the vocabulary the shares of the samples come first, without gradient.
        let passes = if c.decoder() == DecoderKind::Frozen { 2.0 } else { 3.0 };
        let decoding = samples * c.autoencoder.decode_flops(c.chunk_size);
        parts.push(("decoder", passes * (decoding + flops(condition_weights(c))) / k));
        let vocabulary = samples * c.autoencoder.vocabulary_flops(c.chunk_size, vocab);
        parts.push(("vocabulary", (passes + 1.0) * vocabulary / k));
    }
    parts.push(("head", 3.0 * passes as f64 * pass / k));
    Breakdown { parts }
}

pub(super) fn inference_flops(c: &CalmConfig, vocab: usize, context: usize, draws: usize) -> Flops {
    let k = c.chunk_size as f64;
    let draws = draws as f64;
    let pass = c.head.pass_flops(&c.backbone, c.latent_size());
    Breakdown {
        parts: vec![
            ("input", input_flops(c) / k),
            ("backbone", c.backbone.matrix_flops() / k),
            ("attention", c.backbone.attention_flops(context) / k),
            ("head", draws * c.head.sampling_passes() as f64 * pass / k),
            ("decoder", (draws * c.autoencoder.decode_flops(c.chunk_size) + flops(condition_weights(c))) / k),
            ("vocabulary", draws * c.autoencoder.vocabulary_flops(c.chunk_size, vocab) / k),
        ],
    }
}

pub(super) fn held(c: &CalmConfig, vocab: usize, positions: f64, on: Footing, recompute: bool) -> Held {
    let k = c.chunk_size as f64;
    let mut held = c.backbone.held(positions, on, recompute);
    ChunkInput::hold(&mut held, c.chunk_size, c.backbone.hidden_size, positions, on);
    let head = c.head.held(&c.backbone, c.latent_size(), positions, on);
    let kept: f64 = head.kept.iter().map(|(_, bytes)| bytes).sum();
    let own = c.likelihood.is_none_or(|l| l.head_weight > 0.0);
    if own {
        held.temporary(head.temporary);
        held.kept.extend(head.kept);
    }
    if let Some(l) = c.likelihood {
        let samples = l.samples as f64;
        // The head's own passes are counted by its settings; these are as many more.
        let more = samples / c.head.training_passes().max(1) as f64;
        held.keep(DECODER, kept * more + c.autoencoder.decoder_bytes(c.chunk_size, positions * samples, on));
        held.temporary(head.temporary * more);
        held.temporary(c.autoencoder.blocks_temporary(positions * samples * k, on));
        let trained = c.decoder() != DecoderKind::Frozen;
        on.cross_entropy(&mut held, vocab, c.autoencoder.hidden_size, positions * samples * k, trained);
    }
    if own {
        // The frozen encoder runs when the backbone has, before the head.
        held.temporary(c.autoencoder.encoder_bytes(c.chunk_size, positions, on) - kept);
    }
    held
}
