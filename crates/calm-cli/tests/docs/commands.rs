//! Commands: in `console` and `sh` blocks each is parsed as the program itself would, in code spans its command and
//! options must exist.

use calm_cli::args::Cli;
use calm_cli::shipped;
use calm_config::{ConfigText, load};
use calm_run::RunConfig;
use calm_study::config::AblationConfig;
use clap::{Command, CommandFactory};

use crate::markdown::Page;
use crate::{living, none, root};

/// A line of a shell as commands of words: comments and redirections are left out, quotes are undone, and `;`, `&&`
/// and `|` begin a new command.
fn commands(line: &str) -> Vec<Vec<String>> {
    let mut all = vec![Vec::new()];
    let mut word: Option<String> = None;
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(q), c) if c == q => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ' | ';' | '&' | '|' | '>') => {
                all.last_mut().unwrap().extend(word.take());
                match c {
                    ' ' => {}
                    '>' => break,
                    _ => all.push(Vec::new()),
                }
            }
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    all.last_mut().unwrap().extend(word);
    all.retain(|command| !command.is_empty());
    all
}

/// The words that the program would get, if a command is ours.
fn of_calm(words: &[String]) -> Option<&[String]> {
    let is_setting = |word: &String| {
        word.split_once('=').is_some_and(|(name, _)| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'))
    };
    let words = &words[words.iter().take_while(|word| is_setting(word)).count()..];
    let (first, rest) = words.split_first()?;
    if first == "calm" || first.ends_with("/release/calm") {
        return Some(rest);
    }
    let runs =
        first == "cargo" && rest.first().is_some_and(|word| word == "run") && !rest.contains(&"-p".into());
    let dashes = rest.iter().position(|word| word == "--").filter(|_| runs)?;
    Some(&rest[dashes + 1..])
}

/// All commands of a page, with where they stand. In `console` blocks they follow a `$`.
fn typed(page: &Page) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for block in &page.blocks {
        for line in &block.lines {
            // `console,exact` and the like say what a test makes of it.
            let text = match block.language.split(',').next().unwrap_or_default() {
                "console" => line.text.strip_prefix("$ "),
                "sh" => Some(line.text.as_str()),
                _ => None,
            };
            let commands = text.map(commands).unwrap_or_default();
            found.extend(commands.into_iter().map(|words| (page.place(line.line), words)));
        }
    }
    found
}

#[test]
fn every_command_of_a_block_can_be_typed() {
    let (mut problems, mut parsed) = (Vec::new(), 0);
    for (place, words) in living().iter().flat_map(typed) {
        let Some(arguments) = of_calm(&words) else { continue };
        parsed += 1;
        let line = std::iter::once("calm".to_owned()).chain(arguments.iter().cloned());
        if let Err(e) = Cli::command().try_get_matches_from(line) {
            problems.push(format!("{place}: calm {}\n{e}", arguments.join(" ")));
        }
    }
    none(&problems);
    assert!(parsed > 30, "only {parsed} commands were found");
}

#[test]
fn every_configuration_that_a_command_names_is_shipped() {
    let mut problems = Vec::new();
    for (place, words) in living().iter().flat_map(typed) {
        let Some(arguments) = of_calm(&words) else { continue };
        for pair in arguments.windows(2).filter(|pair| pair[0] == "--config") {
            let name = pair[1].as_str();
            let shipped = shipped::SHIPPED.iter().chain(shipped::ABLATIONS).any(|(known, _)| *known == name);
            // A file of one's own has its ending; FILE and NAME are anybody's.
            let placeholder = name.chars().all(|c| c.is_ascii_uppercase() || c == '|');
            if !shipped && !placeholder && !name.ends_with(".yaml") {
                problems.push(format!("{place}: no configuration {name} is shipped"));
            }
        }
    }
    none(&problems);
}

/// The values that follow an option.
fn values(arguments: &[String], option: &str) -> Vec<String> {
    arguments.windows(2).filter(|pair| pair[0] == option).map(|pair| pair[1].clone()).collect()
}

/// A file that a page shows.
fn shown(name: &str) -> Option<ConfigText> {
    living().iter().find_map(|page| {
        let block = page.blocks.iter().find(|block| block.file.as_deref() == Some(name))?;
        let lines: Vec<&str> = block.lines.iter().map(|line| line.text.as_str()).collect();
        Some(ConfigText::new(page.place(block.lines.first()?.line), lines.join("\n")))
    })
}

#[test]
fn every_setting_that_a_command_changes_exists_and_takes_the_value() {
    let (mut problems, mut loaded) = (Vec::new(), 0);
    for (place, words) in living().iter().flat_map(typed) {
        let Some(arguments) = of_calm(&words) else { continue };
        let settings = values(arguments, "--set");
        let Some(name) = values(arguments, "--config").pop().filter(|_| !settings.is_empty()) else {
            continue;
        };
        let error = if arguments[0] == "ablate" {
            let text = shown(&name).map_or_else(|| shipped::find_ablation(&name), Ok);
            text.and_then(|text| load::<AblationConfig>(text, &settings)).err()
        } else {
            let text = shown(&name).map_or_else(|| shipped::find(&name), Ok);
            text.and_then(|text| load::<RunConfig>(text, &settings)).err()
        };
        problems.extend(error.map(|e| format!("{place}: {e}")));
        loaded += 1;
    }
    none(&problems);
    assert!(loaded > 3, "only {loaded} commands change a setting");
}

