//! Studies of ablation folders that were made up: nothing is trained or drawn.

use std::fs;
use std::path::Path;

use calm_config::{ConfigErrors, ConfigText, load};
use calm_eval::reconstruction::{NoiseLevel, ReconstructionReport};
use calm_report::study::Reference;
use calm_run::checkpoint::{StageState, write_json};
use calm_run::config::RunConfig;

use super::*;
use crate::config::AblationConfig;
use crate::plan::BudgetFacts;
use crate::score::{keep_made_up, keep_made_up_reconstruction};

const CALM: &str = "version: 1
model: { calm: { chunk_size: 4 } }
train:
  autoencoder: { steps: 4, batch_rows: 2, context: 8, learning_rate: 1e-3 }
  lm: { steps: 10, batch_rows: 2, context: 8, learning_rate: 1e-3 }
";
const BASELINE: &str = "version: 1
model: { baseline: {} }
train:
  lm: { steps: 10, batch_rows: 2, context: 32, learning_rate: 1e-3 }
";
/// Ten steps for both.
const TOKENS: &str = "{ tokens: 640 }";
const V: usize = 300;

struct Fixed;

impl BudgetFacts for Fixed {
    fn vocab_size(&mut self, _: &RunConfig) -> Result<usize> {
        Ok(V)
    }
    fn rates(&mut self, variants: &[(String, RunConfig)]) -> Result<Vec<f64>> {
        Ok(vec![64.0; variants.len()])
    }
}

fn find(name: &str) -> std::result::Result<ConfigText, ConfigErrors> {
    Ok(ConfigText::new(name, if name == "baseline" { BASELINE } else { CALM }))
}

/// A baseline and a CALM from seeds 1 and 2; nothing is there yet.
fn planned(folder: &Path, budget: &str) -> Ablation {
    let text = format!(
        "version: 1
budget: {budget}
seeds: [1, 2]
variants: [{{ name: baseline, config: baseline }}, {{ name: k4, config: calm }}]
score: {{ bootstrap: 20 }}
"
    );
    let config = load::<AblationConfig>(ConfigText::new("ablation.yaml", text), &[]).unwrap().value;
    Ablation::expand(&config, folder, &find, &mut Fixed).unwrap()
}

/// A checkpoint of so many steps, one second and 64 tokens each.
fn train(run: &Run, stage: Stage, steps: u64, text: &str) {
    let checkpoints = run.checkpoints(stage);
    fs::create_dir_all(checkpoints.path(steps)).unwrap();
    fs::write(checkpoints.model_path(steps), format!("weights of {}", run.folder.display())).unwrap();
    let state = StageState { step: steps, tokens: 64 * steps, seconds: steps as f64, ..Default::default() };
    write_json(&checkpoints.path(steps).join("state.json"), &state).unwrap();
    let record = RunRecord { corpus_hash: text.into(), vocab_size: V, ..RunRecord::default() };
    run.write_record(&record).unwrap();
}

fn run_of(ablation: &Ablation, name: &str) -> Run {
    let run = ablation.runs.iter().find(|r| r.name == name).unwrap();
    Run { folder: run.folder.clone(), config: run.config.value.clone() }
}

/// Scores of three positions in each of these documents: `brier` percent, a little more and less by document.
fn score(ablation: &Ablation, run: &Run, brier: f64, documents: std::ops::Range<u64>) {
    let mut sums = BrierSums::new();
    let middle = (documents.start + documents.end - 1) as f64 / 2.0;
    for document in documents {
        for _ in 0..3 {
            sums.add(document, &[(brier + document as f64 - middle) / 100.0; 4]);
        }
    }
    let bigram = Reference { name: "bigram".into(), brierlm: None, brier: vec![1.5] };
    let aligned = Scored { sums, cross_entropy: Some(2.5), bits_per_byte: None, bound: None };
    let scores =
        RunScores { aligned, reference: None, ngrams: vec![bigram], samples: Vec::new(), segments: None };
    keep_made_up(ablation, run, &scores).unwrap();
}

