//! An ablation of two runs with their autoencoders, in a second and in this process.

#![allow(dead_code, reason = "each test uses a part")]

#[path = "../../../calm-train/tests/common/kept.rs"]
pub mod kept;
#[path = "../../../calm-train/tests/common/toy.rs"]
pub mod toy;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Mutex;

use calm_config::{ConfigText, Resolved, load};
use calm_report::study::Machine;
use calm_run::checked::read_config;
use calm_run::config::RunConfig;
use calm_run::lock::Owner;
use calm_run::{Begin, Result, Run, Stage};
use calm_study::config::AblationConfig;
use calm_study::execute::{Job, Outcome, Worker, execute, prepare};
use calm_study::plan::{Ablation, BudgetFacts};
use calm_study::{folder, gather, score};
use calm_train::options::TrainOptions;
use calm_train::pipeline::{prepare_data, train};
use candle_core::Device;
use kept::Kept;
use toy::{Listener, Text};

struct Fixed;

impl BudgetFacts for Fixed {
    fn vocab_size(&mut self, _: &RunConfig) -> Result<usize> {
        Ok(270)
    }
    fn rates(&mut self, variants: &[(String, RunConfig)]) -> Result<Vec<f64>> {
        Ok(vec![64.0; variants.len()])
    }
}

/// Trains in this process: operations of a child would not be seen.
struct Here<'a> {
    cache: &'a Path,
    listener: Mutex<Listener>,
}

impl Worker for Here<'_> {
    fn train(&self, job: &Job<'_>) -> Result<Outcome> {
        let train = || -> Result<()> {
            let config: Resolved<RunConfig> = load(read_config(&job.folder.join("config.yaml"))?, &[])?;
            let run = Run::create(job.folder, &config, Begin::Resume)?;
            let options = TrainOptions {
                resume: true,
                skip_scores: true,
                autoencoder_from: job.autoencoder.map(Path::to_owned),
                only: (job.stage == Stage::Autoencoder).then_some(Stage::Autoencoder),
                cache: self.cache.to_owned(),
                ..TrainOptions::default()
            };
            train(&run, &options, &Device::Cpu, &mut *self.listener.lock().unwrap()).map(|_| ())
        };
        Ok(train().map_or_else(|e| Outcome::Failed(e.to_string()), |()| Outcome::Done))
    }

    fn stopped(&self) -> bool {
        false
    }

    fn taken(&self, name: &str, owner: Option<Owner>, _: bool) {
        panic!("nobody else works on {name}: {owner:?}");
    }
}

const TEXT: &str = "version: 1
budget: { tokens: 128 }
seeds: [1]
context_tokens: 24
validation: { points: 2, documents: 1, tokens: 24 }
variants: [{ name: toy, config: toy }]
grid: { model.calm.chunk_size: [2, 3] }
score: { documents: 2, tokens_per_document: 24, bootstrap: 5, samples: 2, draws: 4, rounds: 0, prompt_tokens: 4 }
";

/// The ablation in a place from its beginning to its report, as `calm ablate` does; warnings and failures.
pub fn ablate(place: &Path, text: &Text) -> Result<Vec<String>> {
    let (out, cache) = (place.join("ablation"), place.join("cache"));
    let config = load::<AblationConfig>(ConfigText::new("ablation.yaml", TEXT), &[])?;
    let find = |name: &str| Ok(ConfigText::new(name, text.config().to_yaml()));
    let ablation = Ablation::expand(&config.value, &out, &find, &mut Fixed)?;
    let mut listener = Listener::default();
    let first = &ablation.runs[0];
    let run = Run { folder: first.folder.clone(), config: first.config.value.clone() };
    let corpus = prepare_data(&run, &cache, &mut listener)?;
    prepare(&ablation, &corpus)?;
    ablation.save_config(&config)?;
    let here = Here { cache: &cache, listener: Mutex::new(listener) };
    let mut failures = execute(&ablation, &here, 1)?.unwrap();
    let mut listener = here.listener.into_inner().unwrap();
    score::score(&ablation, &cache, &Device::Cpu, &mut failures, &mut listener)?;
    folder::write_machine(&out, &Machine::default())?;
    let study = gather::gather(&ablation, &failures, Machine::default())?;
    folder::publish(&study, &out)?;
    let mut told = listener.warnings;
    told.extend(study.notes);
    told.extend(failures.into_iter().map(|(run, why)| format!("{run}: {why}")));
    Ok(told)
}

/// By run: what it kept, and its scores.
pub type All = BTreeMap<String, (Kept, Vec<String>)>;

pub fn kept(place: &Path) -> All {
    let mut all = All::new();
    for folder in ["ablation", "ablation/autoencoders"] {
        for entry in fs::read_dir(place.join(folder)).unwrap().map(|e| e.unwrap().path()) {
            if !entry.join("config.yaml").is_file() {
                continue;
            }
            let files = fs::read_dir(&entry).unwrap().map(|e| e.unwrap().path());
            let scores = files.filter(|f| {
                let name = f.file_name().unwrap().to_string_lossy().into_owned();
                name.starts_with("scores-") || name.starts_with("reconstruction-")
            });
            let mut scores: Vec<String> = scores.map(|f| fs::read_to_string(f).unwrap()).collect();
            scores.sort();
            let name = format!("{folder}/{}", entry.file_name().unwrap().display());
            all.insert(name, (Kept::of(&entry), scores));
        }
    }
    all
}
