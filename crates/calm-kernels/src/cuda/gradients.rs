//! Gradients of parameters on a GPU: f32, written into the buffer of [`crate::FlatGradients`] where one
//! collects.

use super::adamw::DeviceFactor;
use super::gpu::failed;
use super::{Gpu, Launch, view};
use crate::Context;
use crate::storage::error;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use candle_core::{DType, Result, Tensor};
use std::ops::Range;

/// The memory of a [`crate::FlatGradients`] on a GPU.
#[derive(Debug)]
pub(crate) struct DeviceBuffer {
    gpu: Gpu,
    values: CudaSlice<f32>,
    factor: DeviceFactor,
}

impl DeviceBuffer {
    /// For `count` elements on the GPU of `context`.
    pub(crate) fn new(context: &Context, count: usize) -> Result<Self> {
        let gpu = Gpu::at("gradients", context)?;
        let (values, factor) = (gpu.zeros::<f32>(count)?, DeviceFactor::new(&gpu)?);
        Ok(Self { gpu, values, factor })
    }

    pub(crate) fn values(&self) -> &CudaSlice<f32> {
        &self.values
    }

    /// Its GPU, and where the norm of these gradients is left.
    pub(crate) fn factor(&self) -> (Gpu, DeviceFactor) {
        (self.gpu.clone(), self.factor.clone())
    }

    pub(crate) fn values_mut(&mut self) -> &mut CudaSlice<f32> {
        &mut self.values
    }

    /// Sets a range to 0.
    pub(crate) fn clear(&mut self, range: Range<usize>) -> Result<()> {
        self.gpu.stream().memset_zeros(&mut self.values.slice_mut(range)).map_err(failed)
    }

    /// A copy of a range; waits for the GPU.
    pub(crate) fn read(&self, range: Range<usize>) -> Result<Vec<f32>> {
        self.gpu.cuda().clone_dtoh(&self.values.slice(range))
    }

    /// A range = gradient, or += gradient, of any float type.
    pub(crate) fn put(&mut self, range: Range<usize>, gradient: &Tensor, accumulate: bool) -> Result<()> {
        put_tensor(&self.gpu, &mut self.values.slice_mut(range), gradient, accumulate)
    }
}

/// The gradient of an operator's `input`, computed by `write(destination, accumulate)` in f32: into the flat
/// buffer of the context that collects it (then None), else as a tensor of the input's type. None as well, and nothing computed, for an input
/// without gradient.
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
        context.gradients().write(input, |buffer, i| {
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

/// dst = src, or dst += src.
pub(super) fn put(
    gpu: &Gpu,
    dst: &mut CudaViewMut<'_, f32>,
    src: &CudaSlice<f32>,
    accumulate: bool,
) -> Result<()> {
    put_part(gpu, dst, &src.as_view(), accumulate)
}

/// As [`put`] from a part of a slice.
pub(super) fn put_part(
    gpu: &Gpu,
    dst: &mut CudaViewMut<'_, f32>,
    src: &CudaView<'_, f32>,
    accumulate: bool,
) -> Result<()> {
    let count = dst.len();
    if src.len() < count {
        return Err(error("backward", format_args!("a gradient of {} elements for {count}", src.len())));
    }
    if count == 0 {
        return Ok(());
    }
    if accumulate {
        let launch = Launch::elements(count);
        launch!(gpu, CAST, "add_f32", launch, src, dst, &(count as u64));
        return Ok(());
    }
    gpu.stream().memcpy_dtod(&src.slice(..count), dst).map_err(failed)
}

/// As [`put`] with the gradient that candle computed, of any float type.
fn put_tensor(gpu: &Gpu, dst: &mut CudaViewMut<'_, f32>, gradient: &Tensor, accumulate: bool) -> Result<()> {
    let gradient = gradient.to_dtype(DType::F32)?.contiguous()?;
    let source = view::<f32>("backward", &gradient)?;
    put_part(gpu, dst, &source.get(), accumulate)
}