fn finish(ablation: &Ablation, name: &str, brier: f64) {
    let run = run_of(ablation, name);
    train(&run, Stage::Lm, 10, "text");
    score(ablation, &run, brier, 0..5);
}

fn study(ablation: &Ablation) -> Study {
    gather(ablation, &Failures::new(), Machine::default()).unwrap()
}

fn near(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-9
}

#[test]
fn finished_runs_are_gathered_and_each_other_one_says_why_it_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let ablation = planned(&folder.path().join("made-up"), TOKENS);
    finish(&ablation, "baseline-seed1", 20.0);
    train(&run_of(&ablation, "baseline-seed2"), Stage::Lm, 10, "text");
    finish(&ablation, "k4-seed1", 16.0);
    train(&run_of(&ablation, "k4-seed2"), Stage::Lm, 3, "text");
    let s = study(&ablation);
    assert_eq!((s.name.as_str(), s.vocab_size, s.corpus_hash.as_str()), ("made-up", V, "text"));
    assert_eq!(s.budget, "640 training tokens a run, 2 seeds, one autoencoder for all seeds");
    assert_eq!(s.notes, ["baseline-seed2 is trained, but not scored yet", "k4-seed2 is at step 3 of 10"]);
    let shapes: Vec<_> = s.variants.iter().map(|v| (v.name.as_str(), v.chunk_size, v.runs.len())).collect();
    assert_eq!(shapes, [("baseline", 1, 1), ("k4", 4, 1)]);
    for (variant, brier) in s.variants.iter().zip([20.0, 16.0]) {
        let score = variant.aligned.as_ref().unwrap();
        assert!(near(score.brier[0].value, brier), "{score:?}");
        assert_eq!((score.documents, score.positions, score.seeds), (5, 15, 1));
        assert!(variant.reference.is_none() && variant.measured.is_none());
        let run = &variant.runs[0];
        assert_eq!((run.seed, run.tokens, run.seconds, run.cross_entropy), (1, 640, 10.0, Some(2.5)));
        let per_token: f64 = variant.costs.training_parts.iter().map(|p| p.1).sum();
        assert!(per_token > 0.0 && near(run.flops / (640.0 * per_token), 1.0));
    }
    assert_eq!(s.ngrams[0].name, "bigram");

    // Who failed is no longer told to be unfinished.
    let failures = Failures::from([("k4-seed2".to_owned(), "out of memory".to_owned())]);
    let s = gather(&ablation, &failures, Machine::default()).unwrap();
    assert_eq!(s.notes, ["baseline-seed2 is trained, but not scored yet"]);
    assert_eq!((s.failures[0].run.as_str(), s.failures[0].reason.as_str()), ("k4-seed2", "out of memory"));
}

#[test]
fn nothing_trained_is_a_study_without_runs() {
    let folder = tempfile::tempdir().unwrap();
    let s = study(&planned(folder.path(), TOKENS));
    assert_eq!((s.variants.len(), s.differences.len(), s.notes.len()), (2, 0, 4));
    assert!(s.notes.iter().all(|n| n.ends_with("is not trained yet")), "{:?}", s.notes);
}

#[test]
fn differences_are_those_of_common_seeds() {
    let folder = tempfile::tempdir().unwrap();
    let ablation = planned(folder.path(), TOKENS);
    finish(&ablation, "baseline-seed1", 20.0);
    finish(&ablation, "k4-seed2", 12.0);
    let s = study(&ablation);
    assert!(s.differences.is_empty());
    assert!(s.notes.contains(&"k4 has no seed in common with baseline: no difference".to_owned()));

    finish(&ablation, "k4-seed1", 15.0);
    let s = study(&ablation);
    let d = &s.differences[0];
    assert_eq!((d.variant.as_str(), d.against.as_str()), ("k4", "baseline"));
    assert!(near(d.brier[0].estimate.value, -5.0), "{d:?}");
    assert!(s.notes.contains(&"the difference of k4 to baseline is that of 1 seed(s)".to_owned()));

    finish(&ablation, "baseline-seed2", 21.0);
    let s = study(&ablation);
    assert!(near(s.differences[0].brier[0].estimate.value, -7.0), "{:?}", s.differences);
    assert!(s.notes.is_empty(), "{:?}", s.notes);
}

