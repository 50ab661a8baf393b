//! Ablations: what is trained, shared, kept, reported, and what happens when something fails or stops.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

use crate::house::{BASELINE, CALM, House};

/// Two chunk sizes and a baseline from two seeds.
const K: &str = r"version: 1
description: a tiny ablation
budget: { tokens: 7680 }
seeds: [1, 2]
context_tokens: 96
validation: { points: 2, documents: 2, tokens: 48 }
set: { tokenizer: { bpe: { vocab_size: 300 } } }
variants:
  - { name: baseline, config: baseline.yaml, grid: false }
  - { name: calm, config: calm.yaml }
grid: { model.calm.chunk_size: [3, 4] }
score: { documents: 6, tokens_per_document: 48, bootstrap: 50, samples: 4, draws: 8, rounds: 1, prompt_tokens: 12 }
";

fn house() -> House {
    let house = House::new();
    house.write("k.yaml", K);
    // Characters and byte pairs do not compare: `set` gives both the same tokenizer.
    assert!(BASELINE.contains("chars"));
    house
}

/// The file with a run's scores.
fn scores(house: &House, run: &str) -> String {
    let files = fs::read_dir(house.path(&format!("runs/k/{run}"))).unwrap().flatten();
    let names: Vec<String> = files.map(|f| f.file_name().into_string().unwrap()).collect();
    let name = names.iter().find(|n| n.starts_with("scores-")).unwrap();
    format!("{run}/{name}")
}

fn changed(house: &House, name: &str) -> SystemTime {
    fs::metadata(house.path(name)).unwrap().modified().unwrap()
}

