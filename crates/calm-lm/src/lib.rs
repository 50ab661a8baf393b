//! Language models over chunks: families of models behind one trait, and the generative heads of one of them.
//!
//! ```text
//! configuration ─ registry ─ FamilyConfig ─ build ─ LanguageModel ─┬─ loss: named parts
//!                                                                  ├─ draw: samples or probabilities, at every position
//!                                                                  └─ sampler: a text, continued chunk by chunk
//! ```
//!
//! * [`family`]: the traits, and one module for each family; add a family there.
//! * [`head`]: what turns a hidden state into samples of the next latent vector; add a head there.
//! * [`backbone`]: the Llama decoder, teacher-forced, cached, or branched from every position at once.
//! * [`sampler`]: `draw(n, key) -> chunks`, all that generation knows of a model.
//! * [`published`]: how a family, a head says itself in the `config.json` of a published checkpoint.
//! * [`registry`]: how `{NAME: settings}` in a configuration finds its family or head.

pub mod backbone;
pub mod batch;
mod context;
pub mod family;
pub mod head;
pub mod published;
pub mod registry;
pub mod sampler;

pub use backbone::{Backbone, BackboneConfig, Cache};
pub use batch::ChunkBatch;
pub use context::Context;
pub use family::baseline::{Baseline, BaselineConfig};
pub use family::calm::{Calm, CalmConfig};
pub use family::{
    DrawKind, DrawRequest, Draws, ExactDraws, FamilyConfig, LanguageModel, Loss, LossPart, ModelConfig,
    SampledDraws, TextFormat, TokenDecoding,
};
pub use head::{
    DiffusionConfig, EnergyConfig, FlowConfig, FlowTime, Head, HeadConfig, HeadSettings, Solver,
    VariationalTerm,
};
pub use sampler::{Continuation, DrawKey, Sampler, SpecialIds};
