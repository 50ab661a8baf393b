//! Rotary position embedding, rotate-half form (the first half of a head with its second half).
//!
//! ```text
//! φ_i = position·θ^(−2i/Dh),  i < Dh/2
//! y_i        = x_i·cos φ_i − x_{i+Dh/2}·sin φ_i
//! y_{i+Dh/2} = x_{i+Dh/2}·cos φ_i + x_i·sin φ_i
//! ```
//! A rotation, so the backward pass is the same with −φ. Angles, sines and cosines are computed in
//! double precision.

use crate::context::{Context, Operand};
use crate::rows;
use crate::simd::{Real, dispatch, rows_per_block};
use crate::storage::{self, error, slice, tensor, view};
use crate::turns::Turns;
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, WithDType};
use std::sync::Arc;

const OP: &str = "rotary";

/// Rotates an input x `[B, S, H, Dh]` by the angles of positions (U32 `[B, S]`) with base θ: a tensor like x.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU; the inputs may have any strides. The positions get no
/// gradient. The table of angles stays in the context of x for the next call.
///
/// # Errors
/// Shapes that do not fit, an odd head size, positions that are not U32 or on another device, an element type
/// that the device does not take.
pub fn rotary(input: &dyn Operand, positions: &Tensor, theta: f64) -> Result<Tensor> {
    let x = input.tensor();
    match (x.dims(), positions.dims()) {
        ([b, s, _, dh], [b2, s2]) if b == b2 && s == s2 && dh % 2 == 0 => {}
        (x, p) => {
            return Err(error(
                OP,
                format_args!(
                    "x {x:?} and positions {p:?} do not fit: expected x [B, S, H, Dh] with an even Dh, \
                     positions [B, S]"
                ),
            ));
        }
    }
    storage::expect_ids(OP, positions)?;
    on_gpu!(x, crate::cuda::rotary::rotary(input, positions, theta));
    let op = Rotary::new(input.context(), &storage::ids(OP, positions)?, x.dim(3)?, theta);
    x.contiguous()?.apply_op1(op)
}

/// A rotation of heads by the angles of their positions.
#[derive(Clone)]
pub(crate) struct Rotary {
    turns: Arc<Turns>,
    negative: bool,
}

impl Rotary {
    /// For positions `[B, S]` and heads of `size` numbers.
    pub(crate) fn new(context: Option<&Context>, positions: &[u32], size: usize, theta: f64) -> Self {
        Self { turns: Arc::new(Turns::new(context, positions, size / 2, theta)), negative: false }
    }

    /// The way back.
    pub(crate) fn inverse(&self) -> Self {
        Self { turns: self.turns.clone(), negative: !self.negative }
    }

    /// x `[B, S, H, Dh]`, rotated.
    pub(crate) fn rotate<T: Real>(&self, x: &[T], dims: &[usize]) -> Vec<T> {
        let [b, s, h, dh] = *dims else { return Vec::new() };
        let (row, half) = (h * dh, dh / 2);
        rows::fill(b * s, row, rows_per_block(row), |first, out| {
            let x = &x[first * row..first * row + out.len()];
            let mut angles = vec![T::ZERO; 2 * half];
            dispatch(
                #[inline(always)]
                || {
                    for (i, (x, out)) in x.chunks_exact(row).zip(out.chunks_exact_mut(row)).enumerate() {
                        let at = self.turns.index[first + i] as usize * 2 * half;
                        let entries = &self.turns.table[at..at + 2 * half];
                        let (cos, sin) = angles.split_at_mut(half);
                        for (o, &v) in cos.iter_mut().zip(&entries[..half]) {
                            *o = T::of_f64(v);
                        }
                        for (o, &v) in sin.iter_mut().zip(&entries[half..]) {
                            *o = if self.negative { -T::of_f64(v) } else { T::of_f64(v) };
                        }
                        for (x, out) in x.chunks_exact(dh).zip(out.chunks_exact_mut(dh)) {
                            let (x1, x2) = x.split_at(half);
                            let (y1, y2) = out.split_at_mut(half);
                            let turn = cos.iter().zip(&*sin);
                            for (((y1, y2), (&x1, &x2)), (&c, &s)) in
                                y1.iter_mut().zip(y2).zip(x1.iter().zip(x2)).zip(turn)
                            {
                                *y1 = x1 * c - x2 * s;
                                *y2 = x2 * c + x1 * s;
                            }
                        }
                    }
                },
            );
        })
    }
}

impl CustomOp1 for Rotary {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        with_float!(OP, s.dtype(), T => {
            let y = self.rotate::<T>(slice(OP, s, l)?, l.dims());
            Ok((T::to_cpu_storage_owned(y), l.shape().clone()))
        })
    }

    fn bwd(&self, _x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        let back = self.inverse();
        with_float!(OP, grad.dtype(), T => {
            Ok(Some(tensor(back.rotate::<T>(&view(OP, &grad)?, grad.dims()), grad.shape())?))
        })
    }
}
