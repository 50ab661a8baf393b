//! Twin of `../noise.rs` on `kernels/philox.cu`.

use super::{Gpu, Launch};
use crate::Destination;
use crate::philox::{NoiseKey, RowId};
use candle_core::cuda_backend::cudarc::driver::DeviceRepr;
use candle_core::{Result, Tensor};

// SAFETY: three u32 without padding, `NoiseKey` of kernels/philox.cuh.
unsafe impl DeviceRepr for NoiseKey {}
// SAFETY: two u32 without padding, `RowId` of kernels/philox.cuh.
unsafe impl DeviceRepr for RowId {}

/// `[R, samples, dims]` by `kernel`, `noise_uniform` or `noise_normal`.
pub(crate) fn noise(
    kernel: &str,
    key: NoiseKey,
    rows: &[RowId],
    samples: usize,
    dims: usize,
    to: &dyn Destination,
) -> Result<Tensor> {
    let gpu = Gpu::at(kernel, to)?;
    let ids = gpu.shared(rows)?;
    let mut out = gpu.empty::<f32>(rows.len() * samples * dims)?;
    let launch = Launch::cells(rows.len() * samples, dims.div_ceil(4));
    let (r, n, d) = (rows.len() as u32, samples as u32, dims as u32);
    launch!(gpu, PHILOX, kernel, launch, &key, &*ids, &mut out, &r, &n, &d);
    gpu.tensor(out, (rows.len(), samples, dims))
}
