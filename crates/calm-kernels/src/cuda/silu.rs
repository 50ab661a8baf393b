//! Twin of `../silu.rs` on `kernels/silu.cu`.

use super::{Element, Gpu, Launch, view};
use crate::nary::{Operator, apply};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaStorage, Result, Shape, Tensor};

/// x of any shape.
pub(crate) fn silu(x: &Tensor) -> Result<Tensor> {
    apply(Silu, &[x])
}

/// x `[R, N, D]`, row `[R, D]`, checked by the caller.
pub(crate) fn add_silu(x: &Tensor, row: &Tensor) -> Result<Tensor> {
    apply(AddSilu, &[x, row])
}

struct Silu;

/// silu(x)
pub(super) fn forward<T: Element>(gpu: &Gpu, x: &CudaView<'_, T>) -> Result<CudaSlice<T>> {
    let mut y = gpu.empty::<T>(x.len())?;
    let kernel = format!("silu_{}", T::SUFFIX);
    launch!(gpu, SILU, kernel, Launch::elements(x.len()), x, &mut y, &(x.len() as u64));
    Ok(y)
}

/// dx
pub(super) fn backward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    dy: &CudaView<'_, T>,
) -> Result<CudaSlice<T>> {
    let mut dx = gpu.empty::<T>(x.len())?;
    let kernel = format!("silu_backward_{}", T::SUFFIX);
    launch!(gpu, SILU, kernel, Launch::elements(x.len()), x, dy, &mut dx, &(x.len() as u64));
    Ok(dx)
}

impl Operator<Gpu> for Silu {
    const NAME: &'static str = "silu";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let y = forward(gpu, &view::<T>(Self::NAME, &inputs[0])?.get())?;
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
            let (x, dy) = (view::<T>(Self::NAME, &inputs[0])?, view::<T>(Self::NAME, grad)?);
            let dx = backward(gpu, &x.get(), &dy.get())?;
            Ok(vec![Some(gpu.tensor(dx, inputs[0].shape())?)])
        })
    }
}

struct AddSilu;

/// silu(x + row) for x `[R, N, D]`, row `[R, D]`.
pub(super) fn add_forward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    row: &CudaView<'_, T>,
    (r, n, d): (usize, usize, usize),
) -> Result<CudaSlice<T>> {
    let mut y = gpu.empty::<T>(x.len())?;
    let (launch, kernel) = (Launch::cells(r * n, d), format!("add_silu_{}", T::SUFFIX));
    launch!(gpu, SILU, kernel, launch, x, row, &mut y, &(r as u32), &(n as u32), &(d as u32));
    Ok(y)
}

/// (dx, drow): the gradient of the row is the sum over its samples.
pub(super) fn add_backward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    row: &CudaView<'_, T>,
    dy: &CudaView<'_, T>,
    (r, n, d): (usize, usize, usize),
) -> Result<(CudaSlice<T>, CudaSlice<T>)> {
    let (mut dx, mut drow) = (gpu.empty::<T>(x.len())?, gpu.empty::<T>(row.len())?);
    let (launch, kernel) = (Launch::cells(r, d), format!("add_silu_backward_{}", T::SUFFIX));
    let (r, n, d) = (r as u32, n as u32, d as u32);
    launch!(gpu, SILU, kernel, launch, x, row, dy, &mut dx, &mut drow, &r, &n, &d);
    Ok((dx, drow))
}

impl Operator<Gpu> for AddSilu {
    const NAME: &'static str = "add_silu";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let sizes = inputs[0].dims3()?;
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let (x, row) = (view::<T>(Self::NAME, &inputs[0])?, view::<T>(Self::NAME, &inputs[1])?);
            let y = add_forward(gpu, &x.get(), &row.get(), sizes)?;
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
        let sizes = inputs[0].dims3()?;
        with_element!(Self::NAME, grad.dtype(), T => {
            let (x, row) = (view::<T>(Self::NAME, &inputs[0])?, view::<T>(Self::NAME, &inputs[1])?);
            let dy = view::<T>(Self::NAME, grad)?;
            let (dx, drow) = add_backward(gpu, &x.get(), &row.get(), &dy.get(), sizes)?;
            Ok(vec![Some(gpu.tensor(dx, inputs[0].shape())?), Some(gpu.tensor(drow, inputs[1].shape())?)])
        })
    }
}
