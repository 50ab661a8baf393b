//! What explains the program: settings, pages of the book, a configuration to begin with, manual pages.

use crate::house::House;

#[test]
fn a_key_is_explained_with_its_type_and_default() {
    let house = House::new();
    let explain = |key: &str| house.ok(&["config", "--explain", key]);
    let recompute = explain("train.lm.recompute");
    for part in ["train.lm.recompute", "backward pass", "true or false", "default  false"] {
        assert!(recompute.contains(part), "no `{part}` in\n{recompute}");
    }
    // Of a family and its head, through two choices.
    let samples = explain("model.calm.head.energy.samples");
    assert!(samples.contains("whole number") && samples.contains("default  8"), "{samples}");
    let head = explain("model.calm.head");
    assert!(["energy", "flow", "diffusion"].iter().all(|kind| head.contains(kind)), "{head}");
    assert!(explain("train.lm.steps").contains("it must be given"));
    assert!(["version", "model", "train"].iter().all(|key| explain("").contains(key)));
    for text in [recompute, samples, head, explain("")] {
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }
}

#[test]
fn an_unknown_key_is_answered_with_the_one_that_was_meant() {
    let house = House::new();
    for (given, meant) in [
        ("train.lm.recompte", "did you mean `train.lm.recompute`?"),
        ("train.ml.steps", "did you mean `train.lm.steps`?"),
        ("recompute", "train.autoencoder.recompute, train.lm.recompute"),
        ("model.energy.samples", "model.calm.head.energy.samples"),
        ("no.such.thing", "lists the keys"),
    ] {
        house.refuses(&["config", "--explain", given], &["there is no key", given, meant]);
    }
}

#[test]
fn a_new_configuration_says_what_each_key_means_and_loads_to_what_it_was_made_from() {
    let house = House::new();
    // The name that is taken where none is given; this one lies in every house.
    std::fs::remove_file(house.path("calm.yaml")).unwrap();
    house.ok(&["init-config"]);
    let text = house.read("calm.yaml");
    assert!(text.starts_with("# yaml-language-server: $schema=calm.schema.json\n"), "{text}");
    assert_eq!(house.ok(&["config", "calm.yaml"]), house.ok(&["config", "k4"]));
    let schema: serde_json::Value = serde_json::from_str(&house.read("calm.schema.json")).unwrap();
    assert_eq!(schema, house.json(&["config", "--schema"]));

    // A key has a comment above it, but for names whose block alone says what they are.
    let lines: Vec<&str> = text.lines().collect();
    let bare: Vec<&str> =
        lines.windows(2).filter(|pair| is_key(pair[1]) && is_key(pair[0])).map(|p| p[1]).collect();
    assert!(bare.is_empty(), "without a comment: {bare:?}\n{text}");
    assert!(lines.iter().filter(|line| is_key(line)).count() > 60, "{text}");

    house.refuses(&["init-config"], &["calm.yaml is there already", "--out"]);
    assert_eq!(house.read("calm.yaml"), text);
    for name in ["quickstart", "baseline", "paper/calm-l", "shakespeare-char"] {
        house.ok(&["init-config", name, "-o", "sub/mine.yaml", "--set", "seed=5"]);
        let made = house.ok(&["config", "sub/mine.yaml"]);
        assert_eq!(made, house.ok(&["config", name, "--set", "seed=5"]), "{name}");
        std::fs::remove_file(house.path("sub/mine.yaml")).unwrap();
    }
}

/// Whether a line of YAML begins a setting.
fn is_key(line: &str) -> bool {
    !line.trim_start().starts_with('#') && line.contains(':')
}

#[test]
fn a_page_of_the_book_is_printed_for_80_columns() {
    let house = House::new();
    let list = house.ok(&["explain"]);
    assert!(["glossary", "gpu", "installing"].iter().all(|topic| list.contains(topic)), "{list}");
    let page = house.ok(&["explain", "randomness"]);
    assert!(page.starts_with("Randomness\n====") && !page.contains("]("), "{page}");
    // Code stands as it was written, at its margin.
    let prose = page.lines().filter(|line| !line.starts_with("    "));
    assert!(prose.clone().all(|line| line.chars().count() <= 80), "{page}");
    house.refuses(&["explain", "randomnes"], &["no page randomnes", "calm explain randomness"]);
    house.refuses(&["explain", "philox"], &["no page philox", "randomness"]);
    house.refuses(&["explain", "xyzzyx"], &["no page xyzzyx", "lists the pages"]);
}

#[test]
fn every_command_has_a_manual_page() {
    let house = House::new();
    house.ok(&["man", "pages/man1"]);
    for (page, part) in [
        ("calm.1", "Continuous Autoregressive"),
        ("calm-train.1", "\\-\\-resume"),
        ("calm-eval-brierlm.1", "n\\-gram"),
        ("calm-init-config.1", "\\-\\-out"),
    ] {
        let text = house.read(&format!("pages/man1/{page}"));
        assert!(text.starts_with(".ie") || text.starts_with(".TH"), "{page}: {text}");
        assert!(text.contains(part), "{page} has no {part}: {text}");
    }
    house.write("file", "");
    house.refuses(&["man", "file/below"], &["cannot write", "hint:"]);
}
