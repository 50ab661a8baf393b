//! Blocks as the reference implementation measures language models: all documents joined without EOS, cut in
//! blocks of S·K tokens, the rest dropped. No BOS chunk: the first chunk of a block is never predicted.

use std::ops::Range;

use crate::batch::Batch;
use crate::chunks::Layout;
use crate::error::{Error, Result};
use crate::token_file::TokenFile;

/// Blocks of joined documents; every chunk is filled, every row one segment.
#[derive(Clone, Debug)]
pub struct ReferenceBlocks {
    file: TokenFile,
    layout: Layout,
    document_bos: Option<u32>,
    /// The joined documents, in order.
    documents: Vec<u32>,
    /// Place of each of them in the joined tokens; one more for the end.
    starts: Vec<u64>,
}

impl Layout {
    /// The reference's blocks of `context * chunk_size` tokens (there: 8,192 for CALM and 2,048 for the baseline).
    /// `document_bos` is written before every document if given: a tokenizer that adds BOS to every text does
    /// that, and it shifts every alignment, so it belongs in the record of a result.
    ///
    /// # Errors
    /// When the layout cannot work.
    pub fn reference_blocks(&self, file: &TokenFile, document_bos: Option<u32>) -> Result<ReferenceBlocks> {
        self.reference_blocks_of(file, &(0..file.len()).collect::<Vec<_>>(), document_bos)
    }

    /// [`Layout::reference_blocks`] of some documents, joined in the given order.
    ///
    /// # Errors
    /// When the layout cannot work or a document does not exist.
    pub fn reference_blocks_of(
        &self,
        file: &TokenFile,
        documents: &[usize],
        document_bos: Option<u32>,
    ) -> Result<ReferenceBlocks> {
        self.check()?;
        let mut starts = vec![0];
        let mut total = 0;
        for &document in documents {
            if document >= file.len() {
                return Err(Error::Layout(format!("document {document} of {} does not exist", file.len())));
            }
            total += file.document_len(document) as u64 + u64::from(document_bos.is_some());
            starts.push(total);
        }
        let layout = Self { bos_chunk: false, ..*self };
        let documents = documents.iter().map(|d| *d as u32).collect();
        Ok(ReferenceBlocks { file: file.clone(), layout, document_bos, documents, starts })
    }
}

impl ReferenceBlocks {
    /// Tokens in a block.
    fn block(&self) -> u64 {
        (self.layout.context * self.layout.chunk_size) as u64
    }

    /// Number of blocks.
    pub fn rows(&self) -> usize {
        (self.starts.last().copied().unwrap_or(0) / self.block()) as usize
    }

    /// The layout of the blocks (without BOS chunk).
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Tokens that fall off at the end.
    pub fn dropped_tokens(&self) -> u64 {
        self.starts.last().copied().unwrap_or(0) % self.block()
    }

    /// These blocks. `documents` holds the document of each chunk's first token, `chunk_index` the chunk's place in
    /// the joined text.
    ///
    /// # Panics
    /// If a block does not exist.
    pub fn batch(&self, rows: Range<usize>) -> Batch {
        assert!(rows.end <= self.rows(), "blocks {rows:?} of {}", self.rows());
        let (s, k) = (self.layout.context, self.layout.chunk_size);
        let examples = rows.clone().map(|r| r as u32).collect();
        let mut batch = Batch::filler(self.layout, 0, examples, !self.file.counts_all());
        for (b, row) in rows.enumerate() {
            let first = row as u64 * self.block();
            self.copy(first, &mut batch.ids[b * s * k..(b + 1) * s * k]);
            if let Some(lane) = &mut batch.counting {
                let lane = &mut lane[b * s * k..(b + 1) * s * k];
                self.mark(first, lane);
                lane[..self.file.input_of(s) * k].fill(false);
            }
            for i in 0..s {
                let place = b * s + i;
                batch.filled[place] = true;
                batch.target[place] = true;
                batch.predicts[place] = i + 1 < s && (0..k).any(|n| batch.counts(b, i + 1, n));
                batch.segments[place] = 0;
                batch.documents[place] = self.documents[self.place_of(first + (i * k) as u64)];
                batch.positions[place] = i as u32;
                batch.chunk_index[place] = (row * s + i) as u32;
            }
        }
        batch
    }

    /// Which of the joined documents holds this place of the joined text.
    fn place_of(&self, place: u64) -> usize {
        self.starts.partition_point(|&start| start <= place) - 1
    }

