//! What a run must hold to whatever happens to it: stopped and resumed, cut in micro-batches, on any number of
//! threads, blown up, or begun from another run. Tiny models on a generated text.
//! A little longer than other files: all of it happens in one house.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use calm_config::{ConfigText, Resolved, load};
use calm_run::checkpoint::{StageState, Which, file_hash};
use calm_run::config::RunConfig;
use calm_run::results::Results;
use calm_run::{Begin, Error, Run, Stage};
use calm_train::models;
use calm_train::options::TrainOptions;
use calm_train::pipeline::train;
use calm_train::plan::Plan;
use calm_train::reporter::Reporter;
use calm_train::training::{Observer, StepReport, Validation};
use candle_core::{Device, Tensor};

/// Remembers what happened, and asks to stop after a step of a stage.
#[derive(Default)]
struct Watch {
    losses: Vec<(Stage, u64, u64)>,
    notes: Vec<String>,
    stop_after: Option<(Stage, u64)>,
    stop: bool,
}

impl Watch {
    fn until(stage: Stage, step: u64) -> Self {
        Self { stop_after: Some((stage, step)), ..Self::default() }
    }

    fn noted(&self, text: &str) -> bool {
        self.notes.iter().any(|n| n.contains(text))
    }

    fn loss(&self, stage: Stage, step: u64) -> f64 {
        let found = self.losses.iter().find(|l| l.0 == stage && l.1 == step);
        f64::from_bits(found.unwrap_or_else(|| panic!("no step {step} of {stage}")).2)
    }
}

impl Observer for Watch {
    fn begin(&mut self, _: Stage, _: u64, _: u64) {}
    fn step(&mut self, r: &StepReport) {
        self.losses.push((r.stage, r.step, r.values.as_ref().unwrap().loss.to_bits()));
        self.stop = self.stop_after == Some((r.stage, r.step));
    }
    fn validation(&mut self, _: Stage, _: u64, _: &Validation) {}
    fn end(&mut self, _: Stage, _: &StageState) {}
    fn should_stop(&self) -> bool {
        self.stop
    }
}

impl Reporter for Watch {
    fn data(&mut self, _: &calm_data::Progress) {}
    fn data_done(&mut self) {}
    fn note(&mut self, text: &str) {
        self.notes.push(text.to_owned());
    }
    fn plan(&mut self, _: &Plan) {}
    fn scoring(&mut self, _: &str, _: usize, _: usize) {}
    fn warn(&mut self, text: &str) {
        panic!("unexpected warning: {text}");
    }
}

/// Sentences of made-up words: about 60 kB, so that it has documents to hold out.
fn text(extra: &str) -> String {
    let words = ["ana", "bolo", "cedi", "du", "elf", "fugo", "gi", "halm", "inu", "jot", "kel", "lumo"];
    let mut state = 7u64;
    let mut out = String::from(extra);
    for sentence in 0..1500 {
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let _ = write!(out, "{} ", words[(state >> 40) as usize % words.len()]);
        }
        out.push_str(if sentence % 5 == 4 { ".\n\n" } else { ".\n" });
    }
    out
}

const CALM: &str = "
model:
  calm:
    chunk_size: 2
    autoencoder: { hidden_size: 32, intermediate_size: 48, latent_size: 12 }
    backbone: { layers: 2, hidden_size: 32, intermediate_size: 48, heads: 2, init: { normal: 0.1 } }
    head: { energy: { blocks: 1, noise_size: 8, samples: 4, targets: 6 } }
train:
  autoencoder: { steps: 8, batch_rows: 4, context: 24, learning_rate: 3e-3, warmup_steps: 2, eval_every: 3 }
  lm: { steps: 8, batch_rows: 4, context: 24, learning_rate: 3e-3, warmup_steps: 2, eval_every: 3 }
";

const BASELINE: &str = "
model:
  baseline:
    backbone: { layers: 2, hidden_size: 32, intermediate_size: 48, heads: 2, init: { normal: 0.1 } }
train:
  lm: { steps: 8, batch_rows: 4, context: 48, learning_rate: 3e-3, warmup_steps: 2, eval_every: 3 }
";

const PATCH: &str = "
model:
  patch:
    chunk_size: 2
    backbone: { layers: 2, hidden_size: 32, intermediate_size: 48, heads: 2, init: { normal: 0.1 } }
train:
  lm: { steps: 8, batch_rows: 4, context: 24, learning_rate: 3e-3, warmup_steps: 2, eval_every: 3 }
