//! Makes what comes next while what came before is worked on: a function of a number, for one number after the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// What is made ahead.
const AHEAD: u64 = 2;

type Make<T> = Arc<dyn Fn(u64) -> T + Send + Sync>;

/// Calls a function on another thread, for numbers before they are asked for. It is the same as to call it here: whoever
/// jumps to another number gets what belongs to that.
pub struct Prefetch<T> {
    make: Make<T>,
    thread: Option<Worker<T>>,
    asked: VecDeque<u64>,
}

struct Worker<T> {
    ask: Sender<u64>,
    made: Receiver<T>,
    thread: JoinHandle<()>,
}

impl<T: Send + 'static> Prefetch<T> {
    /// Of this function. Where a system starts no more threads it is called when it is asked for.
    pub fn new(make: impl Fn(u64) -> T + Send + Sync + 'static) -> Self {
        let make: Make<T> = Arc::new(make);
        let (ask, asked) = channel();
        let (give, made) = channel();
        let work = {
            let make = Arc::clone(&make);
            move || {
                for number in asked {
                    if give.send(make(number)).is_err() {
                        break;
                    }
                }
            }
        };
        let thread = std::thread::Builder::new().name("calm-rows".into()).spawn(work).ok();
        Self { make, thread: thread.map(|thread| Worker { ask, made, thread }), asked: VecDeque::new() }
    }

    /// What belongs to this number; `last` is the last one that will be asked for.
    ///
    /// # Panics
    /// If the function does.
    pub fn get(&mut self, number: u64, last: u64) -> T {
        while let Some(worker) = &self.thread {
            match self.asked.front() {
                // Somebody jumped: what was made for other numbers is thrown away.
                Some(other) if *other != number => {
                    if worker.made.recv().is_err() {
                        break;
                    }
                    self.asked.pop_front();
                    continue;
                }
                _ => {}
            }
            let next = self.asked.back().map_or(number, |back| back + 1);
            for more in next..=(number + AHEAD).min(last.max(number)) {
                if worker.ask.send(more).is_ok() {
                    self.asked.push_back(more);
                }
            }
            match worker.made.recv() {
                Ok(made) => {
                    self.asked.pop_front();
                    return made;
                }
                Err(_) => break,
            }
        }
        if let Some(Worker { ask, thread, .. }) = self.thread.take() {
            drop(ask);
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
        (self.make)(number)
    }
}

impl<T> Drop for Prefetch<T> {
    fn drop(&mut self) {
        if let Some(Worker { ask, made, thread }) = self.thread.take() {
            drop((ask, made));
            // A panic there was either passed on or concerns what nobody asked for.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[test]
    fn numbers_come_as_asked_also_after_a_jump_and_nothing_is_made_behind_the_last() {
        let highest = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&highest);
        let mut ahead = Prefetch::new(move |n| {
            seen.fetch_max(n, Ordering::Relaxed);
            n * 10
        });
        for n in [0, 1, 2, 7, 8, 3, 3, 4, 9] {
            assert_eq!(ahead.get(n, 9), n * 10);
        }
        drop(ahead);
        assert_eq!(highest.load(Ordering::Relaxed), 9);
    }

    #[test]
    fn a_panic_is_passed_on_to_who_asks() {
        let mut ahead = Prefetch::new(|n| assert!(n < 3, "three"));
        (0..3).for_each(|n| ahead.get(n, 10));
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ahead.get(3, 10)));
        assert!(caught.is_err());
    }
}
