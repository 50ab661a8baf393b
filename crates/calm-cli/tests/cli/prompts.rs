//! `calm generate --prompts`: many prompts in, as many answers out.

use std::fs;
use std::io::Write;
use std::process::Stdio;
use std::time::{Duration, Instant};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::Value;

use crate::house::{Done, House, trained};

/// Prompts of many lengths, in records with other fields.
fn prompts(n: usize) -> String {
    let words = ["ana ", "bolo ", "cédille ", "日本 ", "kel "];
    let line = |i: usize| {
        let prompt: String = (0..i * 5 % 9).map(|j| words[(i + j * j) % 5]).collect();
        let prompt = prompt.trim_end();
        format!("{}\n", serde_json::json!({ "id": i, "prompt": prompt, "meta": { "z": 1, "a": [i, null] } }))
    };
    (0..n).map(line).collect()
}

/// A trained run, its name, a file of prompts in it.
fn asked(house: &House, name: &str, n: usize) -> String {
    let name = format!("{name}.jsonl");
    house.write(&name, prompts(n));
    name
}

fn generate<'a>(run: &'a str, prompts: &'a str, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["generate", "--run", run, "-n", "9", "--prompts", prompts, "--out", out];
    [&args, more].concat()
}

fn records(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn answers_come_in_order_with_their_records_and_do_not_depend_on_the_batch() {
    let house = trained();
    let asked = asked(house, "order", 23);
    for (run, name) in [("runs/calm", "calm"), ("runs/baseline", "baseline")] {
        let mut files = Vec::new();
        for batch in ["1", "3", "8"] {
            let out = format!("order-{name}-{batch}.jsonl");
            let done = house.run(&generate(run, &asked, &out, &["--batch", batch]));
            assert!(done.code == 0 && done.out.is_empty(), "{}", done.err);
            assert!(done.err.contains("23 prompts"), "{}", done.err);
            files.push(house.read(&out));
        }
        assert!(files[0] == files[1] && files[0] == files[2], "{run}: {files:?}");
        let (answers, asked) = (records(&files[0]), records(&prompts(23)));
        assert_eq!(answers.len(), 23);
        for (answer, asked) in answers.iter().zip(&asked) {
            for field in ["id", "prompt", "meta"] {
                assert_eq!(answer[field], asked[field]);
            }
            let tokens = answer["tokens"].as_u64().unwrap();
            assert!(tokens <= 9 && answer["text"].is_string(), "{answer}");
            match answer["stop"].as_str().unwrap() {
                "length" => assert!(tokens > 0),
                other => assert_eq!(other, "end"),
            }
        }
        let texts: std::collections::BTreeSet<_> = answers.iter().map(|a| a["text"].to_string()).collect();
        assert!(texts.len() > 5, "{texts:?}");
        assert!(
            files[0].starts_with(r#"{"id":0,"meta":{"z":1,"a":[0,null]},"prompt":"","text":"#),
            "{}",
            files[0]
        );
    }
    // Another seed is another text; so is a temperature, alone or not.
    let out = |more: &[&str]| {
        let done = house.run(&generate("runs/calm", &asked, "-", more));
        assert_eq!(done.code, 0, "{}", done.err);
        done.out
    };
    assert_eq!(out(&[]), house.read("order-calm-1.jsonl"));
    assert_ne!(out(&["--seed", "2"]), out(&[]));
    let cool = ["-t", "0.5", "--draws", "16"];
    assert_eq!(out(&[&cool[..], &["--batch", "1"]].concat()), out(&[&cool[..], &["--batch", "7"]].concat()));
}

#[test]
fn packed_prompts_pipes_and_other_fields_are_read() {
    let house = trained();
    let asked = asked(house, "packed", 6);
    let plain = house.ok(&generate("runs/calm", &asked, "-", &[]));
    let mut gz = GzEncoder::new(Vec::new(), Compression::fast());
    gz.write_all(prompts(6).as_bytes()).unwrap();
    house.write("packed.jsonl.gz", gz.finish().unwrap());
    house.write("packed.jsonl.zst", zstd::encode_all(prompts(6).as_bytes(), 1).unwrap());
    for name in ["packed.jsonl.gz", "packed.jsonl.zst"] {
        assert_eq!(house.ok(&generate("runs/calm", name, "-", &[])), plain);
    }
    let mut child = house
        .command(&["generate", "--run", "runs/calm", "-n", "9", "--prompts", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(prompts(6).as_bytes()).unwrap();
    let done = Done::from(child.wait_with_output().unwrap());
    assert!(done.code == 0 && done.out == plain, "{done:?}");
    // A text, or any field; the answer calls it the prompt.
    for (field, more) in [("text", &[][..]), ("question", &["--field", "question"])] {
        house.write("field.jsonl", prompts(6).replace("\"prompt\"", &format!("\"{field}\"")));
        assert_eq!(house.ok(&generate("runs/calm", "field.jsonl", "-", more)), plain, "{field}");
    }
}

#[test]
fn a_stopped_call_is_continued_where_its_answers_end() {
    let house = trained();
    let asked = asked(house, "stopped", 40);
    house.ok(&generate("runs/calm", &asked, "whole.jsonl", &[]));
    let whole = house.read("whole.jsonl");
    // Killed in the middle.
    let long = ["--batch", "2", "-n", "9"];
    let mut child = house
        .command(&generate("runs/calm", &asked, "killed.jsonl", &long[..2]))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while fs::metadata(house.path("killed.jsonl")).map_or(0, |m| m.len()) < 200 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    house.ok(&generate("runs/calm", &asked, "killed.jsonl", &["--batch", "5"]));
    assert_eq!(house.read("killed.jsonl"), whole);
    // Torn anywhere, also inside of a character.
    for keep in [1, whole.len() / 3, whole.len() / 2, whole.len() - 1, whole.find('日').unwrap() + 1] {
        fs::write(house.path("killed.jsonl"), &whole.as_bytes()[..keep]).unwrap();
        house.ok(&generate("runs/calm", &asked, "killed.jsonl", &["--batch", "3"]));
        assert_eq!(house.read("killed.jsonl"), whole, "from {keep} bytes");
    }
    // All there is nothing to do; more prompts are answered behind the others.
    let done = house.run(&generate("runs/calm", &asked, "killed.jsonl", &[]));
    assert!(done.code == 0 && done.err.contains("40 prompts are answered already"), "{}", done.err);
    house.write(&asked, prompts(43));
    house.ok(&generate("runs/calm", &asked, "killed.jsonl", &[]));
    let grown = house.read("killed.jsonl");
    assert!(grown.starts_with(&whole) && records(&grown).len() == 43);
}

#[test]
fn other_prompts_other_settings_and_other_files_are_refused_by_name() {
    let house = trained();
    let asked = asked(house, "refused", 8);
    let out = "refused-answers.jsonl";
    house.ok(&generate("runs/calm", &asked, out, &[]));
    let answers = house.read(out);
    let refused = |args: &[&str], parts: &[&str]| {
        let error = house.error(args);
        assert!(error.contains("hint: "), "{error}");
        parts.iter().for_each(|part| assert!(error.contains(part), "{part}: {error}"));
        assert_eq!(house.read(out), answers, "nothing was changed");
    };
    refused(&generate("runs/calm", &asked, out, &["--seed", "7"]), &["--seed 1, not 7"]);
    refused(&generate("runs/calm", &asked, out, &["-t", "0.5"]), &["--temperature 1.0, not 0.5"]);
    refused(&generate("runs/baseline", &asked, out, &[]), &["weights"]);
    house.write(&asked, prompts(8).replacen("\"id\":5", "\"id\":50", 1));
    refused(&generate("runs/calm", &asked, out, &[]), &["line 6", "another prompt"]);
    house.write(&asked, prompts(7));
    refused(&generate("runs/calm", &asked, out, &[]), &["line 8", "only 7 prompts"]);
    house.write(&asked, prompts(8));
    fs::remove_file(house.path(&format!("{out}.settings.json"))).unwrap();
    refused(&generate("runs/calm", &asked, out, &[]), &["settings.json"]);
    // What is wrong with a prompt is found before any is answered.
    for (line, part) in [
        ("{\"id\": 3}", "line 9: no `prompt` field"),
        ("{\"prompt\": 3}", "line 9: no `prompt` field"),
        ("[\"ana\"]", "line 9"),
        ("{\"prompt\": \"a\", \"tokens\": 3}", "`tokens`"),
        ("{\"prompt\": \"a\"", "line 9"),
    ] {
        house.write(&asked, format!("{}{line}\n", prompts(8)));
        let error = house.error(&generate("runs/calm", &asked, "new.jsonl", &[]));
        assert!(error.contains(part) && error.contains("hint: "), "{line}: {error}");
        assert!(!error.contains("data."), "{error}");
        assert!(!house.path("new.jsonl").exists());
    }
    for (more, part) in [(&["--batch", "0"][..], "--batch 0"), (&["--prompt", "a"], "--prompt")] {
        let done = house.run(&generate("runs/calm", &asked, "new.jsonl", more));
        assert!(done.code != 0 && done.err.contains(part), "{}", done.err);
    }
    let error = house.error(&generate("runs/calm", "none.jsonl", "new.jsonl", &[]));
    assert!(error.contains("none.jsonl"), "{error}");
}

#[test]
fn answers_of_another_version_device_or_precision_are_not_mixed() {
    let house = trained();
    let asked = asked(house, "mixed", 3);
    let out = "mixed-answers.jsonl";
    house.ok(&generate("runs/calm", &asked, out, &[]));
    let beside = format!("{out}.settings.json");
    let settings = house.read(&beside);
    for (name, now, then) in [
        ("version", format!("\"{}\"", env!("CARGO_PKG_VERSION")), "\"0.0.1\""),
        ("device", "\"cpu\"".to_owned(), "\"NVIDIA H200\""),
        ("precision", "\"f32\"".to_owned(), "\"bf16\""),
    ] {
        let line = format!("\"{name}\": {now}");
        assert!(settings.contains(&line), "{settings}");
        house.write(&beside, settings.replace(&line, &format!("\"{name}\": {then}")));
        let error = house.error(&generate("runs/calm", &asked, out, &[]));
        assert!(error.contains(&format!("{name} {then}, not {now}")), "{error}");
        // Before these were written down.
        house.write(&beside, settings.replace(&format!("{line},"), ""));
        let error = house.error(&generate("runs/calm", &asked, out, &[]));
        assert!(
            error.contains(&format!("did not write down its {name}")) && error.contains("hint: "),
            "{error}"
        );
    }
    house.write(&beside, settings);
    house.ok(&generate("runs/calm", &asked, out, &[]));
}

#[test]
fn a_file_of_answers_has_one_writer() {
    let house = trained();
    let asked = asked(house, "writer", 400);
    let out = "writer-answers.jsonl";
    let mut first = house
        .command(&generate("runs/calm", &asked, out, &["--batch", "1"]))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while fs::metadata(house.path(out)).map_or(0, |m| m.len()) == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60));
        std::thread::sleep(Duration::from_millis(1));
    }
    let error = house.error(&generate("runs/calm", &asked, out, &[]));
    let owner = format!("another calm works on {out}: process {}", first.id());
    assert!(error.contains(&owner) && error.contains("--out"), "{error}");
    first.kill().unwrap();
    first.wait().unwrap();
    // What it left is taken over, and said.
    let done = house.run(&generate("runs/calm", &asked, out, &[]));
    assert!(done.code == 0 && done.err.contains("taken over"), "{}", done.err);
    assert_eq!(records(&house.read(out)).len(), 400);
}
