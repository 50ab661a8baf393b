//! A folder with a tiny run and its cache, trained in a fraction of a second, again and again.

#![allow(dead_code, reason = "each test uses a part")]

#[path = "place.rs"]
pub mod place;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use calm_config::{ConfigText, Resolved, load};
use calm_run::checkpoint::StageState;
use calm_run::config::RunConfig;
use calm_run::{Begin, Run, Stage};
use calm_train::options::TrainOptions;
use calm_train::pipeline::train;
use calm_train::plan::Plan;
use calm_train::reporter::Reporter;
use calm_train::training::{Observer, StepReport, Validation};
use candle_core::Device;
#[allow(unused_imports, reason = "each test uses a part")]
pub use place::{copy, in_memory};

/// Two stages with checkpoints between validations, and validations that improve and that do not.
const CALM: &str = "
model:
  calm:
    chunk_size: 2
    autoencoder: { hidden_size: 8, intermediate_size: 12, latent_size: 4 }
    backbone: { layers: 1, hidden_size: 8, intermediate_size: 12, heads: 2, init_std: 0.1 }
    head: { energy: { blocks: 1, noise_size: 4, samples: 2, targets: 2 } }
train:
  autoencoder: { steps: 4, batch_rows: 2, context: 8, learning_rate: 3e-2, warmup_steps: 1, eval_every: 2, checkpoint_every: 3, log_every: 1 }
  lm: { steps: 5, batch_rows: 2, context: 8, learning_rate: 3e-2, warmup_steps: 1, eval_every: 2, checkpoint_every: 3, log_every: 1 }
eval: { training_documents: 1, documents: 2, chunks_per_document: 6, bootstrap: 5 }
";

/// The text, which lies outside of what is harmed.
pub struct Text(tempfile::TempDir);

impl Text {
    pub fn new() -> Self {
        let words = ["ana", "bolo", "cedi", "du", "elf", "fugo", "gi", "halm"];
        let mut state = 7u64;
        let mut out = String::new();
        for sentence in 0..200 {
            for _ in 0..6 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let _ = write!(out, "{} ", words[(state >> 40) as usize % words.len()]);
            }
            out.push_str(if sentence % 5 == 4 { ".\n\n" } else { ".\n" });
        }
        let dir = in_memory();
        std::fs::write(dir.path().join("text.txt"), out).unwrap();
        Self(dir)
    }

    pub fn path(&self) -> PathBuf {
        self.0.path().join("text.txt")
    }

    pub fn config(&self) -> Resolved<RunConfig> {
        self.config_with(&[])
    }

    /// With some settings changed.
    pub fn config_with(&self, set: &[&str]) -> Resolved<RunConfig> {
        let yaml = format!(
            "version: 1\nseed: 5\ndata: {{ source: {{ path: {:?} }}, validation: 0.2 }}\n\
             tokenizer: {{ bpe: {{ vocab_size: 270 }} }}\n{CALM}",
            self.path(),
        );
        let set: Vec<String> = set.iter().map(ToString::to_string).collect();
        load(ConfigText::new("test.yaml", yaml), &set).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// Listens, and asks to stop after a step of a stage.
#[derive(Default)]
pub struct Listener {
    pub warnings: Vec<String>,
    pub stop_after: Option<(Stage, u64)>,
    pub stop: bool,
    /// Batches that this process has measured, by what for.
    pub measured: BTreeMap<String, usize>,
}

impl Observer for Listener {
    fn begin(&mut self, _: Stage, _: u64, _: u64) {}
    fn step(&mut self, r: &StepReport) {
        self.stop = self.stop_after == Some((r.stage, r.step));
    }
    fn validation(&mut self, _: Stage, _: u64, _: &Validation) {}
    fn end(&mut self, _: Stage, _: &StageState) {}
    fn should_stop(&self) -> bool {
        self.stop
    }
}

impl Reporter for Listener {
    fn data(&mut self, progress: &calm_data::Progress) {
        if let calm_data::Progress::Remade { what } = progress {
            self.warnings.push(what.clone());
        }
    }
    fn data_done(&mut self) {}
    fn note(&mut self, _: &str) {}
    fn plan(&mut self, _: &Plan) {}
    fn scoring(&mut self, what: &str, _: usize, _: usize) {
        *self.measured.entry(what.to_owned()).or_default() += 1;
    }
    fn warn(&mut self, text: &str) {
        self.warnings.push(text.to_owned());
    }
}

/// The run in a place.
pub fn run_of(place: &Path) -> PathBuf {
    place.join("run")
}

/// Trains the run in `place` to its end, or goes on with it: as `calm train --resume` does.
pub fn go(place: &Path, text: &Text, listener: &mut Listener) -> calm_run::Result<()> {
    go_with(place, &text.config(), listener)
}

/// As [`go`], of another configuration.
pub fn go_with(place: &Path, config: &Resolved<RunConfig>, listener: &mut Listener) -> calm_run::Result<()> {
    let run = Run::create(&run_of(place), config, Begin::Resume)?;
    let options = TrainOptions { resume: true, cache: place.join("cache"), ..TrainOptions::default() };
    train(&run, &options, &Device::Cpu, listener).map(|_| ())
}
