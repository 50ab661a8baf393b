//! Links, headings, the book's table of contents, and paths in code spans.

use std::path::{Component, Path, PathBuf};

use crate::markdown::{Found, Page};
use crate::{dated, files, living, none, root};

/// `a/b/../c` as `a/c`.
fn straight(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            part => out.push(part),
        }
    }
    out
}

/// What is wrong with a link of a page.
fn broken(page: &Page, link: &Found) -> Option<String> {
    if ["https://", "http://", "mailto:"].iter().any(|scheme| link.text.starts_with(scheme)) {
        return None;
    }
    let (file, heading) = link.text.split_once('#').unwrap_or((&link.text, ""));
    let place = page.place(link.line);
    let target = match file {
        "" => page.path.clone(),
        file => straight(&page.path.parent()?.join(file)),
    };
    if !target.exists() {
        return Some(format!("{place}: links to {}, which is not there", link.text));
    }
    let book = root().join("docs/src");
    if page.path.starts_with(&book) && !target.starts_with(&book) {
        return Some(format!("{place}: {} is outside the book and not among its built pages", link.text));
    }
    if !heading.is_empty() && !Page::read(&target).anchors.iter().any(|a| a == heading) {
        return Some(format!("{place}: {} has no heading #{heading}", target.display()));
    }
    None
}

#[test]
fn every_link_leads_to_a_file_and_a_heading_that_is_there() {
    let mut problems = Vec::new();
    for page in living().iter().chain(&dated()) {
        problems.extend(page.links.iter().filter_map(|link| broken(page, link)));
    }
    none(&problems);
}

#[test]
fn every_page_of_the_book_is_in_its_table_of_contents_once() {
    let summary = Page::read(&root().join("docs/src/SUMMARY.md"));
    let mut listed: Vec<&str> = summary.links.iter().map(|link| link.text.as_str()).collect();
    listed.sort_unstable();
    let pages = files("docs/src", "md");
    let names: Vec<&str> = pages
        .iter()
        .map(|path| path.file_name().unwrap().to_str().unwrap())
        .filter(|name| *name != "SUMMARY.md")
        .collect();
    assert_eq!(listed, names);
}

#[test]
fn whatever_the_book_includes_is_there() {
    let mut problems = Vec::new();
    for page in living() {
        for found in page.blocks.iter().flat_map(|block| &block.lines) {
            let Some(file) = found.text.strip_prefix("{{#include ").and_then(|t| t.strip_suffix("}}")) else {
                continue;
            };
            if !page.path.parent().unwrap().join(file).is_file() {
                problems.push(format!("{}: includes {file}, which is not there", page.place(found.line)));
            }
        }
    }
    none(&problems);
}

/// Folders whose paths are written from the project's folder on.
const FOLDERS: [&str; 8] =
    ["crates/", "kernels/", "configs/", "datasets/", "eval/", "docs/", ".ci/", ".github/"];

/// Whether a path stands for several: `configs/NAME.yaml`, `kernels/*.cu`.
fn stands_for_several(path: &str) -> bool {
    let word = |part: &str| part.len() > 1 && part.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    path.contains(['*', '{', '<']) || path.split(['/', '.']).any(word)
}

#[test]
fn every_path_in_a_code_span_is_there() {
    let mut problems = Vec::new();
    for page in living() {
        for span in &page.spans {
            let path = span.text.trim_end_matches('/');
            if !FOLDERS.iter().any(|folder| span.text.starts_with(folder)) || path.contains(' ') {
                continue;
            }
            // `eval/` in a README of a room below may be that room's own.
            let there = root().join(path).exists() || page.path.parent().unwrap().join(path).exists();
            if !there && !stands_for_several(path) {
                problems.push(format!("{}: {path} is not there", page.place(span.line)));
            }
        }
    }
    none(&problems);
}

#[test]
fn a_link_to_nowhere_is_noticed() {
    let path = root().join("docs/src/randomness.md");
    let wrong = |target: &str| {
        let page = Page { path: path.clone(), ..Page::default() };
        broken(&page, &Found { line: 1, text: target.into() })
    };
    for target in ["numerics.md", "numerics.md#tolerances", "https://example.org/nowhere"] {
        assert_eq!(wrong(target), None);
    }
    for (target, what) in [
        ("numeric.md", "not there"),
        ("numerics.md#tolerance", "no heading"),
        ("../../README.md", "outside the book"),
    ] {
        assert!(wrong(target).is_some_and(|problem| problem.contains(what)), "{target}");
    }
}

#[test]
fn a_placeholder_is_told_from_a_path() {
    for several in ["configs/NAME.yaml", "kernels/*.cu", "crates/calm-lm/src/head/NAME.rs"] {
        assert!(stands_for_several(several), "{several}");
    }
    for path in ["configs/k4.yaml", "crates/calm-lm/src/head/energy.rs"] {
        assert!(!stands_for_several(path), "{path}");
    }
}
