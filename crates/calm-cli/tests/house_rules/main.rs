//! Rules of the house that a machine can keep: they read the sources of all crates.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

mod circles;
mod graph;
mod tokens;

use std::path::{Path, PathBuf};

/// The folders of all crates of the workspace.
fn crates() -> Vec<PathBuf> {
    let all = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found: Vec<PathBuf> = std::fs::read_dir(all)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|folder| folder.join("Cargo.toml").is_file())
        .collect();
    found.sort();
    assert!(found.len() >= 10, "{found:?}");
    found
}
