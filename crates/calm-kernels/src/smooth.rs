//! Smoothing of a row's concepts: an exponential moving average whose weights are probabilities.
//!
//! ```text
//! z̃_k = p_k z_k + (1 − p_k) z̃_{k−1}        p_k = 1 where a document begins
//! g_k = dz̃_k + (1 − p_{k+1}) g_{k+1}        dz_k = p_k g_k        dp_k = Σ_i g_ki (z_ki − z̃_{k−1,i})
//! ```
//! Where a document begins the average is the concept itself, whatever its probability, which then gets no
//! gradient. Documents are runs of equal ids, as for attention.

use crate::rows;
use crate::simd::{Real, dispatch, dot};
use crate::storage::{self, error, slice, tensor, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType};
use std::sync::Arc;

const OP: &str = "smooth";

/// The moving average of concepts z `[B, M, D]` over M, with the weights p `[B, M]` of new concepts: a tensor like
/// z. It starts anew with every run of equal ids in `documents` (U32 `[B, M]`).
///
/// z and p are f32 or f64 on the CPU; on a GPU z is f32 or bf16, p f32. The inputs may have any strides. Differentiable
/// in z and p.
///
/// # Errors
/// Shapes that do not fit, documents that are not U32 or on another device, an element type that the device does
/// not take.
pub fn smooth(z: &Tensor, p: &Tensor, documents: &Tensor) -> Result<Tensor> {
    match (z.dims(), p.dims(), documents.dims()) {
        ([b, m, _], [b2, m2], [b3, m3]) if [b, b, m, m] == [b2, b3, m2, m3] => {}
        (z, p, documents) => {
            return Err(error(
                OP,
                format_args!(
                    "z {z:?}, p {p:?} and documents {documents:?} do not fit: expected z [B, M, D], p and documents \
                     [B, M]"
                ),
            ));
        }
    }
    storage::expect_ids(OP, documents)?;
    if z.elem_count() == 0 {
        return Ok(z.clone());
    }
    on_gpu!(z, crate::cuda::smooth::smooth(z, p, documents));
    let begins = begins(&storage::ids(OP, documents)?, z.dim(1)?);
    z.contiguous()?.apply_op2(&p.contiguous()?, Smooth { begins })
}

/// Where a run of equal ids begins, for rows of m.
fn begins(documents: &[u32], m: usize) -> Arc<[bool]> {
    (0..documents.len()).map(|i| i % m == 0 || documents[i] != documents[i - 1]).collect()
}

struct Smooth {
    begins: Arc<[bool]>,
}

impl Smooth {
    fn forward<T: Real>(&self, z: &[T], p: &[T], (b, m, d): (usize, usize, usize)) -> Vec<T> {
        rows::fill(b, m * d, 1, |row, out| {
            let at = row * m;
            let (z, p, begins) = (&z[at * d..at * d + out.len()], &p[at..at + m], &self.begins[at..at + m]);
            dispatch(
                #[inline(always)]
                || {
                    for k in 0..m {
                        let (before, out) = out.split_at_mut(k * d);
                        let (out, z) = (&mut out[..d], &z[k * d..(k + 1) * d]);
                        if begins[k] {
                            out.copy_from_slice(z);
                            continue;
                        }
                        let (take, keep) = (p[k], T::ONE - p[k]);
                        for ((out, &z), &before) in out.iter_mut().zip(z).zip(&before[(k - 1) * d..]) {
                            *out = take * z + keep * before;
                        }
                    }
                },
            );
        })
    }

    /// (dz, dp), from what the forward pass gave.
    fn backward<T: Real>(
        &self,
        [z, p, smoothed, dy]: [&[T]; 4],
        (b, m, d): (usize, usize, usize),
    ) -> (Vec<T>, Vec<T>) {
        rows::fill_two((b * m * d, m * d), (b * m, m), |row, dz, dp| {
            let at = row * m;
            let of = |k: usize| (at + k) * d..(at + k + 1) * d;
            // g, and what a new concept differs by from the average before.
            let (mut g, mut change) = (vec![T::ZERO; d], vec![T::ZERO; d]);
            dispatch(
                #[inline(always)]
                || {
                    for k in (0..m).rev() {
                        let dy = &dy[of(k)];
                        if k + 1 == m || self.begins[at + k + 1] {
                            g.copy_from_slice(dy);
                        } else {
                            let keep = T::ONE - p[at + k + 1];
                            for (g, &dy) in g.iter_mut().zip(dy) {
                                *g = dy + keep * *g;
                            }
                        }
                        let dz = &mut dz[k * d..(k + 1) * d];
                        if self.begins[at + k] {
                            dz.copy_from_slice(&g);
                            continue;
                        }
                        for (dz, &g) in dz.iter_mut().zip(&g) {
                            *dz = p[at + k] * g;
                        }
                        let pairs = z[of(k)].iter().zip(&smoothed[of(k - 1)]);
                        for (change, (&z, &before)) in change.iter_mut().zip(pairs) {
                            *change = z - before;
                        }
                        dp[k] = dot(&g, &change);
                    }
                },
            );
        })
    }
}

impl CustomOp2 for Smooth {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = l1.shape().dims3()?;
        with_float!(OP, s1.dtype(), T => {
            let y = self.forward::<T>(slice(OP, s1, l1)?, slice(OP, s2, l2)?, sizes);
            Ok((T::to_cpu_storage_owned(y), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        z: &Tensor,
        p: &Tensor,
        smoothed: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (sizes, grad) = (z.dims3()?, grad.contiguous()?);
        with_float!(OP, z.dtype(), T => {
            let (z_, p_) = (view::<T>(OP, z)?, view::<T>(OP, p)?);
            let (smoothed, dy) = (view::<T>(OP, smoothed)?, view::<T>(OP, &grad)?);
            let (dz, dp) = self.backward::<T>([&z_, &p_, &smoothed, &dy], sizes);
            Ok((Some(tensor(dz, z.shape())?), Some(tensor(dp, p.shape())?)))
        })
    }
}
