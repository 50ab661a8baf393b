//! Every crate can be published: its package holds what its sources take in, and says what a registry asks for.

use std::path::{Component, Path, PathBuf};

use crate::crates;

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Whether a manifest keeps its crate at home.
fn stays_here(manifest: &str) -> bool {
    manifest.lines().any(|line| line == "publish = false")
}

/// Sources below a folder.
fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for path in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

/// Paths that a source takes in, as it writes them; of a path that is put together, the beginning.
fn included(source: &str) -> Vec<&str> {
    let after = |word: &'static str| source.split(word).skip(1);
    let parts = after("include_str!(").chain(after("include_bytes!("));
    parts.filter_map(|part| part.split('"').nth(1)).collect()
}

/// Where a path leads by its words alone: a link inside a crate counts as inside.
fn straight(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}

#[test]
fn a_package_holds_what_its_sources_take_in() {
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for folder in crates().iter().filter(|folder| !stays_here(&read(&folder.join("Cargo.toml")))) {
        let mut files = Vec::new();
        sources(&folder.join("src"), &mut files);
        for file in files {
            let text = read(&file);
            for path in included(&text) {
                seen += 1;
                let target = straight(&file.parent().unwrap().join(path));
                if !target.starts_with(folder) || !target.exists() {
                    wrong.push(format!("{}: {path}", file.display()));
                }
            }
        }
    }
    assert!(seen > 20, "{seen} files are taken in");
    assert!(wrong.is_empty(), "outside of the crate; link the folder into it:\n{}", wrong.join("\n"));
}

#[test]
fn a_manifest_says_what_a_registry_asks_for() {
    let workspace = read(&crates()[0].join("../../Cargo.toml"));
    let mut wrong = Vec::new();
    for folder in crates() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let manifest = read(&folder.join("Cargo.toml"));
        let line = workspace.lines().find(|line| line.starts_with(&format!("{name} = ")));
        let versioned = line.is_some_and(|line| line.contains("version = "));
        if stays_here(&manifest) {
            // Packages leave out what only tests use, if it has no version.
            if versioned {
                wrong.push(format!("{name} stays here: no version in the workspace's table"));
            }
            continue;
        }
        for key in ["description = ", "license.workspace = true", "repository.workspace = true"] {
            if !manifest.lines().any(|line| line.starts_with(key)) {
                wrong.push(format!("{name}: no {key}"));
            }
        }
        if line.is_some() && !versioned {
            wrong.push(format!("{name}: a path alone in the workspace's table"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_source_takes_in_is_found() {
    let source = "const A: &str = include_str!(\"../a.md\"); include_str!(concat!(\"../b/\", $name))";
    assert_eq!(included(source), ["../a.md", "../b/"]);
    assert_eq!(straight(Path::new("/x/src/../../y")), PathBuf::from("/y"));
}
