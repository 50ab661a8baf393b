//! Where tensors live: the CPU, or with the feature `cuda` an NVIDIA GPU.

use crate::context::Destination;
pub use crate::gpu_info::{GpuInfo, NoGpu};
use crate::noise::noise_uniform;
use crate::philox::{NoiseKey, RowId};
use candle_core::{DType, Device, Error, Result, Shape, Tensor, WithDType};
use std::fmt::{Display, Formatter};
use std::str::FromStr;

/// A choice of device: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// The first GPU if this build can use one and there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The GPU of this number.
    Cuda(usize),
}

impl FromStr for Choice {
    type Err = String;

    fn from_str(s: &str) -> std::result::Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => s.strip_prefix("cuda:").and_then(|n| n.parse().ok()).map(Self::Cuda).ok_or_else(|| {
                format!("{s} is no device; expected auto, cpu, cuda or cuda:N (such as cuda:0)")
            }),
        }
    }
}

impl Display for Choice {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

/// Whether this build can use GPUs.
pub fn has_cuda() -> bool {
    cfg!(feature = "cuda")
}

/// The GPUs that this build can use, at least one, and the version of CUDA that the driver has (13.0 is 13000).
///
/// # Errors
/// A build without the feature `cuda`; no driver, no CUDA libraries, no GPU.
pub fn gpus() -> std::result::Result<(Vec<GpuInfo>, i32), NoGpu> {
    #[cfg(feature = "cuda")]
    return crate::cuda::driver::gpus();
    #[cfg(not(feature = "cuda"))]
    Err(NoGpu {
        reason: "this build of calm has no CUDA backend".into(),
        remedy: "build it with `cargo build --release -p calm-cli --features cuda`, or use `--device cpu`"
            .into(),
    })
}

/// How many GPUs this build can use, at least one, without opening any.
///
/// # Errors
/// As [`gpus`].
pub fn count() -> std::result::Result<usize, NoGpu> {
    #[cfg(feature = "cuda")]
    return crate::cuda::driver::count();
    #[cfg(not(feature = "cuda"))]
    gpus().map(|(gpus, _)| gpus.len())
}

/// Opens a device.
///
/// # Errors
/// As [`gpus`] for a GPU; a number that no GPU has. `Choice::Auto` is never an error: it takes the CPU then.
pub fn open(choice: Choice) -> Result<Device> {
    match choice {
        Choice::Cpu => Ok(Device::Cpu),
        Choice::Auto => Ok(gpus().ok().and_then(|_| open(Choice::Cuda(0)).ok()).unwrap_or(Device::Cpu)),
        Choice::Cuda(number) => {
            let (gpus, _) = gpus().map_err(|e| Error::Msg(e.to_string()))?;
            if number >= gpus.len() {
                return Err(Error::Msg(format!(
                    "there is no GPU cuda:{number}: this machine has {}; choose one of them with --device",
                    gpus.iter()
                        .map(|g| format!("cuda:{} ({})", g.number, g.name))
                        .collect::<Vec<_>>()
                        .join(", ")
                )));
            }
            #[cfg(feature = "cuda")]
            return crate::cuda::driver::open(number);
            #[cfg(not(feature = "cuda"))]
            Err(Error::Msg(format!("this build has no CUDA backend for cuda:{number}")))
        }
    }
}

/// Whether a device runs the kernels of this build, candle's as well as calm's, by their results.
///
/// # Errors
/// A kernel that cannot be loaded or run; one that answers something else than the CPU.
pub fn check(device: &Device) -> Result<()> {
    let (key, row) = (NoiseKey::new(1, "check", 0), [RowId { example: 0, position: 0 }]);
    let numbers = |to: &Device| -> Result<Vec<f32>> {
        noise_uniform(key, &row, 1, 1000, to)?.affine(2.0, 1.0)?.flatten_all()?.to_vec1()
    };
    if numbers(device)? == numbers(&Device::Cpu)? {
        return Ok(());
    }
    Err(Error::Msg(format!("{} computes something else than the CPU", name(device))))
}

/// The device as [`Choice`] writes it.
pub fn name(device: &Device) -> String {
    match device.location() {
        candle_core::DeviceLocation::Cuda { gpu_id } => Choice::Cuda(gpu_id).to_string(),
        _ => Choice::Cpu.to_string(),
    }
}

/// Waits until the device has done what it was asked to do.
///
/// # Errors
/// What went wrong on a GPU since the last call.
pub fn synchronize(device: &Device) -> Result<()> {
    device.synchronize()
}

/// Bytes of memory of the device that nobody has taken; None on the CPU.
///
/// # Errors
/// What the driver answers.
pub fn free_memory(device: &Device) -> Result<Option<usize>> {
    #[cfg(feature = "cuda")]
    if device.is_cuda() {
        return crate::cuda::driver::free_memory(device).map(Some);
    }
    let _ = device;
    Ok(None)
}

/// Element types that [`upload`] takes.
#[cfg(feature = "cuda")]
pub trait Upload: WithDType + crate::cuda::staging::Upload {}
#[cfg(feature = "cuda")]
impl<T: WithDType + crate::cuda::staging::Upload> Upload for T {}
/// Element types that [`upload`] takes.
#[cfg(not(feature = "cuda"))]
pub trait Upload: WithDType {}
#[cfg(not(feature = "cuda"))]
impl<T: WithDType> Upload for T {}

/// A tensor with these elements on a device. To a GPU they go through the pinned memory of a context, and nothing
/// waits; without a context they go straight from where they are, which may wait for the GPU.
///
/// # Errors
/// A number of elements that does not fill the shape; no memory left.
pub fn upload<T: Upload>(values: &[T], shape: impl Into<Shape>, to: &dyn Destination) -> Result<Tensor> {
    let shape = shape.into();
    if values.len() != shape.elem_count() {
        return Err(crate::storage::error(
            "upload",
            format_args!("{} elements do not fill {shape:?}", values.len()),
        ));
    }
    #[cfg(feature = "cuda")]
    if to.device().is_cuda() {
        return crate::cuda::staging::upload(values, shape, to);
    }
    Tensor::from_slice(values, shape, to.device())
}

/// Whether a device can compute in a format: f32 everywhere, bf16 on a GPU, f64 on the CPU.
pub fn computes(device: &Device, dtype: DType) -> bool {
    match dtype {
        DType::F32 => true,
        DType::BF16 => device.is_cuda(),
        DType::F64 => device.is_cpu(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:13"] {
            assert_eq!(text.parse::<Choice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Choice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "CPU"] {
            assert!(text.parse::<Choice>().unwrap_err().contains("cuda:N"), "{text}");
        }
    }

    #[test]
    fn the_cpu_is_always_there_and_auto_never_fails() {
        assert!(open(Choice::Cpu).unwrap().is_cpu());
        let auto = open(Choice::Auto).unwrap();
        assert_eq!(auto.is_cuda(), gpus().is_ok());
        let e = open(Choice::Cuda(99)).unwrap_err().to_string();
        assert!(e.contains("GPU") || e.contains("CUDA"), "{e}");
    }

    #[test]
    fn uploads_must_fill_the_shape() {
        assert!(upload(&[1u32, 2], (1, 2), &Device::Cpu).is_ok());
        assert!(upload(&[1u32, 2], (2, 2), &Device::Cpu).is_err());
    }
}
