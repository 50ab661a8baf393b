//! What a training step holds in memory, counted from the configuration.
//!
//! ```text
//! state        f32 weights, gradients and two moments; bf16 copies of the weights; the frozen autoencoder
//! activations  what each operator keeps for the backward pass, with the inputs that candle's graph keeps
//! temporary    the most that one operator has for itself, on top of all that
//! ```
//! Rows R = B·S of a micro-batch; widths as in the models. An operator's inputs are other operators' outputs:
//! each is counted once.

use calm_eval::costs::{AutoencoderShape, BackboneShape, HeadShape};
use calm_nn::Precision;
use serde::Serialize;

use crate::plan::{baseline_shape, calm_shape};
use calm_run::config::{RunConfig, StageConfig};

/// A stage of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Stage 1.
    Autoencoder,
    /// The language model.
    Lm,
}

impl Part {
    /// Its name in configurations.
    pub fn name(self) -> &'static str {
        match self {
            Self::Autoencoder => "autoencoder",
            Self::Lm => "lm",
        }
    }

    fn config(self, config: &RunConfig) -> Option<&StageConfig> {
        match self {
            Self::Autoencoder => config.train.autoencoder.as_ref(),
            Self::Lm => Some(&config.train.lm),
        }
    }

    fn config_mut(self, config: &mut RunConfig) -> Option<&mut StageConfig> {
        match self {
            Self::Autoencoder => config.train.autoencoder.as_mut(),
            Self::Lm => Some(&mut config.train.lm),
        }
    }
}

/// Bytes by what they are for, in the order of [`PARTS`]; what is 0 is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Memory(Vec<(&'static str, f64)>);

/// What memory is for.
pub const PARTS: [&str; 12] = [
    WEIGHTS, GRADIENTS, MOMENTS, COPIES, FROZEN, BACKBONE, INPUT, HEAD, LAYERS, VOCABULARY, TEMPORARY,
    WORKSPACE,
];
const WEIGHTS: &str = "weights, f32";
const GRADIENTS: &str = "gradients, f32";
const MOMENTS: &str = "moments, f32";
const COPIES: &str = "weights, bf16";
const FROZEN: &str = "frozen autoencoder";
const BACKBONE: &str = "kept in the backbone";
const INPUT: &str = "kept in the input";
const HEAD: &str = "kept in the head";
const LAYERS: &str = "kept in the layers";
const VOCABULARY: &str = "kept of the vocabulary";
const TEMPORARY: &str = "largest temporary";
const WORKSPACE: &str = "workspace, slack";

impl Memory {
    /// All of it.
    pub fn total(&self) -> f64 {
        self.0.iter().map(|p| p.1).sum()
    }

    /// One of [`PARTS`].
    pub fn of(&self, part: &str) -> f64 {
        self.0.iter().find(|p| p.0 == part).map_or(0.0, |p| p.1)
    }

    fn add(&mut self, part: &'static str, bytes: f64) {
        if bytes > 0.0 {
            self.0.push((part, bytes));
        }
    }
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
    (c.batch_rows / c.accumulation.max(1)).max(1)
}

/// What a step of a stage holds with a vocabulary of `vocab`; None of a stage that the model does not have.
pub fn step(config: &RunConfig, part: Part, vocab: usize, gpu: bool) -> Option<Memory> {
    let c = part.config(config)?;
    let bf16 = gpu && config.precision == Precision::Bf16;
    let numbers = Numbers { activation: if bf16 { 2.0 } else { 4.0 }, vocab, gpu };
    let positions = (micro_rows(c) * c.context) as f64;
    let mut memory = Memory::default();
    let (parameters, frozen, kept) = match part {
        Part::Autoencoder => {
            let shape = calm_shape(config, vocab)?.autoencoder;
            (shape.parameters().total().0, 0, numbers.autoencoder(&shape, positions))
        }
        Part::Lm => match (calm_shape(config, vocab), baseline_shape(config, vocab)) {
            (Some(shape), _) => {
                let mut kept = numbers.backbone(&shape.backbone, positions, c.recompute);
                numbers.calm(&mut kept, &shape, positions);
                (shape.parameters().total().0, shape.autoencoder.parameters().total().0, kept)
            }
            (None, Some(shape)) => {
                let mut kept = numbers.backbone(&shape.backbone, positions, c.recompute);
                numbers.cross_entropy(&mut kept, shape.backbone.hidden, positions);
                (shape.parameters().total().0, 0, kept)
            }
            (None, None) => return None,
        },
    };
    let (parameters, frozen) = (parameters as f64, frozen as f64);
    memory.add(WEIGHTS, 4.0 * parameters);
    memory.add(GRADIENTS, 4.0 * parameters);
    memory.add(MOMENTS, 8.0 * parameters);
    memory.add(COPIES, if bf16 { 2.0 * parameters } else { 0.0 });
    memory.add(FROZEN, if bf16 { 6.0 } else { 4.0 } * frozen);
    let mut activations = 0.0;
    for (part, bytes) in kept.kept {
        memory.add(part, bytes);
        activations += bytes;
    }
    memory.add(TEMPORARY, kept.temporary);
    let working = activations + kept.temporary;
    memory.add(WORKSPACE, if gpu { CUBLAS + SLACK_GPU * working } else { SLACK * working });
    Some(memory)
}

