//! Several processes train what one trains: of every family, whatever their number. The processes are threads here; with MPI
//! the same loop runs in `crates/calm-cli/tests/processes`.
#![allow(clippy::unwrap_used)]

#[path = "common/kept.rs"]
mod kept;
#[path = "common/toy.rs"]
mod toy;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use calm_config::Resolved;
use calm_nn::{Init, ParamStore};
use calm_parallel::{Collective, Patience, Ranks, World, threads};
use calm_run::checkpoint::Checkpoints;
use calm_run::config::{RunConfig, StageConfig};
use calm_run::{Begin, Error, Run, Stage};
use calm_train::options::TrainOptions;
use calm_train::pipeline::{follow, train};
use calm_train::step::Stepper;
use candle_core::{DType, Device};
use kept::Kept;
use toy::{Listener, Text, in_memory};

const BACKBONE: &str =
    "backbone: { layers: 1, hidden_size: 8, intermediate_size: 12, heads: 2, init_std: 0.1 }";
const STAGE: &str = "{ steps: 6, batch_rows: 8, context: 8, learning_rate: 3e-2, warmup_steps: 1, eval_every: 2, \
                     checkpoint_every: 3, log_every: 1 }";

/// A model of every family and head, with its stages.
fn models() -> Vec<(String, String)> {
    let calm = |head: &str| {
        format!(
            "model:\n  calm:\n    chunk_size: 2\n    autoencoder: {{ hidden_size: 8, intermediate_size: 12, latent_size: 4 }}\n    \
             {BACKBONE}\n    head: {head}\ntrain:\n  autoencoder: {STAGE}\n  lm: {STAGE}\n"
        )
    };
    let heads = [
        ("energy", "{ energy: { blocks: 1, noise_size: 4, samples: 2, targets: 2 } }"),
        ("flow", "{ flow: { blocks: 1, steps: 2 } }"),
        ("diffusion", "{ diffusion: { blocks: 1, steps: 10, sampling_steps: 2 } }"),
    ];
    let other = |name: &str, chunk: &str| {
        let model = format!("model:\n  {name}:\n    {chunk}{BACKBONE}\ntrain:\n  lm: {STAGE}\n");
        (name.to_owned(), model)
    };
    let chunk = "chunk_size: 2\n    ";
    let mut all: Vec<_> = heads.map(|(name, head)| (name.to_owned(), calm(head))).into();
    all.extend([other("baseline", ""), other("patch", chunk), other("multi-token", chunk)]);
    // Its loss needs what all processes choose together.
    let part = |layers: usize, width: usize| {
        format!(
            "{{ layers: {layers}, hidden_size: {width}, intermediate_size: 12, heads: 2, init_std: 0.1 }}"
        )
    };
    let dlcm = format!(
        "model:\n  dlcm:\n    tokens: {}\n    concepts: {}\ntrain:\n  lm: {STAGE}\n",
        part(2, 8),
        part(1, 12)
    );
    all.push(("dlcm".to_owned(), dlcm));
    all
}

fn config(text: &Text, model: &str, set: &[&str]) -> Resolved<RunConfig> {
    let yaml = format!(
        "version: 1\nseed: 5\ndata: {{ source: {{ path: {:?} }}, validation: 0.2 }}\ntokenizer: {{ bpe: {{ vocab_size: 270 }} }}\n\
         {model}eval: {{ training_documents: 1, documents: 2, chunks_per_document: 6, bootstrap: 5 }}\n",
        text.path(),
    );
    let set: Vec<String> = set.iter().map(ToString::to_string).collect();
    calm_config::load(calm_config::ConfigText::new("test.yaml", yaml), &set).unwrap_or_else(|e| panic!("{e}"))
}

/// What one rank of a world does with the run in `place`.
fn one(
    ranks: &Ranks,
    place: &Path,
    config: &Resolved<RunConfig>,
    listener: &mut Listener,
) -> calm_run::Result<()> {
    let options = TrainOptions {
        resume: true,
        cache: place.join("cache"),
        ranks: ranks.clone(),
        ..TrainOptions::default()
    };
    let folder = place.join("run");
    let done = match ranks.leads() {
        true => Run::create(&folder, config, Begin::Resume)
            .and_then(|run| train(&run, &options, &Device::Cpu, listener).map(|_| ())),
        false => follow(&folder, &options, &Device::Cpu, listener),
    };
    if let Err(e) = &done {
        ranks.failed(&calm_parallel::Error::new(e.to_string(), e.remedy().unwrap_or_default()));
    }
    done
}

