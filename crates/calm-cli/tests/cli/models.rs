//! Runs pushed to a hub on this machine, and pulled from it.

use std::fs;
use std::time::{Duration, Instant};

use calm_served::{Answer, Model, Repository, Served};

use crate::house::{Done, House, trained};

const TOKEN: &str = "hf_secret";

/// A command that knows the hub by its variables.
fn run(house: &House, hub: &Served, args: &[&str], token: Option<&str>) -> Done {
    let mut command = house.command(args);
    for name in
        ["HF_TOKEN", "HF_HUB_CACHE", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"]
    {
        command.env_remove(name);
    }
    command.env("HF_ENDPOINT", hub.address()).env("HF_HOME", house.path("hf")).env("NO_PROXY", "127.0.0.1");
    if let Some(token) = token {
        command.env("HF_TOKEN", token);
    }
    let done: Done = command.output().unwrap().into();
    assert!(!format!("{done:?}").contains(TOKEN), "{done:?}");
    done
}

fn well(done: Done) -> Done {
    assert_eq!(done.code, 0, "{}", done.err);
    done
}

/// A house with a finished run of another one.
fn with(run: &str) -> House {
    let house = House::new();
    trained().copy_run(&format!("runs/{run}"), &house, &format!("runs/{run}"));
    house
}

#[test]
fn a_run_comes_back_from_a_hub_as_it_was() {
    for kind in ["calm", "baseline"] {
        let (house, model) = (with(kind), Model::new("owner/tiny", TOKEN));
        let (hub, source) = (model.served(), format!("runs/{kind}"));
        let done = well(run(&house, &hub, &["push", &source, "owner/tiny"], Some(TOKEN)));
        assert!(done.out.contains("only its owner sees") && done.out.contains("commit "), "{}", done.out);
        assert!(model.is_private());
        assert_eq!(model.commits(), 1);
        let files = model.files().unwrap();
        for name in [
            "README.md",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "SHA256SUMS",
            "calm-run/config.yaml",
        ] {
            assert!(files.contains_key(name), "{kind}: no {name} in {:?}", files.keys());
        }
        assert_eq!(files.contains_key("ae/model.safetensors"), kind == "calm");
        // Nothing of it is left where it was made ready, and no secret or machine in what was sent.
        assert!(!house.path("cache/push-owner--tiny").exists());
        let record = String::from_utf8_lossy(&files["calm-run/run.json"]).into_owned();
        assert!(!record.contains("\"host\""), "{record}");
        for (name, content) in &files {
            let text = String::from_utf8_lossy(content);
            assert!(!text.contains(TOKEN), "{kind}: {name}");
        }
        // The same again changes nothing.
        let again = well(run(&house, &hub, &["push", &source, "owner/tiny"], Some(TOKEN)));
        assert!(again.out.contains("the same already"), "{}", again.out);
        assert_eq!(model.commits(), 1);

        let other = House::new();
        let done = well(run(&other, &hub, &["pull", "owner/tiny"], None));
        assert!(
            done.out.contains("pulled into runs/tiny") && done.err.contains("calm generate"),
            "{}",
            done.out
        );
        let text = |house: &House, run: &str| {
            house.ok(&["generate", "--run", run, "-n", "40", "--seed", "5", "--temperature", "1"])
        };
        assert_eq!(text(&house, &source), text(&other, "runs/tiny"), "{kind}");
        let score = |house: &House, run: &str| {
            house.json(&[
                "eval",
                "brierlm",
                "--run",
                run,
                "--data",
                "text.txt",
                "--documents",
                "3",
                "--format",
                "json",
            ])
        };
        let (before, after) = (score(&house, &source), score(&other, "runs/tiny"));
        assert_eq!(before["brier"], after["brier"], "{kind}");
        // It is the same run, and its history says how it came here.
        let record: serde_json::Value = serde_json::from_str(&other.read("runs/tiny/run.json")).unwrap();
        let history = record["history"].as_array().unwrap();
        assert!(history.len() >= 2 && history.last().unwrap()["command"][1] == "pull", "{record}");
        other.refuses(&["pull", "owner/tiny"], &["runs/tiny is not empty", "--out"]);
    }
}

#[test]
fn a_family_without_a_published_form_comes_back_too() {
    let (house, model) = (House::new(), Model::new("owner/patch", TOKEN));
    house.write(
        "patch.yaml",
        "version: 1\ndata: { source: { path: text.txt }, validation: 0.3 }\ntokenizer: { chars: {} }\nmodel:\n  patch:\n    \
         chunk_size: 2\n    backbone: { layers: 1, hidden_size: 32, intermediate_size: 48, heads: 2, init: { normal: 0.1 } }\n\
         train:\n  lm: { steps: 5, batch_rows: 4, context: 32, learning_rate: 5e-3 }\n",
    );
    house.ok(&["train", "--config", "patch.yaml", "--skip-scores"]);
    let hub = model.served();
    well(run(&house, &hub, &["push", "runs/patch", "owner/patch"], Some(TOKEN)));
    let files = model.files().unwrap();
    let config: serde_json::Value = serde_json::from_slice(&files["config.json"]).unwrap();
    assert_eq!(config["model_type"], "calm-patch");
    let card = String::from_utf8_lossy(&files["README.md"]).into_owned();
    assert!(card.contains("this program's own") && card.contains("It was not scored"), "{card}");
    well(run(&house, &hub, &["pull", "owner/patch", "--out", "runs/back"], None));
    let text = |run: &str| house.ok(&["generate", "--run", run, "-n", "40", "--seed", "5"]);
    assert_eq!(text("runs/patch"), text("runs/back"));
}

#[test]
fn the_card_says_what_the_record_says_and_is_shown_before_anything_is_sent() {
    let (house, hub) = (with("calm"), Served::start(|_| Answer::status(500)));
    let args = ["push", "runs/calm", "owner/tiny", "--dry-run", "--license", "mit"];
    let done = well(run(&house, &hub, &args, None));
    assert!(hub.asked().is_empty(), "nothing is asked");
    let card = done.out.split("\nfiles:").next().unwrap();
    for part in [
        "library_name: calm",
        "license: \"mit\"",
        "# tiny",
        "a tiny CALM",
        "calm pull owner/tiny",
        "| language model | 20 |",
        "| **this model** |",
        "| bigram |",
        " ± ",
        "held-out tokens",
        "calm train --config calm.yaml",
        "arXiv 2510.27688",
    ] {
        assert!(card.contains(part), "no `{part}` in\n{card}");
    }
    let results: serde_json::Value = serde_json::from_str(&house.read("runs/calm/results.json")).unwrap();
    let brier = &results["brier"];
    let first =
        format!("{:.2} ± {:.2}", brier["brier"][0].as_f64().unwrap(), brier["brier_se"][0].as_f64().unwrap());
    assert!(card.contains(&first), "no {first} in\n{card}");
    assert!(done.out.contains("model.safetensors") && done.out.contains("calm-run/run.json"), "{}", done.out);
    assert!(!house.path("cache/push-owner--tiny").exists());
}

#[test]
fn what_stands_in_the_way_of_a_push_is_told_with_what_to_do() {
    let house = with("baseline");
    let model = Model::new("owner/tiny", TOKEN).with("README.md", "# mine").with("notes.txt", "kept");
    let hub = model.served();
    let push = ["push", "runs/baseline", "owner/tiny"];
    let failed = |done: Done, parts: &[&str]| {
        assert_eq!(done.code, 1, "{}", done.err);
        parts.iter().for_each(|part| assert!(done.err.contains(part), "no `{part}` in {}", done.err));
    };
    failed(run(&house, &hub, &push, None), &["needs a token", "hint:", "HF_TOKEN"]);
    assert!(hub.asked().is_empty());
    failed(run(&house, &hub, &push, Some(TOKEN)), &["README.md", "hint:", "--replace"]);
    failed(run(&house, &hub, &push, Some("hf_other")), &["hint:"]);
    assert_eq!(model.commits(), 0);
    well(run(&house, &hub, &[&push[..], &["--replace"]].concat(), Some(TOKEN)));
    let files = model.files().unwrap();
    assert!(files["README.md"].starts_with(b"---") && files.contains_key("notes.txt"));
    let new = Model::new("owner/new", TOKEN);
    failed(
        run(&house, &new.served(), &["push", "runs/baseline", "owner/new"], Some("hf_other")),
        &["right to write"],
    );
    assert_eq!(new.files(), None);
    failed(
        run(&house, &hub, &["push", "runs/baseline", "tiny"], Some(TOKEN)),
        &["whose it is", "OWNER/NAME"],
    );
    failed(run(&house, &hub, &["push", "runs/none", "owner/tiny"], Some(TOKEN)), &["is not a run"]);
}

#[test]
fn what_stands_in_the_way_of_a_pull_is_told_and_leaves_no_run() {
    let house = House::new();
    let failed = |hub: &Served, args: &[&str], parts: &[&str]| {
        let done = run(&house, hub, args, None);
        assert_eq!(done.code, 1, "{}", done.err);
        parts.iter().for_each(|part| assert!(done.err.contains(part), "no `{part}` in {}", done.err));
        assert!(!house.path("runs/tiny/config.yaml").exists(), "{args:?}");
    };
    let none = Model::new("owner/tiny", TOKEN).served();
    failed(&none, &["pull", "owner/tiny"], &["does not have the model owner/tiny", "hint:"]);
    let other = Model::new("owner/tiny", TOKEN).with("onnx/model.onnx", "x").served();
    failed(&other, &["pull", "owner/tiny"], &["has no config.json", "hint:"]);
    let foreign = Model::new("owner/tiny", TOKEN)
        .with("config.json", r#"{"architectures": ["BertModel"]}"#)
        .with("model.safetensors", "x".repeat(300))
        .served();
    failed(&foreign, &["pull", "owner/tiny"], &["error:"]);
    failed(&none, &["pull", "owner/tiny", "--autoencoder", "not a name"], &["hint:"]);
    failed(&none, &["pull", "../tiny"], &["no name of a repository", "OWNER/NAME"]);
    // Weights that are not those of the configuration beside them.
    let source = with("baseline");
    let model = Model::new("owner/tiny", TOKEN);
    well(run(&source, &model.served(), &["push", "runs/baseline", "owner/tiny"], Some(TOKEN)));
    let files = model.files().unwrap();
    let config = String::from_utf8_lossy(&files["calm-run/config.yaml"]).into_owned();
    // Without its checksum, as somebody writes who changes it.
    let wider: String = config
        .lines()
        .skip(1)
        .map(|line| line.replace("intermediate_size: 64", "intermediate_size: 96") + "\n")
        .collect();
    assert!(wider.contains("96"));
    let mut changed = Repository::model("owner/tiny");
    for (name, content) in &files {
        match name.as_str() {
            "calm-run/config.yaml" => changed = changed.with(name, &wider),
            "calm-run/SHA256SUMS" => {}
            _ => changed = changed.with(name, content),
        }
    }
    failed(&changed.served(), &["pull", "owner/tiny"], &["cannot be taken over", "shape", "hint:"]);
}

#[test]
fn a_published_model_is_pulled_with_an_autoencoder_from_elsewhere() {
    let house = with("calm");
    house.ok(&["export", "--run", "runs/calm", "--out", "published"]);
    let read = |name: &str| fs::read(house.path("published").join(name)).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&read("config.json")).unwrap();
    // As the authors have it: a path of their machine.
    config["ae_path"] = "/their/machine/autoencoder".into();
    let repository = Repository::model("authors/calm")
        .with("config.json", config.to_string())
        .with("model.safetensors", read("model.safetensors"))
        .with("tokenizer.json", read("tokenizer.json"));
    let autoencoder = Repository::model("authors/ae")
        .with("config.json", read("ae/config.json"))
        .with("model.safetensors", read("ae/model.safetensors"));
    let hub = Served::start(move |asked| {
        if asked.path.contains("authors/ae") || (asked.elsewhere && asked.before > 0) {
            return autoencoder.answer(asked);
        }
        let first = repository.answer(asked);
        if first.status == 404 { autoencoder.answer(asked) } else { first }
    });
    let done = well(run(&house, &hub, &["pull", "authors/calm", "--out", "runs/own"], None));
    assert!(
        done.err.contains("ae_path") && done.out.contains("pulled into runs/own"),
        "{}{}",
        done.out,
        done.err
    );
    let args =
        ["pull", "authors/calm", "--out", "runs/other", "--autoencoder", "authors/ae", "--data", "text.txt"];
    well(run(&house, &hub, &args, None));
    // The reference predicts nothing from a start of document, so that a prompt is needed.
    let text = |run: &str| house.ok(&["generate", "--run", run, "--prompt", "ana bolo du elf", "-n", "30"]);
    assert_eq!(text("runs/own"), text("runs/other"));
    assert!(house.read("runs/other/run.json").contains("hf://authors/calm@"));
}

#[test]
fn a_push_that_is_interrupted_names_nothing_and_leaves_nothing_here() {
    let (house, model) = (with("baseline"), Model::new("owner/tiny", TOKEN));
    let own = model.clone();
    let slow = Served::start(move |asked| {
        if asked.method == "PUT" {
            std::thread::sleep(Duration::from_secs(2));
        }
        own.answer(asked)
    });
    let mut command = house.command(&["push", "runs/baseline", "owner/tiny"]);
    command.env("HF_ENDPOINT", slow.address()).env("HF_HOME", house.path("hf")).env("NO_PROXY", "127.0.0.1");
    command.env("HF_TOKEN", TOKEN).env_remove("HF_HUB_OFFLINE").stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let began = Instant::now();
    while !slow.asked().iter().any(|asked| asked.method == "PUT") {
        assert!(began.elapsed() < Duration::from_secs(60) && child.try_wait().unwrap().is_none());
        std::thread::sleep(Duration::from_millis(10));
    }
    #[cfg(unix)]
    {
        let id = child.id().to_string();
        assert!(std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap().success());
        let done = child.wait_with_output().unwrap();
        assert_eq!(done.status.code(), Some(143), "{}", String::from_utf8_lossy(&done.stderr));
        assert_eq!(model.commits(), 0);
        assert_eq!(model.files().unwrap().into_keys().collect::<Vec<_>>(), [".gitattributes"]);
        assert!(!house.path("cache/push-owner--tiny").exists());
    }
    #[cfg(not(unix))]
    let _ = child.kill();
    well(run(&house, &model.served(), &["push", "runs/baseline", "owner/tiny"], Some(TOKEN)));
    assert_eq!(model.commits(), 1);
}
