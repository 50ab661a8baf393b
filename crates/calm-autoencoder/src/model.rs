//! Encoder, decoder and training loss.

use calm_kernels as ops;
use calm_nn::{Builder, Embedding, Init, Linear, Noise, ParamStore, Parameter, RmsNorm};
use candle_core::{DType, Result, Tensor, bail};

use crate::block::{Block, blocks};
use crate::{AutoencoderConfig, Decoder};

/// A diagonal Gaussian per chunk.
#[derive(Clone, Debug)]
pub struct Posterior {
    /// `[R, L]`
    pub mean: Tensor,
    /// `[R, L]`
    pub log_std: Tensor,
}

impl Posterior {
    /// `mean + exp(log_std) · eps`, eps `[R, L]`.
    ///
    /// # Errors
    /// Numbers of another shape or format.
    pub fn sample(&self, eps: &Tensor) -> Result<Tensor> {
        &self.mean + (self.log_std.exp()? * eps)?
    }

    /// `KL = ½ (mean² + std² − 1 − 2·log_std)` to the standard normal, per dimension `[R, L]`, nats.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn kl(&self) -> Result<Tensor> {
        let squares = (self.mean.sqr()? + (&self.log_std * 2.0)?.exp()?)?;
        ((squares - (&self.log_std * 2.0)?)? - 1.0)? * 0.5
    }

    /// Without gradient.
    pub fn detach(&self) -> Self {
        Self { mean: self.mean.detach(), log_std: self.log_std.detach() }
    }
}

/// At least f32: what is summed or compared is never narrower.
fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(if x.dtype() == DType::F64 { DType::F64 } else { DType::F32 })
}

/// Sums over the chunks of one batch; divide by `chunks` for the training loss.
#[derive(Clone, Debug)]
pub struct AutoencoderLoss {
    /// `Σ_chunks (K · mean cross-entropy + kl_weight · clipped KL)`, scalar with gradient.
    pub total: Tensor,
    /// Summed cross-entropy of all tokens, nats.
    pub cross_entropy: Tensor,
    /// Summed clipped KL, nats.
    pub kl: Tensor,
    /// R.
    pub chunks: usize,
}

/// Both halves. Parameter names are those of the reference implementation's checkpoints.
#[derive(Clone, Debug)]
pub struct Autoencoder {
    config: AutoencoderConfig,
    chunk_size: usize,
    latent_size: usize,
    dropped_token: u32,
    store: ParamStore,
    embedding: Embedding,
    encoder_blocks: Vec<Block>,
    squeeze: Linear,
    encoder_norm: RmsNorm,
    hidden_to_latent: Linear,
    decoder: Decoder,
}

impl Autoencoder {
    /// Creates the parameters under `b`. `bos` replaces dropped tokens unless the configuration names an id.
    ///
    /// # Errors
    /// A `dropped_token_id` outside the vocabulary; as [`Builder::weight`].
    pub fn new(
        b: &Builder,
        config: &AutoencoderConfig,
        chunk_size: usize,
        vocab_size: usize,
        bos: u32,
    ) -> Result<Self> {
        let (d, l) = (config.hidden_size, config.latent_size(chunk_size));
        let init: Init = config.init.into();
        let dropped_token = config.dropped_token_id.unwrap_or(bos);
        if dropped_token as usize >= vocab_size {
            bail!("dropped_token_id {dropped_token} is outside the vocabulary of {vocab_size}")
        }
        let (enc, dec) = (b.under("encoder"), b.under("decoder"));
        let embedding = Embedding::new(&enc, "embed_tokens", vocab_size, d, init, None)?;
        let model = Self {
            chunk_size,
            latent_size: l,
            dropped_token,
            store: b.store().clone(),
            encoder_blocks: blocks(&enc, "encoder_layers", config.encoder_layers, config)?,
            squeeze: Linear::new(&enc, "squeeze_layer", chunk_size * d, d, init)?,
            encoder_norm: RmsNorm::new(&enc, "norm", d, config.norm_eps)?,
            hidden_to_latent: Linear::new(&enc, "hidden_to_latent", d, 2 * l, init)?,
            decoder: Decoder::new(&dec, config, chunk_size, &embedding.table)?,
            embedding,
            config: config.clone(),
        };
        b.alias("decoder.lm_head_weight", "encoder.embed_tokens.weight");
        Ok(model)
    }

