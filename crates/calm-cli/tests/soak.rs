//! Processes that are killed, at random and while they write, until they have finished all the same: what is there
//! then is what an uninterrupted run leaves, to the byte.
//!
//! Times of the clock are left out (`wall_time`, `train/tokens_per_second`, the seconds in `state.json`); of metrics
//! and events what counts is compared, as readers and TensorBoard see it: lines of steps that were done again are
//! dropped.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]
#![cfg(unix)]

#[path = "cli/house.rs"]
#[allow(dead_code)]
mod house;
#[path = "../../calm-train/tests/common/kept.rs"]
mod kept;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use calm_run::Stage;
use house::House;
use kept::Kept;

const CALM: &str = r"version: 1
seed: 3
data: { source: { path: text.txt }, validation: 0.3 }
tokenizer: { bpe: { vocab_size: 300 } }
model:
  calm:
    chunk_size: 3
    autoencoder: { hidden_size: 32, intermediate_size: 48, latent_size: 8, init_std: 0.1 }
    backbone: { layers: 1, hidden_size: 32, intermediate_size: 48, heads: 2, init_std: 0.1 }
    head: { energy: { blocks: 1, noise_size: 8, samples: 2, targets: 2 } }
train:
  autoencoder: { steps: 60, batch_rows: 4, context: 32, learning_rate: 5e-3, warmup_steps: 5, log_every: 1, eval_every: 10, checkpoint_every: 4 }
  lm: { steps: 60, batch_rows: 4, context: 32, learning_rate: 5e-3, warmup_steps: 5, log_every: 1, eval_every: 10, checkpoint_every: 4 }
eval: { training_documents: 2, documents: 4, chunks_per_document: 24, bootstrap: 20 }
";

const K: &str = r"version: 1
budget: { tokens: 3840 }
seeds: [1]
context_tokens: 96
validation: { points: 2, documents: 2, tokens: 48 }
variants:
  - { name: calm, config: calm.yaml }
grid: { model.calm.chunk_size: [3, 4] }
score: { documents: 4, tokens_per_document: 48, bootstrap: 20, samples: 2, draws: 4, rounds: 0, prompt_tokens: 12 }
";

/// A generator of its own, so that a soak can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % n
    }
}

/// Whether something is being written below a folder, or was when a process was killed.
fn writing(folder: &Path, depth: usize) -> bool {
    fs::read_dir(folder).into_iter().flatten().flatten().any(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        name.ends_with(".partial")
            || name.ends_with(".gone")
            || (depth > 0 && entry.file_type().is_ok_and(|t| t.is_dir()) && writing(&entry.path(), depth - 1))
    })
}

/// Processes that a process has started.
fn children(of: u32) -> Vec<u32> {
    let stat = |pid: u32| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    let parent = |pid: u32| stat(pid)?.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok();
    let all = fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
    all.filter(|pid| parent(*pid) == Some(of)).collect()
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
}

