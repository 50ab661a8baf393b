//! Makes what comes next while what came before is worked on: a function of a number, for one number after the other.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// What is asked for at a time.
const AHEAD: u64 = 4;

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

    /// Begins with this number, which nobody waits for yet; `last` is the last one that will be asked for.
    pub fn start(&mut self, number: u64, last: u64) {
        if self.asked.is_empty() {
            self.ask(number, last);
        }
    }

    /// What belongs to this number, and how long it was waited for: not at all if it lay ready. `last` is the last one that
    /// will be asked for.
    ///
    /// # Panics
    /// If the function does.
    pub fn get(&mut self, number: u64, last: u64) -> (T, Duration) {
        let started = Instant::now();
        match self.ready(number) {
            // Only now: the thread that makes the next one may take this one's core when it is woken.
            Some(made) => {
                if number < last {
                    self.ask(number + 1, last);
                }
                (made, Duration::ZERO)
            }
            None => (self.wait(number, last), started.elapsed()),
        }
    }

    fn ready(&mut self, number: u64) -> Option<T> {
        let worker = self.thread.as_ref().filter(|_| self.asked.front() == Some(&number))?;
        let made = worker.made.try_recv().ok()?;
        self.asked.pop_front();
        Some(made)
    }

    /// Asks for this number and those after it, as far as nobody has.
    fn ask(&mut self, number: u64, last: u64) {
        let Some(worker) = &self.thread else { return };
        let next = self.asked.back().map_or(number, |back| back + 1);
        for more in next..=(number + AHEAD - 1).min(last.max(number)) {
            if worker.ask.send(more).is_ok() {
                self.asked.push_back(more);
            }
        }
    }

    fn wait(&mut self, number: u64, last: u64) -> T {
        loop {
            // Somebody jumped: what was made for other numbers is thrown away.
            let other = self.asked.front().is_some_and(|front| *front != number);
            if !other {
                self.ask(number, last);
            }
            let Some(Ok(made)) = self.thread.as_ref().map(|worker| worker.made.recv()) else { break };
            self.asked.pop_front();
            if !other {
                return made;
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
        let calls = Arc::new(AtomicU64::new(0));
        let (seen, counted) = (Arc::clone(&highest), Arc::clone(&calls));
        let mut ahead = Prefetch::new(move |n| {
            seen.fetch_max(n, Ordering::Relaxed);
            counted.fetch_add(1, Ordering::Relaxed);
            n * 10
        });
        for n in 0..=9 {
            assert_eq!(ahead.get(n, 9).0, n * 10);
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(calls.load(Ordering::Relaxed), 10, "each was made once");
        for n in [3, 4, 5, 7, 8, 3, 3, 4, 9] {
            assert_eq!(ahead.get(n, 9).0, n * 10);
        }
        drop(ahead);
        assert_eq!(highest.load(Ordering::Relaxed), 9);
    }

    /// By counting, not by a clock: whoever works until the thread has begun with the second next one waits for nothing.
    #[test]
    fn what_lies_ready_is_not_waited_for() {
        let begun = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&begun);
        let mut ahead = Prefetch::new(move |n| {
            seen.fetch_max(n + 1, Ordering::Release);
            if n == 0 {
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        let work_until = |n: u64| {
            while begun.load(Ordering::Acquire) <= n {
                std::thread::yield_now();
            }
        };
        let (steps, last) = (200, 210);
        assert!(ahead.get(0, last).1 > Duration::ZERO, "nobody began before");
        let waited = (1..steps).filter(|n| {
            work_until(n + 1);
            ahead.get(*n, last).1 > Duration::ZERO
        });
        assert_eq!(waited.count(), 0);
        let mut early = Prefetch::new(|n| n);
        early.start(7, 9);
        assert_eq!(early.get(7, 9).0, 7);
        assert_eq!(early.get(8, 9).0, 8);
    }

    #[test]
    fn a_panic_is_passed_on_to_who_asks() {
        let mut ahead = Prefetch::new(|n| assert!(n < 3, "three"));
        (0..3).for_each(|n| ahead.get(n, 10).0);
        let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ahead.get(3, 10)));
        assert!(caught.is_err());
    }
}
