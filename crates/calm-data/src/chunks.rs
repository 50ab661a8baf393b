//! Documents as chunks of K tokens, and the windows in which long documents are read.
//!
//! ```text
//! a document of 6 tokens, K = 4, with a BOS chunk:
//!
//!   chunk 0               chunk 1       chunk 2
//!   BOS BOS BOS BOS | t0 t1 t2 t3 | t4 t5 EOS PAD
//! ```
//!
//! The BOS chunk is input only, so that the first chunk of text is predicted as well. There is always an EOS:
//! a document whose tokens fill their chunks ends with a chunk `EOS PAD PAD PAD`.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::special::SpecialTokens;
use crate::token_file::TokenFile;

/// How documents become chunks and rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// K: tokens in a chunk. 1 for a discrete baseline.
    pub chunk_size: usize,
    /// S: chunk positions in a row.
    pub context: usize,
    /// Whether a document begins with an input-only chunk of K BOS. Without it the first chunk of a document
    /// is never predicted.
    pub bos_chunk: bool,
}

impl Layout {
    /// A layout that can work.
    ///
    /// # Errors
    /// For K = 0, and for fewer than two chunk positions (one to read, one to predict).
    pub fn new(chunk_size: usize, context: usize, bos_chunk: bool) -> Result<Self> {
        let layout = Self { chunk_size, context, bos_chunk };
        layout.check()?;
        Ok(layout)
    }

    /// Whether this layout can work; see [`Layout::new`].
    ///
    /// # Errors
    /// When it cannot.
    pub fn check(&self) -> Result<()> {
        if self.chunk_size == 0 {
            return Err(Error::Layout(
                "a chunk needs at least one token: set the chunk size K to 1 or more".into(),
            ));
        }
        if self.context < 2 {
            let message = "a row needs at least two chunks (one to read, one to predict): raise the context";
            return Err(Error::Layout(message.into()));
        }
        Ok(())
    }

    /// Chunks of a document of `tokens` tokens: the BOS chunk if any, the text with its EOS, filled up with PAD.
    pub fn chunks(&self, tokens: usize) -> usize {
        tokens / self.chunk_size + 1 + usize::from(self.bos_chunk)
    }

    /// Writes chunk `index` of document `document` to `out` (K ids).
    pub(crate) fn write_chunk(
        &self,
        file: &TokenFile,
        document: usize,
        index: usize,
        special: SpecialTokens,
        out: &mut [u32],
    ) {
        if self.bos_chunk && index == 0 {
            out.fill(special.bos);
            return;
        }
        let start = (index - usize::from(self.bos_chunk)) * self.chunk_size;
        let ids = file.slice(document, start, self.chunk_size);
        out[..ids.len()].copy_from_slice(&ids);
        if ids.len() < self.chunk_size {
            out[ids.len()] = special.eos;
            out[ids.len() + 1..].fill(special.pad);
        }
    }

    /// The tokens of a document that its chunk `index` holds, EOS and what may follow it among them; none of the BOS
    /// chunk.
    pub(crate) fn tokens_of(&self, index: usize) -> Option<Range<usize>> {
        let index = index.checked_sub(usize::from(self.bos_chunk))?;
        Some(index * self.chunk_size..(index + 1) * self.chunk_size)
    }

    /// All chunks of one document given as tokens: `chunks * K` ids.
    pub fn chunk_document(&self, tokens: &[u32], special: SpecialTokens) -> Vec<u32> {
        let mut ids = Vec::with_capacity(self.chunks(tokens.len()) * self.chunk_size);
        if self.bos_chunk {
            ids.resize(self.chunk_size, special.bos);
        }
        ids.extend_from_slice(tokens);
        ids.push(special.eos);
        ids.resize(self.chunks(tokens.len()) * self.chunk_size, special.pad);
        ids
    }

