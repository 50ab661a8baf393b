//! What the program's texts name exists: options, commands, files and settings. A remedy that names something else
//! helps nobody.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use calm_cli::args::Cli;
use calm_cli::fitting::Fitting;
use calm_config::{ConfigText, load};
use calm_study::AblationConfig;
use clap::CommandFactory;
use serde_json::Value;

use crate::graphs;

/// Options of other programs that our texts name: of cargo, of tensorboard, of mpirun, srun and sbatch, and of a page's style.
const FOREIGN: [&str; 17] = [
    "--ultra",
    "--array",
    "--bind-to",
    "--dependency",
    "--job-name",
    "--mpi",
    "--oversubscribe",
    "--parsable",
    "--example",
    "--features",
    "--filter-platform",
    "--locked",
    "--logdir",
    "--offline",
    "--release",
    "--signal",
    "--columns",
];
/// What follows our name where it is no command: in sentences, and in the names of formats.
const PROSE: [&str; 4] = ["characters", "has", "tokenizer", "works"];
/// Files of others, which are given by their path.
const FOREIGN_FILES: [&str; 1] = ["tokenizer_config.json"];
/// Endings of files that are named in texts.
const ENDINGS: [&str; 8] = ["json", "jsonl", "yaml", "html", "csv", "safetensors", "bin", "npy"];

/// Every text of the program with the place where it stands: in its sources, and in its help.
fn texts() -> Vec<(String, String)> {
    let mut texts = Vec::new();
    for (name, graph) in graphs() {
        texts.extend(graph.texts().map(|(module, text)| (format!("{name}: {module}"), text.to_owned())));
    }
    commands(&Cli::command(), &mut |command| {
        let help = command.get_about().into_iter().chain(command.get_long_about());
        let of_options =
            command.get_arguments().flat_map(|a| a.get_help().into_iter().chain(a.get_long_help()));
        for help in help.chain(of_options) {
            texts.push((format!("help of {}", command.get_name()), help.to_string()));
        }
    });
    assert!(texts.len() > 1000, "{} texts", texts.len());
    texts
}

/// Visits a command and all below it.
fn commands(command: &clap::Command, visit: &mut dyn FnMut(&clap::Command)) {
    visit(command);
    command.get_subcommands().for_each(|below| commands(below, visit));
}

/// Words of a text, without the marks around them.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let marks = |c: char| c.is_whitespace() || "`()[],;:=\"'".contains(c);
    text.split(marks).map(|word| word.trim_end_matches(['.', '?', '!'])).filter(|word| !word.is_empty())
}

