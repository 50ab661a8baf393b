//! The Llama decoder: RMSNorm before attention and MLP, rotate-half rotary angles, grouped key/value heads.
//!
//! Five ways through the same layers, which differ only in what a position attends to:
//! * [`Backbone::forward`]: whole rows at once (training, teacher-forced scoring);
//! * [`Backbone::forward_cached`]: new positions after a cache (generation);
//! * [`Backbone::forward_side_by_side`]: the same for several texts, which share everything but attention;
//! * [`Backbone::forward_branch`]: one more position after *every* position of whole rows at once, each
//!   continuing its own prefix with its own chunk (scoring n-grams that span several chunks);
//! * [`Backbone::alternatives`]: many inputs for one and the same next position (which of them a state came from).

mod alternatives;
mod config;
mod costs;
mod published;

use calm_kernels as ops;
use calm_nn::device::upload;
use calm_nn::{Builder, Init, Linear, RmsNorm, SwiGlu};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

pub use config::BackboneConfig;

#[derive(Clone, Debug)]
struct Layer {
    input_norm: RmsNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    post_norm: RmsNorm,
    mlp: SwiGlu,
}

/// The stack of layers with its final norm, if it has one.
#[derive(Clone, Debug)]
pub struct Backbone {
    layers: Vec<Layer>,
    norm: Option<RmsNorm>,
    config: BackboneConfig,
    context: ops::Context,
    recompute: bool,
}

/// Keys (rotated) and values of one layer, `[B, C, Hkv, Dh]` each.
type KeysValues = (Tensor, Tensor);

/// Keys and values of all positions so far, for generation.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    layers: Vec<KeysValues>,
    length: usize,
}

impl Cache {
    /// Positions held.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// What it held when it held its first `length` positions, of which there must be so many.
    ///
    /// # Errors
    /// Fewer positions.
    pub(crate) fn first(&self, length: usize) -> Result<Self> {
        let cut = |(k, v): &KeysValues| Ok((k.narrow(1, 0, length)?, v.narrow(1, 0, length)?));
        Ok(Self { layers: self.layers.iter().map(cut).collect::<Result<_>>()?, length })
    }
}

/// Keys and values of whole rows, kept for branches.
#[derive(Clone, Debug)]
pub struct Trunk {
    layers: Vec<KeysValues>,
    positions: Tensor,
    segments: Tensor,
}

/// The chunks a branch has appended to every position of a [`Trunk`].
#[derive(Clone, Debug, Default)]
pub struct Branch {
    steps: Vec<Vec<KeysValues>>,
}

