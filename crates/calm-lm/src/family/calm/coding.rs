//! A CALM's probabilities for a lossless coder: the mixture whose bound is measured (`calm_stats::bound`), token by token.
//!
//! ```text
//! q(x) = (1 − ε)/N Σ_n Π_k p_n(x_k) + ε/V^K          p_n: the decoder's softmax at the latent vector ẑ_n
//! q(x_k | x_<k) = Σ_n ω_n p_n(x_k) + ω_0/V           ω_n ∝ (1 − ε)/N Π_{j<k} p_n(x_j),  ω_0 ∝ ε/V^k
//! ```
//! The vectors are drawn from noise that is keyed by the chunk's place, so that whoever reads draws the same. Weights ω are
//! kept as doubles, of which only sums, products and quotients are taken, in one order: those are exact to the bit everywhere.

use calm_nn::{Noise, ParamStore, RowId};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use super::Calm;
use crate::Cache;
use crate::family::coding::Texts;
use crate::family::softmax::weights;
use crate::family::{CodedChunks, CodedTexts, Coding, TextFormat};

/// ε, the share of uniform tokens.
const FLOOR: f64 = 1e-3;
/// What ω_0 never falls below: after tokens that the vectors are sure of it would become 0, and a token that none of them
/// gives anything would be 0/0.
const LEAST: f64 = 1e-100;
/// Weights of tokens are given in units of 2⁻⁴⁰.
const ONE: f64 = (1u64 << 40) as f64;

impl Coding for &Calm {
    fn format(&self) -> &TextFormat {
        &self.text
    }

    fn chunk_size(&self) -> usize {
        self.autoencoder.chunk_size()
    }

    fn stores(&self) -> Vec<&ParamStore> {
        vec![&self.store, self.autoencoder.store()]
    }

    fn is_drawn(&self) -> bool {
        true
    }

    fn texts(&self, count: usize) -> Box<dyn CodedTexts + '_> {
        Box::new(Texts::new(count, |tokens: &[u32], lengths: &[usize], caches: &mut [&mut Cache]| {
            self.backbone.forward_side_by_side(&self.inputs(tokens)?, lengths, caches)
        }))
    }

    /// Noise stream `head` of the purpose `compress`, step 0.
    fn chunks(&self, hidden: &Tensor, rows: &[RowId], draws: usize) -> Result<Box<dyn CodedChunks + '_>> {
        if draws == 0 {
            bail!("a CALM has no probabilities without draws")
        }
        let noise = Noise::Keyed { seed: 0, purpose: "compress", step: 0, rows };
        let latents = self.head.sample(hidden, draws, &noise)?.detach();
        let states = self.decoder.hidden(&latents, hidden)?.detach();
        let (k, width) = (self.autoencoder.chunk_size(), states.dim(1)?);
        let mut shares = vec![(1.0 - FLOOR) / draws as f64; draws];
        shares.push(FLOOR);
        Ok(Box::new(Mixture {
            model: self,
            states: states.reshape((rows.len() * draws, k, width))?,
            shares: vec![shares; rows.len()],
            seen: Vec::new(),
            draws,
            place: 0,
        }))
    }
}

/// Chunks up to some token.
struct Mixture<'a> {
    model: &'a Calm,
    /// The decoder's last hidden states, `[R·N, K, D]`.
    states: Tensor,
    /// ω_1 … ω_N and ω_0 of each chunk.
    shares: Vec<Vec<f64>>,
    /// The softmax of each vector at the place before, `[R·N][V]`.
    seen: Vec<Vec<u64>>,
    draws: usize,
    place: usize,
}

