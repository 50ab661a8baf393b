//! Folders with a text and tiny trained models, and commands run in them.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::LazyLock;

/// A CALM of 3 tokens a chunk on a byte-pair vocabulary, trained in a second or two.
pub const CALM: &str = r"version: 1
description: a tiny CALM
seed: 3
data: { source: { path: text.txt }, validation: 0.3 }
tokenizer: { bpe: { vocab_size: 300 } }
model:
  calm:
    chunk_size: 3
    autoencoder: { hidden_size: 48, intermediate_size: 64, latent_size: 24, init: { normal: 0.1 } }
    backbone: { layers: 2, hidden_size: 48, intermediate_size: 64, heads: 2, init: { normal: 0.1 } }
    head: { energy: { blocks: 1, noise_size: 8, samples: 4, targets: 8 } }
train:
  autoencoder: { steps: 60, batch_rows: 4, context: 32, learning_rate: 5e-3, warmup_steps: 5, log_every: 1 }
  lm: { steps: 20, batch_rows: 4, context: 32, learning_rate: 5e-3, warmup_steps: 5, eval_every: 10, log_every: 1 }
eval: { training_documents: 2, documents: 6, chunks_per_document: 24, bootstrap: 50 }
";

/// A baseline on characters.
pub const BASELINE: &str = r"version: 1
data: { source: { path: text.txt }, validation: 0.3 }
tokenizer: { chars: {} }
model:
  baseline:
    backbone: { layers: 2, hidden_size: 48, intermediate_size: 64, heads: 2, init: { normal: 0.1 } }
train:
  lm: { steps: 20, batch_rows: 4, context: 64, learning_rate: 5e-3, warmup_steps: 5, log_every: 1 }
eval: { training_documents: 2, documents: 6, chunks_per_document: null, bootstrap: 50 }
";

/// About 80 kB of sentences of made-up words, some of them not ASCII.
pub fn text(seed: u64) -> String {
    let words = ["ana", "bolo", "cédille", "du", "elf", "fugo", "gi", "halm", "日本", "jot", "kel", "lumo"];
    let mut state = seed;
    let mut out = String::new();
    for sentence in 0..1500 {
        for _ in 0..8 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let _ = write!(out, "{} ", words[(state >> 40) as usize % words.len()]);
        }
        out.push_str(if sentence % 5 == 4 { ".\n\n" } else { ".\n" });
    }
    out
}

/// A working folder.
pub struct House {
    dir: PathBuf,
    _guard: Option<tempfile::TempDir>,
}

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Done {
    fn from(o: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("the output is UTF-8");
        let code = o.status.code().expect("the process was not killed");
        let done = Self { code, out: text(o.stdout), err: text(o.stderr) };
        for sign in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
            assert!(!done.err.contains(sign), "{}", done.err);
        }
        done
    }
}

impl House {
    /// A new folder with `text.txt`, `calm.yaml` and `baseline.yaml`.
    pub fn new() -> Self {
        let guard = tempfile::tempdir().unwrap();
        let house = Self { dir: guard.path().to_owned(), _guard: Some(guard) };
        house.furnish();
        house
    }

    fn furnish(&self) {
        self.write("text.txt", text(7));
        self.write("calm.yaml", CALM);
        self.write("baseline.yaml", BASELINE);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// The binary in this folder, with a cache of its own.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_calm"));
        command.args(args).current_dir(&self.dir).env("CALM_CACHE", self.path("cache"));
        // A machine with a GPU answers like one without; what is about devices names its own.
        command.env("CALM_DEVICE", "cpu");
        for name in ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE", "RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            command.env_remove(name);
        }
        command.stdin(Stdio::null());
        command
    }

    pub fn run(&self, args: &[&str]) -> Done {
        self.command(args).output().unwrap().into()
    }

    /// A command that must succeed; its stdout.
    pub fn ok(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, 0, "{args:?}\n{}", done.err);
        done.out
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let out = self.ok(args);
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
    }

    /// A command that must fail with exit code 1: its error, from `error:` on. Nothing may be on stdout.
    pub fn error(&self, args: &[&str]) -> String {
        let done = self.run(args);
        assert_eq!(done.code, 1, "{args:?}\nstdout: {}\nstderr: {}", done.out, done.err);
        assert_eq!(done.out, "", "{args:?}");
        let at = done.err.find("error: ").unwrap_or_else(|| panic!("{args:?}: {}", done.err));
        assert_eq!(done.err.matches("error: ").count(), 1, "one error: {}", done.err);
        // A broken rule of a configuration says itself what must hold.
        let remedy = done.err.contains("hint: ") || done.err.contains(" has a problem");
        assert!(remedy, "{args:?}: no remedy in {}", done.err);
        done.err[at..].to_owned()
    }

    /// A command that must fail, and whose error must say all of this.
    pub fn refuses(&self, args: &[&str], all: &[&str]) {
        let error = self.error(args);
        for part in all {
            assert!(error.contains(part), "{args:?}: no `{part}` in\n{error}");
        }
    }

    /// The whole metrics, as JSON.
    pub fn metrics(&self, run: &str) -> Vec<serde_json::Value> {
        let text = self.read(&format!("{run}/metrics.jsonl"));
        text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }

    /// A copy of a folder, inside of this house.
    pub fn copy_folder(&self, from: &Path, name: &str) {
        copy(from, &self.path(name));
    }

    /// A copy of a run of this house, to be spoilt.
    pub fn copy_run(&self, from: &str, to: &House, name: &str) {
        copy(&self.path(from), &to.path(name));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Two finished runs that all tests may read: `runs/baseline`, then `runs/calm`, the latest.
pub struct Trained {
    pub house: House,
    pub calm: Done,
    pub baseline: Done,
}

pub static TRAINED: LazyLock<Trained> = LazyLock::new(|| {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("calm-cli-runs");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let house = House { dir, _guard: None };
    house.furnish();
    let baseline = house.run(&["train", "--config", "baseline.yaml"]);
    let calm = house.run(&["train", "--config", "calm.yaml"]);
    Trained { house, calm, baseline }
});

/// The house with two finished runs.
pub fn trained() -> &'static House {
    &TRAINED.house
}
