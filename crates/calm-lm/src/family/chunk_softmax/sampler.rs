//! Texts that are continued chunk by chunk, each token drawn from its tempered distribution.

use calm_nn::{NoiseKey, ParamStore, RowId, philox};
use candle_core::{Result, Tensor};

use super::ChunkSoftmax;
use crate::family::softmax::{each_distribution, invert};
use crate::family::{TextFormat, TokenDecoding};
use crate::sampler::{Continuation, DrawKey, Sampler, SideBySide, SpecialIds};
use crate::side_by_side::{DrawSeed, PURPOSE, Places, Reader};
use crate::{Cache, TextState};

/// Chunks that are drawn at a time. A stream counts samples in 16 bits: larger pools are several rows of it.
const DRAWN: usize = 1 << 12;

/// A model at a temperature.
#[derive(Clone, Copy)]
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
        Ok(Box::new(Text { of: *self, context: self.model.begin()? }))
    }

    fn side_by_side(&self, places: usize) -> Result<Box<dyn SideBySide + '_>> {
        Ok(Box::new(Places::new(*self, places)?))
    }
}

impl Tempered<'_> {
    /// A chunk after each of the hidden states `[n, D]`, row-major, from uniform numbers `[n, K]`.
    fn chunks(&self, hidden: &Tensor, u: &[f32]) -> Result<Vec<u32>> {
        let (model, k) = (self.model, self.model.chunk_size);
        let n = u.len() / k;
        let mut out = vec![model.text.special.pad; n * k];
        let mut tokens = model.decoder.start(hidden)?;
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

impl Reader for Tempered<'_> {
    type Cache = Cache;

    fn format(&self) -> &TextFormat {
        &self.model.text
    }

    fn chunk_size(&self) -> usize {
        self.model.chunk_size
    }

    fn stores(&self) -> Vec<&ParamStore> {
        vec![&self.model.store]
    }

    fn begin(&self) -> Result<TextState> {
        self.model.begin()
    }

    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut Cache]) -> Result<Tensor> {
        self.model.backbone.forward_side_by_side(&self.model.inputs(tokens)?, lengths, caches)
    }

    /// Noise stream `token`.
    fn draw(&self, hidden: &Tensor, samples: usize, seed: DrawSeed, rows: &[RowId]) -> Result<Vec<u32>> {
        let (r, d) = hidden.dims2()?;
        let key = NoiseKey::new(seed.seed, &format!("{PURPOSE}/token"), seed.piece);
        let u = philox::uniform(key, rows, samples, self.model.chunk_size);
        let hidden = match samples {
            1 => hidden.clone(),
            _ => hidden.unsqueeze(1)?.repeat((1, samples, 1))?.reshape((r * samples, d))?,
        };
        self.chunks(&hidden, &u)
    }
}

/// A text that is continued.
struct Text<'a> {
    of: Tempered<'a>,
    context: TextState,
}

impl Continuation for Text<'_> {
    fn push(&mut self, tokens: &[u32]) -> Result<()> {
        self.of.model.read(&mut self.context, tokens)
    }

    fn draw(&self, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>> {
        let (k, special) = (self.of.model.chunk_size, self.of.model.text.special);
        if self.context.ended() {
            return Ok(vec![vec![special.pad; k]; samples]);
        }
        let position = (self.context.tokens().len() / k) as u32;
        let key = NoiseKey::new(key.seed, "generate/token", key.call);
        let mut out = Vec::with_capacity(samples);
        for at in (0..samples).step_by(DRAWN) {
            let row = RowId { example: (at / DRAWN) as u32, position };
            let u = philox::uniform(key, &[row], DRAWN.min(samples - at), k);
            let hidden = self.context.hidden()?.repeat((u.len() / k, 1))?;
            out.extend(self.of.chunks(&hidden, &u)?.chunks_exact(k).map(|chunk| {
                let mut chunk = chunk.to_vec();
                special.close(&mut chunk, false);
                chunk
            }));
        }
        Ok(out)
    }
}
