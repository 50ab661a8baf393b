//! The continuous autoregressive language model.

use calm_autoencoder::{Autoencoder, Posterior};
use calm_kernels::SCREENED_ROWS;
use calm_nn::device::upload;
use calm_nn::{Embedding, Init, Noise, ParamStore, RowId};
use candle_core::{Result, Tensor, bail};

use super::decode::sample;
use super::decoder::LatentDecoder;
use super::{CalmConfig, LikelihoodConfig};
use crate::backbone::Branch;
use crate::family::input::ChunkInput;
use crate::family::{Decode, SampledDraws, TextFormat, TokenDecoding};
use crate::head::Head;
use crate::side_by_side::even_parts;
use crate::text_state::TextState;
use crate::{Backbone, Cache, ChunkBatch};

/// Latent vectors that are drawn at a time.
pub(super) const DRAWN: usize = 4096;

/// Input module, backbone and head, on a frozen autoencoder whose decoder may have a trained copy. Parameter names are those of the reference
/// implementation (`transformer.*`, `embed_proj.*`, `mlp_generator.*`).
pub struct Calm {
    pub(super) store: ParamStore,
    embedding: Embedding,
    input: ChunkInput,
    pub(super) backbone: Backbone,
    pub(super) head: Box<dyn Head>,
    pub(super) autoencoder: Autoencoder,
    pub(super) decoder: LatentDecoder,
    pub(super) decode: Decode,
    pub(super) likelihood: Option<LikelihoodConfig>,
    pub(super) text: TextFormat,
}

