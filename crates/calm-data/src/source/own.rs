//! What this program writes: none of it is text to learn from, and a folder of text may well hold it.
//!
//! A run that trains on the folder it lies in would read its own configuration, and read something else when it is
//! resumed. So folders of runs, ablations, reports and caches below a source are left out and counted. The names are
//! those that the rooms above give their files; a test of the binary holds the two together.

use std::fs;
use std::path::Path;

/// Files and folders of a run.
const RUN: &[&str] = &[
    "config.yaml",
    "run.json",
    "tokenizer.json",
    "metrics.jsonl",
    "metrics.sum",
    ".lock",
    "tensorboard",
    "autoencoder",
    "lm",
    "reference.json",
    "results.json",
];
/// Files and folders of an ablation.
const ABLATION: &[&str] = &[
    "ablation.yaml",
    "plan.json",
    "machine.json",
    "autoencoders",
    "pilot",
    "report.html",
    "report.csv",
    "study.json",
];
/// Files of a report.
const REPORT: &[&str] = &["report.html", "report.csv", "study.json"];
/// Folders of a cache.
const CACHE: &[&str] = &["tokenizers", "tokens", "sources"];

/// The names in a folder that are this program's outputs; none where it is no folder of a run, an ablation, a report or
/// a cache.
pub(super) fn inside(folder: &Path) -> Vec<&'static str> {
    let file = |name: &str| folder.join(name).is_file();
    let is_run = is_run_config(&folder.join("config.yaml"));
    let is_ablation = file("ablation.yaml") && (file("plan.json") || file(".lock"));
    let kinds = [
        (is_run, RUN),
        (is_ablation, ABLATION),
        (REPORT.iter().all(|name| file(name)), REPORT),
        (is_cache(folder), CACHE),
    ];
    kinds.iter().filter(|(is, _)| *is).flat_map(|(_, names)| names.iter().copied()).collect()
}

/// Whether a folder is a cache: token files lie in folders that are named by a hash.
fn is_cache(folder: &Path) -> bool {
    let hashed = |name: &str| name.len() == 32 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let tokens = fs::read_dir(folder.join("tokens")).into_iter().flatten().flatten();
    folder.join("tokenizers").is_dir() && tokens.into_iter().any(|e| hashed(&e.file_name().to_string_lossy()))
}

/// Whether a file is the resolved configuration of a run, which names every block.
fn is_run_config(path: &Path) -> bool {
    let Ok(text) = fs::read_to_string(path) else { return false };
    let block = |name: &str| text.lines().any(|line| line.strip_prefix(name) == Some(":"));
    // Before it stands its checksum.
    let first = text.lines().find(|line| !line.starts_with('#')).unwrap_or_default();
    first.starts_with("version: ") && ["data", "tokenizer", "model", "train"].into_iter().all(block)
}
