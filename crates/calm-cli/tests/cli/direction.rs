//! Attention that looks at the input of a document in other directions than forward, from outside.

use std::sync::LazyLock;

use crate::house::{BASELINE, House};

/// Baselines that look both ways and forward, on windows whose first half is input, in `runs/prefix` and `runs/causal`.
static RUNS: LazyLock<House> = LazyLock::new(|| {
    let house = House::new();
    house.write(
        "half.yaml",
        BASELINE.replace("validation: 0.3", "validation: 0.3, loss_on: { after_share: 0.5 }"),
    );
    house.ok(&["train", "--config", "half.yaml", "--out", "runs/causal"]);
    let prefix = "model.baseline.backbone.attention=prefix";
    house.ok(&["train", "--config", "half.yaml", "--out", "runs/prefix", "--set", prefix]);
    house
});

#[test]
fn a_run_says_its_direction_where_it_is_not_the_usual_one() {
    assert!(RUNS.read("runs/prefix/config.yaml").contains("attention: prefix"));
    assert!(!RUNS.read("runs/causal/config.yaml").contains("attention:"));
    // The same output is scored.
    let scores = |run: &str| RUNS.json(&["eval", "brierlm", "--run", run, "--format", "json"]);
    let [prefix, causal] = ["runs/prefix", "runs/causal"].map(scores);
    assert!(prefix["positions"].as_u64() > Some(0));
    assert_eq!(prefix["positions"], causal["positions"]);
    assert_ne!(prefix["brier"], causal["brier"]);
}

#[test]
fn a_run_goes_on_with_its_own_output_only() {
    for loss_on in ["data.loss_on={after_share: 0.75}", "data.loss_on=all"] {
        let more = ["--out", "runs/causal", "--resume", "--set", loss_on, "--set", "train.lm.steps=25"];
        let train = [&["train", "--config", "half.yaml"][..], &more].concat();
        RUNS.refuses(&train, &["the text has changed", "data.loss_on", "hint:"]);
    }
}

#[test]
fn ranks_are_shares_of_full_rank_and_layers_have_their_lines() {
    for run in ["runs/prefix", "runs/causal"] {
        let args = ["eval", "attention", "--run", run, "--windows", "2"];
        let table = RUNS.ok(&args);
        assert!(table.contains("effective") && table.contains("unturned"), "{table}");
        let json = RUNS.json(&[&args[..], &["--format", "json"]].concat());
        assert_eq!((json["windows"].as_u64(), json["positions"].as_u64()), (Some(2), Some(64)));
        assert_eq!(json["input"].as_f64(), Some(32.0));
        let layers = json["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 2);
        for layer in layers {
            for kind in ["turned", "unturned"] {
                for part in ["whole", "input"] {
                    let rank = &layer[kind][part];
                    let [effective, above] = ["effective", "above"].map(|name| rank[name].as_f64().unwrap());
                    assert!(effective > 0.0 && effective <= 1.0 + 1e-9, "{run} {kind} {part}: {rank}");
                    assert!(above > 0.0 && above <= 1.0, "{run} {kind} {part}: {rank}");
                }
            }
        }
    }
    RUNS.refuses(&["eval", "attention", "--run", "runs/causal", "--windows", "0"], &["--windows 0"]);
}

#[test]
fn a_prompt_is_the_input_of_what_is_generated() {
    let args = ["generate", "--run", "runs/prefix", "--prompt", "ana bolo", "-n", "12", "--seed", "3"];
    let said = RUNS.ok(&args);
    assert!(said.starts_with("ana bolo") && said == RUNS.ok(&args), "{said}");
}

#[test]
fn what_needs_attention_that_looks_forward_says_so() {
    RUNS.refuses(&["compress", "text.txt", "--run", "runs/prefix"], &["no probabilities", "causal"]);
    RUNS.refuses(&["export", "--run", "runs/prefix", "--out", "out"], &["no published form"]);
    let all = ["eval", "brierlm", "--run", "runs/prefix", "--data", "text.txt", "--loss-on", "all"];
    RUNS.refuses(&all, &["leaves no input", "leave --loss-on out"]);
    let bad = ["--set", "model.baseline.backbone.attention={mixed: {forward: 1, backward: 2}}"];
    let train = [&["train", "--config", "half.yaml", "--out", "runs/bad"][..], &bad].concat();
    RUNS.refuses(&train, &["attention.mixed", "1 + 2"]);
    // Where nothing is input, no direction but one would be learned.
    for loss_on in ["data.loss_on=all", "data.loss_on={after_share: 0}"] {
        let prefix = ["--set", "model.baseline.backbone.attention=prefix", "--set", loss_on];
        let train = [&["train", "--config", "half.yaml", "--out", "runs/bad"][..], &prefix].concat();
        RUNS.refuses(&train, &["model.baseline.backbone.attention", "input", "hint:", "0.5}"]);
    }
    let share =
        ["train", "--config", "half.yaml", "--out", "runs/bad", "--set", "data.loss_on={after_share: 1}"];
    RUNS.refuses(&share, &["after_share", "below 1"]);
}