    /// The windows of a document of `chunks` chunks: every chunk but the first is a target in exactly one of
    /// them, and has up to `overlap` chunks before it there even at the window's start.
    ///
    /// ```text
    /// 9 chunks, S = 4, overlap 1 (t: target, c: context, read but not predicted in this window):
    ///
    ///   chunk     0 1 2 3 4 5 6 7 8
    ///   window 0  c t t t
    ///   window 1        c t t t
    ///   window 2              c t t
    /// ```
    ///
    /// Windows of S·K tokens that overlap by the same number of tokens lie at the same tokens for every K: the
    /// first one reaches to chunk `1 + stride` with a BOS chunk, and to chunk S without.
    pub(crate) fn windows(self, chunks: usize, overlap: usize) -> impl Iterator<Item = Window> {
        let stride = self.context - overlap;
        let anchor = if self.bos_chunk { 1 } else { overlap };
        let count = chunks.saturating_sub(anchor).div_ceil(stride).max(usize::from(chunks > 0));
        (0..count).map(move |w| {
            let first_target = anchor + w * stride;
            let start = first_target.saturating_sub(overlap);
            let end = (first_target + stride).min(chunks);
            Window { start, len: end - start, fresh: if w == 0 { 0 } else { first_target - start } }
        })
    }
}

/// Consecutive chunks of a document that are read together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    /// First chunk.
    pub start: usize,
    /// Number of chunks, at most S.
    pub len: usize,
    /// Place in the window of the first chunk that no earlier window held.
    pub fresh: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SPECIAL: SpecialTokens = SpecialTokens { bos: 100, eos: 101, pad: 102 };

    #[test]
    fn a_document_ends_with_eos_and_pads() {
        let with = Layout { chunk_size: 4, context: 8, bos_chunk: true };
        assert_eq!(
            with.chunk_document(&[0, 1, 2, 3, 4, 5], SPECIAL),
            [100, 100, 100, 100, 0, 1, 2, 3, 4, 5, 101, 102]
        );
        assert_eq!(with.chunk_document(&[], SPECIAL), [100, 100, 100, 100, 101, 102, 102, 102]);
        let without = Layout { chunk_size: 2, context: 8, bos_chunk: false };
        assert_eq!(without.chunk_document(&[7, 8], SPECIAL), [7, 8, 101, 102]);
        let baseline = Layout { chunk_size: 1, context: 8, bos_chunk: true };
        assert_eq!(baseline.chunk_document(&[7, 8], SPECIAL), [100, 7, 8, 101]);
    }

    #[test]
    fn impossible_layouts_are_errors() {
        assert!(Layout::new(0, 8, true).unwrap_err().to_string().contains("at least one token"));
        assert!(Layout::new(4, 1, true).unwrap_err().to_string().contains("at least two chunks"));
        assert!(Layout::new(1, 2, false).is_ok());
    }

    proptest! {
        #[test]
        fn single_chunks_equal_the_whole_document(
            tokens in prop::collection::vec(0u32..100, 0..40), k in 1usize..9, bos: bool,
        ) {
            let layout = Layout { chunk_size: k, context: 2, bos_chunk: bos };
            let file = TokenFile::in_memory(&[(tokens.clone(), 1)], [0; 32], [0; 32]);
            let whole = layout.chunk_document(&tokens, SPECIAL);
            prop_assert_eq!(whole.len(), layout.chunks(tokens.len()) * k);
            let mut chunk = vec![u32::MAX; k];
            for (i, expected) in whole.chunks(k).enumerate() {
                layout.write_chunk(&file, 0, i, SPECIAL, &mut chunk);
                prop_assert_eq!(&chunk[..], expected);
            }
        }

        #[test]
        fn every_chunk_but_the_first_is_a_target_in_exactly_one_window(
            chunks in 0usize..70, context in 2usize..12, overlap in 1usize..11, bos_chunk: bool,
        ) {
            prop_assume!(overlap < context);
            let layout = Layout { chunk_size: 1, context, bos_chunk };
            let mut targets = vec![0; chunks];
            let mut fresh = vec![0; chunks];
            for w in layout.windows(chunks, overlap) {
                prop_assert!(w.len <= context && w.len > 0);
                let first_target = if w.fresh == 0 { 1 } else { w.fresh };
                for i in first_target..w.len { targets[w.start + i] += 1; }
                for i in w.fresh..w.len { fresh[w.start + i] += 1; }
            }
            prop_assert!(fresh.iter().all(|&n| n == 1));
            prop_assert!(targets.iter().skip(1).all(|&n| n == 1));
            prop_assert!(targets.first().is_none_or(|&n| n == 0));
        }
    }
}
