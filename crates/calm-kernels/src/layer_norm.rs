//! LayerNorm: y = (x − mean) / √(var + ε) · w + b over the last dimension; w and b may be absent.
//!
//! ```text
//! m  = Σ_i x_i / D      s = (Σ_i (x_i − m)² / D + ε)^(-½)      x̂ = s·(x − m)      y = x̂·w + b
//! g  = dy·w             dx = s·(g − Σ_i g_i / D − x̂ · Σ_i g_i x̂_i / D)
//! dw = Σ_rows dy·x̂      db = Σ_rows dy                         (blocks of rows, combined in order)
//! ```
//! The backward pass computes m and s again from x.

use crate::buffer::put;
use crate::collector::Home;
use crate::context::Operand;
use crate::gradients::gradient_of;
use crate::rows;
use crate::simd::{LANES, Real, dispatch, dot, fold, rows_per_block, sum};
use crate::storage::{error, slice, tensor, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Tensor, WithDType};

const OP: &str = "layer_norm";

/// LayerNorm of x `[.., D]` over its last dimension, times weight `[D]` if any, plus bias `[D]` if any:
/// a tensor like x.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU; the inputs may have any strides.
///
/// # Errors
/// Shapes that do not fit, element types that differ or that the device does not take.
pub fn layer_norm(
    x: &Tensor,
    weight: Option<&dyn Operand>,
    bias: Option<&dyn Operand>,
    eps: f64,
) -> Result<Tensor> {
    let operands = [weight, bias];
    let [weight, bias] = operands.map(|p| p.map(|p| p.tensor()));
    let fits = match x.dims() {
        [.., d] => [weight, bias].iter().flatten().all(|p| p.dims() == [*d]),
        _ => false,
    };
    if !fits {
        return Err(error(
            OP,
            format_args!(
                "x {:?}, weight {:?} and bias {:?} do not fit: expected x [.., D], weight [D], bias [D]",
                x.dims(),
                weight.map(Tensor::dims),
                bias.map(Tensor::dims)
            ),
        ));
    }
    on_gpu!(x, crate::cuda::layer_norm::layer_norm(x, operands, eps));
    let x = x.contiguous()?;
    let home = Home::of(&operands.into_iter().flatten().collect::<Vec<_>>());
    let op = LayerNorm { eps, only_bias: weight.is_none() && bias.is_some(), home };
    match (weight, bias) {
        (None, None) => x.apply_op1(op),
        (Some(one), None) | (None, Some(one)) => x.apply_op2(&one.contiguous()?, op),
        (Some(w), Some(b)) => x.apply_op3(&w.contiguous()?, &b.contiguous()?, op),
    }
}

struct LayerNorm {
    eps: f64,
    /// With two inputs: the second is the bias, not the weight.
    only_bias: bool,
    home: Option<Home>,
}

/// (mean, 1 / standard deviation) of a row, the variance from the differences to the mean.
#[inline(always)]
fn statistics<T: Real>(x: &[T], eps: f64) -> (T, T) {
    let d = T::of_f64(x.len() as f64);
    let mean = sum(x) / d;
    let mut acc = [T::ZERO; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (a, &x) in acc.iter_mut().zip(chunk) {
            *a += (x - mean) * (x - mean);
        }
    }
    for (a, &x) in acc.iter_mut().zip(rest) {
        *a += (x - mean) * (x - mean);
    }
    (mean, T::ONE / (fold(acc) / d + T::of_f64(eps)).sqrt())
}

pub(crate) fn forward<T: Real>(x: &[T], d: usize, w: Option<&[T]>, b: Option<&[T]>, eps: f64) -> Vec<T> {
    let d = d.max(1);
    rows::fill(x.len() / d, d, rows_per_block(d), |first, out| {
        let x = &x[first * d..first * d + out.len()];
        dispatch(
            #[inline(always)]
            || {
                for (x, out) in x.chunks_exact(d).zip(out.chunks_exact_mut(d)) {
                    let (m, s) = statistics(x, eps);
                    match (w, b) {
                        (Some(w), Some(b)) => {
                            for ((o, &x), (&w, &b)) in out.iter_mut().zip(x).zip(w.iter().zip(b)) {
                                *o = (x - m) * s * w + b;
                            }
                        }
                        _ => {
                            for (o, &x) in out.iter_mut().zip(x) {
                                *o = (x - m) * s;
                            }
                            for (o, &w) in out.iter_mut().zip(w.unwrap_or(&[])) {
                                *o *= w;
                            }
                            for (o, &b) in out.iter_mut().zip(b.unwrap_or(&[])) {
                                *o += b;
                            }
                        }
                    }
                }
            },
        );
    })
}

