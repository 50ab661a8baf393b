//! The GPU as operators see it: memory, launches, and candle's tensors as slices of device memory.

use super::driver::failed;
use crate::storage::error;
use crate::{Context, Destination, Operand};
use candle_core::backend::BackendStorage;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::cublas::sys::cudaDataType_t;
use candle_core::cuda_backend::cudarc::driver::sys::CUfunction_attribute_enum as FunctionAttribute;
use candle_core::cuda_backend::cudarc::driver::{
    CudaFunction, CudaSlice, CudaStream, CudaView, DevicePtr, DeviceRepr, LaunchConfig, ValidAsZeroBits,
};
use candle_core::op::BackpropOp;
use candle_core::{CudaDevice, CudaStorage, Device, Result, Shape, Storage, StorageRef, Tensor, WithDType};
use half::bf16;
use std::any::Any;
use std::marker::PhantomData;
use std::sync::Arc;

/// An element type that kernels exist for.
pub(crate) trait Element: CudaDType + DeviceRepr + WithDType + ValidAsZeroBits + Send + Sync {
    /// The end of its kernels' names.
    const SUFFIX: &'static str;
    /// Its name in cuBLAS.
    const CUBLAS: cudaDataType_t;
}

impl Element for f32 {
    const SUFFIX: &'static str = "f32";
    const CUBLAS: cudaDataType_t = cudaDataType_t::CUDA_R_32F;
}

impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";
    const CUBLAS: cudaDataType_t = cudaDataType_t::CUDA_R_16BF;
}

/// Runs a block with a type alias for the element type, `f32` or `bf16`; any other type is an error that
/// names the operator: `with_element!(op, dtype, T => body)`, where body is a `Result`.
macro_rules! with_element {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            candle_core::DType::F32 => {
                type $t = f32;
                $body
            }
            candle_core::DType::BF16 => {
                type $t = half::bf16;
                $body
            }
            other => Err($crate::storage::error(
                $op,
                format_args!(
                    "expects f32 or bf16 tensors on a GPU, got {other:?}; convert the input with to_dtype"
                ),
            )),
        }
    };
}

/// Blocks, threads a block, and bytes of dynamic shared memory of a launch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Launch {
    pub(crate) blocks: u32,
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
}

/// Dynamic shared memory that every function may have without asking.
const SHARED_BYTES: u32 = 48 << 10;

impl Launch {
    /// Kernels take any grid: enough blocks for `tasks` of which a block takes `each`, up to `MOST` a launch.
    pub(crate) fn of(tasks: usize, each: usize, threads: u32) -> Self {
        /// Several waves on the largest cards; loops inside the kernels take what is more.
        const MOST: usize = 132 * 32;
        let blocks = tasks.div_ceil(each.max(1)).clamp(1, MOST) as u32;
        Self { blocks, threads, shared_bytes: 0 }
    }

    /// One thread an element, 256 threads a block.
    pub(crate) fn elements(count: usize) -> Self {
        Self::of(count, 256, 256)
    }

    /// For `each_cell` and `each_run`: a thread has a run of up to eight cells, or as many single ones.
    pub(crate) fn cells(rows: usize, columns: usize) -> Self {
        Self::of(rows * columns, 4 * 256, 256)
    }

    /// With dynamic shared memory.
    pub(crate) fn shared(self, bytes: u32) -> Self {
        Self { shared_bytes: bytes, ..self }
    }

    pub(crate) fn config(self, function: &CudaFunction) -> Result<LaunchConfig> {
        if self.shared_bytes > SHARED_BYTES {
            let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            function.set_attribute(most, self.shared_bytes as i32).map_err(|e| {
                let bytes = self.shared_bytes;
                failed(format_args!(
                    "a block needs {bytes} bytes of shared memory, more than this GPU has ({e}); choose a head size of \
                     64 or less (energy score: a smaller latent), or a card with 164 KiB such as A100 or H100"
                ))
            })?;
        }
        Ok(LaunchConfig {
            grid_dim: (self.blocks, 1, 1),
            block_dim: (self.threads, 1, 1),
            shared_mem_bytes: self.shared_bytes,
        })
    }
}

/// `launch!(gpu, MODULE, "kernel name", launch, arguments ..)`: MODULE is the `.cu` file in capitals; the
/// arguments are those of its KERNEL line in order and type, each behind a reference (`&x.get()` of a
/// [`View`], `&mut` of a slice that is written, `&(n as u32)`).
macro_rules! launch {
    ($gpu:expr, $module:ident, $kernel:expr, $launch:expr, $($arg:expr),+ $(,)?) => {{
        #[allow(unused_imports)]
        use candle_core::cuda_backend::cudarc::driver::PushKernelArg as _;
        let kernel: &str = &$kernel;
        let function = $gpu.function(stringify!($module), $crate::cuda::ptx::$module, kernel)?;
        let config = $launch.config(&function)?;
        // SAFETY: the caller passes what the KERNEL line of this name asks for; a test runs every launch on
        // a device that checks each access.
        unsafe { $gpu.stream().launch_builder(&function)$(.arg($arg))+.launch(config) }
            .map_err(|e| $crate::storage::error(kernel, e))?;
    }};
}

/// The address of what may be absent: 0.
pub(super) fn address<T>(gpu: &Gpu, slice: Option<&impl DevicePtr<T>>) -> u64 {
    slice.map_or(0, |slice| slice.device_ptr(&gpu.stream()).0)
}

/// A GPU, in a context or not: a handle, cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Gpu {
    device: CudaDevice,
    context: Option<Context>,
}

impl Gpu {
    /// The GPU that an operand is on, in its context.
    pub(crate) fn of(op: &str, operand: &dyn Operand) -> Result<Self> {
        Self::of_all(op, &[operand])
    }

