//! A folder with a text, tiny models of every family, and commands run there.

#![allow(dead_code, reason = "without MPI and NCCL only a part is used")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use calm_parallel::{World, meeting};

/// What else decides about many processes here: none of this test's own surroundings counts.
const VARIABLES: [&str; 5] =
    ["CALM_WAIT_SECONDS", "CALM_DEVICE", "RAYON_NUM_THREADS", meeting::POINT, meeting::TOKEN];

const BACKBONE: &str = "backbone: { layers: 1, hidden_size: 8, intermediate_size: 12, heads: 2 }";
const STAGE: &str = "{ steps: 4, batch_rows: 8, context: 8, learning_rate: 1e-2, reduction: fixed, eval_every: 2, \
                     checkpoint_every: 2, log_every: 1 }";

/// A working folder.
pub struct House(tempfile::TempDir);

/// What a command did.
#[derive(Debug)]
pub struct Done {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl From<Output> for Done {
    fn from(o: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let done = Self { code: o.status.code().unwrap_or(-1), out: text(&o.stdout), err: text(&o.stderr) };
        assert!(!done.err.contains("panicked"), "{done:?}");
        done
    }
}

impl House {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let words = ["ana", "bolo", "cedi", "du", "elf", "fugo", "gi", "halm"];
        let (mut state, mut text) = (7u64, String::new());
        for sentence in 0..200 {
            for _ in 0..6 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                write!(text, "{} ", words[(state >> 40) as usize % words.len()]).unwrap();
            }
            text.push_str(if sentence % 5 == 4 { ".\n\n" } else { ".\n" });
        }
        fs::write(dir.path().join("text.txt"), text).unwrap();
        for (name, model) in models() {
            let yaml = format!(
                "version: 1\ndata: {{ source: {{ path: text.txt }}, validation: 0.2 }}\ntokenizer: {{ chars: {{}} }}\n{model}\
                 eval: {{ training_documents: 1, documents: 2, chunks_per_document: 6, bootstrap: 5 }}\n"
            );
            fs::write(dir.path().join(format!("{name}.yaml")), yaml).unwrap();
        }
        Self(dir)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `train` of the baseline into `run`, with more arguments.
    pub fn train<'a>(&self, more: &[&'a str]) -> Vec<&'a str> {
        [&["train", "--config", "baseline.yaml", "--out", "run", "--cache", "cache", "--device", "cpu"], more]
            .concat()
    }

    /// A command here, free of what launchers leave.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(self.0.path());
        World::variables().chain(VARIABLES).for_each(|name| {
            command.env_remove(name);
        });
        command
    }

    /// Runs this program as one process.
    pub fn calm(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Done {
        let mut command = self.command(env!("CARGO_BIN_EXE_calm"));
        command.args(arguments).args(["--threads", "1"]).envs(variables.iter().copied());
        command.output().unwrap().into()
    }

    /// When a run has its first checkpoint; its processes are in the middle of its steps.
    pub fn saved(&self, run: &str, children: &mut Vec<Child>) {
        let since = Instant::now();
        while latest(&self.path(run)).is_none() {
            let ended = children.iter_mut().any(|child| child.try_wait().unwrap().is_some());
            if ended || since.elapsed() > Duration::from_mins(1) {
                children.iter().for_each(|child| signal("KILL", &child.id().to_string()));
                let done: Vec<Done> =
                    children.drain(..).map(|child| child.wait_with_output().unwrap().into()).collect();
                panic!("no checkpoint: {done:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// A model of every family, by name.
pub fn models() -> [(&'static str, String); 5] {
    let other = |name: &'static str, chunk: &str| {
        (name, format!("model:\n  {name}:\n    {chunk}{BACKBONE}\ntrain:\n  lm: {STAGE}\n"))
    };
    let calm = format!(
        "model:\n  calm:\n    chunk_size: 2\n    autoencoder: {{ hidden_size: 8, intermediate_size: 12, latent_size: 4 }}\n    \
         {BACKBONE}\n    head: {{ energy: {{ blocks: 1, noise_size: 4, samples: 2, targets: 2 }} }}\ntrain:\n  \
         autoencoder: {STAGE}\n  lm: {STAGE}\n"
    );
    let chunk = "chunk_size: 2\n    ";
    let concepts = format!(
        "model:\n  dlcm:\n    tokens: {{ layers: 2, hidden_size: 8, intermediate_size: 12, heads: 2 }}\n    \
         concepts: {{ layers: 1, hidden_size: 12, intermediate_size: 16, heads: 2 }}\n    \
         boundaries: {{ by: {{ learnt: {{ sharpness: 2.0 }} }}, ratio: 2 }}\ntrain:\n  lm: {STAGE}\n"
    );
    [
        other("baseline", ""),
        other("patch", chunk),
        other("multi-token", chunk),
        ("calm", calm),
        ("dlcm", concepts),
    ]
}

/// The latest checkpoint of a run's language model.
pub fn latest(run: &Path) -> Option<u64> {
    let all = fs::read_dir(run.join("lm")).into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.strip_prefix("step-")?.parse().ok()).max()
}

/// Sends a process a signal.
pub fn signal(name: &str, process: &str) {
    assert!(Command::new("kill").args([&format!("-{name}"), process]).status().unwrap().success());
}

/// The weights and optimisers of a run, by file.
pub fn weights(run: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    for stage in ["autoencoder", "lm"] {
        for step in fs::read_dir(run.join(stage)).into_iter().flatten().flatten() {
            for file in ["model.safetensors", "optimizer.safetensors"] {
                let path = step.path().join(file);
                found.insert(path.strip_prefix(run).unwrap().display().to_string(), fs::read(&path).unwrap());
            }
        }
    }
    found
}

/// Lines that say what went wrong.
pub fn messages(done: &Done) -> usize {
    done.err.lines().filter(|line| line.starts_with("error:")).count()
}

/// A child of a process with this in its environment.
pub fn child_with(parent: u32, name: &str) -> String {
    let parent = format!("\nPPid:\t{parent}\n");
    let mut found = fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let status = fs::read_to_string(entry.path().join("status")).ok()?;
        let environ = fs::read(entry.path().join("environ")).ok()?;
        let is = status.contains(&parent) && environ.split(|b| *b == 0).any(|one| one == name.as_bytes());
        is.then(|| entry.file_name().into_string().unwrap())
    });
    found.next().unwrap_or_else(|| panic!("no process with {name}"))
}
