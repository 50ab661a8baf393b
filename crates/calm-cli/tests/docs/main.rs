//! What README, book and the other pages promise must be there: links, headings, paths, commands, options, settings,
//! and the picture of the rooms.
//!
//! Needs no network: links to other hosts are not followed.

#![allow(clippy::unwrap_used, reason = "helpers of tests may panic")]

mod commands;
mod links;
mod markdown;
mod rooms;

use std::path::{Path, PathBuf};

use markdown::Page;

/// The project's folder.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap()
}

/// Files with this extension in a folder, by name.
fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(root().join(folder))
        .unwrap_or_else(|e| panic!("{folder}: {e}"))
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == extension))
        .collect();
    found.sort();
    found
}

/// Pages that speak of today: all paths and commands in them must be there.
fn living() -> Vec<Page> {
    let mut paths: Vec<PathBuf> =
        ["README.md", "CONTRIBUTING.md", "SECURITY.md"].map(|name| root().join(name)).into();
    paths.extend(files("docs/src", "md"));
    for folder in ["crates", "datasets", "eval", "kernels"] {
        readmes(&root().join(folder), &mut paths);
    }
    let pages: Vec<Page> = paths.iter().map(|path| Page::read(path)).collect();
    assert!(pages.len() > 25, "only {} pages were found", pages.len());
    pages
}

/// Pages that are not rewritten when something moves: only their links are held.
fn dated() -> Vec<Page> {
    let mut paths = vec![root().join("CHANGELOG.md")];
    paths.extend(files("eval/records", "md"));
    paths.iter().map(|path| Page::read(path)).collect()
}

/// READMEs below a folder.
fn readmes(folder: &Path, found: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    // A link leads to a page that is read where it stands.
    for path in entries.into_iter().filter(|path| !path.is_symlink()) {
        if path.is_dir() {
            readmes(&path, found);
        } else if path.file_name().is_some_and(|name| name == "README.md") {
            found.push(path);
        }
    }
}

/// Fails with all that was found.
fn none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}
