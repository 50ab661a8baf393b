//! A ratio of two sums over documents, such as nats a token, with its standard error: documents are the units that are drawn
//! independently, and what they hold differs in both sums.
//!
//! ```
//! // Two documents of one token each, with 2 and 4 nats: the error of their mean is 1.
//! let nats = calm_stats::ratio::of([(2.0, 1.0), (4.0, 1.0)].into_iter()).unwrap();
//! assert_eq!((nats.value, nats.se), (3.0, Some(1.0)));
//! ```

use serde::{Deserialize, Serialize};

/// A ratio of sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// Its value.
    pub value: f64,
    /// Its standard error over documents, to first order; null with fewer than two.
    pub se: Option<f64>,
}

/// Σ a / Σ b over documents of (a, b); None where Σ b is 0.
pub fn of(documents: impl Iterator<Item = (f64, f64)> + Clone) -> Option<Ratio> {
    let total: f64 = documents.clone().map(|(_, b)| b).sum();
    if total == 0.0 {
        return None;
    }
    let value = documents.clone().map(|(a, _)| a).sum::<f64>() / total;
    let n = documents.clone().count() as f64;
    let squares: f64 = documents.map(|(a, b)| (a - value * b).powi(2)).sum();
    let se = (n > 1.0).then(|| (n / (n - 1.0) * squares).sqrt() / total);
    Some(Ratio { value, se })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Stream;

    #[test]
    fn the_error_is_the_spread_of_the_ratio_over_texts() {
        let mut noise = Stream::new(3, "ratio", 0);
        // Documents of 1 to 9 segments of 1 to 7 tokens.
        let mut text = || -> Vec<(f64, f64)> {
            let mut document = |_| {
                let segments = 1 + noise.below(9);
                ((0..segments).map(|_| 1 + noise.below(7)).sum::<usize>() as f64, segments as f64)
            };
            (0..50).map(&mut document).collect()
        };
        let found: Vec<Ratio> = (0..2000).map(|_| of(text().into_iter()).unwrap()).collect();
        let n = found.len() as f64;
        let mean = found.iter().map(|r| r.value).sum::<f64>() / n;
        let spread = (found.iter().map(|r| (r.value - mean).powi(2)).sum::<f64>() / n).sqrt();
        let error = found.iter().map(|r| r.se.unwrap()).sum::<f64>() / n;
        assert!((mean - 4.0).abs() < 0.02 && (error / spread - 1.0).abs() < 0.05, "{mean} {error} {spread}");
    }

    #[test]
    fn nothing_has_no_ratio_and_one_document_no_error() {
        assert_eq!(of([(1.0, 0.0)].into_iter()), None);
        assert_eq!(of([(6.0, 2.0)].into_iter()), Some(Ratio { value: 3.0, se: None }));
    }
}
