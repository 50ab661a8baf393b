//! What a search for the text behind hidden states asks of a model (`calm invert`): the states of alternatives for one
//! position, from embeddings that need not be any token's.
//!
//! ```text
//! embeddings of a chunk [N, K, W] ── way in ── layers, after a prefix ── final norm      depth 0: behind the way in
//!                                       0      1 2 .. n            n + 1
//! ```
//! A latent vector of an autoencoder is such a state too: its encoder sees a chunk alone, without a prefix.

use calm_autoencoder::Autoencoder;
use calm_nn::device::upload;
use calm_nn::{Embedding, Parameter};
use candle_core::{Result, Tensor, bail};

use super::input::ChunkInput;
use super::text_format::TextFormat;
use crate::{Backbone, Cache};

/// States that can be searched for the text they came from. A position stands for K tokens.
pub trait Inversion: Send + Sync {
    /// K.
    fn chunk_size(&self) -> usize;

    /// The rows that tokens go in as, `[V, W]`.
    fn table(&self) -> &Parameter;

    /// How many states a position has.
    fn depths(&self) -> usize;

    /// What a state is of, by its depth.
    fn depth_name(&self, depth: usize) -> String;

    /// What is known before the first token.
    ///
    /// # Errors
    /// What a GPU answers.
    fn begin(&self) -> Result<Cache>;

    /// Appends chunks to what is known.
    ///
    /// # Errors
    /// Another number of tokens than whole chunks; on the CPU an id outside the vocabulary; what a GPU answers.
    fn extend(&self, tokens: &[u32], known: &mut Cache) -> Result<()>;

    /// N chunks -> their embeddings `[N, K, W]`, without gradient.
    ///
    /// # Errors
    /// As [`Self::extend`].
    fn embed(&self, tokens: &[u32]) -> Result<Tensor>;

    /// Embeddings `[N, K, W]` of N alternatives for the position after what is known -> the state of each `[N, D]`,
    /// differentiable.
    ///
    /// # Errors
    /// A depth that is not there; another shape; what a GPU answers.
    fn states(&self, embeddings: &Tensor, known: &Cache, depth: usize) -> Result<Tensor>;

    /// The states `[B, S, D]` of B texts of S chunks each, one after the other in `tokens`, at every depth, each text in one
    /// pass.
    ///
    /// # Errors
    /// Another number of tokens; on the CPU an id outside the vocabulary; what a GPU answers.
    fn of_texts(&self, tokens: &[u32], texts: usize) -> Result<Vec<Tensor>>;
}

/// Hidden states of a backbone over tokens or chunks.
pub(super) struct Streams<'a> {
    embedding: &'a Embedding,
    /// None of a model whose embeddings go into the backbone as they are.
    input: Option<&'a ChunkInput>,
    backbone: &'a Backbone,
    chunk_size: usize,
    /// Of the chunk that documents begin with.
    bos: Option<u32>,
}

impl<'a> Streams<'a> {
    /// Of chunks of K tokens, whose embeddings go through `input` if there is one; None of a backbone in which a state
    /// depends on what stands behind it, so that no text is found from its beginning on.
    pub(super) fn over(
        backbone: &'a Backbone,
        embedding: &'a Embedding,
        input: Option<&'a ChunkInput>,
        chunk_size: usize,
        text: &TextFormat,
    ) -> Option<Box<dyn Inversion + 'a>> {
        let bos = text.bos_chunk.then_some(text.special.bos);
        let streams = Self { embedding, input, backbone, chunk_size, bos };
        (!backbone.reads_input_whole()).then(|| Box::new(streams) as Box<dyn Inversion>)
    }

    /// Embeddings `[.., K, W]` of `rows` chunks -> backbone inputs `[rows, D]`.
    fn way_in(&self, embeddings: &Tensor, rows: usize) -> Result<Tensor> {
        let x = embeddings.reshape((rows, ()))?;
        match self.input {
            Some(input) => input.forward(&x.unsqueeze(0)?)?.squeeze(0),
            None => Ok(x),
        }
    }

    /// Chunks -> backbone inputs `[rows, D]`, without gradient.
    fn inputs(&self, tokens: &[u32]) -> Result<Tensor> {
        let embeddings = self.embed(tokens)?;
        Ok(self.way_in(&embeddings, embeddings.dim(0)?)?.detach())
    }
}

