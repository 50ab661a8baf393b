//! Every configuration that is shipped: it is read, planned at its size, and trained for a step at a reduced one.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use calm_cli::shipped;
use calm_config::{ConfigText, Resolved, load};
use calm_run::checkpoint::StageState;
use calm_run::config::RunConfig;
use calm_run::{Begin, Run, Stage};
use calm_train::options::TrainOptions;
use calm_train::pipeline::train;
use calm_train::plan::{Plan, Target};
use calm_train::reporter::Reporter;
use calm_train::training::{Observer, StepReport, Validation};
use candle_core::Device;

/// Counts steps.
#[derive(Default)]
struct Steps(Vec<Stage>);

impl Observer for Steps {
    fn begin(&mut self, _: Stage, _: u64, _: u64) {}
    fn step(&mut self, r: &StepReport) {
        assert!(r.values.as_ref().is_some_and(|v| v.loss.is_finite()));
        self.0.push(r.stage);
    }
    fn validation(&mut self, _: Stage, _: u64, _: &Validation) {}
    fn end(&mut self, _: Stage, _: &StageState) {}
    fn should_stop(&self) -> bool {
        false
    }
}

impl Reporter for Steps {
    fn data(&mut self, _: &calm_data::Progress) {}
    fn data_done(&mut self) {}
    fn note(&mut self, _: &str) {}
    fn plan(&mut self, _: &Plan) {}
    fn scoring(&mut self, _: &str, _: usize, _: usize) {}
    fn warn(&mut self, text: &str) {
        panic!("unexpected warning: {text}");
    }
}

/// The configurations in `configs/`, by name.
fn all() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs");
    let mut found = Vec::new();
    for (folder, prefix) in [(root.clone(), ""), (root.join("paper"), "paper/")] {
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let ablation = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with("ablate-"));
            if path.extension().is_some_and(|e| e == "yaml") && !ablation {
                found.push((format!("{prefix}{}", path.file_stem().unwrap().display()), path));
            }
        }
    }
    found.sort();
    assert!(found.iter().any(|f| f.0 == "quickstart"));
    found
}

fn read(path: &Path, set: &[String]) -> Resolved<RunConfig> {
    let text = ConfigText::read(path).unwrap_or_else(|e| panic!("{e}"));
    load(text, set).unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn every_configuration_says_what_it_is_for_and_loads_to_itself() {
    for (name, path) in all() {
        let config = read(&path, &[]);
        assert!(!config.value.description.is_empty(), "{name} has no description");
        let again: Resolved<RunConfig> = load(ConfigText::new("again.yaml", config.to_yaml()), &[]).unwrap();
        assert_eq!(again.value, config.value, "{name}");
        assert_eq!(shipped::find(&name).unwrap().text, std::fs::read_to_string(path).unwrap(), "{name}");
    }
}

/// A number of parameters in a description: `849M parameters`, `1.82B parameters`.
fn promised(description: &str) -> Option<f64> {
    let word = description.split(" parameters").next()?.rsplit(' ').next()?;
    let unit = match word.chars().last()? {
        'M' => 1e6,
        'B' => 1e9,
        _ => return None,
    };
    Some(word[..word.len() - 1].parse::<f64>().ok()? * unit)
}

#[test]
fn every_configuration_is_planned_and_has_the_parameters_it_promises() {
    // What the large ones ask for.
    let target = Target::gpus_with(80e9, 1);
    for (name, path) in all() {
        let config = read(&path, &[]).value;
        let vocab = match &config.tokenizer {
            calm_data::TokenizerConfig::Bpe(bpe) => bpe.vocab_size,
            // 128000 tokens, 256 special ones, and a PAD of their own.
            calm_data::TokenizerConfig::Llama3(_) => 128_257,
            _ => 400,
        };
        let plan = Plan::of_sizes(&config, vocab, Some(10_000_000), name.clone(), &target);
        let stages: Vec<Stage> = plan.stages.iter().map(|s| s.stage).collect();
        match config.model.autoencoder() {
            Some(_) => assert_eq!(stages, Stage::ALL, "{name}"),
            None => assert_eq!(stages, [Stage::Lm], "{name}"),
        }
        for stage in &plan.stages {
            assert!(stage.parameter_count() > 0 && stage.flops > 0.0, "{name}");
            assert!(stage.memory.total() > 0.0 && stage.remedies.is_empty(), "{name} {stage:?}");
        }
        if let Some(promised) = promised(&config.description) {
            let lm = plan.stages.last().unwrap().parameter_count() as f64;
            // The paper's own figures are rounded.
            assert!((lm / promised - 1.0).abs() < 0.01, "{name}: {lm} parameters, not {promised}");
        }
    }
}

#[test]
fn every_configuration_trains_a_step_at_reduced_width() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.txt");
    let mut content = String::new();
    for i in 0..1500 {
        let _ = writeln!(content, "line {i} of a text with {} words\n", i * 7919 % 1000);
    }
    std::fs::write(&text, content).unwrap();
    for (name, path) in all() {
        let full = read(&path, &[]).value;
        let mut set = vec![
            format!("data={{source: {{path: {:?}}}}}", text),
            "tokenizer={chars: {}}".to_owned(),
            "vocabulary=null".to_owned(),
            "precision=f32".to_owned(),
            "eval={training_documents: 1, documents: 2, chunks_per_document: 6, bootstrap: 10}".to_owned(),
        ];
        let model = full.model.name();
        if full.model.autoencoder().is_some() {
            for (key, value) in [("hidden_size", 16), ("intermediate_size", 24), ("latent_size", 16)] {
                set.push(format!("model.{model}.autoencoder.{key}={value}"));
            }
        }
        for (key, value) in [
            ("layers", "2"),
            ("hidden_size", "16"),
            ("intermediate_size", "24"),
            ("heads", "2"),
            ("kv_heads", "null"),
        ] {
            // One transformer, or one over tokens and one over concepts.
            let one = serde_json::to_value(&full.model).unwrap()[model]["backbone"].is_object();
            let parts: &[&str] = if one { &["backbone"] } else { &["tokens", "concepts"] };
            set.extend(parts.iter().map(|part| format!("model.{model}.{part}.{key}={value}")));
        }
        let mut stages = vec![(Stage::Lm, &full.train.lm)];
        stages.extend(full.train.autoencoder.as_ref().map(|s| (Stage::Autoencoder, s)));
        for (stage, c) in stages {
            let pieces = c.accumulation.min(2);
            for (key, value) in [
                ("steps", 1),
                ("warmup_steps", 0),
                ("batch_rows", 2),
                ("accumulation", pieces),
                ("context", 8),
                ("eval_every", 0),
                ("checkpoint_every", 0),
            ] {
                set.push(format!("train.{stage}.{key}={value}"));
            }
        }
        let config = read(&path, &set);
        let run = Run::create(&dir.path().join(name.replace('/', "-")), &config, Begin::New).unwrap();
        let options = TrainOptions { cache: dir.path().join("cache"), ..TrainOptions::default() };
        let mut steps = Steps::default();
        let results =
            train(&run, &options, &Device::Cpu, &mut steps).unwrap_or_else(|e| panic!("{name}: {e}"));
        let expected = if model == "calm" { &Stage::ALL[..] } else { &[Stage::Lm] };
        assert_eq!(steps.0, expected, "{name}");
        assert_eq!(results.autoencoder.is_some(), model == "calm");
        assert!(results.brier.is_some(), "{name}");
    }
}
