//! Exact draws of the families whose positions are tokens.

use calm_nn::{NoiseKey, Parameter, RowId, philox};
use candle_core::{Result, Tensor};

use super::softmax::{each_distribution, invert, ln};
use super::{ExactDraws, GRAM, TokenDecoding};
use crate::sampler::SpecialIds;

/// What scoring needs of one next-token distribution.
struct RowStatistics {
    log_p_target: f64,
    sum_p_squared: f64,
    draws: [u32; 2],
}

/// Which draws, of which distributions.
#[derive(Clone, Copy)]
pub(super) struct TokenDraws<'a> {
    /// The vocabulary `[V, D]`.
    pub(super) output: &'a Parameter,
    pub(super) special: SpecialIds,
    pub(super) seed: u64,
    pub(super) purpose: &'a str,
}

impl TokenDraws<'_> {
    /// After the hidden states `[R, D]` with these targets `[R]` and noise identities: probabilities of the targets, two
    /// sampled paths and Σ p² along the first. `advance(next)` gives the hidden states after one more token in every
    /// row, PAD where a text has ended. See [`ExactDraws::follow_targets`] for what is left to do.
    pub(super) fn along(
        &self,
        mut hidden: Tensor,
        targets: &[u32],
        ids: &[RowId],
        mut advance: impl FnMut(&[u32]) -> Result<Tensor>,
    ) -> Result<ExactDraws> {
        let (rows, SpecialIds { pad, eos, .. }) = (targets.len(), self.special);
        let mut out = ExactDraws {
            log_p: Vec::with_capacity(rows),
            gram_log_p: Vec::new(),
            paths: vec![[[pad; GRAM - 1]; 2]; rows],
            squares: vec![[1.0; GRAM]; rows],
        };
        let mut ended = vec![false; rows];
        for step in 0..GRAM {
            let key = NoiseKey::new(self.seed, &format!("{}/token", self.purpose), step as u32);
            let stats = statistics(&hidden, self.output, targets, key, ids)?;
            let mut next = vec![pad; rows];
            for (row, st) in stats.iter().enumerate() {
                if step == 0 {
                    out.log_p.push(st.log_p_target);
                }
                // After EOS the next token is PAD with certainty: squares stay 1, paths PAD.
                if ended[row] {
                    continue;
                }
                out.squares[row][step] = st.sum_p_squared;
                if step + 1 < GRAM {
                    out.paths[row][0][step] = st.draws[0];
                    out.paths[row][1][step] = st.draws[1];
                    next[row] = st.draws[0];
                    ended[row] = st.draws[0] == eos;
                }
            }
            if step + 1 < GRAM {
                hidden = advance(&next)?;
            }
        }
        Ok(out)
    }
}

impl ExactDraws {
    /// Sets ln p of the next [`GRAM`] tokens: the targets of the positions after each (where a text ends, those of the
    /// next).
    pub(super) fn follow_targets(&mut self) {
        let after = |row: usize| std::array::from_fn(|n| self.log_p.get(row + n).copied().unwrap_or(0.0));
        self.gram_log_p = (0..self.log_p.len()).map(after).collect();
    }
}

/// ln p of the targets `[R]` after hidden states `[R, D]`.
pub(super) fn log_probabilities(hidden: &Tensor, output: &Parameter, targets: &[u32]) -> Result<Vec<f64>> {
    each_distribution(hidden, output, TokenDecoding::default(), |row, p| ln(p[targets[row] as usize]))
}

/// The most probable token after hidden states `[R, D]`.
pub(super) fn most_probable(hidden: &Tensor, output: &Parameter) -> Result<Vec<u32>> {
    let decoding = TokenDecoding { temperature: 0.0, ..TokenDecoding::default() };
    each_distribution(hidden, output, decoding, |_, p| invert(p, 0.5))
}

fn statistics(
    hidden: &Tensor,
    output: &Parameter,
    targets: &[u32],
    key: NoiseKey,
    ids: &[RowId],
) -> Result<Vec<RowStatistics>> {
    let u = philox::uniform(key, ids, 2, 1);
    each_distribution(hidden, output, TokenDecoding::default(), |row, p| RowStatistics {
        log_p_target: ln(p[targets[row] as usize]),
        sum_p_squared: p.iter().map(|p| p * p).sum(),
        draws: [invert(p, f64::from(u[2 * row])), invert(p, f64::from(u[2 * row + 1]))],
    })
}