    /// A model with its own store.
    ///
    /// # Errors
    /// As [`Autoencoder::new`].
    pub fn with_store(
        store: &ParamStore,
        config: &AutoencoderConfig,
        chunk_size: usize,
        vocab_size: usize,
        bos: u32,
    ) -> Result<Self> {
        Self::new(&store.builder(), config, chunk_size, vocab_size, bos)
    }

    /// K.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// L.
    pub fn latent_size(&self) -> usize {
        self.latent_size
    }

    /// The settings.
    pub fn config(&self) -> &AutoencoderConfig {
        &self.config
    }

    /// The tied table `[V, D]`.
    pub fn embedding_table(&self) -> &Parameter {
        &self.embedding.table
    }

    /// U32 ids `[R, K]` -> posterior over `[R, L]`, in f32 or wider.
    ///
    /// # Errors
    /// Chunks of another size; on the CPU an id outside the vocabulary; what a GPU answers.
    pub fn encode(&self, ids: &Tensor) -> Result<Posterior> {
        let (rows, k) = ids.dims2()?;
        if k != self.chunk_size {
            bail!("autoencoder: chunks of {k} tokens, trained for {}", self.chunk_size)
        }
        self.encode_rows(self.embedding.forward(&ids.flatten_all()?)?, rows)
    }

    /// U32 ids `[..]` -> their rows of the table `[.., D]`.
    ///
    /// # Errors
    /// On the CPU an id outside the vocabulary; what a GPU answers.
    pub fn embed(&self, ids: &Tensor) -> Result<Tensor> {
        self.embedding.forward(ids)
    }

    /// As [`Self::encode`] of vectors `[R, K, D]` in the place of the tokens' embeddings.
    ///
    /// # Errors
    /// Chunks of another size; what a GPU answers.
    pub fn encode_embeddings(&self, embeddings: &Tensor) -> Result<Posterior> {
        let (rows, k, d) = embeddings.dims3()?;
        if k != self.chunk_size {
            bail!("autoencoder: chunks of {k} tokens, trained for {}", self.chunk_size)
        }
        self.encode_rows(embeddings.reshape((rows * k, d))?, rows)
    }

    /// Embeddings `[R·K, D]` -> posterior.
    fn encode_rows(&self, mut x: Tensor, rows: usize) -> Result<Posterior> {
        let half = self.encoder_blocks.len() / 2;
        for block in &self.encoder_blocks[..half] {
            x = block.forward(&x)?;
        }
        x = self.squeeze.forward(&x.reshape((rows, ()))?)?;
        for block in &self.encoder_blocks[half..] {
            x = block.forward(&x)?;
        }
        let out = wide(&self.hidden_to_latent.forward(&self.encoder_norm.forward(&x)?)?)?;
        let l = self.latent_size;
        Ok(Posterior {
            mean: out.narrow(1, 0, l)?.contiguous()?,
            log_std: out.narrow(1, l, l)?.contiguous()?,
        })
    }

    /// The decoder.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The store of its parameters.
    pub fn store(&self) -> &ParamStore {
        &self.store
    }

