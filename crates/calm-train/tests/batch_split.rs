//! Nothing depends on how a batch is split: validation, scores and reconstruction are the same for any number of rows
//! at a time and any accumulation, because noise belongs to a row of the whole evaluation and a position in it.
#![allow(clippy::unwrap_used)]

mod common;

use std::fmt::Write as _;
use std::path::Path;

use calm_config::{ConfigText, load};
use calm_data::Corpus;
use calm_eval::protocol::Rule;
use calm_eval::reconstruction::reconstruct;
use calm_eval::score::{ScoreOptions, Scores, score};
use calm_eval::workers::Alone;
use calm_run::config::RunConfig;
use calm_run::{Begin, Provenance, Run, Stage};
use calm_train::held_out::evaluation_rows;
use calm_train::init::initialise;
use calm_train::models::{load_autoencoder, load_lm};
use calm_train::objective::validation_loss;
use calm_train::options::TrainOptions;
use calm_train::pipeline::{prepare_data, train};
use candle_core::Device;
use common::Watch;

const CALM: &str = "model:
  calm:
    chunk_size: 2
    autoencoder: { hidden_size: 16, intermediate_size: 24, latent_size: 8, init: { normal: 0.3 } }
    backbone: { layers: 1, hidden_size: 16, intermediate_size: 24, heads: 2, init: { normal: 0.3 } }
    head: HEAD
train:
  autoencoder: STAGE
  lm: STAGE
";
const HEADS: [&str; 3] = [
    "{ energy: { blocks: 1, noise_size: 4, samples: 2, targets: 2 } }",
    "{ flow: { blocks: 1, steps: 2 } }",
    "{ diffusion: { blocks: 1, steps: 10, sampling_steps: 2 } }",
];
const BASELINE: &str = "model:
  baseline: { backbone: { layers: 1, hidden_size: 16, intermediate_size: 24, heads: 2, init: { normal: 0.3 } } }
train:
  lm: STAGE
";
/// The families with probabilities of chunks, in FAMILY's place.
const CHUNKS: &str = "model:
  FAMILY:
    chunk_size: 3
    backbone: { layers: 1, hidden_size: 16, intermediate_size: 24, heads: 2, init: { normal: 0.3 } }
train:
  lm: STAGE
";

/// Models of the families with probabilities.
fn with_probabilities() -> [String; 3] {
    let of = |name| CHUNKS.replace("FAMILY", name);
    [BASELINE.to_owned(), of("patch"), of("multi-token")]
}

/// A run in `name`, not trained; a step changes nothing.
fn run(dir: &Path, name: &str, model: &str, accumulation: usize) -> Run {
    let text = dir.join("text.jsonl");
    let mut lines = String::new();
    for d in 0..24usize {
        let words: Vec<String> = (0..20 + d % 30).map(|i| format!("w{}", (d * 7 + i * i) % 30)).collect();
        writeln!(lines, "{{\"text\": \"{}\"}}", words.join(" ")).unwrap();
    }
    std::fs::write(&text, lines).unwrap();
    let stage = format!(
        "{{ steps: 1, batch_rows: 8, accumulation: {accumulation}, context: 16, learning_rate: 1e-300, \
         adamw: {{ weight_decay: 0.0 }} }}"
    );
    let yaml = format!(
        "version: 1\ndata: {{ source: {{ path: {text:?} }}, validation: 0.4 }}\ntokenizer: {{ chars: {{}} }}\n{}\
         eval: {{ training_documents: 7, documents: 7, samples: 3, bootstrap: 20 }}\n",
        model.replace("STAGE", &stage)
    );
    let resolved = load::<RunConfig>(ConfigText::new("test", yaml), &[]).unwrap();
    Run::create(&dir.join(name), &resolved, Begin::New).unwrap()
}

fn corpus(run: &Run, dir: &Path) -> Corpus {
    prepare_data(run, &dir.join("cache"), &mut Watch::default()).unwrap()
}

fn near(a: f64, b: f64, what: &str) {
    // Sums of f32 over other numbers of rows round in the last bits.
    assert!((a - b).abs() <= 2e-6 * b.abs(), "{what}: {a} against {b}");
}

