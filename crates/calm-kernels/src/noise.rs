//! TEMPORARY
use crate::philox::{self, NoiseKey, RowId};
use candle_core::{Device, Result, Tensor};
pub fn noise_uniform(
    key: NoiseKey,
    rows: &[RowId],
    samples: usize,
    dims: usize,
    device: &Device,
) -> Result<Tensor> {
    Tensor::from_vec(philox::uniform(key, rows, samples, dims), (rows.len(), samples, dims), device)
}
pub fn noise_normal(
    key: NoiseKey,
    rows: &[RowId],
    samples: usize,
    dims: usize,
    device: &Device,
) -> Result<Tensor> {
    Tensor::from_vec(philox::normal(key, rows, samples, dims), (rows.len(), samples, dims), device)
}
