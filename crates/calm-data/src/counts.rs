//! Which tokens of a window count in loss and scores: those that the marks of its document name, and that are not input by
//! their place in the window.

use std::ops::Range;

use crate::chunks::Layout;
use crate::marks::Counting;
use crate::pack::Segment;
use crate::token_file::TokenFile;

/// Which tokens of a segment count.
pub(crate) struct Counts<'a> {
    layout: Layout,
    /// The segment's first chunk in its document.
    start: u32,
    /// Its chunks that are input alone.
    input: u32,
    /// Tokens of the document.
    tokens: usize,
    /// What the file says of the document; none where all of it counts.
    marks: Option<Counting<'a>>,
}

impl<'a> Counts<'a> {
    /// Of a segment of this file.
    pub(crate) fn of(file: &'a TokenFile, layout: Layout, segment: &Segment) -> Self {
        let document = segment.document as usize;
        Self {
            layout,
            start: segment.start,
            input: file.input_of(segment.len as usize) as u32,
            tokens: file.document_len(document),
            marks: file.counting(document),
        }
    }

    /// The tokens that chunk `i` of the segment holds; none of a BOS chunk, and of input.
    fn tokens(&self, i: u32) -> Option<Range<usize>> {
        self.layout.tokens_of((self.start + i) as usize).filter(|_| i >= self.input)
    }

    /// Whether chunk `i` of the segment holds a token that counts.
    pub(crate) fn chunk(&self, i: u32) -> bool {
        self.tokens(i).is_some_and(|tokens| self.marks.is_none_or(|marks| marks.any(tokens)))
    }

    /// Which tokens of chunk `i` of the segment count, the rest of `out` as it is.
    pub(crate) fn write(&self, i: u32, out: &mut [bool]) {
        for (out, token) in out.iter_mut().zip(self.tokens(i).unwrap_or_default()) {
            // EOS stands behind the last token.
            *out = self.marks.map_or(token <= self.tokens, |marks| marks.token(token));
        }
    }
}
