//! The baseline's network, its loss and its draws.

use calm_nn::device::upload;
use calm_nn::{Embedding, Init, NoiseKey, ParamStore, Parameter, RowId, philox};
use candle_core::{Result, Tensor, bail};

use super::BaselineConfig;
use crate::backbone::Branch;
use crate::family::softmax::{self, each_distribution, invert, ln};
use crate::family::{ExactDraws, GRAM, TextFormat, TokenDecoding};
use crate::sampler::SpecialIds;
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

/// What scoring needs of one next-token distribution.
pub(super) struct RowStatistics {
    pub(super) log_p_target: f64,
    sum_p_squared: f64,
    draws: [u32; 2],
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
        let x = self.backbone.forward(&self.embed(&batch.ids)?, &batch.positions, &batch.segments)?;
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
        let rows = batch.sources.len();
        let targets: Vec<u32> = batch.targets()?.flatten_all()?.to_vec1()?;
        let inputs = self.embed(&batch.ids)?.detach();
        let (x, trunk) = self.backbone.forward_trunk(&inputs, &batch.positions, &batch.segments)?;
        let mut hidden = batch.pick(&x)?.detach();
        let mut branch = Branch::default();
        let SpecialIds { pad, eos, .. } = self.text.special;
        let mut out = ExactDraws {
            log_p: Vec::with_capacity(rows),
            gram_log_p: Vec::new(),
            paths: vec![[[pad; GRAM - 1]; 2]; rows],
            squares: vec![[1.0; GRAM]; rows],
        };
        let mut ended = vec![false; rows];
        for step in 0..GRAM {
            let key = NoiseKey::new(seed, &format!("{purpose}/token"), step as u32);
            let stats = self.statistics(&hidden, &targets, key, &batch.rows)?;
            let mut next = vec![pad; b * s];
            for (row, st) in stats.iter().enumerate() {
                if step == 0 {
                    out.log_p.push(st.log_p_target);
                }
                // After EOS the next token is PAD with certainty: squares stay 1, paths PAD.
                if ended[row] {
                    continue;
                }
                out.squares[row][step] = st.sum_p_squared;
                if step + 1 < GRAM {
                    out.paths[row][0][step] = st.draws[0];
                    out.paths[row][1][step] = st.draws[1];
                    next[batch.sources[row] as usize] = st.draws[0];
                    ended[row] = st.draws[0] == eos;
                }
            }
            if step + 1 < GRAM {
                let ids = upload(&next, (b, s, 1), batch.destination())?;
                let x = self.backbone.forward_branch(&self.embed(&ids)?.detach(), &trunk, &mut branch)?;
                hidden = batch.pick(&x)?.detach();
            }
        }
        // The next tokens of a text are the targets of the positions after it (where a text ends, those of the next).
        let after = |row: usize| std::array::from_fn(|n| out.log_p.get(row + n).copied().unwrap_or(0.0));
        out.gram_log_p = (0..rows).map(after).collect();
        Ok(out)
    }

    pub(super) fn statistics(
        &self,
        hidden: &Tensor,
        targets: &[u32],
        key: NoiseKey,
        ids: &[RowId],
    ) -> Result<Vec<RowStatistics>> {
        let u = philox::uniform(key, ids, 2, 1);
        each_distribution(hidden, &self.output, TokenDecoding::default(), |row, p| RowStatistics {
            log_p_target: ln(p[targets[row] as usize]),
            sum_p_squared: p.iter().map(|p| p * p).sum(),
            draws: [invert(p, f64::from(u[2 * row])), invert(p, f64::from(u[2 * row + 1]))],
        })
    }
}

impl Baseline {
    /// Tokens -> backbone inputs `[1, S, D]`, without gradient.
    pub(super) fn inputs(&self, tokens: &[u32]) -> Result<Tensor> {
        let ids = upload(tokens, (1, tokens.len(), 1), &self.output)?;
        Ok(self.embed(&ids)?.detach())
    }
}
