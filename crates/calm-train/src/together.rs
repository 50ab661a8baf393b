//! Several processes that evaluate a model together: each measures every W-th batch of held-out rows, and all add up what every
//! batch gave, in the order of one process. So each has the same results as one process, to the bit.

use calm_data::Batch;
use calm_eval::workers::Workers;
use calm_parallel::{Patience, Ranks};
use calm_run::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::share::told;

/// Batches that all processes measure between two exchanges; one each where there are more processes. What each keeps of them
/// until then, and gets of all others, stays small.
const BATCHES: usize = 8;

/// The processes of an evaluation, and who hears how many batches are done.
pub(crate) struct Together<'a, P: FnMut(usize)> {
    pub ranks: &'a Ranks,
    pub progress: P,
}

impl<'a> Together<'a, fn(usize)> {
    /// Where nobody listens.
    pub fn quiet(ranks: &'a Ranks) -> Self {
        Self { ranks, progress: |_| {} }
    }
}

impl<P: FnMut(usize)> Workers for Together<'_, P> {
    type Error = Error;

    fn each<R: Serialize + DeserializeOwned>(
        mut self,
        batches: impl Iterator<Item = Batch>,
        mut measure: impl FnMut(Batch) -> candle_core::Result<R>,
        mut add: impl FnMut(R),
    ) -> Result<()> {
        if self.ranks.is_alone() {
            return Ok(calm_eval::workers::Alone(self.progress).each(batches, measure, add)?);
        }
        let (rank, size) = (self.ranks.rank(), self.ranks.size());
        let between = size * (BATCHES / size).max(1);
        let mut batches = batches.enumerate();
        let mut done = 0;
        loop {
            let (before, mut own) = (done, Vec::new());
            for (i, batch) in batches.by_ref().take(between) {
                if i % size == rank {
                    own.push(measure(batch)?);
                    (self.progress)(i + 1);
                }
                done = i + 1;
            }
            let own = serde_json::to_vec(&(done, own)).map_err(candle_core::Error::wrap)?;
            let what = "the exchange of what was measured on held-out text";
            let all = self.ranks.gather(&own, what, Patience::WhileTheyAnswer).map_err(told)?;
            let mut measured = Vec::with_capacity(size);
            for (other, bytes) in all.iter().enumerate() {
                let (came, each): (usize, Vec<R>) =
                    serde_json::from_slice(bytes).map_err(candle_core::Error::wrap)?;
                if came != done {
                    return Err(other_rows(rank, done, other, came));
                }
                measured.push(each.into_iter());
            }
            for i in before..done {
                measured[i % size].next().into_iter().for_each(&mut add);
            }
            if done - before < between {
                return Ok(());
            }
        }
    }
}

fn other_rows(rank: usize, own: usize, other: usize, came: usize) -> Error {
    Error::user(
        format!(
            "{own} batches of held-out rows on rank {rank} and {came} on rank {other}: the processes read other rows"
        ),
        "all must read the same files with the same program; go on from the last checkpoint with --resume",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_parallel::threads;

    /// Batches that have nothing but their number.
    fn batches(number: usize) -> impl Iterator<Item = Batch> {
        (0..number).map(|i| Batch { rows: i, ..Batch::default() })
    }

    #[test]
    fn every_batch_is_measured_once_and_added_in_order_everywhere() {
        for (size, number) in [(1, 5), (2, 1), (2, 35), (3, 24), (3, 49), (4, 64), (4, 0), (8, 3)] {
            let found = threads::run(size, |ranks| {
                let (mut measured, mut added, mut heard) = (Vec::new(), Vec::new(), 0);
                let measure = |batch: Batch| {
                    measured.push(batch.rows);
                    Ok(batch.rows)
                };
                let workers = Together { ranks: &ranks, progress: |_| heard += 1 };
                workers.each(batches(number), measure, |i| added.push(i)).unwrap();
                assert_eq!(heard, measured.len());
                (measured, added)
            });
            let everything: Vec<usize> = (0..number).collect();
            let mut measured: Vec<usize> = found.iter().flat_map(|one| one.0.clone()).collect();
            measured.sort_unstable();
            assert_eq!(measured, everything, "{size} processes");
            let (most, least) = (number.div_ceil(size), number / size);
            for (own, added) in &found {
                assert!((least..=most).contains(&own.len()), "{} of {number} batches", own.len());
                assert_eq!(*added, everything);
            }
        }
    }

    #[test]
    fn processes_with_other_rows_end_with_one_error() {
        let ended = threads::run(2, |ranks| {
            let batches = batches(4 + ranks.rank());
            Together::quiet(&ranks).each(batches, |batch| Ok(batch.rows), |_| {})
        });
        for (rank, end) in ended.into_iter().enumerate() {
            let e = end.unwrap_err().to_string();
            assert!(e.contains("read other rows") && e.contains(&format!("on rank {rank}")), "{e}");
        }
    }
}
