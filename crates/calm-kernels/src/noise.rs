//! Tensors of random numbers, the same bits on every device.

use crate::context::Destination;
use crate::philox::{self, NoiseKey, RowId};
use candle_core::{Result, Tensor};

/// Uniform numbers in [0, 1), f32 `[R, samples, dims]`, made at `to`: those of [`philox::uniform`].
///
/// # Errors
/// What a GPU answers, such as that its memory is full.
pub fn noise_uniform(
    key: NoiseKey,
    rows: &[RowId],
    samples: usize,
    dims: usize,
    to: &dyn Destination,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if to.device().is_cuda() {
        return crate::cuda::noise::noise("noise_uniform", key, rows, samples, dims, to);
    }
    Tensor::from_vec(philox::uniform(key, rows, samples, dims), (rows.len(), samples, dims), to.device())
}

/// Standard normal numbers, f32 `[R, samples, dims]`, made at `to`: those of [`philox::normal`].
///
/// # Errors
/// As [`noise_uniform`].
pub fn noise_normal(
    key: NoiseKey,
    rows: &[RowId],
    samples: usize,
    dims: usize,
    to: &dyn Destination,
) -> Result<Tensor> {
    #[cfg(feature = "cuda")]
    if to.device().is_cuda() {
        return crate::cuda::noise::noise("noise_normal", key, rows, samples, dims, to);
    }
    Tensor::from_vec(philox::normal(key, rows, samples, dims), (rows.len(), samples, dims), to.device())
}
