//! AdamW in one pass over the parameters, and the norm that gradient clipping needs.
//!
//! With g = clip·grad, decoupled decay (Loshchilov, Hutter: "Decoupled weight decay regularization",
//! 2019; the semantics of PyTorch):
//!
//! ```text
//! m ← m + (1 − β₁)(g − m),   v ← β₂ v + (1 − β₂) g²
//! p ← p (1 − lr·decay) − lr/(1 − β₁ᵗ) · m / (√v/√(1 − β₂ᵗ) + ε)
//! ```

use crate::simd::{LANES, dispatch};
use rayon::prelude::*;

/// Elements that one parallel task takes: fixed, so that sums have one order.
pub const CHUNK: usize = 16_384;

/// One optimiser step: what is the same for all elements of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWStep {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; 0 for parameters that take none.
    pub weight_decay: f64,
    /// Number of this step, from 1 (bias correction; 0 is taken as 1).
    pub step: u32,
    /// Factor of the gradient: 1, or max_norm/norm when it is clipped.
    pub grad_scale: f64,
}

impl AdamWStep {
    /// The same as it is made of a parameter.
    pub fn of(&self, treatment: Treatment) -> Self {
        let Treatment { decays, rate, eps } = treatment;
        let weight_decay = if decays { self.weight_decay } else { 0.0 };
        Self { lr: self.lr * rate, eps: self.eps * eps, weight_decay, ..*self }
    }

    /// What the loops take, on every device.
    pub(crate) fn factors(&self) -> Factors {
        let t = f64::from(self.step.max(1));
        Factors {
            grad_scale: self.grad_scale as f32,
            keep: (1.0 - self.lr * self.weight_decay) as f32,
            first: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            second: (1.0 - self.beta2) as f32,
            rate: (self.lr / (1.0 - self.beta1.powf(t))) as f32,
            root: (1.0 / (1.0 - self.beta2.powf(t)).sqrt()) as f32,
            eps: self.eps as f32,
        }
    }
}

/// How a parameter is treated beside others. The decay of a step is a part of its learning rate, so it follows the
/// factor of that.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Treatment {
    /// Whether weight decay applies.
    pub decays: bool,
    /// Factor of the learning rate.
    pub rate: f64,
    /// Factor of ε.
    pub eps: f64,
}

/// Updates `param` and its moments `m` and `v` in place. Element by element, hence the same bits for any
/// number of threads.
///
/// # Panics
/// If the slices differ in length.
pub fn adamw(param: &mut [f32], grad: &[f32], m: &mut [f32], v: &mut [f32], s: &AdamWStep) {
    let n = param.len();
    assert!(
        grad.len() == n && m.len() == n && v.len() == n,
        "adamw: {n} parameters, {} gradients, {} and {} moments",
        grad.len(),
        m.len(),
        v.len()
    );
    let factors = s.factors();
    let moments = m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK));
    let values = param.par_chunks_mut(CHUNK).zip(grad.par_chunks(CHUNK));
    values.zip(moments).for_each(|((p, g), (m, v))| {
        dispatch(
            #[inline(always)]
            || update(p, g, m, v, &factors),
        );
    });
}

/// What is the same for all elements of a parameter in a step.
pub(crate) struct Factors {
    pub(crate) grad_scale: f32,
    pub(crate) keep: f32,
    pub(crate) first: f32,
    pub(crate) beta2: f32,
    pub(crate) second: f32,
    pub(crate) rate: f32,
    pub(crate) root: f32,
    pub(crate) eps: f32,
}

#[inline(always)]
fn update(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], f: &Factors) {
    for (((p, &g), m), v) in p.iter_mut().zip(g).zip(m).zip(v) {
        let g = g * f.grad_scale;
        *m += (g - *m) * f.first;
        *v = *v * f.beta2 + (g * g) * f.second;
        *p = *p * f.keep - f.rate * (*m / (v.sqrt() * f.root + f.eps));
    }
}

/// Σ x², squares and sums in double precision over fixed lanes and chunks: the same bits for any number
/// of threads.
pub fn squared_norm(x: &[f32]) -> f64 {
    squares_by_chunk(x).iter().sum()
}

/// Σ x² of every [`CHUNK`] elements, in order: what [`squared_norm`] adds.
pub fn squares_by_chunk(x: &[f32]) -> Vec<f64> {
    x.par_chunks(CHUNK)
        .map(|chunk| {
            dispatch(
                #[inline(always)]
                || squares(chunk),
            )
        })
        .collect()
}