fn report(what: &str, wrong: &[String]) {
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

#[test]
fn every_option_that_a_text_names_can_be_given() {
    let mut options: BTreeSet<String> =
        ["--help".to_owned()].into_iter().chain(FOREIGN.map(str::to_owned)).collect();
    commands(&Cli::command(), &mut |command| {
        options.extend(command.get_arguments().filter_map(|a| a.get_long()).map(|long| format!("--{long}")));
    });
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (place, text) in texts() {
        for word in words(&text).filter(|w| w.starts_with("--") && w.len() > 3 && !w.contains('{')) {
            seen += 1;
            if !options.contains(word) {
                wrong.push(format!("{place}: {word} in {text:?}"));
            }
        }
    }
    report("options that do not exist", &wrong);
    assert!(seen > 50, "{seen} options named");
}

#[test]
fn a_command_names_no_option_that_only_others_have() {
    let cli = {
        let mut cli = Cli::command();
        cli.build();
        cli
    };
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (place, text) in texts() {
        // A file of the commands; `protocols` is a part of `eval`.
        let Some(module) = place.strip_prefix("calm-cli: commands::") else { continue };
        let name = module.split("::").next().unwrap_or_default();
        let Some(command) = cli.find_subcommand(if name == "protocols" { "eval" } else { name }) else {
            continue;
        };
        // What is said of another command names it; a piece of a command line begins with its blank.
        if text.starts_with(" --") || text.contains("calm ") || text.contains("cargo ") {
            continue;
        }
        let mut options = BTreeSet::new();
        commands(command, &mut |c| {
            options.extend(c.get_arguments().filter_map(|a| a.get_long()).map(str::to_owned))
        });
        for word in
            words(&text).filter_map(|w| w.strip_prefix("--")).filter(|w| w.len() > 1 && !w.contains('{'))
        {
            seen += 1;
            if !options.contains(word) && !FOREIGN.contains(&format!("--{word}").as_str()) {
                wrong.push(format!("{place}: --{word} in {text:?}"));
            }
        }
    }
    report("options of other commands", &wrong);
    assert!(seen > 20, "{seen} options named");
}

/// Remedies of the libraries are fitted to the command that failed: whatever is shown can be typed.
#[test]
fn a_remedy_is_fitted_to_every_command() {
    let cli = {
        let mut cli = Cli::command();
        cli.build();
        cli
    };
    let texts: Vec<String> = texts().into_iter().map(|t| t.1).filter(|t| t.contains("--")).collect();
    for command in cli.get_subcommands().filter(|c| c.get_name() != "eval" && c.get_name() != "help") {
        let name: &'static str = command.get_name().to_owned().leak();
        let fitting = Fitting::of(&[name]);
        let options: BTreeSet<String> =
            command.get_arguments().filter_map(|a| a.get_long()).map(|o| format!("--{o}")).collect();
        for shown in texts.iter().filter_map(|text| fitting.fit(text)) {
            let other = ["calm ", "cargo ", "git "].iter().any(|program| shown.contains(program));
            let strange: Vec<&str> = words(&shown)
                .filter(|w| w.starts_with("--") && w.len() > 3 && !w.contains('{'))
                .filter(|w| !options.contains(*w))
                .collect();
            assert!(other || strange.is_empty(), "{name}: {strange:?} in {shown:?}");
        }
    }
}

#[test]
fn every_command_that_a_text_names_can_be_called() {
    let cli = Cli::command();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (place, text) in texts() {
        for part in text.split(['`', '(', ')', ',', ';', '.', '\n']) {
            let all: Vec<&str> = words(part).collect();
            for at in (0..all.len()).filter(|at| all[*at] == "calm") {
                let Some(word) = all.get(at + 1).filter(|w| w.chars().all(|c| c.is_ascii_lowercase())) else {
                    continue;
                };
                if !PROSE.contains(word) {
                    seen += 1;
                    if cli.find_subcommand(word).is_none() {
                        wrong.push(format!("{place}: calm {word} in {text:?}"));
                    }
                }
            }
        }
    }
    report("commands that do not exist", &wrong);
    assert!(seen > 5, "{seen} commands named");
}

/// Whether a name fits one that stands in the sources, where `{...}` there and `*` here stand for anything.
fn fits(name: &str, known: &str) -> bool {
    let (a, b) = (name.replace('*', "\u{1}"), placeholders(known));
    fn matches(a: &[char], b: &[char]) -> bool {
        match (a.first(), b.first()) {
            (None, None) => true,
            (Some('\u{1}'), _) => matches(&a[1..], b) || (!b.is_empty() && matches(a, &b[1..])),
            (_, Some('\u{1}')) => matches(a, &b[1..]) || (!a.is_empty() && matches(&a[1..], b)),
            (Some(x), Some(y)) => x == y && matches(&a[1..], &b[1..]),
            _ => false,
        }
    }
    matches(&a.chars().collect::<Vec<_>>(), &b.chars().collect::<Vec<_>>())
}

/// A format string with one sign for each of its places.
fn placeholders(format: &str) -> String {
    let mut out = String::new();
    let mut rest = format;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        out.push('\u{1}');
        rest = after.split_once('}').map_or("", |(_, rest)| rest);
    }
    out + rest
}

