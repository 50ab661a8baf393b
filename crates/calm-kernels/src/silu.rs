//! SiLU, alone and of a sum with a term shared by a row's samples.
//!
//! ```text
//! silu(x) = x·σ(x)      silu'(x) = σ(x)·(1 + x·(1 − σ(x)))      σ(x) = 1 / (1 + e⁻ˣ)
//! ```

use crate::rows;
use crate::simd::{Real, dispatch, rows_per_block};
use crate::storage::{error, slice, tensor, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "silu";
const ADD_OP: &str = "add_silu";

/// 1 / (1 + e⁻ˣ)
#[inline(always)]
pub(crate) fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

/// (silu(x), silu'(x))
#[inline(always)]
pub(crate) fn silu_and_slope<T: Real>(x: T) -> (T, T) {
    let s = sigmoid(x);
    (x * s, s * (T::ONE + x * (T::ONE - s)))
}

/// x·σ(x), element by element: a tensor like x, of any shape and strides.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU.
///
/// # Errors
/// An element type that the device does not take.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    on_gpu!(x, crate::cuda::silu::silu(x));
    x.contiguous()?.apply_op1(Silu)
}

struct Silu;

pub(crate) fn forward<T: Real>(x: &[T]) -> Vec<T> {
    rows::fill(x.len(), 1, rows_per_block(1), |first, out| {
        let x = &x[first..first + out.len()];
        dispatch(
            #[inline(always)]
            || {
                for (o, &x) in out.iter_mut().zip(x) {
                    *o = x * sigmoid(x);
                }
            },
        );
    })
}

pub(crate) fn backward<T: Real>(x: &[T], dy: &[T]) -> Vec<T> {
    rows::fill(x.len(), 1, rows_per_block(1), |first, out| {
        let (x, dy) = (&x[first..first + out.len()], &dy[first..first + out.len()]);
        dispatch(
            #[inline(always)]
            || {
                for ((o, &x), &dy) in out.iter_mut().zip(x).zip(dy) {
                    *o = dy * silu_and_slope(x).1;
                }
            },
        );
    })
}

impl CustomOp1 for Silu {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        with_float!(OP, s.dtype(), T => {
            Ok((T::to_cpu_storage_owned(forward::<T>(slice(OP, s, l)?)), l.shape().clone()))
        })
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad.contiguous()?;
        with_float!(OP, x.dtype(), T => {
            Ok(Some(tensor(backward::<T>(&view(OP, x)?, &view(OP, &grad)?), x.shape())?))
        })
    }
}

/// silu(x + row), with row `[R, D]` repeated for the N samples of x `[R, N, D]`: a tensor like x.
///
/// For conditioned layers, whose condition is the same for all samples of a row: its term is computed
/// once a row. f32 and f64 on the CPU, f32 and bf16 on a GPU.
///
/// # Errors
/// Shapes that do not fit, element types that differ or that the device does not take.
pub fn add_silu(x: &Tensor, row: &Tensor) -> Result<Tensor> {
    match (x.dims(), row.dims()) {
        ([r, _, d], [r2, d2]) if r == r2 && d == d2 => {}
        (x, row) => {
            return Err(error(
                ADD_OP,
                format_args!("x {x:?} and row {row:?} do not fit: expected x [R, N, D], row [R, D]"),
            ));
        }
    }
    on_gpu!(x, crate::cuda::silu::add_silu(x, row));
    x.contiguous()?.apply_op2(&row.contiguous()?, AddSilu)
}

struct AddSilu;

pub(crate) fn add_forward<T: Real>(x: &[T], row: &[T], (r, n, d): (usize, usize, usize)) -> Vec<T> {
    rows::fill(r, n * d, rows_per_block(n * d), |first, out| {
        let x = &x[first * n * d..first * n * d + out.len()];
        dispatch(
            #[inline(always)]
            || {
                for (i, (x, out)) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)).enumerate() {
                    let row = &row[(first + i / n) * d..][..d];
                    for ((o, &x), &c) in out.iter_mut().zip(x).zip(row) {
                        let u = x + c;
                        *o = u * sigmoid(u);
                    }
                }
            },
        );
    })
}

/// (dx, drow): the gradient of the row is the sum over its samples.
pub(crate) fn add_backward<T: Real>(
    x: &[T],
    row: &[T],
    dy: &[T],
    (r, n, d): (usize, usize, usize),
) -> (Vec<T>, Vec<T>) {
    let block = rows_per_block(n * d);
    rows::fill_two((r * n * d, block * n * d), (r * d, block * d), |i, dx, drow| {
        let part = i * block * n * d..i * block * n * d + dx.len();
        let (x, dy) = (&x[part.clone()], &dy[part]);
        let row = &row[i * block * d..][..drow.len()];
        dispatch(
            #[inline(always)]
            || {
                let samples = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d));
                for (i, ((x, dy), dx)) in samples.enumerate() {
                    let at = i / n * d;
                    let (row, drow) = (&row[at..at + d], &mut drow[at..at + d]);
                    for (((dx, drow), (&x, &dy)), &c) in
                        dx.iter_mut().zip(drow).zip(x.iter().zip(dy)).zip(row)
                    {
                        let g = dy * silu_and_slope(x + c).1;
                        *dx = g;
                        *drow += g;
                    }
                }
            },
        );
    })
}

impl CustomOp2 for AddSilu {
    fn name(&self) -> &'static str {
        ADD_OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let sizes = l1.shape().dims3()?;
        with_float!(ADD_OP, s1.dtype(), T => {
            let (x, row) = (slice::<T>(ADD_OP, s1, l1)?, slice::<T>(ADD_OP, s2, l2)?);
            let y = if x.is_empty() { Vec::new() } else { add_forward(x, row, sizes) };
            Ok((T::to_cpu_storage_owned(y), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        x: &Tensor,
        row: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let sizes = x.dims3()?;
        if x.elem_count() == 0 {
            return Ok((Some(x.zeros_like()?), Some(row.zeros_like()?)));
        }
        let grad = grad.contiguous()?;
        with_float!(ADD_OP, x.dtype(), T => {
            let (x_, row_, grad_) = (view::<T>(ADD_OP, x)?, view::<T>(ADD_OP, row)?, view::<T>(ADD_OP, &grad)?);
            let (dx, drow) = add_backward::<T>(&x_, &row_, &grad_, sizes);
            Ok((Some(tensor(dx, x.shape())?), Some(tensor(drow, row.shape())?)))
        })
    }
}