    /// The GPU that the first operand is on, in the context of the first that has one.
    pub(crate) fn of_all(op: &str, operands: &[&dyn Operand]) -> Result<Self> {
        let Some(first) = operands.first() else {
            return Err(error(op, "has no inputs"));
        };
        Self::new(op, first.tensor().device(), crate::context::of(operands))
    }

    /// The GPU where something is made.
    pub(crate) fn at(op: &str, to: &dyn Destination) -> Result<Self> {
        Self::new(op, to.device(), to.context())
    }

    fn new(op: &str, device: &Device, context: Option<&Context>) -> Result<Self> {
        match device {
            Device::Cuda(cuda) => {
                // A context can be lent to a tensor of another device.
                let context = context.filter(|c| c.device().same_device(device)).cloned();
                Ok(Self { device: cuda.clone(), context })
            }
            other => Err(error(op, format_args!("expects tensors on a GPU, got {:?}", other.location()))),
        }
    }

    /// The context in which it works.
    pub(crate) fn context(&self) -> Option<&Context> {
        self.context.as_ref()
    }

    /// What its context keeps of this kind, if it works in one.
    pub(super) fn kept<T: Any + Default + Send + Sync>(&self) -> Option<Arc<T>> {
        self.context.as_ref().map(Context::kept)
    }

    /// As candle's device.
    pub(crate) fn device(&self) -> Device {
        Device::Cuda(self.device.clone())
    }

    pub(crate) fn cuda(&self) -> &CudaDevice {
        &self.device
    }

    /// A kernel by its name; its module is loaded at the first call.
    pub(crate) fn function(&self, module: &str, ptx: &str, name: &str) -> Result<CudaFunction> {
        let found = self.device.get_or_load_custom_func(name, module, ptx).map_err(|e| {
            let what = e.to_string();
            if what.contains("UNSUPPORTED_PTX_VERSION") {
                failed("the driver is older than the CUDA that compiled calm; update it, or build with an older CUDA")
            } else if what.contains("INVALID_IMAGE") {
                failed(
                    "the kernels in this build are not for this driver (kernels/host-device made them?); \
                     build it again in another target folder, with CUDA_HOME at NVIDIA's toolkit",
                )
            } else {
                e
            }
        })?;
        Ok(found.into_cuda_function())
    }

    /// The stream that carries all work.
    pub(crate) fn stream(&self) -> Arc<CudaStream> {
        self.device.cuda_stream()
    }

    /// Memory for `count` elements that the caller writes all of.
    pub(crate) fn empty<T: Element>(&self, count: usize) -> Result<CudaSlice<T>> {
        self.raw(count)
    }

    /// As [`Self::empty`], for elements that no tensor has (bytes of structures, f64).
    pub(crate) fn raw<T: DeviceRepr>(&self, count: usize) -> Result<CudaSlice<T>> {
        // SAFETY: the kernels that the caller launches next write every element before one is read; the
        // device that tests run on fills new memory with NaN.
        unsafe { self.device.alloc::<T>(count.max(1)) }
    }

    pub(crate) fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, count: usize) -> Result<CudaSlice<T>> {
        self.device.alloc_zeros::<T>(count.max(1))
    }

    /// A tensor that takes over `data`, without history.
    pub(crate) fn tensor<T: Element>(&self, data: CudaSlice<T>, shape: impl Into<Shape>) -> Result<Tensor> {
        Ok(self.wrap(self.storage(data), shape.into()))
    }

    /// Device memory as candle's storage.
    pub(crate) fn storage<T: CudaDType>(&self, data: CudaSlice<T>) -> CudaStorage {
        CudaStorage::wrap_cuda_slice(data, self.device.clone())
    }

    /// A storage as a tensor, without history.
    pub(crate) fn wrap(&self, storage: CudaStorage, shape: Shape) -> Tensor {
        Tensor::from_storage(Storage::Cuda(storage), shape, BackpropOp::none(), false)
    }
}

/// A contiguous tensor on a GPU, borrowed; [`View::get`] is what a launch takes.
pub(crate) struct View<'a, T> {
    guard: StorageRef<'a>,
    start: usize,
    end: usize,
    element: PhantomData<T>,
}

impl<T: CudaDType> View<'_, T> {
    /// The elements.
    pub(crate) fn get(&self) -> CudaView<'_, T> {
        match &*self.guard {
            Storage::Cuda(storage) => match storage.as_cuda_slice::<T>() {
                Ok(slice) => slice.slice(self.start..self.end),
                Err(_) => unreachable!("`view` has checked the element type"),
            },
            _ => unreachable!("`view` has checked the device"),
        }
    }
}

/// Borrows a contiguous tensor on a GPU, of numbers or of ids.
///
/// # Errors
/// A tensor on another device, not contiguous, or of another element type.
pub(crate) fn view<'a, T: CudaDType + WithDType>(op: &str, tensor: &'a Tensor) -> Result<View<'a, T>> {
    let (guard, layout) = tensor.storage_and_layout();
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(error(op, format_args!("expects contiguous tensors, got strides {:?}", layout.stride())));
    };
    match &*guard {
        Storage::Cuda(storage) if storage.dtype() == T::DTYPE => {}
        Storage::Cuda(storage) => {
            return Err(error(
                op,
                format_args!("expects {:?} elements, got {:?}", T::DTYPE, storage.dtype()),
            ));
        }
        _ => {
            return Err(error(
                op,
                format_args!("expects tensors on a GPU, got one on {:?}", tensor.device().location()),
            ));
        }
    }
    Ok(View { guard, start, end, element: PhantomData })
}
