//! What a GPU reaches: matrix products, copies inside it, and copies to and from the CPU.

use candle_core::{DType, Device, Result, Tensor};
use serde::Serialize;

use crate::clock::{Seconds, repeat_on};
use crate::measure::MatrixRate;

/// Bytes of the copies: more than any cache holds.
const COPIED: usize = 256 << 20;
/// A product that takes longer is not followed by a larger one.
const LONG: f64 = 0.1;

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
    let mut matrix = matrix_rates(device, DType::BF16, each)?;
    matrix.extend(matrix_rates(device, DType::F32, each)?);
    let [upload, download] = transfers(device, each)?;
    Ok(GpuRates {
        matrix,
        copy_bytes_per_second: copy_rate(device, each)?,
        upload_bytes_per_second: upload,
        download_bytes_per_second: download,
    })
}

/// Rates of square products in a format, as far as they get in the time.
pub(crate) fn matrix_rates(device: &Device, dtype: DType, seconds: f64) -> Result<Vec<MatrixRate>> {
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
pub(crate) fn copy_rate(device: &Device, seconds: f64) -> Result<f64> {
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

/// Bytes of a GPU that tensors hold now, and the most since [`Used::restart`]; None on the CPU and where the driver
/// has no pool that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Used {
    pub(crate) now: u64,
    pub(crate) most: u64,
}

impl Used {
    #[cfg(feature = "cuda")]
    pub(crate) fn of(device: &Device) -> Option<Self> {
        use candle_core::cuda_backend::cudarc::driver::sys::CUmemPool_attribute_enum as Attribute;
        let read = |attribute| {
            let mut value = 0u64;
            // SAFETY: these attributes are one 64-bit number.
            let found = with_pool(device, |pool| unsafe {
                cuMemPoolGetAttribute(pool, attribute, (&raw mut value).cast()).result().is_ok()
            });
            found.filter(|ok| *ok).map(|_| value)
        };
        use candle_core::cuda_backend::cudarc::driver::sys::cuMemPoolGetAttribute;
        let (now, most) =
            (Attribute::CU_MEMPOOL_ATTR_USED_MEM_CURRENT, Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH);
        Some(Self { now: read(now)?, most: read(most)? }).filter(|used| used.most > 0)
    }

    #[cfg(not(feature = "cuda"))]
    pub(crate) fn of(_: &Device) -> Option<Self> {
        None
    }

    /// Lets the high-water mark begin anew.
    pub(crate) fn restart(device: &Device) {
        #[cfg(feature = "cuda")]
        {
            use candle_core::cuda_backend::cudarc::driver::sys::{
                CUmemPool_attribute_enum as Attribute, cuMemPoolSetAttribute,
            };
            let mut zero = 0u64;
            // SAFETY: this attribute is one 64-bit number, and 0 is what it may be set to.
            with_pool(device, |pool| unsafe {
                let high = Attribute::CU_MEMPOOL_ATTR_USED_MEM_HIGH;
                cuMemPoolSetAttribute(pool, high, (&raw mut zero).cast()).result().is_ok()
            });
        }
        let _ = device;
    }
}

/// Something done with a GPU's pool of memory.
#[cfg(feature = "cuda")]
fn with_pool<T>(
    device: &Device,
    work: impl FnOnce(candle_core::cuda_backend::cudarc::driver::sys::CUmemoryPool) -> T,
) -> Option<T> {
    use candle_core::cuda_backend::cudarc::driver::sys::{CUmemoryPool, cuDeviceGetDefaultMemPool};
    let Device::Cuda(cuda) = device else { return None };
    let stream = cuda.cuda_stream();
    let context = stream.context();
    if !context.has_async_alloc() {
        return None;
    }
    context.bind_to_thread().ok()?;
    let mut pool: CUmemoryPool = std::ptr::null_mut();
    // SAFETY: writes one pointer, of the pool of an open device.
    unsafe { cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()) }.result().ok()?;
    Some(work(pool))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::gpu_places;

    #[test]
    fn a_gpu_has_rates_and_its_tensors_are_counted() {
        assert_eq!(Used::of(&Device::Cpu), None);
        assert_eq!(transfers(&Device::Cpu, 0.0).unwrap(), [None, None]);
        for place in gpu_places() {
            let rates = gpu_rates(&place.device, 0.1).unwrap();
            assert!(rates.matrix.iter().all(|r| r.flops_per_second > 0.0) && rates.matrix.len() >= 2);
            assert!(rates.copy_bytes_per_second > 0.0 && rates.upload_bytes_per_second > Some(0.0));
        }
    }
}
