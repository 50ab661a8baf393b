//! An upper bound on the cross-entropy of a model that draws a latent vector and decodes it by sampling.
//!
//! With the decoder's softmax p_dec and N vectors ẑ_n drawn without looking at the text,
//!
//! ```text
//! q_N(x) = 1/N Σ_n Π_k p_dec(x_k | ẑ_n)
//! ```
//! is a normalised distribution over chunks, and an unbiased estimate of the model's own q(x) = E_ẑ Π_k p_dec(x_k | ẑ).
//! By Jensen's inequality E[−ln q_N(x)] ≥ −ln q(x): a bound from above, which comes down as N grows
//! (E[ln q_N] never falls with N; as in importance-weighted autoencoders, arXiv 1509.00519).
//!
//! A few draws can miss a chunk altogether, and ln 0 would decide the mean. So a share ε of the distribution is that of
//! uniform tokens, (1 − ε) q_N(x) + ε/V^k for a chunk of k tokens up to its EOS: normalised again, and at most
//! −ln(1 − ε) nats a chunk worse.
//!
//! ```
//! use calm_stats::bound::{Bound, Floor};
//!
//! // Two chunks of two tokens under four draws each: ln p of the whole chunk.
//! let mut bound = Bound::new(4, Floor { share: 1e-3, vocab: 100 });
//! bound.add(0, &[-2.0, -9.0, -3.0, -8.0], 2);
//! bound.add(1, &[-4.0, -4.5, -5.0, -4.2], 2);
//! let curve = bound.curve();
//! assert_eq!(curve.iter().map(|p| p.samples).collect::<Vec<_>>(), [1, 4]);
//! // More draws, a tighter bound.
//! assert!(curve[1].nats < curve[0].nats && curve[1].nats > 1.0);
//! ```

use crate::ratio;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Numbers of draws at which the bound is given, as far as there are so many.
pub const SIZES: [usize; 4] = [1, 8, 64, 512];

/// The share of uniform tokens in the distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Floor {
    /// ε, above 0 and below 1.
    pub share: f64,
    /// V.
    pub vocab: usize,
}

impl Floor {
    /// ln of the distribution with its floor, from ln q of a chunk of `tokens` tokens.
    fn ln(self, log_q: f64, tokens: usize) -> f64 {
        let uniform = self.share.ln() - tokens as f64 * (self.vocab as f64).ln();
        add((-self.share).ln_1p() + log_q, uniform)
    }
}

/// ln(eᵃ + eᵇ).
fn add(a: f64, b: f64) -> f64 {
    let (low, high) = if a < b { (a, b) } else { (b, a) };
    if low == f64::NEG_INFINITY { high } else { high + (low - high).exp().ln_1p() }
}

/// ln of the mean of e^x.
pub fn log_mean(x: &[f64]) -> f64 {
    let top = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if top == f64::NEG_INFINITY {
        return top;
    }
    let sum: f64 = x.iter().map(|x| (x - top).exp()).sum();
    top + (sum / x.len() as f64).ln()
}

/// The bound at one number of draws.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// N.
    pub samples: usize,
    /// Nats a token.
    pub nats: f64,
    /// Its standard error over documents; null with fewer than two.
    pub nats_se: Option<f64>,
}

/// Sums of one document.
#[derive(Clone, Debug, Default)]
struct Document {
    tokens: u64,
    /// Nats at each size.
    nats: Vec<f64>,
}

/// The bound over many chunks.
#[derive(Clone, Debug)]
pub struct Bound {
    sizes: Vec<usize>,
    floor: Floor,
    documents: BTreeMap<u64, Document>,
}

impl Bound {
    /// For chunks with `samples` draws each: at the [`SIZES`] up to it, and at itself.
    pub fn new(samples: usize, floor: Floor) -> Self {
        let samples = samples.max(1);
        let mut sizes: Vec<usize> = SIZES.into_iter().filter(|n| *n < samples).collect();
        sizes.push(samples);
        Self { sizes, floor, documents: BTreeMap::new() }
    }

    /// A chunk of `tokens` tokens of a document, with ln p of the whole chunk under each draw.
    ///
    /// With n of N draws the mean over all groups of n that follow one another is taken: each is the bound with n
    /// draws.
    pub fn add(&mut self, document: u64, log_p: &[f64], tokens: usize) {
        self.add_chunk(document, &self.of_chunk(log_p, tokens), tokens);
    }

    /// Nats of a chunk at each size: what [`Self::add`] adds, for [`Self::add_chunk`].
    pub fn of_chunk(&self, log_p: &[f64], tokens: usize) -> Vec<f64> {
        let at = |size: &usize| {
            let groups = log_p.chunks_exact(*size);
            let count = groups.len().max(1) as f64;
            -(groups.map(|group| self.floor.ln(log_mean(group), tokens)).sum::<f64>() / count)
        };
        self.sizes.iter().map(at).collect()
    }

