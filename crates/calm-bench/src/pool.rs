//! The pool of memory of a GPU, which counts what tensors hold.

use candle_core::Device;

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

    #[test]
    fn the_cpu_has_no_pool() {
        assert_eq!(Used::of(&Device::Cpu), None);
    }
}