/// Chunks in `tokens`.
fn whole_chunks(tokens: &[u32], k: usize) -> Result<usize> {
    if !tokens.len().is_multiple_of(k) {
        bail!("{} tokens are no whole chunks of {k}", tokens.len())
    }
    Ok(tokens.len() / k)
}

impl Inversion for Streams<'_> {
    fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    fn table(&self) -> &Parameter {
        &self.embedding.table
    }

    fn depths(&self) -> usize {
        self.backbone.depth() + 1
    }

    fn depth_name(&self, depth: usize) -> String {
        match depth {
            0 => "behind the way in".to_owned(),
            l if l <= self.backbone.config().layers => format!("behind layer {l}"),
            _ => "behind the final norm".to_owned(),
        }
    }

    fn begin(&self) -> Result<Cache> {
        let mut known = Cache::default();
        if let Some(bos) = self.bos {
            self.extend(&vec![bos; self.chunk_size], &mut known)?;
        }
        Ok(known)
    }

    fn extend(&self, tokens: &[u32], known: &mut Cache) -> Result<()> {
        self.backbone.forward_cached(&self.inputs(tokens)?.unsqueeze(0)?, known)?;
        Ok(())
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let rows = whole_chunks(tokens, self.chunk_size)?;
        let ids = upload(tokens, (rows, self.chunk_size), &self.embedding.table)?;
        Ok(self.embedding.forward(&ids)?.detach())
    }

    fn states(&self, embeddings: &Tensor, known: &Cache, depth: usize) -> Result<Tensor> {
        let x = self.way_in(embeddings, embeddings.dim(0)?)?;
        self.backbone.alternatives(&x, known, depth)
    }

    fn of_texts(&self, tokens: &[u32], texts: usize) -> Result<Vec<Tensor>> {
        let each = whole_chunks(tokens, self.chunk_size * texts.max(1))?;
        let k = self.chunk_size;
        let first = usize::from(self.bos.is_some());
        let mut all = Vec::with_capacity(texts * (each + first) * k);
        for text in tokens.chunks_exact((each * k).max(1)) {
            all.extend(self.bos.iter().flat_map(|bos| std::iter::repeat_n(*bos, k)));
            all.extend_from_slice(text);
        }
        let s = each + first;
        let x = self.inputs(&all)?.reshape((texts, s, ()))?;
        let positions: Vec<u32> = (0..texts).flat_map(|_| 0..s as u32).collect();
        let positions = upload(&positions, (texts, s), &self.embedding.table)?;
        let one_document = upload(&vec![0u32; texts * s], (texts, s), &self.embedding.table)?;
        let states = self.backbone.states(&x, &positions, &one_document)?;
        states.iter().map(|x| x.detach().narrow(1, first, each)?.contiguous()).collect()
    }
}

/// Posterior means of an autoencoder.
pub(super) struct Latents<'a>(pub(super) &'a Autoencoder);

impl Inversion for Latents<'_> {
    fn chunk_size(&self) -> usize {
        self.0.chunk_size()
    }

    fn table(&self) -> &Parameter {
        self.0.embedding_table()
    }

    fn depths(&self) -> usize {
        1
    }

    fn depth_name(&self, _depth: usize) -> String {
        "latent".to_owned()
    }

    fn begin(&self) -> Result<Cache> {
        Ok(Cache::default())
    }

    fn extend(&self, tokens: &[u32], _known: &mut Cache) -> Result<()> {
        whole_chunks(tokens, self.chunk_size()).map(drop)
    }

    fn embed(&self, tokens: &[u32]) -> Result<Tensor> {
        let (rows, k) = (whole_chunks(tokens, self.chunk_size())?, self.chunk_size());
        Ok(self.0.embed(&upload(tokens, (rows, k), self.table())?)?.detach())
    }

    fn states(&self, embeddings: &Tensor, _known: &Cache, depth: usize) -> Result<Tensor> {
        if depth > 0 {
            bail!("a chunk has one latent vector, not {}", depth + 1)
        }
        Ok(self.0.encode_embeddings(embeddings)?.mean)
    }

    fn of_texts(&self, tokens: &[u32], texts: usize) -> Result<Vec<Tensor>> {
        let rows = whole_chunks(tokens, self.chunk_size() * texts.max(1))? * texts;
        let ids = upload(tokens, (rows, self.chunk_size()), self.table())?;
        let mean = self.0.encode(&ids)?.mean.detach();
        Ok(vec![mean.reshape((texts, rows / texts.max(1), ()))?])
    }
}
