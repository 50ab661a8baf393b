//! Token files as batches of rows.
//!
//! ```text
//! one row of S = 9 chunk positions: two documents and one filler (K tokens in each cell)
//!
//!   position     0     1     2     3     4     5     6     7     8
//!   ids        | BOS | a.. | b.. | c E | BOS | d.. | e.. | E P | P P |   E: EOS, P: PAD
//!   segments     0     0     0     0     1     1     1     1     max
//!   positions    0     1     2     3     0     1     2     3     0
//!   predicts     x     x     x     .     x     x     x     .     .     the target is the next position
//!   target       .     x     x     x     .     x     x     x     .     holds text, first occurrence
//!   filled       x     x     x     x     x     x     x     x     .
//! ```
//!
//! Where only some tokens count (the answers of conversations, or what comes after some share of a window), a position
//! predicts if the next chunk holds one of them besides; what is a target for the autoencoder stays so. What a window
//! holds before the first chunk that counts is input ([`Batch::inputs`]).
//!
//! A document longer than a row is read in windows that overlap by one chunk; the repeated chunk is read but is
//! no target. So every chunk of text is a target exactly once in an epoch, whatever K and S.

use std::ops::Range;
use std::sync::Arc;

use crate::chunks::Layout;
use crate::counts::Counts;
use crate::error::{Error, Result};
use crate::mixture::{Mixture, Portion};
use crate::order::RowOrder;
use crate::pack::{self, Rows, Segment};
use crate::permutation::mix;
use crate::segments::segments;
use crate::special::SpecialTokens;
use crate::token_file::TokenFile;

/// Rows of chunks. Shapes: B = `rows`, S = `context`, K = `chunk_size`; all row-major.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// B: number of rows.
    pub rows: usize,
    /// S: chunk positions in a row.
    pub context: usize,
    /// K: tokens in a chunk.
    pub chunk_size: usize,
    /// `[B, S, K]` token ids; filler holds PAD.
    pub ids: Vec<u32>,
    /// `[B, S]` a real chunk (BOS chunks included), not filler.
    pub filled: Vec<bool>,
    /// `[B, S]` this position has its target at the next position, in the same segment, and a token there counts.
    pub predicts: Vec<bool>,
    /// `[B, S, K]` this token counts (EOS as the token before it; no BOS, no PAD); none where all text counts.
    pub counting: Option<Vec<bool>>,
    /// `[B, S]` holds text (not BOS, not filler) and is its first occurrence (window overlap not counted twice).
    pub target: Vec<bool>,
    /// `[B, S]` number of the segment in its row; filler: `u32::MAX`.
    pub segments: Vec<u32>,
    /// `[B, S]` index of the document in its token file; filler: `u32::MAX`.
    pub documents: Vec<u32>,
    /// `[B, S]` chunk position in its segment, from 0; filler: 0.
    pub positions: Vec<u32>,
    /// `[B, S]` index of the chunk in its document (0 is the BOS chunk if there is one); filler: 0.
    pub chunk_index: Vec<u32>,
    /// `[B]` index of the row in the global batch.
    pub examples: Vec<u32>,
}

impl Batch {
    /// Rows of filler; `marked`: of a text of which not every token counts.
    pub(crate) fn filler(layout: Layout, pad: u32, examples: Vec<u32>, marked: bool) -> Self {
        let rows = examples.len();
        let places = rows * layout.context;
        Self {
            rows,
            context: layout.context,
            chunk_size: layout.chunk_size,
            ids: vec![pad; places * layout.chunk_size],
            filled: vec![false; places],
            predicts: vec![false; places],
            counting: marked.then(|| vec![false; places * layout.chunk_size]),
            target: vec![false; places],
            segments: vec![u32::MAX; places],
            documents: vec![u32::MAX; places],
            positions: vec![0; places],
            chunk_index: vec![0; places],
            examples,
        }
    }

    fn fill_row(&mut self, b: usize, segments: &[Segment], text: &Laid) {
        let k = self.chunk_size;
        let mut place = b * self.context;
        for (number, segment) in (0..).zip(segments) {
            let counts = text.counts(segment);
            for i in 0..segment.len {
                let chunk = segment.start + i;
                let ids = &mut self.ids[place * k..(place + 1) * k];
                text.layout.write_chunk(
                    &text.file,
                    segment.document as usize,
                    chunk as usize,
                    text.special,
                    ids,
                );
                self.filled[place] = true;
                self.target[place] = i >= segment.fresh && !(text.layout.bos_chunk && chunk == 0);
                self.predicts[place] = i + 1 < segment.len && i + 1 >= segment.fresh && counts.chunk(i + 1);
                if let Some(lane) = &mut self.counting {
                    counts.write(i, &mut lane[place * k..(place + 1) * k]);
                }
                self.segments[place] = number;
                self.documents[place] = segment.document;
                self.positions[place] = i;
                self.chunk_index[place] = chunk;
                place += 1;
            }
        }
    }