#[inline(always)]
fn squares(x: &[f32]) -> f64 {
    let mut acc = [0.0f64; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            let v = f64::from(chunk[i]);
            acc[i] += v * v;
        }
    }
    for (a, &v) in acc.iter_mut().zip(rest) {
        *a += f64::from(v) * f64::from(v);
    }
    crate::simd::fold(acc)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{NoiseKey, RowId, normal};

    fn step(step: u32) -> AdamWStep {
        AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step, grad_scale: 0.37 }
    }

    fn randn(n: usize, stream: &str, step: u32) -> Vec<f32> {
        normal(NoiseKey::new(1, stream, step), &[RowId { example: 0, position: 0 }], 1, n)
    }

    #[test]
    fn ten_steps_match_the_formula_in_double_precision() {
        let n = 40_003;
        let mut p = randn(n, "parameters", 0);
        let (mut m, mut v) = (vec![0.0; n], vec![0.0; n]);
        let mut exact: Vec<[f64; 3]> = p.iter().map(|&p| [f64::from(p), 0.0, 0.0]).collect();
        for t in 1..=10 {
            let s = step(t);
            let g = randn(n, "gradients", t);
            adamw(&mut p, &g, &mut m, &mut v, &s);
            for (e, &g) in exact.iter_mut().zip(&g) {
                let g = f64::from(g) * s.grad_scale;
                e[0] *= 1.0 - s.lr * s.weight_decay;
                e[1] = s.beta1 * e[1] + (1.0 - s.beta1) * g;
                e[2] = s.beta2 * e[2] + (1.0 - s.beta2) * g * g;
                let m_hat = e[1] / (1.0 - s.beta1.powi(t as i32));
                let v_hat = e[2] / (1.0 - s.beta2.powi(t as i32));
                e[0] -= s.lr * m_hat / (v_hat.sqrt() + s.eps);
            }
        }
        let mut worst = 0.0f64;
        for i in 0..n {
            worst = worst.max((f64::from(p[i]) - exact[i][0]).abs() / exact[i][0].abs().max(1.0));
            assert!((f64::from(m[i]) - exact[i][1]).abs() < 2e-7);
            assert!((f64::from(v[i]) - exact[i][2]).abs() < 2e-7);
        }
        println!("adamw: {worst:.2e} after ten steps");
        assert!(worst < 1e-6, "{worst:e}");
    }

    #[test]
    fn the_first_step_moves_by_the_learning_rate_against_the_gradient() {
        let mut p = [0.0f32, 0.0, 0.0];
        let (mut m, mut v) = ([0.0; 3], [0.0; 3]);
        adamw(&mut p, &[1e-3, -2.0, 0.0], &mut m, &mut v, &step(1));
        assert!((p[0] + 1e-3).abs() < 1e-7 && (p[1] - 1e-3).abs() < 1e-9 && p[2] == 0.0, "{p:?}");
    }

    #[test]
    fn without_gradient_only_decay_moves_a_parameter() {
        let (mut m, mut v) = ([0.0; 2], [0.0; 2]);
        let mut p = [2.0f32, -1.0];
        adamw(&mut p, &[0.0; 2], &mut m, &mut v, &step(3));
        let keep = (1.0 - 1e-3 * 0.1) as f32;
        assert_eq!(p, [2.0 * keep, -keep]);
        let mut p = [2.0f32, -1.0];
        adamw(&mut p, &[0.0; 2], &mut m, &mut v, &AdamWStep { weight_decay: 0.0, ..step(3) });
        assert_eq!(p, [2.0, -1.0]);
    }

    #[test]
    fn squared_norms_are_exact_to_double_rounding() {
        for n in [0, 1, 15, 16_384, 100_001] {
            let x = randn(n.max(1), "norm", 0);
            let x = &x[..n];
            let want: f64 = x.iter().map(|&v| f64::from(v).powi(2)).sum();
            assert!((squared_norm(x) - want).abs() <= 1e-12 * want);
        }
        // Squares that single precision cannot hold.
        assert!((squared_norm(&[1e30; 4]) / 4e60 - 1.0).abs() < 1e-6);
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let n = 100_001;
        let run = || {
            let mut p = randn(n, "parameters", 0);
            let g = randn(n, "gradients", 1);
            let (mut m, mut v) = (vec![0.1; n], vec![0.2; n]);
            adamw(&mut p, &g, &mut m, &mut v, &step(7));
            let bits: Vec<u32> = p.iter().chain(&m).chain(&v).map(|v| v.to_bits()).collect();
            (bits, squared_norm(&g).to_bits())
        };
        let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        assert_eq!(pool(1).install(run), pool(3).install(run));
    }

    #[test]
    #[should_panic(expected = "3 parameters, 2 gradients")]
    fn lengths_must_agree() {
        adamw(&mut [0.0; 3], &[0.0; 2], &mut [0.0; 3], &mut [0.0; 3], &step(1));
    }
}
