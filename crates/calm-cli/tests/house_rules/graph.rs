//! Which file of a crate names items of which other file.
//!
//! A file is a module. An arrow goes from a file to the file where a path that it names ends: `crate::a::Item`,
//! `super::Item`, or `child::Item` in a parent. A name that the module on the way only passes on (`use a::Item;`
//! there) is followed to where it stands, so that a parent's `mod` and `pub use` lines are no arrows by
//! themselves; they are if the parent works with what it passes on. Tests do not count: they may look at
//! everything.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::tokens::{Token, end_of_group, tokens, without_tests};

/// A name that a `use` brings, and the path that it stands for.
struct Import {
    name: String,
    path: Vec<String>,
}

/// A file.
#[derive(Default)]
struct Module {
    parent: usize,
    name: String,
    children: BTreeMap<String, usize>,
    imports: Vec<Import>,
    /// Paths outside of `use`, of two words at least.
    paths: Vec<Vec<String>>,
    /// All words outside of `use`.
    words: BTreeSet<String>,
    /// What is declared here.
    items: BTreeSet<String>,
    /// All texts in quotes.
    texts: Vec<String>,
    /// The whole file.
    code: Vec<Token>,
}

/// The modules of a crate.
pub struct Graph {
    modules: Vec<Module>,
}

impl Graph {
    /// Of the crate whose root is this file.
    pub fn read(root: &Path) -> Self {
        let folder = root.parent().unwrap().to_owned();
        let mut graph = Self { modules: Vec::new() };
        graph.add(root, &folder, 0, String::new());
        graph
    }

