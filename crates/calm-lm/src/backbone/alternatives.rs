//! Many inputs for one and the same next position, for whoever asks which of them a state came from.
//!
//! ```text
//! query n of N sees the C cached keys and its own, not those of the other alternatives
//! p_n = softmax(q_n · [k_1 .. k_C, k_n] / √Dh)          o_n = Σ_c p_nc v_c + p_nn v_n
//! ```
//! The prefix is computed once, and all N alternatives of a layer are one product with each of its matrices. Attention is a
//! composition of tensor operations: it is differentiable, which attention over a cache is not, and small beside the
//! products.

use calm_nn::device::upload;
use candle_core::{D, DType, Result, Tensor, bail};

use super::{Backbone, Cache, KeysValues, Rows};

impl Backbone {
    /// States that this backbone has of a position, besides what goes in: behind each layer, and behind the final norm if
    /// it has one.
    pub fn depth(&self) -> usize {
        self.layers.len() + usize::from(self.norm.is_some())
    }

    /// The states behind each layer and behind the final norm, if there is one, of whole rows in which positions see what
    /// stands before them: `[B, S, D]` each, the input first.
    ///
    /// # Errors
    /// As [`Backbone::forward`].
    pub fn states(&self, x: &Tensor, positions: &Tensor, segments: &Tensor) -> Result<Vec<Tensor>> {
        let mut states = self.residual_streams(x, &Rows::causal(positions, segments))?;
        if let (Some(norm), Some(last)) = (&self.norm, states.last()) {
            states.push(norm.forward(last)?);
        }
        Ok(states)
    }

    /// N alternatives `x [N, D]`, where positions see what stands before them, for the position after the cache -> the state of each at a depth: 0 is x itself, l is
    /// behind layer l, and [`Backbone::depth`] behind the final norm, if there is one. Differentiable in x.
    ///
    /// # Errors
    /// A depth that is not there; a cache of another model, or of several texts; what a GPU answers.
    pub fn alternatives(&self, x: &Tensor, cache: &Cache, depth: usize) -> Result<Tensor> {
        let (n, d) = x.dims2()?;
        if depth > self.depth() {
            bail!("there is no state {depth} in a backbone of {} layers", self.layers.len())
        }
        if !cache.layers.is_empty() && cache.layers.len() != self.layers.len() {
            bail!("the cache belongs to another model")
        }
        let positions = upload(&vec![cache.length as u32; n], (1, n), self.context())?;
        let mut x = x.reshape((1, n, d))?;
        for (i, layer) in self.layers.iter().take(depth).enumerate() {
            let known = cache.layers.get(i);
            x = self.layer(layer, &x, &positions, |q, k, v| apart(q, k, v, known))?;
        }
        if depth > self.layers.len() {
            x = self.close(x)?;
        }
        x.reshape((n, d))
    }
}

/// Attention of q `[1, N, H, Dh]` over the known keys and values `[1, C, Hkv, Dh]` and, for each, its own of k and v
/// `[1, N, Hkv, Dh]`: a tensor like q.
fn apart(q: &Tensor, k: &Tensor, v: &Tensor, known: Option<&KeysValues>) -> Result<Tensor> {
    let (_, n, heads, size) = q.dims4()?;
    let kv = k.dim(2)?;
    let group = heads / kv;
    // A key head with the queries that look at it: [Hkv, N, G, Dh].
    let by_head = |t: &Tensor, each: usize| t.reshape((n, kv, each, size))?.transpose(0, 1)?.contiguous();
    let own = by_head(v, 1)?.broadcast_as((kv, n, group, size))?;
    let mixed = match known {
        // Alone, its own value is all it sees.
        None => own,
        Some((keys, values)) => {
            let c = keys.dim(1)?;
            let of_head = |t: &Tensor| t.reshape((c, kv, size))?.transpose(0, 1)?.contiguous();
            let (keys, values) = (of_head(keys)?, of_head(values)?);
            let q = by_head(q, group)?;
            let scale = (size as f64).sqrt().recip();
            let others = q.reshape((kv, n * group, size))?.matmul(&keys.t()?)?.reshape((kv, n, group, c))?;
            let itself = q.broadcast_mul(&by_head(k, 1)?)?.sum_keepdim(D::Minus1)?;
            let scores = (Tensor::cat(&[others, itself], 3)? * scale)?;
            let p = softmax(&scores)?;
            let others = p.narrow(3, 0, c)?.contiguous()?.reshape((kv, n * group, c))?;
            let others = others.matmul(&values)?.reshape((kv, n, group, size))?;
            (others + own.broadcast_mul(&p.narrow(3, c, 1)?)?)?
        }
    };
    mixed.transpose(0, 1)?.reshape((1, n, heads, size))
}

/// Over the last dimension, in f32 or wider.
fn softmax(scores: &Tensor) -> Result<Tensor> {
    let narrow = scores.dtype();
    let wide = if narrow == DType::BF16 { scores.to_dtype(DType::F32)? } else { scores.clone() };
    let most = wide.max_keepdim(D::Minus1)?.detach();
    let p = wide.broadcast_sub(&most)?.exp()?;
    p.broadcast_div(&p.sum_keepdim(D::Minus1)?)?.to_dtype(narrow)
}
