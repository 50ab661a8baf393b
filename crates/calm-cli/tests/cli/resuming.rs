//! What `--resume` and `--restart` may change, what an explosion leaves, and text in which there is nothing to learn.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;

use crate::house::{House, trained};

/// Every file below a folder with its bytes, but for the lock.
fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![folder.to_owned()];
    while let Some(at) = left.pop() {
        for entry in fs::read_dir(at).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else if entry.file_name() != ".lock" {
                found.insert(entry.path().display().to_string(), fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "--config", "calm.yaml"], more].concat()
}

fn json(house: &House, name: &str) -> Value {
    serde_json::from_str(&house.read(name)).unwrap()
}

#[test]
fn what_would_make_the_record_untrue_is_refused_before_anything_is_touched() {
    let house = House::new();
    trained().copy_run("runs/calm", &house, "runs/calm");
    let before = files(&house.path("runs/calm"));
    for (set, parts) in [
        ("train.autoencoder.steps=90", &["stands on the autoencoder", "--init-from", "--restart"][..]),
        ("train.autoencoder.steps=5", &["60 steps of it are done"]),
        ("train.lm.batch_rows=2", &["stage lm is finished", "raise train.lm.steps"]),
        ("train.lm.context=16", &["stage lm is finished"]),
        ("train.autoencoder.learning_rate=1e-4", &["stage autoencoder is finished"]),
        ("train.lm.steps=10", &["20 steps of it are done"]),
        ("bos_chunk=false", &["settled", "--out"]),
        ("data.validation=0.4", &["the text has changed", "data.validation: 0.3 -> 0.4"]),
        ("data.source.path=nowhere.txt", &["nowhere.txt", "no such file"]),
    ] {
        house.refuses(&train(&["--resume", "--set", set]), &[parts, &["hint:"]].concat());
        assert!(files(&house.path("runs/calm")) == before, "{set}");
    }
    // A restart, too, looks at everything before it removes anything.
    for set in [&["--set", "data.source.path=nowhere.txt"][..], &["--init-from", "nowhere"]] {
        house.error(&train(&[&["--restart"], set].concat()));
        assert!(files(&house.path("runs/calm")) == before, "{set:?}");
    }
}

#[test]
fn an_allowed_change_is_written_beside_the_first_configuration_and_later_commands_know_it() {
    let house = House::new();
    trained().copy_run("runs/calm", &house, "runs/calm");
    let began = house.read("runs/calm/config.yaml");
    let set = ["--resume", "--set", "train.lm.steps=24", "--set", "train.lm.batch_rows=2"];
    let done = house.run(&train(&set));
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("changed from here on: train.lm.batch_rows: 4 -> 2"), "{}", done.err);
    assert_eq!(house.read("runs/calm/config.yaml"), began);
    let record = json(&house, "runs/calm/run.json");
    let entry = &record["history"][1];
    assert_eq!(
        entry["changes"][1],
        serde_json::json!({"key": "train.lm.steps", "old": 20, "new": 24}),
        "{entry}"
    );
    assert_eq!(entry["after"], serde_json::json!({"autoencoder": 60, "lm": 20}));
    assert!(entry["time"].is_string() && entry["host"].is_string() && entry["command"].is_array());
    // The run's own file means the run as it is now; the first configuration is another one by now.
    let own = ["train", "--config", "runs/calm/config.yaml", "--out", "runs/calm", "--resume"];
    let again = house.run(&own);
    assert!(again.code == 0 && again.err.contains("lm: finished before"), "{}", again.err);
    house.refuses(&train(&["--resume"]), &["train.lm.steps: 24 -> 20", "24 steps of it are done"]);
    // Tokens are those that were trained: 20 steps of 4 rows and 4 of 2.
    house.ok(&["report", "runs/calm", "--out", "page"]);
    let study = json(&house, "page/study.json");
    let curve = study["variants"][0]["runs"][0]["curve"].as_array().unwrap();
    assert_eq!(curve.last().unwrap()["tokens"], 20 * 4 * 32 * 3 + 4 * 2 * 32 * 3);

    // The same text at another place is the same text.
    fs::create_dir(house.path("moved")).unwrap();
    fs::rename(house.path("text.txt"), house.path("moved/text.txt")).unwrap();
    house.refuses(&["eval", "brierlm"], &["text.txt", "no such file"]);
    let moved = ["--set", "data.source.path=moved/text.txt"];
    house.ok(&[&own[..], &moved].concat());
    house.ok(&["eval", "brierlm", "--documents", "2"]);
}

