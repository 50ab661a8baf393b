//! Every file that is read, with bits flipped and its end cut off: what comes of it is right, or somebody is told
//! which file it is, and what comes then is what would have come without that file. Nothing panics, nothing hangs.
//!
//! Some changes are tried always; `--ignored` tries two thousand.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "common/kept.rs"]
mod kept;
#[path = "common/toy.rs"]
mod toy;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use calm_run::checkpoint::{Which, read_json};
use calm_run::metrics::{check, read_lines};
use calm_run::{Error, Run, Stage};
use calm_train::models::{load_autoencoder, load_lm};
use candle_core::Device;
use kept::Kept;
use toy::{Listener, Text, copy, go, in_memory, run_of};

/// What happened to a file.
#[derive(Clone, Copy, Debug)]
enum Harm {
    Flip { at: usize, bit: u8 },
    Cut { length: usize },
}

impl Harm {
    /// Of a file of so many bytes, by number: two flips, then a cut.
    fn of(number: u64, length: usize) -> Self {
        let random = (number + 1)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
            .wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let at = (random >> 20) as usize % length;
        if number % 3 == 2 {
            Self::Cut { length: at }
        } else {
            Self::Flip { at, bit: (random >> 8) as u8 % 8 }
        }
    }

    fn apply(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        match self {
            Self::Flip { at, bit } => bytes[at] ^= 1 << bit,
            Self::Cut { length } => bytes.truncate(length),
        }
        fs::write(path, bytes).unwrap();
    }
}

/// All files of a place that are read again, relative to it.
fn files(place: &Path) -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            // TensorBoard reads its events, we do not.
            if entry.file_name() == "tensorboard" {
                continue;
            }
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), found)
            } else {
                found.push(entry.path())
            }
        }
    }
    let mut found = Vec::new();
    walk(place, &mut found);
    found.sort();
    found.into_iter().map(|path| path.strip_prefix(place).unwrap().to_owned()).collect()
}

/// What came of it.
struct Came<T> {
    of: Result<T, String>,
    warnings: Vec<String>,
}

/// Harms each file of `begin` in turn, `cases` in all, and looks at what `work` makes of it: what was `wanted`, or
/// somebody is told and it is what `warned` allows for this file, which says what is wrong with it otherwise.
fn harm<T: PartialEq + Send + 'static>(
    begin: &Path,
    cases: u64,
    wanted: &T,
    work: impl Fn(&Path) -> Came<T> + Sync,
    mut warned: impl FnMut(&Path, Harm, T) -> Option<String>,
) -> BTreeMap<&'static str, u64> {
    let files = files(begin);
    let mut count = BTreeMap::new();
    for case in 0..cases {
        let file = &files[usize::try_from(case).unwrap() % files.len()];
        let place = in_memory();
        copy(begin, place.path());
        let path = place.path().join(file);
        let length = fs::metadata(&path).unwrap().len() as usize;
        if length == 0 {
            continue;
        }
        let harm = Harm::of(case, length);
        harm.apply(&path);
        let what = format!("case {case}: {} of {length} bytes, {harm:?}", file.display());
        let came = std::thread::scope(|scope| {
            let (send, receive) = mpsc::channel();
            let (work, place) = (&work, place.path());
            scope.spawn(move || send.send(catch_unwind(AssertUnwindSafe(|| work(place)))));
            receive.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|_| panic!("{what}: it hangs"))
        });
        let came = came.unwrap_or_else(|_| panic!("{what}: it panics"));
        let name = file.file_name().unwrap().to_str().unwrap();
        let named = |text: &str| text.contains(name);
        let outcome = match came.of {
            Err(e) => {
                assert!(named(&e), "{what}: the file is not named: {e}");
                "an error that names the file"
            }
            Ok(kept) if came.warnings.iter().any(|w| named(w)) => {
                let wrong = warned(file, harm, kept);
                assert!(wrong.is_none(), "{what}: {}; warnings {:?}", wrong.unwrap(), came.warnings);
                "a warning that names the file"
            }
            Ok(kept) => {
                assert!(kept == *wanted, "{what}: silently wrong; warnings {:?}", came.warnings);
                "no difference"
            }
        };
        *count.entry(outcome).or_default() += 1;
    }
    count
}

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
