//! Rules of the house that a machine can keep: they read the sources of all crates.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

mod circles;
mod graph;
mod messages;
mod names;
mod packages;
mod remedies;
mod tokens;
mod writers;

use std::path::{Path, PathBuf};

use graph::Graph;

/// The modules of every crate, and of every binary, by the crate's name.
fn graphs() -> Vec<(String, Graph)> {
    let mut graphs = Vec::new();
    for folder in crates() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let roots = ["src/lib.rs", "src/main.rs"].map(|root| folder.join(root));
        graphs
            .extend(roots.iter().filter(|root| root.is_file()).map(|root| (name.clone(), Graph::read(root))));
    }
    graphs
}

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
