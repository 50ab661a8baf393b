//! Twin of `../rms_norm.rs` on `kernels/rms_norm.cu`.

use super::buffer::put;
use super::copies::weight;
use super::gradients::gradient_of;
use super::rows::{self, Parts};
use super::{Element, Gpu, view};
use crate::Operand;
use crate::nary::{Operator, apply};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaStorage, Result, Shape, Tensor};

/// x `[.., D]`, weight `[D]`, checked by the caller.
pub(crate) fn rms_norm(x: &Tensor, weight: &dyn Operand, eps: f64) -> Result<Tensor> {
    apply(RmsNorm { eps }, &[x, weight])
}

struct RmsNorm {
    eps: f64,
}

/// y of x `[rows, D]`.
pub(super) fn forward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    w: &CudaView<'_, T>,
    eps: f64,
) -> Result<CudaSlice<T>> {
    let d = w.len();
    let rows = x.len() / d.max(1);
    let mut y = gpu.empty::<T>(x.len())?;
    if rows > 0 {
        let kernel = format!("rms_norm_{}", T::SUFFIX);
        let launch = rows::warps(rows);
        launch!(gpu, RMS_NORM, kernel, launch, x, w, &mut y, &(rows as u32), &(d as u32), &(eps as f32));
    }
    Ok(y)
}

/// dx `[rows, D]`, and dw `[D]` if it is wanted.
pub(super) fn backward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    w: &CudaView<'_, T>,
    dy: &CudaView<'_, T>,
    eps: f64,
    with_weight: bool,
) -> Result<(CudaSlice<T>, Option<CudaSlice<f32>>)> {
    let d = w.len();
    let rows = x.len() / d.max(1);
    let mut dx = gpu.empty::<T>(x.len())?;
    let mut scale = gpu.empty::<f32>(rows)?;
    let (r, width, eps) = (rows as u32, d as u32, eps as f32);
    if rows > 0 {
        let kernel = format!("rms_norm_backward_{}", T::SUFFIX);
        launch!(gpu, RMS_NORM, kernel, rows::warps(rows), x, w, dy, &mut dx, &mut scale, &r, &width, &eps);
    }
    if !with_weight {
        return Ok((dx, None));
    }
    let dw = rows::sum(gpu, rows, d, |partial, Parts { rows_each, launch }| {
        let kernel = format!("rms_norm_weight_parts_{}", T::SUFFIX);
        launch!(gpu, RMS_NORM, kernel, launch, x, dy, &scale, partial, &r, &width, &rows_each);
        Ok(())
    })?;
    Ok((dx, Some(dw)))
}

impl Operator<Gpu> for RmsNorm {
    const NAME: &'static str = "rms_norm";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let (x, w) = (view::<T>(Self::NAME, &inputs[0])?, weight::<T>(gpu, Self::NAME, &inputs[1])?);
            let y = forward(gpu, &x.get(), &w.get(), self.eps)?;
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
        with_element!(Self::NAME, grad.dtype(), T => {
            let (x, w) = (view::<T>(Self::NAME, &inputs[0])?, weight::<T>(gpu, Self::NAME, &inputs[1])?);
            let dy = view::<T>(Self::NAME, grad)?;
            let wanted = inputs[1].track_op();
            let (dx, dw) = backward(gpu, &x.get(), &w.get(), &dy.get(), self.eps, wanted)?;
            let dw = match dw {
                Some(dw) => gradient_of(gpu, &inputs[1], |into, accumulate| put(gpu, into, &dw, accumulate))?,
                None => None,
            };
            let dx = inputs[0].track_op().then(|| gpu.tensor(dx, inputs[0].shape())).transpose()?;
            Ok(vec![dx, dw])
        })
    }
}