    fn copy(&self, mut place: u64, mut out: &mut [u32]) {
        while !out.is_empty() {
            let joined = self.place_of(place);
            let document = self.documents[joined] as usize;
            let mut inside = (place - self.starts[joined]) as usize;
            let mut written = 0;
            if let Some(bos) = self.document_bos {
                if inside == 0 {
                    out[0] = bos;
                    written = 1;
                }
                inside = inside.saturating_sub(1);
            }
            let ids = self.file.slice(document, inside, out.len() - written);
            out[written..written + ids.len()].copy_from_slice(&ids);
            written += ids.len();
            place += written as u64;
            out = &mut out[written..];
        }
    }

    /// Which of the joined tokens from a place on count.
    fn mark(&self, first: u64, out: &mut [bool]) {
        for (place, out) in (first..).zip(out) {
            let joined = self.place_of(place);
            let inside = place - self.starts[joined];
            // BOS counts nowhere.
            let token = inside.checked_sub(u64::from(self.document_bos.is_some()));
            let counting = self.file.counting(self.documents[joined] as usize);
            *out = counting.is_none_or(|counting| token.is_some_and(|token| counting.token(token as usize)));
        }
    }

    /// All blocks, `rows_per_batch` at a time (the last batch may have fewer).
    pub fn batches(&self, rows_per_batch: usize) -> impl ExactSizeIterator<Item = Batch> + '_ {
        let size = rows_per_batch.max(1);
        let total = self.rows();
        (0..total.div_ceil(size)).map(move |i| self.batch(i * size..((i + 1) * size).min(total)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_the_joined_tokens_without_the_rest(
            lengths in prop::collection::vec(0usize..12, 0..12),
            k in 1usize..5, s in 2usize..5, bos: bool,
        ) {
            let mut next = 0;
            let documents: Vec<(Vec<u32>, u64)> = lengths.iter().map(|&n| {
                let ids = (next..next + n as u32).collect();
                next += n as u32;
                (ids, n as u64)
            }).collect();
            let bos = bos.then_some(9999);
            let mut joined = Vec::new();
            let mut owner = Vec::new();
            for (i, (ids, _)) in documents.iter().enumerate() {
                joined.extend(bos);
                joined.extend(ids);
                owner.resize(joined.len(), i as u32);
            }
            let file = TokenFile::in_memory(&documents, [0; 32], [0; 32]);
            let layout = Layout { chunk_size: k, context: s, bos_chunk: true };
            let blocks = layout.reference_blocks(&file, bos).unwrap();
            prop_assert_eq!(blocks.rows(), joined.len() / (s * k));
            prop_assert_eq!(blocks.dropped_tokens() as usize, joined.len() % (s * k));
            let mut ids: Vec<u32> = Vec::new();
            let mut owners: Vec<u32> = Vec::new();
            for batch in blocks.batches(2) {
                ids.extend(&batch.ids);
                owners.extend(&batch.documents);
                prop_assert!(batch.filled.iter().all(|x| *x) && batch.target.iter().all(|x| *x));
                prop_assert!(batch.segments.iter().all(|x| *x == 0));
                prop_assert_eq!(batch.predict_count(), batch.rows * (s - 1));
            }
            prop_assert_eq!(&ids[..], &joined[..blocks.rows() * s * k]);
            let expected: Vec<u32> = owner.chunks(k).map(|c| c[0]).take(owners.len()).collect();
            prop_assert_eq!(owners, expected);
        }
    }

    #[test]
    fn some_documents_are_joined_in_the_given_order() {
        let documents: Vec<(Vec<u32>, u64)> = vec![(vec![1, 2, 3], 3), (vec![4], 1), (vec![5, 6, 7], 3)];
        let file = TokenFile::in_memory(&documents, [0; 32], [0; 32]);
        let layout = Layout { chunk_size: 2, context: 2, bos_chunk: true };
        let blocks = layout.reference_blocks_of(&file, &[2, 0], Some(9)).unwrap();
        assert_eq!((blocks.rows(), blocks.dropped_tokens()), (2, 0));
        let batch = blocks.batch(0..2);
        assert_eq!(batch.ids, [9, 5, 6, 7, 9, 1, 2, 3]);
        assert_eq!(batch.documents, [2, 2, 0, 0]);
        assert!(layout.reference_blocks_of(&file, &[3], None).is_err());
    }
}
