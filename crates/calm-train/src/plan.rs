//! What a run is going to cost, before it costs anything.

use std::time::Instant;

use calm_data::Corpus;
use calm_kernels::{GPU_HEAD_SIZES, device};
use calm_nn::Precision;
use candle_core::{DType, Device, Tensor};
use serde::Serialize;

use crate::machine::available_memory;
use crate::memory::{self, Memory, On, Remedy};
use calm_run::Stage;
use calm_run::config::RunConfig;
use calm_run::{Error, Result};

pub mod cluster;
use cluster::ClusterPlan;

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
    /// How many of it share the rows of a step.
    pub devices: usize,
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
        Ok(Self {
            device: describe(device),
            gpu: device.is_cuda(),
            free,
            matrix_rate: Some(rate),
            devices: 1,
        })
    }

    /// The same, as one of several that share the rows of a step.
    #[must_use]
    pub fn among(self, devices: usize) -> Self {
        Self { devices, ..self }
    }

    /// Some GPUs with so much memory each, of which the driver and the program take [`CONTEXT`].
    pub fn gpus_with(memory: f64, devices: usize) -> Self {
        let device = format!("a GPU of {:.0} GB", memory / 1e9);
        Self { device, gpu: true, free: Some((memory - CONTEXT).max(0.0)), matrix_rate: None, devices }
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
    /// Numbers of an attention head, for each kind of attention.
    pub head_sizes: Vec<usize>,
    /// The stages.
    pub stages: Vec<StagePlan>,
    /// On many GPUs, if that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterPlan>,
}

/// The plan of one stage.
#[derive(Clone, Debug, Serialize)]
pub struct StagePlan {
    /// Which.
    pub stage: Stage,
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
    /// Expected peak of memory of one device by what it is for, bytes.
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
/// The same on a GPU: CALM-M reached 0.49 on an H200.
const EFFICIENCY_GPU: f64 = 0.5;

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
        let of = |stage: Stage| {
            let (model, k) = (&config.model, config.chunk_size());
            let (c, parameters, flops) = match stage {
                Stage::Autoencoder => {
                    let a = model.autoencoder()?;
                    let flops = a.training_flops(k, vocab).total();
                    (config.train.autoencoder.as_ref()?, a.parameters(k, vocab), flops)
                }
                Stage::Lm => {
                    let c = &config.train.lm;
                    let flops = model.training_flops(vocab, c.context).total();
                    (c, model.parameters(vocab), flops)
                }
            };
            let tokens_per_step = (c.batch_rows * c.context * k) as u64;
            let seen = (tokens_per_step * c.steps) as f64;
            let micro_rows = memory::micro_rows(c).min((c.batch_rows / target.devices.max(1)).max(1));
            let mut own = config.clone();
            if let Some(own) = own.train.stage_mut(stage) {
                (own.batch_rows, own.accumulation) = (micro_rows, 1);
            }
            let place = On { gpu: target.gpu, devices: target.devices };
            let memory = memory::step(&own, stage, vocab, place)?;
            let lacks = |free: &f64| memory.total() > *free;
            let remedies = target
                .free
                .filter(lacks)
                .map_or_else(Vec::new, |free| memory::remedies(config, stage, vocab, place, free));
            Some(StagePlan {
                stage,
                parameters: parameters.parts.iter().map(|(name, c)| (*name, c.0)).collect(),
                steps: c.steps,
                tokens_per_step,
                micro_rows,
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
            head_sizes: config.model.head_sizes(),
            stages: Stage::ALL.into_iter().filter_map(of).collect(),
            cluster: None,
        }
    }

    /// The first of these stages that needs more memory than there is: as an error on a GPU, where nothing gives
    /// way, and as a warning on the CPU.
    ///
    /// # Errors
    /// On a GPU, with what to change; there, too, heads that no kernel has.
    pub fn check(&self, stages: &[Stage]) -> Result<Option<String>> {
        let unknown = self.head_sizes.iter().find(|size| !GPU_HEAD_SIZES.contains(size));
        if self.target.gpu
            && stages.contains(&Stage::Lm)
            && let Some(size) = unknown
        {
            return Err(Error::user(
                format!("attention on a GPU has no heads of {size} numbers, only of {GPU_HEAD_SIZES:?}"),
                "choose the heads of the model's backbone so that hidden_size / heads is one of them, or --device cpu",
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
