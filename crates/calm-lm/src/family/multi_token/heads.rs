//! The heads: one gated MLP with its norms for each of the K next tokens, which know the hidden state and nothing of
//! each other.
//!
//! ```text
//! y_k = norm_k(h + SwiGLU_k(norm'_k(h)))      p(token k) = softmax(E y_k), one E for all
//! ```
//! (Heads on a shared trunk and a shared vocabulary as in arXiv 2404.19737, each an MLP instead of a whole layer:
//! a head sees the text through the hidden state alone.)

use calm_nn::{Builder, Init, RmsNorm, SwiGlu};
use candle_core::{Result, Tensor, bail};

use super::MultiTokenConfig;
use crate::family::chunk_softmax::{ChunkDecoder, ChunkTokens};

/// The head of one place.
struct Head {
    input_norm: RmsNorm,
    mlp: SwiGlu,
    norm: RmsNorm,
}

impl Head {
    /// `[R, D] -> [R, D]`
    fn forward(&self, hidden: &Tensor) -> Result<Tensor> {
        self.norm.forward(&self.mlp.residual(hidden, &self.input_norm)?)
    }
}

/// Parameters `heads.*`.
pub(super) struct Heads {
    heads: Vec<Head>,
    width: usize,
}

impl Heads {
    pub(super) fn new(b: &Builder, config: &MultiTokenConfig) -> Result<Self> {
        let (b, d, eps) = (b.under("heads"), config.backbone.hidden_size, config.backbone.norm_eps);
        let init: Init = config.backbone.init.into();
        let head = |k: usize| -> Result<Head> {
            let b = b.under(k);
            Ok(Head {
                input_norm: RmsNorm::new(&b, "input_layernorm", d, eps)?,
                mlp: SwiGlu::new(&b, "mlp", d, config.head_intermediate(), init)?,
                norm: RmsNorm::new(&b, "norm", d, eps)?,
            })
        };
        Ok(Self { heads: (0..config.chunk_size).map(head).collect::<Result<_>>()?, width: d })
    }
}

impl ChunkDecoder for Heads {
    fn width(&self) -> usize {
        self.width
    }

    fn set_recompute(&mut self, _recompute: bool) {}

    fn teacher_forced(&self, hidden: &Tensor, _targets: &Tensor) -> Result<Tensor> {
        let each: Vec<Tensor> = self.heads.iter().map(|head| head.forward(hidden)).collect::<Result<_>>()?;
        Tensor::stack(&each, 1)
    }

    fn start(&self, hidden: &Tensor) -> Result<Box<dyn ChunkTokens + '_>> {
        Ok(Box::new(Beside { heads: self.heads.iter(), hidden: hidden.clone() }))
    }
}

/// The heads that are still to be asked.
struct Beside<'a> {
    heads: std::slice::Iter<'a, Head>,
    hidden: Tensor,
}

impl ChunkTokens for Beside<'_> {
    fn next(&mut self, _before: Option<&[u32]>) -> Result<Tensor> {
        match self.heads.next() {
            Some(head) => Ok(head.forward(&self.hidden)?.detach()),
            None => bail!("a token after the last of the chunk was asked for"),
        }
    }
}
