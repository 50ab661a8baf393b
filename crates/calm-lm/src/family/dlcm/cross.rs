//! Tokens look at the concepts that are open or closed at them.
//!
//! ```text
//! A_t = W_O · attention(norm(W_Q h_t), norm(W_K z̃_k), W_V z̃_k),  k in the slots of t's document up to slot(t)
//! ```
//! (arXiv 2512.24617, equations 12 to 16: one head size for both widths, an RMSNorm on queries and keys.)
//!
//! **Replicated keys are another model.** The paper computes this by repeating each concept for each of its tokens
//! under a causal mask (17). Repeated n_k(t) times up to token t, a concept weighs n_k(t) · exp(score): its score has
//! ln n_k(t) more than in (12). Both are offered.

use calm_kernels as ops;
use calm_kernels::Spans;
use calm_nn::{Builder, Context, Linear, RmsNorm};
use candle_core::{Result, Tensor};

use super::config::{CrossKeys, DlcmConfig};
use super::scales::Width;
use super::slots::Slots;
use crate::ChunkBatch;
use calm_nn::device::upload;

/// Keys and values of concepts, `[B, M, Hkv, Dh]` each.
pub(super) type KeysValues = (Tensor, Tensor);

/// Attention of tokens over concepts.
#[derive(Clone, Debug)]
pub(super) struct Cross {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    query_norm: RmsNorm,
    key_norm: RmsNorm,
    heads: usize,
    kv_heads: usize,
    size: usize,
    keys: CrossKeys,
    context: Context,
}

impl Cross {
    /// `cross.{q,k,v,o}_proj.weight` and `cross.{q,k}_norm.weight` under `b`.
    pub(super) fn new(b: &Builder, config: &DlcmConfig) -> Result<Self> {
        let b = b.under("cross");
        let (heads, kv_heads) = config.cross_heads();
        let (tokens, concepts) = (&config.tokens, &config.concepts);
        let (d, wide, size) = (tokens.hidden_size, concepts.hidden_size, tokens.head_size());
        let (of_tokens, of_concepts) = (Width::of_tokens(config), Width::of_concepts(config));
        let (outer, inner) = (of_tokens.init(tokens.init), of_concepts.init(concepts.init));
        let (narrow, broad) = (of_tokens.builder(&b), of_concepts.builder(&b));
        Ok(Self {
            query: Linear::no_bias(&narrow, "q_proj", d, heads * size, outer)?,
            key: Linear::no_bias(&broad, "k_proj", wide, kv_heads * size, inner)?,
            value: Linear::no_bias(&broad, "v_proj", wide, kv_heads * size, inner)?,
            output: Linear::no_bias(&narrow, "o_proj", heads * size, d, outer)?,
            query_norm: RmsNorm::new(&b, "q_norm", size, tokens.norm_eps)?,
            key_norm: RmsNorm::new(&b, "k_norm", size, tokens.norm_eps)?,
            heads,
            kv_heads,
            size,
            keys: config.cross.keys,
            context: b.context().clone(),
        })
    }

    /// What a token sees.
    pub(super) fn sees(&self) -> CrossKeys {
        self.keys
    }

    /// Queries of tokens `[B, S, D]`: `[B, S, H, Dh]`.
    pub(super) fn queries(&self, h: &Tensor) -> Result<Tensor> {
        let (b, s, _) = h.dims3()?;
        self.query_norm.forward(&self.query.forward(h)?.reshape((b, s, self.heads, self.size))?)
    }

    /// Keys and values of concepts `[B, M, Dc]`.
    pub(super) fn keys_values(&self, z: &Tensor) -> Result<KeysValues> {
        let (b, m, _) = z.dims3()?;
        let shape = (b, m, self.kv_heads, self.size);
        let keys = self.key_norm.forward(&self.key.forward(z)?.reshape(shape)?)?;
        Ok((keys, self.value.forward(z)?.reshape(shape)?))
    }

    /// Attention of queries `[B, T, H, Dh]` over spans of keys: `[B, T, H·Dh]`.
    pub(super) fn attend(&self, q: &Tensor, (k, v): &KeysValues, spans: &Spans) -> Result<Tensor> {
        ops::span_attention(&self.context.with(q), k, v, spans)?.flatten_from(2)
    }

    /// What `attend` gave, in the residual stream: `[B, T, D]`.
    pub(super) fn output(&self, mixed: &Tensor) -> Result<Tensor> {
        self.output.forward(mixed)
    }

    /// What tokens `h [B, S, D]` take from concepts `z [B, M, Dc]`: `[B, S, D]`.
    pub(super) fn forward(
        &self,
        h: &Tensor,
        z: &Tensor,
        slots: &Slots,
        batch: &ChunkBatch,
    ) -> Result<Tensor> {
        let (b, s, _) = h.dims3()?;
        let (q, (k, v)) = (self.queries(h)?, self.keys_values(z)?);
        let mixed = match self.keys {
            CrossKeys::Concepts => {
                let spans = Spans::new([b, s, slots.each], slots.seen.clone())?;
                self.attend(&q, &(k, v), &spans)?
            }
            CrossKeys::Replicated => {
                let last = upload(&slots.last, (b, s), batch.destination())?;
                let width = self.kv_heads * self.size;
                let repeat = |t: Tensor| {
                    let rows = t.reshape((b * slots.each, width))?;
                    ops::embedding(&last, &rows, None)?.reshape((b, s, self.kv_heads, self.size))
                };
                let (k, v) = (repeat(k)?, repeat(v)?);
                ops::causal_attention(&self.context.with(&q), &k, &v, &batch.segments)?.flatten_from(2)?
            }
        };
        self.output(&mixed)
    }
}
