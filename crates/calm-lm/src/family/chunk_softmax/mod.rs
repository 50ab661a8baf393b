//! Language models over chunks that say the probability of every token of the next one: what the families `patch` and
//! `multi-token` have in common. They differ in what turns a hidden state into the K next tokens, a [`ChunkDecoder`].
//!
//! ```text
//! ids [B,S,K] -> embeddings, K·D concatenated -> input MLP -> backbone, one position a chunk
//!   -> hidden [R,D] -> decoder -> [R,K,W] -> vocabulary -> p(token k | chunks before, tokens before k)
//! ```
//! A chunk's probability is the product over its tokens up to EOS; what follows EOS is PAD with certainty. So the loss
//! is a likelihood, and nats a token compare with those of a model of single tokens.

mod coding;
mod decoder;
mod draws;
mod language_model;
mod model;
mod sampler;

pub(super) use decoder::{ChunkDecoder, ChunkTokens};
pub use model::ChunkSoftmax;