";

const MULTI_TOKEN: &str = "
model:
  multi-token:
    chunk_size: 2
    backbone: { layers: 2, hidden_size: 32, intermediate_size: 48, heads: 2, init: { normal: 0.1 } }
train:
  lm: { steps: 8, batch_rows: 4, context: 24, learning_rate: 3e-3, warmup_steps: 2, eval_every: 3 }
";

const DLCM: &str = "
model:
  dlcm:
    tokens: { layers: 2, hidden_size: 32, intermediate_size: 48, heads: 2, init: { normal: 0.1 } }
    concepts: { layers: 1, hidden_size: 48, intermediate_size: 64, heads: 2, init: { normal: 0.1 } }
train:
  lm: { steps: 8, batch_rows: 4, context: 48, learning_rate: 3e-3, warmup_steps: 2, eval_every: 3 }
";

/// A model of each family, and what it trains.
const KINDS: [(&str, &str, &[Stage]); 5] = [
    ("calm", CALM, &Stage::ALL),
    ("baseline", BASELINE, &[Stage::Lm]),
    ("patch", PATCH, &[Stage::Lm]),
    ("multi-token", MULTI_TOKEN, &[Stage::Lm]),
    ("dlcm", DLCM, &[Stage::Lm]),
];

/// A folder with a text, a cache and runs.
struct House {
    dir: tempfile::TempDir,
}

impl House {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("text.txt"), text("")).unwrap();
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self, model: &str, set: &[&str]) -> Resolved<RunConfig> {
        let yaml = format!(
            "version: 1\nseed: 5\ndata: {{ source: {{ path: {:?} }} }}\ntokenizer: {{ chars: {{}} }}\n\
             eval: {{ training_documents: 2, documents: 3, chunks_per_document: 12, bootstrap: 10 }}\n{model}",
            self.path("text.txt"),
        );
        let set: Vec<String> = set.iter().map(|s| (*s).to_owned()).collect();
        load(ConfigText::new("test.yaml", yaml), &set).unwrap_or_else(|e| panic!("{e}"))
    }

    fn options(&self) -> TrainOptions {
        TrainOptions { cache: self.path("cache"), ..TrainOptions::default() }
    }

    fn train(
        &self,
        name: &str,
        config: &Resolved<RunConfig>,
        options: &TrainOptions,
        watch: &mut Watch,
    ) -> calm_run::Result<(Run, Results)> {
        let run =
            Run::create(&self.path(name), config, if options.resume { Begin::Resume } else { Begin::New })?;
        let results = train(&run, options, &Device::Cpu, watch)?;
        Ok((run, results))
    }

    /// A whole run that must succeed.
    fn finish(&self, name: &str, config: &Resolved<RunConfig>) -> (Run, Watch) {
        let mut watch = Watch::default();
        let (run, _) = self.train(name, config, &self.options(), &mut watch).unwrap();
        (run, watch)
    }
}

/// Model, optimiser and state (without its seconds) of a stage's checkpoints.
fn checkpoints(run: &Path, stage: Stage) -> Vec<(u64, Vec<u8>, Vec<u8>, StageState)> {
    let c = calm_run::checkpoint::Checkpoints::new(&run.join(stage.name()));
    let read = |step, name: &str| fs::read(c.path(step).join(name)).unwrap_or_default();
    c.steps()
        .into_iter()
        .map(|step| {
            let state = StageState { seconds: 0.0, ..c.state(step).unwrap() };
            (step, read(step, "model.safetensors"), read(step, "optimizer.safetensors"), state)
        })
        .collect()
}

fn interrupted(result: calm_run::Result<(Run, Results)>, stage: Stage, step: u64) {
    match result.map(|_| ()) {
        Err(e @ Error::Interrupted { .. }) => {
            assert!(e.to_string().contains(&format!("step {step} of stage {stage}")), "{e}");
            assert!(e.remedy().unwrap().contains("--resume"));
        }
        other => panic!("expected an interruption, got {other:?}"),
    }
}

fn hint(result: calm_run::Result<(Run, Results)>) -> (String, String) {
    let e = result.map(|_| ()).unwrap_err();
    (e.to_string(), e.remedy().unwrap_or_else(|| panic!("no remedy: {e}")))
}

