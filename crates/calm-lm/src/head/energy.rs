//! The energy head: noise in, one sample of the next latent vector out, in a single pass.

use calm_autoencoder::Posterior;
use calm_kernels as ops;
use calm_nn::{Builder, Init, LayerNorm, Linear, Noise};
use candle_core::{Result, Tensor};

use super::Head;
use crate::{BackboneConfig, EnergyConfig};

const EPS: f64 = 1e-6;

/// One residual block: `u = MLP([LN(x); c])`, widths 2D -> D -> D -> 2D with SiLU between; u is cut into
/// gate and up; `x += W(silu(gate) · up)`.
#[derive(Clone, Debug)]
struct Block {
    norm: LayerNorm,
    /// `[D, 2D]`: the left half acts on the sample, the right half on the condition.
    first: Linear,
    second: Linear,
    third: Linear,
    down: Linear,
}

impl Block {
    fn new(b: &Builder, d: usize, init: Init) -> Result<Self> {
        let mlp = b.under("linears");
        Ok(Self {
            norm: LayerNorm::new(b, "in_ln", d, EPS)?,
            first: Linear::new(&mlp, "0", 2 * d, d, init)?,
            second: Linear::new(&mlp, "2", d, d, init)?,
            third: Linear::new(&mlp, "4", d, 2 * d, init)?,
            down: Linear::new(b, "down_proj", d, d, init)?,
        })
    }

    /// `x [R, N, D]`, condition `c [R, D]`.
    fn forward(&self, x: &Tensor, c: &Tensor) -> Result<Tensor> {
        let weights = ops::EnergyBlockWeights {
            norm: [&self.norm.weight, &self.norm.bias],
            first: self.first.weight_and_bias()?,
            second: self.second.weight_and_bias()?,
            third: self.third.weight_and_bias()?,
            down: self.down.weight_and_bias()?,
        };
        ops::energy_block(x, c, weights, self.norm.eps)
    }
}

/// The single-step generative head of the paper (section 3), trained with the energy score.
#[derive(Clone, Debug)]
pub struct EnergyHead {
    config: EnergyConfig,
    noise_embedding: Linear,
    noise_norm: LayerNorm,
    hidden_embedding: Linear,
    hidden_norm: LayerNorm,
    blocks: Vec<Block>,
    final_norm: LayerNorm,
    final_first: Linear,
    final_second: Linear,
}

impl EnergyHead {
    /// Parameters `mlp_generator.*`; `generative_head.*` is an alias of each.
    pub fn new(
        b: &Builder,
        config: &EnergyConfig,
        backbone: &BackboneConfig,
        latent_size: usize,
    ) -> Result<Self> {
        let d = backbone.hidden_size;
        let init = Init::Normal(backbone.init_std);
        let root = b;
        let b = &b.under("mlp_generator");
        let last = b.under("final_layer");
        let head = Self {
            noise_embedding: Linear::new(b, "noise_embd", config.noise_size, d, init)?,
            noise_norm: LayerNorm::new(b, "norm_noise", d, EPS)?,
            hidden_embedding: Linear::new(b, "hidden_embd", d, d, init)?,
            hidden_norm: LayerNorm::new(b, "norm_hidden", d, EPS)?,
            blocks: (0..config.blocks(backbone.layers))
                .map(|i| Block::new(&b.under("mlp_blocks").under(i), d, init))
                .collect::<Result<_>>()?,
            final_norm: LayerNorm::new(&last, "in_ln", d, EPS)?,
            final_first: Linear::new(&last.under("linears"), "0", d, d, init)?,
            // Zero at the start: all samples coincide and the loss starts at the distance to the origin.
            final_second: Linear::new(&last.under("linears"), "2", d, latent_size, Init::Zeros)?,
            config: config.clone(),
        };
        root.alias_all("generative_head", "mlp_generator");
        Ok(head)
    }

    /// `hidden [R, D]`, noise `[R, N, noise_size]` in [−½, ½) -> latents `[R, N, L]`.
    pub fn forward(&self, hidden: &Tensor, noise: &Tensor) -> Result<Tensor> {
        let c = self.hidden_norm.forward(&self.hidden_embedding.forward(hidden)?)?;
        let mut x = self.noise_norm.forward(&self.noise_embedding.forward(noise)?)?;
        for block in &self.blocks {
            x = block.forward(&x, &c)?;
        }
        let x = ops::silu(&self.final_first.forward(&self.final_norm.forward(&x)?)?)?;
        self.final_second.forward(&x)
    }

    fn noise(&self, hidden: &Tensor, samples: usize, noise: &Noise<'_>) -> Result<Tensor> {
        (noise.uniform("head", samples, self.config.noise_size, &self.noise_embedding.weight)? - 0.5)?
            .to_dtype(hidden.dtype())
    }
}

impl Head for EnergyHead {
    /// Noise streams: `head` uniform `[R, N, noise_size]`; `target` normal `[M, R, L]`.
    fn loss(&self, hidden: &Tensor, posterior: &Posterior, noise: &Noise<'_>) -> Result<Tensor> {
        let latents = self.forward(hidden, &self.noise(hidden, self.config.samples, noise)?)?;
        let targets = noise.targets("target", self.config.targets)?;
        let latents = self.noise_embedding.weight.context().with(&latents);
        ops::energy_score(&latents, &posterior.mean, &posterior.log_std, targets, self.config.alpha)
    }

    fn sample(&self, hidden: &Tensor, samples: usize, noise: &Noise<'_>) -> Result<Tensor> {
        self.forward(hidden, &self.noise(hidden, samples, noise)?)
    }
}
