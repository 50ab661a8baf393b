//! A window's tokens as the model reads them, in one pass or token by token.
//!
//! ```text
//! BOS c0 c1 … c(S-2)                      predicts c0 … c(S-1)
//!             c(S-o) … c(S-1) c(S) …      o chunks again when S are full, and on from there
//! ```
//! Who writes knows the tokens: a pass is one call of the model. Who reads learns them one after the other, of all windows
//! side by side. Both ask for the same numbers, and under a fixed context get the same bits. Where a pass begins follows from the
//! window's length alone.

use std::ops::Range;

use calm_lm::{CodedTexts, Coding};
use calm_nn::RowId;
use candle_core::Tensor;
use rayon::prelude::*;

use crate::entropy::{Frequencies, Interval, Reader};
use crate::error::{Error, Result};

/// Most weights that stand in memory together.
const WEIGHTS: usize = 1 << 23;
/// Most chunks whose tokens are asked for together.
const ROWS: usize = 64;

/// How windows are read.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// S, the model's context in chunks.
    pub context: usize,
    /// Chunks that are read again when it is full.
    pub overlap: usize,
    /// Whether a text begins with BOS.
    pub bos: bool,
    /// Latent vectors a chunk.
    pub draws: usize,
}

/// What a pass reads before its first prediction.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Begin {
    /// Nothing can be said of the first chunk: this model knows no beginning.
    Nothing,
    Bos,
    Chunks(Range<usize>),
}

/// Chunks that are predicted from one filling of the context.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Pass {
    begin: Begin,
    predict: Range<usize>,
}

fn passes(chunks: usize, limits: &Limits) -> Vec<Pass> {
    let context = limits.context.max(1);
    let first = if limits.bos { context } else { 1 }.min(chunks);
    let begin = if limits.bos { Begin::Bos } else { Begin::Nothing };
    let mut out = vec![Pass { begin, predict: 0..first }];
    let mut at = first;
    while at < chunks {
        let from = at - limits.overlap.clamp(1, context).min(at);
        // The last chunk that is predicted need not be read.
        let end = (from + context + 1).min(chunks);
        out.push(Pass { begin: Begin::Chunks(from..at), predict: at..end });
        at = end;
    }
    out
}

/// A model and how its windows are read.
pub(crate) struct Model<'a> {
    pub coding: &'a dyn Coding,
    pub limits: Limits,
}