#[test]
fn validation_loss_and_scores_do_not_depend_on_the_rows_at_a_time() {
    let dir = tempfile::tempdir().unwrap();
    let models = HEADS.map(|head| CALM.replace("HEAD", head)).into_iter().chain(with_probabilities());
    for (i, model) in models.enumerate() {
        let model = model.as_str();
        let run = run(dir.path(), &format!("run-{i}"), model, 1);
        let (cpu, cache) = (Device::Cpu, dir.path().join("cache"));
        initialise(&run, &cache, Provenance::default(), &cpu, &mut Watch::default()).unwrap();
        let corpus = corpus(&run, dir.path());
        let (held_out, special) = (&corpus.validation, corpus.tokenizer.special());
        let lm = load_lm(&run, Default::default(), &corpus.tokenizer, &cpu).unwrap();
        let rows = evaluation_rows(held_out, special, run.lm_layout(), None, None).unwrap();
        let at = |n: usize| -> (f64, Scores) {
            let loss = validation_loss(&*lm, rows.batches(n), 5, Alone(|_| {})).unwrap();
            let options = ScoreOptions { rule: Rule::All, samples: 3, seed: 5 };
            (loss, score(&*lm, rows.batches(n), options, Alone(|_| {})).unwrap())
        };
        let (loss, scores) = at(4);
        assert!(scores.positions.len() > 50);
        for n in [1, 3, 7] {
            let (other_loss, other) = at(n);
            near(other_loss, loss, &format!("{model}: validation loss at {n} rows"));
            assert_eq!(other.positions, scores.positions);
            match (other.cross_entropy, scores.cross_entropy) {
                (Some((a, _)), Some((b, _))) => {
                    near(a, b, "cross-entropy");
                    let (a, b) = (other.sums.brier().unwrap(), scores.sums.brier().unwrap());
                    a.iter().zip(b).for_each(|(a, b)| assert!((a - b).abs() < 1e-4, "{a} {b}"));
                }
                // Drawn tokens are the same tokens.
                _ => assert_eq!(other.sums, scores.sums, "{model} at {n} rows"),
            }
        }
        if run.config.model.autoencoder().is_none() {
            continue;
        }
        let (stage_one, _) = load_autoencoder(&run, Default::default(), &corpus.tokenizer, &cpu).unwrap();
        let rows = evaluation_rows(held_out, special, run.autoencoder_layout(), None, None).unwrap();
        let at = |n: usize| {
            reconstruct(&stage_one.model, rows.batches(n), special.pad, 5, &cpu, Alone(|_| {})).unwrap()
        };
        let report = at(4);
        for n in [1, 3, 7] {
            let other = at(n);
            assert_eq!(other.token_accuracy, report.token_accuracy, "{n} rows");
            near(other.cross_entropy, report.cross_entropy, "cross-entropy");
            near(other.kl, report.kl, "KL");
        }
    }
}

#[test]
fn accumulation_changes_no_validation_of_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let calm = CALM.replace("HEAD", HEADS[0]);
    let [baseline, patch, multi_token] = with_probabilities();
    for (name, model) in
        [("calm", &calm), ("baseline", &baseline), ("patch", &patch), ("multi-token", &multi_token)]
    {
        let validations = [1, 2, 8].map(|accumulation| {
            let run = run(dir.path(), &format!("{name}-{accumulation}"), model, accumulation);
            let options = TrainOptions {
                cache: dir.path().join("cache"),
                skip_scores: true,
                ..TrainOptions::default()
            };
            let mut watch = Watch::default();
            train(&run, &options, &Device::Cpu, &mut watch).unwrap();
            watch.validations
        });
        let [first, others @ ..] = &validations;
        assert_eq!(first.last().unwrap().0, Stage::Lm);
        for other in others {
            assert_eq!(other.len(), first.len());
            for ((stage, a), (_, b)) in other.iter().zip(first) {
                near(a.loss, b.loss, &format!("{name}, stage {stage}"));
                for ((key, x), (_, y)) in a.numbers.iter().zip(&b.numbers) {
                    match (x, y) {
                        (Some(x), Some(y)) => assert!((x - y).abs() < 1e-4, "{name} {key}: {x} {y}"),
                        _ => assert_eq!(x, y, "{name} {key}"),
                    }
                }
                assert_eq!(a.sample, b.sample);
            }
        }
    }
}
