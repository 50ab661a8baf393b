//! The Llama decoder: RMSNorm before attention and MLP, rotate-half rotary angles, grouped key/value heads.
//!
//! Four ways through the same layers, which differ only in what a position attends to (of a document with an input, in
//! the directions of [`Direction`]):
//! * [`Backbone::forward`]: whole rows at once (training, teacher-forced scoring);
//! * [`Backbone::forward_cached`]: new positions after a cache (generation);
//! * [`Backbone::forward_side_by_side`]: the same for several texts, which share everything but attention;
//! * [`Backbone::forward_branch`]: one more position after *every* position of whole rows at once, each
//!   continuing its own prefix with its own chunk (scoring n-grams that span several chunks).

mod config;
mod costs;
mod direction;
mod published;

use calm_kernels as ops;
use calm_kernels::Sight;
use calm_nn::device::upload;
use calm_nn::{Builder, Init, Linear, RmsNorm, SwiGlu};
use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;

use crate::ChunkBatch;

pub use config::BackboneConfig;
pub use direction::{Direction, MixedHeads, Rows};

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
    /// Positions that were read first, all at once: the input, where the direction of attention makes a difference.
    input: usize,
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

    /// Its input once `new` positions are read: those themselves, if they are the first.
    fn input_before(&self, new: usize) -> usize {
        if self.is_empty() { new } else { self.input }
    }

    /// What it held when it held its first `length` positions, of which there must be so many.
    ///
    /// # Errors
    /// Fewer positions.
    pub(crate) fn first(&self, length: usize) -> Result<Self> {
        let cut = |(k, v): &KeysValues| Ok((k.narrow(1, 0, length)?, v.narrow(1, 0, length)?));
        let layers = self.layers.iter().map(cut).collect::<Result<_>>()?;
        Ok(Self { layers, length, input: self.input.min(length) })
    }
}

/// Keys and values of whole rows, kept for branches.
#[derive(Clone, Debug)]
pub struct Trunk {
    layers: Vec<KeysValues>,
    rows: Rows,
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

