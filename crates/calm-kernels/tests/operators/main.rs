//! The operators: each against a plain composition, by gradient check, and on a GPU where there is one.
//!
//! One program, since every program links candle: `cargo test --release --workspace --test operators energy_score::`
//! runs one file's tests.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod activations;
mod attention;
mod blocks;
mod common;
mod context;
mod cross_entropy;
mod dropout;
mod embedding;
#[cfg(feature = "cuda")]
mod energy_block;
mod energy_score;
mod linear;
#[cfg(feature = "cuda")]
mod mixed_precision;
mod noise;
mod norms;
mod smooth;
mod spans;
