//! What a training step holds in memory, counted from the configuration.
//!
//! ```text
//! state        f32 weights, gradients and two moments; bf16 copies of the weights; the frozen autoencoder
//! activations  what each operator keeps for the backward pass, with the inputs that candle's graph keeps
//! temporary    the most that one operator has for itself, on top of all that
//! ```
//! What a model's parts keep is counted beside them (`held` of a family, a head, the autoencoder); here it is put
//! together.

use calm_autoencoder::AutoencoderConfig;
use calm_nn::{Footing, Precision};
use serde::Serialize;

use calm_run::Stage;
use calm_run::config::{Reduction, RunConfig, Shard, StageConfig};

/// Bytes by what they are for: state first, then what the model's parts keep, then what is passing; what is 0 is left
/// out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Memory(Vec<(&'static str, f64)>);

const WEIGHTS: &str = "weights, f32";
const GRADIENTS: &str = "gradients, f32";
const MOMENTS: &str = "moments, f32";
const COPIES: &str = "weights, bf16";
const FROZEN: &str = "frozen autoencoder";
const TEMPORARY: &str = "largest temporary";
const WORKSPACE: &str = "workspace, slack";

impl Memory {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.0.iter().map(|p| p.1).sum()
    }

    /// What is for this.
    pub fn of(&self, part: &str) -> f64 {
        self.0.iter().find(|p| p.0 == part).map_or(0.0, |p| p.1)
    }

    /// All parts with their bytes.
    pub fn parts(&self) -> &[(&'static str, f64)] {
        &self.0
    }

    fn add(&mut self, part: &'static str, bytes: f64) {
        if bytes > 0.0 {
            self.0.push((part, bytes));
        }
    }
}

/// What several stages hold memory for, in the order of a [`Memory`].
pub fn names<'a>(stages: impl IntoIterator<Item = &'a Memory>) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for (name, _) in stages.into_iter().flat_map(Memory::parts) {
        if !names.contains(name) {
            names.push(name);
        }
    }
    let state = [WEIGHTS, GRADIENTS, MOMENTS, COPIES, FROZEN];
    let passing = [TEMPORARY, WORKSPACE];
    names.sort_by_key(|name| {
        let of = |list: &[&str]| list.iter().position(|n| n == name);
        of(&state).or_else(|| Some(state.len() + 1 + of(&passing)?)).unwrap_or(state.len())
    });
    names
}

/// Workspace of cuBLAS on a stream.
const CUBLAS: f64 = (32 << 20) as f64;
/// Of activations and temporaries again, for what lies unused between them: in the pool of a GPU (assumed), and on
/// the CPU with what threads hold (measured: steps of language models of `calm bench` take 12 to 20 % more than
/// counted, those of autoencoders up to half).
const SLACK_GPU: f64 = 0.05;
const SLACK: f64 = 0.2;

/// Rows of micro-batches.
pub fn micro_rows(c: &StageConfig) -> usize {
    let rows = c.batch_rows / c.accumulation.max(1);
    match c.reduction {
        Reduction::Engine => rows,
        Reduction::Fixed => rows.min(c.batch_rows / c.pieces.max(1)),
    }
    .max(1)
}

/// Buffers of gradients in the memory of one device: the bucket, and on a CPU of each level of the tree a sum that waits. Those of a
/// GPU wait in the memory of its machine.
fn buckets(c: &StageConfig, gpu: bool) -> f64 {
    match c.reduction {
        Reduction::Fixed if !gpu => 2.0 + f64::from(c.pieces.max(1).ilog2()),
        Reduction::Engine | Reduction::Fixed => 1.0,
    }
}

/// Where a step is computed.
#[derive(Clone, Copy, Debug)]
pub struct On {
    /// On GPUs.
    pub gpu: bool,
    /// How many devices or processes share a batch.
    pub devices: usize,
}

/// The share of the moments that a device holds.
fn moments(c: &StageConfig, devices: usize) -> f64 {
    match c.shard {
        Shard::None => 1.0,
        Shard::Optimizer => 1.0 / devices.max(1) as f64,
    }
}

