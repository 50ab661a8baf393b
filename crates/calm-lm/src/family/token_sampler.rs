//! Texts that a model continues token by token, each drawn from its tempered distribution: for the families whose
//! positions are tokens.

use calm_nn::{NoiseKey, ParamStore, Parameter, RowId, philox};
use candle_core::{Result, Tensor};

use super::softmax::{distribution, each_distribution, invert, logits};
use super::{LanguageModel, TextFormat, TokenDecoding};
use crate::TextState;
use crate::sampler::{Continuation, DrawKey, Sampler, SideBySide, SpecialIds};
use crate::side_by_side::{DrawSeed, PURPOSE, Places, Reader};
use crate::text_state::Kept;

/// A model whose hidden states are read off token by token.
pub(super) trait TokenModel: LanguageModel {
    /// What it keeps of a text.
    type Cache: Kept;

    /// The text as it meets it.
    fn text(&self) -> &TextFormat;

    /// The vocabulary `[V, D]`.
    fn output(&self) -> &Parameter;

    /// Whether what is read first makes a difference by being read at once: the input of a model that looks at it in
    /// other directions than forward.
    fn reads_input_whole(&self) -> bool {
        false
    }

    /// Tokens of several texts one after the other, `lengths[0]` of the first and so on, each after its own cache ->
    /// hidden states `[1, N, D]`, without gradient.
    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut Self::Cache]) -> Result<Tensor>;
}

/// A model at a temperature.
pub(super) struct Tempered<'a, M> {
    pub(super) model: &'a M,
    pub(super) decoding: TokenDecoding,
}

impl<M> Clone for Tempered<'_, M> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<M> Copy for Tempered<'_, M> {}

impl<M: TokenModel> Tempered<'_, M> {
    /// A text with nothing in it yet: the hidden state after BOS, where documents begin so.
    fn blank(&self) -> Result<TextState<M::Cache>> {
        let text = self.model.text();
        let start = text.bos_chunk.then(|| vec![text.special.bos]);
        let whole = self.model.reads_input_whole();
        TextState::begin(start, whole, |tokens, cache| self.read_one(tokens, cache))
    }

    fn read_one(&self, tokens: &[u32], cache: &mut M::Cache) -> Result<Tensor> {
        self.model.read(tokens, &[tokens.len()], &mut [cache])
    }
}

impl<M: TokenModel> Sampler for Tempered<'_, M> {
    fn chunk_size(&self) -> usize {
        1
    }

    fn special(&self) -> SpecialIds {
        self.model.text().special
    }

    fn start(&self) -> Result<Box<dyn Continuation + '_>> {
        Ok(Box::new(Text { of: *self, context: self.blank()? }))
    }

    fn side_by_side(&self, places: usize) -> Result<Box<dyn SideBySide + '_>> {
        Ok(Box::new(Places::new(*self, places)?))
    }
}

impl<M: TokenModel> Reader for Tempered<'_, M> {
    type Cache = M::Cache;

    fn format(&self) -> &TextFormat {
        self.model.text()
    }

    fn chunk_size(&self) -> usize {
        1
    }

    fn stores(&self) -> Vec<&ParamStore> {
        vec![self.model.store()]
    }

    fn begin(&self) -> Result<TextState<M::Cache>> {
        self.blank()
    }

    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut M::Cache]) -> Result<Tensor> {
        self.model.read(tokens, lengths, caches)
    }

    /// Noise stream `token`.
    fn draw(&self, hidden: &Tensor, samples: usize, seed: DrawSeed, rows: &[RowId]) -> Result<Vec<u32>> {
        let key = NoiseKey::new(seed.seed, &format!("{PURPOSE}/token"), seed.piece);
        let u = philox::uniform(key, rows, samples, 1);
        let drawn = each_distribution(hidden, self.model.output(), self.decoding, |row, p| {
            let u = &u[row * samples..][..samples];
            u.iter().map(|u| invert(p, f64::from(*u))).collect::<Vec<u32>>()
        })?;
        Ok(drawn.concat())
    }
}

/// A text that a model continues.
struct Text<'a, M: TokenModel> {
    of: Tempered<'a, M>,
    context: TextState<M::Cache>,
}

impl<M: TokenModel> Continuation for Text<'_, M> {
    fn push(&mut self, tokens: &[u32]) -> Result<()> {
        let (of, text) = (self.of, self.of.model.text());
        self.context.push(tokens, 1, text.context, text.special, |tokens, cache| of.read_one(tokens, cache))
    }

    fn draw(&self, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>> {
        let (model, context) = (self.of.model, &self.context);
        if context.ended() {
            return Ok(vec![vec![model.text().special.pad]; samples]);
        }
        let logits: Vec<f32> = logits(context.hidden()?, model.output())?.flatten_all()?.to_vec1()?;
        let p = distribution(&logits, self.of.decoding);
        let position = context.tokens().len() as u32;
        let rows: Vec<RowId> =
            (0..samples.div_ceil(1 << 12)).map(|i| RowId { example: i as u32, position }).collect();
        let key = NoiseKey::new(key.seed, "generate/token", key.call);
        let u = philox::uniform(key, &rows, samples.min(1 << 12), 1);
        Ok(u.iter().take(samples).map(|u| vec![invert(&p, f64::from(*u))]).collect())
    }
}