#[test]
fn an_ablation_trains_scores_measures_and_reports_and_does_nothing_twice() {
    let house = house();
    let plan = house.ok(&["ablate", "--config", "k.yaml", "--dry-run"]);
    for part in ["autoencoder calm+chunk_size=3", "baseline", "left to train: 2 autoencoder(s), 6 run(s)"] {
        assert!(plan.contains(part), "{part} in\n{plan}");
    }
    assert!(plan.lines().all(|l| l.chars().count() <= 80), "{plan}");
    assert!(!house.path("runs/k").exists());

    let table = house.ok(&["ablate", "--config", "k.yaml"]);
    for part in ["Brier-1", "calm+chunk_size=4", "bigram", "differences to baseline"] {
        assert!(table.contains(part), "{part} in\n{table}");
    }
    assert!(table.lines().all(|l| l.chars().count() <= 80), "{table}");
    let page = house.read("runs/k/report.html");
    assert!(page.contains("calm+chunk_size=3") && page.contains("a tiny ablation"));
    assert_eq!(house.read("runs/k/report.csv").lines().count(), 7);

    let study: Value = serde_json::from_str(&house.read("runs/k/study.json")).unwrap();
    let variants = study["variants"].as_array().unwrap();
    assert_eq!(variants.len(), 3);
    let positions: Vec<&Value> = variants.iter().map(|v| &v["aligned"]["positions"]).collect();
    assert!(positions[0].as_u64() > Some(0) && positions.iter().all(|p| *p == positions[0]), "{positions:?}");
    for v in variants {
        let runs = v["runs"].as_array().unwrap();
        assert_eq!(runs.len(), 2);
        assert_eq!(runs[0]["curve"].as_array().unwrap().len(), 2);
        assert_ne!(runs[0]["brier"], runs[1]["brier"], "seeds differ");
        assert!(v["aligned"]["brier"][0]["seeds"].as_f64() > Some(0.0));
        let measured = &v["measured"];
        assert!(measured["training"].as_f64() > Some(0.0) && measured["generation"].as_f64() > Some(0.0));
        assert!(v["reference"]["brier"][0]["value"].is_f64());
        assert!(runs[0]["samples"][1]["text"].is_string());
    }
    assert_eq!(study["differences"].as_array().unwrap().len(), 2);
    assert_eq!(study["autoencoders"].as_array().unwrap().len(), 2);
    // Both seeds of a chunk size stand on one autoencoder.
    let model = |run: &str| {
        let folder = house.path(&format!("runs/k/{run}/autoencoder/step-0/model.safetensors"));
        fs::read(folder).unwrap()
    };
    assert_eq!(model("calm+chunk_size=3-seed1"), model("calm+chunk_size=3-seed2"));

    // A second time: nothing is trained, scored or measured, and the numbers are the same.
    let kept = [&scores(&house, "calm+chunk_size=3-seed1"), "baseline-seed2/lm", "costs.json"];
    let before = kept.map(|f| changed(&house, &format!("runs/k/{f}")));
    assert_eq!(house.ok(&["ablate", "--config", "k.yaml"]), table);
    assert_eq!(before, kept.map(|f| changed(&house, &format!("runs/k/{f}"))));

    // More seeds go on with what is there; other settings do not.
    let more = house.run(&["ablate", "--config", "k.yaml", "--set", "seeds=[1, 2, 5]", "--dry-run"]);
    assert!(more.out.contains("left to train: 0 autoencoder(s), 3 run(s)"), "{}", more.out);
    let other = &[
        "ablate",
        "--config",
        "k.yaml",
        "--set",
        "set={train.lm.learning_rate: 1e-4, tokenizer: {bpe: {vocab_size: 300}}}",
    ];
    house.refuses(other, &["another configuration", "train.lm.learning_rate", "hint: ", "--out"]);

    // The report is that of the runs, whatever has become of the files they were made from.
    house.write("calm.yaml", "nothing");
    let again = house.ok(&["report", "runs/k"]);
    assert!(again.starts_with(&table[..table.find("differences").unwrap()]), "{again}");

    // Another text under the same name is not trained on beside the old one.
    house.write("calm.yaml", CALM);
    let text = house.read("text.txt");
    house.write("text.txt", text.replace("fugo", "figo"));
    let more = ["ablate", "--config", "k.yaml", "--set", "seeds=[1, 2, 5]"];
    house.refuses(&more, &["has changed since", "hint: ", "--out"]);
    house.write("text.txt", text);

    // The runs alone, beside each other; their other scores stay.
    let runs = ["runs/k/calm+chunk_size=3-seed1", "runs/k/calm+chunk_size=3-seed2", "runs/k/baseline-seed1"];
    let beside = house.ok(&[&["report"][..], &runs, &["--out", "beside"]].concat());
    assert!(beside.contains("differences to calm+chunk_size=3"), "{beside}");
    let study: Value = serde_json::from_str(&house.read("beside/study.json")).unwrap();
    assert_eq!(study["variants"].as_array().unwrap().len(), 2);
    assert_eq!(study["variants"][0]["runs"].as_array().unwrap().len(), 2);
    // Seed 2 has no partner here, and the report says so.
    assert!(beside.contains("note: the difference of baseline"), "{beside}");
    assert_eq!(before, kept.map(|f| changed(&house, &format!("runs/k/{f}"))));
}

#[test]
fn a_run_that_fails_is_reported_and_the_others_are_finished() {
    let house = house();
    let text = K
        .replace("seeds: [1, 2]", "seeds: [1]")
        .replace("[3, 4]", "[3]")
        .replace("grid: {", "  - { name: wild, config: calm.yaml, grid: false, set: { train.lm.learning_rate: 1e30 } }\ngrid: {")
        .replace("tokens: 48 }", "tokens: 24 }");
    house.write("k.yaml", text);
    let done = house.run(&["ablate", "--config", "k.yaml"]);
    assert_eq!(done.code, 1, "{}", done.err);
    for part in ["error: 1 run failed", "wild-seed1: lm: ", "hint: "] {
        assert!(done.err.contains(part), "{part} in\n{}", done.err);
    }
    assert!(done.out.contains("calm"), "{}", done.out);
    let study: Value = serde_json::from_str(&house.read("runs/k/study.json")).unwrap();
    assert_eq!(study["failures"][0]["run"], "wild-seed1");
    let trained: Vec<usize> =
        study["variants"].as_array().unwrap().iter().map(|v| v["runs"].as_array().unwrap().len()).collect();
    assert_eq!(trained, [1, 1, 0]);
    assert!(house.read("runs/k/report.html").contains("wild-seed1"));
}