#[test]
fn runs_that_missed_a_budget_of_seconds_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    // 64 tokens a second: ten steps of 64 tokens.
    let ablation = planned(folder.path(), "{ seconds: 10 }");
    finish(&ablation, "baseline-seed1", 20.0);
    finish(&ablation, "k4-seed1", 20.0);
    let run = run_of(&ablation, "k4-seed1");
    let state = StageState { step: 10, tokens: 640, seconds: 15.0, ..Default::default() };
    write_json(&run.checkpoints(Stage::Lm).path(10).join("state.json"), &state).unwrap();
    let notes = study(&ablation).notes;
    let off: Vec<&String> = notes.iter().filter(|n| n.contains("instead of")).collect();
    assert_eq!(off, ["k4-seed1 trained for 15.0 s instead of 10 s"]);
}

#[test]
fn an_autoencoder_is_gathered_once_its_reconstruction_is_measured() {
    let folder = tempfile::tempdir().unwrap();
    let ablation = planned(folder.path(), TOKENS);
    assert_eq!(ablation.autoencoders.len(), 1);
    let a = &ablation.autoencoders[0];
    let run = Run { folder: a.folder.clone(), config: a.config.value.clone() };
    train(&run, Stage::Autoencoder, 4, "text");
    assert!(study(&ablation).autoencoders.is_empty());
    let report = ReconstructionReport {
        token_accuracy: 0.9,
        chunk_accuracy: 0.8,
        token_accuracy_mean: 0.95,
        chunk_accuracy_mean: 0.85,
        cross_entropy: 0.3,
        kl: 12.0,
        collapsed_dimensions: 1,
        latent_size: 16,
        posterior_std: 0.5,
        noise: vec![NoiseLevel { sigma: 0.3, token_accuracy: 0.7, chunk_accuracy: 0.6 }],
        tokens: 1000,
        chunks: 250,
    };
    keep_made_up_reconstruction(&ablation, &run, &report).unwrap();
    let found = &study(&ablation).autoencoders[0];
    assert_eq!((found.seed, found.chunk_size, found.latent_size), (1, 4, 16));
    assert_eq!((found.token_accuracy, found.kl, found.seconds), (0.9, 12.0, 4.0));
    assert_eq!(found.noise, [(0.3, 0.7)]);
    assert!(found.variants.contains(&"k4".to_owned()) && found.flops > 0.0);
}

#[test]
fn runs_on_other_texts_or_documents_do_not_compare_and_the_remedy_names_files_that_are_there() {
    let folder = tempfile::tempdir().unwrap();
    let ablation = planned(folder.path(), TOKENS);
    finish(&ablation, "baseline-seed1", 20.0);
    let run = run_of(&ablation, "k4-seed1");
    train(&run, Stage::Lm, 10, "another text");
    score(&ablation, &run, 10.0, 0..5);
    let refused = || gather(&ablation, &Failures::new(), Machine::default()).unwrap_err();
    assert!(refused().to_string().starts_with("k4-seed1 was trained on another text"), "{}", refused());

    train(&run, Stage::Lm, 10, "text");
    score(&ablation, &run, 10.0, 7..12);
    let error = refused();
    assert!(error.to_string().contains("do not pair"), "{error}");
    let remedy = error.remedy().unwrap();
    assert!(remedy.contains("scores-*.json"), "{remedy}");
    let files = fs::read_dir(&run.folder).unwrap().flatten();
    let names: Vec<String> = files.map(|f| f.file_name().to_string_lossy().into_owned()).collect();
    assert!(names.iter().any(|n| n.starts_with("scores-") && n.ends_with(".json")), "{names:?}");
}
