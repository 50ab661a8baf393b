//! Fine-tuning on conversations: what is no answer contributes nothing, and answers are learned.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use calm_config::{ConfigText, load};
use calm_data::{Batch, RowSource};
use calm_eval::protocol::Rule;
use calm_eval::reconstruction::text_chunks;
use calm_eval::score::{ScoreOptions, positions, score};
use calm_eval::workers::Alone;
use calm_lm::LanguageModel;
use calm_nn::GradientBucket;
use calm_run::checkpoint::Which;
use calm_run::config::RunConfig;
use calm_run::{Begin, Run, Stage};
use calm_stats::brier::{EndOfText, NGRAM};
use calm_train::models;
use calm_train::objective::{Objective, scalar, validation_loss};
use calm_train::options::TrainOptions;
use calm_train::pipeline::{prepare_data, train};
use candle_core::Device;
use common::Watch;

const SIZES: &str = "layers: 1, hidden_size: 32, intermediate_size: 48, heads: 2, init: { normal: 0.2 }";
const STAGE: &str =
    "{ steps: STEPS, batch_rows: 4, context: CONTEXT, learning_rate: 1e-2, warmup_steps: 2, log_every: 1 }";
const AUTOENCODER: &str =
    "autoencoder: { hidden_size: 32, intermediate_size: 48, latent_size: 16, init: { normal: 0.2 } }";

