//! The tutorial and the recipes of the book, walked through: every command is typed as it stands there, in one folder, in the
//! order of the pages, and what it prints is held against what the page shows.
//!
//! It takes minutes, so it runs on request:
//! `cargo test --release --workspace --test walkthrough -- --ignored --nocapture`.
//!
//! How a page says what is what:
//!
//! - A block after a line that ends in a file's name in code and a colon is that file.
//! - `console`: commands after `$ `, each with its output. Words must be the same, in the same order; numbers and units may differ,
//!   since times do, and since less is trained here than on the page. A line of `...` stands for any lines.
//! - `console,exact`: to the character.
//! - `console,said`: what a model says is another text after another training, and is not compared.
//! - `console,not-run`: needs a compiler, a browser or a GPU. It is parsed with all others (`tests/docs`).
//!
//! What is made smaller is listed in [`SMALLER`], and said on the pages.
#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

#[path = "../docs/markdown.rs"]
mod markdown;
mod shown;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use markdown::Page;
use shown::{Step, steps};

/// The project's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// What is written otherwise before it is run: less is trained, nothing else. Each must be there.
const SMALLER: &[(&str, &str, &str)] = &[
    ("tutorial", "steps: 200", "steps: 40"),
    ("tutorial", "steps: 1500", "steps: 60"),
    ("tutorial", "warmup_steps: 100", "warmup_steps: 10"),
    ("tutorial", "eval_every: 500", "eval_every: 30"),
    ("tutorial", "checkpoint_every: 500", "checkpoint_every: 30"),
    ("tutorial", "tokens: 3e5", "tokens: 3e4"),
    ("recipes", "train.lm.steps=300", "train.lm.steps=30"),
    ("recipes", "train.lm.steps=1800", "train.lm.steps=80"),
    ("recipes", "train.lm.steps=200", "train.lm.steps=100"),
    ("recipes", "train.lm.steps=600", "train.lm.steps=60"),
];

/// A page of the book as it is run.
fn page(name: &str) -> Page {
    let path: PathBuf = root().join("docs/src").join(name).with_extension("md");
    let mut page = Page::read(&path);
    for (_, from, to) in SMALLER.iter().filter(|(of, ..)| *of == name) {
        let lines = page.blocks.iter_mut().flat_map(|block| &mut block.lines);
        let found: Vec<_> = lines.filter(|line| line.text.contains(from)).collect();
        assert!(!found.is_empty(), "{name}: `{from}` is not there any more");
        for line in found {
            line.text = line.text.replace(from, to);
        }
    }
    page
}

/// Does what a page says; gives what was wrong.
fn walk(page: &Page, folder: &Path) -> Vec<String> {
    let mut problems = Vec::new();
    for step in steps(page) {
        match step {
            Step::File { name, text } => std::fs::write(folder.join(name), text).unwrap(),
            Step::Typed { place, command, shown } => {
                let begin = Instant::now();
                let (code, said) = typed(&command, folder);
                eprintln!("{:6.1} s  {command}", begin.elapsed().as_secs_f64());
                if code != Some(0) {
                    problems.push(format!("{place}: {command}\nended with {code:?}:\n{said}"));
                    // What follows rests on it.
                    return problems;
                }
                if let Err(why) = shown.holds(&said) {
                    problems.push(format!("{place}: {command}\n{why}\nsaid:\n{said}"));
                }
            }
        }
    }
    problems
}

/// Types a command into a shell: its exit code, and both its streams as a terminal would show them.
fn typed(command: &str, folder: &Path) -> (Option<i32>, String) {
    let programs = Path::new(env!("CARGO_BIN_EXE_calm")).parent().unwrap();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let out = Command::new("sh")
        .args(["-c", &format!("exec 2>&1\n{command}")])
        .current_dir(folder)
        .env("PATH", path)
        .env("CALM_DEVICE", "cpu")
        .env_remove("CALM_CACHE")
        .output()
        .unwrap();
    (out.status.code(), String::from_utf8_lossy(&out.stdout).into_owned())
}

#[test]
#[ignore = "takes minutes; run by name"]
fn tutorial_and_recipes_do_what_they_show() {
    let folder = tempfile::tempdir().unwrap();
    let mut problems = Vec::new();
    for name in ["tutorial", "recipes"] {
        problems.extend(walk(&page(name), folder.path()));
    }
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n\n"));
}

#[test]
fn what_is_made_smaller_is_still_on_the_pages() {
    for name in ["tutorial", "recipes"] {
        let steps = steps(&page(name));
        assert!(steps.len() > 10, "{name}: {} steps", steps.len());
    }
}