#[test]
fn a_run_stopped_and_resumed_has_bit_equal_parameters_and_losses() {
    let house = House::new();
    for (name, model, stages) in KINDS {
        let config = house.config(model, &[]);
        let (straight, whole) = house.finish(&format!("{name}-whole"), &config);
        let pieces = format!("{name}-pieces");
        let mut losses = Vec::new();
        for (i, &stage) in stages.iter().enumerate() {
            let options = TrainOptions { resume: i > 0, ..house.options() };
            let mut watch = Watch::until(stage, 4);
            interrupted(house.train(&pieces, &config, &options, &mut watch), stage, 4);
            losses.append(&mut watch.losses);
            let folder = house.path(&pieces).join(stage.name());
            assert_eq!(
                calm_run::checkpoint::Checkpoints::new(&folder).latest().unwrap().unwrap().step,
                4,
                "the step at which it stopped was saved"
            );
        }
        // Without --resume an unfinished stage is not gone over silently.
        let (message, remedy) = hint(house.train(&pieces, &config, &house.options(), &mut Watch::default()));
        assert!(message.contains("stopped at step 4 of 8"), "{message}");
        assert!(remedy.contains("--resume") && remedy.contains("--restart"), "{remedy}");

        let options = TrainOptions { resume: true, ..house.options() };
        let mut watch = Watch::default();
        house.train(&pieces, &config, &options, &mut watch).unwrap();
        losses.append(&mut watch.losses);
        assert_eq!(losses, whole.losses, "{name}");
        for &stage in stages {
            let (a, b) = (checkpoints(&straight.folder, stage), checkpoints(&house.path(&pieces), stage));
            assert!(a.iter().any(|c| c.0 == 8 && !c.1.is_empty() && !c.2.is_empty()));
            assert!(a == b, "{name}: checkpoints of {stage} differ");
        }
    }
}

