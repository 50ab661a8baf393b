//! Every file of an ablation, with bits flipped and its end cut off: the same command again, and the report, give what they
//! gave, or name the file. Nothing panics, nothing hangs.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "../../calm-train/tests/common/harm.rs"]
mod harm;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use calm_report::Study;
use calm_report::study::Machine;
use calm_study::plan::Ablation;
use calm_study::{execute, folder, gather, score};
use candle_core::Device;
use common::toy::{Listener, Text, copy, in_memory, place};
use common::{All, ablate, kept};
use harm::{Came, Harm, harm};

/// A finished ablation, with the cache of its text.
fn finished(text: &Text) -> tempfile::TempDir {
    let place = in_memory();
    assert_eq!(ablate(place.path(), text).unwrap(), Vec::<String>::new());
    place
}

/// What comes of the same command again: the study to the byte. Where somebody was told, something may have been trained
/// again: then what the runs keep.
struct Again {
    study: String,
    kept: Option<All>,
}

impl PartialEq for Again {
    fn eq(&self, other: &Self) -> bool {
        self.study == other.study
    }
}

/// The same command again.
fn again(place: &Path, text: &Text) -> Came<Again> {
    let told = ablate(place, text).map_err(|e| e.to_string());
    let failed =
        |told: &[String]| told.iter().any(|t| t.contains("failed") || t.contains("cannot be scored"));
    match told {
        Ok(told) if failed(&told) => Came { of: Err(told.join("\n")), warnings: Vec::new() },
        Ok(warnings) => {
            let study = fs::read_to_string(place.join("ablation/study.json")).unwrap();
            // What is damaged and nobody needs stays as it is, and cannot be looked at.
            let kept = std::panic::catch_unwind(|| kept(place)).ok();
            Came { of: Ok(Again { study, kept }), warnings }
        }
        Err(e) => Came { of: Err(e), warnings: Vec::new() },
    }
}

/// Where what two ablations kept differs.
fn difference(wanted: &All, now: &All) -> Option<String> {
    if !wanted.keys().eq(now.keys()) {
        return Some("other runs".into());
    }
    wanted.iter().find_map(|(run, (wanted, scores))| {
        let (kept, kept_scores) = &now[run];
        let scores = (scores != kept_scores).then(|| "other scores".to_owned());
        Some(format!("{run}: {}", wanted.differs(kept).or(scores)?))
    })
}

fn the_same_command_again(cases: u64) -> BTreeMap<&'static str, u64> {
    let text = Text::new();
    let begin = finished(&text);
    let wanted = again(begin.path(), &text).of.unwrap();
    let all = wanted.kept.as_ref().unwrap();
    let mut without = BTreeMap::new();
    harm(
        begin.path(),
        cases,
        &wanted,
        |place| again(place, &text),
        |file, harm, now| {
            let Some(mut kept) = now.kept else {
                // An autoencoder that the runs have already: left out of the report, with a note.
                let (now, wanted) = (but_for_notes(&now.study), but_for_notes(&wanted.study));
                let same = Study { autoencoders: wanted.autoencoders.clone(), ..now } == wanted;
                return (!same).then(|| "another study".into());
            };
            let checkpoint = file.parent().unwrap();
            if checkpoint.file_name().is_some_and(|name| name.to_string_lossy().starts_with("step-")) {
                let without = without.entry(checkpoint.to_owned()).or_insert_with(|| {
                    let place = in_memory();
                    copy(begin.path(), place.path());
                    fs::remove_dir_all(place.path().join(checkpoint)).unwrap();
                    again(place.path(), &text).of.unwrap().kept.unwrap()
                });
                return difference(without, &kept);
            }
            if file.ends_with("metrics.jsonl") {
                let run = file.parent().unwrap().display().to_string();
                let (lines, (kept, _)) = (&all[&run].0.metrics, kept.get_mut(&run).unwrap());
                let changed = kept.metrics.iter().filter(|line| !lines.contains(line)).count();
                if changed > usize::from(matches!(harm, Harm::Flip { .. })) {
                    return Some(format!("{changed} lines of the metrics are others"));
                }
                kept.metrics.clone_from(lines);
            }
            difference(all, &kept)
        },
    )
}

/// As `calm report` does, which has no text but its cache.
fn report(place: &Path) -> Came<String> {
    let (out, cache) = (place.join("ablation"), place.join("cache"));
    let mut listener = Listener::default();
    let mut report = || -> calm_run::Result<Study> {
        let ablation = Ablation::open(&out)?;
        let mut failures = execute::failures(&ablation)?;
        score::score(&ablation, &cache, &Device::Cpu, &mut failures, &mut listener)?;
        let machine =
            folder::machine_of(&out)?.unwrap_or_else(|| Machine { threads: 7, ..Machine::default() });
        gather::gather(&ablation, &failures, machine)
    };
    let study = report();
    let mut warnings = listener.warnings;
    if let Ok(study) = &study {
        warnings.extend(study.notes.iter().cloned());
        warnings.extend(study.failures.iter().map(|failure| failure.reason.clone()));
    }
    let of = study.map_err(|e| e.to_string()).map(|study| calm_report::json(&study).unwrap());
    Came { of, warnings }
}

/// A study without what it says of itself.
fn but_for_notes(study: &str) -> Study {
    let mut study = calm_report::read(study).unwrap();
    study.notes.clear();
    study
}

/// And without the validations, of which some may be missing.
fn but_for_metrics(study: &str) -> Study {
    let mut study = but_for_notes(study);
    for run in study.variants.iter_mut().flat_map(|variant| &mut variant.runs) {
        run.curve.clear();
    }
    study
}

fn the_report(cases: u64) -> BTreeMap<&'static str, u64> {
    let text = Text::new();
    let begin = finished(&text);
    let wanted = report(begin.path()).of.unwrap();
    harm(begin.path(), cases, &wanted, report, |file, _, now| {
        let (notes, metrics) = (but_for_notes, but_for_metrics);
        let same = if file.ends_with("metrics.jsonl") || file.ends_with("metrics.sum") {
            metrics(&now) == metrics(&wanted)
        } else if file.starts_with("ablation/autoencoders") && file.ends_with("state.json") {
            let left_out = Study { autoencoders: notes(&wanted).autoencoders, ..notes(&now) };
            left_out == notes(&wanted)
        } else {
            now == wanted
        };
        (!same).then(|| "another study".into())
    })
}

#[test]
fn some_harm_to_every_file_of_an_ablation_is_noticed_when_it_is_run_again() {
    let count = the_same_command_again(110);
    assert!(
        count["an error that names the file"] > 5 && count["a warning that names the file"] > 5,
        "{count:?}"
    );
}

#[test]
fn some_harm_to_every_file_of_an_ablation_is_noticed_in_its_report() {
    let count = the_report(220);
    assert!(count["an error that names the file"] > 20, "{count:?}");
}

#[test]
#[ignore = "two thousand changes: minutes"]
fn two_thousand_changes_of_an_ablation_are_noticed_or_do_not_matter() {
    println!("an ablation is run again: {:?}", the_same_command_again(1000));
    println!("an ablation's report is made: {:?}", the_report(1000));
}
