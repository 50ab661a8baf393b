//! What a stage goes on from after a spike, a stop or damage: what it then trains is what it would have trained.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "common/kept.rs"]
mod kept;
#[path = "common/toy.rs"]
mod toy;

use std::path::Path;

use calm_config::Resolved;
use calm_run::checkpoint::{Checkpoints, Which};
use calm_run::config::RunConfig;
use calm_run::{Error, Run, Stage};
use calm_train::models::load_lm;
use candle_core::Device;
use kept::Kept;
use toy::{Listener, Text, copy, go_with, in_memory, run_of};

/// Trains to the end, or to a stop after a step of the language model; what was warned of.
fn trained(place: &Path, config: &Resolved<RunConfig>, stop_after: Option<u64>) -> Vec<String> {
    let stop_after = stop_after.map(|step| (Stage::Lm, step));
    let mut listener = Listener { stop_after, ..Listener::default() };
    match (go_with(place, config, &mut listener), stop_after) {
        (Ok(()), None) => {}
        (Err(Error::Interrupted { step, .. }), Some((_, wanted))) => {
            assert_eq!(step, wanted, "a stop loses no step");
        }
        (other, _) => panic!("{other:?}"),
    }
    listener.warnings
}

fn checkpoints(place: &Path, stage: Stage) -> Checkpoints {
    Checkpoints::new(&run_of(place).join(stage.name()))
}

/// A language model of 16 steps to which noise is a spike, with a line of the metrics for every third step.
fn nervous(text: &Text, divergence: &str) -> Resolved<RunConfig> {
    text.config_with(&[
        "train.lm.steps=16",
        "train.lm.learning_rate=3e-3",
        "train.lm.log_every=3",
        "train.lm.eval_every=50",
        "train.lm.checkpoint_every=2",
        &format!("train.lm.divergence={divergence}"),
    ])
}

#[test]
fn a_stop_during_a_spike_is_saved_and_gone_on_from() {
    let text = Text::new();
    let config = nervous(&text, "{action: stop, window: 6, threshold: 0.6}");
    let whole = in_memory();
    let warnings = trained(whole.path(), &config, None);
    let spikes = warnings.iter().filter_map(|w| w.strip_prefix("lm, step ")?.split_once(':')?.0.parse().ok());
    let spikes: Vec<u64> = spikes.filter(|step| (3..16).contains(step)).collect();
    assert!(!spikes.is_empty(), "{warnings:?}");
    let wanted = Kept::of(&run_of(whole.path()));
    for step in spikes {
        let place = in_memory();
        trained(place.path(), &config, Some(step));
        let state = checkpoints(place.path(), Stage::Lm).latest().unwrap().unwrap();
        assert!(state.step == step && state.trend.in_spike(), "{state:?}");
        trained(place.path(), &config, None);
        assert_eq!(wanted.differs(&Kept::of(&run_of(place.path()))), None, "stopped after step {step}");
    }
}

#[test]
fn what_was_left_out_is_known_after_a_resume() {
    let text = Text::new();
    // After a stop a stage goes back to the checkpoint of the stop: what comes of that is another training, unless it has
    // gone back before.
    for (action, divergence, stops) in [
        ("skip", "{action: skip, window: 6, threshold: 0.6}", 1..16),
        ("rollback", "{action: rollback, window: 12, threshold: 1.95}", 11..16),
    ] {
        let config = nervous(&text, divergence);
        let whole = in_memory();
        trained(whole.path(), &config, None);
        let state = checkpoints(whole.path(), Stage::Lm).latest().unwrap().unwrap();
        assert!(state.left_out > 1 || !state.skipped.is_empty(), "{state:?}");
        let wanted = Kept::of(&run_of(whole.path()));
        let counted = wanted.metrics.iter().any(|line| line.contains("skipped_steps"));
        assert_eq!(counted, action == "skip", "{:?}", wanted.metrics);
        for step in stops {
            let place = in_memory();
            trained(place.path(), &config, Some(step));
            trained(place.path(), &config, None);
            let now = Kept::of(&run_of(place.path()));
            assert_eq!(wanted.differs(&now), None, "{action}, stopped after step {step}");
        }
    }
}

/// Settings of a run whose stages end with weights that are worse than those before.
fn worse_at_the_end(text: &Text, steps: u64) -> Resolved<RunConfig> {
    text.config_with(&[
        "train.autoencoder.learning_rate=0.2",
        "train.autoencoder.eval_every=1",
        "train.lm.learning_rate=0.5",
        "train.lm.eval_every=1",
        &format!("train.lm.steps={steps}"),
    ])
}

/// The latest step of a stage, and the best one before it.
fn latest_and_best(place: &Path, stage: Stage) -> (u64, u64) {
    let checkpoints = checkpoints(place, stage);
    let steps = (checkpoints.step(Which::Latest).unwrap(), checkpoints.step(Which::Best).unwrap());
    assert!(steps.1 < steps.0, "{stage}: {steps:?}");
    steps
}

#[test]
fn an_autoencoder_that_a_language_model_stands_on_is_not_trained_further() {
    let (text, whole) = (Text::new(), in_memory());
    let config = worse_at_the_end(&text, 5);
    trained(whole.path(), &config, None);
    let (last, best) = latest_and_best(whole.path(), Stage::Autoencoder);
    let wanted = Kept::of(&run_of(whole.path()));
    let path = checkpoints(whole.path(), Stage::Autoencoder).model_path(last);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let warnings = trained(whole.path(), &config, None);
    assert!(warnings[0].contains(&format!("going back to step {best}")), "{warnings:?}");
    let mut now = Kept::of(&run_of(whole.path()));
    assert!(!now.checkpoints.contains_key(&(Stage::Autoencoder, last)), "none was made anew");
    now.checkpoints
        .insert((Stage::Autoencoder, last), wanted.checkpoints[&(Stage::Autoencoder, last)].clone());
    assert_eq!(wanted.differs(&now), None);
}

#[test]
fn a_run_whose_best_checkpoint_is_gone_goes_on_and_is_scored_with_the_latest() {
    let (text, whole) = (Text::new(), in_memory());
    trained(whole.path(), &worse_at_the_end(&text, 5), None);
    let (last, best) = latest_and_best(whole.path(), Stage::Lm);
    std::fs::remove_dir_all(checkpoints(whole.path(), Stage::Lm).path(best)).unwrap();
    // Without more steps, and with some.
    for steps in [5, 7] {
        let place = in_memory();
        copy(whole.path(), place.path());
        let warnings = trained(place.path(), &worse_at_the_end(&text, steps), None);
        let said = format!("the best checkpoint, step {best}, is gone: step {last} counts");
        assert!(warnings.iter().any(|w| w.contains(&said)), "{warnings:?}");
        assert_eq!(checkpoints(place.path(), Stage::Lm).step(Which::Latest).unwrap(), steps);
        let run = Run::open(&run_of(place.path())).unwrap();
        load_lm(&run, Which::Best, &run.tokenizer().unwrap(), &Device::Cpu).unwrap();
        assert!(trained(place.path(), &worse_at_the_end(&text, steps), None).is_empty(), "it is said once");
    }
}
