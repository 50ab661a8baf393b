//! Parameters and FLOPs by formula, part by part: what the models' own `costs` modules are written in.
//!
//! Conventions (the paper, arXiv 2510.27688, whose table they reproduce): a product of a vector with an
//! [I, O] matrix is 2·I·O FLOPs; attention is counted in full, not causally halved: 2·T·D for the scores and
//! 2·T·D for the values of a query, at every position of a context of T; training is three times the forward
//! pass; norms, activations, biases and embedding look-ups count nothing. Everything is reported *per token*:
//! a position that stands for K tokens is divided by K.

use serde::Serialize;

/// Amounts by part, in the order of computation.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Breakdown<T> {
    /// (part, amount).
    pub parts: Vec<(&'static str, T)>,
}

impl<T: Copy + std::iter::Sum<T> + Into<f64>> Breakdown<T> {
    /// Sum of all parts.
    pub fn total(&self) -> T {
        self.parts.iter().map(|p| p.1).sum()
    }

    /// Share of one part in the total, 0 of a part that is not there.
    pub fn share(&self, part: &str) -> f64 {
        let amount: f64 = self.parts.iter().filter(|p| p.0 == part).map(|p| p.1.into()).sum();
        amount / self.total().into()
    }
}

impl Flops {
    /// Every part so many times.
    pub fn times(mut self, factor: f64) -> Self {
        self.parts.iter_mut().for_each(|p| p.1 *= factor);
        self
    }
}

/// Parameters by part; whole numbers up to 2⁵³.
pub type Parameters = Breakdown<Count>;
/// FLOPs a token by part.
pub type Flops = Breakdown<f64>;

/// A number of parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Count(pub u64);

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        Count(counts.fold(0, |sum, c| c.0.saturating_add(sum)))
    }
}

impl From<Count> for f64 {
    fn from(count: Count) -> f64 {
        count.0 as f64
    }
}

/// Weights of an [i, o] matrix.
pub fn weights(i: usize, o: usize) -> u64 {
    (i as u64).saturating_mul(o as u64)
}

/// Weights and biases of a linear layer.
pub fn biased(i: usize, o: usize) -> u64 {
    weights(i, o) + o as u64
}

/// Weight and bias of a LayerNorm of width `d`.
pub fn layer_norm(d: usize) -> u64 {
    2 * d as u64
}

/// FLOPs of that many weights, each used once.
pub fn flops(weights: u64) -> f64 {
    2.0 * weights as f64
}