impl Model<'_> {
    fn k(&self) -> usize {
        self.coding.chunk_size()
    }

    /// Chunks whose tokens are asked for together.
    fn rows(&self) -> usize {
        let each =
            self.coding.format().vocab_size * if self.coding.is_drawn() { self.limits.draws } else { 1 };
        (WEIGHTS / each.max(1)).clamp(1, ROWS)
    }

    /// What is read for the beginning of a pass.
    fn first(&self, begin: &Begin, tokens: &[u32]) -> Vec<u32> {
        let k = self.k();
        match begin {
            Begin::Nothing => Vec::new(),
            Begin::Bos => vec![self.coding.format().special.bos; k],
            Begin::Chunks(chunks) => tokens[chunks.start * k..chunks.end * k].to_vec(),
        }
    }

    /// Special tokens are no text: theirs is the smallest frequency there is.
    fn frequencies(&self, mut weights: Vec<u64>) -> Frequencies {
        let special = self.coding.format().special;
        for id in [special.bos, special.eos, special.pad] {
            if let Some(weight) = weights.get_mut(id as usize) {
                *weight = 0;
            }
        }
        Frequencies::new(&weights)
    }

    /// Of a token of which nothing is known.
    fn uniform(&self) -> Frequencies {
        self.frequencies(vec![1; self.coding.format().vocab_size])
    }

    /// Where each token of a window lies, in order.
    ///
    /// # Errors
    /// A token that the model does not know; numbers of the model that are none.
    pub(crate) fn write(&self, window: usize, tokens: &[u32], mut each: impl FnMut(Interval)) -> Result<()> {
        let k = self.k();
        let pad = self.coding.format().special.pad;
        for pass in passes(tokens.len().div_ceil(k), &self.limits) {
            let Range { start, end } = pass.predict;
            let mut read = self.first(&pass.begin, tokens);
            if read.is_empty() {
                let uniform = self.uniform();
                for token in &tokens[start * k..(end * k).min(tokens.len())] {
                    each(place_of(*token, &uniform)?);
                }
                continue;
            }
            read.extend(&tokens[start * k..(end - 1) * k]);
            let x = self.coding.texts(1).read(&read, &[(0, read.len() / k)])?;
            let hidden = x.narrow(1, x.dim(1)? - (end - start), end - start)?.squeeze(0)?.detach();
            let chunks: Vec<usize> = (start..end).collect();
            for (part, at) in chunks.chunks(self.rows()).zip((0..).step_by(self.rows())) {
                let rows: Vec<RowId> = part.iter().map(|chunk| row(window, *chunk)).collect();
                let hidden = hidden.narrow(0, at, part.len())?.contiguous()?;
                let mut asked = self.coding.chunks(&hidden, &rows, self.limits.draws)?;
                let mut found: Vec<Vec<Option<Interval>>> = Vec::with_capacity(k);
                let mut before: Option<Vec<u32>> = None;
                for place in 0..k {
                    let weights = asked.next(before.as_deref())?;
                    let own: Vec<Option<u32>> =
                        part.iter().map(|chunk| tokens.get(chunk * k + place).copied()).collect();
                    let intervals = weights.into_par_iter().zip(&own).map(|(weights, token)| match token {
                        Some(token) => place_of(*token, &self.frequencies(weights)).map(Some),
                        None => Ok(None),
                    });
                    found.push(intervals.collect::<Result<Vec<Option<Interval>>>>()?);
                    before = Some(own.into_iter().map(|token| token.unwrap_or(pad)).collect());
                }
                for i in 0..part.len() {
                    found.iter().filter_map(|place| place[i]).for_each(&mut each);
                }
            }
        }
        Ok(())
    }

    /// The tokens of windows from their codes, side by side. What is missing at a window's end could not be read.
    pub(crate) fn read(&self, windows: Vec<Codes>) -> Result<Vec<Vec<u32>>> {
        let (k, special) = (self.k(), self.coding.format().special);
        let mut texts: Vec<Text> =
            windows.into_iter().map(|codes| Text::new(codes, k, &self.limits)).collect();
        let mut caches = self.coding.texts(texts.len());
        let uniform = self.uniform();
        loop {
            // What each reads before its next chunk.
            let mut active = Vec::new();
            for (window, text) in texts.iter_mut().enumerate() {
                let Some(pass) = text.passes.get(text.pass) else { continue };
                if text.chunk > pass.predict.start {
                    let from = (text.chunk - 1) * k;
                    active.push((window, text.tokens[from..from + k].to_vec()));
                } else {
                    caches.forget(window);
                    active.push((window, self.first(&pass.begin, &text.tokens)));
                }
            }
            if active.is_empty() {
                return Ok(texts.into_iter().map(|text| text.tokens).collect());
            }
            let (blind, seeing): (Vec<_>, Vec<_>) = active.into_iter().partition(|(_, read)| read.is_empty());
            for (window, _) in blind {
                let text = &mut texts[window];
                for _ in 0..k {
                    text.take(&uniform, special.pad);
                }
            }
            if !seeing.is_empty() {
                let hidden = self.step(caches.as_mut(), &seeing)?;
                for (part, at) in seeing.chunks(self.rows()).zip((0..).step_by(self.rows())) {
                    let rows: Vec<RowId> =
                        part.iter().map(|(window, _)| row(*window, texts[*window].chunk)).collect();
                    let hidden = hidden.narrow(0, at, part.len())?.contiguous()?;
                    let mut asked = self.coding.chunks(&hidden, &rows, self.limits.draws)?;
                    let mut before: Option<Vec<u32>> = None;
                    for _ in 0..k {
                        let weights = asked.next(before.as_deref())?;
                        let each: Vec<Frequencies> =
                            weights.into_par_iter().map(|weights| self.frequencies(weights)).collect();
                        let next = part.iter().zip(&each);
                        before = Some(next.map(|((w, _), f)| texts[*w].take(f, special.pad)).collect());
                    }
                }
            }
            texts.iter_mut().for_each(Text::advance);
        }
    }

    /// Reads these chunks of each text -> the last hidden states `[R, D]`.
    fn step(&self, texts: &mut dyn CodedTexts, seeing: &[(usize, Vec<u32>)]) -> Result<Tensor> {
        let k = self.k();
        let of: Vec<(usize, usize)> = seeing.iter().map(|(window, read)| (*window, read.len() / k)).collect();
        let tokens: Vec<u32> = seeing.iter().flat_map(|(_, read)| read.iter().copied()).collect();
        let x = texts.read(&tokens, &of)?;
        let mut end = 0;
        let last = of.iter().map(|(_, length)| {
            end += length;
            x.narrow(1, end - 1, 1)?.squeeze(1)
        });
        Ok(Tensor::cat(&last.collect::<candle_core::Result<Vec<_>>>()?, 0)?.detach())
    }
}

