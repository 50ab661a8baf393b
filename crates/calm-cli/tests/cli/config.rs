//! `calm config`, `--version`, help and usage.

use crate::house::{CALM, House};

#[test]
fn a_printed_configuration_loads_to_itself() {
    let house = House::new();
    for name in ["calm.yaml", "baseline.yaml", "quickstart"] {
        let printed = house.ok(&["config", name]);
        house.write("again.yaml", &printed);
        assert_eq!(house.ok(&["config", "again.yaml"]), printed, "{name}");
        assert!(printed.contains("seed:") && printed.contains("norm_eps:"), "defaults are shown: {printed}");
    }
    let set =
        house.ok(&["config", "calm.yaml", "--set", "train.lm.steps=77", "--set", "tokenizer={chars: {}}"]);
    assert!(set.contains("steps: 77") && set.contains("chars"), "{set}");
}

#[test]
fn the_schema_is_json_and_the_shipped_names_are_listed() {
    let house = House::new();
    let schema = house.json(&["config", "--schema"]);
    assert!(schema["properties"]["model"].is_object() && schema["properties"]["train"].is_object());
    assert!(house.ok(&["config", "--list"]).contains("quickstart"));
    assert!(house.ok(&["completions", "bash"]).contains("calm"));
}

#[test]
fn all_problems_of_a_configuration_are_reported_together_with_their_lines() {
    let house = House::new();
    let bad = CALM
        .replace("chunk_size: 3", "chunk_sise: 3")
        .replace("layers: 2, hidden_size: 48, intermediate_size: 64, heads: 2", "layers: two, heads: 5")
        .replace("samples: 4", "samples: 1")
        .replace("lm: { steps: 20, batch_rows: 4", "lm: { steps: 20, accumulation: 3, batch_rows: 4")
        .replace("validation: 0.3", "validation: 1.5");
    house.write("bad.yaml", &bad);
    let line = |part: &str| bad.lines().position(|l| l.contains(part)).unwrap() + 1;
    for command in [&["train", "--config", "bad.yaml"][..], &["config", "bad.yaml"]] {
        let error = house.error(command);
        for (part, at) in [
            ("chunk_sise", "chunk_sise"),
            ("did you mean `chunk_size`?", "chunk_sise"),
            ("layers", "layers: two"),
            ("energy.samples", "samples: 1"),
            ("accumulation", "accumulation: 3"),
            ("validation", "validation: 1.5"),
        ] {
            assert!(error.contains(part), "no `{part}` in\n{error}");
            let place = format!("bad.yaml:{}:", line(at));
            assert!(error.contains(&place), "no `{place}` for {part} in\n{error}");
        }
        assert!(error.starts_with("error: bad.yaml has ") && error.contains("hint:"), "{error}");
        assert!(error.lines().all(|l| l.chars().count() <= 80), "{error}");
    }
    assert!(!house.path("runs").exists(), "nothing is made before the configuration is right");
}

#[test]
fn impossible_combinations_are_refused_before_any_work() {
    let house = House::new();
    for (set, part) in [
        ("model.calm.backbone.heads=5", "heads"),
        ("model.calm.autoencoder.encoder_layers=3", "even"),
        ("train.lm.accumulation=3", "batch_rows"),
        ("train.autoencoder=null", "first stage"),
        ("train.lm.warmup_steps=100", "warmup_steps"),
        ("tokenizer.bpe.vocab_size=10", "259"),
        ("version=2", "version"),
        ("train.lm.stepz=1", "steps"),
        ("train.lm.steps=many", "steps"),
    ] {
        house.refuses(&["train", "--config", "calm.yaml", "--set", set], &[part, "--set"]);
    }
    for (file, text) in [("not.yaml", "a: [1, 2\nb: 3"), ("empty.yaml", ""), ("list.yaml", "- 1\n- 2\n")] {
        house.write(file, text);
        house.refuses(&["config", file], &[file]);
    }
    house.write("binary.yaml", b"\x00\xff\x80");
    house.refuses(&["config", "binary.yaml"], &["binary.yaml", "hint:"]);
    house.refuses(&["config", "."], &["hint:"]);
    house.refuses(&["config", "no-such"], &["no-such", "quickstart", "hint:"]);
    house.refuses(&["train", "--config", "no-such.yaml"], &["no-such.yaml", "hint:"]);
    assert!(!house.path("runs").exists());
}

#[test]
fn the_version_names_the_features() {
    let house = House::new();
    for flag in ["--version", "-V"] {
        let out = house.ok(&[flag]);
        assert!(
            out.starts_with(&format!("calm {}", env!("CARGO_PKG_VERSION"))) && out.contains("features: cpu"),
            "{out}"
        );
    }
    assert!(house.ok(&[]).contains("Usage"));
    assert!(house.ok(&["train", "--help"]).contains("--resume"));
}

#[test]
fn wrong_usage_has_its_own_exit_code() {
    let house = House::new();
    for args in [
        &["trane"][..],
        &["train"],
        &["train", "--config", "calm.yaml", "--bogus"],
        &["train", "--config", "calm.yaml", "--resume", "--restart"],
        &["train", "--config", "calm.yaml", "--stage", "third"],
        &["eval"],
        &["eval", "brierlm", "--samples", "a", "--run", "b"],
        &["generate", "--max-tokens", "few"],
        &["config"],
        &["--threads", "x", "--version"],
    ] {
        let done = house.run(args);
        assert_eq!((done.code, done.out.as_str()), (2, ""), "{args:?}: {}", done.err);
        assert!(done.err.starts_with("error:") || done.err.contains("Usage"), "{}", done.err);
    }
    house.refuses(&["--threads", "0", "--version"], &["hint:"]);
}
