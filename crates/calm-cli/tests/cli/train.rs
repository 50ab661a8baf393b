//! `calm train`.

use crate::house::{House, TRAINED, trained};

#[test]
fn a_run_goes_from_text_to_scores_with_results_on_stdout_and_the_rest_on_stderr() {
    for (name, done) in [("calm", &TRAINED.calm), ("baseline", &TRAINED.baseline)] {
        assert_eq!(done.code, 0, "{}", done.err);
        for part in ["BrierLM", "Brier-1", "bigram", "unigram", "sample:"] {
            assert!(done.out.contains(part), "{name}: no {part} in\n{}", done.out);
        }
        for part in ["run folder", "plan (", "validation loss", "next:", "calm generate"] {
            assert!(done.err.contains(part) && !done.out.contains(part), "{name}: {part} in\n{}", done.err);
        }
        // Not a terminal: no control characters. The sample's lines are as long as the model makes them.
        assert!(!done.out.contains('\x1b') && !done.err.contains(['\x1b', '\r']));
        let long = |l: &&str| l.chars().count() > 80 && !l.starts_with("  | ");
        assert_eq!(done.out.lines().chain(done.err.lines()).find(long), None);
    }
    assert!(TRAINED.calm.out.contains("posterior sample") && TRAINED.calm.out.contains("exchanged"));
    assert!(TRAINED.baseline.out.contains("perplexity") && TRAINED.baseline.out.contains("bits per byte"));
    // Scores stand in the tables once, not beside the progress.
    assert!(!TRAINED.calm.err.contains("unigram"));
}

#[test]
fn a_run_is_a_record() {
    let house = trained();
    let record: serde_json::Value = serde_json::from_str(&house.read("runs/calm/run.json")).unwrap();
    let command = record["history"][0]["command"].as_array().unwrap();
    assert!(command.iter().any(|c| c == "calm.yaml"), "{record}");
    assert_eq!(record["history"][0]["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(record["history"][0]["device"], "cpu");
    for key in ["corpus_hash", "tokenizer_hash"] {
        assert_eq!(record[key].as_str().unwrap().len(), 64, "{key}");
    }
    assert_eq!(house.ok(&["config", "runs/calm/config.yaml"]), house.ok(&["config", "calm.yaml"]));
    let metrics = house.metrics("runs/calm");
    let named = |name: &str| metrics.iter().filter(|m| m.to_string().contains(name)).count();
    assert!(named("train/loss") >= 80 && named("validation/brier_1") >= 2, "{}", metrics.len());
    let events = std::fs::read_dir(house.path("runs/calm/tensorboard")).unwrap().count();
    assert!(events > 0);
    for file in ["tokenizer.json", "results.json", "autoencoder/step-60/model.safetensors"] {
        assert!(house.path("runs/calm").join(file).is_file(), "{file}");
    }
}

#[test]
fn losses_and_weights_do_not_depend_on_the_number_of_threads() {
    let house = House::new();
    let brief =
        ["--set", "train.autoencoder.steps=3", "--set", "train.lm.steps=3", "--set", "train.lm.eval_every=0"];
    let mut warm = vec![];
    for steps in ["train.autoencoder.warmup_steps=0", "train.lm.warmup_steps=0"] {
        warm.extend(["--set", steps]);
    }
    for threads in ["1", "2"] {
        let out = format!("runs/{threads}");
        let head = ["train", "--config", "calm.yaml", "--out", &out, "--threads", threads, "-q"];
        house.ok(&[&head[..], &brief, &warm].concat());
    }
    for file in ["autoencoder/step-3/model.safetensors", "lm/step-3/model.safetensors", "results.json"] {
        let [a, b] = ["1", "2"].map(|t| std::fs::read(house.path(&format!("runs/{t}/{file}"))).unwrap());
        assert!(a == b, "{file}");
    }
}

#[test]
fn a_finished_run_is_not_trained_again_and_says_so() {
    let (house, copy) = (trained(), House::new());
    house.copy_run("runs/calm", &copy, "runs/calm");
    let done = copy.run(&["train", "--config", "calm.yaml", "--format", "json"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("autoencoder: finished before") && done.err.contains("lm: finished before"));
    let again: serde_json::Value = serde_json::from_str(&done.out).unwrap();
    let mut first: serde_json::Value = serde_json::from_str(&house.read("runs/calm/results.json")).unwrap();
    assert!(first.as_object_mut().unwrap().remove("checksum").is_some());
    assert_eq!(again, first);
}

#[test]
fn quiet_prints_results_only() {
    let (house, copy) = (trained(), House::new());
    house.copy_run("runs/baseline", &copy, "runs/baseline");
    let done = copy.run(&["train", "--config", "baseline.yaml", "--quiet"]);
    assert_eq!((done.code, done.err.as_str()), (0, ""));
    assert!(done.out.contains("BrierLM"));
}

#[test]
fn a_dry_run_prints_the_plan_and_leaves_no_run() {
    let house = House::new();
    let done = house.run(&["train", "--config", "calm.yaml", "--dry-run"]);
    assert_eq!(done.code, 0, "{}", done.err);
    for part in [
        "parameters",
        "memory of a step",
        "moments, f32",
        "kept in the backbone",
        "fits",
        "autoencoder",
        "lm",
    ] {
        assert!(done.out.contains(part), "{part} in\n{}", done.out);
    }
    assert!(!house.path("runs").exists());
    let plan = house.json(&["train", "--config", "calm.yaml", "--dry-run", "--format", "json"]);
    assert_eq!(plan["stages"].as_array().unwrap().len(), 2);
}

#[test]
fn a_run_starts_from_the_weights_of_another_on_other_text() {
    let (house, copy) = (trained(), House::new());
    house.copy_run("runs/calm", &copy, "runs/base");
    copy.write("other.txt", crate::house::text(99));
    let base =
        ["train", "--config", "calm.yaml", "--out", "runs/tuned", "--set", "data.source.path=other.txt"];
    let steps = ["--set", "train.lm.steps=5", "--set", "train.lm.warmup_steps=0", "--init-from", "runs/base"];
    let keep = ["--autoencoder", "runs/base"];
    // Another text has another vocabulary; the remedy that is named works.
    copy.refuses(&[&base[..], &steps, &keep].concat(), &["another tokenizer", "hint:", "tokenizer={file:"]);
    let same = ["--set", "tokenizer={file: runs/base/tokenizer.json}", "--restart"];
    let done = copy.run(&[&base[..], &steps, &keep, &same].concat());
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("autoencoder: taken from") && done.err.contains("lm: starts from"));
}
