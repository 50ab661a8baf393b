//! The MLP half of a layer: `y = x + down(silu(gate(h))·up(h))`, h = RMSNorm(x), as one operator.
//!
//! Fused, because between its parts candle's backward pass would fill every gradient with zeros and add to
//! it. Kept for the backward pass: the outputs of gate and up; h and the gated product are computed again.

use crate::gradients::{gradient_of, put};
use crate::nary::{Operator, apply};
use crate::rows::{self, add_to};
use crate::simd::{Mat, matmul};
use crate::storage::{Saved, error, tensor, view, views};
use crate::{rms_norm, swiglu, with_float};
use candle_core::{CpuStorage, Result, Shape, Tensor, WithDType};
use gemm::Parallelism::Rayon;

/// `x + (silu(h gateᵀ)·(h upᵀ)) downᵀ` with h = RMSNorm(x)·norm, for x `[.., D]`, norm `[D]`, gate and up
/// `[I, D]`, down `[D, I]`: a tensor like x, differentiable in all of them.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU. The same as [`crate::rms_norm`], [`crate::linear`] and [`crate::swiglu`] one
/// after the other.
///
/// # Errors
/// Shapes that do not fit, element types that differ or that the device does not take.
pub fn mlp_block(
    x: &Tensor,
    norm: &dyn crate::Operand,
    matrices: [&dyn crate::Operand; 3],
    eps: f64,
) -> Result<Tensor> {
    let (norm, [gate, up, down]) = (norm.tensor(), matrices.map(|m| m.tensor()));
    let inputs = [x, norm, gate, up, down];
    let fits = match (x.dims(), gate.dims()) {
        ([.., d], [i, gd]) => {
            norm.dims() == [*d] && d == gd && up.dims() == [*i, *d] && down.dims() == [*d, *i]
        }
        _ => false,
    };
    if !fits {
        let dims = inputs.map(Tensor::dims);
        return Err(error(
            MlpBlock::NAME,
            format_args!(
                "{dims:?} do not fit: expected x [.., D], norm [D], gate and up [I, D], down [D, I]"
            ),
        ));
    }
    on_gpu!(x, crate::cuda::mlp_block::mlp_block(inputs, eps));
    let keep = inputs.iter().any(|t| t.track_op());
    apply(MlpBlock { eps, keep, gated: Saved::new() }, &inputs)
}

struct MlpBlock {
    eps: f64,
    /// Whether a backward pass may follow.
    keep: bool,
    /// Outputs of gate and up, `[R, I]`.
    gated: Saved<[Tensor; 2]>,
}

/// Rows, width and inner width.
fn sizes(inputs: &[Tensor]) -> Result<(usize, usize, usize)> {
    let (i, d) = inputs[2].dims2()?;
    Ok((inputs[0].elem_count() / d.max(1), d, i))
}

impl Operator for MlpBlock {
    const NAME: &'static str = "mlp_block";

    fn forward(&self, inputs: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (r, d, i) = sizes(inputs)?;
        with_float!(Self::NAME, inputs[0].dtype(), T => {
            let [x, norm, gate, up, down] = views::<T, 5>(Self::NAME, inputs)?;
            let h = rms_norm::forward(&x, &norm, self.eps);
            let h = Mat::new(&h, r, d);
            let g = rows::product(r * i, h, Mat::new(&gate, i, d).t());
            let u = rows::product(r * i, h, Mat::new(&up, i, d).t());
            let a = swiglu::forward(&g, &u);
            let mut y = rows::copy(&x);
            matmul(&mut y, Mat::new(&a, r, i), Mat::new(&down, d, i).t(), true, Rayon(0));
            if self.keep {
                self.gated.set([tensor(g, (r, i))?, tensor(u, (r, i))?]);
            }
            Ok((<T as WithDType>::to_cpu_storage_owned(y), inputs[0].shape().clone()))
        })
    }

    fn backward(&self, inputs: &[Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (r, d, i) = sizes(inputs)?;
        let gated = self.gated.get(Self::NAME)?;
        with_float!(Self::NAME, grad.dtype(), T => {
            let [x, norm, gate, up, down] = views::<T, 5>(Self::NAME, inputs)?;
            let [g, u] = views::<T, 2>(Self::NAME, &gated)?;
            let dy_ = view::<T>(Self::NAME, grad)?;
            let dy = Mat::new(&dy_, r, d);
            let a = swiglu::forward(&g, &u);
            let d_down = gradient_of::<T>(None, &inputs[4], |into, accumulate| {
                matmul(into, dy.t(), Mat::new(&a, r, i), accumulate, Rayon(0));
            })?;
            let da = rows::product(r * i, dy, Mat::new(&down, d, i));
            let (dg, du) = swiglu::backward(&g, &u, &da);
            let (dg, du) = (Mat::new(&dg, r, i), Mat::new(&du, r, i));
            let h = rms_norm::forward(&x, &norm, self.eps);
            let h = Mat::new(&h, r, d);
            let of = |input: &Tensor, slope: Mat<'_, T>| {
                gradient_of::<T>(None, input, |into, accumulate| matmul(into, slope.t(), h, accumulate, Rayon(0)))
            };
            let (d_gate, d_up) = (of(&inputs[2], dg)?, of(&inputs[3], du)?);
            let mut dh = rows::product(r * d, dg, Mat::new(&gate, i, d));
            matmul(&mut dh, du, Mat::new(&up, i, d), true, Rayon(0));
            let (mut dx, d_norm) = rms_norm::backward(&x, &norm, &dh, self.eps);
            add_to(&mut dx, &dy_);
            let d_norm = gradient_of(None, &inputs[1], |into, accumulate| put(into, &d_norm, accumulate))?;
            let dx = inputs[0].track_op().then(|| tensor(dx, inputs[0].shape())).transpose()?;
            Ok(vec![dx, d_norm, d_gate, d_up, d_down])
        })
    }
}
