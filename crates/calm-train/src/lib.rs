//! Runs: configuration, the one training loop, checkpoints, metrics, and the pipeline from text to scores.

pub mod checkpoint;
pub mod config;
pub mod error;
pub mod init;
pub mod interchange;
pub mod measure;
pub mod memory;
pub mod metrics;
pub mod objective;
mod on_device;
pub mod pipeline;
pub mod plan;
pub mod recorder;
pub mod results;
mod reuse;
pub mod run;
pub mod scoring;
pub mod stage;
pub mod task;

pub use config::RunConfig;
pub use error::{Error, Result};
pub use run::{Begin, Provenance, Run, RunRecord};