    /// Adds a file and the files below it. `folder` is where the files of its children lie.
    fn add(&mut self, file: &Path, folder: &Path, parent: usize, name: String) -> usize {
        let text = std::fs::read_to_string(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        let (module, children) = Module::of(&text);
        let own = self.modules.len();
        self.modules.push(Module { parent, name, ..module });
        for child in children {
            let name = format!("{}::{child}", self.modules[own].name).trim_start_matches(':').to_owned();
            let below = folder.join(&child);
            let beside: PathBuf = folder.join(format!("{child}.rs"));
            let file = if beside.is_file() { beside } else { below.join("mod.rs") };
            let id = self.add(&file, &below, own, name);
            self.modules[own].children.insert(child, id);
        }
        own
    }

    /// Where a path named in `module` ends; None outside of this crate.
    fn target(&self, module: usize, path: &[String], depth: usize) -> Option<usize> {
        let (first, mut rest) = path.split_first()?;
        let mut at = match first.as_str() {
            "crate" => 0,
            "self" => module,
            "super" => self.modules[module].parent,
            child => *self.modules[module].children.get(child)?,
        };
        while let Some((segment, after)) = rest.split_first() {
            let here = &self.modules[at];
            if segment == "super" {
                at = here.parent;
            } else if let Some(child) = here.children.get(segment) {
                at = *child;
            } else if here.items.contains(segment) || segment == "*" || depth == 0 {
                return Some(at);
            } else {
                // Passed on from elsewhere, by name or with all others.
                let passed = here.imports.iter().filter(|i| i.name == *segment || i.name == "*");
                let mut targets = passed.filter_map(|import| {
                    let mut path = import.path.clone();
                    if import.name == "*" {
                        *path.last_mut()? = segment.clone();
                    }
                    path.extend_from_slice(after);
                    self.target(at, &path, depth - 1)
                });
                return Some(targets.next().unwrap_or(at));
            }
            rest = after;
        }
        Some(at)
    }

    /// From a module to all that it names.
    fn arrows(&self, module: usize) -> BTreeSet<usize> {
        let own = &self.modules[module];
        // An import that this module does not work with is passed on: no arrow of its own.
        let used = |name: &str| name == "*" || own.words.contains(name);
        let imports = own.imports.iter().filter(|i| used(&i.name)).map(|i| &i.path);
        let mut found: BTreeSet<usize> =
            own.paths.iter().chain(imports).filter_map(|path| self.target(module, path, 8)).collect();
        found.remove(&module);
        found
    }

    /// Groups of modules that name each other in a circle, each with its members sorted.
    pub fn circles(&self) -> Vec<Vec<String>> {
        let arrows: Vec<BTreeSet<usize>> = (0..self.modules.len()).map(|m| self.arrows(m)).collect();
        let reached: Vec<BTreeSet<usize>> = (0..arrows.len()).map(|m| reach(&arrows, m)).collect();
        let mut circles: BTreeSet<Vec<String>> = BTreeSet::new();
        for m in 0..arrows.len() {
            let together = reached[m].iter().filter(|other| reached[**other].contains(&m));
            let mut names: Vec<String> = together.map(|other| self.name(*other)).collect();
            names.sort();
            if names.len() > 1 {
                circles.insert(names);
            }
        }
        circles.into_iter().collect()
    }

    /// All texts in quotes, each with its module.
    pub fn texts(&self) -> impl Iterator<Item = (String, &str)> {
        let of = move |m: usize| self.modules[m].texts.iter().map(move |text| (self.name(m), text.as_str()));
        (0..self.modules.len()).flat_map(of)
    }

    /// All files without their tests, each with its module.
    pub fn files(&self) -> impl Iterator<Item = (String, &[Token])> {
        (0..self.modules.len()).map(|m| (self.name(m), self.modules[m].code.as_slice()))
    }

    /// What is declared in modules that begin so, and used outside of them in this crate.
    pub fn passed_on(&self, within: &str) -> BTreeSet<String> {
        let inside = |m: &usize| {
            let rest = self.modules[*m].name.strip_prefix(within);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
        };
        let (inner, outer): (Vec<usize>, Vec<usize>) = (0..self.modules.len()).partition(inside);
        let declared = |name: &String| inner.iter().any(|m| self.modules[*m].items.contains(name));
        let mut found = BTreeSet::new();
        for m in outer {
            for import in self.modules[m].imports.iter().filter(|i| declared(&i.name)) {
                if self.target(m, &import.path, 8).is_some_and(|at| inside(&at)) {
                    found.insert(import.name.clone());
                }
            }
        }
        found
    }

    /// Every arrow between these modules, for a message.
    pub fn arrows_between(&self, names: &[String]) -> Vec<String> {
        let all = (0..self.modules.len()).filter(|m| names.contains(&self.name(*m)));
        all.flat_map(|m| self.arrows(m).into_iter().map(move |to| (self.name(m), self.name(to))))
            .filter(|(_, to)| names.contains(to))
            .map(|(from, to)| format!("{from} -> {to}"))
            .collect()
    }

    fn name(&self, module: usize) -> String {
        if module == 0 { "the root".to_owned() } else { self.modules[module].name.clone() }
    }
}

/// All that can be reached from here by one arrow or more.
fn reach(arrows: &[BTreeSet<usize>], from: usize) -> BTreeSet<usize> {
    let mut found = BTreeSet::new();
    let mut open: Vec<usize> = arrows[from].iter().copied().collect();
    while let Some(m) = open.pop() {
        if found.insert(m) {
            open.extend(&arrows[m]);
        }
    }
    found
}

impl Module {
    /// What a file says, and its child modules in order.
    fn of(text: &str) -> (Self, Vec<String>) {
        let code = without_tests(&tokens(text));
        let mut module = Self::default();
        let mut children = Vec::new();
        let mut at = 0;
        while at < code.len() {
            let word = code[at].word();
            let next = code.get(at + 1).and_then(Token::word);
            match (word, next) {
                (Some("mod"), Some(child)) if code.get(at + 2).is_some_and(|t| t.is(";")) => {
                    children.push(child.to_owned());
                    at += 3;
                }
                (Some("use"), _) => {
                    at += 1;
                    module.tree(&code, &mut at, &[]);
                }
                (
                    Some("fn" | "struct" | "enum" | "trait" | "type" | "const" | "static" | "union"),
                    Some(item),
                ) => {
                    module.items.insert(item.to_owned());
                    module.words.insert(item.to_owned());
                    at += 2;
                }
                (Some("macro_rules"), _) => {
                    module.items.extend(code.get(at + 2).and_then(Token::word).map(str::to_owned));
                    at += 3;
                }
                (Some(word), _) => {
                    let mut path = vec![word.to_owned()];
                    while code.get(at + 1).is_some_and(|t| t.is("::")) {
                        let Some(word) = code.get(at + 2).and_then(Token::word) else { break };
                        path.push(word.to_owned());
                        at += 2;
                    }
                    module.words.insert(word.to_owned());
                    if path.len() > 1 {
                        module.paths.push(path);
                    }
                    at += 1;
                }
                (None, _) => {
                    if let Token::Text(text) = &code[at] {
                        module.texts.push(text.clone());
                    }
                    at += 1;
                }
            }
        }
        // `const fn name` and the like name an item twice.
        module.items.remove("fn");
        module.code = code;
        (module, children)
    }