    /// Hash of the ids (and of which count, where not all do) of batches that follow each other: of the rows of a step it is the same however they are cut.
    pub fn hash<'a>(batches: impl IntoIterator<Item = &'a Self, IntoIter: Clone>) -> String {
        let (mut hasher, batches) = (blake3::Hasher::new(), batches.into_iter());
        for batch in batches.clone() {
            hasher.update(bytemuck::cast_slice(&batch.ids));
        }
        // Behind all ids, so that it does not matter where a batch ends.
        for counting in batches.flat_map(|batch| &batch.counting) {
            hasher.update(bytemuck::cast_slice(counting));
        }
        hasher.finalize().to_hex()[..32].to_owned()
    }

    /// The K ids at row `b`, position `s`.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn chunk(&self, b: usize, s: usize) -> &[u32] {
        let place = b * self.context + s;
        &self.ids[place * self.chunk_size..(place + 1) * self.chunk_size]
    }

    /// Whether token `k` at row `b`, position `s` counts.
    ///
    /// # Panics
    /// If there is no such place.
    pub fn counts(&self, b: usize, s: usize, k: usize) -> bool {
        self.counting.as_ref().is_none_or(|lane| lane[(b * self.context + s) * self.chunk_size + k])
    }

    /// `[B, S]` What a window holds before the first of its chunks that counts; none where all text counts.
    pub fn inputs(&self) -> Option<Vec<bool>> {
        let counting = self.counting.as_ref()?;
        let mut inputs = vec![false; self.segments.len()];
        let mut open = false;
        for at in 0..inputs.len() {
            let begins = at % self.context == 0 || self.segments[at] != self.segments[at - 1];
            let counts = counting[at * self.chunk_size..(at + 1) * self.chunk_size].contains(&true);
            open = (open || begins) && !counts && self.filled[at];
            inputs[at] = open;
        }
        Some(inputs)
    }

    /// Number of real chunks, BOS chunks included.
    pub fn filled_count(&self) -> usize {
        self.filled.iter().filter(|x| **x).count()
    }

    /// Number of predicted chunks.
    pub fn predict_count(&self) -> usize {
        self.predicts.iter().filter(|x| **x).count()
    }

    /// Number of chunks of text, each counted once.
    pub fn target_count(&self) -> usize {
        self.target.iter().filter(|x| **x).count()
    }
}

/// A token file and how it is laid into rows.
#[derive(Clone, Debug)]
struct Laid {
    file: TokenFile,
    layout: Layout,
    special: SpecialTokens,
}

impl Laid {
    /// Rows of filler for these rows of a global batch.
    fn filler(&self, examples: Vec<u32>) -> Batch {
        Batch::filler(self.layout, self.special.pad, examples, !self.file.counts_all())
    }

    /// What of a segment counts.
    fn counts(&self, segment: &Segment) -> Counts<'_> {
        Counts::of(&self.file, self.layout, segment)
    }

    /// Chunks that these segments predict.
    fn predicted(&self, segments: &[Segment]) -> u64 {
        let of = |s: &Segment| {
            let chunks = s.fresh.max(1)..s.len;
            if self.file.counts_all() {
                return chunks.len() as u64;
            }
            let counts = self.counts(s);
            chunks.filter(|i| counts.chunk(*i)).count() as u64
        };
        segments.iter().map(of).sum()
    }
}

/// Rows to train on: a function of their place. Whoever asks, in whatever pieces, gets the same.
pub trait RowSource: Send + Sync {
    /// The layout of the rows.
    fn layout(&self) -> Layout;

    /// Rows `rows` of the `global_rows` rows of this step (from 0). However a step is divided in smaller batches,
    /// its rows are the same.
    ///
    /// # Errors
    /// Tokens on the disk that are not what was written.
    ///
    /// # Panics
    /// If `rows` reaches beyond `global_rows`.
    fn batch(&self, step: u64, rows: Range<usize>, global_rows: usize) -> Result<Batch>;

    /// Does a little of what later steps need. Rows are the same without it, and may come later.
    ///
    /// # Errors
    /// As [`RowSource::batch`].
    fn look_ahead(&self, step: u64, global_rows: usize) -> Result<()>;
}

