//! A list of numbers shared out over processes: W parts that follow each other, the r-th of them rank r's own.
//!
//! What goes between processes goes in slices of the parts, so that what an exchange needs beside the list stays small:
//!
//! ```text
//! list      | part 0 ...... | part 1 ...... | part 2 ......  |      W = 3; the last parts may be shorter, or empty
//! exchange  [   ]           [   ]           [   ]                  first slice of each, filled up with zeros
//!                [   ]           [   ]           [   ]             second
//! ```

use std::ops::Range;

use crate::error::Result;
use crate::ranks::Ranks;

/// Values of a slice, for every process.
const SLICE: usize = 1 << 18;

/// How a list is shared out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    length: usize,
    each: usize,
    size: usize,
}

impl Parts {
    /// Parts for so many processes, each of whole blocks of `block` values, but for the end of the list.
    pub fn new(length: usize, block: usize, size: usize) -> Self {
        let blocks = length.div_ceil(block.max(1));
        Self { length, each: blocks.div_ceil(size.max(1)) * block.max(1), size: size.max(1) }
    }

    /// The part of a rank.
    pub fn of(&self, rank: usize) -> Range<usize> {
        (rank * self.each).min(self.length)..((rank + 1) * self.each).min(self.length)
    }

    /// The slices of a part, by their place in it.
    fn slices(&self) -> impl Iterator<Item = Range<usize>> {
        let each = self.each;
        (0..each).step_by(SLICE).map(move |from| from..(from + SLICE).min(each))
    }

    /// Where a slice of a rank's part lies in the list.
    fn place(&self, rank: usize, slice: &Range<usize>) -> Range<usize> {
        let part = self.of(rank);
        (part.start + slice.start).min(part.end)..(part.start + slice.end).min(part.end)
    }

    /// The same slice of all parts, all of one length.
    fn packed(&self, values: &[f32], slice: &Range<usize>) -> Vec<f32> {
        let mut packed = Vec::with_capacity(slice.len() * self.size);
        for rank in 0..self.size {
            packed.extend_from_slice(&values[self.place(rank, slice)]);
            packed.resize((rank + 1) * slice.len(), 0.0);
        }
        packed
    }

    /// Replaces the own part of `values` by what `sum` makes of a slice of all parts, from everybody; what is left in other
    /// parts is no sum.
    ///
    /// # Errors
    /// Those of `sum`.
    pub(crate) fn scatter(
        &self,
        ranks: &Ranks,
        values: &mut [f32],
        sum: impl Fn(Vec<f32>) -> Result<Vec<f32>>,
    ) -> Result<()> {
        for slice in self.slices() {
            let sums = sum(self.packed(values, &slice))?;
            let own = self.place(ranks.rank(), &slice);
            let length = own.len();
            values[own].copy_from_slice(&sums[..length]);
        }
        Ok(())
    }

    /// Replaces the own part of `values` by its sums over all processes, in the engine's order; what is left in other parts is
    /// no sum.
    ///
    /// # Errors
    /// As [`crate::Collective`].
    pub fn reduce_scatter(&self, ranks: &Ranks, values: &mut [f32]) -> Result<()> {
        if ranks.is_alone() {
            return Ok(());
        }
        self.scatter(ranks, values, |slice| ranks.reduce_scatter(&slice))
    }

    /// Replaces all other parts of `values` by those of their owners.
    ///
    /// # Errors
    /// As [`crate::Collective`].
    pub fn all_gather(&self, ranks: &Ranks, values: &mut [f32]) -> Result<()> {
        if ranks.is_alone() {
            return Ok(());
        }
        for slice in self.slices() {
            let mine = values[self.place(ranks.rank(), &slice)].to_vec();
            self.put(ranks, &slice, mine, values)?;
        }
        Ok(())
    }

    /// The whole list where this process [leads](Ranks::leads), from everybody's own part; an empty one elsewhere.
    ///
    /// # Errors
    /// As [`crate::Collective`].
    pub fn gather(&self, ranks: &Ranks, own: &[f32]) -> Result<Vec<f32>> {
        if ranks.is_alone() {
            return Ok(own.to_vec());
        }
        let mut list = vec![0.0; if ranks.leads() { self.length } else { 0 }];
        let start = self.of(ranks.rank()).start;
        for slice in self.slices() {
            let mine = self.place(ranks.rank(), &slice);
            self.put(ranks, &slice, own[mine.start - start..mine.end - start].to_vec(), &mut list)?;
        }
        Ok(list)
    }

    /// Puts everybody's slice into its place in `list`, unless that is empty.
    fn put(&self, ranks: &Ranks, slice: &Range<usize>, mut mine: Vec<f32>, list: &mut [f32]) -> Result<()> {
        mine.resize(slice.len(), 0.0);
        let all = ranks.all_gather(&mine)?;
        if list.is_empty() {
            return Ok(());
        }
        for (rank, came) in all.chunks(slice.len()).enumerate() {
            let place = self.place(rank, slice);
            let length = place.len();
            list[place].copy_from_slice(&came[..length]);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::threads;

    fn values(rank: usize, length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 7919 + rank * 104_729) % 10_007) as f32 * 0.37 - 1234.5).collect()
    }

    #[test]
    fn parts_are_whole_blocks_that_follow_each_other_and_hold_everything() {
        for (length, block, size) in
            [(10, 1, 3), (100, 16, 4), (5, 16, 4), (64, 16, 4), (0, 16, 2), (1, 1, 8)]
        {
            let parts = Parts::new(length, block, size);
            let all: Vec<usize> = (0..size).flat_map(|rank| parts.of(rank)).collect();
            assert_eq!(all, (0..length).collect::<Vec<_>>());
            let most = length.div_ceil(block).div_ceil(size) * block;
            for rank in 0..size {
                let part = parts.of(rank);
                assert!(part.len() <= most && (part.is_empty() || part.start.is_multiple_of(block)));
            }
        }
    }

    #[test]
    fn what_is_scattered_and_gathered_again_is_the_sum() {
        // Several slices, and a last part that is shorter.
        for length in [3 * SLICE + 5, 1003, 2] {
            let found = threads::run(3, |ranks| {
                let parts = Parts::new(length, 1, 3);
                let mut own = values(ranks.rank(), length);
                parts.reduce_scatter(&ranks, &mut own).unwrap();
                let part = own[parts.of(ranks.rank())].to_vec();
                parts.all_gather(&ranks, &mut own).unwrap();
                let mut sum = values(ranks.rank(), length);
                ranks.sum(&mut sum).unwrap();
                assert_eq!(own, sum);
                (parts.gather(&ranks, &part).unwrap(), sum)
            });
            assert_eq!(found[0].0, found[0].1);
            assert!(found[1].0.is_empty() && found[2].0.is_empty(), "only who leads has it");
        }
    }
}
