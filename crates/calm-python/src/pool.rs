//! Where work runs: without the interpreter's lock, on a thread of a pool, while the thread that asked looks for Ctrl-C.
//!
//! One call has the pool at a time. A thread that waits inside a parallel loop takes up whatever else the pool has to do:
//! where that was another call's work, which waits for a model that the first call is loading, it would wait for itself.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Condvar, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

use crate::error::Failure;

/// The stack of a main thread.
const STACK: usize = 8 << 20;

/// How often somebody looks for Ctrl-C.
const LOOK: Duration = Duration::from_millis(100);

/// Whether work is to end early.
#[derive(Default)]
pub struct Stop(AtomicBool);

impl Stop {
    /// An error if it is. For long work, which asks from time to time.
    pub fn check(&self) -> Result<(), Failure> {
        if self.0.load(Ordering::Relaxed) { Err(Failure::Stopped) } else { Ok(()) }
    }
}

/// Whether a call has the pool.
static TAKEN: Mutex<bool> = Mutex::new(false);

/// Told when it has it no more.
static FREE: Condvar = Condvar::new();

fn taken() -> MutexGuard<'static, bool> {
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pool, for one call.
struct Turn;

impl Turn {
    /// Waits for it.
    ///
    /// # Errors
    /// What Python's handler of a signal raises meanwhile.
    fn wait() -> PyResult<Self> {
        loop {
            let waited = FREE.wait_timeout_while(taken(), LOOK, |busy| *busy);
            let (mut busy, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if !*busy {
                *busy = true;
                return Ok(Self);
            }
            drop(busy);
            Python::attach(|py| py.check_signals())?;
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        *taken() = false;
        FREE.notify_one();
    }
}

/// Does some work. On a thread of the pool: one outside would sleep and be woken for every parallel loop.
pub fn work<T: Send>(py: Python<'_>, f: impl FnOnce(&Stop) -> Result<T, Failure> + Send) -> PyResult<T> {
    static BEGUN: Once = Once::new();
    let (stop, mut done, mut signal) = (Stop::default(), None, None);
    py.detach(|| {
        // A pool that is there already is as good.
        BEGUN.call_once(|| drop(rayon::ThreadPoolBuilder::new().stack_size(STACK).build_global()));
        let turn = match Turn::wait() {
            Ok(turn) => turn,
            Err(error) => {
                signal = Some(error);
                return;
            }
        };
        let (stop, done) = (&stop, &mut done);
        rayon::in_place_scope(|scope| {
            let (finished, end) = channel::<()>();
            scope.spawn(move |_| {
                *done = Some(f(stop));
                // Here, not where it is waited for: a handler of a signal may call for work of its own.
                drop(turn);
                drop(finished);
            });
            while end.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
                if signal.is_none() {
                    // Python's own handler says what Ctrl-C means.
                    signal = Python::attach(|py| py.check_signals()).err();
                    stop.0.store(signal.is_some(), Ordering::Relaxed);
                }
            }
        });
    });
    match (signal, done) {
        (Some(signal), _) => Err(signal),
        (None, Some(done)) => Ok(done?),
        (None, None) => Err(Failure::Stopped.into()),
    }
}