/// All rows of a token file, packed, in a new order every epoch. Stateless: a batch is a function of its step. Cloning
/// shares what was packed.
#[derive(Clone)]
pub struct RowPlan {
    laid: Laid,
    mixture: Mixture,
    sources: Arc<Vec<RowOrder>>,
}

impl std::fmt::Debug for RowPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("RowPlan")
            .field("laid", &self.laid)
            .field("mixture", &self.mixture)
            .finish_non_exhaustive()
    }
}

impl RowPlan {
    /// Cuts and packs all documents. The seed decides which documents share a row and the order of rows.
    ///
    /// # Errors
    /// When the layout cannot work, the file holds no document, or is damaged.
    pub fn new(file: &TokenFile, layout: Layout, special: SpecialTokens, seed: u64) -> Result<Self> {
        Self::mixed(file, &[Portion { sections: 0..file.sections(), weight: 1.0 }], layout, special, seed)
    }

    /// All sections packed together, as version 0.1 did: with many of them this takes the memory of all documents' places.
    ///
    /// # Errors
    /// As [`RowPlan::new`].
    pub fn whole(file: &TokenFile, layout: Layout, special: SpecialTokens, seed: u64) -> Result<Self> {
        layout.check()?;
        check_documents(file)?;
        let order = RowOrder::whole(file, layout, seed)?;
        let mixture = Mixture::new(&[1.0], seed)?;
        Ok(Self {
            laid: Laid { file: file.clone(), layout, special },
            mixture,
            sources: Arc::new(vec![order]),
        })
    }

    /// The same of several sources, whose rows come in proportion to their weights: of any number of rows from the first
    /// on, each source has its share to within one row for every source there is. Each goes through epochs of its own.
    ///
    /// # Errors
    /// As [`RowPlan::new`]; weights that cannot be.
    pub fn mixed(
        file: &TokenFile,
        portions: &[Portion],
        layout: Layout,
        special: SpecialTokens,
        seed: u64,
    ) -> Result<Self> {
        layout.check()?;
        check_documents(file)?;
        let mixture = Mixture::new(&portions.iter().map(|p| p.weight).collect::<Vec<_>>(), seed)?;
        let orders = portions.iter().zip(0..).map(|(portion, number)| {
            RowOrder::new(file, portion.sections.clone(), layout, seed ^ mix(number))
        });
        let sources = Arc::new(orders.collect::<Result<Vec<_>>>()?);
        Ok(Self { laid: Laid { file: file.clone(), layout, special }, mixture, sources })
    }

    /// Number of rows: an epoch, of all sources together. Every section is read for it.
    ///
    /// # Errors
    /// A section that is damaged.
    pub fn rows(&self) -> Result<usize> {
        Ok(self.sources.iter().map(RowOrder::all_rows).sum::<Result<u64>>()? as usize)
    }

    /// The layout of the rows.
    pub fn layout(&self) -> Layout {
        self.laid.layout
    }

    fn open<T: std::iter::Sum<T>>(&self, of: impl Fn(&Rows) -> T) -> T {
        self.sources.iter().flat_map(|source| source.open_segments(&of)).sum()
    }

    /// Chunks that an epoch predicts, as far as its documents have been laid: all of one section, else of the open ones.
    pub fn predicted_chunks(&self) -> u64 {
        self.open(|rows| self.laid.predicted(&rows.segments))
    }

    /// Share of the chunk positions that are not filler, in the rows that are open.
    pub fn fill(&self) -> f64 {
        let filled: u64 = self.open(|rows| rows.segments.iter().map(|s| u64::from(s.len)).sum());
        let rows: usize = self.open(Rows::len);
        filled as f64 / (rows * self.laid.layout.context).max(1) as f64
    }

    /// Rows `rows` of the `global_rows` rows of this step (from 0). However a step is divided in smaller batches,
    /// its rows are the same: row `r` is place `step * global_rows + r` of an endless sequence that goes through
    /// all rows once an epoch, each epoch in an order of its own.
    ///
    /// # Errors
    /// A section that is damaged.
    ///
    /// # Panics
    /// If `rows` reaches beyond `global_rows`.
    pub fn batch(&self, step: u64, rows: Range<usize>, global_rows: usize) -> Result<Batch> {
        assert!(rows.end <= global_rows, "rows {rows:?} of a global batch of {global_rows}");
        let examples = rows.clone().map(|r| r as u32).collect();
        let mut batch = self.laid.filler(examples);
        for (b, r) in rows.enumerate() {
            let (source, place) = self.mixture.place(step * global_rows as u64 + r as u64);
            let (open, row) = self.sources[source].row(place)?;
            batch.fill_row(b, open.row(row), &self.laid);
        }
        Ok(batch)
    }

