//! From the host to the GPU through pinned memory: a ring of buffers, each free again when the copy out of it
//! is done. The host waits only when it is a whole ring ahead of the GPU. A context has one ring.

use super::Gpu;
use super::driver::failed;
use crate::Destination;
use candle_core::cuda_backend::CudaDType;
use candle_core::cuda_backend::cudarc::driver::{
    CudaContext, CudaEvent, CudaSlice, DevicePtrMut, DeviceRepr, DriverError, result,
};
use candle_core::{Error, Result, Shape, Tensor};
use std::any::{Any, TypeId};
use std::collections::VecDeque;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};

/// Copies under way at the same time.
const SLOTS: usize = 32;
/// Smallest buffer.
const BYTES: usize = 64 << 10;
/// Uploads that [`Staging::recent`] remembers.
const REMEMBERED: usize = 8;

/// Page-locked memory of the host. (cudarc's own waits for an event at every access.)
struct Pinned {
    context: Arc<CudaContext>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory that nobody else knows of.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(context: &Arc<CudaContext>, bytes: usize) -> Result<Self> {
        context.bind_to_thread().map_err(failed)?;
        // SAFETY: the context is current; freed once, below.
        let start = unsafe { result::malloc_host(bytes, 0) }.map_err(failed)?;
        Ok(Self { context: context.clone(), start: start.cast(), bytes })
    }

    /// Its first `count` bytes.
    fn place(&mut self, count: usize) -> &mut [u8] {
        assert!(count <= self.bytes, "more than the pinned memory holds");
        // SAFETY: that many bytes were allocated, and the borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start, count) }
    }
}

impl Pinned {
    /// After an error of the driver a copy out of it may still be under way: it is never freed then.
    fn give_up(self, e: impl Display) -> Error {
        std::mem::forget(self);
        failed(e)
    }
}

/// Waits for a copy, if it is not done yet.
fn wait(done: &CudaEvent) -> std::result::Result<(), DriverError> {
    if done.try_is_complete()? { Ok(()) } else { done.synchronize() }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // An error can only mean that the driver is gone.
        let _ = self.context.bind_to_thread();
        // SAFETY: allocated by `malloc_host`; whoever copied out of it has waited.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

struct Slot {
    memory: Pinned,
    /// When the copy out of it is done.
    done: CudaEvent,
}

#[derive(Default)]
struct Ring(VecDeque<Slot>);

impl Drop for Ring {
    fn drop(&mut self) {
        for Slot { memory, done } in self.0.drain(..) {
            if let Err(e) = done.synchronize() {
                memory.give_up(e);
            }
        }
    }
}

/// A context's way from the host to its GPU.
#[derive(Default)]
struct Staging {
    ring: Mutex<Ring>,
    recent: Mutex<VecDeque<Remembered>>,
}

/// The bytes of plain numbers.
fn bytes_of<T: DeviceRepr + Copy>(host: &[T]) -> &[u8] {
    // SAFETY: `DeviceRepr` types are numbers and C structures of numbers without padding, and the slice lives
    // as long as what is returned.
    unsafe { std::slice::from_raw_parts(host.as_ptr().cast::<u8>(), size_of_val(host)) }
}

/// An upload that is remembered.
struct Remembered {
    element: TypeId,
    bytes: Vec<u8>,
    slice: Arc<dyn Any + Send + Sync>,
}

impl Staging {
    /// A copy of `host` on the GPU; returns at once.
    fn upload<T: DeviceRepr + Copy + 'static>(&self, gpu: &Gpu, host: &[T]) -> Result<CudaSlice<T>> {
        let mut out = gpu.raw::<T>(host.len())?;
        let bytes = bytes_of(host);
        if bytes.is_empty() {
            return Ok(out);
        }
        let stream = gpu.stream();
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        stream.context().bind_to_thread().map_err(failed)?;
        let oldest = if ring.0.len() < SLOTS { None } else { ring.0.pop_front() };
        let mut memory = match oldest {
            Some(Slot { memory, done }) => match wait(&done) {
                Ok(()) => memory,
                Err(e) => return Err(memory.give_up(e)),
            },
            None => Pinned::new(stream.context(), bytes.len().next_power_of_two().max(BYTES))?,
        };
        if memory.bytes < bytes.len() {
            memory = Pinned::new(stream.context(), bytes.len().next_power_of_two())?;
        }
        let place = memory.place(bytes.len());
        place.copy_from_slice(bytes);
        let (target, _written) = out.device_ptr_mut(&stream);
        // SAFETY: `target` has room for the bytes; the pinned memory stays until `done`.
        let copied = unsafe { result::memcpy_htod_async(target, place, stream.cu_stream()) };
        let done = match copied.and_then(|()| stream.record_event(None)) {
            Ok(done) => done,
            Err(e) => return Err(memory.give_up(e)),
        };
        ring.0.push_back(Slot { memory, done });
        drop(_written);
        Ok(out)
    }

    /// As [`Self::upload`], for what several operators of a step need (addresses of rows, tables of angles): the
    /// same content is copied once.
    fn recent<T: DeviceRepr + Copy + Send + Sync + 'static>(
        &self,
        gpu: &Gpu,
        host: &[T],
    ) -> Result<Arc<CudaSlice<T>>> {
        let (element, bytes) = (TypeId::of::<T>(), bytes_of(host));
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |u: &Remembered| u.element == element && u.bytes == bytes;
        if let Some(at) = recent.iter().position(same)
            && let Some(found) = recent.remove(at)
        {
            let slice = found.slice.clone();
            recent.push_front(found);
            if let Ok(slice) = slice.downcast::<CudaSlice<T>>() {
                return Ok(slice);
            }
        }
        let slice = Arc::new(self.upload(gpu, host)?);
        recent.truncate(REMEMBERED - 1);
        recent.push_front(Remembered { element, bytes: bytes.to_vec(), slice: slice.clone() });
        Ok(slice)
    }
}

impl Gpu {
    /// A copy of host memory: in a context through its pinned memory, so that nothing waits for the GPU.
    pub(crate) fn upload<T: DeviceRepr + Copy + 'static>(&self, host: &[T]) -> Result<CudaSlice<T>> {
        match self.kept::<Staging>() {
            Some(staging) => staging.upload(self, host),
            None => {
                let mut out = self.raw::<T>(host.len())?;
                if !host.is_empty() {
                    self.stream().memcpy_htod(host, &mut out).map_err(failed)?;
                }
                Ok(out)
            }
        }
    }

    /// As [`Self::upload`], for what several operators of a step need: in a context the same content is copied once.
    pub(crate) fn shared<T: DeviceRepr + Copy + Send + Sync + 'static>(
        &self,
        host: &[T],
    ) -> Result<Arc<CudaSlice<T>>> {
        match self.kept::<Staging>() {
            Some(staging) => staging.recent(self, host),
            None => self.upload(host).map(Arc::new),
        }
    }
}

/// Element types that can go to a GPU.
pub trait Upload: CudaDType + DeviceRepr + Copy + 'static {}
impl<T: CudaDType + DeviceRepr + Copy + 'static> Upload for T {}

/// See [`crate::device::upload`].
pub(crate) fn upload<T: Upload>(values: &[T], shape: Shape, to: &dyn Destination) -> Result<Tensor> {
    let gpu = Gpu::at("upload", to)?;
    let storage = gpu.storage(gpu.upload(values)?);
    Ok(gpu.wrap(storage, shape))
}