/// Bytes that wait for the backward pass, and the most that an operator has for itself.
#[derive(Default)]
struct Kept {
    kept: Vec<(&'static str, f64)>,
    temporary: f64,
}

impl Kept {
    fn temporary(&mut self, bytes: f64) {
        self.temporary = self.temporary.max(bytes);
    }
}

/// Sizes of numbers on a device.
struct Numbers {
    /// Bytes of an activation.
    activation: f64,
    vocab: usize,
    gpu: bool,
}

impl Numbers {
    /// Layers and the final norm, for R = `rows`.
    fn backbone(&self, b: &BackboneShape, rows: f64, recompute: bool) -> Kept {
        let (d, i) = (b.hidden as f64, b.intermediate as f64);
        let kv = (b.hidden / b.heads.max(1) * b.kv_heads) as f64;
        let layers = b.layers as f64;
        let input = rows * d * self.activation;
        // Queries and output, keys and values, log sums; the MLP's input and the outputs of gate and up.
        let attention = rows * ((2.0 * d + 2.0 * kv) * self.activation + 4.0 * b.heads as f64);
        let mlp = rows * (d + 2.0 * i) * self.activation;
        let inside = attention + mlp;
        let all = if recompute { layers * input + inside } else { layers * (input + inside) };
        let mut kept = Kept::default();
        // The final norm's input and output, and the rows that are picked from it.
        kept.kept.push((BACKBONE, all + 3.0 * input));
        // The MLP: slopes of the output, of gate, up and their product; then those of gate and up with the norm's
        // output, its slope and the input's. The CPU has all of them at once.
        let mlp = if self.gpu { (d + 3.0 * i).max(4.0 * d + 2.0 * i) } else { 4.0 * d + 4.0 * i };
        kept.temporary(rows * mlp * self.activation);
        // Attention: slopes of the output and in the heads, of queries and keys before and after their turn, of
        // values; the norm's output, its slope and the input's; and a sum a head.
        kept.temporary(rows * ((7.0 * d + 3.0 * kv) * self.activation + 4.0 * b.heads as f64));
        kept
    }

    /// Input module, head and the frozen encoder of a CALM.
    fn calm(&self, kept: &mut Kept, s: &calm_eval::costs::CalmShape, rows: f64) {
        let (d, k) = (s.backbone.hidden as f64, s.autoencoder.chunk_size as f64);
        let (latent, a) = (s.autoencoder.latent as f64, self.activation);
        // Embeddings, both sides of the SiLU, and what the LayerNorm is given.
        let input = rows * (k * d + 2.0 * d + 2.0 * d + d) * a;
        kept.kept.push((INPUT, input));
        let n = s.samples as f64;
        let drawn = rows * n;
        let head = match s.head {
            HeadShape::Energy { hidden, blocks, noise } => {
                let (d, blocks) = (hidden as f64, blocks as f64);
                // Slopes of a block's output and of [gate | up], with what goes into their products.
                kept.temporary(7.0 * drawn * d * a);
                // The condition before and after its norm; noise, embedded, and normed: the first block's input.
                let begin = rows * 2.0 * d + drawn * (noise as f64 + 2.0 * d);
                // A block's four tensors and its output.
                let inside = blocks * (drawn * 5.0 * d + rows * d);
                // The last norm's output, both sides of the SiLU, the samples and the score's gradient.
                let end = drawn * (3.0 * d + 2.0 * latent);
                (begin + inside + end) * a
            }
            // Of plain operations: numbers a draw in widths, counted in their code.
            HeadShape::Flow { hidden, blocks, .. } | HeadShape::Diffusion { hidden, blocks, .. } => {
                drawn * ((blocks * 13 + 11) * hidden) as f64 * a
            }
        };
        kept.kept.push((HEAD, head));
        // The frozen encoder runs when the backbone has, before the head.
        let frozen = self.encoder(&s.autoencoder, rows);
        kept.temporary(frozen - head);
    }

    /// Cross-entropy over the vocabulary: the gradients of both inputs wait inside.
    fn cross_entropy(&self, kept: &mut Kept, width: usize, rows: f64) {
        let table = (self.vocab * width) as f64;
        kept.kept.push((VOCABULARY, rows * width as f64 * self.activation + 4.0 * table));
        kept.temporary(self.logits(rows));
    }

    /// A block of logits, as many rows as the operator takes at once: on a GPU f32 and as slopes.
    fn logits(&self, rows: f64) -> f64 {
        let v = self.vocab.max(1);
        let (most, bytes) = match self.gpu {
            true => (((1 << 27) / v).max(1), 4.0 + self.activation),
            false => (((1 << 24) / v).clamp(64, 512), 4.0),
        };
        rows.min(most as f64) * v as f64 * bytes
    }

