//! Twin of `../mlp_block.rs`, line by line.

use super::copies::weight;
use super::gradients::{gradient_of, put};
use super::matrix::{Mat, matmul, product};
use super::operator::{Operator, apply};
use super::{Gpu, rms_norm, rows, swiglu, view};
use crate::storage::Saved;
use candle_core::{CudaStorage, Result, Shape, Tensor};

/// x `[.., D]`, norm `[D]`, gate and up `[I, D]`, down `[D, I]`, checked by the caller.
pub(crate) fn mlp_block(inputs: [&Tensor; 5], eps: f64) -> Result<Tensor> {
    let keep = inputs.iter().any(|t| t.track_op());
    apply(MlpBlock { eps, keep, gated: Saved::new() }, &inputs.map(|t| t as &dyn crate::Operand))
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

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (r, d, i) = sizes(inputs)?;
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let x = view::<T>(Self::NAME, &inputs[0])?;
            let of = |input: usize| weight::<T>(gpu, Self::NAME, &inputs[input]);
            let (norm, gate, up, down) = (of(1)?, of(2)?, of(3)?, of(4)?);
            let h = rms_norm::forward(gpu, &x.get(), &norm.get(), self.eps)?;
            let h = Mat::new(h.as_view(), r, d);
            let g = product(gpu, &h, &Mat::new(gate.get(), i, d).t())?;
            let u = product(gpu, &h, &Mat::new(up.get(), i, d).t())?;
            let a = swiglu::forward(gpu, &g.slice(..r * i), &u.slice(..r * i), i)?;
            let mut y = rows::copy(gpu, &x.get())?;
            let down = Mat::new(down.get(), d, i);
            matmul(gpu, &mut y.as_view_mut(), d, &Mat::new(a.as_view(), r, i), &down.t(), true)?;
            if self.keep {
                self.gated.set([gpu.tensor(g, (r, i))?, gpu.tensor(u, (r, i))?]);
            }
            Ok((gpu.storage(y), inputs[0].shape().clone()))
        })
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        _output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let (r, d, i) = sizes(inputs)?;
        let [g, u] = self.gated.get(Self::NAME)?;
        with_element!(Self::NAME, grad.dtype(), T => {
            let x = view::<T>(Self::NAME, &inputs[0])?;
            let of = |input: usize| weight::<T>(gpu, Self::NAME, &inputs[input]);
            let (norm, gate, up, down) = (of(1)?, of(2)?, of(3)?, of(4)?);
            let (g, u) = (view::<T>(Self::NAME, &g)?, view::<T>(Self::NAME, &u)?);
            let dy_ = view::<T>(Self::NAME, grad)?;
            let dy = Mat::new(dy_.get(), r, d);
            let a = swiglu::forward(gpu, &g.get(), &u.get(), i)?;
            let d_down = gradient_of(gpu, &inputs[4], |into, accumulate| {
                matmul(gpu, into, i, &dy.t(), &Mat::new(a.as_view(), r, i), accumulate)
            })?;
            drop(a);
            let da = product(gpu, &dy, &Mat::new(down.get(), d, i))?;
            let (dg, du) = swiglu::backward(gpu, &g.get(), &u.get(), &da.slice(..r * i), i)?;
            drop(da);
            let (dg, du) = (Mat::new(dg.as_view(), r, i), Mat::new(du.as_view(), r, i));
            let h = rms_norm::forward(gpu, &x.get(), &norm.get(), self.eps)?;
            let h = Mat::new(h.as_view(), r, d);
            let of = |input: &Tensor, slope: &Mat<'_, T>| {
                gradient_of(gpu, input, |into, accumulate| matmul(gpu, into, d, &slope.t(), &h, accumulate))
            };
            let (d_gate, d_up) = (of(&inputs[2], &dg)?, of(&inputs[3], &du)?);
            let mut dh = product(gpu, &dg, &Mat::new(gate.get(), i, d))?;
            matmul(gpu, &mut dh.as_view_mut(), d, &du, &Mat::new(up.get(), i, d), true)?;
            let wanted = inputs[1].track_op();
            let (slope, norm) = (dh.slice(..r * d), norm.get());
            let (mut dx, d_norm) = rms_norm::backward(gpu, &x.get(), &norm, &slope, self.eps, wanted)?;
            let d_norm = match d_norm {
                Some(dw) => gradient_of(gpu, &inputs[1], |into, accumulate| put(gpu, into, &dw, accumulate))?,
                None => None,
            };
            let dx = if inputs[0].track_op() {
                rows::add_to(gpu, &mut dx, &dy_.get())?;
                Some(gpu.tensor(dx, inputs[0].shape())?)
            } else {
                None
            };
            Ok(vec![dx, d_norm, d_gate, d_up, d_down])
        })
    }
}
