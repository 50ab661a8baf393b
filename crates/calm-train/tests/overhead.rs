//! What saving and checking costs: a checkpoint of nearly the quickstart's size (fewer tokens) with its metrics, on a real
//! disk, and hashing.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "common/toy.rs"]
mod toy;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use calm_config::{ConfigText, Resolved, load};
use calm_files::Sum;
use calm_nn::{AdamW, AdamWConfig, ParamStore};
use calm_run::checkpoint::StageState;
use calm_run::config::RunConfig;
use calm_run::metrics::{MetricsWriter, Tracking};
use calm_run::{Begin, Run, Stage};
use calm_train::models::{new_autoencoder, new_lm};
use candle_core::Device;

/// Medians of the seconds of a save with its metrics and of the checks and loads of a resume.
fn costs(run: &Run, stage: Stage, store: &ParamStore) -> (f64, f64) {
    let mut optimizer = AdamW::new(store, AdamWConfig::default()).unwrap();
    let checkpoints = run.checkpoints(stage);
    let mut metrics = MetricsWriter::new(&run.folder, Tracking::default(), |w| panic!("{w}"));
    let (mut saves, mut resumes) = (Vec::new(), Vec::new());
    for step in 1..12 {
        (0..50).for_each(|i| metrics.scalars(stage, step * 50 + i, &[("train/loss", 1.0)]));
        let begun = Instant::now();
        metrics.sync();
        let state = StageState { step, ..StageState::default() };
        checkpoints.save(&state, store, &optimizer, &BTreeMap::new()).unwrap();
        saves.push(begun.elapsed().as_secs_f64());
        let begun = Instant::now();
        assert!(checkpoints.settle().unwrap().is_empty());
        checkpoints.load_model(step, store).unwrap();
        checkpoints.load_optimizer(step, store, &mut optimizer).unwrap();
        resumes.push(begun.elapsed().as_secs_f64());
    }
    let median = |mut all: Vec<f64>| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    };
    (median(saves), median(resumes))
}

#[test]
#[ignore = "a measurement"]
fn what_saving_and_checking_costs() {
    let text = toy::Text::new();
    let yaml =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/quickstart.yaml"));
    let set = [format!("data.source={{path: {:?}}}", text.path()), "tokenizer={chars: {}}".into()];
    let config: Resolved<RunConfig> =
        load(ConfigText::new("quickstart", yaml.unwrap()), &set).unwrap_or_else(|e| panic!("{e}"));
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let run = Run::create(&dir.path().join("run"), &config, Begin::New).unwrap();
    let corpus = calm_data::prepare(
        &config.value.data,
        &config.value.tokenizer,
        &dir.path().join("cache"),
        &mut |_| (),
    );
    let tokenizer = config.value.fit(corpus.unwrap().tokenizer).unwrap();
    let one = new_autoencoder(&run, &tokenizer, &Device::Cpu).unwrap();
    let first = costs(&run, Stage::Autoencoder, &one.store);
    let numbers = one.store.element_count();
    let lm = new_lm(&run, Some(one.model), &tokenizer, &Device::Cpu).unwrap();
    let second = costs(&run, Stage::Lm, lm.store());
    for (stage, numbers, (save, resume)) in
        [("autoencoder", numbers, first), ("lm", lm.store().element_count(), second)]
    {
        println!(
            "{stage}: {numbers} parameters, {:.1} ms a save, {:.1} ms a resume",
            1e3 * save,
            1e3 * resume
        );
    }
    let train = &config.value.train;
    let saves = |stage: Stage| train.stage(stage).map_or(0, |c| c.steps / c.checkpoint_every) as f64;
    let all = saves(Stage::Autoencoder) * first.0 + saves(Stage::Lm) * second.0;
    println!("quickstart: {all:.2} s for all saves");
    let bytes = vec![7u8; 256 << 20];
    let begun = Instant::now();
    let sum = Sum::of(&bytes);
    let rate = bytes.len() as f64 / begun.elapsed().as_secs_f64() / 1e9;
    println!("BLAKE3, one core: {rate:.2} GB/s ({})", &sum.blake3[..8]);
}