/// Kills a process and waits until it and those it started are gone.
fn end(child: &mut Child) {
    let below = children(child.id());
    kill(child.id());
    child.wait().unwrap();
    // They end with their parent; a machine that cannot do that leaves it to us.
    let begun = Instant::now();
    for pid in below {
        let there = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z "));
        while there() {
            if begun.elapsed() > Duration::from_millis(500) {
                kill(pid);
            }
            assert!(begun.elapsed() < Duration::from_secs(20), "process {pid} does not end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Starts a command again and again, and kills it, until it ends by itself. Returns how often it was killed, and how
/// often of these while it wrote.
fn chain(
    house: &House,
    args: &[&str],
    out: &Path,
    length: Duration,
    most: u64,
    random: &mut Random,
) -> (u64, u64) {
    let (mut kills, mut at_writes) = (0, 0);
    loop {
        let log = fs::File::create(house.path("log")).unwrap();
        let mut command = house.command(args);
        let mut child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let begun = Instant::now();
        let until = Duration::from_micros(random.below(length.as_micros() as u64 * 12 / 10));
        // Half of them when the next write after that time is under way.
        let at_write = random.below(2) == 0;
        let ended = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            let due = begun.elapsed() > until;
            if kills < most && due && (!at_write || writing(out, 3)) {
                break None;
            }
            assert!(begun.elapsed() < Duration::from_secs(120), "it hangs");
            std::thread::sleep(Duration::from_micros(300));
        };
        let Some(status) = ended else {
            if at_write {
                std::thread::sleep(Duration::from_micros(random.below(2000)));
            }
            end(&mut child);
            kills += 1;
            at_writes += u64::from(at_write);
            continue;
        };
        let said = fs::read_to_string(house.path("log")).unwrap();
        assert!(status.success() && !said.contains("panicked"), "{status} after {kills} kills\n{said}");
        return (kills, at_writes);
    }
}

/// What is left in a folder of checkpoints besides them.
fn leftovers(run: &Path) -> Vec<PathBuf> {
    let folders = Stage::ALL.map(|stage| run.join(stage.name())).into_iter().chain([run.to_owned()]);
    let entries = folders.flat_map(|f| fs::read_dir(f).into_iter().flatten().flatten().map(|e| e.path()));
    let whole = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        ![".partial", ".gone", ".replaced", ".damaged"].iter().any(|ending| name.ends_with(ending))
            && (!name.starts_with("step-") || path.join("state.json").is_file())
    };
    entries.filter(|path| !whole(path)).collect()
}

fn train(kills: u64, seed: u64) {
    let house = House::new();
    house.write("calm.yaml", CALM);
    let args = |out: &str| {
        ["train", "--config", "calm.yaml", "--quiet", "--threads", "1", "--resume", "--out", out]
            .map(str::to_owned)
    };
    let reference = args("runs/whole");
    let begun = Instant::now();
    house.ok(&reference.each_ref().map(String::as_str));
    let length = begun.elapsed();
    let wanted = Kept::of(&house.path("runs/whole"));
    assert!(wanted.metrics.len() > 120 && wanted.results.contains("brierlm"));
    let mut random = Random(seed);
    let (mut done, mut at_writes, mut chains) = (0, 0, 0);
    while done < kills {
        let name = format!("runs/chain-{chains}");
        let args = args(&name);
        let (k, w) = chain(
            &house,
            &args.each_ref().map(String::as_str),
            &house.path(&name),
            length,
            kills - done,
            &mut random,
        );
        (done, at_writes, chains) = (done + k, at_writes + w, chains + 1);
        let run = house.path(&name);
        if let Some(difference) = wanted.differs(&Kept::of(&run)) {
            panic!("{name} (seed {seed}) after {k} kills: {difference}");
        }
        assert_eq!(leftovers(&run), Vec::<PathBuf>::new(), "{name} after {k} kills");
        fs::remove_dir_all(run).unwrap();
    }
    println!(
        "train: {done} kills, {at_writes} of them at writes, {chains} chains, each equal to the uninterrupted run"
    );
}

fn ablate(kills: u64, seed: u64) {
    let house = House::new();
    house.write("calm.yaml", CALM);
    house.write("k.yaml", K);
    let args = |out: &str| {
        ["ablate", "--config", "k.yaml", "--quiet", "--threads", "1", "--out", out].map(str::to_owned)
    };
    let begun = Instant::now();
    house.ok(&args("runs/whole").each_ref().map(String::as_str));
    let length = begun.elapsed();
    let runs = |of: &str| {
        let mut found = Vec::new();
        for folder in [of.to_owned(), format!("{of}/autoencoders")] {
            for entry in fs::read_dir(house.path(&folder)).unwrap().flatten() {
                if entry.path().join("config.yaml").is_file() {
                    found.push(entry.path());
                }
            }
        }
        found.sort();
        found
    };
    let wanted: Vec<Kept> = runs("runs/whole").iter().map(|run| Kept::of(run)).collect();
    assert_eq!(wanted.len(), 4, "two runs with an autoencoder each");
    let mut random = Random(seed);
    let (mut done, mut at_writes, mut chains) = (0, 0, 0);
    while done < kills {
        let name = format!("runs/chain-{chains}");
        let args = args(&name);
        let (k, w) = chain(
            &house,
            &args.each_ref().map(String::as_str),
            &house.path(&name),
            length,
            kills - done,
            &mut random,
        );
        (done, at_writes, chains) = (done + k, at_writes + w, chains + 1);
        let found = runs(&name);
        assert_eq!(found.len(), wanted.len());
        for (run, wanted) in found.iter().zip(&wanted) {
            if let Some(difference) = wanted.differs(&Kept::of(run)) {
                panic!("{} (seed {seed}) after {k} kills: {difference}", run.display());
            }
            assert_eq!(leftovers(run), Vec::<PathBuf>::new(), "{name} after {k} kills");
        }
        assert!(house.path(&name).join("report.html").is_file());
        fs::remove_dir_all(house.path(&name)).unwrap();
    }
    println!(
        "ablate: {done} kills, {at_writes} of them at writes, {chains} chains, each equal to the uninterrupted one"
    );
}

#[test]
fn training_survives_being_killed() {
    train(13, 0x5eed);
}

#[test]
fn an_ablation_survives_being_killed() {
    ablate(7, 0x5eed);
}

/// `CALM_SOAK_ROUNDS=3..5` runs a part of it.
#[test]
#[ignore = "a thousand kills: half an hour"]
fn a_thousand_kills() {
    let asked = std::env::var("CALM_SOAK_ROUNDS").unwrap_or_default();
    let (from, to) = asked.split_once("..").unwrap_or(("0", "20"));
    for round in from.parse::<u64>().unwrap()..to.parse().unwrap() {
        train(38, 0xa11 + round);
        ablate(12, 0xb0b + round);
    }
}