/// Trains with so many processes; what is there afterwards.
fn world(size: usize, place: &Path, config: &Resolved<RunConfig>) -> Kept {
    for done in threads::run(size, |ranks| one(&ranks, place, config, &mut Listener::default())) {
        done.unwrap();
    }
    Kept::of(&place.join("run"))
}

/// Losses of all steps and validations, in the order of the metrics.
fn losses(place: &Path) -> Vec<f64> {
    let lines = calm_run::metrics::read_lines(&place.join("run/metrics.jsonl")).unwrap();
    let of = |line: &calm_run::metrics::Line| {
        let loss = line.values.iter().find(|(name, _)| name.ends_with("/loss"));
        loss.and_then(|(_, value)| *value)
    };
    lines.iter().filter_map(of).collect()
}

#[test]
fn fixed_reduction_gives_the_same_bits_at_1_2_4_and_8_processes() {
    let text = Text::new();
    for (name, model) in models() {
        let sets: Vec<&str> = match model.contains("autoencoder:") {
            true => vec!["train.lm.reduction=fixed", "train.autoencoder.reduction=fixed"],
            false => vec!["train.lm.reduction=fixed"],
        };
        let config = config(&text, &model, &sets);
        let mut first: Option<Kept> = None;
        for size in [1, 2, 4, 8] {
            let place = in_memory();
            let kept = world(size, place.path(), &config);
            assert!(kept.checkpoints.contains_key(&(Stage::Lm, 6)) && !kept.results.is_empty());
            if let Some(first) = &first {
                assert_eq!(kept.differs(first), None, "{name} with {size} processes");
            }
            first.get_or_insert(kept);
        }
    }
}

#[test]
fn the_engines_sum_agrees_to_rounding_and_repeats_its_bits() {
    // Measured: at most 3e-6 of the loss within six steps at this learning rate, of all families; a wrong share is off by percents.
    const BOUND: f64 = 3e-5;
    let text = Text::new();
    let mut most = 0.0f64;
    for (name, model) in models() {
        for set in [[].as_slice(), &["train.lm.accumulation=4"]] {
            let config = config(&text, &model, set);
            let places: Vec<_> = (0..5).map(|_| in_memory()).collect();
            let kept: Vec<Kept> = [1, 2, 3, 4, 4]
                .iter()
                .zip(&places)
                .map(|(size, place)| world(*size, place.path(), &config))
                .collect();
            assert_eq!(
                kept[4].differs(&kept[3]),
                None,
                "{name}: the same number of processes, the same bits"
            );
            let want = losses(places[0].path());
            assert!(want.len() >= 9, "{want:?}");
            for (place, size) in places[1..4].iter().zip(2..) {
                let got = losses(place.path());
                assert_eq!(got.len(), want.len());
                for (got, want) in got.iter().zip(&want) {
                    let off = (got - want).abs() / want.abs();
                    most = most.max(off);
                    assert!(off <= BOUND, "{name}, {size} processes: {got} against {want}, off by {off:e}");
                }
            }
        }
    }
    println!("losses of other numbers of processes are off by at most {most:e}");
}

#[test]
fn scores_are_shared_out_and_are_those_of_one_process() {
    let text = Text::new();
    let long = ["eval.documents=8", "eval.chunks_per_document=60", "eval.bound_samples=4"];
    for (name, model) in models() {
        let short = ["train.lm.context=5", "train.autoencoder.context=4"];
        let short = &short[..1 + usize::from(model.contains("autoencoder:"))];
        let config = config(&text, &model, &[&long[..], short].concat());
        let place = in_memory();
        let results = place.path().join("run/results.json");
        let want = world(1, place.path(), &config).results;
        // Nothing is left to train, whatever the number of processes.
        for size in [1, 2, 3, 4] {
            std::fs::remove_file(&results).unwrap();
            let measured = threads::run(size, |ranks| {
                let mut listener = Listener::default();
                one(&ranks, place.path(), &config, &mut listener).unwrap();
                listener.measured
            });
            assert_eq!(std::fs::read_to_string(&results).unwrap(), want, "{name}, {size} processes");
            for what in measured[0].keys() {
                let each: Vec<usize> = measured.iter().map(|of| of.get(what).copied().unwrap_or(0)).collect();
                let all: usize = each.iter().sum();
                assert!(all >= 4, "{name}: {all} batches for {what} show nothing");
                assert!(
                    each.iter().all(|n| (all / size..=all.div_ceil(size)).contains(n)),
                    "{name}, {what}: {each:?}"
                );
            }
            assert!(!measured[0].is_empty());
        }
    }
}

