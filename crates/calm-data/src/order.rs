//! The order of rows: a function of seed and place, for any number of sections, with little state.
//!
//! ```text
//! sections   0 1 2 3 4 5 6 7        of a token file: runs of consecutive documents
//! permuted   5 2 7 | 0 3 6 | 4 1    anew in each epoch; GROUP of them are open together
//! rows       each section is packed by itself; the rows of a group are mixed
//! ```
//!
//! To find a row is to know how many rows the groups before it have. How many rows a section has depends on the lengths
//! of its documents and the layout alone; it is found when a section is first passed, and kept beside the token file.
//! A file of one section is one group in every epoch: all its rows are mixed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::chunks::Layout;
use crate::error::Result;
use crate::pack::{self, Rows};
use crate::permutation::{mix, mix2, permute};
use crate::segments::segments;
use crate::token_file::{TokenFile, write_atomically};

/// Sections whose rows are mixed.
const GROUP: usize = 16;

/// The rows of some sections of a token file, in their order.
pub(crate) struct RowOrder {
    file: TokenFile,
    layout: Layout,
    seed: u64,
    first: usize,
    /// Units that are packed by themselves.
    sections: usize,
    /// Sections of the file in each of them.
    span: usize,
    state: Mutex<State>,
    /// Where numbers of rows are kept.
    counts: Option<PathBuf>,
}

struct State {
    /// Rows of each section; none where that is not known yet.
    rows: Vec<Option<u32>>,
    /// Rows of all sections, when all are known.
    all: Option<u64>,
    unknown: usize,
    unsaved: usize,
    /// First row of each group of an epoch, as far as they were passed; the last is the end of those.
    epoch: u64,
    starts: Vec<u64>,
    open: BTreeMap<usize, Arc<Rows>>,
}

/// Where a row lies.
struct Place {
    epoch: u64,
    group: usize,
    /// Place in the group before its rows are mixed.
    row: u64,
}

impl RowOrder {
    /// The rows of these sections.
    ///
    /// # Errors
    /// The first group cannot be read.
    pub(crate) fn new(
        file: &TokenFile,
        sections: std::ops::Range<usize>,
        layout: Layout,
        seed: u64,
    ) -> Result<Self> {
        Self::spanning(file, sections, 1, layout, seed)
    }

    /// All rows of a file, packed as one section.
    ///
    /// # Errors
    /// A section cannot be read.
    pub(crate) fn whole(file: &TokenFile, layout: Layout, seed: u64) -> Result<Self> {
        Self::spanning(file, 0..file.sections(), file.sections(), layout, seed)
    }