    /// A chunk of a document by its nats at each size.
    pub fn add_chunk(&mut self, document: u64, nats: &[f64], tokens: usize) {
        let own = self.documents.entry(document).or_default();
        own.tokens += tokens as u64;
        own.nats.resize(self.sizes.len(), 0.0);
        own.nats.iter_mut().zip(nats).for_each(|(sum, nats)| *sum += nats);
    }

    /// Tokens so far.
    pub fn tokens(&self) -> u64 {
        self.documents.values().map(|d| d.tokens).sum()
    }

    /// The bound at every size, in nats a token; empty without tokens.
    ///
    /// The standard error is that of a ratio of sums over documents ([`crate::ratio`]).
    pub fn curve(&self) -> Vec<Point> {
        let at = |(i, samples): (usize, &usize)| {
            let nats = ratio::of(self.documents.values().map(|d| (d.nats[i], d.tokens as f64)))?;
            Some(Point { samples: *samples, nats: nats.value, nats_se: nats.se })
        };
        self.sizes.iter().enumerate().filter_map(at).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    const NO_FLOOR: Floor = Floor { share: 1e-300, vocab: 10 };

    #[test]
    fn means_of_exponentials_do_not_overflow() {
        assert!((log_mean(&[-1000.0, -1000.0]) + 1000.0).abs() < 1e-12);
        assert!((log_mean(&[0.0, f64::NEG_INFINITY]) - 0.5f64.ln()).abs() < 1e-12);
        assert_eq!(log_mean(&[f64::NEG_INFINITY; 3]), f64::NEG_INFINITY);
    }

    #[test]
    fn the_floor_keeps_the_distribution_normalised() {
        // Three tokens, chunks of two, one draw whose softmax knows only the first token.
        let floor = Floor { share: 0.1, vocab: 3 };
        let sum: f64 = (0..9).map(|x| floor.ln(if x == 0 { 0.0 } else { f64::NEG_INFINITY }, 2).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-12, "{sum}");
    }

    #[test]
    fn a_point_is_exact_where_all_draws_agree_and_its_error_is_that_of_documents() {
        let mut bound = Bound::new(8, NO_FLOOR);
        for (document, nats) in [(1, 2.0), (1, 2.0), (2, 4.0), (2, 4.0)] {
            bound.add(document, &[-nats; 8], 1);
        }
        for point in bound.curve() {
            assert!((point.nats - 3.0).abs() < 1e-12);
            // Two documents of means 2 and 4: the error of their mean is 1.
            assert!((point.nats_se.unwrap() - 1.0).abs() < 1e-12);
        }
        assert_eq!(bound.tokens(), 4);
        assert!(Bound::new(8, NO_FLOOR).curve().is_empty());
    }

    /// A chunk has p = 0.9 under one in four draws, else 0.01: q = 0.2325.
    #[test]
    fn the_estimate_of_q_is_unbiased_and_the_bound_comes_down_to_its_logarithm() {
        let q: f64 = 0.25 * 0.9 + 0.75 * 0.01;
        let mut noise = Stream::new(3, "bound", 0);
        let mut bound = Bound::new(512, NO_FLOOR);
        let mut estimates = Vec::new();
        for document in 0..400 {
            let draws: Vec<f64> =
                (0..512).map(|_| if noise.below(4) == 0 { 0.9f64.ln() } else { 0.01f64.ln() }).collect();
            estimates.extend(draws.chunks(8).map(|group| log_mean(group).exp()));
            bound.add(document, &draws, 1);
        }
        let mean = estimates.iter().sum::<f64>() / estimates.len() as f64;
        assert!((mean - q).abs() < 0.004, "{mean} {q}");
        let curve = bound.curve();
        assert_eq!(curve.iter().map(|p| p.samples).collect::<Vec<_>>(), SIZES);
        assert!(curve.windows(2).all(|w| w[1].nats < w[0].nats), "{curve:?}");
        // One draw: the mean of −ln p; 512: −ln q but for the variance of the mean, σ²/(2 N q²).
        let one = -0.25 * 0.9f64.ln() - 0.75 * 0.01f64.ln();
        assert!((curve[0].nats - one).abs() < 5.0 * curve[0].nats_se.unwrap());
        let gap = 0.25 * 0.75 * 0.89f64.powi(2) / (2.0 * 512.0 * q * q);
        assert!((curve[3].nats + q.ln() - gap).abs() < 5.0 * curve[3].nats_se.unwrap());
    }
}
