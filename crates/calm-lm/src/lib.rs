//! Language models over chunks: the CALM transformer with a generative head, and the discrete baseline.
//!
//! ```text
//! ids [B,S,K] -> own embeddings, K·D concatenated -> input MLP -> Llama backbone, one position a chunk
//!   -> hidden [R,D] -> head (energy, flow or diffusion) -> latent [R,N,L] -> frozen autoencoder -> tokens [R,N,K]
//! ```
//!
//! * [`backbone`]: the Llama decoder, teacher-forced, cached, or branched from every position at once.
//! * [`head`]: what turns a hidden state into samples of the next latent vector; add a head there.
//! * [`calm`], [`baseline`]: the two models, with their losses.
//! * [`sampler`]: `draw(state, n, key) -> chunks`, all that generation and scoring know of a model.

pub mod backbone;
pub mod baseline;
pub mod batch;
pub mod calm;
mod config;
mod context;
pub mod head;
mod input;
pub mod sampler;

pub use backbone::{Backbone, Cache};
pub use baseline::Baseline;
pub use batch::ChunkBatch;
pub use calm::Calm;
pub use config::{
    BackboneConfig, DiffusionConfig, EnergyConfig, FlowConfig, FlowTime, HeadConfig, Solver, VariationalTerm,
};
pub use context::Context;
pub use head::Head;
pub use sampler::{DrawKey, Sampler, SpecialIds};
