//! RMSNorm: y = x / √(mean(x²) + ε) · w over the last dimension.
//!
//! ```text
//! s  = (Σ_i x_i² / D + ε)^(-½)            x̂ = s·x        y = x̂·w
//! g  = dy·w                                dx = s·(g − x̂ · Σ_i g_i x̂_i / D)
//! dw = Σ_rows dy·x̂                         (blocks of rows, combined in order)
//! ```
//! The backward pass computes s again from x: one more read of a row that it needs anyway.

use crate::buffer::put;
use crate::collector::Home;
use crate::context::Operand;
use crate::gradients::gradient_of;
use crate::rows;
use crate::simd::{Real, dispatch, dot, rows_per_block, sum_squares};
use crate::storage::{error, slice, tensor, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "rms_norm";

/// RMSNorm of x `[.., D]` over its last dimension, times weight `[D]`: a tensor like x.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU; the inputs may have any strides.
///
/// # Errors
/// Shapes that do not fit, element types that differ or that the device does not take.
pub fn rms_norm(x: &Tensor, weight: &dyn Operand, eps: f64) -> Result<Tensor> {
    let w = weight.tensor();
    match x.dims() {
        [.., d] if w.dims() == [*d] => {}
        _ => {
            return Err(error(
                OP,
                format_args!(
                    "x {:?} and weight {:?} do not fit: expected x [.., D], weight [D]",
                    x.dims(),
                    w.dims()
                ),
            ));
        }
    }
    on_gpu!(x, crate::cuda::rms_norm::rms_norm(x, weight, eps));
    x.contiguous()?.apply_op2(&w.contiguous()?, RmsNorm { eps, home: Home::of(&[weight]) })
}

struct RmsNorm {
    eps: f64,
    home: Option<Home>,
}

#[inline(always)]
fn inverse_rms<T: Real>(x: &[T], eps: f64) -> T {
    T::ONE / (sum_squares(x) / T::of_f64(x.len() as f64) + T::of_f64(eps)).sqrt()
}

pub(crate) fn forward<T: Real>(x: &[T], w: &[T], eps: f64) -> Vec<T> {
    let d = w.len().max(1);
    rows::fill(x.len() / d, d, rows_per_block(d), |first, out| {
        let x = &x[first * d..first * d + out.len()];
        dispatch(
            #[inline(always)]
            || {
                for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
                    let s = inverse_rms(x, eps);
                    for ((o, &x), &w) in out.iter_mut().zip(x).zip(w) {
                        *o = x * s * w;
                    }
                }
            },
        );
    })
}

/// (dx, dw)
pub(crate) fn backward<T: Real>(x: &[T], w: &[T], dy: &[T], eps: f64) -> (Vec<T>, Vec<T>) {
    let d = w.len().max(1);
    let block = rows::sum_block(d);
    let blocks = (x.len() / d).div_ceil(block);
    let (dx, partial) = rows::fill_two((x.len(), block * d), (blocks * d, d), |i, dx, dw| {
        let part = i * block * d..i * block * d + dx.len();
        let (x, dy) = (&x[part.clone()], &dy[part]);
        // g, then reused for the next row
        let mut g = vec![T::ZERO; d];
        dispatch(
            #[inline(always)]
            || {
                let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d));
                for ((x, dy), dx) in rows {
                    let s = inverse_rms(x, eps);
                    for (((g, dw), (&dy, &w)), &x) in g.iter_mut().zip(&mut *dw).zip(dy.iter().zip(w)).zip(x)
                    {
                        *g = dy * w;
                        *dw += dy * (x * s);
                    }
                    let c = dot(&g, x) * s * s / T::of_f64(d as f64);
                    for ((dx, &g), &x) in dx.iter_mut().zip(&g).zip(x) {
                        *dx = s * (g - x * c);
                    }
                }
            },
        );
    });
    (dx, rows::sum_blocks(&partial, w.len()))
}

impl CustomOp2 for RmsNorm {
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
        with_float!(OP, s1.dtype(), T => {
            let y = forward::<T>(slice(OP, s1, l1)?, slice(OP, s2, l2)?, self.eps);
            Ok((T::to_cpu_storage_owned(y), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        with_float!(OP, x.dtype(), T => {
            let (dx, dw) = backward::<T>(&view(OP, x)?, &view(OP, w)?, &view(OP, &grad)?, self.eps);
            let dw = gradient_of(self.home.as_ref(), w, |into, accumulate| put(into, &dw, accumulate))?;
            Ok((Some(tensor(dx, x.shape())?), dw))
        })
    }
}
