//! The picture of the rooms, and a README for each.

use std::collections::BTreeMap;

use crate::markdown::Page;
use crate::{none, root};

/// Names of all crates, with the crates of ours that each depends on (tests aside).
fn crates() -> BTreeMap<String, Vec<String>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root().join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap();
        let (mut inside, mut depends) = (false, Vec::new());
        for line in manifest.lines() {
            if line.starts_with('[') {
                inside = line.starts_with("[dependencies");
            } else if let Some(name) = line.split(['.', ' ', '=']).next().filter(|_| inside)
                && name.starts_with("calm-")
            {
                depends.push(name.to_owned());
            }
        }
        found.insert(folder.file_name().unwrap().to_str().unwrap().to_owned(), depends);
    }
    assert!(found.values().any(|depends| depends.len() > 3), "{found:?}");
    found
}

/// The rooms of a page's picture, from top to bottom: the block that begins with the Python module.
fn picture(page: &Page) -> Vec<String> {
    let first_word = |line: &str| line.split_whitespace().next().unwrap_or("").to_owned();
    let room = |line: &str| first_word(line.trim().trim_start_matches("crates/"));
    let block = page.blocks.iter().find(|b| b.lines.first().is_some_and(|l| room(&l.text) == "calm-python"));
    let block = block.unwrap_or_else(|| panic!("{} has no picture of the rooms", page.path.display()));
    block.lines.iter().map(|line| room(&line.text)).filter(|name| name.starts_with("calm-")).collect()
}

#[test]
fn the_pictures_show_every_room_and_arrows_go_down_only() {
    let crates = crates();
    let mut problems = Vec::new();
    for name in ["README.md", "docs/src/architecture.md"] {
        let rooms = picture(&Page::read(&root().join(name)));
        let place = |room: &str| rooms.iter().position(|r| r == room);
        for (room, depends) in &crates {
            let Some(at) = place(room) else {
                problems.push(format!("{name}: {room} is not in the picture"));
                continue;
            };
            for below in depends.iter().filter(|below| place(below).is_some_and(|below| below < at)) {
                problems.push(format!("{name}: {room} uses {below}, which stands above it"));
            }
        }
        for room in rooms.iter().filter(|room| !crates.contains_key(*room)) {
            problems.push(format!("{name}: there is no crate {room}"));
        }
    }
    none(&problems);
}

#[test]
fn every_room_has_a_readme_that_says_what_it_may_use() {
    let mut problems = Vec::new();
    for (name, depends) in &crates() {
        let path = root().join("crates").join(name).join("README.md");
        match std::fs::read_to_string(&path) {
            Err(e) => problems.push(format!("crates/{name}/README.md: {e}")),
            Ok(text) if !text.starts_with(&format!("# {name}\n")) => {
                problems.push(format!("crates/{name}/README.md does not begin with its name"));
            }
            Ok(text) => {
                let said = text.split_once("**May use**").map_or("", |(_, after)| after);
                let said = said.split("\n\n").next().unwrap_or("");
                for used in depends.iter().filter(|used| !said.contains(&format!("`{used}`"))) {
                    if !said.contains("every room") {
                        problems
                            .push(format!("crates/{name}/README.md does not say that the room uses {used}"));
                    }
                }
                if said.is_empty() {
                    problems.push(format!("crates/{name}/README.md does not say what the room may use"));
                }
            }
        }
    }
    none(&problems);
}

#[test]
fn every_module_in_a_rooms_table_is_there() {
    let (mut problems, mut checked) = (Vec::new(), 0);
    for name in crates().keys() {
        let room = root().join("crates").join(name);
        let text = std::fs::read_to_string(room.join("README.md")).unwrap();
        for cell in text.lines().filter_map(|line| line.strip_prefix("| `")?.split(" |").next()) {
            for module in cell.split('`').step_by(2).filter(|module| !module.starts_with(',')) {
                let source = room.join("src").join(module);
                let there = [room.join(module), source.with_extension("rs"), source.join("mod.rs")];
                checked += 1;
                if !there.iter().any(|path| path.exists()) {
                    problems.push(format!("crates/{name}/README.md: there is no module {module}"));
                }
            }
        }
    }
    none(&problems);
    assert!(checked > 20, "only {checked} modules were found");
}

#[test]
fn every_dependency_has_its_reason_in_the_readme() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, listed) = manifest.split_once("[workspace.dependencies]").unwrap();
    let listed = listed.split("\n[").next().unwrap();
    let names =
        listed.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(' ').next());
    let foreign: Vec<&str> = names.filter(|name| !name.is_empty() && !name.starts_with("calm-")).collect();
    assert!(foreign.len() > 30, "{foreign:?}");
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let (_, reasons) = readme.split_once("## Dependencies").unwrap();
    let missing = foreign.iter().filter(|name| !reasons.contains(&format!("`{name}`")));
    none(&missing.map(|name| format!("README.md does not say why {name} is used")).collect::<Vec<_>>());
}
