//! Every file that is read, with bits flipped and its end cut off: what comes of it is right, or somebody is told
//! which file it is, and what comes then is what would have come without that file. Nothing panics, nothing hangs.
//!
//! Some changes are tried always; `--ignored` tries two thousand.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "common/harm.rs"]
mod harm;
#[path = "common/kept.rs"]
mod kept;
#[path = "common/toy.rs"]
mod toy;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use calm_run::checkpoint::{Which, read_json};
use calm_run::metrics::{check, read_lines};
use calm_run::{Error, Run, Stage};
use calm_train::models::{load_autoencoder, load_lm};
use candle_core::Device;
use harm::{Came, Harm, harm};
use kept::Kept;
use toy::{Listener, Text, copy, go, in_memory, place, run_of};

/// A run that was stopped is resumed.
fn resume(cases: u64) -> BTreeMap<&'static str, u64> {
    let text = Text::new();
    let whole = in_memory();
    go(whole.path(), &text, &mut Listener::default()).unwrap();
    let begin = in_memory();
    let mut listener = Listener { stop_after: Some((Stage::Lm, 3)), ..Listener::default() };
    assert!(matches!(go(begin.path(), &text, &mut listener), Err(Error::Interrupted { .. })));
    let resumed = |place: &Path| {
        let mut listener = Listener::default();
        let done = go(place, &text, &mut listener);
        Came {
            of: done.map(|()| Kept::of(&run_of(place))).map_err(|e| e.to_string()),
            warnings: listener.warnings,
        }
    };
    let wanted = Kept::of(&run_of(whole.path()));
    // By checkpoint: what comes of the run without it.
    let mut without = BTreeMap::new();
    harm(begin.path(), cases, &wanted, resumed, |file, harm, now| {
        let folder = file.parent().unwrap();
        if folder.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-")) {
            let without = without.entry(folder.to_owned()).or_insert_with(|| {
                let place = in_memory();
                copy(begin.path(), place.path());
                fs::remove_dir_all(place.path().join(folder)).unwrap();
                resumed(place.path()).of.unwrap()
            });
            return without.differs(&now);
        }
        // A cache that is made anew, or a tokenizer written anew, is what it was.
        let Some(metrics) = file.ends_with("metrics.jsonl").then_some(&wanted.metrics) else {
            return wanted.differs(&now);
        };
        // What is gone stays gone, and a number that a flip made another one is in a file that was named.
        let changed = now.metrics.iter().filter(|line| !metrics.contains(line)).count();
        if changed > usize::from(matches!(harm, Harm::Flip { .. })) {
            return Some(format!("{changed} lines of the metrics are others"));
        }
        wanted.differs(&Kept { metrics: metrics.clone(), ..now })
    })
}

/// What commands that only read take from a run.
#[derive(Clone, PartialEq)]
struct Taken {
    weights: Vec<Vec<f32>>,
    config: String,
    record: String,
    results: Option<serde_json::Value>,
    metrics: usize,
}

fn take(place: &Path) -> calm_run::Result<Taken> {
    let run = Run::open(&run_of(place))?;
    let tokenizer = run.tokenizer()?;
    let (stage_one, _) = load_autoencoder(&run, Which::Best, &tokenizer, &Device::Cpu)?;
    let mut weights = Vec::new();
    for which in [Which::Best, Which::Latest] {
        let lm = load_lm(&run, which, &tokenizer, &Device::Cpu)?;
        for (_, param) in lm.store().params().into_iter().chain(stage_one.store.params()) {
            weights.push(param.var.as_tensor().flatten_all()?.to_vec1()?);
        }
    }
    Ok(Taken {
        weights,
        config: format!("{:?}", run.config),
        record: format!("{:?}", run.record()?),
        results: read_json(&run.folder.join("results.json"), "")?,
        metrics: read_lines(&run.folder.join("metrics.jsonl")).unwrap_or_default().len(),
    })
}

/// A finished run is read.
fn read(cases: u64) -> BTreeMap<&'static str, u64> {
    let text = Text::new();
    let whole = in_memory();
    go(whole.path(), &text, &mut Listener::default()).unwrap();
    // The cache is not read again, the optimiser and checkpoints that are neither best nor latest neither.
    fs::remove_dir_all(whole.path().join("cache")).unwrap();
    let wanted = take(whole.path()).unwrap();
    let taken =
        |place: &Path| Came { of: take(place).map_err(|e| e.to_string()), warnings: check(&run_of(place)) };
    harm(whole.path(), cases, &wanted, taken, |_, _, now| {
        let but_for_metrics = Taken { metrics: wanted.metrics, ..now.clone() };
        (but_for_metrics != wanted || now.metrics > wanted.metrics).then(|| "more than lines are gone".into())
    })
}

#[test]
fn some_harm_to_every_file_of_a_stopped_run_is_noticed_or_does_not_matter() {
    let count = resume(70);
    assert!(
        count["an error that names the file"] > 5 && count["a warning that names the file"] > 5,
        "{count:?}"
    );
}

#[test]
fn some_harm_to_every_file_of_a_finished_run_is_noticed_or_does_not_matter() {
    let count = read(160);
    assert!(count["an error that names the file"] > 20, "{count:?}");
}

#[test]
#[ignore = "two thousand changes: minutes"]
fn two_thousand_changes_of_files_are_noticed_or_do_not_matter() {
    println!("a stopped run is resumed: {:?}", resume(1000));
    println!("a finished run is read: {:?}", read(1000));
}
