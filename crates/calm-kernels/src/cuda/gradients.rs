//! Gradients of parameters on a GPU: f32, written into the buffer of [`crate::FlatGradients`] where one
//! collects.

use super::Gpu;
use crate::collector::Collector;
use candle_core::cuda_backend::cudarc::driver::CudaViewMut;
use candle_core::{DType, Result, Tensor};

/// The gradient of an operator's `input`, computed by `write(destination, accumulate)` in f32: into the flat
/// buffer of the context that collects it (then None), else as a tensor of the input's type. None as well, and
/// nothing computed, for an input without gradient.
pub(super) fn gradient_of(
    gpu: &Gpu,
    input: &Tensor,
    write: impl FnOnce(&mut CudaViewMut<'_, f32>, bool) -> Result<()>,
) -> Result<Option<Tensor>> {
    if !input.track_op() {
        return Ok(None);
    }
    let mut write = Some(write);
    if let Some(context) = gpu.context() {
        Collector::of(context).write(input, |buffer, i| {
            let (values, range, accumulate) = buffer.device_place(i)?;
            match write.take() {
                Some(write) => write(&mut values.slice_mut(range), accumulate),
                None => Ok(()),
            }
        })?;
    }
    let Some(write) = write else { return Ok(None) };
    let mut fresh = gpu.empty::<f32>(input.elem_count())?;
    write(&mut fresh.slice_mut(..input.elem_count()), false)?;
    let gradient = gpu.tensor(fresh, input.shape())?;
    if input.dtype() == DType::F32 { Ok(Some(gradient)) } else { gradient.to_dtype(input.dtype()).map(Some) }
}
