//! The residual gated MLP that both halves are made of.

use calm_nn::{Builder, RmsNorm, SwiGlu};
use candle_core::{Result, Tensor};

use crate::AutoencoderConfig;

/// `x + SwiGLU(RMSNorm(x))`.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    norm: RmsNorm,
    mlp: SwiGlu,
}

impl Block {
    fn new(b: &Builder, c: &AutoencoderConfig) -> Result<Self> {
        Ok(Self {
            norm: RmsNorm::new(b, "layernorm", c.hidden_size, c.norm_eps)?,
            mlp: SwiGlu::new(b, "mlp", c.hidden_size, c.intermediate_size, c.init.into())?,
        })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.mlp.residual(x, &self.norm)
    }
}

/// `count` blocks, named `name.0`, `name.1`, ...
pub(crate) fn blocks(b: &Builder, name: &str, count: usize, c: &AutoencoderConfig) -> Result<Vec<Block>> {
    (0..count).map(|i| Block::new(&b.under(name).under(i), c)).collect()
}