impl CodedChunks for Mixture<'_> {
    fn next(&mut self, before: Option<&[u32]>) -> Result<Vec<Vec<u64>>> {
        let (_, k, _) = self.states.dims3()?;
        if self.place >= k || before.is_some() != (self.place > 0) {
            bail!("place {} of a chunk of {k} tokens was asked for out of turn", self.place)
        }
        if let Some(before) = before {
            let vocab = self.seen.first().map_or(0, Vec::len);
            if let Some(token) = before.iter().find(|token| **token as usize >= vocab) {
                bail!("token {token} is outside the vocabulary of {vocab}")
            }
            let each = self.shares.iter_mut().zip(self.seen.chunks_exact(self.draws)).zip(before);
            each.for_each(|((shares, seen), token)| learn(shares, seen, *token as usize));
        }
        let states = self.states.narrow(1, self.place, 1)?.squeeze(1)?.contiguous()?;
        self.seen = weights(&self.model.decoder.decoder.logits(&states)?)?;
        self.place += 1;
        let each = self.shares.par_iter().zip(self.seen.par_chunks_exact(self.draws));
        Ok(each.map(|(shares, seen)| mixed(shares, seen)).collect())
    }
}

fn sum(weights: &[u64]) -> f64 {
    weights.iter().sum::<u64>() as f64
}

/// What each vector made of a token that became known.
fn learn(shares: &mut [f64], seen: &[Vec<u64>], token: usize) {
    let vocab = seen.first().map_or(1, Vec::len) as f64;
    let likely = seen.iter().map(|w| w[token] as f64 / sum(w)).chain([1.0 / vocab]);
    shares.iter_mut().zip(likely).for_each(|(share, p)| *share *= p);
    if let Some(floor) = shares.last_mut() {
        *floor = floor.max(LEAST);
    }
    // The floor keeps this above 0.
    let all: f64 = shares.iter().sum();
    shares.iter_mut().for_each(|share| *share /= all);
}

fn mixed(shares: &[f64], seen: &[Vec<u64>]) -> Vec<u64> {
    let vocab = seen.first().map_or(0, Vec::len);
    let floor = shares.last().copied().unwrap_or(0.0) / vocab as f64;
    let mut q = vec![floor; vocab];
    for (share, weights) in shares.iter().zip(seen) {
        let unit = share / sum(weights);
        q.iter_mut().zip(weights).for_each(|(q, w)| *q += unit * *w as f64);
    }
    q.into_iter().map(|q| (q * ONE) as u64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_by_token_the_mixture_is_that_of_whole_chunks() {
        // Two vectors, three tokens, chunks of two: every chunk's probability against the formula at the top.
        let places = [[[6u64, 3, 1], [1, 1, 8]], [[2, 2, 6], [5, 4, 1]]];
        let p = |n: usize, k: usize, x: usize| places[k][n][x] as f64 / 10.0;
        let mut all = 0.0;
        for (x, y) in (0..9).map(|i| (i / 3, i % 3)) {
            let want: f64 =
                (0..2).map(|n| (1.0 - FLOOR) / 2.0 * p(n, 0, x) * p(n, 1, y)).sum::<f64>() + FLOOR / 9.0;
            let mut shares = vec![(1.0 - FLOOR) / 2.0, (1.0 - FLOOR) / 2.0, FLOOR];
            let first: Vec<Vec<u64>> = places[0].iter().map(|w| w.to_vec()).collect();
            let second: Vec<Vec<u64>> = places[1].iter().map(|w| w.to_vec()).collect();
            let of_x = mixed(&shares, &first)[x] as f64 / ONE;
            learn(&mut shares, &first, x);
            let of_y = mixed(&shares, &second)[y] as f64 / ONE;
            assert!((of_x * of_y / want - 1.0).abs() < 1e-9, "{x} {y}: {} for {want}", of_x * of_y);
            all += of_x * of_y;
        }
        assert!((all - 1.0).abs() < 1e-9);
    }

    #[test]
    fn a_token_that_no_vector_expects_after_many_that_all_are_sure_of_has_a_probability() {
        let sure = vec![[vec![1u64 << 30], vec![0; 99_999]].concat(); 2];
        let mut shares = vec![(1.0 - FLOOR) / 2.0, (1.0 - FLOOR) / 2.0, FLOOR];
        for _ in 0..256 {
            learn(&mut shares, &sure, 0);
            assert!(shares.iter().all(|share| share.is_finite()) && shares[2] > 0.0, "{shares:?}");
        }
        learn(&mut shares, &sure, 1);
        assert_eq!(shares, [0.0, 0.0, 1.0]);
    }
}