    /// Logits `[R·K, V]`; for tests and small inputs, everything else avoids the V-wide tensor.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn logits(&self, z: &Tensor) -> Result<Tensor> {
        self.decoder.logits(&self.decoder.hidden(z, None)?)
    }

    /// The most probable tokens of latents `[R, L]`: U32 `[R, K]`.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        self.decoder.argmax(&self.decoder.hidden(z, None)?)
    }

    /// Cross-entropy (nats) and most probable token per position of `ids [R, K]` decoded from `z [R, L]`:
    /// two tensors `[R, K]`, no gradient.
    ///
    /// # Errors
    /// As [`Decoder::hidden`] and [`Decoder::score`].
    pub fn score(&self, z: &Tensor, ids: &Tensor) -> Result<(Tensor, Tensor)> {
        self.decoder.score(&self.decoder.hidden(z, None)?, ids)
    }

    /// Replaces the configured share of tokens by uniformly drawn ids.
    fn with_uniform_tokens(&self, ids: &Tensor, noise: &Noise<'_>) -> Result<Tensor> {
        let share = self.config.uniform_tokens;
        if share == 0.0 {
            return Ok(ids.clone());
        }
        let vocab = self.embedding.table.dim(0)?;
        let u = noise.uniform("uniform", 1, self.chunk_size, &self.embedding.table)?.reshape(ids.shape())?;
        let drawn =
            (&u * (vocab as f64 / share))?.floor()?.clamp(0.0, (vocab - 1) as f64)?.to_dtype(DType::U32)?;
        u.lt(share)?.where_cond(&drawn, ids)
    }

    /// The training loss of chunks `ids [R, K]` (every position a target, PAD after EOS included).
    ///
    /// Noise streams: `uniform` uniform `[R, 1, K]` (where u < uniform_tokens, the id is ⌊u / uniform_tokens · V⌋),
    /// `token` uniform `[R, 1, K]` (a token is kept where u ≥ token_dropout), `latent` normal
    /// `[R, 1, L]`, `latent.dropout` mask `[R, L]`.
    ///
    /// # Errors
    /// Chunks of another size, or noise of another number of rows; on the CPU an id outside the vocabulary; what a GPU
    /// answers.
    pub fn loss(&self, ids: &Tensor, noise: &Noise<'_>) -> Result<AutoencoderLoss> {
        let (rows, k) = ids.dims2()?;
        let device = ids.device();
        let ids = &self.with_uniform_tokens(ids, noise)?;
        let input = if self.config.token_dropout > 0.0 {
            let u = noise.uniform("token", 1, k, &self.embedding.table)?.reshape((rows, k))?;
            let keep = u.ge(self.config.token_dropout)?;
            keep.where_cond(ids, &Tensor::full(self.dropped_token, (rows, k), device)?)?
        } else {
            ids.clone()
        };
        let posterior = self.encode(&input)?;
        let dtype = posterior.mean.dtype();
        let context = self.embedding.table.context();
        let eps = noise.normal("latent", 1, self.latent_size, context)?.squeeze(1)?.to_dtype(dtype)?;
        let mut z = posterior.sample(&eps)?;
        if self.config.latent_dropout > 0.0 {
            z = ops::dropout(
                &context.with(&z),
                self.config.latent_dropout,
                noise.dropout("latent.dropout")?,
            )?;
        }
        let hidden = self.decoder.hidden(&z, None)?;
        // Σ over tokens = Σ over chunks of K · (mean over the chunk's tokens).
        let cross_entropy =
            ops::tied_cross_entropy(&hidden, &self.embedding.table, &ids.flatten_all()?, None)?;
        // Σ_dims max(clip, KL_dim), per sample and dimension; no gradient where the clip holds.
        let kl = posterior.kl()?.maximum(self.config.kl_clip)?.sum_all()?;
        let total = (&cross_entropy + (&kl * self.config.kl_weight)?)?;
        Ok(AutoencoderLoss { total, cross_entropy: cross_entropy.detach(), kl: kl.detach(), chunks: rows })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_nn::{AdamW, AdamWConfig, Clip, GradientBucket, RowId};
    use candle_core::Device;

    fn small() -> (ParamStore, Autoencoder) {
        let config = AutoencoderConfig {
            hidden_size: 32,
            intermediate_size: 48,
            latent_size: Some(16),
            init: calm_nn::WeightInit::Normal(0.1),
            ..Default::default()
        };
        let store = ParamStore::new(&Device::Cpu, DType::F32, 5);
        let model = Autoencoder::with_store(&store, &config, 2, 20, 17).unwrap();
        (store, model)
    }

    fn ids(rows: usize) -> Tensor {
        let v: Vec<u32> = (0..rows as u32 * 2).map(|i| (i * 7 + i / 5) % 17).collect();
        Tensor::from_vec(v, (rows, 2), &Device::Cpu).unwrap()
    }

    #[test]
    fn every_parameter_receives_a_gradient() {
        let (store, model) = small();
        let rows: Vec<RowId> = (0..8).map(|i| RowId { example: i, position: 0 }).collect();
        let noise = Noise::Keyed { seed: 1, purpose: "train", step: 0, rows: &rows };
        let loss = model.loss(&ids(8), &noise).unwrap();
        let mut bucket = GradientBucket::new(&store).unwrap();
        bucket.backward(&loss.total).unwrap();
        for (name, _) in store.params() {
            assert!(bucket.get(&name).unwrap().unwrap().iter().any(|g| *g != 0.0), "{name}");
        }
    }

    #[test]
    fn a_small_autoencoder_learns_to_rebuild_its_chunks() {
        let (store, model) = small();
        let data = ids(16);
        let mut bucket = GradientBucket::new(&store).unwrap();
        let mut opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
        for step in 0..300 {
            let rows: Vec<RowId> = (0..16).map(|i| RowId { example: i, position: 0 }).collect();
            let noise = Noise::Keyed { seed: 1, purpose: "train", step, rows: &rows };
            let loss = model.loss(&data, &noise).unwrap();
            bucket.clear();
            bucket.backward(&(loss.total / 16.0).unwrap()).unwrap();
            opt.update(&mut bucket, 5e-3, &Clip::by(1.0)).unwrap();
        }
        let back = model.decode(&model.encode(&data).unwrap().mean).unwrap();
        assert_eq!(back.to_vec2::<u32>().unwrap(), data.to_vec2::<u32>().unwrap());
    }

    #[test]
    fn the_configured_share_of_tokens_is_drawn_uniformly() {
        let config = AutoencoderConfig { uniform_tokens: 0.25, ..Default::default() };
        let store = ParamStore::new(&Device::Cpu, DType::F32, 5);
        let model = Autoencoder::with_store(&store, &config, 4, 50, 0).unwrap();
        let rows: Vec<RowId> = (0..2000).map(|i| RowId { example: i, position: 0 }).collect();
        let noise = Noise::Keyed { seed: 1, purpose: "train", step: 0, rows: &rows };
        let ids = Tensor::full(99u32, (2000, 4), &Device::Cpu).unwrap();
        let out =
            model.with_uniform_tokens(&ids, &noise).unwrap().flatten_all().unwrap().to_vec1::<u32>().unwrap();
        let drawn: Vec<u32> = out.into_iter().filter(|t| *t != 99).collect();
        assert!((drawn.len() as f64 / 8000.0 - 0.25).abs() < 0.02);
        for id in 0..50 {
            let n = drawn.iter().filter(|t| **t == id).count();
            assert!((15..=70).contains(&n), "id {id}: {n} of {}", drawn.len());
        }
    }

    #[test]
    fn the_tied_head_has_one_name_and_one_alias() {
        let (store, _) = small();
        assert!(store.get("decoder.lm_head_weight").is_none());
        assert_eq!(
            store.aliases(),
            [("decoder.lm_head_weight".to_owned(), "encoder.embed_tokens.weight".to_owned())]
        );
    }

    #[test]
    fn chunks_of_another_size_are_an_error() {
        let (_, model) = small();
        assert!(model.encode(&Tensor::zeros((2, 3), DType::U32, &Device::Cpu).unwrap()).is_err());
    }
}