/// Where a token lies.
fn place_of(token: u32, frequencies: &Frequencies) -> Result<Interval> {
    frequencies.interval(token as usize).ok_or(Error::Token(token))
}

/// Noise of a chunk: by its window and its place there.
fn row(window: usize, chunk: usize) -> RowId {
    RowId { example: window as u32, position: chunk as u32 }
}

/// The codes of a window's blocks, each with its number of tokens.
pub(crate) type Codes = Vec<(usize, Option<Reader>)>;

/// A window as far as it is read.
struct Text {
    tokens: Vec<u32>,
    /// Of whole codes; what follows a code that says something impossible is given up.
    total: usize,
    codes: std::vec::IntoIter<(usize, Option<Reader>)>,
    /// The block that is being read, and its tokens that are left.
    open: (usize, Option<Reader>),
    passes: Vec<Pass>,
    pass: usize,
    chunk: usize,
}

impl Text {
    fn new(codes: Codes, k: usize, limits: &Limits) -> Self {
        let total: usize = codes.iter().map(|(tokens, _)| tokens).sum();
        let passes = if total == 0 { Vec::new() } else { passes(total.div_ceil(k), limits) };
        let tokens = Vec::with_capacity(total);
        Self { tokens, total, codes: codes.into_iter(), open: (0, None), passes, pass: 0, chunk: 0 }
    }

    /// The next token, or PAD beyond the last.
    fn take(&mut self, frequencies: &Frequencies, pad: u32) -> u32 {
        if self.tokens.len() >= self.total {
            return pad;
        }
        while self.open.0 == 0 {
            match self.codes.next() {
                Some(next) => self.open = next,
                None => return pad,
            }
        }
        self.open.0 -= 1;
        match self.open.1.as_mut().and_then(|reader| reader.symbol(frequencies)) {
            Some(token) => {
                self.tokens.push(token);
                token
            }
            None => {
                self.total = self.tokens.len();
                self.passes.truncate(self.pass);
                pad
            }
        }
    }

    fn advance(&mut self) {
        let Some(pass) = self.passes.get(self.pass) else { return };
        self.chunk += 1;
        if self.chunk == pass.predict.end {
            self.pass += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_predict_every_chunk_once_and_fill_no_context_beyond_its_end() {
        for (context, overlap, bos) in
            [(1, 1, true), (8, 4, true), (8, 1, false), (8, 8, true), (5, 2, false)]
        {
            let limits = Limits { context, overlap, bos, draws: 1 };
            for chunks in 1..60 {
                let mut next = 0;
                for pass in passes(chunks, &limits) {
                    assert_eq!(pass.predict.start, next);
                    next = pass.predict.end;
                    let before = match pass.begin {
                        Begin::Nothing => {
                            assert!(!bos && pass.predict == (0..1));
                            continue;
                        }
                        Begin::Bos => 1,
                        Begin::Chunks(read) => {
                            assert_eq!(read.end, pass.predict.start);
                            read.len()
                        }
                    };
                    assert!((1..=context).contains(&(before + pass.predict.len() - 1)));
                }
                assert_eq!(next, chunks);
            }
        }
    }
}
