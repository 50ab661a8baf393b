//! What a machine reaches: matrix products, copies of memory, and copies to and from a GPU.

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};
use serde::Serialize;

use crate::clock::{Seconds, repeat, repeat_on};
use crate::place::Place;
use crate::products::Products;

/// Bytes of the copies: more than any cache holds.
const COPIED: usize = 256 << 20;
/// A product that takes longer is not followed by a larger one.
const LONG: f64 = 0.1;

/// Rate of the bare matrix product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatrixRate {
    /// Which products.
    pub shape: String,
    /// FLOP/s.
    pub flops_per_second: f64,
}

/// Rates of square products and of copying memory (bytes/s, read and written): what shares of a peak refer to.
///
/// # Errors
/// What a GPU answers.
pub fn matrix_peak(seconds: f64, place: &Place) -> Result<(Vec<MatrixRate>, f64)> {
    if place.device.is_cuda() {
        let rates = gpu_matrix_rates(&place.device, place.dtype(), seconds)?;
        return Ok((rates, gpu_copy_rate(&place.device, seconds / 4.0)?));
    }
    let rate = |side: usize| {
        let mut prepared = Products::square(side).prepare();
        let started = Instant::now();
        loop {
            prepared.round();
            if started.elapsed().as_secs_f64() > seconds / 4.0 {
                break;
            }
        }
        MatrixRate { shape: format!("{side}³"), flops_per_second: prepared.rate().unwrap_or(0.0) }
    };
    Ok(([512, 1024, 2048].map(rate).to_vec(), copy_rate(seconds / 4.0)))
}

/// Bytes a second read and written by copying 64 MiB with all threads.
fn copy_rate(seconds: f64) -> f64 {
    use rayon::prelude::*;
    const BLOCK: usize = 1 << 16;
    let from = vec![1.0f32; 16 << 20];
    let mut to = vec![0.0f32; from.len()];
    let run = || {
        to.par_chunks_mut(BLOCK).zip(from.par_chunks(BLOCK)).for_each(|(to, from)| to.copy_from_slice(from));
        Ok::<_, std::convert::Infallible>(())
    };
    let Ok(times) = repeat(seconds, run);
    2.0 * size_of_val(&from[..]) as f64 / times.median
}

/// Rates of a GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GpuRates {
    /// Matrix products by format and side.
    pub matrix: Vec<MatrixRate>,
    /// Bytes a second read and written by copying inside its memory.
    pub copy_bytes_per_second: f64,
    /// Bytes a second from pinned memory of the CPU; null in a build without CUDA.
    pub upload_bytes_per_second: Option<f64>,
    /// The same back.
    pub download_bytes_per_second: Option<f64>,
}

/// Measures a GPU for about so many seconds.
///
/// # Errors
/// What the GPU answers.
pub fn gpu_rates(device: &Device, seconds: f64) -> Result<GpuRates> {
    let each = seconds / 5.0;
    let mut matrix = gpu_matrix_rates(device, DType::BF16, each)?;
    matrix.extend(gpu_matrix_rates(device, DType::F32, each)?);
    let [upload, download] = transfers(device, each)?;
    Ok(GpuRates {
        matrix,
        copy_bytes_per_second: gpu_copy_rate(device, each)?,
        upload_bytes_per_second: upload,
        download_bytes_per_second: download,
    })
}

/// Rates of square products in a format, as far as they get in the time.
fn gpu_matrix_rates(device: &Device, dtype: DType, seconds: f64) -> Result<Vec<MatrixRate>> {
    let name = if dtype == DType::BF16 { "bf16" } else { "f32" };
    let mut rates = Vec::new();
    for side in [1024usize, 4096, 8192] {
        let values: Vec<f32> = (0..side * side).map(|i| (i % 17) as f32 * 0.1 - 0.8).collect();
        let a = Tensor::from_vec(values, (side, side), &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
        let time = repeat_on(device, seconds / 3.0, || a.matmul(&a))?.median;
        let flops_per_second = 2.0 * (side as f64).powi(3) / time;
        rates.push(MatrixRate { shape: format!("{name} {side}³"), flops_per_second });
        if time > LONG / 8.0 {
            break;
        }
    }
    Ok(rates)
}

/// Bytes a second read and written by copying a tensor.
fn gpu_copy_rate(device: &Device, seconds: f64) -> Result<f64> {
    let from = Tensor::zeros(COPIED / 4, DType::F32, device)?;
    let Seconds { median, .. } = repeat_on(device, seconds, || from.copy())?;
    Ok(2.0 * COPIED as f64 / median)
}

#[cfg(feature = "cuda")]
fn transfers(device: &Device, seconds: f64) -> Result<[Option<f64>; 2]> {
    use candle_core::Error;
    let Device::Cuda(cuda) = device else { return Ok([None, None]) };
    let stream = cuda.cuda_stream();
    // SAFETY: bytes of any value are bytes; they go there and back.
    let mut host = unsafe { stream.context().alloc_pinned::<u8>(COPIED) }.map_err(Error::wrap)?;
    let mut there = cuda.alloc_zeros::<u8>(COPIED)?;
    let up = repeat_on(device, seconds, || stream.memcpy_htod(&host, &mut there).map_err(Error::wrap))?;
    let down = repeat_on(device, seconds, || stream.memcpy_dtoh(&there, &mut host).map_err(Error::wrap))?;
    Ok([up, down].map(|s| Some(COPIED as f64 / s.median)))
}

#[cfg(not(feature = "cuda"))]
fn transfers(_: &Device, _: f64) -> Result<[Option<f64>; 2]> {
    Ok([None, None])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::gpu_places;

    #[test]
    fn a_gpu_has_rates() {
        assert_eq!(transfers(&Device::Cpu, 0.0).unwrap(), [None, None]);
        for place in gpu_places() {
            let rates = gpu_rates(&place.device, 0.1).unwrap();
            assert!(rates.matrix.iter().all(|r| r.flops_per_second > 0.0) && rates.matrix.len() >= 2);
            assert!(rates.copy_bytes_per_second > 0.0 && rates.upload_bytes_per_second > Some(0.0));
        }
    }
}