/// What a step of a stage holds on each device with a vocabulary of `vocab`; None of a stage that the model does not have.
pub fn step(config: &RunConfig, stage: Stage, vocab: usize, place: On) -> Option<Memory> {
    let On { gpu, devices } = place;
    let c = config.train.stage(stage)?;
    let (model, k) = (&config.model, config.chunk_size());
    let bf16 = gpu && config.precision == Precision::Bf16;
    let on = Footing::new(config.precision, gpu);
    let positions = (micro_rows(c) * c.context) as f64;
    let first = |a: &AutoencoderConfig| f64::from(a.parameters(k, vocab).total());
    let (parameters, frozen, held) = match stage {
        Stage::Autoencoder => {
            let a = model.autoencoder()?;
            (first(a), 0.0, a.held(k, vocab, positions, on))
        }
        Stage::Lm => {
            let held = model.held(vocab, positions, on, c.recompute);
            (model.parameters(vocab).total().into(), model.autoencoder().map_or(0.0, first), held)
        }
    };
    let mut memory = Memory::default();
    memory.add(WEIGHTS, 4.0 * parameters);
    memory.add(GRADIENTS, 4.0 * buckets(c, gpu) * parameters);
    memory.add(MOMENTS, 8.0 * moments(c, devices) * parameters);
    memory.add(COPIES, if bf16 { 2.0 * parameters } else { 0.0 });
    memory.add(FROZEN, if bf16 { 6.0 } else { 4.0 } * frozen);
    let mut activations = 0.0;
    for (part, bytes) in held.kept {
        memory.add(part, bytes);
        activations += bytes;
    }
    memory.add(TEMPORARY, held.temporary);
    let working = activations + held.temporary;
    memory.add(WORKSPACE, if gpu { CUBLAS + SLACK_GPU * working } else { SLACK * working });
    Some(memory)
}

/// Settings under which a stage fits.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Remedy {
    /// `key=value`, as `--set` takes them.
    pub set: Vec<String>,
    /// Rows of a micro-batch then.
    pub rows: usize,
    /// What a step holds then, bytes.
    pub bytes: f64,
    /// What else changes.
    pub means: &'static str,
}

/// Each change of settings that alone brings a stage below `free` bytes; where it takes one, with the least
/// accumulation that it needs. What changes nothing but the speed comes first.
pub fn remedies(config: &RunConfig, stage: Stage, vocab: usize, place: On, free: f64) -> Vec<Remedy> {
    let Some(settings) = config.train.stage(stage) else { return Vec::new() };
    let key = |name: &str| format!("train.{}.{name}", stage.name());
    let mut found = Vec::new();
    let mut offer = |changed: &RunConfig, set: Vec<String>, means: &'static str| {
        let fit = fit(changed, stage, vocab, place, free);
        let offered = fit.is_some();
        if let Some((accumulation, bytes)) = fit {
            let mut set = set;
            let cut = accumulation != settings.accumulation;
            if cut {
                set.push(format!("{}={accumulation}", key("accumulation")));
            }
            let rows = (changed.train.stage(stage).map_or(1, |c| c.batch_rows) / accumulation).max(1);
            found.push(Remedy { set, rows, bytes, means });
        }
        offered
    };
    offer(config, Vec::new(), "the same model, smaller micro-batches");
    let mut again = config.clone();
    if stage == Stage::Lm && !settings.recompute {
        again.train.lm.recompute = true;
        offer(
            &again,
            vec![format!("{}=true", key("recompute"))],
            "the same model, a third more time in its layers",
        );
    }
    if place.gpu && config.precision == Precision::F32 {
        let narrow = RunConfig { precision: Precision::Bf16, ..config.clone() };
        offer(&narrow, vec!["precision=bf16".into()], "narrower products");
    }
    let smaller = |change: &dyn Fn(&mut StageConfig, usize)| {
        [2, 4, 8, 16].map(|by| {
            let mut changed = config.clone();
            if let Some(c) = changed.train.stage_mut(stage) {
                change(c, by);
            }
            changed
        })
    };
    for changed in smaller(&|c, by| c.context = (c.context / by).max(2)) {
        let context = changed.train.stage(stage).map_or(0, |c| c.context);
        if offer(&changed, vec![format!("{}={context}", key("context"))], "a shorter memory") {
            break;
        }
    }
    for changed in smaller(&|c, by| c.batch_rows = (c.batch_rows / by).max(1)) {
        let Some(c) = changed.train.stage(stage) else { break };
        // As many pieces as before, or it is no smaller micro-batch.
        if !c.batch_rows.is_multiple_of(c.accumulation) {
            break;
        }
        let bytes = step(&changed, stage, vocab, place).map_or(f64::INFINITY, |m| m.total());
        if bytes <= free {
            let set = vec![format!("{}={}", key("batch_rows"), c.batch_rows)];
            found.push(Remedy { set, rows: micro_rows(c), bytes, means: "noisier steps" });
            break;
        }
    }
    found
}

/// The least accumulation, at the least the configured one, with which a stage fits, and its bytes.
pub fn fit(config: &RunConfig, stage: Stage, vocab: usize, place: On, free: f64) -> Option<(usize, f64)> {
    let settings = config.train.stage(stage)?;
    let divisors =
        (settings.accumulation..=settings.batch_rows).filter(|n| settings.batch_rows.is_multiple_of(*n));
    divisors.into_iter().find_map(|accumulation| {
        let mut changed = config.clone();
        changed.train.stage_mut(stage)?.accumulation = accumulation;
        let bytes = step(&changed, stage, vocab, place)?.total();
        (bytes <= free).then_some((accumulation, bytes))
    })
}
