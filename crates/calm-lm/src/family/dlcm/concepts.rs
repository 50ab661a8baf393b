//! From the states of tokens to concepts: pooled, widened, through the transformer over concepts, smoothed.
//!
//! ```text
//! H [B,S,D] -- slots --> C [B,M,D] -- W_up --> [B,M,Dc] -- layers over slots --> Z -- smooth --> Z̃ [B,M,Dc]
//! Z̃_k = P_k Z_k + (1 − P_k) Z̃_{k−1},  P_k = p at the token that opened slot k, 1 at a document's first
//! ```
//! A mean over a span of tokens is attention with scores of 0. Smoothing is one of the ways on which the loss reaches
//! p: the gradient is exact, nothing is estimated.

use calm_kernels as ops;
use calm_kernels::Spans;
use calm_nn::device::upload;
use calm_nn::{Builder, Context, Linear};
use candle_core::{Result, Tensor};

use super::config::{DlcmConfig, Pooling, Smoothing};
use super::scales::Width;
use super::slots::Slots;
use crate::backbone::Rows;
use crate::{Backbone, ChunkBatch};

/// The way from tokens to concepts.
#[derive(Clone, Debug)]
pub(super) struct Concepts {
    up: Linear,
    pub(super) backbone: Backbone,
    pub(super) pooling: Pooling,
    pub(super) smoothing: Smoothing,
    /// Heads of the tokens, in which means are taken.
    heads: usize,
    context: Context,
}

impl Concepts {
    /// `concepts.up.weight`, `concepts.layers.N.*` and `concepts.norm.weight` under `b`.
    pub(super) fn new(b: &Builder, config: &DlcmConfig) -> Result<Self> {
        let b = b.under("concepts");
        let (d, wide) = (config.tokens.hidden_size, config.concepts.hidden_size);
        let (of_tokens, of_concepts) = (Width::of_tokens(config), Width::of_concepts(config));
        let init = of_tokens.init(config.tokens.init);
        Ok(Self {
            up: Linear::no_bias(&of_tokens.builder(&b), "up", d, wide, init)?,
            backbone: Backbone::new(&of_concepts.builder(&b), &of_concepts.layers(config.concepts.clone()))?,
            pooling: config.pooling,
            smoothing: config.smoothing,
            heads: config.tokens.heads,
            context: b.context().clone(),
        })
    }

    /// Contents `[B, M, D]` -> what enters the layers `[B, M, Dc]`.
    pub(super) fn widen(&self, contents: &Tensor) -> Result<Tensor> {
        self.up.forward(contents)
    }

    /// Contents of the slots of `h [B, S, D]`: `[B, M, D]`.
    fn pool(&self, h: &Tensor, slots: &Slots, batch: &ChunkBatch) -> Result<Tensor> {
        let (b, s, d) = h.dims3()?;
        let m = slots.each;
        match self.pooling {
            Pooling::Boundary => {
                let opened = upload(&slots.opened, (b, m), batch.destination())?;
                ops::embedding(&opened, &h.reshape((b * s, d))?, None)
            }
            Pooling::Closed => {
                let size = d / self.heads;
                let zeros = |n: usize| Tensor::zeros((b, n, self.heads, size), h.dtype(), h.device());
                let spans = Spans::new([b, m, s], slots.pool.clone())?;
                let values = h.reshape((b, s, self.heads, size))?;
                let q = zeros(m)?;
                ops::span_attention(&self.context.with(&q), &zeros(s)?, &values, &spans)?.reshape((b, m, d))
            }
        }
    }

    /// Concepts Z̃ `[B, M, Dc]` of states `h [B, S, D]`; `p [B, S]`.
    pub(super) fn forward(
        &self,
        h: &Tensor,
        p: Option<&Tensor>,
        slots: &Slots,
        batch: &ChunkBatch,
    ) -> Result<Tensor> {
        let (b, s, _) = h.dims3()?;
        let m = slots.each;
        let documents = upload(&slots.documents, (b, m), batch.destination())?;
        let positions = upload(&slots.positions, (b, m), batch.destination())?;
        let z = self.widen(&self.pool(h, slots, batch)?)?;
        let z = self.backbone.forward(&z, &Rows::causal(&positions, &documents))?;
        let (Smoothing::Ema, Some(p)) = (self.smoothing, p) else { return Ok(z) };
        let opened = upload(&slots.opened, (b, m), batch.destination())?;
        let p = ops::embedding(&opened, &p.reshape((b * s, 1))?, None)?.reshape((b, m))?;
        ops::smooth(&z, &p, &documents)
    }
}
