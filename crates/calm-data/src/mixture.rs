//! Which source a row comes from: so that any run of rows has the sources in proportion to their weights, and any row is
//! found without those before it.
//!
//! Of two sources with shares p and 1 - p the first has had floor(n p + u) of the first n rows, u in [0, 1) from the seed:
//! exactly one row more or none with each n, so that both go through their rows one by one. More sources are the first
//! and the rest, which is divided again. All in whole numbers.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::permutation::mix2;

/// The sections of one source.
#[derive(Clone, Debug, PartialEq)]
pub struct Portion {
    /// Sections of the training tokens.
    pub sections: Range<usize>,
    /// How often its rows come, in proportion to those of the others.
    pub weight: f64,
}

/// Shares are multiples of 2^-32.
const ONE: u64 = 1 << 32;

/// Sources in a fixed proportion.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mixture {
    /// Of each source but the last: its share of the rows that the sources before it leave, and the seed's number.
    splits: Vec<(u64, u64)>,
}

impl Mixture {
    /// Of sources with these weights.
    ///
    /// # Errors
    /// Weights that are not above 0.
    pub(crate) fn new(weights: &[f64], seed: u64) -> Result<Self> {
        let possible = |weight: &&f64| weight.is_finite() && **weight > 0.0;
        if weights.is_empty() || weights.iter().filter(possible).count() < weights.len() {
            return Err(Error::Layout(format!("weights of sources must be above 0, not {weights:?}")));
        }
        let mut left: f64 = weights.iter().sum();
        let mut splits = Vec::new();
        for (weight, number) in weights[..weights.len() - 1].iter().zip(0..) {
            let share = ((weight / left) * ONE as f64).round() as u64;
            // No source is left out altogether.
            splits.push((share.clamp(1, ONE - 1), mix2(seed, number) % ONE));
            left -= weight;
        }
        Ok(Self { splits })
    }

    /// Rows of the first of two in the first `n`.
    fn of_first(n: u64, (share, offset): (u64, u64)) -> u64 {
        ((u128::from(n) * u128::from(share) + u128::from(offset)) / u128::from(ONE)) as u64
    }

    /// The source of row `row`, and how many of its rows come before.
    pub(crate) fn place(&self, row: u64) -> (usize, u64) {
        let mut row = row;
        for (source, split) in self.splits.iter().enumerate() {
            let before = Self::of_first(row, *split);
            if Self::of_first(row + 1, *split) > before {
                return (source, before);
            }
            row -= before;
        }
        (self.splits.len(), row)
    }

    /// How many rows of a source come before row `row`.
    pub(crate) fn before(&self, source: usize, row: u64) -> u64 {
        let mut row = row;
        for split in &self.splits[..source] {
            row -= Self::of_first(row, *split);
        }
        self.splits.get(source).map_or(row, |split| Self::of_first(row, *split))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn sources_have_their_shares_and_no_row_of_one_is_left_out(
            weights in prop::collection::vec(0.05f64..1.0, 1..5), seed: u64,
        ) {
            let mixture = Mixture::new(&weights, seed).unwrap();
            let mut seen = vec![0u64; weights.len()];
            let all: f64 = weights.iter().sum();
            for row in 0..2000 {
                for (source, n) in seen.iter().enumerate() {
                    prop_assert_eq!(mixture.before(source, row), *n);
                }
                let (source, place) = mixture.place(row);
                prop_assert_eq!(place, seen[source]);
                seen[source] += 1;
                for (n, weight) in seen.iter().zip(&weights) {
                    let wanted = (row + 1) as f64 * weight / all;
                    prop_assert!((*n as f64 - wanted).abs() <= weights.len() as f64, "{n} of {wanted}");
                }
            }
        }
    }

    #[test]
    fn impossible_weights_are_refused() {
        for weights in [vec![], vec![1.0, 0.0], vec![f64::NAN], vec![-1.0, 2.0]] {
            assert!(Mixture::new(&weights, 1).is_err(), "{weights:?}");
        }
    }
}
