//! Texts that are continued chunk by chunk, each token drawn from its tempered distribution.

use calm_nn::{NoiseKey, RowId, philox};
use candle_core::Result;

use super::ChunkSoftmax;
use crate::TextState;
use crate::family::TokenDecoding;
use crate::family::softmax::{each_distribution, invert};
use crate::sampler::{Continuation, DrawKey, Sampler, SpecialIds};

/// Chunks that are drawn at a time. A stream counts samples in 16 bits: larger pools are several rows of it.
const DRAWN: usize = 1 << 12;

/// A model at a temperature.
pub(super) struct Tempered<'a> {
    pub(super) model: &'a ChunkSoftmax,
    pub(super) decoding: TokenDecoding,
}

impl Sampler for Tempered<'_> {
    fn chunk_size(&self) -> usize {
        self.model.chunk_size
    }

    fn special(&self) -> SpecialIds {
        self.model.text.special
    }

    fn start(&self) -> Result<Box<dyn Continuation + '_>> {
        Ok(Box::new(Text { model: self.model, decoding: self.decoding, context: self.model.begin()? }))
    }
}

/// A text that is continued.
struct Text<'a> {
    model: &'a ChunkSoftmax,
    decoding: TokenDecoding,
    context: TextState,
}

impl Text<'_> {
    /// `n` chunks, row-major, from uniform numbers `[n, K]`.
    fn chunks(&self, u: &[f32]) -> Result<Vec<u32>> {
        let (model, k) = (self.model, self.model.chunk_size);
        let n = u.len() / k;
        let mut out = vec![model.text.special.pad; n * k];
        let mut tokens = model.decoder.start(&self.context.hidden()?.repeat((n, 1))?)?;
        let mut before: Option<Vec<u32>> = None;
        for at in 0..k {
            let states = tokens.next(before.as_deref())?;
            let drawn = each_distribution(&states, &model.output, self.decoding, |row, p| {
                invert(p, f64::from(u[row * k + at]))
            })?;
            out.iter_mut().skip(at).step_by(k).zip(&drawn).for_each(|(out, token)| *out = *token);
            before = Some(drawn);
        }
        Ok(out)
    }
}

impl Continuation for Text<'_> {
    fn push(&mut self, tokens: &[u32]) -> Result<()> {
        self.model.read(&mut self.context, tokens)
    }

    fn draw(&self, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>> {
        let (k, special) = (self.model.chunk_size, self.model.text.special);
        if self.context.ended() {
            return Ok(vec![vec![special.pad; k]; samples]);
        }
        let position = (self.context.tokens().len() / k) as u32;
        let key = NoiseKey::new(key.seed, "generate/token", key.call);
        let mut out = Vec::with_capacity(samples);
        for at in (0..samples).step_by(DRAWN) {
            let row = RowId { example: (at / DRAWN) as u32, position };
            let u = philox::uniform(key, &[row], DRAWN.min(samples - at), k);
            out.extend(self.chunks(&u)?.chunks_exact(k).map(|chunk| {
                let mut chunk = chunk.to_vec();
                special.close(&mut chunk, false);
                chunk
            }));
        }
        Ok(out)
    }
}