impl Calm {
    /// Creates the parameters in `store`.
    ///
    /// # Errors
    /// An autoencoder of other sizes; no memory left on a GPU.
    pub fn new(
        store: &ParamStore,
        config: &CalmConfig,
        autoencoder: Autoencoder,
        text: &TextFormat,
    ) -> Result<Self> {
        let made_for =
            (autoencoder.embedding_table().dim(0)?, autoencoder.chunk_size(), autoencoder.latent_size());
        let wanted = (text.vocab_size, config.chunk_size, config.latent_size());
        if made_for != wanted {
            bail!(
                "the autoencoder's vocabulary, chunk size and latent size are {made_for:?}, the model's {wanted:?}"
            )
        }
        let (b, d) = (store.builder(), config.backbone.hidden_size);
        let init: Init = config.backbone.init.into();
        let t = b.under("transformer");
        let pad = Some(text.special.pad);
        Ok(Self {
            store: store.clone(),
            embedding: Embedding::new(&t, "embed_tokens", text.vocab_size, d, init, pad)?,
            input: ChunkInput::new(&b.under("embed_proj"), config.chunk_size, d, init)?,
            backbone: Backbone::new(&t, &config.backbone)?,
            head: config.head.build(&b, &config.backbone, config.latent_size())?,
            decoder: LatentDecoder::new(&b, config.decoder(), d, &autoencoder)?,
            autoencoder,
            decode: config.decode,
            likelihood: config.likelihood,
            text: *text,
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

    /// The text as it meets it.
    pub(super) fn format(&self) -> &TextFormat {
        &self.text
    }

    /// U32 ids `[B, S, K]` -> backbone inputs `[B, S, D]`.
    ///
    /// # Errors
    /// Chunks of another size; on the CPU an id outside the vocabulary; what a GPU answers.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, s, _) = ids.dims3()?;
        self.input.forward(&self.embedding.forward(ids)?.reshape((b, s, ()))?)
    }

    /// Hidden states `[R, D]` of the predicting positions.
    ///
    /// # Errors
    /// As [`Calm::embed`].
    pub fn hidden(&self, batch: &ChunkBatch) -> Result<Tensor> {
        let x = self.backbone.forward(&self.embed(&batch.ids)?, &self.backbone.rows(batch)?)?;
        batch.pick(&x)
    }

    /// The frozen posterior of chunks `[R, K]`.
    ///
    /// # Errors
    /// As [`Autoencoder::encode`].
    pub fn posterior(&self, chunks: &Tensor) -> Result<Posterior> {
        Ok(self.autoencoder.encode(chunks)?.detach())
    }

    /// Latents `[R, N, L]` at hidden states `[R, D]` -> the most probable tokens, row-major `[R, N, K]`.
    ///
    /// # Errors
    /// Latents of another size; what a GPU answers.
    pub fn argmax(&self, latents: &Tensor, hidden: &Tensor) -> Result<Vec<u32>> {
        self.decoder.decoder.argmax(&self.decoder.hidden(latents, hidden)?)?.flatten_all()?.to_vec1()
    }

    /// Latents `[R, N, L]` at hidden states `[R, D]` -> logits `[R·N·K, V]`; for small inputs.
    ///
    /// # Errors
    /// Latents of another size; what a GPU answers.
    pub fn decoded(&self, latents: &Tensor, hidden: &Tensor) -> Result<Tensor> {
        self.decoder.decoder.logits(&self.decoder.hidden(latents, hidden)?)
    }

    /// N draws at every predicted position, rolled `steps` chunks forward along sample 0; all positions in
    /// one pass a step. Noise stream `head` of `purpose`, step number = roll-out step.
    ///
    /// A later step is drawn only where another sample still agrees with sample 0 in all steps before it: no
    /// score looks further. Elsewhere it is PAD.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn draw_positions(
        &self,
        batch: &ChunkBatch,
        samples: usize,
        steps: usize,
        seed: u64,
        purpose: &str,
    ) -> Result<SampledDraws> {
        let k = self.autoencoder.chunk_size();
        let (b, s, _) = batch.ids.dims3()?;
        let rows = batch.sources.len();
        let inputs = self.embed(&batch.ids)?.detach();
        let (x, trunk) = self.backbone.forward_trunk(&inputs, &self.backbone.rows(batch)?)?;
        let mut hidden = batch.pick(&x)?.detach();
        let mut branch = Branch::default();
        let mut ended = vec![false; rows];
        let tokens = vec![self.text.special.pad; rows * steps * samples * k];
        let mut out = SampledDraws { tokens, rows, steps, samples, chunk_size: k };
        let mut open: Vec<u32> = (0..rows as u32).collect();
        for step in 0..steps {
            let ids: Vec<RowId> = open.iter().map(|row| batch.rows[*row as usize]).collect();
            let noise = Noise::Keyed { seed, purpose, step: step as u32, rows: &ids };
            let mut drawn = self.draw_rows(&hidden, samples, &noise, None)?;
            let mut first_of_row = vec![self.text.special.pad; b * s * k];
            for (mine, row) in drawn.chunks_mut(samples * k).zip(&open) {
                let row = *row as usize;
                let before = ended[row];
                for (i, chunk) in mine.chunks_mut(k).enumerate() {
                    let end = self.text.special.close(chunk, before);
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

    /// Latents `[R, N, L]` at hidden states `[R, D]` -> tokens, row-major `[R, N, K]`, as the settings say or with this
    /// decoding of the softmax.
    fn tokens(
        &self,
        latents: &Tensor,
        hidden: &Tensor,
        noise: &Noise<'_>,
        decoding: Option<TokenDecoding>,
    ) -> Result<Vec<u32>> {
        if (self.decode, decoding) == (Decode::Argmax, None) {
            return self.argmax(latents, hidden);
        }
        let (samples, decoder) = (latents.dim(1)?, &self.decoder.decoder);
        sample(decoder, &self.decoder.hidden(latents, hidden)?, samples, noise, decoding.unwrap_or_default())
    }

    /// One draw `[R, K]` of each row. On the CPU the decoder's argmax goes one way for any number of rows.
    pub(super) fn draw_each(
        &self,
        hidden: &Tensor,
        noise: &Noise<'_>,
        decoding: Option<TokenDecoding>,
    ) -> Result<Vec<u32>> {
        if (self.decode, decoding) != (Decode::Argmax, None) || !hidden.device().is_cpu() {
            return self.draw_rows(hidden, 1, noise, decoding);
        }
        let latents = self.head.sample(hidden, 1, noise)?.detach();
        let (states, decoder) = (self.decoder.hidden(&latents, hidden)?, &self.decoder.decoder);
        let k = decoder.chunk_size();
        let mut out = Vec::with_capacity(states.dim(0)?);
        for (at, chunks) in even_parts(states.dim(0)? / k, (SCREENED_ROWS - 1) / k) {
            let some = states.narrow(0, at * k, chunks * k)?.contiguous()?;
            out.extend(decoder.argmax(&some)?.flatten_all()?.to_vec1::<u32>()?);
        }
        Ok(out)
    }

    /// Draws `[R, N, K]` in blocks of rows, so that memory stays bounded for many samples.
    pub(super) fn draw_rows(
        &self,
        hidden: &Tensor,
        samples: usize,
        noise: &Noise<'_>,
        decoding: Option<TokenDecoding>,
    ) -> Result<Vec<u32>> {
        let rows = hidden.dim(0)?;
        let Noise::Keyed { seed, purpose, step, rows: ids } = *noise else {
            return self.tokens(&self.head.sample(hidden, samples, noise)?, hidden, noise, decoding);
        };
        let block = (DRAWN / samples.max(1)).max(1);
        let mut out = Vec::with_capacity(rows * samples * self.autoencoder.chunk_size());
        for at in (0..rows).step_by(block) {
            let n = block.min(rows - at);
            let noise = Noise::Keyed { seed, purpose, step, rows: &ids[at..at + n] };
            let hidden = hidden.narrow(0, at, n)?.contiguous()?;
            let latents = self.head.sample(&hidden, samples, &noise)?;
            out.extend(self.tokens(&latents.detach(), &hidden, &noise, decoding)?);
        }
        Ok(out)
    }
}

impl Calm {
    /// A text with nothing in it yet: the hidden state after BOS, where documents begin so.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn begin(&self) -> Result<TextState> {
        let bos = || vec![self.text.special.bos; self.autoencoder.chunk_size()];
        let whole = self.backbone.reads_input_whole();
        TextState::begin(self.text.bos_chunk.then(bos), whole, |t, c| self.forward_cached(t, c))
    }

    /// Appends whole chunks to a text.
    ///
    /// # Errors
    /// Another number of tokens; what a GPU answers.
    pub fn read(&self, context: &mut TextState, tokens: &[u32]) -> Result<()> {
        let (k, text) = (self.autoencoder.chunk_size(), &self.text);
        context.push(tokens, k, text.context, text.special, |t, c| self.forward_cached(t, c))
    }

    fn forward_cached(&self, tokens: &[u32], cache: &mut Cache) -> Result<Tensor> {
        self.backbone.forward_cached(&self.inputs(tokens)?, cache)
    }

    /// Whole chunks -> backbone inputs `[1, S, D]`, without gradient.
    pub(super) fn inputs(&self, tokens: &[u32]) -> Result<Tensor> {
        let k = self.autoencoder.chunk_size();
        let ids = upload(tokens, (1, tokens.len() / k, k), self.autoencoder.embedding_table())?;
        Ok(self.embed(&ids)?.detach())
    }
}
