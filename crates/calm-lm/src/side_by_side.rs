//! Several texts continued at once: matrices are read once for all of them, attention looks at each alone.
//!
//! ```text
//! texts  ── chunks of all, one after the other [1, N, K] ── backbone ── last hidden state of each [1, D]
//!        ── hidden states of those that draw [R, D] ── family ── tokens [R, 1, K]
//! ```
//! A text comes out the same in any company. Noise is keyed by its number, and on the CPU each row of a product is the
//! same to the bit from [`steady_rows`] rows on: fewer are filled up. A pool of draws for one text goes alone: it fills
//! the machine by itself.

use calm_kernels::steady_rows;
use calm_nn::{ParamStore, RowId};
use candle_core::{Result, Tensor, bail};

use crate::TextState;
use crate::family::TextFormat;
use crate::sampler::{SideBySide, TextKey};
use crate::text_state::{Kept, push_all};

/// First half of the names of noise streams.
pub(crate) const PURPOSE: &str = "prompts";

/// Draws of one row of a noise stream, which counts samples in 16 bits: a larger pool is several pieces.
const PIECE: usize = 1 << 12;

/// Which numbers a draw takes of a stream, besides its rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DrawSeed {
    /// Of the generation.
    pub seed: u64,
    /// Which piece of a large pool; the step of the stream.
    pub piece: u32,
}

/// What a family does for texts side by side.
pub(crate) trait Reader {
    /// What it keeps of a text.
    type Cache: Kept;

    /// The text as the model meets it.
    fn format(&self) -> &TextFormat;

    /// K.
    fn chunk_size(&self) -> usize;

    /// The parameters that texts go through.
    fn stores(&self) -> Vec<&ParamStore>;

    /// A text with nothing in it yet.
    ///
    /// # Errors
    /// What a GPU answers.
    fn begin(&self) -> Result<TextState<Self::Cache>>;

    /// Chunks of several texts, as in [`push_all`] -> hidden states `[1, N, D]`.
    ///
    /// # Errors
    /// What a GPU answers.
    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut Self::Cache]) -> Result<Tensor>;

    /// N chunks after each of the hidden states `[R, D]`: tokens, row-major `[R, N, K]`. Noise streams of [`PURPOSE`].
    /// With N = 1 and [`steady_rows`] or more, no row depends on the others.
    ///
    /// # Errors
    /// What a GPU answers.
    fn draw(&self, hidden: &Tensor, samples: usize, seed: DrawSeed, rows: &[RowId]) -> Result<Vec<u32>>;
}

/// Parts of `0..n` of at most `most` and of equal length but for one: none is small unless n is. (first, length)
pub(crate) fn even_parts(n: usize, most: usize) -> impl Iterator<Item = (usize, usize)> {
    let parts = n.div_ceil(most.max(1));
    (0..parts).map(move |i| (i * n / parts, (i + 1) * n / parts - i * n / parts))
}

/// From so many rows on each row of all products with these parameters is the same to the bit; 1 on a GPU, where none is.
pub(crate) fn least_rows<'a>(stores: impl IntoIterator<Item = &'a ParamStore>) -> usize {
    let mut least = 1;
    for store in stores {
        for (_, parameter) in store.params() {
            let parameter = parameter.var.as_tensor();
            if let (&[outputs, inputs], true) = (parameter.dims(), parameter.device().is_cpu()) {
                least = least.max(steady_rows(outputs, inputs));
            }
        }
    }
    least
}

/// Texts of a family in their places.
pub(crate) struct Places<R: Reader> {
    reader: R,
    texts: Vec<Option<TextState<R::Cache>>>,
    /// Copied for every text that begins.
    blank: TextState<R::Cache>,
    least: usize,
}

impl<R: Reader> Places<R> {
    /// So many, all free.
    ///
    /// # Errors
    /// What a GPU answers.
    pub(crate) fn new(reader: R, places: usize) -> Result<Self> {
        let blank = reader.begin()?;
        let least = least_rows(reader.stores());
        Ok(Self { reader, texts: vec![None; places], blank, least })
    }

    fn text(&self, place: usize) -> Result<&TextState<R::Cache>> {
        match self.texts.get(place) {
            Some(Some(text)) => Ok(text),
            _ => bail!("no text was begun at {place}"),
        }
    }

