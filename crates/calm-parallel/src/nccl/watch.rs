//! The thread that looks whether exchanges between GPUs come to an end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaEvent};
use candle_core::cuda_backend::cudarc::nccl::{result, sys};

use crate::collective::{IN_VAIN, LOST};
use crate::error::{Error, Result};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// How long whoever waits has to go on after NCCL was taken down.
const STUCK: Duration = Duration::from_mins(1);

unsafe extern "C" {
    /// Of the C library.
    fn _exit(code: i32) -> !;
}

/// NCCL's handle, used by one thread at a time.
#[derive(Debug)]
pub(super) struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL's handle belongs to no thread; the lock around it keeps calls with it apart.
unsafe impl Send for Communicator {}

impl Communicator {
    pub(super) fn new(handle: sys::ncclComm_t) -> Self {
        Self(handle)
    }
}

/// An exchange that was begun.
#[derive(Debug)]
struct Wait {
    what: String,
    since: Instant,
    /// None: others may take as long as they want.
    limit: Option<Duration>,
    /// Passed when the GPU has done it; none while it is still being put on the stream.
    end: Option<CudaEvent>,
}

/// What is known of the exchanges.
#[derive(Debug)]
pub(super) struct Watch {
    /// Held while NCCL is called; None when it has been taken down.
    communicator: Mutex<Option<Communicator>>,
    waits: Mutex<VecDeque<Wait>>,
    failed: Mutex<Option<Error>>,
    over: AtomicBool,
    /// Whether somebody has heard of the failure.
    seen: AtomicBool,
}

