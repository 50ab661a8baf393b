//! Parameters and FLOPs by formula, part by part, from plain numbers.
//!
//! Conventions (the paper, arXiv 2510.27688, whose table they reproduce): a product of a vector with an
//! [I, O] matrix is 2·I·O FLOPs; attention is counted in full, not causally halved: 2·T·D for the scores and
//! 2·T·D for the values of a query, at every position of a context of T; training is three times the forward
//! pass; norms, activations, biases and embedding look-ups count nothing. For CALM the head runs N times a
//! chunk in training, the frozen autoencoder encodes every training chunk (forward only), and decoding is
//! part of inference. Everything is reported *per token*: a CALM position is divided by K.
//!
//! With this the inference column of the paper's table comes out within 3.5 %, its training column within 5 %
//! for CALM-M, CALM-L and the baselines; the paper's training figure of CALM-XL is 10 % off (the tests hold
//! these margins).

use serde::Serialize;

/// Llama decoder stack of width D = `hidden`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackboneShape {
    /// Number of layers.
    pub layers: usize,
    /// D.
    pub hidden: usize,
    /// Width of the SwiGLU.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
}

/// Autoencoder of chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AutoencoderShape {
    /// V.
    pub vocab: usize,
    /// K.
    pub chunk_size: usize,
    /// Width.
    pub hidden: usize,
    /// Width of the SwiGLU.
    pub intermediate: usize,
    /// Encoder blocks: half of them on each token, half on the squeezed chunk.
    pub encoder_layers: usize,
    /// Decoder blocks: half of them on the latent, half on each token.
    pub decoder_layers: usize,
    /// L.
    pub latent: usize,
}

/// What turns a hidden state into a latent vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadShape {
    /// Energy head: one pass a sample.
    Energy {
        /// Width.
        hidden: usize,
        /// Residual blocks.
        blocks: usize,
        /// Numbers of noise.
        noise: usize,
    },
    /// Flow-matching head.
    Flow {
        /// Width.
        hidden: usize,
        /// Residual blocks.
        blocks: usize,
        /// Passes through the net a sample.
        calls: usize,
    },
    /// Diffusion head; its net also predicts a variance.
    Diffusion {
        /// Width.
        hidden: usize,
        /// Residual blocks.
        blocks: usize,
        /// Passes through the net a sample.
        calls: usize,
    },
}

/// A CALM with its autoencoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CalmShape {
    /// The backbone, one position a chunk.
    pub backbone: BackboneShape,
    /// The head.
    pub head: HeadShape,
    /// The frozen autoencoder; gives V, K and L.
    pub autoencoder: AutoencoderShape,
    /// T in chunks.
    pub context: usize,
    /// N: passes of the head for each chunk in training.
    pub samples: usize,
}

/// A discrete Llama baseline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BaselineShape {
    /// V.
    pub vocab: usize,
    /// The backbone, one position a token.
    pub backbone: BackboneShape,
    /// T in tokens.
    pub context: usize,
    /// Input and output embedding share one matrix.
    pub tied: bool,
}

/// Amounts by part, in the order of computation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breakdown<T> {
    /// (part, amount).
    pub parts: Vec<(&'static str, T)>,
}

impl<T: Copy + std::iter::Sum<T> + Into<f64>> Breakdown<T> {
    /// Sum of all parts.
    pub fn total(&self) -> T {
        self.parts.iter().map(|p| p.1).sum()
    }

    /// Share of one part in the total, 0 of a part that is not there.
    pub fn share(&self, part: &str) -> f64 {
        let amount: f64 = self.parts.iter().filter(|p| p.0 == part).map(|p| p.1.into()).sum();
        amount / self.total().into()
    }
}

/// Parameters by part; whole numbers up to 2⁵³.
pub type Parameters = Breakdown<Count>;
/// FLOPs a token by part.
pub type Flops = Breakdown<f64>;

/// A number of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Count(pub u64);

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        Count(counts.map(|c| c.0).sum())
    }
}

impl From<Count> for f64 {
    fn from(count: Count) -> f64 {
        count.0 as f64
    }
}

/// Weights of an [i, o] matrix.
fn weights(i: usize, o: usize) -> u64 {
    i as u64 * o as u64
}

/// Weights and biases of a linear layer.
fn biased(i: usize, o: usize) -> u64 {
    weights(i, o) + o as u64
}

/// FLOPs of that many weights, each used once.
fn flops(weights: u64) -> f64 {
    2.0 * weights as f64
}

impl BackboneShape {
    /// Matrix weights of one layer: queries, keys, values, output, SwiGLU. No biases.
    fn layer_weights(&self) -> u64 {
        let d = self.hidden;
        let kv = d / self.heads.max(1) * self.kv_heads;
        2 * weights(d, d) + 2 * weights(d, kv) + 3 * weights(d, self.intermediate)
    }

