//! What an engine between processes gives, and how it says what went wrong.

use std::fmt;

use crate::error::{Error, Result};
use crate::world::World;

/// What a wait does when its time limit is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Ends the run: in a step nobody takes that long.
    Limited,
    /// Goes on waiting as long as those who have not come answer: rank 0 prepares text, or scores.
    WhileTheyAnswer,
}

/// What an engine gives. All processes call the same methods in the same order; every wait ends. Values go as bytes where an engine
/// has no way of its own for them.
///
/// # Errors
/// Of every method: somebody did not come within the time limit, or failed; the message names who. After an error nothing
/// but [`Collective::failed`] and [`Collective::abort`] may follow.
#[expect(clippy::missing_errors_doc, reason = "those of every method are the same, and stand above")]
pub trait Collective: Send + Sync + fmt::Debug {
    /// Who this is.
    fn world(&self) -> &World;

    /// Names of the machines, by rank.
    fn hosts(&self) -> &[String];

    /// Replaces `values` by their sums over all processes, in the engine's order: the same bits everywhere, and again
    /// with the same number of processes.
    fn sum(&self, values: &mut [f32]) -> Result<()> {
        let all = of_all(self, values, "the sum of gradients")?;
        for (i, value) in values.iter_mut().enumerate() {
            *value = all.iter().map(|one| one[i]).sum();
        }
        Ok(())
    }

    /// As [`Collective::sum`], while this process goes on: sums are made in the order in which they are begun, by all alike.
    fn begin_sum(&self, mut values: Vec<f32>) -> Pending {
        let done = self.sum(&mut values);
        Pending::new(move || done.map(|()| values))
    }

    /// Sends the r-th of W equal parts of `values` to rank r. Returns what came, by rank: as many values.
    fn all_to_all(&self, values: &[f32]) -> Result<Vec<f32>> {
        let (own, rank) = (values.len() / self.world().size, self.world().rank);
        let all = of_all(self, values, "the exchange of gradients")?;
        Ok(all.iter().flat_map(|one| &one[rank * own..(rank + 1) * own]).copied().collect())
    }

    /// The sums over all processes of the r-th of W equal parts of `values`, on rank r, in the engine's order.
    fn reduce_scatter(&self, values: &[f32]) -> Result<Vec<f32>> {
        let own = values.len() / self.world().size;
        let came = self.all_to_all(values)?;
        Ok((0..own).map(|i| came.iter().skip(i).step_by(own).sum()).collect())
    }

    /// Everybody's values, by rank; all give as many.
    fn all_gather(&self, own: &[f32]) -> Result<Vec<f32>> {
        Ok(of_all(self, own, "the exchange of sums")?.concat())
    }

    /// Everybody's bytes, by rank. `what` names the place for the message of one who waits in vain.
    fn gather(&self, own: &[u8], what: &str, patience: Patience) -> Result<Vec<Vec<u8>>>;

    /// An error of an exchange between GPUs, with those who do not answer any more, where that can be known.
    fn explained(&self, error: Error, _what: &str) -> Error {
        error
    }

    /// Notes the step that was finished last, for messages.
    fn finished_step(&self, step: u64);

    /// This process failed by itself. True: it has to say so itself. Else whoever speaks for all has heard it, and ends this
    /// process.
    fn failed(&self, error: &Error) -> bool;

    /// Ends all processes at once, with this exit code.
    fn abort(&self, code: i32) -> !;

    /// Leaves in peace, together with the others.
    fn leave(&self) -> Result<()>;
}

/// Everybody's values, by rank, as bytes.
fn of_all(engine: &(impl Collective + ?Sized), own: &[f32], what: &str) -> Result<Vec<Vec<f32>>> {
    let bytes: Vec<u8> = own.iter().flat_map(|x| x.to_le_bytes()).collect();
    let read = |bytes: &Vec<u8>| bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    Ok(engine.gather(&bytes, what, Patience::Limited)?.iter().map(read).collect())
}

/// A sum that was begun.
pub struct Pending(Box<dyn FnOnce() -> Result<Vec<f32>> + Send>);

impl Pending {
    /// One that `wait` waits for.
    pub fn new(wait: impl FnOnce() -> Result<Vec<f32>> + Send + 'static) -> Self {
        Self(Box::new(wait))
    }

    /// The sums.
    ///
    /// # Errors
    /// As [`Collective`].
    pub fn wait(self) -> Result<Vec<f32>> {
        (self.0)()
    }
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pending")
    }
}

/// How an error begins of a wait between GPUs that was given up.
#[cfg(feature = "nccl")]
pub(crate) const IN_VAIN: &str = "somebody did not come";

/// How an error begins of an engine that has noticed by itself that another process is gone.
#[cfg(any(feature = "mpi", feature = "nccl"))]
pub(crate) const LOST: &str = "NCCL lost another process";

/// Who did not come, in words, with whether they still answer, where that is known. Without a limit: an engine has noticed that
/// they are gone.
pub(crate) fn missing(
    hosts: &[String],
    ranks: &[(usize, Option<bool>)],
    what: &str,
    step: u64,
    limit: Option<std::time::Duration>,
) -> Error {
    let who: Vec<String> = ranks
        .iter()
        .map(|(rank, answering)| {
            let answers = match answering {
                None => "",
                Some(true) => ", still answers",
                Some(false) => ", does not answer",
            };
            format!("rank {rank} ({}{answers})", hosts.get(*rank).map_or("?", String::as_str))
        })
        .collect();
    let remedy = "what was saved is whole: go on with --resume, on fewer processes too";
    let (fate, remedy) = match limit.map(|limit| limit.as_secs_f64()) {
        Some(seconds) => (
            format!("did not come to {what} within {seconds} s"),
            format!("{remedy}; {}=SECONDS waits longer", crate::limit::LIMIT),
        ),
        None => (format!("ended during {what}"), remedy.to_owned()),
    };
    Error::new(
        format!("{} of {} {fate}; the last step that all finished is {step}", who.join(", "), hosts.len()),
        remedy,
    )
}

/// What another process failed of, in words.
pub(crate) fn failure(hosts: &[String], rank: usize, error: Error) -> Error {
    let host = hosts.get(rank).map_or("?", String::as_str);
    Error { what: format!("rank {rank} ({host}): {}", error.what), remedy: error.remedy }
}
