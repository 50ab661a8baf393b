//! Files are changed in one place: what `calm-files` writes is whole or not there, and its faults reach all of it.

use crate::graphs;
use crate::tokens::Token;

/// Who changes files beside it, by right: the crate, the module and why.
const OTHERS: [(&str, &str, &str); 2] = [
    ("calm-bench", "memory", "a switch of the kernel's, no file"),
    ("calm-run", "lock", "who works on a folder, which concerns nobody afterwards"),
];

/// Words that change files.
const WORDS: [&str; 11] = [
    "OpenOptions",
    "create_dir",
    "create_dir_all",
    "create_new",
    "hard_link",
    "remove_dir",
    "remove_dir_all",
    "remove_file",
    "sync_all",
    "sync_data",
    "set_permissions",
];

/// The same with the word before.
const PAIRS: [(&str, &str); 5] =
    [("fs", "copy"), ("fs", "rename"), ("fs", "write"), ("File", "create"), ("File", "options")];

/// What changes a file in some code.
fn changes(code: &[Token]) -> Vec<String> {
    let word = |at: usize| code.get(at).and_then(Token::word).unwrap_or_default();
    let mut found = Vec::new();
    for at in 0..code.len() {
        let pair = (word(at), word(at + 2));
        if code.get(at + 1).is_some_and(|sign| sign.is("::")) && PAIRS.contains(&pair) {
            found.push(format!("{}::{}", pair.0, pair.1));
        } else if WORDS.contains(&word(at)) {
            found.push(word(at).to_owned());
        }
    }
    found
}

#[test]
fn only_one_room_writes_to_disk() {
    let mut wrong = Vec::new();
    let mut there = 0;
    for (name, graph) in graphs() {
        for (module, code) in graph.files() {
            if name == "calm-files" {
                there += changes(code).len();
            } else if !OTHERS.iter().any(|o| (o.0, o.1) == (name.as_str(), module.as_str())) {
                wrong.extend(changes(code).iter().map(|what| format!("{name}: {module}: {what}")));
            }
        }
    }
    assert!(there > 8, "{there} calls of calm-files were found");
    assert!(wrong.is_empty(), "files are changed outside of calm-files:\n{}", wrong.join("\n"));
}

#[test]
fn only_tests_make_faults() {
    for (name, graph) in graphs() {
        for (module, code) in graph.files().filter(|_| name != "calm-files") {
            assert!(!code.iter().any(|t| t.word() == Some("faults")), "{name}: {module} plans faults");
        }
    }
}

#[test]
fn what_changes_a_file_is_found() {
    let code = crate::tokens::tokens(
        "use std::fs; fn f() { fs::rename(a, b); File::create(c); fs::read(d); x.sync_all() }",
    );
    assert_eq!(changes(&code), ["fs::rename", "File::create", "sync_all"]);
}
