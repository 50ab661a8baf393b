//! Training: the one loop, the stages, the pipeline from text to scores, what a run will take (plan, memory,
//! measurement), and scoring it.
//!
//! What a run keeps lies in `calm-run`; the models come from `calm-lm` and `calm-autoencoder`. This room knows no
//! command line and no study.
//!
//! A loop of one's own needs [`step::Stepper`] and nothing else of this crate: `examples/own_loop.rs` goes from a text
//! to a trained model in a page (`cargo run --release -p calm-train --example own_loop -- TEXT`).

pub mod held_out;
pub mod init;
pub mod machine;
pub mod measure;
pub mod memory;
pub mod models;
pub mod objective;
pub mod observer;
pub mod options;
mod overlap;
pub mod pipeline;
pub mod plan;
pub mod recorder;
pub mod reporter;
pub mod reuse;
mod rows;
pub mod scoring;
mod settle;
mod shard;
mod share;
pub mod step;
mod survey;
pub mod task;
mod together;
pub mod training;
mod watch;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
