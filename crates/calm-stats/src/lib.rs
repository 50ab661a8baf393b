//! tokens -> scores, arithmetic alone: BrierLM and its standard errors, comparison over seeds, temperature
//! sampling from a black box, n-gram references, and scoring of sample files.
//!
//! Drawn tokens and targets go in, statistics come out. This room knows no model, no tensors and no other crate
//! of ours, so that anyone can score a sampler of their own.

pub mod bootstrap;
pub mod brier;
pub mod ngram;
pub mod rng;
pub mod samples;
pub mod seeds;
pub mod temperature;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
