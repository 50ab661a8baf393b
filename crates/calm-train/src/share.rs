//! Which rows of a global batch a process computes, and how they are cut. All of it follows from the configuration, the number
//! of processes and the step.
//!
//! ```text
//! rows of a batch      0 ......................... B      B = batch_rows, W processes, P pieces
//! reduction: engine    | rank 0 | rank 1 | ...     |      W pieces, as even as possible
//! reduction: fixed     | 0 | 1 | 2 | 3 | ... | P-1 |      P equal pieces, P/W of them each
//! micro-batches        |--|--|- piece ends one     |      of B/accumulation rows at most
//! ```

use std::ops::Range;

use calm_data::{Batch, RowSource};
use calm_nn::ParamStore;
use calm_parallel::{Ranks, tree};
use calm_run::config::{Reduction, StageConfig};
use calm_run::{Error, Result};
use candle_core::Device;

/// A process's part of a global batch.
pub(crate) struct Share {
    /// Its pieces, each in micro-batches.
    pub pieces: Vec<Vec<Batch>>,
    /// Targets of the whole batch.
    pub targets: usize,
    /// Hash of the rows of the whole batch.
    pub hash: String,
}

/// How global batches are cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Rows of each micro-batch, piece by piece, of all processes.
    pieces: Vec<Vec<Range<usize>>>,
    /// Which pieces are this process's.
    own: Range<usize>,
    rows: usize,
}

impl Cut {
    /// The cut for this process among others.
    ///
    /// # Errors
    /// Rows or pieces that cannot be shared out over so many processes.
    pub fn new(c: &StageConfig, ranks: &Ranks) -> Result<Self> {
        let (size, rank, rows) = (ranks.size(), ranks.rank(), c.batch_rows);
        if size > rows {
            return Err(Error::user(
                format!("{size} processes share a batch of {rows} rows: some would have none"),
                format!("start {rows} processes or fewer, or set a larger batch_rows"),
            ));
        }
        let (number, own) = match c.reduction {
            Reduction::Engine => (size, rank..rank + 1),
            Reduction::Fixed => {
                tree::check(c.pieces, size).map_err(told)?;
                let each = c.pieces / size;
                (c.pieces, rank * each..(rank + 1) * each)
            }
        };
        let most = (rows / c.accumulation).max(1);
        let micro = |piece: usize| -> Vec<Range<usize>> {
            let (from, to) = (piece * rows / number, (piece + 1) * rows / number);
            (from..to).step_by(most).map(|start| start..(start + most).min(to)).collect()
        };
        Ok(Self { pieces: (0..number).map(micro).collect(), own, rows })
    }

    /// This process's part of the batch at a place of the sequence. The whole batch is laid: its targets are counted and
    /// its rows hashed without a word between processes.
    ///
    /// # Errors
    /// Tokens on the disk that are not what was written.
    pub fn share(&self, plan: &dyn RowSource, place: u64, count: fn(&Batch) -> usize) -> Result<Share> {
        let lay = |rows: &Range<usize>| Ok(plan.batch(place, rows.clone(), self.rows)?);
        let lay_piece = |piece: &Vec<Range<usize>>| piece.iter().map(lay).collect::<Result<Vec<_>>>();
        let mut all = self.pieces.iter().map(lay_piece).collect::<Result<Vec<_>>>()?;
        let batches = || all.iter().flatten();
        let (targets, hash) = (batches().map(count).sum(), Batch::hash(batches()));
        Ok(Share { pieces: all.drain(self.own.clone()).collect(), targets, hash })
    }
}

/// Whether these processes can train a stage together, on this device.
///
/// # Errors
/// As [`Cut::new`]; GPUs that nothing joins; `reduction: fixed` on a GPU.
pub(crate) fn can_be_shared(c: &StageConfig, ranks: &Ranks, device: &Device) -> Result<()> {
    Cut::new(c, ranks)?;
    if device.is_cpu() {
        return Ok(());
    }
    let (what, remedy) = match c.reduction {
        Reduction::Fixed => (
            "reduction: fixed works on CPUs alone so far",
            "--device cpu, or leave `reduction` of the stage away",
        ),
        Reduction::Engine if ranks.is_alone() || ranks.joins_gpus() => return Ok(()),
        Reduction::Engine => return Err(not_joined()),
    };
    Err(Error::user(what, remedy))
}

