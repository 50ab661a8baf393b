//! The network: embeddings, input module, backbone, decoder, vocabulary.

use calm_kernels as ops;
use calm_nn::device::upload;
use calm_nn::{Builder, Embedding, Init, ParamStore, Parameter};
use candle_core::{Result, Tensor, bail};

use super::ChunkDecoder;
use crate::family::filler::{length, up_to_end};
use crate::family::input::ChunkInput;
use crate::family::softmax::{each_distribution, ln};
use crate::family::{TextFormat, TokenDecoding};
use crate::{Backbone, BackboneConfig, Cache, ChunkBatch, TextState};

/// A transformer over chunks with a decoder of their tokens. Parameter names: `model.*` as in published Llama
/// checkpoints, `embed_proj.*` for the input module, `lm_head.weight` for the vocabulary; the decoder has its own.
pub struct ChunkSoftmax {
    pub(super) store: ParamStore,
    pub(super) embedding: Embedding,
    input: ChunkInput,
    pub(super) backbone: Backbone,
    pub(super) decoder: Box<dyn ChunkDecoder>,
    /// `[V, W]`
    pub(super) output: Parameter,
    pub(super) chunk_size: usize,
    pub(super) text: TextFormat,
}

impl ChunkSoftmax {
    /// Creates the parameters in `store`; `decoder` makes its own under the root.
    pub(in crate::family) fn new(
        store: &ParamStore,
        chunk_size: usize,
        backbone: &BackboneConfig,
        text: &TextFormat,
        decoder: impl FnOnce(&Builder) -> Result<Box<dyn ChunkDecoder>>,
    ) -> Result<Self> {
        let (b, v, d) = (store.builder(), text.vocab_size, backbone.hidden_size);
        let init: Init = backbone.init.into();
        let m = b.under("model");
        let decoder = decoder(&b)?;
        Ok(Self {
            store: store.clone(),
            embedding: Embedding::new(&m, "embed_tokens", v, d, init, Some(text.special.pad))?,
            input: ChunkInput::new(&b.under("embed_proj"), chunk_size, d, init)?,
            backbone: Backbone::new(&m, backbone)?,
            output: b.under("lm_head").weight("weight", &[v, decoder.width()], init)?,
            decoder,
            chunk_size,
            text: *text,
        })
    }

    /// U32 ids `[B, S, K]` -> backbone inputs `[B, S, D]`.
    pub(super) fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, s, k) = ids.dims3()?;
        if k != self.chunk_size {
            bail!("a model of chunks of {} tokens got chunks of {k}", self.chunk_size)
        }
        self.input.forward(&self.embedding.forward(ids)?.reshape((b, s, ()))?)
    }

    /// Hidden states `[R, D]` of the predicting positions.
    ///
    /// # Errors
    /// Chunks of another size; on the CPU an id outside the vocabulary; what a GPU answers.
    pub fn hidden(&self, batch: &ChunkBatch) -> Result<Tensor> {
        let x = self.backbone.forward(&self.embed(&batch.ids)?, &self.backbone.rows(batch)?)?;
        batch.pick(&x)
    }

    /// The vocabulary, `[V, W]`.
    pub fn output(&self) -> &Parameter {
        &self.output
    }

    /// Cross-entropy of the targets U32 `[R, K]` after hidden states `[R, D]`, in nats: the sum over the rows of the
    /// mean over the K places of a chunk, of which those after EOS are certain.
    pub(super) fn cross_entropy(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let states = self.decoder.teacher_forced(hidden, targets)?;
        let (r, k, w) = states.dims3()?;
        let weights = (up_to_end(targets, self.text.special.eos)? / k as f64)?.flatten_all()?;
        let weights = if states.device().is_cpu() { weights.to_dtype(states.dtype())? } else { weights };
        ops::tied_cross_entropy(
            &states.reshape((r * k, w))?,
            &self.output,
            &targets.flatten_all()?,
            Some(&weights),
        )
    }

    /// ln p of every token of the targets U32 `[R, K]` after hidden states `[R, D]`, row-major; 0 after EOS.
    pub(super) fn log_p(&self, hidden: &Tensor, targets: &Tensor) -> Result<Vec<f64>> {
        let states = self.decoder.teacher_forced(hidden, targets)?.detach();
        let (r, k, w) = states.dims3()?;
        let ids: Vec<u32> = targets.flatten_all()?.to_vec1()?;
        let states = states.reshape((r * k, w))?;
        let mut log_p = each_distribution(&states, &self.output, TokenDecoding::default(), |at, p| {
            ln(p[ids[at] as usize])
        })?;
        for (log_p, ids) in log_p.chunks_exact_mut(k).zip(ids.chunks_exact(k)) {
            log_p[length(ids, self.text.special.eos)..].fill(0.0);
        }
        Ok(log_p)
    }

    fn forward_cached(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        self.backbone.forward_cached(&self.inputs(tokens)?, cache)
    }

    /// Whole chunks -> backbone inputs `[1, S, D]`, without gradient.
    pub(super) fn inputs(&self, tokens: &[u32]) -> Result<Tensor> {
        let k = self.chunk_size;
        let ids = upload(tokens, (1, tokens.len() / k, k), &self.output)?;
        Ok(self.embed(&ids)?.detach())
    }

    /// A text with nothing in it yet: the hidden state after BOS, where documents begin so.
    pub(super) fn begin(&self) -> Result<TextState> {
        let start = self.text.bos_chunk.then(|| vec![self.text.special.bos; self.chunk_size]);
        let whole = self.backbone.reads_input_whole();
        TextState::begin(start, whole, |t, c| self.forward_cached(t, c))
    }

    /// Appends whole chunks to a text.
    pub(super) fn read(&self, context: &mut TextState, tokens: &[u32]) -> Result<()> {
        let (k, text) = (self.chunk_size, &self.text);
        context.push(tokens, k, text.context, text.special, |t, c| self.forward_cached(t, c))
    }
}
