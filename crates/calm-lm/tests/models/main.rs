//! Model families and heads: probabilities, draws, gradients, costs, published forms, and all of it on a GPU where there
//! is one. A head that is found by its name has a program of its own (`toy_head.rs`): it registers one.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod chunk_probabilities;
mod common;
mod costs;
mod counts;
mod decoding;
mod direction;
mod dlcm;
mod gpu;
mod gradients;
mod published;
mod settings;
