//! tokens -> scores: BrierLM and its standard errors, temperature sampling from a black box, n-gram
//! references, scoring of sample files, and costs by formula.
//!
//! The modules below know no model: drawn tokens and targets go in, statistics come out.

pub mod bootstrap;
pub mod brier;
pub mod costs;
pub mod generate;
pub mod ngram;
pub mod protocol;
pub mod reconstruction;
pub mod rng;
pub mod samples;
pub mod score;
pub mod seeds;
pub mod temperature;
