//! The energy head: noise in, one sample of the next latent vector out, in a single pass.

use calm_autoencoder::Posterior;
use calm_config::Problems;
use calm_kernels as ops;
use calm_nn::costs::{biased, flops, layer_norm, weights};
use calm_nn::{Builder, Footing, Held, Init, LayerNorm, Linear, Noise};
use candle_core::{Result, Tensor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    Head, HeadSettings, KEPT, PublishedHead, blocks, config_json, published_blocks, published_samples,
};
use crate::BackboneConfig;
use crate::published::{ConfigJson, Names};

const EPS: f64 = 1e-6;

/// The energy head (paper, section 3) and its loss.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EnergyConfig {
    /// Residual blocks; null: a quarter of the backbone's layers, at least 1.
    pub blocks: Option<usize>,
    /// Numbers of uniform noise per sample.
    pub noise_size: usize,
    /// N, model samples per position in the loss.
    pub samples: usize,
    /// M, draws of the target posterior per position in the loss.
    pub targets: usize,
    /// Exponent of the distances; the score is strictly proper for 0 < α < 2.
    pub alpha: f64,
}

impl Default for EnergyConfig {
    fn default() -> Self {
        Self { blocks: None, noise_size: 64, samples: 8, targets: 100, alpha: 1.0 }
    }
}

impl EnergyConfig {
    /// Residual blocks for a backbone of `layers`.
    pub fn blocks(&self, layers: usize) -> usize {
        blocks(self.blocks, layers)
    }
}

/// M, draws of the target posterior in the loss of the reference implementation, where it is a constant.
const PUBLISHED_TARGETS: usize = 100;

pub(crate) const PUBLISHED: PublishedHead = PublishedHead {
    names: Names { architecture: "EnergyTransformer", model_type: "energy" },
    read: |keys| {
        EnergyConfig {
            blocks: published_blocks(keys),
            noise_size: keys.size_or("noise_size", 64),
            samples: published_samples(keys),
            targets: PUBLISHED_TARGETS,
            alpha: keys.real_or("beta", 1.0),
        }
        .into()
    },
};

impl HeadSettings for EnergyConfig {
    fn name(&self) -> &'static str {
        "energy"
    }

    fn validate(&self, problems: &mut Problems) {
        if self.blocks == Some(0) {
            problems.add("blocks", "must be at least 1");
        }
        if self.noise_size == 0 {
            problems.add("noise_size", "must be at least 1: without noise all samples coincide");
        }
        if self.samples < 2 {
            let message = format!("is {}: the energy score compares pairs, at least 2", self.samples);
            problems.add("samples", message);
        }
        if self.targets == 0 {
            problems.add("targets", "must be at least 1");
        }
        if !(self.alpha > 0.0 && self.alpha < 2.0) {
            let alpha = self.alpha;
            problems.add(
                "alpha",
                format!("is {alpha}: the energy score is strictly proper for 0 < alpha < 2 only"),
            );
        }
    }

    fn build(&self, b: &Builder, backbone: &BackboneConfig, latent_size: usize) -> Result<Box<dyn Head>> {
        Ok(Box::new(EnergyHead::new(b, self, backbone, latent_size)?))
    }

    fn parameters(&self, backbone: &BackboneConfig, latent_size: usize) -> u64 {
        let d = backbone.hidden_size;
        let block = layer_norm(d) + biased(2 * d, d) + biased(d, d) + biased(d, 2 * d) + biased(d, d);
        let begin = biased(self.noise_size, d) + layer_norm(d) + biased(d, d) + layer_norm(d);
        let end = layer_norm(d) + biased(d, d) + biased(d, latent_size);
        begin + self.blocks(backbone.layers) as u64 * block + end
    }

    fn pass_flops(&self, backbone: &BackboneConfig, latent_size: usize) -> f64 {
        let d = backbone.hidden_size;
        let block = weights(2 * d, d) + weights(d, d) + weights(d, 2 * d) + weights(d, d);
        let ends = weights(self.noise_size, d) + weights(d, d) + weights(d, d) + weights(d, latent_size);
        flops(ends + self.blocks(backbone.layers) as u64 * block)
    }

    fn training_passes(&self) -> usize {
        self.samples
    }

    fn samples_lead_back(&self) -> bool {
        true
    }

    fn held(&self, backbone: &BackboneConfig, latent_size: usize, rows: f64, on: Footing) -> Held {
        let (d, blocks) = (backbone.hidden_size as f64, self.blocks(backbone.layers) as f64);
        let drawn = rows * self.samples as f64;
        let mut held = Held::default();
        // Slopes of a block's output and of [gate | up], with what goes into their products.
        held.temporary(7.0 * drawn * d * on.activation);
        // The condition before and after its norm; noise, embedded, and normed: the first block's input.
        let begin = rows * 2.0 * d + drawn * (self.noise_size as f64 + 2.0 * d);
        // A block's four tensors and its output.
        let inside = blocks * (drawn * 5.0 * d + rows * d);
        // The last norm's output, both sides of the SiLU, the samples and the score's gradient.
        let end = drawn * (3.0 * d + 2.0 * latent_size as f64);
        held.keep(KEPT, (begin + inside + end) * on.activation);
        held
    }

    fn published(&self, layers: usize) -> Option<ConfigJson> {
        let keys = json!({
            "num_mlp_layers": self.blocks(layers),
            "noise_size": self.noise_size,
            "num_samples": self.samples,
            "beta": self.alpha,
        });
        let mut notes = Vec::new();
        if self.targets != PUBLISHED_TARGETS {
            let targets = self.targets;
            notes.push(format!("targets {targets} is not exported: the reference draws {PUBLISHED_TARGETS}"));
        }
        config_json(PUBLISHED.names, keys, notes)
    }
}

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
    ///
    /// # Errors
    /// As [`Builder::weight`].
    pub fn new(
        b: &Builder,
        config: &EnergyConfig,
        backbone: &BackboneConfig,
        latent_size: usize,
    ) -> Result<Self> {
        let d = backbone.hidden_size;
        let init: Init = backbone.init.into();
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
    ///
    /// # Errors
    /// Shapes that do not fit; what a GPU answers.
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

    fn is_fixed(&self) -> bool {
        true
    }
}