    fn spanning(
        file: &TokenFile,
        sections: std::ops::Range<usize>,
        span: usize,
        layout: Layout,
        seed: u64,
    ) -> Result<Self> {
        let count = sections.len() / span;
        let counts = file.path().filter(|_| count > 1).map(|path| {
            let Layout { chunk_size, context, bos_chunk } = layout;
            path.with_extension(format!("rows-{chunk_size}-{context}-{}", u8::from(bos_chunk)))
        });
        let rows =
            counts.as_ref().and_then(|path| read_counts(path, count)).unwrap_or_else(|| vec![None; count]);
        let order = Self {
            file: file.clone(),
            layout,
            seed,
            first: sections.start,
            sections: count,
            span,
            state: Mutex::new(State {
                unknown: rows.iter().filter(|n| n.is_none()).count(),
                rows,
                all: None,
                unsaved: 0,
                epoch: 0,
                starts: vec![0],
                open: BTreeMap::new(),
            }),
            counts,
        };
        order.open_group(0, 0)?;
        Ok(order)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn groups(&self) -> usize {
        self.sections.div_ceil(GROUP)
    }

    /// The sections of a group, counted from this order's first.
    fn group(&self, epoch: u64, group: usize) -> impl Iterator<Item = usize> {
        let (n, key) = (self.sections as u64, mix2(self.seed, epoch));
        let places = group * GROUP..((group + 1) * GROUP).min(self.sections);
        places.map(move |place| permute(place as u64, n, key) as usize)
    }

    /// Lays the documents of a section into rows.
    fn pack(&self, section: usize) -> Result<Rows> {
        let numbers = self.numbers(section);
        numbers.clone().try_for_each(|number| self.file.prove(number))?;
        let documents = self.file.section_documents(numbers.start).start
            ..self.file.section_documents(numbers.end - 1).end;
        let segments = segments(&self.file, self.layout, documents, 1, None).collect();
        Ok(pack::best_fit(segments, self.layout.context, self.seed ^ mix(section as u64)))
    }

    /// The sections of the file that are packed together.
    fn numbers(&self, section: usize) -> std::ops::Range<usize> {
        let first = self.first + section * self.span;
        first..first + self.span
    }

    fn release(&self, section: usize) {
        self.numbers(section).for_each(|number| self.file.release(number));
    }

    /// A section's rows, laid now if they are not open.
    fn open(&self, state: &mut State, section: usize) -> Result<Arc<Rows>> {
        if let Some(rows) = state.open.get(&section) {
            return Ok(Arc::clone(rows));
        }
        let rows = Arc::new(self.pack(section)?);
        state.open.insert(section, Arc::clone(&rows));
        self.count(state, section, rows.len());
        Ok(rows)
    }

    fn count(&self, state: &mut State, section: usize, rows: usize) {
        if state.rows[section].replace(rows as u32).is_none() {
            state.unsaved += 1;
            state.unknown -= 1;
        }
        // A cache that cannot be written costs time later, and nothing now.
        if let Some(path) = self.counts.as_ref().filter(|_| state.unsaved >= GROUP.min(self.sections)) {
            let _ = write_counts(path, &state.rows);
            state.unsaved = 0;
        }
    }

    fn rows_of(&self, state: &mut State, section: usize) -> Result<u64> {
        if let Some(rows) = state.rows[section] {
            return Ok(u64::from(rows));
        }
        let rows = self.pack(section)?.len();
        self.release(section);
        self.count(state, section, rows);
        Ok(rows as u64)
    }

    fn open_group(&self, epoch: u64, group: usize) -> Result<()> {
        let mut state = self.state();
        self.group(epoch, group).try_for_each(|section| self.open(&mut state, section).map(drop))
    }

    /// Where row `row` of the endless sequence lies.
    fn locate(&self, state: &mut State, row: u64) -> Result<Place> {
        let groups = self.groups();
        let (mut epoch, mut left) = (0, row);
        loop {
            if state.all.is_none() && state.unknown == 0 {
                state.all = Some(state.rows.iter().flatten().map(|n| u64::from(*n)).sum());
            }
            if let Some(all) = state.all {
                (epoch, left) = (row / all.max(1), row % all.max(1));
            }
            if state.epoch != epoch {
                (state.epoch, state.starts) = (epoch, vec![0]);
            }
            while state.starts.len() <= groups && state.starts.last().is_some_and(|end| *end <= left) {
                let mut end = state.starts.last().copied().unwrap_or(0);
                for section in self.group(epoch, state.starts.len() - 1).collect::<Vec<_>>() {
                    end += self.rows_of(state, section)?;
                }
                state.starts.push(end);
            }
            if state.starts.last().is_some_and(|end| left < *end) {
                let group = state.starts.partition_point(|start| *start <= left) - 1;
                return Ok(Place { epoch, group, row: left - state.starts[group] });
            }
            // The first epoch was passed: all numbers are known now.
        }
    }

    /// The rows of the sections that row `row` is mixed from, and which of them it is.
    pub(crate) fn row(&self, row: u64) -> Result<(Arc<Rows>, usize)> {
        let state = &mut *self.state();
        let place = self.locate(state, row)?;
        let all = state.starts[place.group + 1] - state.starts[place.group];
        let key = mix2(self.seed, place.epoch) ^ mix(place.group as u64);
        let mut mixed = permute(place.row, all, key);
        let group: Vec<usize> = self.group(place.epoch, place.group).collect();
        self.forget(state, &place, &group);
        for section in group {
            let rows = self.rows_of(state, section)?;
            if mixed < rows {
                return Ok((self.open(state, section)?, mixed as usize));
            }
            mixed -= rows;
        }
        unreachable_row()
    }

    /// Closes the sections of groups that were passed.
    fn forget(&self, state: &mut State, place: &Place, group: &[usize]) {
        if state.open.len() <= group.len() {
            return;
        }
        let (epoch, next) = self.after(place);
        let kept: Vec<usize> = self.group(epoch, next).chain(group.iter().copied()).collect();
        let gone: Vec<usize> = state.open.keys().copied().filter(|section| !kept.contains(section)).collect();
        for section in gone {
            state.open.remove(&section);
            self.release(section);
        }
    }

    fn after(&self, place: &Place) -> (u64, usize) {
        match place.group + 1 {
            group if group < self.groups() => (place.epoch, group),
            _ => (place.epoch + 1, 0),
        }
    }

    /// Opens one more section of the group after that of row `row`, if one is closed: done between batches, nobody waits
    /// for all of them at once.
    pub(crate) fn look_ahead(&self, row: u64) -> Result<()> {
        if self.groups() == 1 {
            return Ok(());
        }
        let state = &mut *self.state();
        let place = self.locate(state, row)?;
        let (epoch, group) = self.after(&place);
        let closed = self.group(epoch, group).find(|section| !state.open.contains_key(section));
        closed.map_or(Ok(()), |section| self.open(state, section).map(drop))
    }

    /// Rows of an epoch, for which every section has to be passed.
    pub(crate) fn all_rows(&self) -> Result<u64> {
        let state = &mut *self.state();
        (0..self.sections).map(|section| self.rows_of(state, section)).sum()
    }

    /// Of the sections that are open: their segments, and the places of their rows.
    pub(crate) fn open_segments<T>(&self, of: impl Fn(&Rows) -> T) -> Vec<T> {
        self.state().open.values().map(|rows| of(rows)).collect()
    }
}

/// The rows of a group are those of its sections.
fn unreachable_row() -> Result<(Arc<Rows>, usize)> {
    Err(crate::error::Error::Layout("a row lies behind the end of its group".into()))
}

/// Numbers of rows with their hash, as bytes.
fn read_counts(path: &std::path::Path, sections: usize) -> Option<Vec<Option<u32>>> {
    let bytes = std::fs::read(path).ok()?;
    let (hash, counts) = bytes.split_at_checked(32)?;
    let whole = counts.len() == 4 * sections && blake3::hash(counts).as_bytes() == hash;
    let count = |bytes: &[u8]| {
        let count: u32 = bytemuck::pod_read_unaligned(bytes);
        (count != u32::MAX).then_some(count)
    };
    whole.then(|| counts.chunks_exact(4).map(count).collect())
}

fn write_counts(path: &std::path::Path, rows: &[Option<u32>]) -> Result<()> {
    let counts: Vec<u8> = rows.iter().flat_map(|n| n.unwrap_or(u32::MAX).to_le_bytes()).collect();
    write_atomically(path, &[blake3::hash(&counts).as_bytes(), &counts])
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Sections of so many documents each, all of which have the same bytes.
    fn repeated(sections: usize, documents: usize) -> TokenFile {
        let length = |i: u64| (mix2(3, i) % 40) as usize;
        let documents: Vec<_> = (0..documents as u64).map(|i| (vec![7; length(i)], 1)).collect();
        TokenFile::in_memory(&documents, [0; 32], [0; 32]).repeated(sections)
    }

    /// What is computed, and what memory and time it takes, does not grow with the documents but for 100 bytes a section.
    #[test]
    fn a_thousand_million_documents_begin_at_once_and_continue_anywhere() {
        let file = repeated(61_036, 16_384);
        assert!(file.len() > 1_000_000_000);
        let layout = Layout { chunk_size: 4, context: 64, bos_chunk: true };
        let started = Instant::now();
        let order = RowOrder::new(&file, 0..file.sections(), layout, 1).unwrap();
        let (rows, row) = order.row(0).unwrap();
        assert!(row < rows.len());
        let first = started.elapsed();
        // As they are kept after an epoch.
        let of_one = rows.len() as u32;
        {
            let mut state = order.state();
            (state.rows, state.unknown) = (vec![Some(of_one); file.sections()], 0);
        }
        let started = Instant::now();
        let all = u64::from(of_one) * file.sections() as u64;
        for place in [all / 3, all - 1, all, 5 * all + 7] {
            order.row(place).unwrap();
        }
        let anywhere = started.elapsed() / 4;
        println!("first row after {first:?}, a row anywhere after {anywhere:?}, {all} rows an epoch");
        assert!(first.as_secs() < 20 && anywhere.as_secs() < 20, "{first:?}, {anywhere:?}");
    }

    #[test]
    fn one_section_has_the_order_of_one_permutation() {
        let file = repeated(1, 200);
        let layout = Layout { chunk_size: 2, context: 16, bos_chunk: false };
        let order = RowOrder::new(&file, 0..1, layout, 9).unwrap();
        let rows = pack::best_fit(segments(&file, layout, 0..200, 1, None).collect(), 16, 9);
        let n = rows.len() as u64;
        for place in 0..3 * n {
            let (found, row) = order.row(place).unwrap();
            assert_eq!(row as u64, permute(place % n, n, mix2(9, place / n)));
            assert_eq!(found.row(row), rows.row(row));
        }
    }
}
