//! The continuous autoregressive language model.

use calm_autoencoder::{Autoencoder, Posterior};
use calm_nn::device::upload;
use calm_nn::{Builder, Embedding, Init, Noise, RowId};
use candle_core::{DType, Result, Tensor};

use crate::backbone::Branch;
use crate::context::Context;
use crate::head::{self, Head};
use crate::input::ChunkInput;
use crate::sampler::{DrawKey, Sampler, SpecialIds};
use crate::{Backbone, BackboneConfig, Cache, ChunkBatch, HeadConfig};

/// Input module, backbone and head, on a frozen autoencoder. Parameter names are those of the reference
/// implementation (`transformer.*`, `embed_proj.*`, `mlp_generator.*`).
pub struct Calm {
    embedding: Embedding,
    input: ChunkInput,
    backbone: Backbone,
    head: Box<dyn Head>,
    autoencoder: Autoencoder,
    special: SpecialIds,
    context: usize,
    bos_chunk: bool,
}

/// Loss of one batch: sum over R rows, to be divided by the rows of the whole global batch.
#[derive(Clone, Debug)]
pub struct RowLoss {
    /// Scalar with gradient.
    pub sum: Tensor,
    /// R.
    pub rows: usize,
}

/// Draws at every predicted position of a batch.
#[derive(Clone, Debug)]
pub struct PositionDraws {
    /// `[R, steps, N, K]`; step j > 0 continues sample 0 of the steps before it, and is PAD where no other
    /// sample agrees with sample 0 so far.
    pub tokens: Vec<u32>,
    /// R.
    pub rows: usize,
    /// Chunks rolled forward.
    pub steps: usize,
    /// N.
    pub samples: usize,
    /// K.
    pub chunk_size: usize,
}

impl PositionDraws {
    /// Tokens of one draw.
    pub fn chunk(&self, row: usize, step: usize, sample: usize) -> &[u32] {
        let at = ((row * self.steps + step) * self.samples + sample) * self.chunk_size;
        &self.tokens[at..at + self.chunk_size]
    }
}

impl Calm {
    /// Creates the parameters under `b`. `context` is the longest trained sequence in chunks; `bos_chunk`
    /// says whether documents start with an input-only chunk of BOS.
    pub fn new(
        b: &Builder,
        backbone: &BackboneConfig,
        head: &HeadConfig,
        autoencoder: Autoencoder,
        special: SpecialIds,
        context: usize,
        bos_chunk: bool,
    ) -> Result<Self> {
        let vocab = autoencoder.embedding_table().dim(0)?;
        let init = Init::Normal(backbone.init_std);
        let t = b.under("transformer");
        Ok(Self {
            embedding: Embedding::new(
                &t,
                "embed_tokens",
                vocab,
                backbone.hidden_size,
                init,
                Some(special.pad),
            )?,
            input: ChunkInput::new(
                &b.under("embed_proj"),
                autoencoder.chunk_size(),
                backbone.hidden_size,
                init,
            )?,
            backbone: Backbone::new(&t, backbone)?,
            head: head::build(b, head, backbone, autoencoder.latent_size())?,
            autoencoder,
            special,
            context,
            bos_chunk,
        })
    }

    /// The frozen autoencoder.
    pub fn autoencoder(&self) -> &Autoencoder {
        &self.autoencoder
    }

    /// The head.
    pub fn head(&self) -> &dyn Head {
        self.head.as_ref()
    }

    /// The backbone.
    pub fn backbone(&self) -> &Backbone {
        &self.backbone
    }

    /// See [`Backbone::set_recompute`].
    pub fn set_recompute(&mut self, recompute: bool) {
        self.backbone.set_recompute(recompute);
    }

