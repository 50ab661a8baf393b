//! How many directions a square matrix has: its singular values, and what is read off them.
//!
//! By one-sided Jacobi rotations, a page of our own: a library that is kept well (nalgebra) would bring 26 packages and
//! change features of candle's, for one function of matrices of some hundred rows.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Singular values below this share of the largest are as good as nothing.
pub const SMALL: f64 = 1e-3;

/// The cosine below which two rows count as at right angles, and sweeps after which a matrix that has none such is given up.
const CLOSE: f64 = 1e-12;
const MOST_SWEEPS: usize = 60;

/// What the singular values σ of an n × n matrix say, each as a share of n.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rank {
    /// exp(−Σ p ln p) with p = σ/Σσ.
    pub effective: f64,
    /// How many are above [`SMALL`] times the largest.
    pub above: f64,
}

impl Rank {
    /// Of singular values; None of none, of zeros, and of what is no number.
    pub fn of(values: &[f64]) -> Option<Self> {
        let (n, sum) = (values.len() as f64, values.iter().sum::<f64>());
        if !(sum > 0.0 && sum.is_finite()) {
            return None;
        }
        let entropy: f64 = values.iter().filter(|v| **v > 0.0).map(|v| -(v / sum) * (v / sum).ln()).sum();
        let largest = values.iter().copied().fold(0.0, f64::max);
        let above = values.iter().filter(|v| **v > SMALL * largest).count() as f64;
        Some(Self { effective: entropy.exp() / n, above: above / n })
    }

    /// The mean over matrices of the same size, in their order; None of no matrix, or if one of them has no rank.
    pub fn mean(matrices: &[Vec<f64>], n: usize) -> Option<Self> {
        let ranks: Vec<Self> = matrices
            .par_iter()
            .map(|matrix| Self::of(&singular_values(matrix, n)?))
            .collect::<Option<Vec<_>>>()?;
        let count = ranks.len() as f64;
        let mean = |of: fn(&Self) -> f64| ranks.iter().map(of).sum::<f64>() / count;
        (!ranks.is_empty()).then(|| Self { effective: mean(|r| r.effective), above: mean(|r| r.above) })
    }
}

/// Singular values of an n × n matrix, row by row, largest first; None of another number of elements, of what is no number,
/// and if they do not converge.
///
/// One-sided Jacobi (Hestenes 1958): rows are turned in pairs until all are at right angles; their lengths are the values.
/// What is below rounding beside the whole matrix is left as it is.
pub fn singular_values(matrix: &[f64], n: usize) -> Option<Vec<f64>> {
    if matrix.len() != n * n || matrix.iter().any(|x| !x.is_finite()) {
        return None;
    }
    if n == 0 {
        return Some(Vec::new());
    }
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut rows: Vec<Vec<f64>> = matrix.chunks_exact(n).map(<[f64]>::to_vec).collect();
    let nothing = f64::EPSILON * f64::EPSILON * dot(matrix, matrix);
    for _ in 0..MOST_SWEEPS {
        let mut turned = false;
        let mut squares: Vec<f64> = rows.iter().map(|row| dot(row, row)).collect();
        for j in 1..n {
            let (before, rest) = rows.split_at_mut(j);
            let b = &mut rest[0];
            for (i, a) in before.iter_mut().enumerate() {
                let (aa, bb, ab) = (squares[i], squares[j], dot(a, b));
                if aa.min(bb) <= nothing || ab.abs() <= CLOSE * (aa * bb).sqrt() {
                    continue;
                }
                turned = true;
                let zeta = (bb - aa) / (2.0 * ab);
                let tangent = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cosine = 1.0 / tangent.hypot(1.0);
                let sine = cosine * tangent;
                (squares[i], squares[j]) = ((aa - tangent * ab).max(0.0), bb + tangent * ab);
                for (a, b) in a.iter_mut().zip(b.iter_mut()) {
                    (*a, *b) = (cosine * *a - sine * *b, sine * *a + cosine * *b);
                }
            }
        }
        if !turned {
            let mut values: Vec<f64> = rows.iter().map(|row| dot(row, row).sqrt()).collect();
            values.sort_unstable_by(|a, b| b.total_cmp(a));
            return Some(values);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_directions_count_fully_and_one_alone_as_one() {
        let unit: Vec<f64> = (0..25).map(|i| f64::from(i % 6 == 0)).collect();
        let rank = Rank::of(&singular_values(&unit, 5).unwrap()).unwrap();
        assert!((rank.effective - 1.0).abs() < 1e-12 && (rank.above - 1.0).abs() < 1e-12);
        // Every row the same: what a softmax of equal scores is.
        let flat = vec![0.2; 25];
        let rank = Rank::of(&singular_values(&flat, 5).unwrap()).unwrap();
        assert!((rank.effective - 0.2).abs() < 1e-6 && (rank.above - 0.2).abs() < 1e-12, "{rank:?}");
    }

    #[test]
    fn singular_values_are_those_of_a_matrix_that_is_known() {
        // diag(3, 2, 0.001) with its first two rows turned from the left, its last two columns from the right.
        let (c, s) = (0.6, 0.8);
        let rows = [
            [3.0 * c, -2.0 * s * c, -2.0 * s * s],
            [3.0 * s, 2.0 * c * c, 2.0 * c * s],
            [0.0, -0.001 * s, 0.001 * c],
        ]
        .concat();
        let values = singular_values(&rows, 3).unwrap();
        for (value, want) in values.iter().zip([3.0, 2.0, 0.001]) {
            assert!((value - want).abs() < 1e-12, "{values:?}");
        }
        assert!((Rank::of(&values).unwrap().above - 2.0 / 3.0).abs() < 1e-12);
    }

    #[test]
    fn a_triangle_of_means_has_full_rank_and_means_over_matrices_are_means() {
        let n = 16;
        let triangle: Vec<f64> =
            (0..n * n).map(|i| if i % n <= i / n { 1.0 / (i / n + 1) as f64 } else { 0.0 }).collect();
        let values = singular_values(&triangle, n).unwrap();
        assert!(values.iter().all(|v| *v > 1e-3));
        let flat = vec![1.0 / n as f64; n * n];
        let of = |m: &[f64]| Rank::of(&singular_values(m, n).unwrap()).unwrap();
        let mean = Rank::mean(&[triangle.clone(), flat.clone()], n).unwrap();
        assert!((mean.effective - (of(&triangle).effective + of(&flat).effective) / 2.0).abs() < 1e-12);
        assert!(of(&triangle).effective > 3.0 * of(&flat).effective);
    }

    #[test]
    fn what_has_no_rank_has_none() {
        assert_eq!(singular_values(&[1.0; 5], 2), None);
        assert_eq!(singular_values(&[1.0, f64::NAN, 0.0, 1.0], 2), None);
        assert_eq!((Rank::of(&[]), Rank::of(&[0.0, 0.0])), (None, None));
        assert_eq!(Rank::mean(&[], 3), None);
    }
}
