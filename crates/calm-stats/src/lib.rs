//! tokens -> scores, arithmetic alone: BrierLM and its standard errors, comparison over seeds, temperature
//! sampling from a black box, n-gram references, and scoring of sample files.
//!
//! Drawn tokens and targets go in, statistics come out. This room knows no model, no tensors and no other crate
//! of ours, so that anyone can score a sampler of their own.
//!
//! # Score your own sampler
//!
//! At every position of a held-out text, draw two or more continuations of four tokens from your model and hand them
//! in with the true ones. Whole documents are resampled for the standard errors.
//!
//! ```
//! use calm_stats::bootstrap::{Bootstrap, report};
//! use calm_stats::brier::{BrierSums, NGRAM, sample_terms};
//! use calm_stats::rng::Stream;
//!
//! // Held-out documents, and a sampler that is right nine times in ten, token by token:
//! // Brier-n = 2 · 0.9ⁿ − 0.812ⁿ, and BrierLM = 93.6 %.
//! let documents: Vec<Vec<u32>> = (0..50).map(|d| (d..d + 12).collect()).collect();
//! let mut noise = Stream::new(7, "example", 0);
//! let mut draw = |truth: &[u32]| -> Vec<u32> {
//!     truth.iter().map(|t| if noise.below(10) > 0 { *t } else { 1000 + noise.below(5) as u32 }).collect()
//! };
//!
//! let mut sums = BrierSums::new();
//! for (d, tokens) in documents.iter().enumerate() {
//!     for truth in tokens.windows(NGRAM) {
//!         let samples = [draw(truth), draw(truth), draw(truth)];
//!         sums.add(d as u64, &sample_terms(truth, &samples, None)?.brier());
//!     }
//! }
//! let scores = report(&sums, &Bootstrap::default());
//! let (brierlm, error) = (scores.brierlm.unwrap(), scores.brierlm_se.unwrap());
//! println!("BrierLM {brierlm:.1} ± {error:.1} %");
//! assert!((brierlm - 93.6).abs() < 4.0 * error && error < 3.0);
//! # Ok::<(), calm_stats::brier::BrierError>(())
//! ```
//!
//! A model whose draws a softmax decodes has a [`bound`] on its cross-entropy too.
//!
//! Two models on the same documents are compared with [`bootstrap::paired_difference`], several seeds of each with
//! [`seeds`]; [`temperature`] sharpens a sampler by drawing more; [`samples`] reads draws from a file; [`spectrum`] says how
//! many directions a matrix has.

pub mod bootstrap;
pub mod bound;
pub mod brier;
pub mod ngram;
pub mod ratio;
pub mod rng;
pub mod samples;
pub mod seeds;
pub mod spectrum;
pub mod temperature;

/// The README's example is a test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
