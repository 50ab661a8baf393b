//! The folder of a run: its configuration, record, checkpoints, metrics and results, and what can go wrong
//! with them.
//!
//! This room reads and writes; it trains nothing and builds no model (`calm-train` does). It may use the owners of
//! the settings that a run's configuration is made of, down from `calm-eval`.

pub mod checked;
pub mod checkpoint;
pub mod config;
pub mod divergence;
mod earlier;
pub mod error;
mod history;
mod host;
pub mod lock;
pub mod metrics;
mod on_device;
pub mod record;
pub mod results;
pub mod resumption;
pub mod run;
pub mod stage;

pub use config::RunConfig;
pub use error::{Error, Result};
pub use history::TokenCount;
pub use lock::{Claim, Lock};
pub use record::{Change, Provenance, RunRecord};
pub use resumption::{Begin, Resumption};
pub use run::{ORIGIN, Run};
pub use stage::Stage;