#[test]
fn a_batch_in_two_pieces_gives_the_loss_of_the_whole_up_to_rounding() {
    let house = House::new();
    for (name, model, stages) in KINDS {
        let losses: Vec<Watch> = [1, 2]
            .map(|pieces| {
                let set: Vec<String> = stages
                    .iter()
                    .flat_map(|s| [format!("train.{s}.accumulation={pieces}"), format!("train.{s}.steps=4")])
                    .collect();
                let set: Vec<&str> = set.iter().map(String::as_str).collect();
                house.finish(&format!("{name}-{pieces}"), &house.config(model, &set)).1
            })
            .into();
        for &stage in stages {
            for step in 1..=4 {
                let (a, b) = (losses[0].loss(stage, step), losses[1].loss(stage, step));
                // Measured: at most 2.3e-7.
                let bound = 2e-6;
                assert!((a - b).abs() <= bound * a.abs(), "{name} {stage} step {step}: {a} and {b}");
            }
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_losses_and_weights_on_any_number_of_threads() {
    let house = House::new();
    // Wide enough that products and sums are shared out to threads.
    let wide = [
        "model.calm.autoencoder.hidden_size=96",
        "model.calm.autoencoder.intermediate_size=160",
        "model.calm.backbone={layers: 2, hidden_size: 96, intermediate_size: 160, heads: 4}",
        "train.autoencoder={steps: 3, batch_rows: 8, context: 64, learning_rate: 3e-3}",
        "train.lm={steps: 3, batch_rows: 8, context: 64, learning_rate: 3e-3}",
    ];
    let config = house.config(CALM, &wide);
    let runs = [1, 3].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| house.finish(&format!("threads-{threads}"), &config))
    });
    assert_eq!(runs[0].1.losses, runs[1].1.losses);
    for stage in Stage::ALL {
        assert!(checkpoints(&runs[0].0.folder, stage) == checkpoints(&runs[1].0.folder, stage), "{stage}");
    }
    let other = house.config(CALM, &[&wide[..], &["seed=6"]].concat());
    assert_ne!(house.finish("other-seed", &other).1.losses, runs[0].1.losses);
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_and_what_was_saved_stays_whole() {
    let house = House::new();
    for (name, model, stage) in [("calm", CALM, Stage::Autoencoder), ("baseline", BASELINE, Stage::Lm)] {
        let set = [
            format!("train.{stage}.learning_rate=1e30"),
            format!("train.{stage}.warmup_steps=0"),
            format!("train.{stage}.checkpoint_every=1"),
        ];
        let config = house.config(model, &set.each_ref().map(String::as_str));
        let result = house.train(name, &config, &house.options(), &mut Watch::default()).map(|_| ());
        let Err(e @ Error::NotFinite { .. }) = result else { panic!("{name}: {result:?}") };
        assert!(e.to_string().contains("at step 2"), "{e}");
        let remedy = e.remedy().unwrap();
        assert!(remedy.contains(&format!("train.{stage}.learning_rate")), "{remedy}");
        let run = Run::open(&house.path(name)).unwrap();
        let tokenizer = run.tokenizer().unwrap();
        assert_eq!(run.checkpoints(stage).steps(), [1]);
        if name == "calm" {
            models::load_autoencoder(&run, Which::Latest, &tokenizer, &Device::Cpu).unwrap();
        } else {
            models::load_lm(&run, Which::Latest, &tokenizer, &Device::Cpu).unwrap();
        }
    }
}

#[test]
fn a_poisoned_weight_is_noticed_when_it_is_read_and_nothing_is_overwritten() {
    let house = House::new();
    let config = house.config(BASELINE, &[]);
    interrupted(house.train("run", &config, &house.options(), &mut Watch::until(Stage::Lm, 4)), Stage::Lm, 4);
    let path = Run::open(&house.path("run")).unwrap().checkpoints(Stage::Lm).model_path(4);
    let (tensors, metadata) = calm_nn::read_weights(&path, &Device::Cpu).unwrap();
    let poisoned = tensors
        .into_iter()
        .map(|(name, t)| {
            let t = if name.contains("embed") {
                Tensor::full(f32::NAN, t.dims(), &Device::Cpu).unwrap()
            } else {
                t
            };
            (name, t)
        })
        .collect();
    calm_nn::write_weights(&path, &poisoned, &metadata).unwrap();
    // As a run that wrote it itself would have it: a state of version 0.1 holds no hashes.
    let state = path.with_file_name("state.json");
    let json: serde_json::Value = serde_json::from_str(&fs::read_to_string(&state).unwrap()).unwrap();
    let old =
        ["step", "finished", "tokens", "seconds", "best"].map(|key| (key.to_owned(), json[key].clone()));
    fs::write(&state, serde_json::Value::Object(old.into_iter().collect()).to_string()).unwrap();
    let before = file_hash(&path).unwrap();
    let options = TrainOptions { resume: true, ..house.options() };
    let (message, _) = hint(house.train("run", &config, &options, &mut Watch::default()));
    assert!(message.contains("model.safetensors") && message.contains("not finite"), "{message}");
    assert_eq!(file_hash(&path).unwrap(), before);
    assert_eq!(checkpoints(&house.path("run"), Stage::Lm).last().unwrap().0, 4);
}

#[test]
fn a_finished_stage_is_skipped_and_more_steps_go_on_from_it() {
    let house = House::new();
    let config = house.config(CALM, &[]);
    let first = house.train("run", &config, &house.options(), &mut Watch::default()).unwrap().1;
    let mut watch = Watch::default();
    let second = house.train("run", &config, &house.options(), &mut watch).unwrap().1;
    assert!(watch.losses.is_empty());
    assert!(watch.noted("autoencoder: finished before") && watch.noted("lm: finished before"));
    let json = |r: &Results| serde_json::to_string(r).unwrap();
    assert_eq!(json(&first), json(&second), "scores are a function of the weights");

    let longer = house.config(CALM, &["train.lm.steps=10"]);
    let options = TrainOptions { resume: true, ..house.options() };
    let mut watch = Watch::default();
    house.train("run", &longer, &options, &mut watch).unwrap();
    let steps: Vec<u64> = watch.losses.iter().map(|l| l.1).collect();
    assert_eq!(steps, [9, 10]);
}

#[test]
fn stages_can_be_trained_one_at_a_time_with_the_same_result() {
    let house = House::new();
    let config = house.config(CALM, &[]);
    let (whole, _) = house.finish("whole", &config);
    let stage = |stage| TrainOptions { only: Some(stage), ..house.options() };
    let (message, remedy) = hint(house.train("apart", &config, &stage(Stage::Lm), &mut Watch::default()));
    assert!(
        message.contains("no autoencoder") && remedy.contains("--stage autoencoder"),
        "{message} {remedy}"
    );
    for each in Stage::ALL {
        house.train("apart", &config, &stage(each), &mut Watch::default()).unwrap();
    }
    assert!(checkpoints(&whole.folder, Stage::Lm) == checkpoints(&house.path("apart"), Stage::Lm));

    let baseline = house.config(BASELINE, &[]);
    let refused = house.train("b", &baseline, &stage(Stage::Autoencoder), &mut Watch::default());
    assert!(hint(refused).0.contains("baseline"));
}

#[test]
fn a_run_can_start_from_the_weights_of_another() {
    let house = House::new();
    let (base, _) = house.finish("base", &house.config(CALM, &[]));
    let still = ["train.autoencoder.learning_rate=1e-12", "train.lm.learning_rate=1e-12"];
    let brief = ["train.autoencoder.steps=2", "train.lm.steps=2", "seed=9"];
    let config = house.config(CALM, &[still, [brief[0], brief[1]]].concat());
    let options = TrainOptions { init_from: Some(base.folder.clone()), ..house.options() };
    let mut watch = Watch::default();
    let (tuned, _) = house.train("tuned", &config, &options, &mut watch).unwrap();
    assert!(watch.noted("autoencoder: starts from") && watch.noted("lm: starts from"));
    for stage in Stage::ALL {
        let weights = |run: &Run| {
            let c = run.checkpoints(stage);
            calm_nn::read_weights(&c.model_path(c.step(Which::Best).unwrap()), &Device::Cpu).unwrap().0
        };
        let (from, to) = (weights(&base), weights(&tuned));
        assert_eq!(from.len(), to.len());
        for (name, a) in &from {
            let distance: f32 =
                (a - &to[name]).unwrap().abs().unwrap().max_all().unwrap().to_scalar().unwrap();
            assert!(distance < 1e-6, "{stage} {name}: {distance}");
        }
    }

    // Another text has other characters: its ids would mean something else to these weights.
    fs::write(house.path("text.txt"), text("Xylophon Quark! ")).unwrap();
    let (message, remedy) = hint(house.train("foreign", &config, &options, &mut Watch::default()));
    assert!(
        message.contains("another tokenizer") && remedy.contains("tokenizer={file:"),
        "{message} {remedy}"
    );
    let file = format!("tokenizer={{file: {}}}", base.folder.join("tokenizer.json").display());
    let config = house.config(CALM, &[&[file.as_str()][..], &still, &brief[..2]].concat());
    house.train("same-tokenizer", &config, &options, &mut Watch::default()).unwrap();
}

#[test]
fn a_finished_autoencoder_can_be_taken_from_another_run() {
    let house = House::new();
    let config = house.config(CALM, &["train.autoencoder.steps=9"]);
    let (base, _) = house.finish("base", &config);
    let from = base.checkpoints(Stage::Autoencoder);
    let hash = file_hash(&from.model_path(from.step(Which::Best).unwrap())).unwrap();

    let options = TrainOptions { autoencoder_from: Some(base.folder.clone()), ..house.options() };
    let mut watch = Watch::until(Stage::Lm, 3);
    interrupted(house.train("taker", &config, &options, &mut watch), Stage::Lm, 3);
    assert!(watch.noted("autoencoder: taken from") && watch.losses.iter().all(|l| l.0 == Stage::Lm));
    let run = Run::open(&house.path("taker")).unwrap();
    assert_eq!(run.record().unwrap().unwrap().imported_autoencoder, Some(hash.clone()));
    assert_eq!(file_hash(&run.checkpoints(Stage::Autoencoder).model_path(0)).unwrap(), hash);
    // It stays the one of this run, whether named again or not.
    let resume = TrainOptions { resume: true, ..house.options() };
    let mut watch = Watch::default();
    house.train("taker", &config, &resume, &mut watch).unwrap();
    assert!(watch.losses.iter().all(|l| l.0 == Stage::Lm));
    house.train("taker", &config, &options, &mut Watch::default()).unwrap();
    // With --stage lm, and together with the language model's weights of the same run.
    let both =
        TrainOptions { only: Some(Stage::Lm), init_from: Some(base.folder.clone()), ..options.clone() };
    house.train("both", &config, &both, &mut Watch::default()).unwrap();

    let other_shape = house.config(CALM, &["model.calm.chunk_size=3"]);
    let (message, remedy) = hint(house.train("shape", &other_shape, &options, &mut Watch::default()));
    assert!(message.contains("another shape") && remedy.contains("chunk_size"), "{message} {remedy}");
    let own = house.config(CALM, &["seed=8"]);
    house.finish("own", &own);
    let (message, _) = hint(house.train("own", &own, &options, &mut Watch::default()));
    assert!(message.contains("an autoencoder of its own"), "{message}");
    interrupted(
        house.train("half", &config, &house.options(), &mut Watch::until(Stage::Autoencoder, 5)),
        Stage::Autoencoder,
        5,
    );
    let half = TrainOptions { autoencoder_from: Some(house.path("half")), ..house.options() };
    let (message, _) = hint(house.train("from-half", &config, &half, &mut Watch::default()));
    assert!(message.contains("not finished"), "{message}");
}

#[test]
fn a_run_that_failed_before_its_first_step_can_be_put_right() {
    let house = House::new();
    let wrong = house.config(BASELINE, &["data.source.path=nowhere.txt"]);
    assert!(house.train("run", &wrong, &house.options(), &mut Watch::default()).is_err());
    house.finish("run", &house.config(BASELINE, &[]));
    // After that, what is trained is settled.
    let changed = house.config(BASELINE, &["model.baseline.backbone.layers=1"]);
    let (message, remedy) = hint(house.train("run", &changed, &house.options(), &mut Watch::default()));
    assert!(message.contains("model.baseline.backbone.layers: 2 -> 1"), "{message}");
    assert!(remedy.contains("--out"), "{remedy}");
}

#[test]
fn restarting_throws_away_a_run_but_nothing_of_another_folder() {
    let house = House::new();
    let config = house.config(BASELINE, &["train.lm.steps=2"]);
    let (run, _) = house.finish("run", &config);
    Run::create(&run.folder, &house.config(BASELINE, &["seed=6"]), Begin::Restart(None)).unwrap();
    assert!(!run.folder.join("lm").exists() && !run.folder.join("run.json").exists());
    let foreign = house.path("project");
    fs::create_dir_all(foreign.join("lm")).unwrap();
    fs::write(foreign.join("lm/notes.txt"), "mine").unwrap();
    Run::create(&foreign, &config, Begin::Restart(None)).unwrap();
    assert!(foreign.join("lm/notes.txt").is_file());
}

#[test]
fn a_language_model_begun_anew_keeps_its_autoencoder_and_may_have_another_shape() {
    let house = House::new();
    let config = house.config(CALM, &[]);
    let (run, _) = house.finish("run", &config);
    let autoencoder = checkpoints(&run.folder, Stage::Autoencoder);
    let other = house.config(CALM, &["model.calm.backbone.layers=1"]);
    Run::create(&run.folder, &other, Begin::Restart(Some(Stage::Lm))).unwrap();
    assert!(!run.folder.join("lm").exists() && run.folder.join("run.json").is_file());
    let options = TrainOptions { only: Some(Stage::Lm), ..house.options() };
    let (_, results) = house.train("run", &other, &options, &mut Watch::default()).unwrap();
    assert_eq!(checkpoints(&run.folder, Stage::Autoencoder), autoencoder);
    assert!(results.autoencoder.is_some() && results.brier.is_some(), "results are those of the whole run");
    // What the language model stands on is settled.
    let wrong = house.config(CALM, &["seed=9", "model.calm.backbone.layers=1"]);
    assert!(Run::create(&run.folder, &wrong, Begin::Restart(Some(Stage::Lm))).is_err());
}

#[test]
fn a_language_model_is_trained_on_one_finished_autoencoder_only() {
    let house = House::new();
    let config = house.config(CALM, &[]);
    interrupted(
        house.train("half", &config, &house.options(), &mut Watch::until(Stage::Autoencoder, 5)),
        Stage::Autoencoder,
        5,
    );
    let lm = TrainOptions { only: Some(Stage::Lm), ..house.options() };
    let (message, remedy) = hint(house.train("half", &config, &lm, &mut Watch::default()));
    assert!(message.contains("stopped at step 5") && remedy.contains("--stage autoencoder"), "{message}");

    let (run, _) = house.finish("run", &config);
    let before =
        (checkpoints(&run.folder, Stage::Autoencoder), fs::read(run.folder.join("run.json")).unwrap());
    let longer = house.config(CALM, &["train.autoencoder.steps=12", "train.lm.steps=12"]);
    for only in [None, Some(Stage::Autoencoder), Some(Stage::Lm)] {
        let resume = TrainOptions { only, resume: true, ..house.options() };
        let (message, remedy) = hint(house.train("run", &longer, &resume, &mut Watch::default()));
        assert!(
            message.contains("train.autoencoder.steps: 8 -> 12") && message.contains("stands on"),
            "{message}"
        );
        assert!(remedy.contains("--init-from") && remedy.contains("--restart"), "{remedy}");
    }
    let after =
        (checkpoints(&run.folder, Stage::Autoencoder), fs::read(run.folder.join("run.json")).unwrap());
    assert!(before == after, "nothing was touched");
}
