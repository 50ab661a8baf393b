//! What a run is going to cost, before it costs anything.

use std::time::Instant;

use calm_data::Corpus;
use calm_eval::costs::{AutoencoderShape, BackboneShape, BaselineShape, CalmShape, HeadShape};
use calm_lm::HeadConfig;
use candle_core::{Device, Tensor};
use serde::Serialize;

use crate::config::{ModelConfig, RunConfig, StageConfig};
use crate::error::Result;

/// The plan of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What the text is.
    pub corpus: String,
    /// V.
    pub vocab_size: usize,
    /// Tokens of the training split.
    pub training_tokens: u64,
    /// Measured rate of a large f32 matrix product, FLOP/s.
    pub matrix_rate: f64,
    /// The stages.
    pub stages: Vec<StagePlan>,
}

/// The plan of one stage.
#[derive(Clone, Debug, Serialize)]
pub struct StagePlan {
    /// `autoencoder` or `lm`.
    pub stage: &'static str,
    /// Trainable parameters by part.
    pub parameters: Vec<(&'static str, u64)>,
    /// Optimiser steps.
    pub steps: u64,
    /// Tokens of a step, if its rows are full.
    pub tokens_per_step: u64,
    /// Passes over the training split.
    pub epochs: f64,
    /// Training FLOPs by formula.
    pub flops: f64,
    /// Expected time, seconds.
    pub seconds: f64,
    /// Expected peak of memory, bytes.
    pub memory: f64,
}

impl StagePlan {
    /// All trainable parameters.
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(|p| p.1).sum()
    }
}

/// Share of the matrix rate that a training step reaches (measured on the shipped small configurations).
const EFFICIENCY: f64 = 0.4;

/// Shape of the configured backbone.
pub fn backbone_shape(config: &RunConfig) -> BackboneShape {
    let b = config.backbone();
    BackboneShape {
        layers: b.layers,
        hidden: b.hidden_size,
        intermediate: b.intermediate_size,
        heads: b.heads,
        kv_heads: b.kv_heads(),
    }
}

/// Shape of the configured CALM; none for a baseline.
pub fn calm_shape(config: &RunConfig, vocab: usize) -> Option<CalmShape> {
    let ModelConfig::Calm(c) = &config.model else { return None };
    let a = &c.autoencoder;
    let hidden = c.backbone.hidden_size;
    let layers = c.backbone.layers;
    let (head, samples) = match &c.head {
        HeadConfig::Energy(e) => {
            (HeadShape::Energy { hidden, blocks: e.blocks(layers), noise: e.noise_size }, e.samples)
        }
        HeadConfig::Flow(f) => {
            (HeadShape::Flow { hidden, blocks: f.blocks(layers), calls: f.calls() }, f.repeats)
        }
        HeadConfig::Diffusion(d) => {
            (HeadShape::Diffusion { hidden, blocks: d.blocks(layers), calls: d.sampling_steps }, d.repeats)
        }
    };
    Some(CalmShape {
        backbone: backbone_shape(config),
        head,
        autoencoder: AutoencoderShape {
            vocab,
            chunk_size: c.chunk_size,
            hidden: a.hidden_size,
            intermediate: a.intermediate_size,
            encoder_layers: a.encoder_layers,
            decoder_layers: a.decoder_layers,
            latent: a.latent_size(c.chunk_size),
        },
        context: config.train.lm.context,
        samples,
    })
}

/// Shape of the configured baseline; none for a CALM.
pub fn baseline_shape(config: &RunConfig, vocab: usize) -> Option<BaselineShape> {
    let ModelConfig::Baseline(_) = &config.model else { return None };
    Some(BaselineShape {
        vocab,
        backbone: backbone_shape(config),
        context: config.train.lm.context,
        tied: false,
    })
}

impl Plan {
    /// The plan of `config` on a corpus; measures the matrix rate of this machine for a tenth of a second.
    pub fn new(config: &RunConfig, corpus: &Corpus) -> Result<Self> {
        let tokens = corpus.summary.train.tokens;
        Self::of_sizes(config, corpus.tokenizer.vocab_size(), tokens, corpus.summary.description.clone())
    }

