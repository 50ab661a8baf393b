//! The decoder inside a chunk: a small causal transformer over its K places.
//!
//! ```text
//! x_k = P_k h + E t_{k−1}      the hidden state of the position, and the token before (nothing at k = 0)
//! x [R, K, W] -> causal layers -> norm -> [R, K, W]
//! ```
//! Each of the R positions is a row of its own: places see the earlier ones of their chunk, and of the text before
//! only what the hidden state says. (MegaByte, arXiv 2305.07185; depth transformers, arXiv 2203.01941.)

use calm_nn::device::upload;
use calm_nn::{Builder, Embedding, Init, Linear};
use candle_core::{Result, Tensor, bail};

use super::PatchConfig;
use crate::backbone::Rows;
use crate::family::TextFormat;
use crate::family::chunk_softmax::{ChunkDecoder, ChunkTokens};
use crate::{Backbone, Cache};

/// Parameters `local.*`.
pub(super) struct Local {
    /// P, all K of them: D -> K·W.
    project: Linear,
    /// E; a chunk of one token has none before it.
    embedding: Option<Embedding>,
    backbone: Backbone,
    chunk_size: usize,
    pad: u32,
}

impl Local {
    pub(super) fn new(b: &Builder, config: &PatchConfig, text: &TextFormat) -> Result<Self> {
        let (b, local) = (b.under("local"), config.local_backbone());
        let (k, w, pad) = (config.chunk_size, local.hidden_size, text.special.pad);
        let init: Init = local.init.into();
        let embedding =
            (k > 1).then(|| Embedding::new(&b, "embed_tokens", text.vocab_size, w, init, Some(pad)));
        Ok(Self {
            project: Linear::no_bias(&b, "project", config.backbone.hidden_size, k * w, init)?,
            embedding: embedding.transpose()?,
            backbone: Backbone::new(&b, &local)?,
            chunk_size: k,
            pad,
        })
    }

    /// `[R, D] -> [R, K, W]`
    fn projected(&self, hidden: &Tensor) -> Result<Tensor> {
        self.project.forward(hidden)?.reshape((hidden.dim(0)?, self.chunk_size, ()))
    }

    /// What stands before the first token of R chunks: PAD, whose vector is 0. U32 `[R, 1]`
    fn nothing(&self, r: usize) -> Result<Tensor> {
        upload(&vec![self.pad; r], (r, 1), &self.project.weight)
    }
}

impl ChunkDecoder for Local {
    fn width(&self) -> usize {
        self.backbone.config().hidden_size
    }

    fn set_recompute(&mut self, recompute: bool) {
        self.backbone.set_recompute(recompute);
    }

    fn teacher_forced(&self, hidden: &Tensor, targets: &Tensor) -> Result<Tensor> {
        let (r, k) = targets.dims2()?;
        let mut x = self.projected(hidden)?;
        let to = &self.project.weight;
        if let Some(embedding) = &self.embedding {
            let before = Tensor::cat(&[&self.nothing(r)?, &targets.narrow(1, 0, k - 1)?], 1)?;
            x = (x + embedding.forward(&before)?)?;
        }
        let places: Vec<u32> = (0..k as u32).collect();
        let positions = upload(&places.repeat(r), (r, k), to)?;
        let segments = upload(&vec![0u32; r * k], (r, k), to)?;
        self.backbone.forward(&x, &Rows::causal(&positions, &segments))
    }

    fn start(&self, hidden: &Tensor) -> Result<Box<dyn ChunkTokens + '_>> {
        Ok(Box::new(Inside {
            local: self,
            inputs: self.projected(hidden)?.detach(),
            cache: Cache::default(),
        }))
    }
}

/// Chunks up to some place.
struct Inside<'a> {
    local: &'a Local,
    /// What the hidden states say, `[R, K, W]`.
    inputs: Tensor,
    cache: Cache,
}

impl ChunkTokens for Inside<'_> {
    fn next(&mut self, before: Option<&[u32]>) -> Result<Tensor> {
        let (r, k, _) = self.inputs.dims3()?;
        let at = self.cache.len();
        if at >= k || before.is_some() != (at > 0) {
            bail!("place {at} of a chunk of {k} tokens was asked for out of turn")
        }
        let mut x = self.inputs.narrow(1, at, 1)?.contiguous()?;
        if let Some(embedding) = &self.local.embedding {
            let to = &self.local.project.weight;
            let ids = match before {
                Some(before) => upload(before, (r, 1), to)?,
                None => self.local.nothing(r)?,
            };
            x = (x + embedding.forward(&ids)?.detach())?;
        }
        self.local.backbone.forward_cached(&x, &mut self.cache)?.squeeze(1)
    }
}

#[cfg(test)]
mod tests {
    use calm_nn::ParamStore;
    use candle_core::{DType, Device, IndexOp};

    use super::*;
    use crate::family::patch::LocalConfig;
    use crate::{BackboneConfig, SpecialIds};

    #[test]
    fn token_by_token_a_chunk_has_the_hidden_states_of_the_whole_chunk() {
        let special = SpecialIds { bos: 7, eos: 8, pad: 9 };
        let text = TextFormat { vocab_size: 10, special, context: 4, bos_chunk: false };
        for (chunk_size, layers) in [(1, 2), (4, 0), (4, 1), (5, 3)] {
            let backbone =
                BackboneConfig { hidden_size: 24, intermediate_size: 32, heads: 2, ..Default::default() };
            let local = LocalConfig { layers, hidden_size: Some(16), ..Default::default() };
            let config = PatchConfig { chunk_size, backbone, local };
            let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
            let local = Local::new(&store.builder(), &config, &text).unwrap();
            for (_, param) in store.params() {
                // Far from the start, where everything is small.
                param.var.set(&(param.var.as_tensor() * 20.0).unwrap()).unwrap();
            }
            let (r, k) = (6, chunk_size);
            let ids: Vec<u32> = (0..(r * k) as u32).map(|i| i * i % 7).collect();
            let hidden: Vec<f32> = (0..r * 24).map(|i| (i as f32 * 0.7).sin()).collect();
            let hidden = Tensor::from_vec(hidden, (r, 24), &Device::Cpu).unwrap();
            let targets = Tensor::from_slice(&ids, (r, k), &Device::Cpu).unwrap();
            let whole = local.teacher_forced(&hidden, &targets).unwrap();
            let largest = whole.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            let mut inside = local.start(&hidden).unwrap();
            let mut before: Option<Vec<u32>> = None;
            for at in 0..k {
                let state = inside.next(before.as_deref()).unwrap();
                let off = (state - whole.i((.., at)).unwrap()).unwrap().abs().unwrap();
                let off = off.max_all().unwrap().to_scalar::<f32>().unwrap();
                assert!(
                    off < 1e-5 * largest.max(1.0),
                    "K = {k}, {layers} layers, place {at}: {off} of {largest}"
                );
                before = Some(ids.iter().skip(at).step_by(k).copied().collect());
            }
            assert!(inside.next(before.as_deref()).is_err(), "a chunk has no place more");
        }
    }
}
