//! The gate of a SwiGLU layer: y = silu(gate)·up, with gate and up as two tensors or side by side in
//! one.
//!
//! ```text
//! dgate = dy·up·silu'(gate)      dup = dy·silu(gate)
//! ```

use crate::rows;
use crate::silu::{sigmoid, silu_and_slope};
use crate::simd::{Real, dispatch, rows_per_block};
use crate::storage::{error, slice, tensor, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "swiglu";
const PACKED_OP: &str = "swiglu_packed";

/// silu(gate)·up for two tensors of the same shape: a tensor like them.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU; the inputs may have any strides.
///
/// # Errors
/// Different shapes, element types that differ or that the device does not take.
pub fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        return Err(error(
            OP,
            format_args!("gate {:?} and up {:?} differ in shape: expected the same", gate.dims(), up.dims()),
        ));
    }
    on_gpu!(gate, crate::cuda::swiglu::swiglu(gate, up));
    gate.contiguous()?.apply_op2(&up.contiguous()?, SwiGlu)
}

/// silu(gate)·up for x `[.., 2H]` = \[gate | up\]: a tensor `[.., H]`.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU; the input may have any strides.
///
/// # Errors
/// A last dimension that is odd or absent, an element type that the device does not take.
pub fn swiglu_packed(x: &Tensor) -> Result<Tensor> {
    match x.dims() {
        [.., d] if d % 2 == 0 => {
            on_gpu!(x, crate::cuda::swiglu::swiglu_packed(x));
            x.contiguous()?.apply_op1(SwiGluPacked)
        }
        dims => Err(error(PACKED_OP, format_args!("x {dims:?} is not [.., 2H]: an even last dimension"))),
    }
}

#[inline(always)]
fn gate_row<T: Real>(out: &mut [T], gate: &[T], up: &[T]) {
    for ((o, &g), &u) in out.iter_mut().zip(gate).zip(up) {
        *o = g * sigmoid(g) * u;
    }
}

#[inline(always)]
fn gate_row_backward<T: Real>(dgate: &mut [T], dup: &mut [T], gate: &[T], up: &[T], dy: &[T]) {
    for (((dg, du), (&g, &u)), &dy) in dgate.iter_mut().zip(dup).zip(gate.iter().zip(up)).zip(dy) {
        let (silu, slope) = silu_and_slope(g);
        *dg = dy * u * slope;
        *du = dy * silu;
    }
}

struct SwiGlu;

pub(crate) fn forward<T: Real>(gate: &[T], up: &[T]) -> Vec<T> {
    rows::fill(gate.len(), 1, rows_per_block(1), |first, out| {
        let part = first..first + out.len();
        let (gate, up) = (&gate[part.clone()], &up[part]);
        dispatch(
            #[inline(always)]
            || gate_row(out, gate, up),
        );
    })
}

pub(crate) fn backward<T: Real>(gate: &[T], up: &[T], dy: &[T]) -> (Vec<T>, Vec<T>) {
    let block = rows_per_block(1);
    rows::fill_two((gate.len(), block), (gate.len(), block), |i, dgate, dup| {
        let part = i * block..i * block + dgate.len();
        let (gate, up, dy) = (&gate[part.clone()], &up[part.clone()], &dy[part]);
        dispatch(
            #[inline(always)]
            || gate_row_backward(dgate, dup, gate, up, dy),
        );
    })
}

impl CustomOp2 for SwiGlu {
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
            let y = forward::<T>(slice(OP, s1, l1)?, slice(OP, s2, l2)?);
            Ok((T::to_cpu_storage_owned(y), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        gate: &Tensor,
        up: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        with_float!(OP, gate.dtype(), T => {
            let (dgate, dup) = backward::<T>(&view(OP, gate)?, &view(OP, up)?, &view(OP, &grad)?);
            Ok((Some(tensor(dgate, gate.shape())?), Some(tensor(dup, up.shape())?)))
        })
    }
}

struct SwiGluPacked;

pub(crate) fn packed_forward<T: Real>(x: &[T], h: usize) -> Vec<T> {
    let h = h.max(1);
    rows::fill(x.len() / (2 * h), h, rows_per_block(h), |first, out| {
        let x = &x[first * 2 * h..][..2 * out.len()];
        dispatch(
            #[inline(always)]
            || {
                for (x, out) in x.chunks_exact(2 * h).zip(out.chunks_exact_mut(h)) {
                    gate_row(out, &x[..h], &x[h..]);
                }
            },
        );
    })
}

pub(crate) fn packed_backward<T: Real>(x: &[T], dy: &[T], h: usize) -> Vec<T> {
    let h = h.max(1);
    rows::fill(x.len() / (2 * h), 2 * h, rows_per_block(2 * h), |first, dx| {
        let (x, dy) = (&x[first * 2 * h..][..dx.len()], &dy[first * h..][..dx.len() / 2]);
        dispatch(
            #[inline(always)]
            || {
                let rows = x.chunks_exact(2 * h).zip(dy.chunks_exact(h)).zip(dx.chunks_exact_mut(2 * h));
                for ((x, dy), dx) in rows {
                    let (dgate, dup) = dx.split_at_mut(h);
                    gate_row_backward(dgate, dup, &x[..h], &x[h..], dy);
                }
            },
        );
    })
}

impl CustomOp1 for SwiGluPacked {
    fn name(&self) -> &'static str {
        PACKED_OP
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        let mut dims = l.dims().to_vec();
        let mut h = 0;
        if let Some(last) = dims.last_mut() {
            *last /= 2;
            h = *last;
        }
        with_float!(PACKED_OP, s.dtype(), T => {
            let y = packed_forward::<T>(slice(PACKED_OP, s, l)?, h);
            Ok((T::to_cpu_storage_owned(y), Shape::from(dims)))
        })
    }

    fn bwd(&self, x: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let h = res.dims().last().copied().unwrap_or(0);
        let grad = grad.contiguous()?;
        with_float!(PACKED_OP, x.dtype(), T => {
            let dx = packed_backward::<T>(&view(PACKED_OP, x)?, &view(PACKED_OP, &grad)?, h);
            Ok(Some(tensor(dx, x.shape())?))
        })
    }
}
