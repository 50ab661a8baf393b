//! Twin of `../swiglu.rs` on `kernels/swiglu.cu`.

use super::{Element, Gpu, Launch, view};
use crate::nary::{Operator, apply};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaStorage, Result, Shape, Tensor};

/// gate and up of one shape, checked by the caller.
pub(crate) fn swiglu(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    apply(SwiGlu, &[gate, up])
}

/// x `[.., 2H]`, checked by the caller.
pub(crate) fn swiglu_packed(x: &Tensor) -> Result<Tensor> {
    apply(SwiGluPacked, &[x])
}

struct SwiGlu;

/// y of gate and up `[rows, H]`.
pub(super) fn forward<T: Element>(
    gpu: &Gpu,
    gate: &CudaView<'_, T>,
    up: &CudaView<'_, T>,
    h: usize,
) -> Result<CudaSlice<T>> {
    let rows = gate.len() / h.max(1);
    let mut y = gpu.empty::<T>(gate.len())?;
    let (launch, kernel) = (Launch::cells(rows, h), format!("swiglu_{}", T::SUFFIX));
    launch!(gpu, SWIGLU, kernel, launch, gate, up, &mut y, &(rows as u64), &(h as u32), &(h as u32));
    Ok(y)
}

/// (dgate, dup)
pub(super) fn backward<T: Element>(
    gpu: &Gpu,
    gate: &CudaView<'_, T>,
    up: &CudaView<'_, T>,
    dy: &CudaView<'_, T>,
    h: usize,
) -> Result<(CudaSlice<T>, CudaSlice<T>)> {
    let rows = gate.len() / h.max(1);
    let (mut dgate, mut dup) = (gpu.empty::<T>(gate.len())?, gpu.empty::<T>(gate.len())?);
    let (launch, kernel) = (Launch::cells(rows, h), format!("swiglu_backward_{}", T::SUFFIX));
    let (rows, h) = (rows as u64, h as u32);
    launch!(gpu, SWIGLU, kernel, launch, gate, up, dy, &mut dgate, &mut dup, &rows, &h, &h);
    Ok((dgate, dup))
}

/// The last dimension; 1 for a scalar.
fn width(x: &Tensor) -> usize {
    x.dims().last().copied().unwrap_or(1)
}

impl Operator<Gpu> for SwiGlu {
    const NAME: &'static str = "swiglu";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let (gate, up) = (view::<T>(Self::NAME, &inputs[0])?, view::<T>(Self::NAME, &inputs[1])?);
            let y = forward(gpu, &gate.get(), &up.get(), width(&inputs[0]))?;
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
            let (gate, up) = (view::<T>(Self::NAME, &inputs[0])?, view::<T>(Self::NAME, &inputs[1])?);
            let dy = view::<T>(Self::NAME, grad)?;
            let (dgate, dup) = backward(gpu, &gate.get(), &up.get(), &dy.get(), width(&inputs[0]))?;
            Ok(vec![Some(gpu.tensor(dgate, inputs[0].shape())?), Some(gpu.tensor(dup, inputs[1].shape())?)])
        })
    }
}

struct SwiGluPacked;

/// y `[rows, H]` of x `[rows, 2H]`.
pub(super) fn packed_forward<T: Element>(gpu: &Gpu, x: &CudaView<'_, T>, h: usize) -> Result<CudaSlice<T>> {
    let rows = x.len() / (2 * h).max(1);
    let mut y = gpu.empty::<T>(rows * h)?;
    let up = x.slice(h.min(x.len())..);
    let (launch, kernel) = (Launch::cells(rows, h), format!("swiglu_{}", T::SUFFIX));
    launch!(gpu, SWIGLU, kernel, launch, x, &up, &mut y, &(rows as u64), &(h as u32), &(2 * h as u32));
    Ok(y)
}

/// dx `[rows, 2H]`
pub(super) fn packed_backward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    dy: &CudaView<'_, T>,
    h: usize,
) -> Result<CudaSlice<T>> {
    let rows = x.len() / (2 * h).max(1);
    let mut dx = gpu.empty::<T>(x.len())?;
    if rows > 0 {
        let up = x.slice(h..);
        let (mut dgate, mut dup) = dx.split_at_mut(h);
        let (launch, kernel) = (Launch::cells(rows, h), format!("swiglu_backward_{}", T::SUFFIX));
        let (rows, h, stride) = (rows as u64, h as u32, 2 * h as u32);
        launch!(gpu, SWIGLU, kernel, launch, x, &up, dy, &mut dgate, &mut dup, &rows, &h, &stride);
    }
    Ok(dx)
}

impl Operator<Gpu> for SwiGluPacked {
    const NAME: &'static str = "swiglu_packed";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let mut dims = inputs[0].dims().to_vec();
        let mut h = 0;
        if let Some(last) = dims.last_mut() {
            *last /= 2;
            h = *last;
        }
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let y = packed_forward(gpu, &view::<T>(Self::NAME, &inputs[0])?.get(), h)?;
            Ok((gpu.storage(y), Shape::from(dims)))
        })
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        _output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let h = width(&inputs[0]) / 2;
        with_element!(Self::NAME, grad.dtype(), T => {
            let (x, dy) = (view::<T>(Self::NAME, &inputs[0])?, view::<T>(Self::NAME, grad)?);
            let dx = packed_backward(gpu, &x.get(), &dy.get(), h)?;
            Ok(vec![Some(gpu.tensor(dx, inputs[0].shape())?)])
        })
    }
}