    /// The plan for a vocabulary and a number of training tokens.
    pub fn of_sizes(config: &RunConfig, vocab: usize, tokens: u64, corpus: String) -> Result<Self> {
        let rate = matrix_rate()?;
        let k = config.chunk_size();
        let mut stages = Vec::new();
        let mut add = |stage,
                       c: &StageConfig,
                       parameters: Vec<(&'static str, u64)>,
                       flops_per_token: f64,
                       floats: f64| {
            let tokens_per_step = (c.batch_rows * c.context * k) as u64;
            let flops = flops_per_token * (tokens_per_step * c.steps) as f64;
            let count: u64 = parameters.iter().map(|p| p.1).sum();
            // Weights, gradients (bucket and graph) and two moments; activations and their gradients.
            let memory = 4.0 * (5.0 * count as f64 + 2.0 * floats);
            stages.push(StagePlan {
                stage,
                parameters,
                steps: c.steps,
                tokens_per_step,
                epochs: (tokens_per_step * c.steps) as f64 / tokens.max(1) as f64,
                flops,
                seconds: flops / (rate * EFFICIENCY),
                memory,
            });
        };
        let b = config.backbone();
        let lm = &config.train.lm;
        let positions = (lm.batch_rows / lm.accumulation * lm.context) as f64;
        // Activations that wait for the backward pass, numbers per position.
        let backbone = b.layers as f64 * (9.0 * b.hidden_size as f64 + 4.0 * b.intermediate_size as f64);
        if let Some(shape) = calm_shape(config, vocab) {
            if let Some(c) = &config.train.autoencoder {
                let a = &shape.autoencoder;
                let chunks = (c.batch_rows / c.accumulation * c.context) as f64;
                let block = 3.0 * a.hidden as f64 + 3.0 * a.intermediate as f64;
                let layers = (a.encoder_layers + a.decoder_layers) as f64 / 2.0;
                let floats = chunks * layers * block * (k as f64 + 1.0);
                let parts = counts(&a.parameters().parts);
                add("autoencoder", c, parts, a.training_flops().total(), floats);
            }
            // Of the head: numbers per sample (energy) or draw (flow, diffusion), in widths.
            let (hidden, widths) = match shape.head {
                HeadShape::Energy { hidden, blocks, .. } => (hidden, blocks * 9 + 5),
                HeadShape::Flow { hidden, blocks, .. } | HeadShape::Diffusion { hidden, blocks, .. } => {
                    (hidden, blocks * 13 + 11)
                }
            };
            let head = (shape.samples * widths * hidden) as f64;
            let parts = counts(&shape.parameters().parts);
            add("lm", lm, parts, shape.training_flops().total(), positions * (backbone + head));
        }
        if let Some(shape) = baseline_shape(config, vocab) {
            add(
                "lm",
                lm,
                counts(&shape.parameters().parts),
                shape.training_flops().total(),
                positions * backbone,
            );
        }
        Ok(Self::finish(corpus, vocab, tokens, rate, stages))
    }

    fn finish(
        corpus: String,
        vocab_size: usize,
        training_tokens: u64,
        matrix_rate: f64,
        stages: Vec<StagePlan>,
    ) -> Self {
        Self { corpus, vocab_size, training_tokens, matrix_rate, stages }
    }
}

fn counts(parts: &[(&'static str, calm_eval::costs::Count)]) -> Vec<(&'static str, u64)> {
    parts.iter().map(|(name, c)| (*name, c.0)).collect()
}

/// FLOP/s of a 512³ f32 product on all threads, the best of a few.
fn matrix_rate() -> Result<f64> {
    const N: usize = 512;
    let a = Tensor::ones((N, N), candle_core::DType::F32, &Device::Cpu)?;
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        let t = Instant::now();
        a.matmul(&a)?;
        best = best.min(t.elapsed().as_secs_f64());
    }
    Ok(2.0 * (N * N * N) as f64 / best)
}
