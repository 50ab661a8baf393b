//! Texts that a CALM continues: chunks from its head and its decoder.

use calm_nn::{Noise, ParamStore, RowId};
use candle_core::{Result, Tensor};

use super::Calm;
use crate::family::{LanguageModel, TextFormat, TokenDecoding};
use crate::sampler::{Continuation, DrawKey, Sampler, SideBySide, SpecialIds};
use crate::side_by_side::{DrawSeed, PURPOSE, Places, Reader};
use crate::{Cache, TextState};

/// A CALM as a sampler.
#[derive(Clone, Copy)]
pub(super) struct Sampled<'a> {
    pub(super) model: &'a Calm,
    /// Of the decoder's softmax; None: as the settings say.
    pub(super) decoding: Option<TokenDecoding>,
}

impl Sampler for Sampled<'_> {
    fn chunk_size(&self) -> usize {
        self.model.chunk_size()
    }

    fn special(&self) -> SpecialIds {
        self.model.special()
    }

    fn start(&self) -> Result<Box<dyn Continuation + '_>> {
        Ok(Box::new(Text { of: *self, context: self.model.begin()? }))
    }

    fn side_by_side(&self, places: usize) -> Result<Box<dyn SideBySide + '_>> {
        Ok(Box::new(Places::new(*self, places)?))
    }
}

impl Reader for Sampled<'_> {
    type Cache = Cache;

    fn format(&self) -> &TextFormat {
        self.model.format()
    }

    fn chunk_size(&self) -> usize {
        self.model.chunk_size()
    }

    fn stores(&self) -> Vec<&ParamStore> {
        vec![self.model.store(), self.model.autoencoder().store()]
    }

    fn begin(&self) -> Result<TextState> {
        self.model.begin()
    }

    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut Cache]) -> Result<Tensor> {
        self.model.backbone().forward_side_by_side(&self.model.inputs(tokens)?, lengths, caches)
    }

    fn draw(&self, hidden: &Tensor, samples: usize, seed: DrawSeed, rows: &[RowId]) -> Result<Vec<u32>> {
        let noise = Noise::Keyed { seed: seed.seed, purpose: PURPOSE, step: seed.piece, rows };
        match samples {
            1 => self.model.draw_each(hidden, &noise, self.decoding),
            _ => self.model.draw_rows(hidden, samples, &noise, self.decoding),
        }
    }
}

/// A text that a CALM continues.
struct Text<'a> {
    of: Sampled<'a>,
    context: TextState,
}

impl Continuation for Text<'_> {
    fn push(&mut self, tokens: &[u32]) -> Result<()> {
        self.of.model.read(&mut self.context, tokens)
    }

    fn draw(&self, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>> {
        let (model, context) = (self.of.model, &self.context);
        let k = model.chunk_size();
        if samples == 0 {
            return Ok(Vec::new());
        }
        // A stream counts samples in 16 bits: larger pools are several rows.
        let per_row = samples.min(1 << 12);
        let rows: Vec<RowId> = (0..samples.div_ceil(per_row))
            .map(|i| RowId { example: i as u32, position: (context.tokens().len() / k) as u32 })
            .collect();
        let hidden = context.hidden()?.repeat((rows.len(), 1))?;
        let noise = Noise::Keyed { seed: key.seed, purpose: "generate", step: key.call, rows: &rows };
        let tokens = model.draw_rows(&hidden, per_row, &noise, self.of.decoding)?;
        let close = |chunk: &[u32]| {
            let mut chunk = chunk.to_vec();
            model.special().close(&mut chunk, context.ended());
            chunk
        };
        Ok(tokens.chunks(k).take(samples).map(close).collect())
    }
}