    /// Draws `[R, N, K]` as chunks; those of a text that has ended are PAD.
    fn chunks(&self, tokens: &[u32], ended: bool) -> Vec<Vec<u32>> {
        let close = |chunk: &[u32]| {
            let mut chunk = chunk.to_vec();
            self.reader.format().special.close(&mut chunk, ended);
            chunk
        };
        tokens.chunks_exact(self.reader.chunk_size()).map(close).collect()
    }
}

/// Rows of noise are told apart by the number of a text and by how many draws it asked for before.
fn row(key: &TextKey) -> RowId {
    RowId { example: key.text, position: key.call }
}

impl<R: Reader> SideBySide for Places<R> {
    fn begin(&mut self, place: usize) -> Result<()> {
        let Some(text) = self.texts.get_mut(place) else { bail!("there is no place {place}") };
        *text = Some(self.blank.clone());
        Ok(())
    }

    fn push(&mut self, chunks: &[(usize, &[u32])]) -> Result<()> {
        let Self { reader, texts, least, .. } = self;
        let mut named: Vec<Option<&[u32]>> = vec![None; texts.len()];
        for (place, tokens) in chunks {
            match named.get_mut(*place) {
                Some(slot @ None) => *slot = Some(tokens),
                _ => bail!("place {place} is named twice or does not exist"),
            }
        }
        let mut unread = Vec::with_capacity(chunks.len());
        for (place, (text, tokens)) in texts.iter_mut().zip(named).enumerate() {
            match (text, tokens) {
                (Some(text), Some(tokens)) => unread.push((text, tokens)),
                (None, Some(_)) => bail!("no text was begun at {place}"),
                (_, None) => {}
            }
        }
        push_all(unread, reader.format(), reader.chunk_size(), *least, |tokens, lengths, caches| {
            reader.read(tokens, lengths, caches)
        })
    }

    fn draw(&self, wanted: &[(usize, TextKey)]) -> Result<Vec<Vec<u32>>> {
        let Some((_, TextKey { seed, .. })) = wanted.first().copied() else { return Ok(Vec::new()) };
        let mut hidden = Vec::with_capacity(wanted.len());
        let mut rows = Vec::with_capacity(wanted.len());
        for (place, key) in wanted {
            if key.seed != seed {
                bail!("texts side by side have one seed")
            }
            hidden.push(self.text(*place)?.hidden()?);
            rows.push(row(key));
        }
        for _ in rows.len()..self.least {
            hidden.push(hidden[0]);
            rows.push(rows[0]);
        }
        let hidden = Tensor::cat(&hidden, 0)?;
        let tokens = self.reader.draw(&hidden, 1, DrawSeed { seed, piece: 0 }, &rows)?;
        let k = self.reader.chunk_size();
        let mut drawn = Vec::with_capacity(wanted.len());
        for ((place, _), chunk) in wanted.iter().zip(tokens.chunks_exact(k)) {
            drawn.append(&mut self.chunks(chunk, self.text(*place)?.ended()));
        }
        Ok(drawn)
    }

    fn pool(&self, place: usize, samples: usize, key: TextKey) -> Result<Vec<Vec<u32>>> {
        let text = self.text(place)?;
        let mut drawn = Vec::with_capacity(samples);
        for (piece, from) in (0..samples).step_by(PIECE).enumerate() {
            let seed = DrawSeed { seed: key.seed, piece: piece as u32 };
            let tokens = self.reader.draw(text.hidden()?, PIECE.min(samples - from), seed, &[row(&key)])?;
            drawn.append(&mut self.chunks(&tokens, text.ended()));
        }
        Ok(drawn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_even_and_cover_everything() {
        for (n, most) in [(0, 5), (1, 5), (5, 5), (6, 5), (64, 63), (257, 256), (7, 0)] {
            let parts: Vec<(usize, usize)> = even_parts(n, most).collect();
            assert_eq!(parts.iter().map(|p| p.1).sum::<usize>(), n);
            let mut next = 0;
            for (first, length) in &parts {
                assert_eq!(*first, next);
                assert!(*length <= most.max(1) && *length >= 1);
                next += length;
            }
            let lengths = parts.iter().map(|p| p.1);
            assert!(lengths.clone().max().unwrap_or(0) - lengths.min().unwrap_or(0) <= 1);
        }
    }
}