#[cfg(unix)]
#[test]
fn a_stop_at_a_validation_makes_it_up_and_all_numbers_are_those_of_the_run_that_was_not_stopped() {
    let house = House::new();
    // Every step validates: wherever it is stopped, one is due.
    let set =
        "train.lm={steps: 40, batch_rows: 2, context: 32, learning_rate: 1e-3, log_every: 1, eval_every: 1}";
    let args =
        |out: &'static str| ["train", "--config", "baseline.yaml", "--set", set, "--out", out, "--quiet"];
    house.ok(&args("runs/whole"));
    let mut stops = 0;
    for _ in 0..200 {
        let resume: &[&str] = if stops > 0 { &["--resume"] } else { &[] };
        let mut command = house.command(&[&args("runs/stopped")[..], resume].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let lines =
            || fs::read_to_string(house.path("runs/stopped/metrics.jsonl")).map_or(0, |t| t.lines().count());
        let (before, begun) = (lines(), std::time::Instant::now());
        while lines() < before + 8 && child.try_wait().unwrap().is_none() {
            assert!(begun.elapsed() < std::time::Duration::from_secs(60));
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        let _ = std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).output();
        match child.wait().unwrap().code() {
            Some(143) => stops += 1,
            code => {
                assert_eq!(code, Some(0));
                break;
            }
        }
    }
    assert!(stops > 0 && house.path("runs/stopped/results.json").is_file());
    let numbers = |run: &str| {
        let lines = calm_run::metrics::read_lines(&house.path(&format!("{run}/metrics.jsonl"))).unwrap();
        let kept = lines.into_iter().map(|mut line| {
            line.values.remove("train/tokens_per_second");
            line.values.remove("train/data_wait");
            (line.step, line.values)
        });
        kept.collect::<Vec<_>>()
    };
    assert_eq!(numbers("runs/whole"), numbers("runs/stopped"));
    assert_eq!(house.read("runs/whole/results.json"), house.read("runs/stopped/results.json"));
}

#[test]
fn after_an_explosion_the_good_checkpoint_is_named_and_the_advice_works() {
    let house = House::new();
    let lm = |rate: &str, more: &str| {
        format!(
            "train.lm={{steps: 60, batch_rows: 4, context: 32, learning_rate: {rate}, log_every: 1, eval_every: 10, \
             checkpoint_every: 5{more}}}"
        )
    };
    let run = |set: &str, more: &[&str]| {
        house.run(
            &[&["train", "--config", "baseline.yaml", "--out", "runs/wild", "--set", set][..], more].concat(),
        )
    };
    // Good at first; then the rate is raised until nothing is a number any more.
    let good = lm("1e-3", "").replace("steps: 60", "steps: 20");
    assert_eq!(run(&good, &[]).code, 0);
    // Each step leaves a checkpoint: the one that blew up the weights is finite itself.
    let done = run(&lm("1e30", "").replace("checkpoint_every: 5", "checkpoint_every: 1"), &["--resume"]);
    assert_eq!(done.code, 1, "{}", done.err);
    let error = &done.err[done.err.find("error: ").unwrap()..];
    for part in ["lm: ", "good", "hint:", "--set train.lm.learning_rate", "step 20"] {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert!(json(&house, "runs/wild/run.json")["history"][1]["failure"].is_string());
    let done = run(&lm("1e-3", ""), &["--resume"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("lm: goes on after step 20 of 60"), "{}", done.err);
    let last =
        house.metrics("runs/wild").into_iter().rev().find(|l| l["values"]["train/loss"].is_f64()).unwrap();
    assert!(last["values"]["train/loss"].as_f64().unwrap() < 4.0, "{last}");
}

#[test]
fn a_spike_is_left_out_or_gone_back_from_as_the_configuration_says() {
    let house = House::new();
    // A threshold so low that noise is a spike: what is done about one can be seen.
    for (action, said) in [("skip", "is left out"), ("rollback", "the batches from there on are left out")] {
        let set = format!(
            "train.lm={{steps: 40, batch_rows: 2, context: 32, learning_rate: 1e-3, log_every: 1, checkpoint_every: 4, \
             divergence: {{action: {action}, window: 8, threshold: 1.7}}}}"
        );
        let out = format!("runs/{action}");
        let done = house.run(&["train", "--config", "baseline.yaml", "--set", &set, "--out", &out]);
        assert_eq!(done.code, 0, "{}", done.err);
        assert!(done.err.contains(said), "{action}: {}", done.err);
        // Every step stands in the metrics once.
        let lines = calm_run::metrics::read_lines(&house.path(&format!("{out}/metrics.jsonl"))).unwrap();
        let steps: Vec<u64> =
            lines.iter().filter(|l| l.values.contains_key("train/loss")).map(|l| l.step).collect();
        assert_eq!(steps, (1..=40).collect::<Vec<_>>());
        let state = json(&house, &format!("{out}/lm/step-40/state.json"));
        assert_eq!(state["skipped"].is_array(), action == "rollback", "{state}");
    }
    house.refuses(
        &["train", "--config", "baseline.yaml", "--set", "train.lm.divergence.action=rollback"],
        &["train.lm.divergence.action", "checkpoint_every"],
    );
}

#[test]
fn weights_that_are_no_numbers_are_refused_by_all_who_use_them() {
    let house = House::new();
    trained().copy_run("runs/calm", &house, "runs/calm");
    for name in ["lm/step-20", "autoencoder/step-60"] {
        // Weights that were written like that: the state knows of no others.
        let state = format!("runs/calm/{name}/state.json");
        let mut json: Value = serde_json::from_str(&house.read(&state)).unwrap();
        for key in ["files", "checksum"] {
            json.as_object_mut().unwrap().remove(key).unwrap();
        }
        house.write(&state, json.to_string());
        let name = format!("runs/calm/{name}/model.safetensors");
        let good = fs::read(house.path(&name)).unwrap();
        let mut bad = good.clone();
        let end = bad.len();
        bad[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        house.write(&name, &bad);
        for args in [
            &["generate", "--run", "runs/calm", "--checkpoint", "latest"][..],
            &["eval", "brierlm", "--run", "runs/calm", "--checkpoint", "latest"],
            &["export", "--run", "runs/calm", "--out", "exported", "--checkpoint", "latest"],
        ] {
            house.refuses(args, &["model.safetensors", "not finite", "hint:"]);
        }
        if name.contains("autoencoder/") {
            house.refuses(
                &["report", "runs/calm", "--out", "page"],
                &["can be scored", "not finite", "hint:"],
            );
            house.refuses(&["bench", "--run", "runs/calm", "--seconds", "0.1"], &["not finite", "hint:"]);
        } else {
            let more = train(&["--resume", "--set", "train.lm.steps=22"]);
            house.refuses(&more, &["model.safetensors", "not finite", "hint:"]);
        }
        house.write(&name, &good);
        let _ = fs::remove_dir_all(house.path("exported"));
    }
}

#[test]
fn training_on_nothing_is_an_error_before_the_first_step() {
    let house = House::new();
    let lines: String =
        (0..400).map(|i| format!("{{\"text\": \"{}\"}}\n", (b'a' + (i % 20) as u8) as char)).collect();
    house.write("short.jsonl", lines);
    let short = train(&["--set", "data.source.path=short.jsonl", "--set", "tokenizer={chars: {}}"]);
    let none = ["--set", "bos_chunk=false"];
    house.refuses(
        &[&short[..], &none].concat(),
        &["nothing to predict", "training text", "K = 3", "--set bos_chunk=true", "model.calm.chunk_size"],
    );
    assert!(!house.path("runs/calm/lm").exists() && !house.path("runs/calm/metrics.jsonl").exists());
    let brief = ["--set", "train.autoencoder.steps=5", "--set", "train.lm.steps=5"];
    house.ok(&[&short[..], &brief, &["--skip-scores", "-q"]].concat());
}

#[test]
fn a_checkpoint_says_what_was_read_and_a_resume_reads_on_from_there_or_refuses() {
    let house = House::new();
    let train = |run: &str, steps: &str, more: &[&str]| -> Vec<String> {
        let every = "train.lm.checkpoint_every=5";
        let args =
            ["train", "--config", "baseline.yaml", "--skip-scores", "--out", run, "--set", every, "--set"];
        let steps = format!("train.lm.steps={steps}");
        args.iter().chain([&steps.as_str()]).chain(more).map(|arg| (*arg).to_owned()).collect()
    };
    let ok = |args: Vec<String>| house.ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
    let state = |run: &str, step: u64| format!("{run}/lm/step-{step}/state.json");
    let rows = |run: &str, step: u64| json(&house, &state(run, step))["rows"].clone();
    ok(train("runs/whole", "15", &[]));
    ok(train("runs/parts", "10", &[]));
    let at_ten = rows("runs/parts", 10);
    assert!(at_ten["all"].is_string() && at_ten["last"] != at_ten["all"], "{at_ten}");
    assert_eq!(rows("runs/whole", 10), at_ten);
    // Cut into other pieces the rows are the same.
    ok(train("runs/parts", "15", &["--resume", "--set", "train.lm.accumulation=2"]));
    assert_eq!(rows("runs/whole", 15), rows("runs/parts", 15));
    assert_ne!(rows("runs/whole", 15)["all"], at_ten["all"]);
    let mut other = json(&house, &state("runs/parts", 15));
    other["rows"]["last"] = at_ten["last"].clone();
    other.as_object_mut().unwrap().remove("checksum");
    house.write(&state("runs/parts", 15), other.to_string());
    let again = train("runs/parts", "20", &["--resume"]);
    let again: Vec<&str> = again.iter().map(String::as_str).collect();
    house.refuses(&again, &["the rows of step 15 are not those", "--restart"]);
}
