//! Ranks that are threads of one process: for tests. Between processes MPI carries what they exchange.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::collective::{Collective, Patience, failure, missing};
use crate::error::{Error, Result};
use crate::ranks::Ranks;
use crate::world::{Launcher, World};

/// How long a thread waits for the others.
const LIMIT: Duration = Duration::from_mins(2);

/// Runs `work` on so many ranks, each a thread; what each gave, by rank.
///
/// # Panics
/// If one of them does.
pub fn run<T: Send>(size: usize, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    within(size, LIMIT, work)
}

/// As [`run`], with another time limit.
///
/// # Panics
/// As [`run`].
pub fn within<T: Send>(size: usize, limit: Duration, work: impl Fn(Ranks) -> T + Sync) -> Vec<T> {
    let meeting = Arc::new(Meeting { rounds: Mutex::new(Round::default()), came: Condvar::new() });
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size)
            .map(|rank| {
                let world = World { rank, size, local_rank: rank, launcher: Launcher::None };
                let hosts = (0..size).map(|rank| format!("thread-{rank}")).collect();
                let (meeting, step) = (Arc::clone(&meeting), AtomicU64::new(0));
                let ranks = Ranks::new(Thread { world, hosts, meeting, step, limit });
                let work = &work;
                scope.spawn(move || work(ranks))
            })
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, T>| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        threads.into_iter().map(join).collect()
    })
}

#[derive(Debug)]
struct Meeting {
    rounds: Mutex<Round>,
    came: Condvar,
}

/// An exchange under way, and the one before, which those who came late have still to read.
#[derive(Debug, Default)]
struct Round {
    number: u64,
    given: Vec<Option<Vec<u8>>>,
    complete: Arc<Vec<Vec<u8>>>,
    failed: Option<(usize, Error)>,
}

#[derive(Debug)]
struct Thread {
    world: World,
    hosts: Vec<String>,
    meeting: Arc<Meeting>,
    step: AtomicU64,
    limit: Duration,
}

impl Thread {
    fn lock(&self) -> MutexGuard<'_, Round> {
        self.meeting.rounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn exchange(&self, own: &[u8], what: &str) -> Result<Arc<Vec<Vec<u8>>>> {
        let mut round = self.lock();
        let number = round.number;
        round.given.resize(self.world.size, None);
        round.given[self.world.rank] = Some(own.to_vec());
        if round.given.iter().all(Option::is_some) {
            round.complete = Arc::new(round.given.drain(..).flatten().collect());
            round.number += 1;
            self.meeting.came.notify_all();
            return Ok(Arc::clone(&round.complete));
        }
        let waits = |round: &mut Round| round.number == number && round.failed.is_none();
        let came = self.meeting.came.wait_timeout_while(round, self.limit, waits);
        let (round, _) = came.unwrap_or_else(PoisonError::into_inner);
        if round.number > number {
            return Ok(Arc::clone(&round.complete));
        }
        if let Some((rank, error)) = &round.failed {
            return Err(failure(&self.hosts, *rank, error.clone()));
        }
        let absent = round.given.iter().enumerate().filter(|(_, given)| given.is_none());
        let absent: Vec<_> = absent.map(|(rank, _)| (rank, None)).collect();
        Err(missing(&self.hosts, &absent, what, self.step.load(Ordering::Relaxed), Some(self.limit)))
    }
}

impl Collective for Thread {
    fn world(&self) -> &World {
        &self.world
    }

    fn hosts(&self) -> &[String] {
        &self.hosts
    }

    fn gather(&self, own: &[u8], what: &str, _patience: Patience) -> Result<Vec<Vec<u8>>> {
        Ok(self.exchange(own, what)?.to_vec())
    }

    fn finished_step(&self, step: u64) {
        self.step.store(step, Ordering::Relaxed);
    }

    fn failed(&self, error: &Error) -> bool {
        let mut round = self.lock();
        round.failed.get_or_insert((self.world.rank, error.clone()));
        self.meeting.came.notify_all();
        self.world.rank == 0
    }

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }

    fn leave(&self) -> Result<()> {
        self.exchange(&[], "the end").map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_comes_by_rank() {
        let found = run(4, |ranks| {
            let rank = ranks.rank() as f32;
            let mut values = vec![rank, 1.0];
            ranks.sum(&mut values).unwrap();
            let parts: Vec<f32> = (0..4).map(|to| rank * 10.0 + to as f32).collect();
            let gathered = ranks.gather(&[ranks.rank() as u8], "a test", Patience::Limited).unwrap();
            (values, ranks.all_to_all(&parts).unwrap(), ranks.all_gather(&[rank]).unwrap(), gathered)
        });
        for (rank, (sum, came, all, bytes)) in found.into_iter().enumerate() {
            let rank = rank as f32;
            assert_eq!(sum, [6.0, 4.0]);
            assert_eq!(came, [rank, 10.0 + rank, 20.0 + rank, 30.0 + rank]);
            assert_eq!(all, [0.0, 1.0, 2.0, 3.0]);
            assert_eq!(bytes, [[0], [1], [2], [3]]);
        }
    }

    #[test]
    fn who_does_not_come_is_named_with_the_last_step() {
        let found = within(3, Duration::from_millis(50), |ranks| {
            ranks.finished_step(7);
            if ranks.rank() == 1 { Ok(()) } else { ranks.meet("a test", Patience::Limited) }
        });
        for rank in [0, 2] {
            let e = found[rank].clone().unwrap_err();
            assert!(e.what.starts_with("rank 1 (thread-1) of 3 did not come to a test within 0.05 s"), "{e}");
            assert!(e.what.ends_with("is 7") && e.remedy.contains("CALM_WAIT_SECONDS"), "{e}");
        }
    }

    #[test]
    fn who_fails_is_heard_by_those_who_wait() {
        let found = run(2, |ranks| {
            if ranks.rank() == 1 {
                assert!(!ranks.failed(&Error::new("the disk is full", "free some")));
                return None;
            }
            ranks.meet("a test", Patience::Limited).err()
        });
        let e = found[0].clone().unwrap();
        assert_eq!(
            (e.what.as_str(), e.remedy.as_str()),
            ("rank 1 (thread-1): the disk is full", "free some")
        );
    }

    #[test]
    fn a_difference_names_the_rank_and_both_sides() {
        let found = run(3, |ranks| ranks.same(if ranks.rank() == 2 { "b" } else { "a" }, "their letter"));
        let e = found[1].clone().unwrap_err();
        assert!(
            e.what.contains("differ in their letter: a on rank 0") && e.what.contains("b on rank 2"),
            "{e}"
        );
        assert!(
            run(3, |ranks| ranks.any(ranks.rank() == 2, "a test")).into_iter().all(|any| any == Ok(true))
        );
    }
}