    /// One branch of a `use`, up to its `,`, `}` or `;`.
    fn tree(&mut self, code: &[Token], at: &mut usize, before: &[String]) {
        let mut path = before.to_vec();
        let mut name = None;
        while let Some(token) = code.get(*at) {
            if token.is("{") {
                let end = end_of_group(code, *at) - 1;
                *at += 1;
                while *at < end {
                    self.tree(code, at, &path);
                    *at += usize::from(code[*at].is(","));
                }
                *at += 1;
                return;
            }
            match token.word() {
                Some("as") => name = code.get(*at + 1).and_then(Token::word).map(str::to_owned),
                Some(word) if name.is_none() => path.push(word.to_owned()),
                Some(_) => {}
                None if token.is("*") => path.push("*".to_owned()),
                None if token.is("::") => {}
                None => break,
            }
            *at += 1;
        }
        // `use a::{self}` names `a`.
        if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
            path.pop();
        }
        if let Some(last) = path.last().cloned() {
            self.imports.push(Import { name: name.unwrap_or(last), path });
        }
    }
}

#[cfg(test)]
fn graph_of(files: &[(&str, &str)]) -> Graph {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    Graph::read(&folder.path().join("lib.rs"))
}

#[test]
fn a_circle_is_seen_through_what_a_root_passes_on() {
    let files = [
        ("lib.rs", "mod a; mod b; pub use a::A;"),
        ("a.rs", "use crate::b; pub struct A; fn f() { b::g() }"),
        ("b.rs", "pub fn g() { let _ = crate::A; }"),
    ];
    assert_eq!(graph_of(&files).circles(), [["a", "b"]]);
    let cut = [files[0], ("a.rs", "pub struct A;"), files[2]];
    assert!(graph_of(&cut).circles().is_empty());
}

#[test]
fn a_parent_that_only_passes_on_may_hold_what_its_children_share() {
    let child = ("a/b.rs", "use super::Shared; pub struct B(Shared);");
    let files =
        [("lib.rs", "mod a;"), ("a/mod.rs", "mod b; pub use b::{B, B as C}; pub struct Shared;"), child];
    assert!(graph_of(&files).circles().is_empty());
    for works in
        ["mod b; use b::B; pub struct Shared; fn f(_: B) {}", "mod b; struct Shared; fn f(_: b::B) {}"]
    {
        assert_eq!(graph_of(&[files[0], ("a/mod.rs", works), child]).circles(), [["a", "a::b"]]);
    }
}

#[test]
fn tests_and_other_crates_make_no_arrow() {
    let files = [
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "use crate::b::*; use other::b::Z; #[cfg(test)] mod tests;"),
        ("b.rs", "use std::a; #[cfg(test)] mod tests { use crate::a::A; }"),
    ];
    let graph = graph_of(&files);
    assert!(graph.circles().is_empty());
    assert_eq!(graph.arrows_between(&["a".to_owned(), "b".to_owned()]), ["a -> b"]);
}
