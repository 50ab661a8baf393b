//! How near a state must be to be taken for the one that is searched: measured, not set.
//!
//! ```text
//! gap     the smallest distance, over positions of held-out text, of the true state from that of another token
//! floor   the largest distance between two ways of computing the same state: alone, among others, in one pass over its text
//! radius  gap / 2: within it there are not two, as far as gaps go
//! ```
//! A floor is never less than the last bit of a state. States that floors reach cannot be told apart: 4 · floor > radius is reported, not guessed.

use calm_lm::Inversion;
use candle_core::{DType, Result};
use serde::{Deserialize, Serialize};

use super::alternatives::{BLOCK, distance};

/// Floors that a state may be off before it is another, and errors of this size that the radius must hold to take one at once.
const MARGIN: f64 = 4.0;

/// What was measured at a depth.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Radius {
    /// The smallest distance of another token's state.
    pub gap: f64,
    /// The median of these distances over positions.
    pub typical_gap: f64,
    /// The largest distance between two computations of one state.
    pub floor: f64,
    /// The root of the mean square of the states' numbers.
    pub size: f64,
    /// Positions that were looked at.
    pub positions: usize,
    /// Alternatives at each: the vocabulary, or of chunks those that differ in one token.
    pub alternatives: usize,
}

impl Radius {
    /// Half the smallest gap.
    pub fn radius(&self) -> f64 {
        self.gap / 2.0
    }

    /// A state within this distance is taken at once: what computing, and keeping it in fewer bits, may have cost.
    /// None where that is more than the radius, or, with an error, than a quarter of it (gaps that were not measured may be
    /// smaller): all alternatives are tried then.
    pub fn near(&self, error: f64) -> Option<f64> {
        let near = MARGIN * self.floor + error;
        let most = if error > 0.0 { self.radius() / MARGIN } else { self.radius() };
        (near <= most).then_some(near)
    }

    /// Whether rounding is small enough for a state to be told from others.
    pub fn tells(&self) -> bool {
        self.near(0.0).is_some()
    }
}

/// Measures at all depths, on texts `[n, S·K]` of whole chunks: one position of each, at even distances from the first to the
/// last.
///
/// # Errors
/// What a GPU answers.
pub fn measure(model: &dyn Inversion, texts: &[Vec<u32>], depths: &[usize]) -> Result<Vec<Radius>> {
    let (k, vocab) = (model.chunk_size(), model.table().dim(0)? as u32);
    let mut gaps: Vec<Vec<f64>> = vec![Vec::new(); depths.len()];
    let mut floors = vec![0f64; depths.len()];
    let mut squares = vec![(0f64, 0usize); depths.len()];
    for (i, text) in texts.iter().enumerate() {
        let chunks = text.len() / k;
        let at = (i * chunks.saturating_sub(1)) / texts.len().saturating_sub(1).max(1);
        let (before, truth) = (&text[..at * k], &text[at * k..(at + 1) * k]);
        let mut known = model.begin()?;
        // As a search does it.
        for chunk in before.chunks_exact(k) {
            model.extend(chunk, &mut known)?;
        }
        let whole = model.of_texts(text, 1)?;
        let prefix = model.of_texts(&text[..(at + 1) * k], 1)?;
        for (of, depth) in depths.iter().enumerate() {
            let row = |t: &candle_core::Tensor| -> Result<Vec<f32>> {
                t.narrow(1, at, 1)?.flatten_all()?.to_dtype(DType::F32)?.to_vec1()
            };
            let states = |chunks: &[u32]| -> Result<Vec<f32>> {
                let states = model.states(&model.embed(chunks)?, &known, *depth)?;
                states.detach().flatten_all()?.to_dtype(DType::F32)?.to_vec1()
            };
            let alone = states(truth)?;
            squares[of].0 += alone.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
            squares[of].1 += alone.len();
            let mut gap = f64::INFINITY;
            for place in 0..k {
                let others = (0..vocab).flat_map(|token| {
                    let mut chunk = truth.to_vec();
                    chunk[place] = token;
                    chunk
                });
                let others: Vec<u32> = others.collect();
                for block in others.chunks(BLOCK * k) {
                    let found = states(block)?;
                    for (chunk, state) in block.chunks_exact(k).zip(found.chunks_exact(alone.len())) {
                        let off = distance(state, &alone);
                        if chunk == truth {
                            floors[of] = floors[of].max(off);
                        } else if off.is_finite() {
                            gap = gap.min(off);
                        }
                    }
                }
            }
            for other in [row(&whole[*depth])?, row(&prefix[*depth])?] {
                floors[of] = floors[of].max(distance(&other, &alone));
            }
            gaps[of].push(gap);
        }
    }
    let alternatives = (vocab as usize - 1) * k;
    let found = gaps.into_iter().zip(floors).zip(squares).map(|((mut gaps, floor), (square, n))| {
        gaps.sort_by(f64::total_cmp);
        let n = n.max(1) as f64;
        let norm = (square / gaps.len().max(1) as f64).sqrt();
        Radius {
            gap: gaps.first().copied().unwrap_or(0.0),
            typical_gap: median(&gaps),
            floor: floor.max(f64::from(f32::EPSILON) * norm),
            size: (square / n).sqrt(),
            positions: gaps.len(),
            alternatives,
        }
    });
    Ok(found.collect())
}

/// Of sorted numbers: the middle one, or the mean of the two in the middle; 0 of none.
pub(super) fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted.get(middle) {
        Some(upper) if sorted.len().is_multiple_of(2) => (sorted[middle - 1] + upper) / 2.0,
        Some(middle) => *middle,
        None => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_forgiven_at_once_only_far_below_the_gap() {
        let radius =
            Radius { gap: 8.0, typical_gap: 9.0, floor: 0.1, size: 1.0, positions: 1, alternatives: 1 };
        assert!(radius.tells() && radius.near(0.5).is_some() && radius.near(0.7).is_none());
        let rough = Radius { floor: 0.9, ..radius };
        assert!(rough.tells() && rough.near(1e-9).is_none());
        assert!(!Radius { floor: 1.1, ..radius }.tells());
    }

    #[test]
    fn a_median_of_an_even_number_lies_between_two() {
        assert_eq!(
            [median(&[]), median(&[3.0]), median(&[1.0, 2.0]), median(&[1.0, 5.0, 9.0])],
            [0.0, 3.0, 1.5, 5.0]
        );
    }
}