    /// Parameters of the layers with their two norms; the final norm is not among them.
    pub fn layer_parameters(&self) -> u64 {
        self.layers as u64 * (self.layer_weights() + 2 * self.hidden as u64)
    }

    /// Forward FLOPs of a position in its layers' matrices.
    pub fn matrix_flops(&self) -> f64 {
        flops(self.layers as u64 * self.layer_weights())
    }

    /// Forward FLOPs of a position in attention over a context of `context` positions.
    pub fn attention_flops(&self, context: usize) -> f64 {
        4.0 * self.layers as f64 * context as f64 * self.hidden as f64
    }
}

impl AutoencoderShape {
    fn block_weights(&self) -> u64 {
        3 * weights(self.hidden, self.intermediate)
    }

    /// Parameters by part. The output embedding is the input embedding.
    pub fn parameters(&self) -> Parameters {
        let (d, k) = (self.hidden, self.chunk_size);
        let blocks = |layers: usize| layers as u64 * (self.block_weights() + d as u64);
        let encoder = blocks(self.encoder_layers) + biased(k * d, d) + d as u64 + biased(d, 2 * self.latent);
        let decoder = blocks(self.decoder_layers) + biased(self.latent, d) + biased(d, k * d) + d as u64;
        Breakdown {
            parts: vec![
                ("embedding", Count(weights(self.vocab, d))),
                ("encoder", Count(encoder)),
                ("decoder", Count(decoder)),
            ],
        }
    }

    /// FLOPs of encoding a chunk.
    pub fn encode_flops(&self) -> f64 {
        let (d, k) = (self.hidden, self.chunk_size);
        let (wide, narrow) = (self.encoder_layers / 2, self.encoder_layers - self.encoder_layers / 2);
        let blocks = (wide * k + narrow) as u64 * self.block_weights();
        flops(blocks + weights(k * d, d) + weights(d, 2 * self.latent))
    }

    /// FLOPs of decoding a chunk, without the vocabulary.
    pub fn decode_flops(&self) -> f64 {
        let (d, k) = (self.hidden, self.chunk_size);
        let (narrow, wide) = (self.decoder_layers / 2, self.decoder_layers - self.decoder_layers / 2);
        let blocks = (wide * k + narrow) as u64 * self.block_weights();
        flops(blocks + weights(self.latent, d) + weights(d, k * d))
    }

    /// FLOPs of the logits of a chunk.
    pub fn vocabulary_flops(&self) -> f64 {
        flops(self.chunk_size as u64 * weights(self.hidden, self.vocab))
    }

    /// Training FLOPs of a token: three forward passes.
    pub fn training_flops(&self) -> Flops {
        let scale = 3.0 / self.chunk_size as f64;
        Breakdown {
            parts: vec![
                ("encoder", scale * self.encode_flops()),
                ("decoder", scale * self.decode_flops()),
                ("vocabulary", scale * self.vocabulary_flops()),
            ],
        }
    }
}

impl HeadShape {
    /// Parameters of a head under a backbone of width `condition`, for latents of size `latent`.
    pub fn parameters(&self, condition: usize, latent: usize) -> u64 {
        let norm = |d: usize| 2 * d as u64;
        match *self {
            HeadShape::Energy { hidden: d, blocks, noise } => {
                let block = norm(d) + biased(2 * d, d) + biased(d, d) + biased(d, 2 * d) + biased(d, d);
                biased(noise, d)
                    + norm(d)
                    + biased(condition, d)
                    + norm(d)
                    + blocks as u64 * block
                    + norm(d)
                    + biased(d, d)
                    + biased(d, latent)
            }
            HeadShape::Flow { hidden: d, blocks, .. } => denoiser(d, blocks, condition, latent, latent),
            HeadShape::Diffusion { hidden: d, blocks, .. } => {
                denoiser(d, blocks, condition, latent, 2 * latent)
            }
        }
    }

    /// FLOPs of one pass through the head's net.
    pub fn pass_flops(&self, condition: usize, latent: usize) -> f64 {
        match *self {
            HeadShape::Energy { hidden: d, blocks, noise } => {
                let block = weights(2 * d, d) + weights(d, d) + weights(d, 2 * d) + weights(d, d);
                let ends = weights(noise, d) + weights(condition, d) + weights(d, d) + weights(d, latent);
                flops(ends + blocks as u64 * block)
            }
            HeadShape::Flow { hidden: d, blocks, .. } => {
                flops(denoiser_weights(d, blocks, condition, latent, latent))
            }
            HeadShape::Diffusion { hidden: d, blocks, .. } => {
                flops(denoiser_weights(d, blocks, condition, latent, 2 * latent))
            }
        }
    }

