//! The factor of `../clip.rs` on a GPU, where the kernels of `adamw.rs` leave and read it.

use super::Gpu;
use crate::storage::error;
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use std::sync::Arc;

/// Norm, factor and number of norms that were not finite, on the GPU.
#[derive(Clone, Debug)]
pub(crate) struct DeviceFactor {
    gpu: Gpu,
    pub(super) values: Arc<CudaSlice<f64>>,
}

impl DeviceFactor {
    pub(crate) fn new(gpu: &Gpu) -> Result<Self> {
        Ok(Self { gpu: gpu.clone(), values: Arc::new(gpu.zeros::<f64>(3)?) })
    }

    /// The norm, and how many were not finite; waits for the GPU.
    pub(crate) fn read(&self) -> Result<(f64, u64)> {
        let values = self.gpu.cuda().clone_dtoh(&*self.values)?;
        match values[..] {
            [norm, _, skipped] => Ok((norm, skipped as u64)),
            _ => Err(error("adamw", "three numbers were asked for")),
        }
    }
}
