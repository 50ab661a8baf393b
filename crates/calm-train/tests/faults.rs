//! Whatever the disk does at any operation of a training, and whenever the power fails or the process is killed: the
//! run is resumed to the same bytes, or somebody was told what is missing.
//!
//! Some operations are tried always; `--ignored` tries every one.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "common/kept.rs"]
mod kept;
#[path = "common/toy.rs"]
mod toy;

use std::path::Path;

use calm_files::faults::{Cut, Fault, Plan, Platter, Seen, Way, with};
use calm_run::{Error, Stage};
use kept::Kept;
use toy::{Listener, Text, copy, go, in_memory, run_of};

/// The uninterrupted run.
fn reference(text: &Text) -> Kept {
    let place = in_memory();
    let mut listener = Listener::default();
    go(place.path(), text, &mut listener).unwrap();
    assert!(listener.warnings.is_empty(), "{:?}", listener.warnings);
    let kept = Kept::of(&run_of(place.path()));
    assert!(kept.checkpoints.len() == 4 && kept.metrics.len() > 12 && kept.events.len() > 40);
    assert!(kept.results.contains("brierlm"), "{}", kept.results);
    kept
}

/// A place where the training was stopped in the middle of its second stage.
fn stopped(text: &Text) -> tempfile::TempDir {
    let place = in_memory();
    let mut listener = Listener { stop_after: Some((Stage::Lm, 3)), ..Listener::default() };
    let stopped = go(place.path(), text, &mut listener);
    assert!(matches!(stopped, Err(Error::Interrupted { .. })), "{stopped:?}");
    place
}

/// A place after a fault is as it would be without, once the run is resumed.
fn resumes(place: &Path, text: &Text, wanted: &Kept, what: &str, told: &[String]) {
    let mut listener = Listener::default();
    let resumed = go(place, text, &mut listener);
    resumed.unwrap_or_else(|e| panic!("{what}: cannot be resumed: {e}"));
    let now = Kept::of(&run_of(place));
    // Metrics that could not be written do not stop a training; it says so.
    let gaps = told.iter().any(|w| w.contains("cannot write"));
    let wanted = Kept {
        checkpoints: wanted.checkpoints.clone(),
        metrics: if gaps { now.metrics.clone() } else { wanted.metrics.clone() },
        events: if gaps { now.events.clone() } else { wanted.events.clone() },
        results: wanted.results.clone(),
    };
    if let Some(difference) = wanted.differs(&now) {
        panic!("{what}: {difference}");
    }
    for stage in Stage::ALL {
        let folder = run_of(place).join(stage.name());
        let names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{what}: nothing is left over: {names:?}");
    }
}

/// Which of so many cases are tried, at most `most`, not the same for every kind.
fn some(cases: u64, most: u64, kind: u64) -> impl Iterator<Item = u64> {
    let stride = cases.div_ceil(most).max(1);
    (kind % stride..cases).step_by(usize::try_from(stride).unwrap())
}

/// Lets operations fail, `most` of each kind.
fn fails(text: &Text, begin: Option<&Path>, most: u64) -> u64 {
    let wanted = reference(text);
    let fresh = || {
        let place = in_memory();
        begin.into_iter().for_each(|begin| copy(begin, place.path()));
        place
    };
    let (_, Seen { ops, .. }) = with(Plan::count(), || go(fresh().path(), text, &mut Listener::default()));
    let ways = [
        (Way::Full, false),
        (Way::Broken, false),
        (Way::Short, false),
        (Way::Full, true),
        (Way::Broken, true),
        (Way::Short, true),
    ];
    for (kind, (way, lasting)) in ways.into_iter().enumerate() {
        for at in some(ops, most, 3 * kind as u64) {
            let place = fresh();
            let mut listener = Listener::default();
            let what = format!("operation {at} of {ops} {way:?}, lasting: {lasting}");
            let (done, _) =
                with(Plan::fail(Fault { at, way, lasting }), || go(place.path(), text, &mut listener));
            if let Err(e) = done {
                assert!(e.to_string().len() > 20, "{what}: {e}");
                assert!(way == Way::Broken || e.remedy().is_some(), "{what}: no remedy: {e}");
            }
            resumes(place.path(), text, &wanted, &what, &listener.warnings);
        }
    }
    ops
}

/// Cuts the power after operations, `most` of each kind.
fn power_cuts(text: &Text, begin: Option<&Path>, most: u64) -> u64 {
    let wanted = reference(text);
    let place = in_memory();
    begin.into_iter().for_each(|begin| copy(begin, place.path()));
    let mut platter = Platter::of(place.path()).unwrap();
    let (done, seen) = with(Plan::record(), || go(place.path(), text, &mut Listener::default()));
    done.unwrap();
    let cuts = [Cut::Kill, Cut::Lost, Cut::NamesOnly, Cut::Some(1), Cut::Some(2)];
    let tried: Vec<Vec<u64>> =
        (0..cuts.len() as u64).map(|kind| some(seen.ops + 1, most, 5 * kind).collect()).collect();
    let after = in_memory();
    for n in 0..=seen.ops {
        for (cut, tried) in cuts.into_iter().zip(&tried) {
            if !tried.contains(&n) {
                continue;
            }
            let cut = if let Cut::Some(seed) = cut { Cut::Some(seed + 10 * n) } else { cut };
            let place = after.path().join("place");
            platter.after(cut, &place).unwrap();
            let last = n.checked_sub(1).and_then(|n| seen.record.get(usize::try_from(n).unwrap()));
            let what =
                format!("{cut:?} after {n} of {} operations ({:?})", seen.ops, last.map(|op| op.path()));
            resumes(&place, text, &wanted, &what, &[]);
        }
        if let Some(op) = seen.record.get(usize::try_from(n).unwrap()) {
            platter.follow(op);
        }
    }
    seen.ops
}

#[test]
fn a_training_survives_some_faults() {
    fails(&Text::new(), None, 6);
}

#[test]
fn a_training_survives_some_power_cuts() {
    power_cuts(&Text::new(), None, 8);
}

#[test]
fn a_resumed_training_survives_some_faults_and_power_cuts() {
    let text = Text::new();
    let begin = stopped(&text);
    fails(&text, Some(begin.path()), 4);
    power_cuts(&text, Some(begin.path()), 5);
}

#[test]
#[ignore = "every operation: minutes"]
fn a_training_survives_every_fault_and_power_cut() {
    let text = Text::new();
    let begin = stopped(&text);
    for (what, begin) in [("training", None), ("resume", Some(begin.path()))] {
        let ops = fails(&text, begin, u64::MAX);
        println!("{what}: {ops} operations, each failed in 6 ways");
        let ops = power_cuts(&text, begin, u64::MAX);
        println!("{what}: the power cut after each of {ops} operations in 5 ways");
    }
}
