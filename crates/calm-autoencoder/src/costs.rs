//! Parameters, FLOPs and memory of an autoencoder, by formula (conventions: [`calm_nn::costs`], [`calm_nn::held`]).
//!
//! K tokens a chunk, D width, I width of the gated MLPs, L latent size, V vocabulary.

use calm_nn::costs::{Breakdown, Count, Flops, Parameters, biased, flops, weights};
use calm_nn::{Footing, Held};

use crate::AutoencoderConfig;

/// What layers keep of a stage-1 step.
const LAYERS: &str = "kept in the layers";

impl AutoencoderConfig {
    fn block_weights(&self) -> u64 {
        3 * weights(self.hidden_size, self.intermediate_size)
    }

    /// Parameters by part. The output embedding is the input embedding.
    pub fn parameters(&self, chunk_size: usize, vocab: usize) -> Parameters {
        let (d, k, latent) = (self.hidden_size, chunk_size, self.latent_size(chunk_size));
        let blocks = |layers: usize| layers as u64 * (self.block_weights() + d as u64);
        let encoder = blocks(self.encoder_layers) + biased(k * d, d) + d as u64 + biased(d, 2 * latent);
        let decoder = blocks(self.decoder_layers) + biased(latent, d) + biased(d, k * d) + d as u64;
        Breakdown {
            parts: vec![
                ("embedding", Count(weights(vocab, d))),
                ("encoder", Count(encoder)),
                ("decoder", Count(decoder)),
            ],
        }
    }

    /// FLOPs of encoding a chunk.
    pub fn encode_flops(&self, chunk_size: usize) -> f64 {
        let (d, k) = (self.hidden_size, chunk_size);
        let (wide, narrow) = (self.encoder_layers / 2, self.encoder_layers - self.encoder_layers / 2);
        let blocks = (wide * k + narrow) as u64 * self.block_weights();
        flops(blocks + weights(k * d, d) + weights(d, 2 * self.latent_size(k)))
    }

    /// FLOPs of decoding a chunk, without the vocabulary.
    pub fn decode_flops(&self, chunk_size: usize) -> f64 {
        let (d, k) = (self.hidden_size, chunk_size);
        let (narrow, wide) = (self.decoder_layers / 2, self.decoder_layers - self.decoder_layers / 2);
        let blocks = (wide * k + narrow) as u64 * self.block_weights();
        flops(blocks + weights(self.latent_size(k), d) + weights(d, k * d))
    }

    /// FLOPs of the logits of a chunk.
    pub fn vocabulary_flops(&self, chunk_size: usize, vocab: usize) -> f64 {
        flops(chunk_size as u64 * weights(self.hidden_size, vocab))
    }

    /// Training FLOPs of a token: three forward passes.
    pub fn training_flops(&self, chunk_size: usize, vocab: usize) -> Flops {
        let scale = 3.0 / chunk_size as f64;
        Breakdown {
            parts: vec![
                ("encoder", scale * self.encode_flops(chunk_size)),
                ("decoder", scale * self.decode_flops(chunk_size)),
                ("vocabulary", scale * self.vocabulary_flops(chunk_size, vocab)),
            ],
        }
    }

    /// A block's input and the outputs of gate and up.
    fn block_bytes(&self, rows: f64, on: Footing) -> f64 {
        rows * (self.hidden_size + 2 * self.intermediate_size) as f64 * on.activation
    }

    /// Bytes that encoding `chunks` chunks keeps for a backward pass.
    pub fn encoder_bytes(&self, chunk_size: usize, chunks: f64, on: Footing) -> f64 {
        let (d, l) = (self.hidden_size as f64, self.latent_size(chunk_size) as f64);
        let tokens = chunks * chunk_size as f64;
        let wide = self.encoder_layers / 2;
        wide as f64 * self.block_bytes(tokens, on)
            + (self.encoder_layers - wide) as f64 * self.block_bytes(chunks, on)
            // What is squeezed, the norm, and mean and spread, cut apart.
            + (tokens * d + chunks * (2.0 * d + 4.0 * l)) * on.activation
    }

    /// Bytes that decoding `chunks` latents to hidden states keeps for a backward pass.
    pub fn decoder_bytes(&self, chunk_size: usize, chunks: f64, on: Footing) -> f64 {
        let d = self.hidden_size as f64;
        let tokens = chunks * chunk_size as f64;
        let narrow = self.decoder_layers / 2;
        narrow as f64 * self.block_bytes(chunks, on)
            + (self.decoder_layers - narrow) as f64 * self.block_bytes(tokens, on)
            // What is expanded, and both sides of the norm.
            + (chunks * d + 2.0 * tokens * d) * on.activation
    }

    /// The largest temporary of a backward pass through the blocks on `tokens` tokens.
    pub fn blocks_temporary(&self, tokens: f64, on: Footing) -> f64 {
        tokens * (4 * self.intermediate_size + 4 * self.hidden_size) as f64 * on.activation
    }

    /// What a training step on `chunks` chunks holds.
    pub fn held(&self, chunk_size: usize, vocab: usize, chunks: f64, on: Footing) -> Held {
        let tokens = chunks * chunk_size as f64;
        // The KL divergence and the draw are plain operations on [R, L].
        let latents = 18.0 * chunks * self.latent_size(chunk_size) as f64 * on.activation;
        let decoder = self.decoder_bytes(chunk_size, chunks, on);
        let mut held = Held::default();
        held.keep(LAYERS, self.encoder_bytes(chunk_size, chunks, on) + latents + decoder);
        on.cross_entropy(&mut held, vocab, self.hidden_size, tokens, true);
        held.temporary(self.blocks_temporary(tokens, on));
        held
    }
}
