//! The decoder: from latent vectors to the tokens of their chunks.

use calm_kernels as ops;
use calm_nn::{Builder, Linear, ParamStore, Parameter, RmsNorm};
use candle_core::{DType, Result, Tensor};

use crate::AutoencoderConfig;
use crate::block::{Block, blocks};

/// Latents `[R, L]` -> K tokens each, through a table of tokens.
#[derive(Clone, Debug)]
pub struct Decoder {
    chunk_size: usize,
    /// Format of the activations.
    compute: DType,
    /// Keeps what it has made of the parameters for that format.
    _store: ParamStore,
    latent_to_hidden: Linear,
    blocks: Vec<Block>,
    expand: Linear,
    norm: RmsNorm,
    table: Parameter,
}

impl Decoder {
    /// Creates the parameters under `b`, but for the table `[V, D]`.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(
        b: &Builder,
        config: &AutoencoderConfig,
        chunk_size: usize,
        table: &Parameter,
    ) -> Result<Self> {
        let (d, l, init) = (config.hidden_size, config.latent_size(chunk_size), config.init.into());
        Ok(Self {
            chunk_size,
            compute: b.compute(),
            _store: b.store().clone(),
            latent_to_hidden: Linear::new(b, "latent_to_hidden", l, d, init)?,
            blocks: blocks(b, "decoder_layers", config.decoder_layers, config)?,
            expand: Linear::new(b, "expand_layer", d, chunk_size * d, init)?,
            norm: RmsNorm::new(b, "norm", d, config.norm_eps)?,
            table: table.clone(),
        })
    }

    /// K.
    pub fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// The table of tokens `[V, D]`.
    pub fn table(&self) -> &Parameter {
        &self.table
    }

    /// Latents `[R, L]` -> last hidden states `[R·K, D]`; logits are their products with the table. A `condition`
    /// `[R, D]` is added where the latents enter.
    ///
    /// # Errors
    /// Latents of another size; what a GPU answers.
    pub fn hidden(&self, z: &Tensor, condition: Option<&Tensor>) -> Result<Tensor> {
        let rows = z.dim(0)?;
        let half = self.blocks.len() / 2;
        let mut x = self.latent_to_hidden.forward(&z.to_dtype(self.compute)?)?;
        if let Some(condition) = condition {
            x = (x + condition)?;
        }
        for block in &self.blocks[..half] {
            x = block.forward(&x)?;
        }
        x = self.expand.forward(&x)?.reshape((rows * self.chunk_size, ()))?;
        for block in &self.blocks[half..] {
            x = block.forward(&x)?;
        }
        self.norm.forward(&x)
    }

    /// Logits `[R·K, V]` of last hidden states; where the result may be large, everything else avoids the V-wide
    /// tensor.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        ops::linear(hidden, &self.table, None)
    }

    /// The most probable tokens of last hidden states: U32 `[R, K]`.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn argmax(&self, hidden: &Tensor) -> Result<Tensor> {
        let rows = hidden.dim(0)? / self.chunk_size;
        ops::tied_argmax(hidden, &self.table)?.reshape((rows, self.chunk_size))
    }

    /// Cross-entropy (nats) and most probable token per position of `ids [R, K]` from last hidden states: two tensors
    /// `[R, K]`, no gradient.
    ///
    /// # Errors
    /// Another number of ids; on the CPU one outside the vocabulary; what a GPU answers.
    pub fn score(&self, hidden: &Tensor, ids: &Tensor) -> Result<(Tensor, Tensor)> {
        let (ce, best) = ops::tied_cross_entropy_rows(hidden, &self.table, &ids.flatten_all()?)?;
        Ok((ce.reshape(ids.shape())?, best.reshape(ids.shape())?))
    }
}
