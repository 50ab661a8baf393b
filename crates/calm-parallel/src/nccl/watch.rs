//! The thread that looks whether exchanges between GPUs come to an end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use candle_core::cuda_backend::cudarc::driver::{CudaContext, CudaEvent};
use candle_core::cuda_backend::cudarc::nccl::{result, sys};

use crate::error::{Error, Result};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);
/// How long a call of NCCL may take to return before NCCL is taken down below it.
const CALL: Duration = Duration::from_secs(1);

/// NCCL's handle, used by one thread at a time.
#[derive(Debug)]
pub(super) struct Communicator(sys::ncclComm_t);

// SAFETY: NCCL's handle belongs to no thread; calls with it are kept apart by the lock around it, but for the last one, the abort.
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
    handle: Communicator,
    waits: Mutex<VecDeque<Wait>>,
    failed: Mutex<Option<Error>>,
    over: AtomicBool,
}

// SAFETY: `handle` is read for the abort alone, which NCCL allows from any thread.
unsafe impl Sync for Watch {}

impl Watch {
    /// Begins to look.
    ///
    /// # Errors
    /// No thread.
    pub(super) fn start(communicator: Communicator, context: Arc<CudaContext>) -> Result<Arc<Self>> {
        let handle = Communicator(communicator.0);
        let watch = Arc::new(Self {
            communicator: Mutex::new(Some(communicator)),
            handle,
            waits: Mutex::default(),
            failed: Mutex::default(),
            over: AtomicBool::new(false),
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
        lock(&self.failed).clone().map_or(Ok(()), Err)
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

    fn look(&self) {
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
                    format!("somebody did not come to {what} within {} s", limit.as_secs_f64()),
                    "what was saved is whole: go on with --resume, on fewer processes too",
                ));
            } else {
                // What it answers is kept for whoever asks next.
                let _ = self.ask(&what);
            }
            return;
        }
    }

    /// Whether all is well, as NCCL knows it at this moment.
    ///
    /// # Errors
    /// What failed first.
    pub(super) fn ask(&self, what: &str) -> Result<()> {
        if let Some(error) = self.answer() {
            self.fail(Error::new(
                format!("NCCL lost another process at {what}: {error:?}"),
                "what was saved is whole: go on with --resume, on fewer processes too; NCCL_DEBUG=WARN says more",
            ));
        }
        self.check()
    }

    /// What NCCL has noticed by itself: a process that is gone, a connection that broke.
    fn answer(&self) -> Option<sys::ncclResult_t> {
        // A call under way comes first.
        let communicator = self.communicator.try_lock().ok()?;
        let Communicator(handle) = communicator.as_ref()?;
        let mut found = sys::ncclResult_t::ncclSuccess;
        // SAFETY: the handle is alive while the lock is held; one value is written.
        let asked = unsafe { sys::ncclCommGetAsyncError(*handle, &raw mut found) };
        let well = |r| matches!(r, sys::ncclResult_t::ncclSuccess | sys::ncclResult_t::ncclInProgress);
        [asked, found].into_iter().find(|r| !well(*r))
    }

    /// Takes NCCL down: whoever waits for the GPU goes on, with numbers that nobody may use.
    pub(super) fn fail(&self, error: Error) {
        lock(&self.failed).get_or_insert(error);
        if self.over.swap(true, Ordering::SeqCst) {
            return;
        }
        let begun = Instant::now();
        let held = loop {
            match self.communicator.try_lock() {
                Ok(held) => break Some(held),
                Err(TryLockError::Poisoned(held)) => break Some(held.into_inner()),
                // A call that does not return waits for somebody itself.
                Err(TryLockError::WouldBlock) if begun.elapsed() > CALL => break None,
                Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            }
        };
        // SAFETY: once, and nothing uses the handle after it: who holds the lock gets None, and a call under way returns.
        let _ = unsafe { result::comm_abort(self.handle.0) };
        match held {
            Some(mut held) => *held = None,
            None => *lock(&self.communicator) = None,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
