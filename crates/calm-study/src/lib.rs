//! Many runs, one comparison: what an ablation's file says becomes a plan of runs under an equal budget; runs
//! are trained, several at a time (what they share, once), scored on the same positions, measured in turn, and gathered
//! into a [`calm_report::Study`].
//!
//! ```text
//!   ablation.yaml ── expand ──> plan: autoencoders, runs      (config, survey, plan)
//!        folder  <── execute ── one process a run             (execute, queue)
//! scores-*.json  <── score ──── the same positions for all    (alignment, score, segments)
//!    costs.json  <── measure ── all variants in turn          (costs)
//!    study.json  <── gather ─── means over seeds, differences (gather)
//! ```
//!
//! Every step looks at what the folder holds already and does the rest: a stopped ablation is continued by
//! running it again.

pub mod alignment;
pub mod config;
pub mod costs;
mod done;
pub mod execute;
pub mod folder;
pub mod gather;
pub mod outlook;
pub mod plan;
mod queue;
pub mod score;
mod segments;
mod settings;
pub mod survey;

/// Names what a kept result depends on.
pub fn hash(what: &serde_json::Value) -> String {
    blake3::hash(what.to_string().as_bytes()).to_hex().to_string()
}

pub use config::AblationConfig;
pub use plan::Ablation;
