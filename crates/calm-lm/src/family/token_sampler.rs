//! Texts that the baseline continues token by token, each drawn from its tempered distribution.

use calm_nn::{NoiseKey, ParamStore, RowId, philox};
use candle_core::{Result, Tensor};

use super::Baseline;
use crate::family::softmax::{distribution, each_distribution, invert};
use crate::family::{LanguageModel, TextFormat, TokenDecoding};
use crate::sampler::{Continuation, DrawKey, Sampler, SideBySide, SpecialIds};
use crate::side_by_side::{DrawSeed, PURPOSE, Places, Reader};
use crate::{Cache, TextState};

/// The baseline at a temperature.
#[derive(Clone, Copy)]
pub(super) struct Tempered<'a> {
    pub(super) model: &'a Baseline,
    pub(super) decoding: TokenDecoding,
}

impl Tempered<'_> {
    /// A text with nothing in it yet: the hidden state after BOS, where documents begin so.
    fn blank(&self) -> Result<TextState> {
        let (model, mut context) = (self.model, TextState::default());
        if model.text.bos_chunk {
            context.extend(&[model.text.special.bos], |tokens, cache| {
                model.backbone.forward_cached(&model.inputs(tokens)?, cache)
            })?;
        }
        Ok(context)
    }
}

impl Sampler for Tempered<'_> {
    fn chunk_size(&self) -> usize {
        1
    }

    fn special(&self) -> SpecialIds {
        self.model.text.special
    }

    fn start(&self) -> Result<Box<dyn Continuation + '_>> {
        Ok(Box::new(Text { of: *self, context: self.blank()? }))
    }

    fn side_by_side(&self, places: usize) -> Result<Box<dyn SideBySide + '_>> {
        Ok(Box::new(Places::new(*self, places)?))
    }
}

impl Reader for Tempered<'_> {
    fn format(&self) -> &TextFormat {
        &self.model.text
    }

    fn chunk_size(&self) -> usize {
        1
    }

    fn stores(&self) -> Vec<&ParamStore> {
        vec![self.model.store()]
    }

    fn begin(&self) -> Result<TextState> {
        self.blank()
    }

    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut Cache]) -> Result<Tensor> {
        self.model.backbone.forward_side_by_side(&self.model.inputs(tokens)?, lengths, caches)
    }

    /// Noise stream `token`.
    fn draw(&self, hidden: &Tensor, samples: usize, seed: DrawSeed, rows: &[RowId]) -> Result<Vec<u32>> {
        let key = NoiseKey::new(seed.seed, &format!("{PURPOSE}/token"), seed.piece);
        let u = philox::uniform(key, rows, samples, 1);
        let drawn = each_distribution(hidden, &self.model.output, self.decoding, |row, p| {
            let u = &u[row * samples..][..samples];
            u.iter().map(|u| invert(p, f64::from(*u))).collect::<Vec<u32>>()
        })?;
        Ok(drawn.concat())
    }
}

/// A text that the baseline continues.
struct Text<'a> {
    of: Tempered<'a>,
    context: TextState,
}

impl Continuation for Text<'_> {
    fn push(&mut self, tokens: &[u32]) -> Result<()> {
        let (model, text) = (self.of.model, &self.of.model.text);
        self.context.push(tokens, 1, text.context, text.special, |tokens, cache| {
            model.backbone.forward_cached(&model.inputs(tokens)?, cache)
        })
    }

    fn draw(&self, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>> {
        let (model, context) = (self.of.model, &self.context);
        if context.ended() {
            return Ok(vec![vec![model.text.special.pad]; samples]);
        }
        let logits: Vec<f32> = model.logits(context.hidden()?)?.flatten_all()?.to_vec1()?;
        let p = distribution(&logits, self.of.decoding);
        let position = context.tokens().len() as u32;
        let rows: Vec<RowId> =
            (0..samples.div_ceil(1 << 12)).map(|i| RowId { example: i as u32, position }).collect();
        let key = NoiseKey::new(key.seed, "generate/token", key.call);
        let u = philox::uniform(key, &rows, samples.min(1 << 12), 1);
        Ok(u.iter().take(samples).map(|u| vec![invert(&p, f64::from(*u))]).collect())
    }
}
