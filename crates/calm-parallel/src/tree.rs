//! Sums whose bits do not show the number of processes.
//!
//! A fixed number P of pieces is added pairwise: ((0+1)+(2+3))+((4+5)+(6+7)). Each of W processes holds P/W pieces that follow
//! each other, W and P powers of two: [`Stack`] adds the part of the tree below a process, [`across`] the rest. That a+b is b+a to
//! the bit is all that is needed of the numbers.

use crate::error::{Error, Result};
use crate::parts::Parts;
use crate::ranks::Ranks;

/// Checks that so many pieces can be shared out over so many processes.
///
/// # Errors
/// They cannot.
pub fn check(pieces: usize, processes: usize) -> Result<()> {
    if pieces.is_power_of_two() && processes.is_power_of_two() && processes <= pieces {
        return Ok(());
    }
    let possible: Vec<String> =
        (0..).map(|n| 1 << n).take_while(|n| *n <= pieces).map(|n: usize| n.to_string()).collect();
    Err(Error::new(
        format!("reduction: fixed with {pieces} pieces cannot be shared out over {processes} processes"),
        format!(
            "start one of {} processes, or set another number of pieces before the run begins",
            possible.join(", ")
        ),
    ))
}

/// Pieces that are added as they come: of each level of the tree at most one sum waits for its partner.
#[derive(Debug, Default)]
pub struct Stack(Vec<(u32, Vec<f32>)>);

impl Stack {
    /// Takes the next piece.
    ///
    /// # Panics
    /// If it has another length than those before.
    pub fn push(&mut self, mut values: Vec<f32>) {
        let mut level = 0;
        while let Some((_, earlier)) = self.0.pop_if(|(waiting, _)| *waiting == level) {
            values = add(earlier, &values);
            level += 1;
        }
        self.0.push((level, values));
    }

    /// The sum of all pieces, whose number is a power of two; none of none.
    pub fn sum(self) -> Option<Vec<f32>> {
        self.0.into_iter().rev().map(|(_, values)| values).reduce(|later, earlier| add(earlier, &later))
    }
}

fn add(mut to: Vec<f32>, values: &[f32]) -> Vec<f32> {
    assert_eq!(to.len(), values.len(), "pieces of one length");
    to.iter_mut().zip(values).for_each(|(to, value)| *to += value);
    to
}

/// Replaces `values` by their sum over all processes, as a tree over ranks: each process adds one W-th of them.
///
/// # Errors
/// As [`crate::Collective`].
pub fn across(ranks: &Ranks, values: &mut [f32]) -> Result<()> {
    let parts = Parts::new(values.len(), 1, ranks.size());
    scatter(ranks, values, &parts)?;
    parts.all_gather(ranks, values)
}

/// The first half of it: replaces the own part of `values` by its sum over all processes; what is left in other parts is no sum.
///
/// # Errors
/// As [`crate::Collective`].
pub fn scatter(ranks: &Ranks, values: &mut [f32], parts: &Parts) -> Result<()> {
    if ranks.is_alone() {
        return Ok(());
    }
    parts.scatter(ranks, values, |slices| {
        let each = slices.len() / ranks.size();
        let mut stack = Stack::default();
        ranks.all_to_all(&slices)?.chunks(each).for_each(|from| stack.push(from.to_vec()));
        Ok(stack.sum().unwrap_or_default())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads;

    /// Values whose sum depends on the order.
    fn piece(p: usize) -> Vec<f32> {
        (0..1003).map(|i| ((i * 7919 + p * 104_729) % 10_007) as f32 * 0.37 - 1234.5).collect()
    }

    #[test]
    fn the_number_of_processes_does_not_show_in_the_bits() {
        let mut sums = Vec::new();
        for size in [1, 2, 4, 8] {
            let all = threads::run(size, |ranks| {
                let mut stack = Stack::default();
                let each = 8 / size;
                (ranks.rank() * each..(ranks.rank() + 1) * each).for_each(|p| stack.push(piece(p)));
                let mut sum = stack.sum().unwrap();
                across(&ranks, &mut sum).unwrap();
                sum.iter().map(|x| x.to_bits()).collect::<Vec<_>>()
            });
            assert!(all.iter().all(|one| *one == all[0]), "all ranks have the same");
            sums.push(all[0].clone());
        }
        assert!(sums.iter().all(|one| *one == sums[0]));
        let mut in_order = piece(0);
        (1..8).for_each(|p| in_order = add(std::mem::take(&mut in_order), &piece(p)));
        let in_order: Vec<u32> = in_order.iter().map(|x| x.to_bits()).collect();
        assert_ne!(sums[0], in_order, "else this test would show nothing");
    }

    #[test]
    fn what_cannot_be_shared_out_is_refused_with_what_can() {
        assert!([1, 2, 4, 8].iter().all(|n| check(8, *n).is_ok()));
        let e = check(8, 3).unwrap_err();
        assert!(e.what.contains("3 processes") && e.remedy.contains("1, 2, 4, 8"), "{e:?}");
        assert!(check(8, 16).is_err() && check(6, 2).is_err());
    }
}
