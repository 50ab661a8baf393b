//! The memory of `../buffer.rs` on a GPU.

use super::clip::DeviceFactor;
use super::driver::failed;
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

    /// Replaces a range that begins at `start`; `values` have gone when this returns.
    pub(crate) fn write(&mut self, start: usize, values: &[f32]) -> Result<()> {
        let mut place = self.values.slice_mut(start..start + values.len());
        self.gpu.stream().memcpy_htod(values, &mut place).map_err(failed)?;
        self.gpu.stream().synchronize().map_err(failed)
    }

    /// A range = gradient, or += gradient, of any float type.
    pub(crate) fn put(&mut self, range: Range<usize>, gradient: &Tensor, accumulate: bool) -> Result<()> {
        put_tensor(&self.gpu, &mut self.values.slice_mut(range), gradient, accumulate)
    }
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