/// Families with their settings, K, and whether they have two stages.
fn families() -> [(&'static str, String, usize, bool); 4] {
    let backbone = format!("backbone: {{ {SIZES} }}");
    let head = "head: { energy: { blocks: 1, noise_size: 8, samples: 4, targets: 8 } }";
    [
        ("baseline", format!("{{ {backbone} }}"), 1, false),
        ("calm", format!("{{ chunk_size: 2, {AUTOENCODER}, {backbone}, {head} }}"), 2, true),
        ("patch", format!("{{ chunk_size: 3, {backbone} }}"), 3, false),
        ("multi-token", format!("{{ chunk_size: 4, {backbone} }}"), 4, false),
    ]
}

/// Questions and answers about small numbers; the last word is the person's, and of this length at most.
fn write_talks(path: &Path, last_words: &str) {
    let mut lines = String::new();
    for i in 0..120 {
        let (a, b) = (i % 10, i / 10 % 10);
        let mut messages = vec![
            serde_json::json!({ "role": "user", "content": format!("{a}+{b}?") }),
            serde_json::json!({ "role": "assistant", "content": format!("{a} and {b}.") }),
        ];
        if i % 2 == 0 {
            messages.push(serde_json::json!({ "role": "user", "content": last_words }));
        }
        lines += &(serde_json::json!({ "messages": messages }).to_string() + "\n");
    }
    std::fs::write(path, lines).unwrap();
}

/// A run in a folder, not trained.
fn run(folder: &Path, name: &str, family: usize, data: &str, steps: u64) -> Run {
    let (family, model, k, two) = &families()[family];
    let stage =
        |steps: u64| STAGE.replace("STEPS", &steps.to_string()).replace("CONTEXT", &(96 / k).to_string());
    let first = if *two { format!("autoencoder: {}, ", stage(60)) } else { String::new() };
    let yaml = format!(
        "version: 1\nseed: 2\ndata: {{ source: {{ path: {:?} }}, validation: 0.2, column: messages, {data} }}\n\
         tokenizer: {{ chars: {{}} }}\nmodel: {{ {family}: {model} }}\n\
         train: {{ {first}lm: {} }}\n\
         eval: {{ training_documents: 8, documents: 16, samples: 4, bootstrap: 20 }}\n",
        folder.join("talks.jsonl"),
        stage(steps),
    );
    let resolved = load::<RunConfig>(ConfigText::new("test", yaml), &[]).unwrap_or_else(|e| panic!("{e}"));
    Run::create(&folder.join(name), &resolved, Begin::New).unwrap()
}

fn options(folder: &Path, init_from: Option<PathBuf>) -> TrainOptions {
    TrainOptions { cache: folder.join("cache"), init_from, ..TrainOptions::default() }
}

/// Loss of a batch and the gradients of all parameters.
fn gradients(model: &dyn LanguageModel, batch: &Batch) -> (f64, Vec<Vec<f32>>) {
    let mut bucket = GradientBucket::new(model.store()).unwrap();
    bucket.clear();
    let loss = Objective::loss(model, batch, 3, "train", 0).unwrap();
    bucket.backward(&loss.sum).unwrap();
    let names: Vec<String> = model.store().params().into_iter().map(|(name, _)| name).collect();
    let of = |name: &String| bucket.get(name).unwrap().unwrap_or_default();
    (scalar(&loss.sum).unwrap(), names.iter().map(of).collect())
}

#[test]
fn only_answers_contribute_to_loss_gradient_and_scores() {
    let folder = tempfile::tempdir().unwrap();
    write_talks(&folder.path().join("talks.jsonl"), "Thank you.");
    let cpu = Device::Cpu;
    for family in 0..4 {
        let (name, _, k, _) = families()[family].clone();
        let run = run(folder.path(), name, family, "loss_on: answers", 3);
        train(&run, &options(folder.path(), None), &cpu, &mut Watch::default()).unwrap();
        let corpus = prepare_data(&run, &folder.path().join("cache"), &mut Watch::default()).unwrap();
        let model = models::load_lm(&run, Which::Best, &corpus.tokenizer, &cpu).unwrap();
        let plan = corpus.plan(run.lm_layout(), 1).unwrap();
        let batch = RowSource::batch(&plan, 0, 0..4, 4).unwrap();
        let (loss, gradient) = gradients(&*model, &batch);
        assert!(gradient.iter().flatten().any(|g| *g != 0.0));

        // What stands after the last answer of a document is read by nobody who predicts: other tokens there change nothing.
        let mut other = batch.clone();
        let mut changed = 0;
        for at in 0..batch.filled.len() {
            let same = |after: &usize| {
                batch.segments[*after] == batch.segments[at] && after / batch.context == at / batch.context
            };
            let later = (at..batch.filled.len()).take_while(same).any(|place| batch.predicts[place]);
            // Nor is it a target.
            let target = at % batch.context > 0 && batch.predicts[at - 1];
            if batch.filled[at] && !later && !target {
                other.ids[at * k..(at + 1) * k].iter_mut().for_each(|id| *id = (*id + 1) % 20);
                changed += 1;
            }
        }
        assert!(changed > 4, "{name}: {changed}");
        assert_eq!(gradients(&*model, &other), (loss, gradient), "{name}");

        // The loss is the sum over what is predicted, position by position.
        let mut sum = 0.0;
        for at in (0..batch.predicts.len()).filter(|at| batch.predicts[*at]) {
            let mut one = batch.clone();
            one.predicts.fill(false);
            one.predicts[at] = true;
            sum += scalar(&Objective::loss(&*model, &one, 3, "train", 0).unwrap().sum).unwrap();
        }
        assert!((sum - loss).abs() < 1e-4 * loss.abs(), "{name}: {sum} against {loss}");

        // All chunks are what the autoencoder learns.
        assert_eq!(text_chunks(&batch).1.len(), batch.target_count());
        assert!(batch.target_count() > 2 * batch.predict_count());

        // Scores are taken where all four tokens are of answers, at the same tokens for every K.
        let special = corpus.tokenizer.special();
        let end = EndOfText { eos: special.eos, pad: special.pad };
        let scored = positions(&batch, end, Rule::All);
        assert!(!scored.is_empty());
        let text = |ids: &[u32]| corpus.tokenizer.decode(ids);
        for (b, s, position) in &scored {
            let counts = |n: usize| batch.counts(*b, s + 1 + n / k, n % k);
            let length = position.target.iter().take_while(|id| **id != special.eos).count();
            assert!((0..NGRAM.min(length + 1)).all(counts), "{:?}", text(&position.target));
        }
        let scoring = ScoreOptions { rule: Rule::All, samples: 4, seed: 1 };
        let scores = score(&*model, std::iter::once(batch.clone()), scoring, Alone(|_| {})).unwrap();
        assert_eq!(scores.positions.len(), scored.len());
        if let Some((nats, tokens)) = scores.cross_entropy {
            if k == 1 {
                assert_eq!(tokens as usize, batch.predict_count());
                assert!((nats - loss).abs() < 1e-4 * loss, "{nats} against {loss}");
            }
            assert_eq!(scores.predicted.values().sum::<u64>(), tokens);
        }
    }
}

#[test]
fn a_run_on_text_is_fine_tuned_on_answers_and_a_stop_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let cpu = Device::Cpu;
    write_talks(&folder.path().join("talks.jsonl"), "Thank you.");
    for family in [0, 1] {
        let (name, ..) = families()[family].clone();
        let first = run(folder.path(), &format!("{name}-text"), family, "loss_on: all", 10);
        train(&first, &options(folder.path(), None), &cpu, &mut Watch::default()).unwrap();
        let tuned = run(folder.path(), &format!("{name}-tuned"), family, "loss_on: answers", 60);
        let start = options(folder.path(), Some(first.folder.clone()));
        let mut watch = Watch::default();
        let results = train(&tuned, &start, &cpu, &mut watch).unwrap();
        assert!(results.brier.unwrap().report.positions > 10);

        // On answers that were held out.
        let corpus = prepare_data(&tuned, &folder.path().join("cache"), &mut Watch::default()).unwrap();
        let rows = calm_train::held_out::evaluation_rows(
            &corpus.validation,
            corpus.tokenizer.special(),
            tuned.lm_layout(),
            None,
            None,
        )
        .unwrap();
        let loss = |run: &Run| {
            let model = models::load_lm(run, Which::Best, &corpus.tokenizer, &cpu).unwrap();
            validation_loss(&*model, rows.batches(4), 1, Alone(|_| {})).unwrap()
        };
        let (before, after) = (loss(&first), loss(&tuned));
        assert!(after < 0.8 * before, "{name}: {before} before, {after} after");

        // Trained in two pieces it is the same.
        let again = run(folder.path(), &format!("{name}-again"), family, "loss_on: answers", 60);
        let mut until = Until { step: 7, stopped: false };
        train(&again, &start, &cpu, &mut until).unwrap_err();
        let resumed = TrainOptions { resume: true, ..start };
        train(&again, &resumed, &cpu, &mut Watch::default()).unwrap();
        let hash = |run: &Run| {
            let checkpoints = run.checkpoints(Stage::Lm);
            checkpoints.model_hash(checkpoints.step(Which::Latest).unwrap()).unwrap()
        };
        assert_eq!(hash(&again), hash(&tuned), "{name}");
    }
}

/// Asks to stop after a step of the language model.
struct Until {
    step: u64,
    stopped: bool,
}

impl calm_train::training::Observer for Until {
    fn begin(&mut self, _: Stage, _: u64, _: u64) {}
    fn step(&mut self, report: &calm_train::training::StepReport) {
        self.stopped |= report.stage == Stage::Lm && report.step == self.step;
    }
    fn validation(&mut self, _: Stage, _: u64, _: &calm_train::training::Validation) {}
    fn end(&mut self, _: Stage, _: &calm_run::checkpoint::StageState) {}
    fn should_stop(&self) -> bool {
        self.stopped
    }
}

impl calm_train::reporter::Reporter for Until {
    fn data(&mut self, _: &calm_data::Progress) {}
    fn data_done(&mut self) {}
    fn note(&mut self, _: &str) {}
    fn plan(&mut self, _: &calm_train::plan::Plan) {}
    fn scoring(&mut self, _: &str, _: usize, _: usize) {}
    fn warn(&mut self, _: &str) {}
}
