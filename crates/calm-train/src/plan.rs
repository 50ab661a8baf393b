//! What a run is going to cost, before it costs anything.

use std::time::Instant;

use calm_data::Corpus;
use calm_eval::costs::{AutoencoderShape, BackboneShape, BaselineShape, CalmShape, HeadShape};
use calm_kernels::{GPU_HEAD_SIZES, device};
use calm_lm::HeadConfig;
use calm_nn::Precision;
use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::measure::available_memory;
use crate::memory::{self, Memory, Part, Remedy};
use calm_run::config::{ModelConfig, RunConfig};
use calm_run::{Error, Result};

/// What a plan is made for.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Target {
    /// For people: `cpu`, `cuda:0 (NAME)`.
    pub device: String,
    /// Whether it is a GPU.
    pub gpu: bool,
    /// Memory that can be had, bytes; null where nobody tells.
    pub free: Option<f64>,
    /// Measured rate of a large matrix product in the run's number format, FLOP/s; null if it is not there.
    pub matrix_rate: Option<f64>,
}

impl Target {
    /// A device that is there; its matrix rate is measured for a tenth of a second.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn of(device: &Device, precision: Precision) -> Result<Self> {
        // Before the measurement, whose memory the process keeps.
        let free = match device::free_memory(device)? {
            Some(bytes) => Some(bytes as f64),
            None => available_memory().map(|bytes| bytes as f64),
        };
        let rate = matrix_rate(device, precision)?;
        Ok(Self { device: describe(device), gpu: device.is_cuda(), free, matrix_rate: Some(rate) })
    }

    /// Some GPU with so much memory, of which the driver and the program take [`CONTEXT`].
    pub fn gpu_with(memory: f64) -> Self {
        let device = format!("a GPU of {:.0} GB", memory / 1e9);
        Self { device, gpu: true, free: Some((memory - CONTEXT).max(0.0)), matrix_rate: None }
    }

    /// Share of the matrix rate that a training step is taken to reach.
    pub fn efficiency(&self) -> f64 {
        if self.gpu { EFFICIENCY_GPU } else { EFFICIENCY }
    }
}

/// Of a GPU's memory, what the driver and loaded kernels take.
pub const CONTEXT: f64 = 0.8e9;

/// A device for people: `cpu`, `cuda:0 (NAME)`.
pub fn describe(device: &Device) -> String {
    let name = device::name(device);
    let found = |gpus: Vec<device::GpuInfo>| gpus.into_iter().find(|g| format!("cuda:{}", g.number) == name);
    let gpu = device.is_cuda().then(|| device::gpus().ok().and_then(|(gpus, _)| found(gpus))).flatten();
    gpu.map_or(name.clone(), |g| format!("{name} ({})", g.name))
}

/// The plan of a run.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What the text is.
    pub corpus: String,
    /// V.
    pub vocab_size: usize,
    /// Tokens of the training split; null if the text is not there.
    pub training_tokens: Option<u64>,
    /// What it is made for.
    pub target: Target,
    /// Number format of the matrix products.
    pub precision: Precision,
    /// Numbers of an attention head.
    pub head_size: usize,
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
    /// Rows of a micro-batch.
    pub micro_rows: usize,
    /// Whether layers keep only their input.
    pub recompute: bool,
    /// Passes over the training split; null if the text is not there.
    pub epochs: Option<f64>,
    /// Training FLOPs by formula.
    pub flops: f64,
    /// Expected time, seconds; null where no rate was measured.
    pub seconds: Option<f64>,
    /// Expected peak of memory by what it is for, bytes.
    pub memory: Memory,
    /// If that does not fit: settings that do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remedies: Vec<Remedy>,
}

impl StagePlan {
    /// All trainable parameters.
    pub fn parameter_count(&self) -> u64 {
        self.parameters.iter().map(|p| p.1).sum()
    }
}