impl Backbone {
    /// Creates the parameters under `b`.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(b: &Builder, config: &BackboneConfig) -> Result<Self> {
        let norm = RmsNorm::new(b, "norm", config.hidden_size, config.norm_eps)?;
        Ok(Self { norm: Some(norm), ..Self::open(b, config)? })
    }

    /// As [`Self::new`] without the final norm: what comes out is the residual stream, for more layers.
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn open(b: &Builder, config: &BackboneConfig) -> Result<Self> {
        let init: Init = config.init.into();
        let (d, eps) = (config.hidden_size, config.norm_eps);
        let kv = config.kv_heads() * config.head_size();
        let layer = |i: usize| -> Result<Layer> {
            let b = b.under("layers").under(i);
            let attn = b.under("self_attn");
            Ok(Layer {
                input_norm: RmsNorm::new(&b, "input_layernorm", d, eps)?,
                query: Linear::no_bias(&attn, "q_proj", d, d, init)?,
                key: Linear::no_bias(&attn, "k_proj", d, kv, init)?,
                value: Linear::no_bias(&attn, "v_proj", d, kv, init)?,
                output: Linear::no_bias(&attn, "o_proj", d, d, init)?,
                post_norm: RmsNorm::new(&b, "post_attention_layernorm", d, eps)?,
                mlp: SwiGlu::new(&b, "mlp", d, config.intermediate_size, init)?,
            })
        };
        Ok(Self {
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            norm: None,
            config: config.clone(),
            context: b.context().clone(),
            recompute: false,
        })
    }

    /// The settings.
    pub fn config(&self) -> &BackboneConfig {
        &self.config
    }

    /// What operators on its parameters share.
    fn context(&self) -> &ops::Context {
        &self.context
    }

    /// The final norm of `x [.., D]`, if there is one.
    fn close(&self, x: Tensor) -> Result<Tensor> {
        match &self.norm {
            Some(norm) => norm.forward(&x),
            None => Ok(x),
        }
    }

    /// One layer on whole rows, as two fused operators: `x [B, S, D]`, `positions` and `segments` U32 `[B, S]`.
    /// The same as [`Self::layer`] with causal attention, which the tests hold equal.
    fn fused_layer(
        &self,
        layer: &Layer,
        x: &Tensor,
        positions: &Tensor,
        segments: &Tensor,
    ) -> Result<Tensor> {
        let shape = ops::AttentionShape {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads(),
            theta: self.config.rope_theta,
            eps: layer.input_norm.eps,
            positions,
            segments,
        };
        let matrices = [&layer.query, &layer.key, &layer.value, &layer.output];
        let matrices = matrices.map(|l| &l.weight as &dyn ops::Operand);
        let x = ops::attention_block(x, &layer.input_norm.weight, matrices, shape)?;
        layer.mlp.residual(&x, &layer.post_norm)
    }

    /// One layer on the residual stream `x [B, T, D]`; `attend(q, k, v)` gets rotated `[B, T, heads, Dh]`.
    fn layer(
        &self,
        layer: &Layer,
        x: &Tensor,
        positions: &Tensor,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (b, t, d) = x.dims3()?;
        let (heads, kv, size) = (self.config.heads, self.config.kv_heads(), self.config.head_size());
        let theta = self.config.rope_theta;
        let h = layer.input_norm.forward(x)?;
        let context = self.context();
        let q = layer.query.forward(&h)?.reshape((b, t, heads, size))?;
        let q = ops::rotary(&context.with(&q), positions, theta)?;
        let k = layer.key.forward(&h)?.reshape((b, t, kv, size))?;
        let k = ops::rotary(&context.with(&k), positions, theta)?;
        let v = layer.value.forward(&h)?.reshape((b, t, kv, size))?;
        let mixed = attend(&q, &k, &v)?.reshape((b, t, d))?;
        let x = (x + layer.output.forward(&mixed)?)?;
        layer.mlp.residual(&x, &layer.post_norm)
    }

    /// Whether the backward pass computes each layer again from its input, so that only that is kept.
    pub fn set_recompute(&mut self, recompute: bool) {
        self.recompute = recompute;
    }

    /// Runs all layers and the final norm, without gradient; `attend(layer, q, k, v)`.
    fn run(
        &self,
        x: &Tensor,
        positions: &Tensor,
        mut attend: impl FnMut(usize, &Tensor, &Tensor, &Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            // Without gradient: what a backward pass would need goes at once.
            x = self.layer(layer, &x, positions, |q, k, v| attend(i, q, k, v))?.detach();
        }
        self.close(x)
    }

    /// The residual streams `[B, S, D]` that enter each layer, and the one that leaves the last (before the
    /// final norm), for rows as in [`Backbone::forward`].
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn residual_streams(&self, x: &Tensor, positions: &Tensor, segments: &Tensor) -> Result<Vec<Tensor>> {
        let mut streams = vec![x.clone()];
        for (i, layer) in self.layers.iter().enumerate() {
            streams.push(self.fused_layer(layer, &streams[i], positions, segments)?);
        }
        Ok(streams)
    }

    /// Whole rows: `x [B, S, D]`, `positions` and `segments` U32 `[B, S]` -> hidden states `[B, S, D]`.
    ///
    /// # Errors
    /// Shapes that do not fit, positions or segments that are not U32; what a GPU answers.
    pub fn forward(&self, x: &Tensor, positions: &Tensor, segments: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for i in 0..self.layers.len() {
            x = if self.recompute {
                let (backbone, positions, segments) = (self.clone(), positions.clone(), segments.clone());
                ops::recomputed(self.context(), &x, move |x| {
                    backbone.fused_layer(&backbone.layers[i], x, &positions, &segments)
                })?
            } else {
                self.fused_layer(&self.layers[i], &x, positions, segments)?
            };
        }
        self.close(x)
    }

    /// As [`Backbone::forward`], keeping keys and values for branches (no gradient).
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn forward_trunk(
        &self,
        x: &Tensor,
        positions: &Tensor,
        segments: &Tensor,
    ) -> Result<(Tensor, Trunk)> {
        let mut layers = Vec::with_capacity(self.layers.len());
        let hidden = self.run(x, positions, |_, q, k, v| {
            layers.push((k.detach(), v.detach()));
            ops::causal_attention(&self.context().with(q), k, v, segments)
        })?;
        Ok((hidden, Trunk { layers, positions: positions.clone(), segments: segments.clone() }))
    }

    /// One more chunk after every position of the trunk: `x [B, S, D]` is the input that follows position s
    /// (and the chunks already in `branch`) -> hidden states `[B, S, D]`.
    ///
    /// # Errors
    /// An input that does not fit the trunk; what a GPU answers.
    pub fn forward_branch(&self, x: &Tensor, trunk: &Trunk, branch: &mut Branch) -> Result<Tensor> {
        let ahead = Tensor::full(branch.steps.len() as u32 + 1, trunk.positions.dims(), x.device())?;
        let positions = trunk.positions.add(&ahead)?;
        let mut step: Vec<KeysValues> = Vec::with_capacity(self.layers.len());
        let hidden = self.run(x, &positions, |i, q, k, v| {
            step.push((k.detach(), v.detach()));
            let own: (Vec<Tensor>, Vec<Tensor>) =
                branch.steps.iter().chain(std::iter::once(&step)).map(|s| s[i].clone()).unzip();
            let (keys, values) = &trunk.layers[i];
            ops::branch_attention(&self.context().with(q), keys, values, &trunk.segments, &own.0, &own.1)
        })?;
        branch.steps.push(step);
        Ok(hidden)
    }

    /// New positions after the cache: `x [B, T, D]` -> hidden states `[B, T, D]`; the cache grows by T.
    ///
    /// # Errors
    /// A cache of another model, or of another number of texts; what a GPU answers.
    pub fn forward_cached(&self, x: &Tensor, cache: &mut Cache) -> Result<Tensor> {
        let (b, t, _) = x.dims3()?;
        if !cache.layers.is_empty() && cache.layers.len() != self.layers.len() {
            bail!("the cache belongs to another model")
        }
        let from = cache.length as u32;
        let row: Vec<u32> = (from..from + t as u32).collect();
        let positions = upload(&row.repeat(b), (b, t), self.context())?;
        let mut grown = Vec::with_capacity(self.layers.len());
        let hidden = self.run(x, &positions, |i, q, k, v| {
            let (keys, values) = match cache.layers.get(i) {
                Some((ck, cv)) => (Tensor::cat(&[ck, &k.detach()], 1)?, Tensor::cat(&[cv, &v.detach()], 1)?),
                None => (k.detach(), v.detach()),
            };
            let out = ops::cached_attention(&self.context().with(q), &keys, &values);
            grown.push((keys, values));
            out
        })?;
        *cache = Cache { layers: grown, length: cache.length + t };
        Ok(hidden)
    }

    /// New positions of several texts, each after a cache of its own: `x [1, N, D]` holds `lengths[0]` positions of the
    /// first, `lengths[1]` of the second and so on -> hidden states `[1, N, D]`; each cache grows by its length.
    ///
    /// # Errors
    /// Lengths that do not fit; a cache of another model; what a GPU answers.
    pub fn forward_side_by_side(
        &self,
        x: &Tensor,
        lengths: &[usize],
        caches: &mut [&mut Cache],
    ) -> Result<Tensor> {
        let (one, n, _) = x.dims3()?;
        if one != 1 || lengths.iter().sum::<usize>() != n || lengths.len() != caches.len() {
            bail!(
                "{} texts with {} caches do not fill {n} positions of {one} rows",
                lengths.len(),
                caches.len()
            )
        }
        if caches.iter().any(|c| !c.layers.is_empty() && c.layers.len() != self.layers.len()) {
            bail!("a cache belongs to another model")
        }
        let mut begins = Vec::with_capacity(lengths.len());
        let mut positions: Vec<u32> = Vec::with_capacity(n);
        for (cache, length) in caches.iter().zip(lengths) {
            begins.push(positions.len());
            positions.extend(cache.length as u32..(cache.length + length) as u32);
        }
        let positions = upload(&positions, (1, n), self.context())?;
        let mut grown: Vec<Vec<KeysValues>> = vec![Vec::with_capacity(self.layers.len()); caches.len()];
        let hidden = self.run(x, &positions, |i, q, k, v| {
            let alone = |text: usize| -> Result<(Tensor, KeysValues)> {
                let own = |t: &Tensor| t.narrow(1, begins[text], lengths[text]);
                let (q, k, v) = (own(q)?, own(&k.detach())?, own(&v.detach())?);
                let (keys, values) = match caches[text].layers.get(i) {
                    Some((ck, cv)) => (Tensor::cat(&[ck, &k], 1)?, Tensor::cat(&[cv, &v], 1)?),
                    None => (k, v),
                };
                let out = ops::cached_attention(&self.context().with(&q), &keys, &values)?;
                Ok((out, (keys, values)))
            };
            let texts = 0..lengths.len();
            // A GPU takes one call after the other.
            let each: Vec<_> = match q.device().is_cpu() {
                true => texts.into_par_iter().map(alone).collect::<Result<_>>()?,
                false => texts.map(alone).collect::<Result<_>>()?,
            };
            let (out, own): (Vec<Tensor>, Vec<KeysValues>) = each.into_iter().unzip();
            grown.iter_mut().zip(own).for_each(|(grown, own)| grown.push(own));
            Tensor::cat(&out, 1)
        })?;
        for ((cache, layers), length) in caches.iter_mut().zip(grown).zip(lengths) {
            **cache = Cache { layers, length: cache.length + length };
        }
        Ok(hidden)
    }
}
