//! From the host to the GPU through pinned memory: a ring of buffers, each free again when the copy out of it
//! is done. The host waits only when it is a whole ring ahead of the GPU.

use super::Gpu;
use super::gpu::failed;
use candle_core::Result;
use candle_core::cuda_backend::DeviceId;
use candle_core::cuda_backend::cudarc::driver::{CudaEvent, CudaSlice, DevicePtrMut, DeviceRepr, result};
use std::any::{Any, TypeId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Copies under way at the same time.
const SLOTS: usize = 32;
/// Smallest buffer.
const BYTES: usize = 64 << 10;
/// Uploads that [`recent`] remembers.
const REMEMBERED: usize = 8;

/// Page-locked memory of the host. (cudarc's own waits for an event at every access.)
struct Pinned {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory that nobody else knows of.
unsafe impl Send for Pinned {}

impl Pinned {
    fn new(bytes: usize) -> Result<Self> {
        // SAFETY: the context is current (the caller has bound it); freed once, below.
        let start = unsafe { result::malloc_host(bytes, 0) }.map_err(failed)?;
        Ok(Self { start: start.cast(), bytes })
    }

    /// Its first `count` bytes.
    fn place(&mut self, count: usize) -> &mut [u8] {
        assert!(count <= self.bytes, "more than the pinned memory holds");
        // SAFETY: that many bytes were allocated, and the borrow is the only one.
        unsafe { std::slice::from_raw_parts_mut(self.start, count) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `malloc_host`. An error can only mean that the driver is gone.
        let _ = unsafe { result::free_host(self.start.cast()) };
    }
}

struct Slot {
    memory: Pinned,
    done: CudaEvent,
}

struct Ring {
    device: DeviceId,
    slots: VecDeque<Slot>,
}

/// One for every device that was opened.
static RINGS: Mutex<Vec<Ring>> = Mutex::new(Vec::new());

/// The bytes of plain numbers.
fn bytes_of<T: DeviceRepr + Copy>(host: &[T]) -> &[u8] {
    // SAFETY: `DeviceRepr` types are numbers and C structures of numbers without padding, and the slice lives
    // as long as what is returned.
    unsafe { std::slice::from_raw_parts(host.as_ptr().cast::<u8>(), size_of_val(host)) }
}

/// A copy of `host` on the GPU; returns at once.
pub(super) fn upload<T: DeviceRepr + Copy + 'static>(gpu: &Gpu, host: &[T]) -> Result<CudaSlice<T>> {
    let mut out = gpu.raw::<T>(host.len())?;
    let bytes = bytes_of(host);
    if bytes.is_empty() {
        return Ok(out);
    }
    let stream = gpu.stream();
    let device = gpu.cuda().id();
    let mut rings = RINGS.lock().unwrap_or_else(PoisonError::into_inner);
    let at = rings.iter().position(|ring| ring.device == device).unwrap_or_else(|| {
        rings.push(Ring { device, slots: VecDeque::new() });
        rings.len() - 1
    });
    let ring = &mut rings[at];
    stream.context().bind_to_thread().map_err(failed)?;
    let oldest = if ring.slots.len() < SLOTS { None } else { ring.slots.pop_front() };
    let mut memory = match oldest {
        Some(slot) => {
            if !slot.done.try_is_complete().map_err(failed)? {
                slot.done.synchronize().map_err(failed)?;
            }
            slot.memory
        }
        None => Pinned::new(bytes.len().next_power_of_two().max(BYTES))?,
    };
    if memory.bytes < bytes.len() {
        memory = Pinned::new(bytes.len().next_power_of_two())?;
    }
    let place = memory.place(bytes.len());
    place.copy_from_slice(bytes);
    let (target, _written) = out.device_ptr_mut(&stream);
    // SAFETY: `target` has room for the bytes; the pinned memory stays until `done`.
    unsafe { result::memcpy_htod_async(target, place, stream.cu_stream()) }.map_err(failed)?;
    let done = stream.record_event(None).map_err(failed)?;
    ring.slots.push_back(Slot { memory, done });
    drop(_written);
    Ok(out)
}

/// An upload that is remembered.
struct Upload {
    device: DeviceId,
    element: TypeId,
    bytes: Vec<u8>,
    slice: Arc<dyn Any + Send + Sync>,
}

static RECENT: Mutex<VecDeque<Upload>> = Mutex::new(VecDeque::new());

/// As [`upload`], for what several operators of a step need (addresses of rows, tables of angles): the same
/// content is copied once.
pub(super) fn recent<T: DeviceRepr + Copy + Send + Sync + 'static>(
    gpu: &Gpu,
    host: &[T],
) -> Result<Arc<CudaSlice<T>>> {
    let (device, element, bytes) = (gpu.cuda().id(), TypeId::of::<T>(), bytes_of(host));
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    let same = |u: &Upload| u.device == device && u.element == element && u.bytes == bytes;
    if let Some(at) = recent.iter().position(same)
        && let Some(found) = recent.remove(at)
    {
        let slice = found.slice.clone();
        recent.push_front(found);
        if let Ok(slice) = slice.downcast::<CudaSlice<T>>() {
            return Ok(slice);
        }
    }
    let slice = Arc::new(upload(gpu, host)?);
    recent.truncate(REMEMBERED - 1);
    recent.push_front(Upload { device, element, bytes: bytes.to_vec(), slice: slice.clone() });
    Ok(slice)
}