    /// Whether it matters that what is read into an empty cache, the input, is read at once: it is looked at in other
    /// directions than forward.
    pub fn reads_input_whole(&self) -> bool {
        !self.config.attention.is_causal()
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

    /// The rows of a batch, as its layers see them.
    ///
    /// # Errors
    /// None that a batch could cause.
    pub fn rows(&self, batch: &ChunkBatch) -> Result<Rows> {
        Rows::of(batch, self.config.attention)
    }

    /// Layer `i` on whole rows, as two fused operators: `x [B, S, D]`. The same as [`Self::layer`] with attention over
    /// what the rows see, which the tests hold equal.
    fn fused_layer(&self, i: usize, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let layer = &self.layers[i];
        let shape = ops::AttentionShape {
            heads: self.config.heads,
            kv_heads: self.config.kv_heads(),
            theta: self.config.rope_theta,
            eps: layer.input_norm.eps,
            positions: &rows.positions,
            sees: rows.sight(i),
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
    pub fn residual_streams(&self, x: &Tensor, rows: &Rows) -> Result<Vec<Tensor>> {
        let mut streams = vec![x.clone()];
        for i in 0..self.layers.len() {
            streams.push(self.fused_layer(i, &streams[i], rows)?);
        }
        Ok(streams)
    }

    /// The weights `[B, H, S, S]` that queries give keys in each layer, by the definition (attention's operators never hold
    /// them), for inputs `x [B, S, D]` of this batch; with `turned` queries and keys are turned by their positions, as they are
    /// in the model.
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn attention_weights(&self, x: &Tensor, batch: &ChunkBatch, turned: bool) -> Result<Vec<Tensor>> {
        let rows = self.rows(batch)?;
        let positions = if turned { rows.positions.clone() } else { rows.positions.zeros_like()? };
        let (heads, direction) = (self.config.heads, self.config.attention);
        let group = heads / self.config.kv_heads();
        let streams = self.residual_streams(x, &rows)?;
        let of_layer = |(i, (layer, x)): (usize, (&Layer, &Tensor))| {
            let mut weights = None;
            self.layer(layer, x, &positions, |q, k, v| {
                let q = q.transpose(1, 2)?.contiguous()?;
                let (b, kv, s, size) = k.transpose(1, 2)?.dims4()?;
                let k = k.transpose(1, 2)?.unsqueeze(2)?.expand((b, kv, group, s, size))?;
                let k = k.reshape((b, heads, s, size))?;
                let scores = (q.matmul(&k.t()?)? / (size as f64).sqrt())?;
                let sees = direction::masks(batch, direction, i, heads)?;
                let nothing = scores.ones_like()?.affine(f64::from(f32::MIN), 0.0)?;
                let scores = sees.where_cond(&scores, &nothing)?;
                let largest = scores.max_keepdim(3)?;
                let weighed = scores.broadcast_sub(&largest)?.exp()?;
                weights = Some(weighed.broadcast_div(&weighed.sum_keepdim(3)?)?.detach());
                // What comes of the layer does not matter here.
                v.repeat((1, 1, group, 1))
            })?;
            weights.ok_or_else(|| candle_core::Error::Msg("a layer without attention".into()))
        };
        self.layers.iter().zip(&streams).enumerate().map(of_layer).collect()
    }

    /// Whole rows: `x [B, S, D]` -> hidden states `[B, S, D]`.
    ///
    /// # Errors
    /// Shapes that do not fit, positions or segments that are not U32; what a GPU answers.
    pub fn forward(&self, x: &Tensor, rows: &Rows) -> Result<Tensor> {
        let mut x = x.clone();
        for i in 0..self.layers.len() {
            x = if self.recompute {
                let (backbone, rows) = (self.clone(), rows.clone());
                ops::recomputed(self.context(), &x, move |x| backbone.fused_layer(i, x, &rows))?
            } else {
                self.fused_layer(i, &x, rows)?
            };
        }
        self.close(x)
    }

    /// As [`Backbone::forward`], keeping keys and values for branches (no gradient).
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn forward_trunk(&self, x: &Tensor, rows: &Rows) -> Result<(Tensor, Trunk)> {
        let mut layers = Vec::with_capacity(self.layers.len());
        let hidden = self.run(x, &rows.positions, |i, q, k, v| {
            layers.push((k.detach(), v.detach()));
            match rows.sight(i) {
                Sight::Segments(segments) => ops::causal_attention(&self.context().with(q), k, v, segments),
                Sight::Spans(spans) => ops::span_attention(&self.context().with(q), k, v, spans),
            }
        })?;
        Ok((hidden, Trunk { layers, rows: rows.clone() }))
    }

    /// One more chunk after every position of the trunk: `x [B, S, D]` is the input that follows position s
    /// (and the chunks already in `branch`) -> hidden states `[B, S, D]`. Of a document with an input they are what they
    /// should be from its last position on: no branch leaves it before.
    ///
    /// # Errors
    /// An input that does not fit the trunk; what a GPU answers.
    pub fn forward_branch(&self, x: &Tensor, trunk: &Trunk, branch: &mut Branch) -> Result<Tensor> {
        let places = &trunk.rows.positions;
        let ahead = Tensor::full(branch.steps.len() as u32 + 1, places.dims(), x.device())?;
        let positions = places.add(&ahead)?;
        let mut step: Vec<KeysValues> = Vec::with_capacity(self.layers.len());
        let hidden = self.run(x, &positions, |i, q, k, v| {
            step.push((k.detach(), v.detach()));
            let own: (Vec<Tensor>, Vec<Tensor>) =
                branch.steps.iter().chain(std::iter::once(&step)).map(|s| s[i].clone()).unzip();
            let (keys, values) = &trunk.layers[i];
            let sees = trunk.rows.sight(i);
            ops::branch_attention(&self.context().with(q), keys, values, sees, &own.0, &own.1)
        })?;
        branch.steps.push(step);
        Ok(hidden)
    }

    /// Attention of T new positions of each of B texts in layer `i` over `cached` positions of which the first `input` are
    /// input, and themselves: q `[B, T, H, Dh]`, keys and values `[B, C + T, Hkv, Dh]`.
    fn attend_cached(
        &self,
        i: usize,
        [q, keys, values]: [&Tensor; 3],
        cached: usize,
        input: usize,
    ) -> Result<Tensor> {
        let direction = self.config.attention;
        if direction.is_causal() {
            return ops::cached_attention(&self.context().with(q), keys, values);
        }
        let (b, t, _, _) = q.dims4()?;
        let spans = direction.after(i, [b, t, cached], input)?;
        ops::span_attention(&self.context().with(q), keys, values, &spans)
    }

    /// New positions after the cache: `x [B, T, D]` -> hidden states `[B, T, D]`; the cache grows by T. What is read into an
    /// empty cache is the input.
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
        let input = cache.input_before(t);
        let hidden = self.run(x, &positions, |i, q, k, v| {
            let (keys, values) = match cache.layers.get(i) {
                Some((ck, cv)) => (Tensor::cat(&[ck, &k.detach()], 1)?, Tensor::cat(&[cv, &v.detach()], 1)?),
                None => (k.detach(), v.detach()),
            };
            let out = self.attend_cached(i, [q, &keys, &values], cache.length, input);
            grown.push((keys, values));
            out
        })?;
        *cache = Cache { layers: grown, length: cache.length + t, input };
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
                let (cached, input) = (caches[text].length, caches[text].input_before(lengths[text]));
                let out = self.attend_cached(i, [&q, &keys, &values], cached, input)?;
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
            let input = cache.input_before(*length);
            **cache = Cache { layers, length: cache.length + length, input };
        }
        Ok(hidden)
    }
}