#[test]
fn sums_beside_the_backward_pass_have_the_bits_of_sums_after_it() {
    let text = Text::new();
    for (name, model) in models() {
        for more in [[].as_slice(), &["train.lm.accumulation=4"]] {
            let kept = |overlap: &str| {
                let place = in_memory();
                let sets = [&[overlap], more].concat();
                world(4, place.path(), &config(&text, &model, &sets))
            };
            let (beside, after) = (kept("train.lm.overlap=true"), kept("train.lm.overlap=false"));
            assert_eq!(beside.differs(&after), None, "{name}");
        }
    }
}

#[test]
fn a_run_goes_on_with_another_number_of_processes_as_if_nothing_had_happened() {
    let text = Text::new();
    let (_, model) = models().remove(0);
    let sets = ["train.lm.reduction=fixed", "train.autoencoder.reduction=fixed"];
    let config = config(&text, &model, &sets);
    let whole = in_memory();
    let want = world(1, whole.path(), &config);
    let place = in_memory();
    // 4 -> 2 -> 8, stopped by whichever rank is asked.
    for (size, who, stop_after) in [(4, 0, (Stage::Autoencoder, 4)), (2, 1, (Stage::Lm, 2))] {
        let ended = threads::run(size, |ranks| {
            let stop_after = (ranks.rank() == who).then_some(stop_after);
            one(&ranks, place.path(), &config, &mut Listener { stop_after, ..Listener::default() })
        });
        for end in ended {
            assert!(matches!(&end, Err(Error::Interrupted { step, .. }) if *step == stop_after.1), "{end:?}");
        }
        let at = Checkpoints::new(&place.path().join("run").join(stop_after.0.name())).latest().unwrap();
        assert_eq!(at.unwrap().step, stop_after.1);
    }
    let kept = world(8, place.path(), &config);
    assert_eq!(kept.differs(&want), None);
}

/// Settings of every stage of a model.
fn of_stages(model: &str, settings: &[&str]) -> Vec<String> {
    let stages = ["lm", "autoencoder"];
    let stages = &stages[..1 + usize::from(model.contains("autoencoder:"))];
    stages.iter().flat_map(|stage| settings.iter().map(move |s| format!("train.{stage}.{s}"))).collect()
}

fn config_of(text: &Text, model: &str, settings: &[&str]) -> Resolved<RunConfig> {
    let set = of_stages(model, settings);
    config(text, model, &set.iter().map(String::as_str).collect::<Vec<_>>())
}

/// The same model, so large that several processes have a part of its optimiser: parts are whole chunks of 16,384 numbers.
fn wide(model: &str) -> String {
    model.replace("hidden_size: 8, intermediate_size: 12", "hidden_size: 64, intermediate_size: 200")
}

#[test]
fn a_shared_optimiser_changes_no_bit_of_any_file() {
    let text = Text::new();
    for (name, model) in models() {
        let model = wide(&model);
        let (fixed, sharded) = (["reduction=fixed"], ["reduction=fixed", "shard=optimizer"]);
        let place = in_memory();
        let want = world(1, place.path(), &config_of(&text, &model, &fixed));
        assert!(want.checkpoints.contains_key(&(Stage::Lm, 6)) && !want.results.is_empty());
        for size in [1, 2, 4, 8] {
            let place = in_memory();
            let kept = world(size, place.path(), &config_of(&text, &model, &sharded));
            assert_eq!(kept.differs(&want), None, "{name} with {size} processes");
        }
        // The engine of this test adds in one order, whole or in parts.
        let places = [in_memory(), in_memory()];
        let whole = world(3, places[0].path(), &config_of(&text, &model, &[]));
        let kept = world(3, places[1].path(), &config_of(&text, &model, &["shard=optimizer"]));
        assert_eq!(kept.differs(&whole), None, "{name} by the engine's sum");
    }
}

