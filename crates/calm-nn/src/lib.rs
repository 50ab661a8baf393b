//! The room between operators and models: named parameters, their initialisation and files, layers,
//! noise sources, the gradient bucket and AdamW.
//!
//! Shapes are written with one legend in the whole project: B batch rows, S chunks, K tokens a chunk,
//! L latent, D hidden, N model samples, M target samples, V vocabulary, R rows (kept `(b, s)` pairs).

pub mod costs;
pub mod dtype;
mod files;
pub mod finite;
pub mod held;
pub mod layers;
pub mod noise;
pub mod optim;
pub mod store;
mod weight_init;

pub use calm_kernels::{Clip, Context, Destination, NoiseKey, Parameter, RowId, device, gradcheck, philox};
pub use dtype::Precision;
pub use files::{
    WeightsError, is_pointer, parse_some, parse_weights, read_weights, write_tensors, write_weights,
};
pub use held::{Footing, Held};
pub use layers::{Embedding, LayerNorm, Linear, RmsNorm, SwiGlu};
pub use noise::Noise;
pub use optim::{AdamW, AdamWConfig, GradientBucket};
pub use store::{Builder, Init, LoadReport, ParamStore, Scale};
pub use weight_init::WeightInit;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