    /// U32 ids `[B, S, K]` -> backbone inputs `[B, S, D]`.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, s, _) = ids.dims3()?;
        self.input.forward(&self.embedding.forward(ids)?.reshape((b, s, ()))?)
    }

    /// Hidden states `[R, D]` of the predicting positions.
    pub fn hidden(&self, batch: &ChunkBatch) -> Result<Tensor> {
        let x = self.backbone.forward(&self.embed(&batch.ids)?, &batch.positions, &batch.segments)?;
        batch.pick(&x)
    }

    /// The frozen posterior of chunks `[R, K]`.
    pub fn posterior(&self, chunks: &Tensor) -> Result<Posterior> {
        Ok(self.autoencoder.encode(chunks)?.detach())
    }

    /// Training loss of a batch.
    pub fn loss(&self, batch: &ChunkBatch, noise: &Noise<'_>) -> Result<RowLoss> {
        let hidden = self.hidden(batch)?;
        let posterior = self.posterior(&batch.targets()?)?;
        Ok(RowLoss { sum: self.head.loss(&hidden, &posterior, noise)?.sum_all()?, rows: batch.sources.len() })
    }

    /// The loss with true and with exchanged hidden states (each row is given another row's), without
    /// gradient: how much the head uses its condition.
    pub fn condition_check(&self, batch: &ChunkBatch, noise: &Noise<'_>) -> Result<(f64, f64)> {
        let hidden = self.hidden(batch)?.detach();
        let posterior = self.posterior(&batch.targets()?)?;
        let rows = batch.sources.len();
        let shift = rows / 2;
        let index: Vec<u32> = (0..rows).map(|i| ((i + shift) % rows) as u32).collect();
        let exchanged = hidden.index_select(&upload(&index, rows, batch.destination())?, 0)?;
        let mean = |h: &Tensor| -> Result<f64> {
            self.head.loss(h, &posterior, noise)?.to_dtype(DType::F64)?.mean_all()?.to_scalar()
        };
        Ok((mean(&hidden)?, mean(&exchanged)?))
    }

    /// Latents `[R, N, L]` -> tokens, row-major `[R, N, K]`.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<u32>> {
        let (r, n, l) = latents.dims3()?;
        self.autoencoder.decode(&latents.reshape((r * n, l))?)?.flatten_all()?.to_vec1()
    }

    /// N draws at every predicted position, rolled `steps` chunks forward along sample 0; all positions in
    /// one pass a step. Noise stream `head` of `purpose`, step number = roll-out step.
    ///
    /// A later step is drawn only where another sample still agrees with sample 0 in all steps before it: no
    /// score looks further. Elsewhere it is PAD.
    pub fn draw_positions(
        &self,
        batch: &ChunkBatch,
        samples: usize,
        steps: usize,
        seed: u64,
        purpose: &str,
    ) -> Result<PositionDraws> {
        let k = self.chunk_size();
        let (b, s, _) = batch.ids.dims3()?;
        let rows = batch.sources.len();
        let inputs = self.embed(&batch.ids)?.detach();
        let (x, trunk) = self.backbone.forward_trunk(&inputs, &batch.positions, &batch.segments)?;
        let mut hidden = batch.pick(&x)?.detach();
        let mut branch = Branch::default();
        let mut ended = vec![false; rows];
        let tokens = vec![self.special.pad; rows * steps * samples * k];
        let mut out = PositionDraws { tokens, rows, steps, samples, chunk_size: k };
        let mut open: Vec<u32> = (0..rows as u32).collect();
        for step in 0..steps {
            let ids: Vec<RowId> = open.iter().map(|row| batch.rows[*row as usize]).collect();
            let noise = Noise::Keyed { seed, purpose, step: step as u32, rows: &ids };
            let mut drawn = self.draw_rows(&hidden, samples, &noise)?;
            let mut first_of_row = vec![self.special.pad; b * s * k];
            for (mine, row) in drawn.chunks_mut(samples * k).zip(&open) {
                let row = *row as usize;
                let before = ended[row];
                for (i, chunk) in mine.chunks_mut(k).enumerate() {
                    let end = self.special.close(chunk, before);
                    if i == 0 {
                        ended[row] = end;
                    }
                }
                let at = batch.sources[row] as usize * k;
                first_of_row[at..at + k].copy_from_slice(&mine[..k]);
                let to = (row * steps + step) * samples * k;
                out.tokens[to..to + samples * k].copy_from_slice(mine);
            }
            let agrees = |row: usize, n: usize| {
                (0..=step).all(|step| out.chunk(row, step, n) == out.chunk(row, step, 0))
            };
            open.retain(|row| (1..samples).any(|n| agrees(*row as usize, n)));
            if step + 1 == steps || open.is_empty() {
                break;
            }
            let ids = upload(&first_of_row, (b, s, k), batch.destination())?;
            let x = self.backbone.forward_branch(&self.embed(&ids)?.detach(), &trunk, &mut branch)?;
            let index = upload(&open, open.len(), batch.destination())?;
            hidden = batch.pick(&x)?.detach().index_select(&index, 0)?;
        }
        Ok(out)
    }

    /// Draws `[R, N, K]` in blocks of rows, so that memory stays bounded for many samples.
    fn draw_rows(&self, hidden: &Tensor, samples: usize, noise: &Noise<'_>) -> Result<Vec<u32>> {
        let rows = hidden.dim(0)?;
        let Noise::Keyed { seed, purpose, step, rows: ids } = *noise else {
            return self.decode(&self.head.sample(hidden, samples, noise)?);
        };
        let block = (4096 / samples).max(1);
        let mut out = Vec::with_capacity(rows * samples * self.chunk_size());
        for at in (0..rows).step_by(block) {
            let n = block.min(rows - at);
            let noise = Noise::Keyed { seed, purpose, step, rows: &ids[at..at + n] };
            let latents = self.head.sample(&hidden.narrow(0, at, n)?.contiguous()?, samples, &noise)?;
            out.extend(self.decode(&latents.detach())?);
        }
        Ok(out)
    }
}

