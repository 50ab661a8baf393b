//! The baseline's network, its loss and its draws.

use calm_nn::device::upload;
use calm_nn::{Embedding, Init, ParamStore, Parameter};
use candle_core::{Result, Tensor, bail};

use super::BaselineConfig;
use crate::backbone::Branch;
use crate::family::softmax;
use crate::family::token_draws::TokenDraws;
use crate::family::{ExactDraws, TextFormat};
use crate::{Backbone, ChunkBatch};

/// A Llama language model; parameter names as in published Llama checkpoints.
pub struct Baseline {
    pub(super) store: ParamStore,
    embedding: Embedding,
    pub(super) backbone: Backbone,
    /// `[V, D]`
    pub(super) output: Parameter,
    pub(super) text: TextFormat,
}

impl Baseline {
    /// Creates the parameters in `store`.
    ///
    /// # Errors
    /// No memory left on a GPU.
    pub fn new(store: &ParamStore, config: &BaselineConfig, text: &TextFormat) -> Result<Self> {
        let (b, v, d) = (store.builder(), text.vocab_size, config.backbone.hidden_size);
        let init: Init = config.backbone.init.into();
        let m = b.under("model");
        Ok(Self {
            store: store.clone(),
            embedding: Embedding::new(&m, "embed_tokens", v, d, init, None)?,
            backbone: Backbone::new(&m, &config.backbone)?,
            output: b.under("lm_head").weight("weight", &[v, d], init)?,
            text: *text,
        })
    }

    pub(super) fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, s, k) = ids.dims3()?;
        if k != 1 {
            bail!("the baseline takes chunks of one token, got {k}")
        }
        self.embedding.forward(&ids.reshape((b, s))?)
    }

    /// Hidden states `[R, D]` of the predicting positions.
    ///
    /// # Errors
    /// Chunks of more than one token; on the CPU an id outside the vocabulary; what a GPU answers.
    pub fn hidden(&self, batch: &ChunkBatch) -> Result<Tensor> {
        let x = self.backbone.forward(&self.embed(&batch.ids)?, &self.backbone.rows(batch)?)?;
        batch.pick(&x)
    }

    /// Hidden states `[R, D]` -> logits `[R, V]` in the format of the parameters.
    ///
    /// # Errors
    /// Another width than D; what a GPU answers.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        softmax::logits(hidden, &self.output)
    }

    /// Draws for the Brier terms at all positions in one pass a step: probabilities of the targets, two
    /// sampled paths and Σ p² along the first.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn draw_positions(&self, batch: &ChunkBatch, seed: u64, purpose: &str) -> Result<ExactDraws> {
        let (b, s, _) = batch.ids.dims3()?;
        let targets: Vec<u32> = batch.targets()?.flatten_all()?.to_vec1()?;
        let inputs = self.embed(&batch.ids)?.detach();
        let (x, trunk) = self.backbone.forward_trunk(&inputs, &self.backbone.rows(batch)?)?;
        let mut branch = Branch::default();
        let draws = TokenDraws { output: &self.output, special: self.text.special, seed, purpose };
        let mut out = draws.along(batch.pick(&x)?.detach(), &targets, &batch.rows, |tokens| {
            let mut next = vec![self.text.special.pad; b * s];
            for (at, token) in batch.sources.iter().zip(tokens) {
                next[*at as usize] = *token;
            }
            let ids = upload(&next, (b, s, 1), batch.destination())?;
            let x = self.backbone.forward_branch(&self.embed(&ids)?.detach(), &trunk, &mut branch)?;
            Ok(batch.pick(&x)?.detach())
        })?;
        out.follow_targets();
        Ok(out)
    }
}

impl Baseline {
    /// Tokens -> backbone inputs `[1, S, D]`, without gradient.
    pub(super) fn inputs(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = upload(tokens, (1, tokens.len(), 1), &self.output)?;
        Ok(self.embed(&ids)?.detach())
    }
}
