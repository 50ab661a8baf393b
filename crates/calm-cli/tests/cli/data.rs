//! `calm data`: prepare, count, show, check.

use crate::house::House;

#[test]
fn a_prepared_text_is_what_training_reads() {
    let house = House::new();
    let out = house.ok(&["data", "prepare", "--config", "calm.yaml"]);
    for word in ["train", "held out", "documents", "V = "] {
        assert!(out.contains(word), "{word}: {out}");
    }
    let json = house.json(&["data", "prepare", "--config", "calm.yaml", "--format", "json"]);
    let plan = house.json(&["train", "--config", "calm.yaml", "--dry-run", "--format", "json"]);
    assert_eq!(plan["training_tokens"], json["train"]["tokens"], "{plan}");
    assert_eq!(plan["vocab_size"], json["vocab_size"], "{plan}");
    let tokens = std::fs::read_dir(house.path("cache/tokens")).unwrap().count();
    assert_eq!(tokens, 1, "prepared once");
}

#[test]
fn a_text_is_counted_with_its_duplicates_and_unknown_bytes() {
    let house = House::new();
    let lines: Vec<String> =
        (0..60).map(|i| format!("{{\"text\": \"document {} of some text\"}}", i % 40)).collect();
    house.write("text.jsonl", lines.join("\n"));
    house.write("held.jsonl", "{\"text\": \"document 3 of ☃☃☃ some text\"}\n");
    let set = ["--set", "data.source={path: text.jsonl}", "--set", "data.validation={path: held.jsonl}"];
    let args = |format| [["data", "info", "--config", "baseline.yaml"].as_slice(), &set, format].concat();
    let json = house.json(&args(&["--format", "json"]));
    assert_eq!((&json["train"]["documents"], &json["train"]["duplicates"]), (&60.into(), &20.into()));
    assert_eq!(json["train"]["unknown"], 0.0);
    // Three of them, of three bytes each.
    let unknown = json["validation"]["unknown"].as_f64().unwrap();
    let bytes = json["validation"]["bytes"].as_f64().unwrap();
    assert!((unknown - 9.0 / bytes).abs() < 1e-9, "{json}");
    let out = house.ok(&args(&[]));
    assert!(out.contains("duplicates") && out.contains("longest document"), "{out}");
}

#[test]
fn rows_are_shown_with_their_chunks_and_without_control_characters() {
    let house = House::new();
    let out = house.ok(&["data", "sample", "--config", "calm.yaml", "--rows", "2"]);
    assert!(out.contains("row 0 of step 0:\n["), "{out}");
    assert!(out.contains('|') && out.contains("\\n") && out.contains("row 1 of step 0"), "{out}");
    let third = || {
        house.json(&["data", "sample", "--config", "calm.yaml", "-n", "1", "--step", "3", "--format", "json"])
    };
    let json = third();
    assert_eq!(json[0]["chunks"].as_array().unwrap().len(), 32);
    let again = third();
    assert_eq!(json, again);
    house.refuses(&["data", "sample", "--config", "calm.yaml", "--rows", "0"], &["--rows 0", "1 or more"]);
}

#[test]
fn a_check_finds_held_out_text_in_the_training_text() {
    let house = House::new();
    // Words that no other document has.
    let text = |n: u64| -> String {
        (0..300)
            .map(|i| format!("{:x} ", (n * 1_000_003 + i).wrapping_mul(2_654_435_761) % 0xff_ffff))
            .collect()
    };
    let lines: Vec<String> = (0..20).map(|n| format!("{{\"text\": \"{}\"}}", text(n))).collect();
    house.write("text.jsonl", lines.join("\n"));
    let near = text(5).replacen(' ', " another ", 1);
    house.write("held.jsonl", format!("{{\"text\": \"{near}\"}}\n{{\"text\": \"{}\"}}\n", text(99)));
    let json = house.json(&[
        "data",
        "check",
        "--config",
        "baseline.yaml",
        "--format",
        "json",
        "--set",
        "data.source={path: text.jsonl}",
        "--set",
        "data.validation={path: held.jsonl}",
    ]);
    assert_eq!((&json["overlap"]["compared"], &json["overlap"]["near"]), (&2.into(), &1.into()), "{json}");
    assert_eq!(json["overlap"]["pairs"][0]["train"], 5);
}

#[test]
fn damaged_tokens_are_made_anew_and_named() {
    let house = House::new();
    house.ok(&["data", "prepare", "--config", "baseline.yaml"]);
    let folder = std::fs::read_dir(house.path("cache/tokens")).unwrap().next().unwrap().unwrap().path();
    let path = folder.join("train.tokens");
    let whole = std::fs::read(&path).unwrap();
    let mut bytes = whole.clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let done = house.run(&["data", "check", "--config", "baseline.yaml"]);
    assert_eq!(done.code, 0, "{}", done.err);
    assert!(done.err.contains("train.tokens") && done.err.contains("made anew"), "{}", done.err);
    assert_eq!(std::fs::read(&path).unwrap(), whole);
}

#[test]
fn bad_documents_that_are_left_out_are_counted_and_listed() {
    let house = House::new();
    let good = |i: usize| format!("{{\"text\": \"document {i} of some text\"}}\n");
    let lines: String = (0..40).map(good).collect();
    house.write("text.jsonl", format!("{lines}{{\"text\": 3}}\n{}{{\"body\": \"x\"}}\n", good(40)));
    let set = ["--config", "baseline.yaml", "--set", "data.source={path: text.jsonl}"];
    house.refuses(
        &[&["data", "prepare"], &set[..]].concat(),
        &["text.jsonl", "line 41", "on_bad_document: skip"],
    );
    let skip = [&set[..], &["--set", "data.on_bad_document=skip"]].concat();
    let out = house.ok(&[&["data", "prepare"], &skip[..]].concat());
    for line in ["left out: ", "line 41", "line 43", "2 that cannot be read"] {
        assert!(out.contains(line), "{line}: {out}");
    }
    let json = house.json(&[&["data", "prepare", "--format", "json"], &skip[..]].concat());
    assert_eq!((&json["skipped"]["bad"], json["bad"].as_array().unwrap().len()), (&2.into(), 2), "{json}");
    house.ok(&[&["train", "--out", "runs/skip", "--skip-scores"], &skip[..]].concat());
    assert!(house.read("runs/skip/run.json").contains("2 that cannot be read"));
}