#[test]
fn every_ablation_that_a_page_shows_can_be_read() {
    let (mut problems, mut read) = (Vec::new(), 0);
    for page in living() {
        for block in page.blocks.iter().filter(|block| block.language == "yaml") {
            let text: Vec<&str> = block.lines.iter().map(|line| line.text.as_str()).collect();
            if text.contains(&"variants:") {
                let shown = ConfigText::new(page.place(block.lines[0].line), text.join("\n"));
                problems.extend(load::<AblationConfig>(shown, &[]).err().map(|e| e.to_string()));
                read += 1;
            }
        }
    }
    none(&problems);
    assert!(read > 1, "only {read} ablations were found");
}

/// The command that words name, with the words that are left.
fn command<'a, 'w>(calm: &'a Command, words: &'w [String]) -> (&'a Command, &'w [String]) {
    let Some((first, rest)) = words.split_first() else { return (calm, words) };
    match calm.get_subcommands().find(|c| c.get_name() == first) {
        Some(inner) => command(inner, rest),
        None => (calm, words),
    }
}

fn has_option(command: &Command, option: &str) -> bool {
    let name = option.trim_start_matches('-');
    let name = name.split_once('=').map_or(name, |(name, _)| name);
    command.get_arguments().any(|argument| {
        argument.get_long() == Some(name) || argument.get_short().is_some_and(|s| option == format!("-{s}"))
    })
}

fn anywhere(command: &Command, option: &str) -> bool {
    has_option(command, option) || command.get_subcommands().any(|inner| anywhere(inner, option))
}

/// Options of other programs that our pages name.
const FOREIGN: [&str; 3] = ["--release", "--fmad=false", "--runners"];

#[test]
fn every_command_and_option_of_a_code_span_exists() {
    let mut calm = Cli::command();
    calm.build();
    let (mut problems, mut checked) = (Vec::new(), 0);
    for page in living() {
        for span in &page.spans {
            let place = page.place(span.line);
            let words = commands(&span.text).into_iter().next().unwrap_or_default();
            if words.len() > 1 && words[0] == "calm" {
                checked += 1;
                let (found, rest) = command(&calm, &words[1..]);
                let takes_words = found.get_positionals().next().is_some();
                match rest.first() {
                    Some(word) if !word.starts_with('-') && !takes_words => {
                        problems.push(format!("{place}: `{}`: there is no command {word}", span.text));
                    }
                    _ => {}
                }
                for option in rest.iter().filter(|word| word.starts_with("--")) {
                    if !has_option(found, option) {
                        problems.push(format!("{place}: `{}`: there is no option {option}", span.text));
                    }
                }
            } else if let Some(option) = words.first().filter(|word| word.starts_with("--") && word.len() > 2)
            {
                checked += 1;
                if !anywhere(&calm, option) && !FOREIGN.contains(&option.as_str()) {
                    problems.push(format!("{place}: no command has the option {option}"));
                }
            }
        }
    }
    none(&problems);
    assert!(checked > 40, "only {checked} code spans were checked");
}

/// `-p NAME` and the like of a cargo command, with the folders where the name must be.
const CARGO: [(&str, &[&str]); 3] = [("-p", &[]), ("--test", &["tests"]), ("--example", &["examples"])];

#[test]
fn every_crate_test_example_and_script_of_a_command_is_there() {
    let crates: Vec<_> =
        std::fs::read_dir(root().join("crates")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let mut problems = Vec::new();
    for (place, words) in living().iter().flat_map(typed) {
        let at = words.iter().position(|word| word == "cargo");
        for pair in words[at.unwrap_or(words.len())..].windows(2) {
            let Some((option, folders)) = CARGO.iter().find(|(option, _)| *option == pair[0]) else {
                continue;
            };
            let there = |of: &std::path::PathBuf| match folders.first() {
                None => of.ends_with(&pair[1]),
                Some(folder) => {
                    let target = of.join(folder).join(&pair[1]);
                    target.with_extension("rs").is_file() || target.join("main.rs").is_file()
                }
            };
            if !crates.iter().any(there) {
                problems.push(format!("{place}: there is no {option} {}", pair[1]));
            }
        }
        for script in
            words.iter().filter(|word| [".ci/", "eval/", "kernels/"].iter().any(|f| word.starts_with(f)))
        {
            if !root().join(script).exists() {
                problems.push(format!("{place}: {script} is not there"));
            }
        }
    }
    none(&problems);
}

#[test]
fn a_shell_line_is_cut_into_commands_and_words() {
    let words = |line: &str| commands(line).into_iter().map(|c| c.join("|")).collect::<Vec<_>>();
    assert_eq!(words("calm train --set 'a={b: 1}'   # why"), ["calm|train|--set|a={b: 1}"]);
    assert_eq!(words("cargo fetch && cargo run > out.json"), ["cargo|fetch", "cargo|run"]);
    assert_eq!(words("A=1 calm --version"), ["A=1|calm|--version"]);
    let ours = |line: &str| of_calm(&commands(line)[0]).map(<[String]>::to_vec);
    assert_eq!(ours("A_B=1 calm doctor"), Some(vec!["doctor".to_owned()]));
    assert_eq!(ours("cargo run --release -- config x"), Some(vec!["config".to_owned(), "x".to_owned()]));
    assert_eq!(ours("cargo test -p calm-cli"), None);
}