/// Gradients that are on GPUs with nothing between them.
pub(crate) fn not_joined() -> Error {
    Error::user("nothing joins the GPUs of these processes", "--device cpu, or one process for the GPU")
}

/// Hash of all parameters, as short as a person compares it.
///
/// # Errors
/// What a GPU answers.
pub(crate) fn fingerprint(store: &ParamStore) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    for (name, values) in store.snapshot()? {
        hasher.update(name.as_bytes());
        for value in values.flatten_all()?.to_vec1::<f32>()? {
            hasher.update(&value.to_le_bytes());
        }
    }
    Ok(hasher.finalize().to_hex()[..12].to_owned())
}

/// What went wrong between processes, as an error of a run.
pub(crate) fn told(e: calm_parallel::Error) -> Error {
    Error::user(e.what, e.remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_parallel::threads;

    fn config(rows: usize, accumulation: usize, reduction: &str) -> StageConfig {
        let yaml = format!(
            "{{ steps: 1, batch_rows: {rows}, context: 4, learning_rate: 1.0, accumulation: {accumulation}, \
             reduction: {reduction} }}"
        );
        serde_yaml::from_str(&yaml).unwrap()
    }

    fn own(cut: &Cut) -> Vec<Vec<Range<usize>>> {
        cut.pieces[cut.own.clone()].to_vec()
    }

    #[test]
    fn every_row_is_computed_once_and_as_few_at_a_time_as_asked() {
        for (rows, accumulation, reduction) in
            [(8, 1, "engine"), (8, 4, "engine"), (12, 3, "engine"), (8, 2, "fixed"), (16, 1, "fixed")]
        {
            let c = config(rows, accumulation, reduction);
            for size in [1, 2, 3, 4, 8] {
                if reduction == "fixed" && size == 3 {
                    continue;
                }
                let all = threads::run(size, |ranks| own(&Cut::new(&c, &ranks).unwrap()));
                let all: Vec<Range<usize>> = all.into_iter().flatten().flatten().collect();
                assert!(all.iter().all(|micro| micro.len() <= rows / accumulation && !micro.is_empty()));
                let rows_of_all: Vec<usize> = all.into_iter().flatten().collect();
                assert_eq!(rows_of_all, (0..rows).collect::<Vec<_>>(), "{size} processes");
            }
        }
    }

    #[test]
    fn one_process_cuts_as_ever() {
        let cut = Cut::new(&config(8, 4, "engine"), &Ranks::alone()).unwrap();
        assert_eq!(own(&cut), [vec![0..2, 2..4, 4..6, 6..8]]);
    }

    #[test]
    fn pieces_and_their_micro_batches_do_not_depend_on_the_number_of_processes() {
        let c = config(16, 2, "fixed");
        let cuts = |size| threads::run(size, |ranks| Cut::new(&c, &ranks).unwrap().pieces);
        let one = cuts(1).remove(0);
        assert_eq!(one.len(), 8);
        for size in [2, 4, 8] {
            assert!(cuts(size).iter().all(|pieces| *pieces == one));
        }
    }

    #[test]
    fn more_processes_than_rows_or_pieces_are_refused() {
        let refused = |c: &StageConfig, size| {
            let all = threads::run(size, |ranks| Cut::new(c, &ranks).err().map(|e| e.to_string()));
            all.into_iter().all(|e| e.is_some_and(|e| e.contains(&format!("{size} processes"))))
        };
        assert!(refused(&config(2, 1, "engine"), 3));
        assert!(refused(&config(16, 1, "fixed"), 3) && refused(&config(16, 1, "fixed"), 16));
    }
}
