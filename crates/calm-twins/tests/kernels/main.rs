//! The CUDA kernels as host code against the CPU's operators, one file a kernel file.
//!
//! One program, since every program links candle: `cargo test --release --workspace --test kernels attention::`
//! runs one file's tests.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod activations;
mod adamw;
mod attention;
mod common;
mod cross_entropy;
mod dropout;
mod embedding;
mod energy_block;
mod energy_score;
mod linear;
mod matrix;
mod norms;
mod philox;
mod smooth;