#[test]
fn a_run_goes_on_with_its_optimiser_shared_out_otherwise() {
    let text = Text::new();
    let model = wide(&models().remove(0).1);
    let config = |shard: &str| config_of(&text, &model, &["reduction=fixed", &format!("shard={shard}")]);
    let whole = in_memory();
    let want = world(1, whole.path(), &config("none"));
    let place = in_memory();
    let parts = [
        (4, "optimizer", (Stage::Autoencoder, 4)),
        (1, "none", (Stage::Autoencoder, 5)),
        (8, "optimizer", (Stage::Lm, 2)),
        (2, "none", (Stage::Lm, 3)),
    ];
    for (size, shard, stop_after) in parts {
        let config = config(shard);
        let ended = threads::run(size, |ranks| {
            let stop_after = ranks.leads().then_some(stop_after);
            one(&ranks, place.path(), &config, &mut Listener { stop_after, ..Listener::default() })
        });
        for end in ended {
            assert!(matches!(&end, Err(Error::Interrupted { step, .. }) if *step == stop_after.1), "{end:?}");
        }
    }
    let kept = world(2, place.path(), &config("optimizer"));
    assert_eq!(kept.differs(&want), None);
}

#[test]
fn what_is_left_out_and_gone_back_from_does_not_depend_on_who_has_the_optimiser() {
    let text = Text::new();
    let model = wide(&models().remove(0).1);
    for divergence in
        ["{action: skip, window: 6, threshold: 0.6}", "{action: rollback, window: 12, threshold: 1.95}"]
    {
        let nervous = |shard: &str| {
            let set = [
                "train.autoencoder.reduction=fixed",
                "train.lm.reduction=fixed",
                "train.lm.steps=16",
                "train.lm.learning_rate=3e-3",
                "train.lm.checkpoint_every=2",
                &format!("train.lm.divergence={divergence}"),
                &format!("train.lm.shard={shard}"),
            ];
            config(&text, &model, &set)
        };
        let places = [in_memory(), in_memory()];
        let want = world(1, places[0].path(), &nervous("none"));
        let state = &want.checkpoints.values().last().unwrap().2;
        assert!(state.left_out > 1 || !state.skipped.is_empty(), "{state:?} shows nothing");
        let kept = world(4, places[1].path(), &nervous("optimizer"));
        assert_eq!(kept.differs(&want), None, "{divergence}");
    }
}

#[test]
fn of_many_processes_each_has_its_share_of_the_moments() {
    let stage = |shard: &str| -> StageConfig {
        let text = format!("{{ steps: 1, batch_rows: 8, context: 4, learning_rate: 1.0, shard: {shard} }}");
        serde_yaml::from_str(&text).unwrap()
    };
    let store = || {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 3);
        // 33 chunks, the last one not full, and no parameter ends with one.
        for (name, size) in [("a", 100), ("b", 300_001), ("c", 240_000)] {
            store.builder().weight(name, &[size], Init::Ones).unwrap();
        }
        store
    };
    let whole = 540_101 * 2 * size_of::<f32>();
    for (size, most) in [(1, 33), (2, 17), (4, 9), (8, 5)] {
        let held = |shard: &str| {
            let config = stage(shard);
            threads::run(size, |ranks| {
                let store = store();
                let stepper = Stepper::among(&ranks, &store, &config, 1).unwrap();
                stepper.optimizer().moments().unwrap().iter().map(|m| size_of_val(&**m)).sum::<usize>()
            })
        };
        assert!(held("none").iter().all(|bytes| *bytes == whole));
        let shared = held("optimizer");
        assert_eq!(shared.iter().sum::<usize>(), whole, "together they have all");
        let chunk = 2 * size_of::<f32>() * calm_kernels::NORM_CHUNK;
        assert!(shared.iter().all(|bytes| *bytes <= most * chunk), "{size} processes: {shared:?}");
    }
}

