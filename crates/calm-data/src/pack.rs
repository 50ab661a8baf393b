//! Segments into rows: which windows of which documents share a row of S chunk positions.

use std::collections::BTreeMap;

use crate::permutation::mix2;

/// Consecutive chunks of one document in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    pub document: u32,
    /// First chunk.
    pub start: u32,
    pub len: u32,
    /// Place in the segment of the first chunk that no earlier segment held.
    pub fresh: u32,
}

/// Rows of segments: row `r` holds `segments[starts[r]..starts[r + 1]]`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rows {
    pub segments: Vec<Segment>,
    pub starts: Vec<usize>,
}

impl Rows {
    pub fn len(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    pub fn row(&self, r: usize) -> &[Segment] {
        &self.segments[self.starts[r]..self.starts[r + 1]]
    }

    fn from_rows(rows: impl Iterator<Item = Vec<Segment>>) -> Self {
        let mut packed = Self { segments: Vec::new(), starts: vec![0] };
        for row in rows {
            packed.segments.extend(row);
            packed.starts.push(packed.segments.len());
        }
        packed
    }
}

/// Best fit, longest segments first: each goes to the row with the least space that still holds it. Among
/// segments of one length the seed decides the order, so that no row is a run of neighbouring documents.
pub(crate) fn best_fit(segments: Vec<Segment>, context: usize, seed: u64) -> Rows {
    let mut order: Vec<(usize, u64, usize)> = segments
        .iter()
        .enumerate()
        .map(|(i, s)| (context - s.len as usize, mix2(seed, i as u64), i))
        .collect();
    order.sort_unstable();
    let mut rows: Vec<Vec<Segment>> = Vec::new();
    let mut open: BTreeMap<usize, Vec<usize>> = BTreeMap::new(); // space left -> rows
    for (_, _, i) in order {
        let segment = segments[i];
        let len = segment.len as usize;
        let space = open.range(len..).next().map(|(&space, _)| space);
        let (row, space) = match space {
            Some(space) => {
                let list = open.entry(space).or_default();
                let row = list.pop().unwrap_or_default();
                if list.is_empty() {
                    open.remove(&space);
                }
                (row, space)
            }
            None => {
                rows.push(Vec::new());
                (rows.len() - 1, context)
            }
        };
        rows[row].push(segment);
        if space > len {
            open.entry(space - len).or_default().push(row);
        }
    }
    Rows::from_rows(rows.into_iter())
}

/// In the given order: a row is closed as soon as the next segment does not fit.
pub(crate) fn in_order(segments: impl Iterator<Item = Segment>, context: usize) -> Rows {
    let mut rows: Vec<Vec<Segment>> = Vec::new();
    let mut used = context;
    for segment in segments {
        let len = segment.len as usize;
        if used + len > context {
            rows.push(Vec::new());
            used = 0;
        }
        if let Some(row) = rows.last_mut() {
            row.push(segment);
        }
        used += len;
    }
    Rows::from_rows(rows.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn segments(lengths: &[u32]) -> Vec<Segment> {
        (0..).zip(lengths).map(|(i, &len)| Segment { document: i, start: 0, len, fresh: 0 }).collect()
    }

    proptest! {
        #[test]
        fn every_segment_is_in_one_row_and_no_row_overflows(
            lengths in prop::collection::vec(1u32..=16, 0..80), seed: u64, ordered: bool,
        ) {
            let all = segments(&lengths);
            let rows = if ordered { in_order(all.clone().into_iter(), 16) } else { best_fit(all, 16, seed) };
            let mut seen = vec![0; lengths.len()];
            for r in 0..rows.len() {
                prop_assert!(!rows.row(r).is_empty());
                prop_assert!(rows.row(r).iter().map(|s| s.len).sum::<u32>() <= 16);
                for s in rows.row(r) { seen[s.document as usize] += 1; }
            }
            prop_assert!(seen.iter().all(|&n| n == 1));
            if ordered {
                prop_assert!(rows.segments.windows(2).all(|w| w[0].document < w[1].document));
            }
        }
    }

    #[test]
    fn best_fit_leaves_little_empty() {
        let lengths: Vec<u32> = (0..2000).map(|i| 1 + (mix2(3, i) % 64) as u32).collect();
        let rows = best_fit(segments(&lengths), 64, 1);
        let filled = lengths.iter().sum::<u32>() as f64 / (rows.len() * 64) as f64;
        assert!(filled > 0.97, "only {filled} filled");
    }
}