#[test]
fn every_file_that_a_text_names_is_one_that_the_program_reads_or_writes() {
    let texts = texts();
    let file = |word: &str| {
        let name = word.rsplit('/').next().unwrap_or_default();
        let ending = name.rsplit_once('.').filter(|(stem, _)| !stem.is_empty());
        ending.is_some_and(|(_, e)| ENDINGS.contains(&e)).then(|| name.to_owned())
    };
    // A name on its own is used; one in a sentence is told.
    let (told, used): (Vec<_>, Vec<_>) = texts.iter().partition(|(_, text)| text.contains(' '));
    let mut used: BTreeSet<String> = used.iter().filter_map(|(_, text)| file(text)).collect();
    used.extend(FOREIGN_FILES.map(str::to_owned));
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (place, text) in told {
        // `FILE.npy` stands for any, and so does a place in a format string.
        let any = |name: &String| name.contains('{') || name.starts_with("FILE.");
        for name in words(text).filter_map(file).filter(|name| !any(name)) {
            seen += 1;
            // `{}.json` alone would let everything pass.
            let known = |known: &&String| placeholders(known).len() > 6 && fits(&name, known);
            if !used.iter().any(|k| known(&k)) {
                wrong.push(format!("{place}: {name} in {text:?}"));
            }
        }
    }
    report("files that the program knows nothing of", &wrong);
    assert!(seen > 10, "{seen} files named");
}

/// Where a path of keys leads in a JSON schema; a key in braces may be any.
fn in_schema(root: &Value, at: &Value, path: &[&str]) -> bool {
    if let Some(name) = at["$ref"].as_str() {
        return root.pointer(name.trim_start_matches('#')).is_some_and(|at| in_schema(root, at, path));
    }
    let Some((key, rest)) = path.split_first() else { return true };
    let choices =
        ["anyOf", "oneOf", "allOf"].into_iter().flat_map(|of| at[of].as_array().into_iter().flatten());
    if choices.into_iter().any(|choice| in_schema(root, choice, path)) {
        return true;
    }
    let Some(properties) = at["properties"].as_object() else { return false };
    properties.iter().any(|(name, below)| (key.contains('{') || name == key) && in_schema(root, below, rest))
}

fn in_tree(at: &Value, path: &[&str]) -> bool {
    path.split_first().is_none_or(|(key, rest)| at.get(*key).is_some_and(|below| in_tree(below, rest)))
}

#[test]
fn every_setting_that_a_text_names_can_be_set() {
    let out = Command::new(env!("CARGO_BIN_EXE_calm")).args(["config", "--schema"]).output().unwrap();
    let schema: Value = serde_json::from_slice(&out.stdout).unwrap();
    let ablation = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/ablate-k.yaml");
    let ablation = load::<AblationConfig>(ConfigText::read(&ablation).unwrap(), &[]).unwrap().value;
    let ablation = serde_json::to_value(ablation).unwrap();
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (place, text) in texts().iter().filter(|(_, text)| text.contains(' ')) {
        for word in words(text) {
            let path: Vec<&str> = word.split('.').collect();
            let key = |part: &&str| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_lowercase() || "_{}".contains(c))
            };
            if path.len() < 2
                || path[0].contains('{')
                || !path.iter().all(key)
                || ENDINGS.contains(&path[path.len() - 1])
            {
                continue;
            }
            let top = &path[..1];
            if !in_schema(&schema, &schema, top) && !in_tree(&ablation, top) {
                continue;
            }
            seen += 1;
            if !in_schema(&schema, &schema, &path) && !in_tree(&ablation, &path) {
                wrong.push(format!("{place}: {word} in {text:?}"));
            }
        }
    }
    report("settings that do not exist", &wrong);
    assert!(seen > 5, "{seen} settings named");
}

#[test]
fn names_with_places_fit_as_patterns() {
    assert!(fits("scores-*.json", "{what}-{}.json") && fits("config.yaml", "config.yaml"));
    assert!(!fits("scores.json", "{what}-{}.json") && !fits("config.yml", "config.yaml"));
}