#[test]
fn what_cannot_be_shared_out_is_one_error_of_all() {
    let text = Text::new();
    let (_, model) = models().remove(3);
    let config = config(&text, &model, &["train.lm.reduction=fixed"]);
    let place = in_memory();
    let ended = threads::run(3, |ranks| one(&ranks, place.path(), &config, &mut Listener::default()));
    for end in ended {
        let e = end.unwrap_err().to_string();
        assert!(e.contains("cannot be shared out over 3 processes"), "{e}");
    }
    assert!(!place.path().join("run/run.json").exists(), "it is known before anything is begun");
}

#[test]
fn a_rank_that_fails_ends_all_and_is_named() {
    let text = Text::new();
    let (_, model) = models().remove(3);
    let config = config(&text, &model, &[]);
    let place = in_memory();
    let ended = threads::run(2, |ranks| match ranks.rank() {
        0 => one(&ranks, place.path(), &config, &mut Listener::default()),
        _ => {
            let e = calm_parallel::Error::new("no memory left", "take less");
            ranks.failed(&e);
            Err(Error::user(e.what, e.remedy))
        }
    });
    let e = ended[0].as_ref().unwrap_err();
    assert_eq!(e.to_string(), "rank 1 (thread-1): no memory left");
    assert_eq!(e.remedy().as_deref(), Some("take less"));
}

/// Processes of which one makes another update in one step: its weights drift.
#[derive(Debug)]
struct Drifting {
    ranks: Ranks,
    /// Whose, and after which step.
    who: (usize, u64),
    finished: AtomicU64,
}

impl Collective for Drifting {
    fn world(&self) -> &World {
        self.ranks.world()
    }
    fn hosts(&self) -> &[String] {
        self.ranks.hosts()
    }
    fn sum(&self, values: &mut [f32]) -> calm_parallel::Result<()> {
        self.ranks.sum(values)?;
        // A bucket of gradients. The norm, which is compared in every step, stays what it is.
        let gradients = values.len() > 64;
        if gradients && (self.ranks.rank(), self.finished.load(Ordering::Relaxed)) == self.who {
            values.iter_mut().for_each(|value| *value = -*value);
        }
        Ok(())
    }
    fn all_to_all(&self, values: &[f32]) -> calm_parallel::Result<Vec<f32>> {
        self.ranks.all_to_all(values)
    }
    fn all_gather(&self, own: &[f32]) -> calm_parallel::Result<Vec<f32>> {
        self.ranks.all_gather(own)
    }
    fn gather(&self, own: &[u8], what: &str, patience: Patience) -> calm_parallel::Result<Vec<Vec<u8>>> {
        self.ranks.gather(own, what, patience)
    }
    fn finished_step(&self, step: u64) {
        self.finished.store(step, Ordering::Relaxed);
        self.ranks.finished_step(step);
    }
    fn failed(&self, error: &calm_parallel::Error) -> bool {
        self.ranks.failed(error)
    }
    fn abort(&self, code: i32) -> ! {
        self.ranks.abort(code)
    }
    fn leave(&self) -> calm_parallel::Result<()> {
        self.ranks.leave()
    }
}

#[test]
fn weights_that_drift_apart_are_refused_at_the_next_checkpoint_with_both_fingerprints() {
    let text = Text::new();
    let (_, model) = models().pop().unwrap();
    let config = config(&text, &model, &[]);
    let place = in_memory();
    let done = threads::run(2, |ranks| {
        let drifting = Drifting { ranks, who: (1, 4), finished: AtomicU64::new(0) };
        one(&Ranks::new(drifting), place.path(), &config, &mut Listener::default())
    });
    let said = done[0].as_ref().unwrap_err().to_string();
    assert!(said.contains("differ in the checkpoint of step 6"), "{said}");
    let prints: Vec<&str> = said.split("parameters ").skip(1).map(|rest| &rest[..12]).collect();
    assert!(prints.len() == 2 && prints[0] != prints[1], "{said}");
    assert!(said.contains("on rank 0 (") && said.contains("on rank 1 ("), "{said}");
    assert!(done[0].as_ref().unwrap_err().remedy().is_some_and(|remedy| remedy.contains("--resume")));
    assert_eq!(done[1].as_ref().unwrap_err().to_string(), said, "all say the same");
    // What is wrong was not saved: the run goes on from the checkpoint before.
    let saved = Checkpoints::new(&place.path().join("run/lm")).steps();
    assert!(saved.contains(&3) && saved.iter().all(|step| *step <= 4), "{saved:?}");
    world(2, place.path(), &config);
}