/// (dx, [dw | db]); the second is empty without `affine`.
pub(crate) fn backward<T: Real>(
    x: &[T],
    d: usize,
    w: Option<&[T]>,
    dy: &[T],
    eps: f64,
    affine: bool,
) -> (Vec<T>, Vec<T>) {
    let parameters = if affine { 2 * d } else { 0 };
    let d = d.max(1);
    let block = rows::sum_block(d);
    let per_block = if affine { 2 * d } else { 0 };
    let blocks = (x.len() / d).div_ceil(block);
    let size = T::of_f64(d as f64);
    let (dx, partial) = rows::fill_two((x.len(), block * d), (blocks * per_block, per_block), |i, dx, dp| {
        let part = i * block * d..i * block * d + dx.len();
        let (x, dy) = (&x[part.clone()], &dy[part]);
        let (dw, db) = dp.split_at_mut(dp.len() / 2);
        // x̂ and g of one row
        let mut scratch = vec![T::ZERO; 2 * d];
        let (hat, g) = scratch.split_at_mut(d);
        dispatch(
            #[inline(always)]
            || {
                let rows = x.chunks_exact(d).zip(dy.chunks_exact(d)).zip(dx.chunks_exact_mut(d));
                for ((x, dy), dx) in rows {
                    let (m, s) = statistics(x, eps);
                    for (h, &x) in hat.iter_mut().zip(x) {
                        *h = (x - m) * s;
                    }
                    match w {
                        Some(w) => {
                            for ((g, &dy), &w) in g.iter_mut().zip(dy).zip(w) {
                                *g = dy * w;
                            }
                        }
                        None => g.copy_from_slice(dy),
                    }
                    let mean_g = sum(g) / size;
                    let mean_gh = dot(g, hat) / size;
                    for ((dx, &g), &h) in dx.iter_mut().zip(&*g).zip(&*hat) {
                        *dx = s * (g - mean_g - h * mean_gh);
                    }
                    for ((dw, db), (&dy, &h)) in dw.iter_mut().zip(&mut *db).zip(dy.iter().zip(&*hat)) {
                        *dw += dy * h;
                        *db += dy;
                    }
                }
            },
        );
    });
    (dx, rows::sum_blocks(&partial, parameters))
}

impl LayerNorm {
    fn run(
        &self,
        (x, lx): (&CpuStorage, &Layout),
        w: Option<(&CpuStorage, &Layout)>,
        b: Option<(&CpuStorage, &Layout)>,
    ) -> Result<(CpuStorage, Shape)> {
        let d = lx.dims().last().copied().unwrap_or(1);
        with_float!(OP, x.dtype(), T => {
            let w = w.map(|(s, l)| slice::<T>(OP, s, l)).transpose()?;
            let b = b.map(|(s, l)| slice::<T>(OP, s, l)).transpose()?;
            let y = forward::<T>(slice(OP, x, lx)?, d, w, b, self.eps);
            Ok((T::to_cpu_storage_owned(y), lx.shape().clone()))
        })
    }

    /// (dx, dw, db)
    fn gradients(
        &self,
        x: &Tensor,
        w: Option<&Tensor>,
        b: Option<&Tensor>,
        grad: &Tensor,
    ) -> Result<(Tensor, Option<Tensor>, Option<Tensor>)> {
        let affine = w.is_some() || b.is_some();
        let grad = grad.contiguous()?;
        let d = x.dims().last().copied().unwrap_or(1);
        with_float!(OP, x.dtype(), T => {
            let weight = w.map(|w| view::<T>(OP, w)).transpose()?;
            let (dx, dp) =
                backward::<T>(&view(OP, x)?, d, weight.as_deref(), &view(OP, &grad)?, self.eps, affine);
            let (dw, db) = dp.split_at(dp.len() / 2);
            let of = |input: Option<&Tensor>, gradient: &[T]| match input {
                Some(input) => gradient_of(self.home.as_ref(), input, |into, accumulate| {
                    put(into, gradient, accumulate);
                }),
                None => Ok(None),
            };
            Ok((tensor(dx, x.shape())?, of(w, dw)?, of(b, db)?))
        })
    }
}

impl CustomOp1 for LayerNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.run((s, l), None, None)
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(Some(self.gradients(x, None, None, grad)?.0))
    }
}

impl CustomOp2 for LayerNorm {
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
        let second = Some((s2, l2));
        if self.only_bias { self.run((s1, l1), None, second) } else { self.run((s1, l1), second, None) }
    }

    fn bwd(
        &self,
        x: &Tensor,
        p: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (w, b) = if self.only_bias { (None, Some(p)) } else { (Some(p), None) };
        let (dx, dw, db) = self.gradients(x, w, b, grad)?;
        Ok((Some(dx), if self.only_bias { db } else { dw }))
    }
}

impl CustomOp3 for LayerNorm {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.run((s1, l1), Some((s2, l2)), Some((s3, l3)))
    }

    fn bwd(
        &self,
        x: &Tensor,
        w: &Tensor,
        b: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw, db) = self.gradients(x, Some(w), Some(b), grad)?;
        Ok((Some(dx), dw, db))
    }
}
