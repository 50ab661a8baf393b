//! The driver: which GPUs there are, and opening one.
//!
//! CUDA's libraries and its devices are the process's, so what was opened stands in statics here, and nowhere
//! else in this crate: what operators share belongs to a [`crate::Context`].

use crate::gpu_info::{GpuInfo, NoGpu};
use crate::storage::error;
use candle_core::cuda_backend::cudarc::driver::sys::{
    CUdevice_attribute, CUmemPool_attribute_enum, CUmemoryPool, cuDeviceGetDefaultMemPool,
    cuDriverGetVersion, cuMemPoolSetAttribute,
};
use candle_core::cuda_backend::cudarc::driver::{CudaContext, result};
use candle_core::{Device, Result};
use std::ffi::{CStr, c_char};
use std::fmt::Display;
use std::sync::{Mutex, OnceLock, PoisonError};

/// An error of the CUDA driver as candle's.
pub(crate) fn failed(e: impl Display) -> candle_core::Error {
    error("cuda", e)
}

unsafe extern "C" {
    /// `lazy/libraries.c`.
    fn open_cuda_libraries(message: *mut c_char, size: usize) -> i32;
}

/// The version of CUDA that the driver has, after CUDA's libraries have been opened.
fn libraries() -> std::result::Result<i32, NoGpu> {
    static OPENED: OnceLock<std::result::Result<i32, NoGpu>> = OnceLock::new();
    OPENED
        .get_or_init(|| {
            let mut message = [0u8; 128];
            // SAFETY: the message has this size and is ended by a zero; once, before any other call of CUDA.
            let missing = unsafe { open_cuda_libraries(message.as_mut_ptr().cast(), message.len()) } != 0;
            if missing {
                let name = CStr::from_bytes_until_nul(&message).unwrap_or_default().to_string_lossy();
                let driver = name.contains("libcuda.");
                return Err(NoGpu {
                    reason: format!("{name} cannot be opened"),
                    remedy: if driver {
                        "install NVIDIA's driver, or use `--device cpu`".into()
                    } else {
                        "install the libraries of CUDA 12 or 13 or name their folder in LD_LIBRARY_PATH, or use \
                         `--device cpu`"
                            .into()
                    },
                });
            }
            let mut version = 0;
            // SAFETY: writes one number.
            unsafe { cuDriverGetVersion(&raw mut version) }.result().map_err(|e| NoGpu {
                reason: format!("NVIDIA's driver does not answer ({e})"),
                remedy: "see whether `nvidia-smi` works, or use `--device cpu`".into(),
            })?;
            Ok(version)
        })
        .clone()
}

/// As [`crate::device::gpus`].
pub(crate) fn gpus() -> std::result::Result<(Vec<GpuInfo>, i32), NoGpu> {
    let version = libraries()?;
    let gpus = (0..count()?)
        .map(|number| info(number).map_err(|e| none(&e)))
        .collect::<std::result::Result<_, _>>()?;
    Ok((gpus, version))
}

/// As [`crate::device::count`].
pub(crate) fn count() -> std::result::Result<usize, NoGpu> {
    libraries()?;
    match CudaContext::device_count() {
        Ok(count) if count > 0 => Ok(count as usize),
        Ok(_) => Err(none(&"the driver finds none")),
        Err(e) => Err(none(&e)),
    }
}

fn none(e: &dyn Display) -> NoGpu {
    NoGpu {
        reason: format!("no GPU can be used ({e})"),
        remedy:
            "see whether `nvidia-smi` lists one and CUDA_VISIBLE_DEVICES hides none, or use `--device cpu`"
                .into(),
    }
}

fn info(number: usize) -> Result<GpuInfo> {
    let context = CudaContext::new(number).map_err(failed)?;
    let (free, memory) = context.mem_get_info().map_err(failed)?;
    let multiprocessors =
        context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT).map_err(failed)?;
    Ok(GpuInfo {
        number,
        name: context.name().map_err(failed)?,
        capability: context.compute_capability().map_err(failed)?,
        multiprocessors: multiprocessors as usize,
        memory,
        free,
    })
}

/// Opens a GPU: one stream of its own for all work, and memory that the process keeps when it is freed. A GPU
/// that is open already is the same device.
pub(crate) fn open(number: usize) -> Result<Device> {
    static OPEN: Mutex<Vec<(usize, Device)>> = Mutex::new(Vec::new());
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, device)) = open.iter().find(|(n, _)| *n == number) {
        return Ok(device.clone());
    }
    let device = open_new(number)?;
    open.push((number, device.clone()));
    Ok(device)
}

fn open_new(number: usize) -> Result<Device> {
    libraries().map_err(|e| candle_core::Error::Msg(e.to_string()))?;
    // The stream of the thread, candle's default, would be another one in each thread of a pool.
    let device = Device::new_cuda_with_stream(number)?;
    let cuda = device.as_cuda_device()?;
    // SAFETY: all work goes through the device's one stream, so nothing is used on two.
    unsafe { cuda.disable_event_tracking() };
    let context = cuda.cuda_stream().context().clone();
    let (major, _) = context.compute_capability().map_err(failed)?;
    if major < 8 {
        return Err(failed(format_args!(
            "{} has compute capability {major}.x; the kernels need 8.0 (Ampere) or later",
            context.name().map_err(failed)?
        )));
    }
    if context.has_async_alloc() {
        let mut pool: CUmemoryPool = std::ptr::null_mut();
        let mut all = u64::MAX;
        // SAFETY: the pool of an open device; the attribute is one 64-bit number. By default the pool gives its
        // memory back whenever the stream is waited for, and takes it again in the next step.
        unsafe {
            cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result().map_err(failed)?;
            let keep = CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
            cuMemPoolSetAttribute(pool, keep, (&raw mut all).cast()).result().map_err(failed)?;
        }
    }
    Ok(device)
}

/// Bytes that nobody has taken, those that the process keeps for itself not counted.
pub(crate) fn free_memory(device: &Device) -> Result<usize> {
    device.as_cuda_device()?.cuda_stream().context().bind_to_thread().map_err(failed)?;
    Ok(result::mem_get_info().map_err(failed)?.0)
}
