//! The network on whole rows.

use calm_nn::device::upload;
use calm_nn::{Embedding, Init, ParamStore, Parameter};
use candle_core::{Result, Tensor, bail};

use super::boundaries::{Boundaries, Decisions, Predictor};
use super::concepts::Concepts;
use super::cross::Cross;
use super::scales::Width;
use super::slots::Slots;
use super::{BoundariesConfig, DlcmConfig};
use crate::family::{TextFormat, softmax};
use crate::side_by_side::least_rows;
use crate::{Backbone, ChunkBatch};

/// A dynamic concept model.
pub struct Dlcm {
    pub(super) store: ParamStore,
    embedding: Embedding,
    pub(super) encoder: Backbone,
    pub(super) predictor: Predictor,
    pub(super) concepts: Concepts,
    pub(super) cross: Cross,
    pub(super) decoder: Backbone,
    /// `[V, D]`
    pub(super) output: Parameter,
    pub(super) text: TextFormat,
    pub(super) boundaries: BoundariesConfig,
    straight_through: bool,
    /// s of the token part, by which logits are divided.
    width: f64,
    /// From so many rows on a product has the same bits in any company.
    pub(super) least: usize,
}

/// What a pass over whole rows finds.
pub(super) struct Pass {
    /// `[B, S, D]`, after the decoder's norm.
    pub(super) hidden: Tensor,
    pub(super) boundaries: Boundaries,
}

impl Dlcm {
    /// Creates the parameters in `store`.
    ///
    /// # Errors
    /// No memory left on a GPU.
    pub fn new(store: &ParamStore, config: &DlcmConfig, text: &TextFormat) -> Result<Self> {
        let (b, v, d) = (store.builder(), text.vocab_size, config.tokens.hidden_size);
        let (init, wide): (Init, _) = (config.tokens.init.into(), Width::of_tokens(config));
        Ok(Self {
            store: store.clone(),
            embedding: Embedding::new(&b.under("model"), "embed_tokens", v, d, init, None)?,
            encoder: Backbone::open(&wide.builder(&b.under("encoder")), &wide.layers(config.encoder()))?,
            predictor: Predictor::new(&b, config)?,
            concepts: Concepts::new(&b, config)?,
            cross: Cross::new(&b, config)?,
            decoder: Backbone::new(&wide.builder(&b.under("decoder")), &wide.layers(config.decoder()))?,
            output: b.under("lm_head").weight("weight", &[v, d], init)?,
            text: *text,
            boundaries: config.boundaries.clone(),
            straight_through: config.straight_through,
            width: wide.factor(),
            least: least_rows([store]),
        })
    }

    pub(super) fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, s, k) = ids.dims3()?;
        if k != 1 {
            bail!("a dynamic concept model takes chunks of one token, got {k}")
        }
        self.embedding.forward(&ids.reshape((b, s))?)
    }

    /// Computes the layers again in the backward pass, or not.
    pub(super) fn recompute(&mut self, recompute: bool) {
        for backbone in [&mut self.encoder, &mut self.concepts.backbone, &mut self.decoder] {
            backbone.set_recompute(recompute);
        }
    }

    /// States of the encoder `[B, S, D]`.
    pub(super) fn encode(&self, batch: &ChunkBatch) -> Result<Tensor> {
        self.encoder.forward(&self.embed(&batch.ids)?, &self.encoder.rows(batch)?)
    }

    pub(super) fn pass(&self, batch: &ChunkBatch, decisions: Decisions<'_>) -> Result<Pass> {
        let h = self.encode(batch)?;
        let boundaries = self.predictor.boundaries(&h, batch, decisions)?;
        let (b, s, _) = h.dims3()?;
        let segments = &batch.on_host.segments;
        let slots = Slots::new((b, s), &boundaries.opens, segments, self.concepts.pooling);
        self.behind(&h, boundaries, &slots, batch)
    }

    /// What follows the boundaries.
    pub(super) fn behind(
        &self,
        h: &Tensor,
        boundaries: Boundaries,
        slots: &Slots,
        batch: &ChunkBatch,
    ) -> Result<Pass> {
        let z = self.concepts.forward(h, boundaries.probability.as_ref(), slots, batch)?;
        let mut taken = self.cross.forward(h, &z, slots, batch)?;
        if let (true, Some(p)) = (self.straight_through, &boundaries.probability) {
            // c + (1 − c), the second a constant: 1, with the gradient of c = p of a boundary, 1 − p of another token.
            let opens: Vec<u32> = boundaries.opens.iter().map(|o| u32::from(*o)).collect();
            let opens = upload(&opens, p.dims(), batch.destination())?;
            let certainty = opens.where_cond(p, &(1.0 - p)?)?;
            let one = (&certainty + (1.0 - certainty.detach())?)?.unsqueeze(2)?;
            taken = taken.broadcast_mul(&one.to_dtype(taken.dtype())?)?;
        }
        let x = self.decoder.forward(&(h + taken)?, &self.decoder.rows(batch)?)?;
        Ok(Pass { hidden: self.at_width(x)?, boundaries })
    }

    /// Hidden states as the vocabulary takes them.
    pub(super) fn at_width(&self, hidden: Tensor) -> Result<Tensor> {
        if self.width == 1.0 { Ok(hidden) } else { hidden.affine(self.width.recip(), 0.0) }
    }

    /// The boundaries that are taken of a batch where nothing is drawn.
    ///
    /// # Errors
    /// As [`Self::hidden`].
    pub fn settled_boundaries(&self, batch: &ChunkBatch) -> Result<Boundaries> {
        self.predictor.boundaries(&self.encode(batch)?, batch, Decisions::Settled)
    }

    /// Hidden states `[R, D]` of the predicting positions.
    ///
    /// # Errors
    /// Chunks of more than one token; on the CPU an id outside the vocabulary; what a GPU answers.
    pub fn hidden(&self, batch: &ChunkBatch) -> Result<Tensor> {
        batch.pick(&self.pass(batch, Decisions::Settled)?.hidden)
    }

    /// As [`Self::hidden`] with these boundaries `[B·S]`; documents begin with one all the same.
    ///
    /// # Errors
    /// As [`Self::hidden`]; another number of boundaries.
    pub fn hidden_given(&self, batch: &ChunkBatch, opens: &[bool]) -> Result<Tensor> {
        batch.pick(&self.pass(batch, Decisions::Given(opens))?.hidden)
    }

    /// Hidden states `[R, D]` -> logits `[R, V]` in the format of the parameters.
    ///
    /// # Errors
    /// Another width than D; what a GPU answers.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        softmax::logits(hidden, &self.output)
    }
}
