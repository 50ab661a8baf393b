//! An ablation, whatever the disk does at any of its operations and whenever it is killed or the power fails: the same
//! command again finishes it, with the same weights, metrics and scores to the byte.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

#[path = "../../calm-train/tests/common/kept.rs"]
mod kept;
#[path = "../../calm-train/tests/common/toy.rs"]
mod toy;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

use calm_config::{ConfigText, Resolved, load};
use calm_files::faults::{Cut, Fault, Plan, Platter, Seen, Way, with};
use calm_report::study::Machine;
use calm_run::checked::{read_config, write_text};
use calm_run::config::RunConfig;
use calm_run::{Begin, Result, Run, Stage};
use calm_study::config::AblationConfig;
use calm_study::execute::{Job, Outcome, Worker, execute, prepare};
use calm_study::plan::{ABLATION, Ablation, BudgetFacts};
use calm_study::{folder, gather, score};
use calm_train::options::TrainOptions;
use calm_train::pipeline::{prepare_data, train};
use candle_core::Device;
use kept::Kept;
use toy::{Listener, Text, in_memory};

struct Fixed;

impl BudgetFacts for Fixed {
    fn vocab_size(&mut self, _: &RunConfig) -> Result<usize> {
        Ok(270)
    }
    fn rates(&mut self, variants: &[(String, RunConfig)]) -> Result<Vec<f64>> {
        Ok(vec![64.0; variants.len()])
    }
}

/// Trains in this process: operations of a child would not be seen.
struct Here<'a> {
    cache: &'a Path,
    listener: Listener,
}

impl Worker for Here<'_> {
    fn train(&mut self, job: &Job<'_>) -> Result<Outcome> {
        let mut train = || -> Result<()> {
            let config: Resolved<RunConfig> = load(read_config(&job.folder.join("config.yaml"))?, &[])?;
            let run = Run::create(job.folder, &config, Begin::Resume)?;
            let options = TrainOptions {
                resume: true,
                skip_scores: true,
                autoencoder_from: job.autoencoder.map(Path::to_owned),
                only: job.only_autoencoder.then_some(Stage::Autoencoder),
                cache: self.cache.to_owned(),
                ..TrainOptions::default()
            };
            train(&run, &options, &Device::Cpu, &mut self.listener).map(|_| ())
        };
        Ok(train().map_or_else(|e| Outcome::Failed(e.to_string()), |()| Outcome::Done))
    }
}

const TEXT: &str = "version: 1
budget: { tokens: 128 }
seeds: [1]
context_tokens: 24
validation: { points: 2, documents: 1, tokens: 24 }
variants: [{ name: toy, config: toy }]
grid: { model.calm.chunk_size: [2, 3] }
score: { documents: 2, tokens_per_document: 24, bootstrap: 5, samples: 2, draws: 4, rounds: 0, prompt_tokens: 4 }
";

/// The ablation in a place from its beginning to its report, as `calm ablate` does; warnings and failures.
fn ablate(place: &Path, text: &Text) -> Result<Vec<String>> {
    let (out, cache) = (place.join("ablation"), place.join("cache"));
    let config = load::<AblationConfig>(ConfigText::new("ablation.yaml", TEXT), &[])?;
    let find = |name: &str| Ok(ConfigText::new(name, text.config().to_yaml()));
    let ablation = Ablation::expand(&config.value, &out, &find, &mut Fixed)?;
    let mut here = Here { cache: &cache, listener: Listener::default() };
    let first = &ablation.runs[0];
    let run = Run { folder: first.folder.clone(), config: first.config.value.clone() };
    let corpus = prepare_data(&run, &cache, &mut here.listener)?;
    prepare(&ablation, &corpus)?;
    write_text(&out.join(ABLATION), &config.to_yaml())?;
    let mut failures = execute(&ablation, &mut here)?.unwrap();
    score::score(&ablation, &cache, &Device::Cpu, &mut failures, &mut here.listener)?;
    folder::write_machine(&out, &Machine::default())?;
    let study = gather::gather(&ablation, &failures, Machine::default())?;
    folder::publish(&study, &out)?;
    let mut told = here.listener.warnings;
    told.extend(failures.into_iter().map(|(run, why)| format!("{run}: {why}")));
    Ok(told)
}

/// By run: what it kept, and its scores.
type All = BTreeMap<String, (Kept, Vec<String>)>;

fn kept(place: &Path) -> All {
    let mut all = All::new();
    for folder in ["ablation", "ablation/autoencoders"] {
        for entry in fs::read_dir(place.join(folder)).unwrap().map(|e| e.unwrap().path()) {
            if !entry.join("config.yaml").is_file() {
                continue;
            }
            let files = fs::read_dir(&entry).unwrap().map(|e| e.unwrap().path());
            let scores = files.filter(|f| {
                let name = f.file_name().unwrap().to_string_lossy().into_owned();
                name.starts_with("scores-") || name.starts_with("reconstruction-")
            });
            let mut scores: Vec<String> = scores.map(|f| fs::read_to_string(f).unwrap()).collect();
            scores.sort();
            let name = format!("{folder}/{}", entry.file_name().unwrap().display());
            all.insert(name, (Kept::of(&entry), scores));
        }
    }
    all
}