    /// A block's input and the outputs of gate and up.
    fn block(&self, s: &AutoencoderShape, rows: f64) -> f64 {
        rows * (s.hidden + 2 * s.intermediate) as f64 * self.activation
    }

    fn encoder(&self, s: &AutoencoderShape, chunks: f64) -> f64 {
        let (d, l) = (s.hidden as f64, s.latent as f64);
        let tokens = chunks * s.chunk_size as f64;
        let wide = s.encoder_layers / 2;
        wide as f64 * self.block(s, tokens)
            + (s.encoder_layers - wide) as f64 * self.block(s, chunks)
            // What is squeezed, the norm, and mean and spread, cut apart.
            + (tokens * d + chunks * (2.0 * d + 4.0 * l)) * self.activation
    }

    fn autoencoder(&self, s: &AutoencoderShape, chunks: f64) -> Kept {
        let (d, l) = (s.hidden as f64, s.latent as f64);
        let tokens = chunks * s.chunk_size as f64;
        let narrow = s.decoder_layers / 2;
        // The KL divergence and the draw are plain operations on [R, L].
        let latents = 18.0 * chunks * l * self.activation;
        let decoder = narrow as f64 * self.block(s, chunks)
            + (s.decoder_layers - narrow) as f64 * self.block(s, tokens)
            // What is expanded, and both sides of the norm.
            + (chunks * d + 2.0 * tokens * d) * self.activation;
        let mut kept = Kept::default();
        kept.kept.push((LAYERS, self.encoder(s, chunks) + latents + decoder));
        self.cross_entropy(&mut kept, s.hidden, tokens);
        kept.temporary(tokens * (4 * s.intermediate + 4 * s.hidden) as f64 * self.activation);
        kept
    }
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
pub fn remedies(config: &RunConfig, part: Part, vocab: usize, gpu: bool, free: f64) -> Vec<Remedy> {
    let Some(stage) = part.config(config) else { return Vec::new() };
    let key = |name: &str| format!("train.{}.{name}", part.name());
    let mut found = Vec::new();
    let mut offer = |changed: &RunConfig, set: Vec<String>, means: &'static str| {
        let fit = fit(changed, part, vocab, gpu, free);
        let offered = fit.is_some();
        if let Some((accumulation, bytes)) = fit {
            let mut set = set;
            let cut = accumulation != stage.accumulation;
            if cut {
                set.push(format!("{}={accumulation}", key("accumulation")));
            }
            let rows = (part.config(changed).map_or(1, |c| c.batch_rows) / accumulation).max(1);
            found.push(Remedy { set, rows, bytes, means });
        }
        offered
    };
    offer(config, Vec::new(), "the same model, smaller micro-batches");
    let mut again = config.clone();
    if part == Part::Lm && !stage.recompute {
        again.train.lm.recompute = true;
        offer(
            &again,
            vec![format!("{}=true", key("recompute"))],
            "the same model, a third more time in its layers",
        );
    }
    if gpu && config.precision == Precision::F32 {
        let narrow = RunConfig { precision: Precision::Bf16, ..config.clone() };
        offer(&narrow, vec!["precision=bf16".into()], "narrower products");
    }
    let smaller = |change: &dyn Fn(&mut StageConfig, usize)| {
        [2, 4, 8, 16].map(|by| {
            let mut changed = config.clone();
            if let Some(c) = part.config_mut(&mut changed) {
                change(c, by);
            }
            changed
        })
    };
    for changed in smaller(&|c, by| c.context = (c.context / by).max(2)) {
        let context = part.config(&changed).map_or(0, |c| c.context);
        if offer(&changed, vec![format!("{}={context}", key("context"))], "a shorter memory") {
            break;
        }
    }
    for changed in smaller(&|c, by| c.batch_rows = (c.batch_rows / by).max(1)) {
        let Some(c) = part.config(&changed) else { break };
        // As many pieces as before, or it is no smaller micro-batch.
        if !c.batch_rows.is_multiple_of(c.accumulation) {
            break;
        }
        let bytes = step(&changed, part, vocab, gpu).map_or(f64::INFINITY, |m| m.total());
        if bytes <= free {
            let set = vec![format!("{}={}", key("batch_rows"), c.batch_rows)];
            found.push(Remedy { set, rows: micro_rows(c), bytes, means: "noisier steps" });
            break;
        }
    }
    found
}

/// The least accumulation, at the least the configured one, with which a stage fits, and its bytes.
pub fn fit(config: &RunConfig, part: Part, vocab: usize, gpu: bool, free: f64) -> Option<(usize, f64)> {
    let stage = part.config(config)?;
    let divisors = (stage.accumulation..=stage.batch_rows).filter(|n| stage.batch_rows.is_multiple_of(*n));
    divisors.into_iter().find_map(|accumulation| {
        let mut changed = config.clone();
        part.config_mut(&mut changed)?.accumulation = accumulation;
        let bytes = step(&changed, part, vocab, gpu)?.total();
        (bytes <= free).then_some((accumulation, bytes))
    })
}
