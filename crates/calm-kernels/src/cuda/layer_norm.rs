//! Twin of `../layer_norm.rs` on `kernels/layer_norm.cu`.

use super::buffer::put_part;
use super::copies::weight;
use super::gpu::address;
use super::gradients::gradient_of;
use super::rows::{self, Parts};
use super::{Element, Gpu, view};
use crate::Operand;
use crate::nary::{Operator, apply};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaStorage, Result, Shape, Tensor};

/// x `[.., D]`, weight and bias `[D]`, checked by the caller.
pub(crate) fn layer_norm(x: &Tensor, [weight, bias]: [Option<&dyn Operand>; 2], eps: f64) -> Result<Tensor> {
    let operator = LayerNorm { eps, weight: weight.is_some() };
    let inputs: Vec<&dyn Operand> = [Some(x as _), weight, bias].into_iter().flatten().collect();
    apply(operator, &inputs)
}

struct LayerNorm {
    eps: f64,
    /// Whether the second input is the weight; what follows is the bias.
    weight: bool,
}

/// y of x `[rows, D]`.
pub(super) fn forward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    d: usize,
    w: Option<&CudaView<'_, T>>,
    b: Option<&CudaView<'_, T>>,
    eps: f64,
) -> Result<CudaSlice<T>> {
    let rows = x.len() / d.max(1);
    let mut y = gpu.empty::<T>(x.len())?;
    if rows > 0 {
        let (w, b, r, width, eps) = (address(gpu, w), address(gpu, b), rows as u32, d as u32, eps as f32);
        let kernel = format!("layer_norm_{}", T::SUFFIX);
        launch!(gpu, LAYER_NORM, kernel, rows::warps(rows), x, &w, &b, &mut y, &r, &width, &eps);
    }
    Ok(y)
}

/// dx `[rows, D]`, and [dw | db] `[2, D]` if they are wanted.
pub(super) fn backward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    d: usize,
    w: Option<&CudaView<'_, T>>,
    dy: &CudaView<'_, T>,
    eps: f64,
    affine: bool,
) -> Result<(CudaSlice<T>, Option<CudaSlice<f32>>)> {
    let rows = x.len() / d.max(1);
    let mut dx = gpu.empty::<T>(x.len())?;
    let mut statistics = gpu.empty::<f32>(2 * rows)?;
    let (w, r, width, eps) = (address(gpu, w), rows as u32, d as u32, eps as f32);
    if rows > 0 {
        let kernel = format!("layer_norm_backward_{}", T::SUFFIX);
        let launch = rows::warps(rows);
        launch!(gpu, LAYER_NORM, kernel, launch, x, &w, dy, &mut dx, &mut statistics, &r, &width, &eps);
    }
    if !affine {
        return Ok((dx, None));
    }
    let sums = rows::sum(gpu, rows, 2 * d, |partial, Parts { rows_each, launch }| {
        let kernel = format!("layer_norm_weight_parts_{}", T::SUFFIX);
        launch!(gpu, LAYER_NORM, kernel, launch, x, dy, &statistics, partial, &r, &width, &rows_each);
        Ok(())
    })?;
    Ok((dx, Some(sums)))
}

impl LayerNorm {
    /// Weight and bias among the inputs.
    fn parameters<'a>(&self, inputs: &'a [Tensor]) -> (Option<&'a Tensor>, Option<&'a Tensor>) {
        let bias = if self.weight { 2 } else { 1 };
        (inputs.get(1).filter(|_| self.weight), inputs.get(bias))
    }
}

impl Operator<Gpu> for LayerNorm {
    const NAME: &'static str = "layer_norm";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let d = inputs[0].dims().last().copied().unwrap_or(1);
        let (w, b) = self.parameters(inputs);
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let x = view::<T>(Self::NAME, &inputs[0])?;
            let w = w.map(|w| weight::<T>(gpu, Self::NAME, w)).transpose()?;
            let b = b.map(|b| weight::<T>(gpu, Self::NAME, b)).transpose()?;
            let (w, b) = (w.as_ref().map(|w| w.get()), b.as_ref().map(|b| b.get()));
            let y = forward(gpu, &x.get(), d, w.as_ref(), b.as_ref(), self.eps)?;
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
        let d = inputs[0].dims().last().copied().unwrap_or(1);
        let (w, b) = self.parameters(inputs);
        let affine = [w, b].into_iter().flatten().any(Tensor::track_op);
        with_element!(Self::NAME, grad.dtype(), T => {
            let (x, dy) = (view::<T>(Self::NAME, &inputs[0])?, view::<T>(Self::NAME, grad)?);
            let ws = w.map(|w| weight::<T>(gpu, Self::NAME, w)).transpose()?;
            let ws = ws.as_ref().map(|w| w.get());
            let (dx, sums) = backward(gpu, &x.get(), d, ws.as_ref(), &dy.get(), self.eps, affine)?;
            let mut all = vec![inputs[0].track_op().then(|| gpu.tensor(dx, inputs[0].shape())).transpose()?];
            for (parameter, range) in [(w, 0..d), (b, d..2 * d)] {
                let Some(parameter) = parameter else { continue };
                all.push(match &sums {
                    Some(sums) => gradient_of(gpu, parameter, |into, accumulate| {
                        put_part(gpu, into, &sums.slice(range), accumulate)
                    })?,
                    None => None,
                });
            }
            Ok(all)
        })
    }
}
