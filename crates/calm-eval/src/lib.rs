//! models -> tokens -> scores: the positions that a protocol scores, draws from a model at them, reconstruction
//! by an autoencoder, and generated text.
//!
//! The arithmetic of the scores is `calm-stats`; this room brings models to it. It may use the models
//! (`calm-lm`, `calm-autoencoder`) and all below them, and knows nothing of runs or folders.

pub mod attention;
pub mod bound;
pub mod config;
pub mod generate;
pub mod prompts;
pub mod protocol;
pub mod reconstruction;
pub mod score;
pub mod segments;
pub mod workers;

pub use config::EvalConfig;
