//! GPUs of several processes, joined by NCCL: each process has one.
//!
//! NCCL's calls are put on the stream on which the GPU computes, and return at once; what waits in vain is the GPU. A thread of
//! its own ([`watch`]) looks whether each exchange comes to an end within the time limit, and takes NCCL down if it does not, which
//! sets free whoever waits for the GPU. What the GPU holds then is worth nothing: every method answers with the error from there
//! on, and nothing is saved without them.

mod engine;
mod watch;

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use candle_core::Device;
use candle_core::cuda_backend::cudarc::driver::{
    CudaSlice, CudaStream, CudaViewMut, DevicePtr, DevicePtrMut,
};
use candle_core::cuda_backend::cudarc::nccl::{result, sys};

use crate::error::{Error, Result};
use crate::limit::LIMIT;
use crate::world::World;
pub(crate) use engine::OverGpus;
use watch::{Communicator, Watch};

/// Bytes of NCCL's id, which rank 0 makes and all others need.
pub(crate) const ID: usize = 128;

/// The GPU of this process among those of the others.
#[derive(Debug)]
pub(crate) struct Gpus {
    /// On which the GPU computes.
    stream: Arc<CudaStream>,
    /// On which gradients are summed meanwhile.
    beside: Arc<CudaStream>,
    watch: Arc<Watch>,
    limit: Duration,
}

/// A new id, for the process that hands it to the others.
///
/// # Errors
/// NCCL is not there.
pub(crate) fn id() -> Result<[u8; ID]> {
    available()?;
    let id = result::get_uniqueid().map_err(|e| failed("makes no id", &e))?;
    Ok(id.internal.map(|byte| byte as u8))
}

/// Whether NCCL can be called: CUDA's libraries are open, and its own was among them.
///
/// # Errors
/// It is not, with how it is installed.
pub(crate) fn available() -> Result<()> {
    calm_kernels::device::count().map_err(|e| Error::new(e.reason, e.remedy))?;
    let version = result::get_nccl_version();
    version.map(|_| ()).map_err(|_| {
        Error::new(
            "libnccl.so.2 cannot be opened: without NCCL the GPUs of several processes are not joined",
            "install it (Debian and Ubuntu, from NVIDIA's repository: `apt-get install libnccl2`; pip: `nvidia-nccl-cu12`), and name \
             its folder in LD_LIBRARY_PATH; one process needs none",
        )
    })
}

fn failed(what: &str, e: &result::NcclError) -> Error {
    Error::new(
        format!("NCCL {what}: {:?}", e.0),
        "NCCL_DEBUG=WARN says more; each process needs a GPU of its own, and the machines must reach each other",
    )
}

impl Gpus {
    /// Joins the GPU of this process with the others by the id of rank 0; all call this.
    ///
    /// # Errors
    /// Two processes on one GPU, GPUs that cannot reach each other, somebody who does not come within the limit.
    pub(crate) fn join(device: &Device, world: &World, id: [u8; ID], limit: Duration) -> Result<Self> {
        available()?;
        let cuda =
            device.as_cuda_device().map_err(|e| Error::new(format!("no GPU: {e}"), "use --device cuda"))?;
        let stream = cuda.cuda_stream();
        // NCCL's own wait for the others knows no limit: a thread waits, and is left behind if it waits in vain.
        let (told, heard) = channel();
        let (ranks, rank, at) = (world.size as i32, world.rank as i32, Arc::clone(&stream));
        let start = move || {
            let internal = id.map(|byte| byte as _);
            let mut comm = MaybeUninit::uninit();
            let joined = at.context().bind_to_thread().map_err(|e| driver(&e)).and_then(|()| {
                // SAFETY: writes one pointer, which is read only after success.
                unsafe {
                    result::comm_init_rank(comm.as_mut_ptr(), ranks, sys::ncclUniqueId { internal }, rank)
                        .map_err(|e| failed("does not join the GPUs", &e))?;
                    Ok(Communicator::new(comm.assume_init()))
                }
            });
            let _ = told.send(joined);
        };
        std::thread::Builder::new().name("nccl".into()).spawn(start).map_err(|e| {
            Error::new(format!("no thread for NCCL: {e}"), "allow more threads (`ulimit -u`)")
        })?;
        let late = |_| {
            Err(Error::new(
                format!(
                    "NCCL has not joined the GPUs of {} processes within {} s",
                    world.size,
                    limit.as_secs_f64()
                ),
                format!(
                    "see what the other processes say; NCCL_DEBUG=INFO says more; {LIMIT}=SECONDS waits longer"
                ),
            ))
        };
        let communicator = heard.recv_timeout(limit).unwrap_or_else(late)?;
        let watch = Watch::start(communicator, Arc::clone(stream.context()))?;
        let beside = stream.context().new_stream().map_err(|e| driver(&e))?;
        Ok(Self { stream, beside, watch, limit })
    }

    /// Puts the replacement of `values` by their sums over all processes on the stream: the same bits everywhere.
    ///
    /// # Errors
    /// An exchange that failed before; what NCCL answers.
    pub(crate) fn sum(&self, values: &mut CudaSlice<f32>) -> Result<()> {
        let count = values.len();
        self.sum_on(&self.stream, &mut values.slice_mut(..count))
    }

