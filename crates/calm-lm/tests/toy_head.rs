//! A head in one file: its settings, its costs, its net, and the line that registers it. Nothing else in the project
//! knows of it, and a CALM reads, builds, trains and draws with it.
//!
//! The toy draws from a normal distribution around a linear map of the hidden state, with one spread for all:
//! loss ‖ẑ − z‖² of the mean against a posterior sample, sample ẑ + spread · noise.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[path = "models/common/mod.rs"]
mod common;

use calm_autoencoder::Posterior;
use calm_config::Problems;
use calm_lm::registry::{self, Entry};
use calm_lm::{BackboneConfig, Calm, CalmConfig, Head, HeadConfig, HeadSettings, LanguageModel, ModelConfig};
use calm_nn::costs::{biased, flops, weights};
use calm_nn::{
    AdamW, AdamWConfig, Builder, Clip, Footing, GradientBucket, Held, Init, Linear, Noise, ParamStore,
};
use candle_core::{D, DType, Device, Result, Tensor};
use common::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct NormalConfig {
    /// Standard deviation of the samples.
    spread: f64,
}

impl HeadSettings for NormalConfig {
    fn name(&self) -> &'static str {
        "normal"
    }

    fn validate(&self, problems: &mut Problems) {
        if !(self.spread >= 0.0 && self.spread.is_finite()) {
            problems.add("spread", format!("is {}: must be 0 or more", self.spread));
        }
    }

    fn build(&self, b: &Builder, backbone: &BackboneConfig, latent_size: usize) -> Result<Box<dyn Head>> {
        let init: Init = backbone.init.into();
        let mean = Linear::new(&b.under("normal_head"), "mean", backbone.hidden_size, latent_size, init)?;
        Ok(Box::new(NormalHead { mean, spread: self.spread, latent_size }))
    }

    fn parameters(&self, backbone: &BackboneConfig, latent_size: usize) -> u64 {
        biased(backbone.hidden_size, latent_size)
    }

    fn pass_flops(&self, backbone: &BackboneConfig, latent_size: usize) -> f64 {
        flops(weights(backbone.hidden_size, latent_size))
    }

    fn training_passes(&self) -> usize {
        1
    }

    fn held(&self, _: &BackboneConfig, latent_size: usize, rows: f64, on: Footing) -> Held {
        let mut held = Held::default();
        held.keep("kept in the head", 3.0 * rows * latent_size as f64 * on.activation);
        held
    }
}

struct NormalHead {
    mean: Linear,
    spread: f64,
    latent_size: usize,
}

impl Head for NormalHead {
    fn loss(&self, hidden: &Tensor, posterior: &Posterior, noise: &Noise<'_>) -> Result<Tensor> {
        let eps = noise.normal("target", 1, self.latent_size, hidden.device())?.squeeze(1)?;
        let target = posterior.sample(&eps)?.detach();
        (self.mean.forward(hidden)? - target)?.sqr()?.sum(D::Minus1)
    }

    fn sample(&self, hidden: &Tensor, samples: usize, noise: &Noise<'_>) -> Result<Tensor> {
        let eps = noise.normal("head", samples, self.latent_size, hidden.device())?;
        self.mean.forward(hidden)?.unsqueeze(1)?.broadcast_add(&(eps * self.spread)?)
    }
}

/// The whole registration.
fn register() {
    registry::add(Entry::head::<NormalConfig>("normal", "A normal distribution around a linear map."));
}

/// As a configuration would bring it.
fn config() -> CalmConfig {
    register();
    let head: HeadConfig = serde_json::from_str(r#"{ "normal": { "spread": 0.1 } }"#).unwrap();
    CalmConfig {
        chunk_size: 2,
        autoencoder: autoencoder_config(),
        backbone: backbone(),
        head,
        decode: Default::default(),
        likelihood: None,
    }
}

#[test]
fn a_head_from_elsewhere_is_read_checked_and_counted() {
    let model: ModelConfig = config().into();
    let text = serde_json::to_string(&model).unwrap();
    assert!(text.contains(r#""head":{"normal":{"spread":0.1}}"#), "{text}");
    assert_eq!(serde_json::from_str::<ModelConfig>(&text).unwrap(), model);
    assert_eq!(model.parameters(VOCAB).parts.last().unwrap().1.0, 24 * 8 + 8);
    assert_eq!(model.published(), None, "it said nothing of checkpoints of the reference implementation");
    let bad: ModelConfig = serde_json::from_str(&text.replace("0.1}}", "-1.0}}")).unwrap();
    let mut problems = Problems::new();
    bad.validate(&mut problems);
    assert_eq!(problems.paths(), ["head.normal.spread"]);
    let schema = serde_json::to_string(&schemars::schema_for!(ModelConfig)).unwrap();
    assert!(schema.contains("A normal distribution around a linear map."));
}

#[test]
fn a_head_from_elsewhere_trains_and_draws() {
    let config = config();
    let store = ParamStore::new(&Device::Cpu, DType::F32, 2);
    let model = Calm::new(&store, &config, autoencoder(2).1, &text(16, false)).unwrap();
    let batch = batch((3, 6, 2), &tokens(36, 1), 0);
    let mut bucket = GradientBucket::new(&store).unwrap();
    let mut adamw = AdamW::new(&store, AdamWConfig::default()).unwrap();
    let mut losses = Vec::new();
    // The same noise at every step: of the loss only what can be learnt changes.
    let noise = Noise::Keyed { seed: 1, purpose: "train", step: 0, rows: &batch.rows };
    for _ in 0..40 {
        let loss = model.loss(&batch, &noise).unwrap();
        losses.push(loss.sum.to_scalar::<f32>().unwrap() / loss.targets as f32);
        bucket.clear();
        bucket.backward(&(loss.sum / loss.targets as f64).unwrap()).unwrap();
        adamw.update(&mut bucket, 1e-2, &Clip::by(1.0)).unwrap();
    }
    assert!(losses[39] < 0.9 * losses[0], "{losses:?}");
    let drawn = model.draw_positions(&batch, 3, 2, 9, "t").unwrap();
    assert_eq!(drawn.tokens.len(), batch.sources.len() * 2 * 3 * 2);
}