    /// Passes through the net for one sample.
    pub fn calls(&self) -> usize {
        match *self {
            HeadShape::Energy { .. } => 1,
            HeadShape::Flow { calls, .. } | HeadShape::Diffusion { calls, .. } => calls,
        }
    }
}

/// Numbers in the sinusoidal embedding of a time step.
const TIME: usize = 256;

/// Matrix weights of the flow and diffusion nets: time embedding, condition, input, blocks with their
/// modulation, output with its modulation.
fn denoiser_weights(d: usize, blocks: usize, condition: usize, latent: usize, out: usize) -> u64 {
    let ends = weights(TIME, d) + weights(d, d) + weights(condition, d) + weights(latent, d);
    let block = 2 * weights(d, d) + weights(d, 3 * d);
    ends + blocks as u64 * block + weights(d, out) + weights(d, 2 * d)
}

fn denoiser(d: usize, blocks: usize, condition: usize, latent: usize, out: usize) -> u64 {
    let biases = 4 * d + blocks * (2 * d + 3 * d) + out + 2 * d;
    let norms = blocks * 2 * d;
    denoiser_weights(d, blocks, condition, latent, out) + (biases + norms) as u64
}

impl CalmShape {
    /// Parameters by part, without the autoencoder.
    pub fn parameters(&self) -> Parameters {
        let (d, k) = (self.backbone.hidden, self.autoencoder.chunk_size);
        let input = biased(k * d, 2 * d) + biased(2 * d, d) + 2 * d as u64;
        Breakdown {
            parts: vec![
                ("embedding", Count(weights(self.autoencoder.vocab, d))),
                ("input", Count(input)),
                ("backbone", Count(self.backbone.layer_parameters())),
                ("norm", Count(d as u64)),
                ("head", Count(self.head.parameters(d, self.autoencoder.latent))),
            ],
        }
    }

    fn input_flops(&self) -> f64 {
        let (d, k) = (self.backbone.hidden, self.autoencoder.chunk_size);
        flops(weights(k * d, 2 * d) + weights(2 * d, d))
    }

    fn pass_flops(&self) -> f64 {
        self.head.pass_flops(self.backbone.hidden, self.autoencoder.latent)
    }

    /// Training FLOPs of a token (the autoencoder's own training is not among them).
    pub fn training_flops(&self) -> Flops {
        let k = self.autoencoder.chunk_size as f64;
        Breakdown {
            parts: vec![
                ("encoding", self.autoencoder.encode_flops() / k),
                ("input", 3.0 * self.input_flops() / k),
                ("backbone", 3.0 * self.backbone.matrix_flops() / k),
                ("attention", 3.0 * self.backbone.attention_flops(self.context) / k),
                ("head", 3.0 * self.samples as f64 * self.pass_flops() / k),
            ],
        }
    }

    /// FLOPs of generating a token at the end of a full context, with `draws` samples of every chunk:
    /// 1 at T = 1, the batch size N of the batch approximation below it.
    pub fn inference_flops(&self, draws: usize) -> Flops {
        let k = self.autoencoder.chunk_size as f64;
        let draws = draws as f64;
        Breakdown {
            parts: vec![
                ("input", self.input_flops() / k),
                ("backbone", self.backbone.matrix_flops() / k),
                ("attention", self.backbone.attention_flops(self.context) / k),
                ("head", draws * self.head.calls() as f64 * self.pass_flops() / k),
                ("decoder", draws * self.autoencoder.decode_flops() / k),
                ("vocabulary", draws * self.autoencoder.vocabulary_flops() / k),
            ],
        }
    }
}

impl BaselineShape {
    /// Parameters by part.
    pub fn parameters(&self) -> Parameters {
        let embedding = Count(weights(self.vocab, self.backbone.hidden));
        let mut parts = vec![
            ("embedding", embedding),
            ("backbone", Count(self.backbone.layer_parameters())),
            ("norm", Count(self.backbone.hidden as u64)),
        ];
        if !self.tied {
            parts.push(("vocabulary", embedding));
        }
        Breakdown { parts }
    }

    /// FLOPs of generating a token at the end of a full context.
    pub fn inference_flops(&self) -> Flops {
        Breakdown {
            parts: vec![
                ("backbone", self.backbone.matrix_flops()),
                ("attention", self.backbone.attention_flops(self.context)),
                ("vocabulary", flops(weights(self.backbone.hidden, self.vocab))),
            ],
        }
    }

    /// Training FLOPs of a token.
    pub fn training_flops(&self) -> Flops {
        let mut flops = self.inference_flops();
        flops.parts.iter_mut().for_each(|p| p.1 *= 3.0);
        flops
    }
}

#[cfg(test)]
mod tests;