impl Calm {
    fn forward_cached(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        let k = self.chunk_size();
        let ids = upload(tokens, (1, tokens.len() / k, k), self.autoencoder.embedding_table())?;
        self.backbone.forward_cached(&self.embed(&ids)?.detach(), cache)
    }
}

impl Sampler for Calm {
    type State = Context;

    fn chunk_size(&self) -> usize {
        self.autoencoder.chunk_size()
    }

    fn special(&self) -> SpecialIds {
        self.special
    }

    fn start(&self) -> Result<Context> {
        let mut state = Context::default();
        if self.bos_chunk {
            let bos = vec![self.special.bos; self.chunk_size()];
            state.extend(&bos, |t, c| self.forward_cached(t, c))?;
        }
        Ok(state)
    }

    fn push(&self, state: &mut Context, tokens: &[u32]) -> Result<()> {
        let k = self.chunk_size();
        state.push(tokens, k, self.context, self.special, |t, c| self.forward_cached(t, c))
    }

    fn draw(&self, state: &Context, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>> {
        // A stream counts samples in 16 bits: larger pools are several rows.
        let per_row = samples.min(1 << 12);
        let rows: Vec<RowId> = (0..samples.div_ceil(per_row))
            .map(|i| RowId { example: i as u32, position: (state.tokens().len() / self.chunk_size()) as u32 })
            .collect();
        let hidden = state.hidden()?.repeat((rows.len(), 1))?;
        let noise = Noise::Keyed { seed: key.seed, purpose: "generate", step: key.call, rows: &rows };
        let tokens = self.draw_rows(&hidden, per_row, &noise)?;
        Ok(tokens
            .chunks(self.chunk_size())
            .take(samples)
            .map(|c| {
                let mut c = c.to_vec();
                self.special.close(&mut c, state.ended());
                c
            })
            .collect())
    }
}