/// The same command again finishes it.
fn finishes(place: &Path, text: &Text, wanted: &All, what: &str, gaps: bool) {
    let told = ablate(place, text).unwrap_or_else(|e| panic!("{what}: cannot be finished: {e}"));
    assert!(!told.iter().any(|t| t.contains("failed") || t.contains("cannot be scored")), "{what}: {told:?}");
    let mut now = kept(place);
    assert!(now.keys().eq(wanted.keys()), "{what}");
    for (run, (wanted, scores)) in wanted {
        let (kept, kept_scores) = now.get_mut(run).unwrap();
        if gaps {
            kept.metrics.clone_from(&wanted.metrics);
            kept.events.clone_from(&wanted.events);
        }
        if let Some(difference) = wanted.differs(kept) {
            panic!("{what}: {run}: {difference}");
        }
        assert_eq!(kept_scores, scores, "{what}: {run}");
    }
    assert!(place.join("ablation/report.html").is_file());
}

/// What the uninterrupted ablation kept.
fn reference(text: &Text) -> All {
    let place = in_memory();
    assert_eq!(ablate(place.path(), text).unwrap(), Vec::<String>::new());
    let wanted = kept(place.path());
    assert_eq!(wanted.len(), 4, "two runs, each with its autoencoder: {:?}", wanted.keys());
    assert!(wanted.values().all(|(_, scores)| scores.len() == 1));
    wanted
}

/// Lets operations fail, `most` of each kind; how many there are, and how many cases were tried.
fn fails(most: u64) -> (u64, u64) {
    let text = Text::new();
    let wanted = reference(&text);
    let (_, Seen { ops, .. }) = with(Plan::count(), || ablate(in_memory().path(), &text));
    let stride = ops.div_ceil(most).max(1);
    let mut tried = 0;
    for (kind, (way, lasting)) in
        [(Way::Full, false), (Way::Short, true), (Way::Broken, true)].into_iter().enumerate()
    {
        for at in (0..ops).filter(|at| at % stride == (kind as u64 * 3) % stride) {
            let place = in_memory();
            let (told, _) = with(Plan::fail(Fault { at, way, lasting }), || ablate(place.path(), &text));
            let gaps = told.is_ok_and(|told| told.iter().any(|t| t.contains("cannot write")));
            let what = format!("operation {at} of {ops} {way:?}, lasting: {lasting}");
            finishes(place.path(), &text, &wanted, &what, gaps);
            tried += 1;
        }
    }
    (ops, tried)
}

/// All that lies below a folder, in a number.
fn print(folder: &Path, into: &mut impl Hasher) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        path.file_name().hash(into);
        if path.is_dir() { print(&path, into) } else { fs::read(&path).unwrap().hash(into) }
    }
    // The folder ends here.
    u64::MAX.hash(into);
}

/// Cuts the power after operations, `most` of each kind, each thing that the disk may hold then once; how many
/// operations there are, and how many cases were tried.
fn power_cuts(most: u64) -> (u64, u64) {
    let text = Text::new();
    let wanted = reference(&text);
    let place = in_memory();
    let mut platter = Platter::of(place.path()).unwrap();
    let (told, seen) = with(Plan::record(), || ablate(place.path(), &text));
    told.unwrap();
    let stride = seen.ops.div_ceil(most).max(1);
    let after = in_memory();
    let mut known = HashSet::new();
    for n in 0..=seen.ops {
        for (kind, cut) in [Cut::Kill, Cut::Lost, Cut::NamesOnly, Cut::Some(n)].into_iter().enumerate() {
            if n % stride == (kind as u64 * 5) % stride {
                let place = after.path().join("place");
                platter.after(cut, &place).unwrap();
                let mut hasher = DefaultHasher::new();
                print(&place, &mut hasher);
                if known.insert(hasher.finish()) {
                    let what = format!("{cut:?} after {n} of {} operations", seen.ops);
                    finishes(&place, &text, &wanted, &what, false);
                }
            }
        }
        if let Some(op) = seen.record.get(usize::try_from(n).unwrap()) {
            platter.follow(op);
        }
    }
    (seen.ops, known.len() as u64)
}

#[test]
fn an_ablation_survives_some_faults() {
    fails(3);
}

#[test]
fn an_ablation_survives_some_power_cuts() {
    power_cuts(3);
}

#[test]
#[ignore = "every operation: minutes"]
fn an_ablation_survives_every_fault() {
    let (ops, tried) = fails(u64::MAX);
    println!("ablation: {ops} operations, each failed in 3 ways: {tried} finished");
}

#[test]
#[ignore = "every operation: minutes"]
fn an_ablation_survives_every_power_cut() {
    let (ops, tried) = power_cuts(u64::MAX);
    println!(
        "ablation: the power cut after each of {ops} operations in 4 ways: {tried} different disks, finished"
    );
}
