//! `calm eval segments`.

use std::sync::LazyLock;

use crate::house::{House, text, trained};

/// A model of dynamic concepts on characters.
const DLCM: &str = r"version: 1
data: { source: { path: text.txt }, validation: 0.3 }
tokenizer: { chars: {} }
model:
  dlcm:
    tokens: { layers: 2, hidden_size: 48, intermediate_size: 64, heads: 2, init: { normal: 0.1 } }
    concepts: { layers: 1, hidden_size: 48, intermediate_size: 64, heads: 2, init: { normal: 0.1 } }
train:
  lm: { steps: 12, batch_rows: 4, context: 64, learning_rate: 5e-3, warmup_steps: 5, log_every: 1 }
eval: { training_documents: 2, documents: 6, chunks_per_document: 96, bootstrap: 50 }
";

static HOUSE: LazyLock<House> = LazyLock::new(|| {
    let house = House::new();
    house.write("dlcm.yaml", DLCM);
    house.ok(&["train", "--config", "dlcm.yaml", "--out", "run"]);
    house
});

#[test]
fn ratio_and_loss_by_place_are_told_of_every_kind_of_text() {
    let house = &*HOUSE;
    let report = house.json(&["eval", "segments", "--run", "run", "--format", "json"]);
    let held_out = &report.as_array().unwrap()[0];
    let count = |v: &serde_json::Value, key: &str| v[key].as_u64().unwrap_or_else(|| panic!("{key} in {v}"));
    let segments = held_out;
    assert_eq!(held_out["kind"], "held-out text");
    let ratio = segments["ratio"]["value"].as_f64().unwrap();
    let counted = count(segments, "tokens") as f64 / count(segments, "segments") as f64;
    assert!((ratio / counted - 1.0).abs() < 1e-9 && ratio >= 1.0, "{segments}");
    let places = segments["from_start"].as_array().unwrap();
    // Every segment has a first token.
    assert_eq!(count(&places[0], "tokens"), count(segments, "segments"), "{segments}");

    house.write("other.txt", text(99));
    let args = [
        "eval",
        "segments",
        "--run",
        "run",
        "--data",
        "mine=other.txt",
        "--data",
        "text.txt",
        "--documents",
        "2",
    ];
    let table = house.ok(&args);
    assert!(
        table.contains("mine") && table.contains("text") && table.contains("tokens a segment"),
        "{table}"
    );
    assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
}

#[test]
fn a_family_without_segments_and_an_empty_measurement_are_refused() {
    trained().refuses(
        &["eval", "segments", "--run", "runs/baseline"],
        &["does not cut text into segments", "dlcm"],
    );
    HOUSE.refuses(&["eval", "segments", "--run", "run", "--documents", "0"], &["--documents 0"]);
    HOUSE.refuses(&["eval", "segments", "--run", "run", "--data", "code=absent.txt"], &["absent.txt"]);
}
