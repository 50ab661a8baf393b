//! Next-token distributions: of many hidden states, tempered, cut, drawn from.

use calm_kernels as ops;
use calm_kernels::simd::{dispatch, exp_f32};
use calm_nn::Parameter;
use candle_core::{DType, Result, Tensor, bail};
use rayon::prelude::*;

use super::TokenDecoding;
use crate::side_by_side::even_parts;

/// Hidden states whose logits exist at the same time.
const BLOCK: usize = 256;

/// Hidden states `[R, W]` over the vocabulary of `output` `[V, W]` -> logits `[R, V]` in its format.
pub(super) fn logits(hidden: &Tensor, output: &Parameter) -> Result<Tensor> {
    ops::linear(&hidden.to_dtype(output.dtype())?, output, None)
}

/// `f(row, probabilities)` of the distribution over `output` `[V, W]` at each of the hidden states `[R, W]`.
pub(super) fn each_distribution<T: Send>(
    hidden: &Tensor,
    output: &Parameter,
    decoding: TokenDecoding,
    f: impl Fn(usize, &[f64]) -> T + Sync,
) -> Result<Vec<T>> {
    let rows = hidden.dim(0)?;
    let mut out = Vec::with_capacity(rows);
    for (at, n) in even_parts(rows, BLOCK) {
        let block = logits(&hidden.narrow(0, at, n)?.contiguous()?, output)?;
        let block = block.to_dtype(DType::F32)?.to_vec2::<f32>()?;
        let each = block.par_iter().enumerate();
        out.par_extend(each.map(|(i, logits)| f(at + i, &distribution(logits, decoding))));
    }
    Ok(out)
}

/// e^(l − largest) of the logits l in units of 2⁻³⁰, for every row of `[R, V]`: a softmax in integers. Every number is a
/// function of its row alone, to the bit.
pub(super) fn weights(logits: &Tensor) -> Result<Vec<Vec<u64>>> {
    const ONE: f32 = (1u32 << 30) as f32;
    let logits = logits.to_dtype(DType::F32)?.to_vec2::<f32>()?;
    let of_row = |row: &Vec<f32>| {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !top.is_finite() || row.iter().any(|l| l.is_nan()) {
            bail!("the model's logits are no numbers")
        }
        let mut weights = vec![0u64; row.len()];
        dispatch(
            #[inline(always)]
            || weights.iter_mut().zip(row).for_each(|(w, l)| *w = (exp_f32(l - top) * ONE) as u64),
        );
        Ok(weights)
    };
    logits.par_iter().map(of_row).collect()
}

/// ln of a probability that may be rounded to 0.
pub(super) fn ln(p: f64) -> f64 {
    p.max(f64::MIN_POSITIVE).ln()
}

/// Softmax of `logits / temperature` in f64.
fn probabilities(logits: &[f32], temperature: f64) -> Vec<f64> {
    let top = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut p: Vec<f64> = logits.iter().map(|l| (f64::from(l - top) / temperature).exp()).collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|p| *p /= sum);
    p
}

/// The token at quantile `u` of a distribution that sums to 1.
pub(super) fn invert(p: &[f64], u: f64) -> u32 {
    let mut sum = 0.0;
    for (i, p) in p.iter().enumerate() {
        sum += p;
        if u < sum {
            return i as u32;
        }
    }
    // Rounding left u above the sum: the last token that is possible at all.
    p.iter().rposition(|p| *p > 0.0).unwrap_or(0) as u32
}

/// Keeps the smallest set of most probable tokens whose mass reaches `top_p`, renormalised.
fn nucleus(p: &mut [f64], top_p: f64) {
    if top_p >= 1.0 {
        return;
    }
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|a, b| p[*b].total_cmp(&p[*a]).then(a.cmp(b)));
    let mut mass = 0.0;
    let mut kept = 0;
    for i in &order {
        mass += p[*i];
        kept += 1;
        if mass >= top_p {
            break;
        }
    }
    for i in &order[kept..] {
        p[*i] = 0.0;
    }
    p.iter_mut().for_each(|p| *p /= mass);
}

/// The distribution of the next token from its logits.
pub(super) fn distribution(logits: &[f32], decoding: TokenDecoding) -> Vec<f64> {
    if decoding.temperature == 0.0 {
        let best = logits.iter().enumerate().fold(0, |b, (i, l)| if *l > logits[b] { i } else { b });
        let mut p = vec![0.0; logits.len()];
        p[best] = 1.0;
        return p;
    }
    let mut p = probabilities(logits, decoding.temperature);
    nucleus(&mut p, decoding.top_p);
    p
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nucleus_keeps_the_smallest_sufficient_set() {
        let mut p = vec![0.1, 0.5, 0.3, 0.1];
        nucleus(&mut p, 0.7);
        assert_eq!(p[0], 0.0);
        assert!((p[1] - 0.625).abs() < 1e-12 && (p[2] - 0.375).abs() < 1e-12);
    }

    #[test]
    fn inversion_follows_the_distribution_and_never_picks_the_impossible() {
        let p = [0.25, 0.0, 0.75, 0.0];
        assert_eq!(invert(&p, 0.0), 0);
        assert_eq!(invert(&p, 0.24), 0);
        assert_eq!(invert(&p, 0.25), 2);
        assert_eq!(invert(&p, 1.0), 2);
    }
}