    /// The same of a range, beside what is computed: after all that is on the computing stream so far.
    ///
    /// # Errors
    /// As [`Gpus::sum`].
    pub(crate) fn begin_sum(&self, values: &mut CudaSlice<f32>, range: Range<usize>) -> Result<()> {
        let written = self.stream.record_event(None).map_err(|e| driver(&e))?;
        self.beside.wait(&written).map_err(|e| driver(&e))?;
        self.sum_on(&self.beside, &mut values.slice_mut(range))
    }

    /// What is computed from here on comes after the sums that were begun.
    ///
    /// # Errors
    /// What the driver answers.
    pub(crate) fn end_sums(&self) -> Result<()> {
        let summed = self.beside.record_event(None).map_err(|e| driver(&e))?;
        self.stream.wait(&summed).map_err(|e| driver(&e))
    }

    fn sum_on(&self, stream: &Arc<CudaStream>, values: &mut CudaViewMut<'_, f32>) -> Result<()> {
        let count = values.len();
        self.exchange(stream, "the sum of gradients", Some(self.limit), |comm| {
            let (place, _written) = values.device_ptr_mut(stream);
            // SAFETY: `count` numbers at `place`, which stay there until the stream is done with them.
            unsafe {
                result::all_reduce(
                    place as _,
                    place as _,
                    count,
                    sys::ncclDataType_t::ncclFloat32,
                    sys::ncclRedOp_t::ncclSum,
                    comm,
                    stream.cu_stream() as _,
                )
            }
        })
    }

    /// Puts the hand-out of parts of `values` on the stream, the r-th from rank r to all others.
    ///
    /// # Errors
    /// As [`Gpus::sum`].
    pub(crate) fn share(&self, values: &mut CudaSlice<f32>, parts: &[Range<usize>]) -> Result<()> {
        let stream = &self.stream;
        self.exchange(stream, "the exchange of parameters", Some(self.limit), |comm| {
            let (place, _written) = values.device_ptr_mut(stream);
            result::group_start()?;
            let shared =
                parts.iter().enumerate().filter(|(_, part)| !part.is_empty()).try_for_each(|(rank, part)| {
                    let at = place + size_of::<f32>() as u64 * part.start as u64;
                    // SAFETY: `part` is of `values`, which stay there until the stream is done with them.
                    let put = unsafe {
                        result::broadcast(
                            at as _,
                            at as _,
                            part.len(),
                            sys::ncclDataType_t::ncclFloat32,
                            rank as _,
                            comm,
                            stream.cu_stream() as _,
                        )
                    };
                    put.map(|_| ())
                });
            let ended = result::group_end();
            shared.and(ended)
        })
    }

    /// Everybody's bytes, as many of each, one after the other by rank; waits for the GPU, and for others no longer than the limit.
    ///
    /// # Errors
    /// As [`Gpus::sum`]; somebody who does not come.
    pub(crate) fn all_gather(
        &self,
        own: &[u8],
        ranks: usize,
        what: &str,
        limit: Option<Duration>,
    ) -> Result<Vec<u8>> {
        let stream = &self.stream;
        let mine = stream.clone_htod(own).map_err(|e| driver(&e))?;
        let mut all = stream.alloc_zeros::<u8>(own.len() * ranks).map_err(|e| driver(&e))?;
        self.exchange(stream, what, limit, |comm| {
            let ((from, _read), (to, _written)) = (mine.device_ptr(stream), all.device_ptr_mut(stream));
            // SAFETY: as many bytes lie at `from`, and ranks times as many at `to`, until the stream is done with them.
            unsafe {
                result::all_gather(
                    from as _,
                    to as _,
                    own.len(),
                    sys::ncclDataType_t::ncclUint8,
                    comm,
                    stream.cu_stream() as _,
                )
            }
        })?;
        let all = stream.clone_dtoh(&all).map_err(|e| driver(&e));
        // Where another process is gone the stream goes on, and what came is worth nothing.
        self.watch.ask(what)?;
        all
    }

    /// What failed; none if all is well.
    pub(crate) fn failure(&self) -> Option<Error> {
        self.watch.check().err()
    }

    /// One call of NCCL under the eye of the watch.
    fn exchange(
        &self,
        stream: &CudaStream,
        what: &str,
        limit: Option<Duration>,
        call: impl FnOnce(sys::ncclComm_t) -> std::result::Result<result::NcclStatus, result::NcclError>,
    ) -> Result<()> {
        self.stream.context().bind_to_thread().map_err(|e| driver(&e))?;
        let called = self.watch.begin(what, limit, call)?;
        if let Err(e) = called {
            // Where the watch has taken NCCL down meanwhile, it knows why.
            self.watch.fail(match e.0 {
                sys::ncclResult_t::ncclRemoteError => watch::lost(what, e.0),
                _ => failed(&format!("gives up at {what}"), &e),
            });
        }
        self.watch.check()?;
        let end = stream.record_event(None).map_err(|e| driver(&e))?;
        self.watch.queued(end);
        Ok(())
    }
}

fn driver(e: &impl std::fmt::Display) -> Error {
    Error::new(
        format!("the GPU fails: {e}"),
        "`calm doctor` shows what stands in the way; go on with --resume",
    )
}