/// An ablation whose runs are long, begun: its first run is being trained.
#[cfg(unix)]
fn begun(house: &House) -> std::process::Child {
    let text = K.replace("seeds: [1, 2]", "seeds: [1]").replace("7680", "200000").replace("[3, 4]", "[3]");
    house.write("k.yaml", text);
    let mut child = house
        .command(&["ablate", "--config", "k.yaml"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    let metrics = house.path("runs/k/baseline-seed1/metrics.jsonl");
    while !fs::read_to_string(&metrics).is_ok_and(|m| m.contains("train/loss")) {
        assert!(begun.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    child
}

#[cfg(unix)]
fn kill(child: &std::process::Child, signal: &str) {
    let kill = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(kill.success());
}

#[cfg(unix)]
#[test]
fn a_stopped_ablation_goes_on_where_it_was() {
    let house = house();
    let child = begun(&house);
    kill(&child, "-TERM");
    let out = child.wait_with_output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(143), "{err}");
    assert!(err.contains("\nstopped; what was finished so far is kept") && !err.contains("error:"), "{err}");
    let steps = fs::read_dir(house.path("runs/k/baseline-seed1/lm")).unwrap().count();
    assert_eq!(steps, 1, "the stopped run left a checkpoint");
    let done = house.run(&["ablate", "--config", "k.yaml", "--set", "score.rounds=0"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("lm: goes on after step"), "{}", done.err);
    assert!(done.out.contains("baseline"), "{}", done.out);
    // A budget that the folders do not have is refused before the plan, as the real run refuses it.
    for dry in [&[][..], &["--dry-run"]] {
        let changed = ["ablate", "--config", "k.yaml", "--set", "budget={tokens: 300000}"];
        house.refuses(&[&changed[..], dry].concat(), &["another configuration", "train.lm.steps", "--out"]);
    }
}

#[cfg(unix)]
#[test]
fn a_run_ends_with_the_ablation_that_was_killed_and_the_next_one_goes_on_at_once() {
    let house = house();
    let mut child = begun(&house);
    kill(&child, "-KILL");
    child.wait().unwrap();
    // The next one may come before the orphan has written its checkpoint: it waits for it.
    let done = house.run(&["ablate", "--config", "k.yaml", "--set", "score.rounds=0"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("taken over") && done.err.contains("lm: goes on after step"), "{}", done.err);
    let record: Value = serde_json::from_str(&house.read("runs/k/baseline-seed1/run.json")).unwrap();
    assert!(record["history"][0]["stopped"].is_string(), "{record}");
    // No step was written twice.
    let text = house.read("runs/k/baseline-seed1/metrics.jsonl");
    let steps: Vec<u64> = text
        .lines()
        .filter(|l| l.contains("train/loss"))
        .map(|l| serde_json::from_str::<Value>(l).unwrap()["step"].as_u64().unwrap())
        .collect();
    assert!(steps.windows(2).all(|w| w[0] < w[1]), "{steps:?}");
}

#[test]
fn what_cannot_be_compared_or_found_is_refused_before_anything_is_trained() {
    let house = house();
    let refuses = |from: &str, to: &str, all: &[&str]| {
        house.write("bad.yaml", K.replace(from, to));
        house.refuses(&["ablate", "--config", "bad.yaml"], all);
    };
    refuses("config: calm.yaml", "config: clam", &["no shipped configuration", "quickstart"]);
    refuses("context_tokens: 96", "context_tokens: 95", &["whole chunks"]);
    refuses("set: { tokenizer: { bpe: { vocab_size: 300 } } }", "set: {}", &["another tokenizer"]);
    refuses("model.calm.chunk_size", "model.calm.chunksize", &["chunksize", "unknown key"]);
    refuses("tokens: 7680", "tokens: 5", &["one step"]);
    house.refuses(&["ablate", "--config", "nothing"], &["ablate-k"]);
    house.refuses(&["report", "nowhere"], &["nowhere", "config.yaml"]);
    refuses("score: {", "score: { every: 5,", &["do not start there", "multiple of K"]);
    refuses("[3, 4]", "[3, 3]", &["is there twice"]);
    // Nothing is there but the folder and its lock.
    assert_eq!(fs::read_dir(house.path("runs/bad")).unwrap().count(), 1);
}