impl Watch {
    /// Begins to look.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn start(communicator: Communicator, context: Arc<CudaContext>) -> Result<Arc<Self>> {
        let watch = Arc::new(Self {
            communicator: Mutex::new(Some(communicator)),
            waits: Mutex::default(),
            failed: Mutex::default(),
            over: AtomicBool::new(false),
            seen: AtomicBool::new(false),
        });
        let looking = Arc::downgrade(&watch);
        let look = move || {
            // Who asks for events does it in their context; where that fails all else does.
            let _ = context.bind_to_thread();
            while let Some(watch) = looking.upgrade() {
                if watch.over.load(Ordering::Relaxed) {
                    return;
                }
                watch.look();
                drop(watch);
                std::thread::sleep(PAUSE);
            }
        };
        std::thread::Builder::new().name("nccl-watch".into()).spawn(look).map_err(|e| {
            Error::new(format!("no thread for NCCL: {e}"), "allow more threads (`ulimit -u`)")
        })?;
        Ok(watch)
    }

    /// Whether all is well.
    ///
    /// # Errors
    /// What failed first.
    pub(super) fn check(&self) -> Result<()> {
        let Some(error) = lock(&self.failed).clone() else { return Ok(()) };
        self.seen.store(true, Ordering::SeqCst);
        Err(error)
    }

    /// Notes an exchange and calls NCCL for it.
    ///
    /// # Errors
    /// NCCL has been taken down before.
    pub(super) fn begin<T>(
        &self,
        what: &str,
        limit: Option<Duration>,
        call: impl FnOnce(sys::ncclComm_t) -> T,
    ) -> Result<T> {
        self.check()?;
        let communicator = lock(&self.communicator);
        let Some(Communicator(handle)) = &*communicator else {
            self.check()?;
            return Err(Error::new("NCCL has been left", ""));
        };
        let wait = Wait { what: what.to_owned(), since: Instant::now(), limit, end: None };
        lock(&self.waits).push_back(wait);
        Ok(call(*handle))
    }

    /// The exchange that was begun last is on the stream; `end` passes when the GPU has done it.
    pub(super) fn queued(&self, end: CudaEvent) {
        if let Some(last) = lock(&self.waits).back_mut() {
            last.end = Some(end);
        }
    }

    fn look(self: &Arc<Self>) {
        let mut waits = lock(&self.waits);
        while let Some(first) = waits.front() {
            let done = first.end.as_ref().is_some_and(CudaEvent::is_complete);
            if done {
                waits.pop_front();
                // Those behind it have waited for nobody so far.
                let now = Instant::now();
                waits.iter_mut().for_each(|wait| wait.since = now);
                continue;
            }
            let late = first.limit.filter(|limit| first.since.elapsed() > *limit);
            let what = first.what.clone();
            drop(waits);
            if let Some(limit) = late {
                self.fail(Error::new(
                    format!("{IN_VAIN} to {what} within {} s", limit.as_secs_f64()),
                    "what was saved is whole: go on with --resume, on fewer processes too",
                ));
                return;
            }
            // A call under way comes first.
            let held = self.communicator.try_lock();
            let answer = held.ok().and_then(|held| held.as_ref().and_then(noticed));
            if let Some(error) = answer {
                self.fail(lost(&what, error));
            }
            return;
        }
    }

    /// Whether all is well, as NCCL knows it at this moment.
    ///
    /// # Errors
    /// What failed first.
    pub(super) fn ask(self: &Arc<Self>, what: &str) -> Result<()> {
        self.check()?;
        // The watch may be asking at this moment: what came is worth nothing until this has an answer of its own.
        let answer = lock(&self.communicator).as_ref().and_then(noticed);
        if let Some(error) = answer {
            self.fail(lost(what, error));
        }
        self.check()
    }

    /// Takes NCCL down: whoever waits for the GPU goes on, with numbers that nobody may use.
    ///
    /// NCCL's abort can itself wait without end, and may not be called below a call under way. So it has a thread of its own, and
    /// where nobody has asked for the failure some seconds later the process says it here and ends.
    pub(super) fn fail(self: &Arc<Self>, error: Error) {
        lock(&self.failed).get_or_insert(error);
        if self.over.swap(true, Ordering::SeqCst) {
            return;
        }
        let watch = Arc::clone(self);
        let abort = move || {
            let mut communicator = lock(&watch.communicator);
            if let Some(Communicator(handle)) = communicator.take() {
                // SAFETY: under the lock, and nothing uses the handle after it.
                let _ = unsafe { result::comm_abort(handle) };
            }
        };
        let watch = Arc::clone(self);
        let last_resort = move || {
            std::thread::sleep(STUCK);
            if watch.seen.load(Ordering::SeqCst) {
                // Whoever has heard of it is on its way out.
                std::thread::sleep(STUCK);
            } else if let Some(error) = lock(&watch.failed).as_ref() {
                eprintln!("error: {error}\n  hint: {}", error.remedy);
            }
            // SAFETY: ends the process. Not by way of exit handlers, which may wait for the GPU.
            unsafe { _exit(1) };
        };
        // Without a thread the launcher ends this process.
        let _ = std::thread::Builder::new().name("nccl-abort".into()).spawn(abort);
        let _ = std::thread::Builder::new().name("nccl-end".into()).spawn(last_resort);
    }
}

/// What NCCL has noticed by itself: a process that is gone, a connection that broke.
fn noticed(Communicator(handle): &Communicator) -> Option<sys::ncclResult_t> {
    let mut found = sys::ncclResult_t::ncclSuccess;
    // SAFETY: who has the communicator has the lock, so that the handle is alive; one value is written.
    let asked = unsafe { sys::ncclCommGetAsyncError(*handle, &raw mut found) };
    let well = |r| matches!(r, sys::ncclResult_t::ncclSuccess | sys::ncclResult_t::ncclInProgress);
    [asked, found].into_iter().find(|r| !well(*r))
}

/// Another process is gone, as NCCL has noticed.
pub(super) fn lost(what: &str, error: sys::ncclResult_t) -> Error {
    Error::new(
        format!("{LOST} at {what}: {error:?}"),
        "what was saved is whole: go on with --resume, on fewer processes too; NCCL_DEBUG=WARN says more",
    )
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
