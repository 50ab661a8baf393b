//! Sampled decoding and the bound on the command line.

use crate::house::trained;

#[test]
fn a_trained_calm_is_decoded_by_sampling_where_it_is_asked_for() {
    let house = trained();
    let generate = |extra: &[&str]| {
        let args = ["generate", "--run", "runs/calm", "--prompt", "some text to read", "-n", "12"];
        let done = house.run(&[&args[..], extra].concat());
        assert_eq!(done.code, 0, "{}", done.err);
        done.out
    };
    let sampled = generate(&["--decode", "sample"]);
    assert_eq!(sampled, generate(&["--decode", "sample"]));
    assert_ne!(sampled, generate(&[]));
    // Temperature and top-p work on the softmax; a sampler of black boxes works too, if it is named.
    generate(&["--decode", "sample", "--temperature", "2", "--top-p", "0.9"]);
    generate(&["--decode", "sample", "--temperature", "0.5", "--sampler", "batch", "--draws", "20"]);
    house.refuses(&["generate", "--run", "runs/calm", "--top-p", "0.9"], &["--top-p", "--decode sample"]);
    let both = ["generate", "--run", "runs/calm", "--decode", "sample", "--draws", "20", "--top-p", "0.9"];
    house.refuses(&both, &["--top-p", "leave --draws away"]);
    house.refuses(&["generate", "--run", "runs/baseline", "--decode", "sample"], &["--decode", "leave"]);
}

#[test]
fn scores_carry_their_decoding_and_the_bound() {
    let house = trained();
    let score = |extra: &[&str]| -> serde_json::Value {
        let args = ["eval", "brierlm", "--run", "runs/calm", "--documents", "3", "--format", "json"];
        let done = house.run(&[&args[..], extra].concat());
        assert_eq!(done.code, 0, "{}", done.err);
        serde_json::from_str(&done.out).unwrap()
    };
    let scores = score(&["--decode", "sample", "--bound-draws", "16"]);
    assert_eq!(scores["decode"], "sample");
    let curve = scores["bound"]["curve"].as_array().unwrap();
    assert_eq!(curve.iter().map(|p| p["samples"].as_u64().unwrap()).collect::<Vec<_>>(), [1, 8, 16]);
    assert!(curve.iter().all(|p| p["nats"].as_f64().unwrap() > 0.0 && p["nats_se"].is_number()));
    let plain = score(&["--bound-draws", "0"]);
    assert!(plain["decode"] == "argmax" && plain["bound"].is_null());
    let table =
        house.run(&["eval", "brierlm", "--run", "runs/calm", "--documents", "3", "--decode", "sample"]);
    for text in ["sampled", "upper bound on the cross-entropy", "draws"] {
        assert!(table.out.contains(text), "{text}: {}", table.out);
    }
}

/// Runs and commands of version 0.1 name the initial spread otherwise.
#[test]
fn the_older_name_of_the_initial_spread_takes_the_place_of_the_newer() {
    let house = trained();
    for (set, is) in [("init_std=0.1", "normal: 0.1"), ("init=fan_in", "fan_in")] {
        let set = format!("model.baseline.backbone.{set}");
        let done = house.run(&["config", "baseline.yaml", "--set", &set]);
        assert_eq!(done.code, 0, "{}", done.err);
        let normal = done.out.contains("normal: 0.1\n");
        assert!(normal == (is == "normal: 0.1") && !done.out.contains("init_std"), "{}", done.out);
    }
}
