//! Every loader against mutated files: no panic, no hang, no more memory than the file explains.
//!
//! ```console
//! $ cargo test --release -p calm-cli --test fuzz                        # some thousands
//! $ cargo test --release -p calm-cli --test fuzz -- --ignored           # a million
//! $ CALM_FUZZ=jsonl:4711 cargo test --release -p calm-cli --test fuzz   # one case again
//! $ CALM_FUZZ=jsonl CALM_FUZZ_TIMES=9 cargo test --release -p calm-cli --test fuzz -- --ignored   # one target
//! ```
//! Inputs are small valid files with a few changes (`mutate.rs`), each a function of the target and the case's number,
//! so that a failure names what repeats it. No nightly compiler and no corpus on disk are needed. What was found once
//! stands in `SEEDS` of its target or in a test beside the loader.

#![allow(clippy::unwrap_used)]

mod mutate;
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mutate::{Random, mutated};
use targets::{Target, targets};

/// Counts what is held and the most that was.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Bytes that a loader may hold for an input of so many.
fn allowed(input: usize) -> usize {
    64 * input + (64 << 20)
}

/// A case that takes longer hangs. The machine may be busy with other things.
const HANGS: Duration = Duration::from_secs(20);

/// One input of a target; what is wrong with how it was taken.
fn case(target: &Target, number: u64, folder: &Path) -> Result<(), String> {
    // What is held is counted in the whole process: one case at a time.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut random = Random::new(target.name, number);
    let input = mutated(&target.seeds, &mut random);
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let started = Instant::now();
    let taken = catch_unwind(AssertUnwindSafe(|| (target.take)(folder, &input)));
    let held = MOST.load(Relaxed).saturating_sub(before);
    let problem = match taken {
        Err(_) => Some("a panic".to_owned()),
        Ok(()) if held > allowed(input.len()) => Some(format!("{held} bytes held for {}", input.len())),
        Ok(()) if started.elapsed() > HANGS => Some(format!("{:?}", started.elapsed())),
        Ok(()) => None,
    };
    problem.map_or(Ok(()), |problem| {
        Err(format!(
            "{problem}; again with CALM_FUZZ={}:{number}; the input is {:?}",
            target.name,
            Short(&input)
        ))
    })
}

/// The beginning of an input.
struct Short<'a>(&'a [u8]);

impl std::fmt::Debug for Short<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes \"{}\"", self.0.len(), self.0[..self.0.len().min(400)].escape_ascii())
    }
}

/// A folder in memory where there is one: a disk takes forty times as long as the loaders.
fn scratch() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap()
}

/// Runs so many inputs of each target, from its first case on.
fn campaign(inputs: impl Fn(&Target) -> u64) {
    let folder = scratch();
    let only = std::env::var("CALM_FUZZ").ok().filter(|only| !only.is_empty());
    let mut wrong = Vec::new();
    let mut all = 0;
    for target in targets() {
        let started = Instant::now();
        let folder = folder.path().join(target.name);
        std::fs::create_dir_all(&folder).unwrap();
        (target.prepare)(&folder);
        let (name, number) = match only.as_deref() {
            Some(only) => only.split_once(':').map_or((only, None), |(name, number)| (name, Some(number))),
            None => (target.name, None),
        };
        if name != target.name {
            continue;
        }
        let one = number.is_some();
        let numbers = number.map_or(0..inputs(&target), |number| number.parse().unwrap()..u64::MAX);
        let mut done = 0;
        for number in numbers {
            done += 1;
            if let Err(problem) = case(&target, number, &folder) {
                wrong.push(format!("{}: {problem}", target.name));
            }
            if one || wrong.len() >= 20 {
                break;
            }
        }
        all += done;
        println!("{:<12} {done:>8} inputs in {:>7.1} s", target.name, started.elapsed().as_secs_f64());
    }
    println!("{all} inputs");
    assert!(wrong.is_empty(), "{} inputs went wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn some_thousand_inputs_are_taken_or_refused() {
    campaign(|target| (target.million / 150).max(40));
}

/// 1,084,000 inputs take a minute; `CALM_FUZZ_TIMES=20` gives twenty times as many.
#[test]
#[ignore = "a million inputs take a minute, where files lie in memory"]
fn a_million_inputs_are_taken_or_refused() {
    let times = std::env::var("CALM_FUZZ_TIMES").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    campaign(|target| target.million * times);
}

#[test]
fn what_must_not_happen_is_noticed() {
    let folder = scratch();
    let with = |take: fn(&[u8])| Target {
        name: "none",
        million: 0,
        seeds: vec![b"x".to_vec()],
        prepare: Box::new(|_| ()),
        take: Box::new(move |_, input| take(input)),
        valid: Box::new(|_, _| true),
    };
    assert!(case(&with(|_| ()), 1, folder.path()).is_ok());
    let panics = case(&with(|_| panic!("on purpose")), 1, folder.path()).unwrap_err();
    assert!(panics.contains("a panic") && panics.contains("CALM_FUZZ=none:1"), "{panics}");
    let greedy = with(|input| assert_eq!(vec![1u8; 65 * input.len().max(1 << 20)][0], 1));
    let held = case(&greedy, 1, folder.path()).unwrap_err();
    assert!(held.contains("bytes held"), "{held}");
}

#[test]
fn the_targets_make_a_million() {
    assert!(targets().iter().map(|t| t.million).sum::<u64>() >= 1_000_000);
}

#[test]
fn the_valid_files_that_mutations_start_from_are_taken() {
    let folder = scratch();
    for target in targets() {
        let folder = folder.path().join(target.name);
        std::fs::create_dir_all(&folder).unwrap();
        (target.prepare)(&folder);
        for seed in &target.seeds {
            assert!((target.valid)(&folder, seed), "{}: {:?}", target.name, Short(seed));
        }
    }
}