/// Share of the matrix rate that a training step reaches on the CPU (measured on the shipped small configurations).
const EFFICIENCY: f64 = 0.4;
/// The same on a GPU: assumed, not measured.
const EFFICIENCY_GPU: f64 = 0.5;

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
    /// The plan of `config` on a corpus.
    pub fn new(config: &RunConfig, corpus: &Corpus, target: &Target) -> Self {
        let (tokens, text) = (corpus.summary.train.tokens, corpus.summary.description.clone());
        Self::of_sizes(config, corpus.tokenizer.vocab_size(), Some(tokens), text, target)
    }

    /// The plan for a vocabulary and a number of training tokens.
    pub fn of_sizes(
        config: &RunConfig,
        vocab: usize,
        tokens: Option<u64>,
        corpus: String,
        target: &Target,
    ) -> Self {
        let of = |part: Part| {
            let (c, parameters, flops) = match part {
                Part::Autoencoder => {
                    let shape = calm_shape(config, vocab)?.autoencoder;
                    (config.train.autoencoder.as_ref()?, shape.parameters(), shape.training_flops().total())
                }
                Part::Lm => {
                    let (parameters, flops) = match (calm_shape(config, vocab), baseline_shape(config, vocab))
                    {
                        (Some(shape), _) => (shape.parameters(), shape.training_flops().total()),
                        (None, shape) => shape.map(|s| (s.parameters(), s.training_flops().total()))?,
                    };
                    (&config.train.lm, parameters, flops)
                }
            };
            let tokens_per_step = (c.batch_rows * c.context * config.chunk_size()) as u64;
            let seen = (tokens_per_step * c.steps) as f64;
            let memory = memory::step(config, part, vocab, target.gpu)?;
            let lacks = |free: &f64| memory.total() > *free;
            let remedies = target
                .free
                .filter(lacks)
                .map_or_else(Vec::new, |free| memory::remedies(config, part, vocab, target.gpu, free));
            Some(StagePlan {
                stage: part.name(),
                parameters: parameters.parts.iter().map(|(name, c)| (*name, c.0)).collect(),
                steps: c.steps,
                tokens_per_step,
                micro_rows: memory::micro_rows(c),
                recompute: c.recompute,
                epochs: tokens.map(|t| seen / t.max(1) as f64),
                flops: flops * seen,
                seconds: target.matrix_rate.map(|rate| flops * seen / (rate * target.efficiency())),
                memory,
                remedies,
            })
        };
        Self {
            corpus,
            vocab_size: vocab,
            training_tokens: tokens,
            target: target.clone(),
            precision: config.precision,
            head_size: config.backbone().head_size(),
            stages: [Part::Autoencoder, Part::Lm].into_iter().filter_map(of).collect(),
        }
    }

    /// The first of these stages that needs more memory than there is: as an error on a GPU, where nothing gives
    /// way, and as a warning on the CPU.
    ///
    /// # Errors
    /// On a GPU, with what to change; there, too, heads that no kernel has.
    pub fn check(&self, stages: &[&str]) -> Result<Option<String>> {
        if self.target.gpu && stages.contains(&"lm") && !GPU_HEAD_SIZES.contains(&self.head_size) {
            return Err(Error::user(
                format!(
                    "attention on a GPU has no heads of {} numbers, only of {GPU_HEAD_SIZES:?}",
                    self.head_size
                ),
                "choose backbone.heads so that hidden_size / heads is one of them, or --device cpu",
            ));
        }
        let Some(free) = self.target.free else { return Ok(None) };
        let too_large = |s: &&StagePlan| stages.contains(&s.stage) && s.memory.total() > free;
        let Some(stage) = self.stages.iter().find(too_large) else { return Ok(None) };
        let gb = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
        let message = format!(
            "a step of stage {} needs about {} of memory, and {} has {} free",
            stage.stage,
            gb(stage.memory.total()),
            self.target.device,
            gb(free)
        );
        let mut lines = Vec::new();
        for r in &stage.remedies {
            let set: Vec<String> = r.set.iter().map(|s| format!("--set {s}")).collect();
            let rows = if r.rows == 1 { "row" } else { "rows" };
            lines.push(format!(
                "  {}\n    {} with {} {rows} at a time: {}",
                set.join(" "),
                gb(r.bytes),
                r.rows,
                r.means
            ));
        }
        let hint = match lines.is_empty() {
            true => {
                "no cut of the batch, no other format and no shorter context is enough: a smaller model, or \
                     more memory"
                    .to_owned()
            }
            false => format!("any of these fits, the first of them changes least:\n{}", lines.join("\n")),
        };
        match self.target.gpu {
            true => Err(Error::user(message, hint)),
            false => Ok(Some(format!("{message}: the system may end the run\n{hint}"))),
        }
    }
}

/// FLOP/s of a square product in the format of `precision`, the best of a few: on the CPU 512³ on all threads, on
/// a GPU the first that takes long enough to be measured, or 8192³.
fn matrix_rate(device: &Device, precision: Precision) -> Result<f64> {
    const LONG: f64 = 5e-3;
    let dtype = if device.is_cuda() { precision.compute() } else { DType::F32 };
    let mut side = 512;
    loop {
        let a = Tensor::ones((side, side), DType::F32, &Device::Cpu)?.to_dtype(dtype)?.to_device(device)?;
        let mut best = f64::INFINITY;
        for _ in 0..6 {
            device.synchronize()?;
            let t = Instant::now();
            a.matmul(&a)?;
            device.synchronize()?;
            best = best.min(t.elapsed().as_secs_f64());
        }
        if device.is_cpu() || best > LONG || side >= 8192 {
            return Ok(2.0 * (side as f64).powi(3) / best);
        }
        side *= 2;
    }
}

#[cfg(test)]
mod tests;