    /// Batches for measuring: the given documents (see [`spread`]) in their order, not shuffled, short documents
    /// sharing a row with their neighbours.
    ///
    /// # Errors
    /// When the layout or the overlap cannot work, or a document does not exist.
    pub fn evaluation(
        file: &TokenFile,
        layout: Layout,
        special: SpecialTokens,
        documents: &[usize],
        options: EvaluationOptions,
    ) -> Result<EvaluationRows> {
        layout.check()?;
        check_documents(file)?;
        if options.overlap == 0 || options.overlap >= layout.context {
            let (overlap, context) = (options.overlap, layout.context);
            let message =
                format!("windows of {context} chunks cannot overlap by {overlap}: 1 to {}", context - 1);
            return Err(Error::Layout(message));
        }
        if let Some(document) = documents.iter().find(|d| **d >= file.len()) {
            return Err(Error::Layout(format!("document {document} of {} does not exist", file.len())));
        }
        // Of a small file everything was compared when it was opened.
        if file.sections() > 1 {
            let mut sections: Vec<usize> =
                documents.iter().map(|document| file.section_of(*document)).collect();
            sections.dedup();
            sections.into_iter().try_for_each(|section| file.prove(section))?;
        }
        let documents = documents.iter().copied();
        let segments = segments(file, layout, documents, options.overlap, options.max_chunks);
        let rows = pack::in_order(segments, layout.context);
        Ok(EvaluationRows { laid: Laid { file: file.clone(), layout, special }, rows })
    }
}

impl RowSource for RowPlan {
    fn layout(&self) -> Layout {
        self.laid.layout
    }

    fn batch(&self, step: u64, rows: Range<usize>, global_rows: usize) -> Result<Batch> {
        self.batch(step, rows, global_rows)
    }

    fn look_ahead(&self, step: u64, global_rows: usize) -> Result<()> {
        let row = step * global_rows as u64;
        self.sources
            .iter()
            .zip(0..)
            .try_for_each(|(source, number)| source.look_ahead(self.mixture.before(number, row)))
    }
}

fn check_documents(file: &TokenFile) -> Result<()> {
    if file.is_empty() {
        return Err(Error::Layout("there is no document to make rows of: give more text".into()));
    }
    if file.len() >= u32::MAX as usize {
        return Err(Error::Layout(format!("{} documents are more than 2^32", file.len())));
    }
    Ok(())
}

/// Which part of the documents is measured, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EvaluationOptions {
    /// At most so many chunks of text from the start of each document.
    pub max_chunks: Option<usize>,
    /// Chunks by which the windows of a long document overlap, 1 to S - 1. A baseline (K = 1, S·K positions) with
    /// an overlap of K has windows at the same tokens as a model with chunks of K and an overlap of 1.
    pub overlap: usize,
}

impl Default for EvaluationOptions {
    fn default() -> Self {
        Self { max_chunks: None, overlap: 1 }
    }
}

/// `count` of `total` documents at even distances (all of them for `None` or more than there are), in order.
pub fn spread(total: usize, count: Option<usize>) -> Vec<usize> {
    let count = count.unwrap_or(total).min(total);
    (0..count).map(|i| ((i as u128 * total as u128) / count as u128) as usize).collect()
}

/// Rows in document order.
#[derive(Clone, Debug)]
pub struct EvaluationRows {
    laid: Laid,
    rows: Rows,
}

impl EvaluationRows {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// The layout of the rows.
    pub fn layout(&self) -> Layout {
        self.laid.layout
    }

    /// Chunks that are predicted.
    pub fn predicted_chunks(&self) -> u64 {
        self.laid.predicted(&self.rows.segments)
    }

    /// These rows; `examples` are their numbers.
    ///
    /// # Panics
    /// If a row does not exist.
    pub fn batch(&self, rows: Range<usize>) -> Batch {
        let examples = rows.clone().map(|r| r as u32).collect();
        let mut batch = self.laid.filler(examples);
        for (b, row) in rows.enumerate() {
            batch.fill_row(b, self.rows.row(row), &self.laid);
        }
        batch
    }

    /// All rows, `rows_per_batch` at a time (the last batch may have fewer).
    pub fn batches(&self, rows_per_batch: usize) -> impl ExactSizeIterator<Item = Batch> + '_ {
        let size = rows_per_batch.max(1);
        let total = self.rows();
        (0..total.div_ceil(size)).map(move |i| self.batch(i * size..((i + 1) * size).min(total)))
    }
}
