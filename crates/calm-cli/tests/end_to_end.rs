//! A shortened quickstart on the default corpus, asserting what a working model must show. It takes minutes,
//! so it runs on request: `cargo test --release --workspace --test end_to_end -- --ignored --nocapture`.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// Held-out tokens rebuilt from a posterior sample.
const TOKEN_ACCURACY: f64 = 0.99;
/// By how much exchanging the hidden states must raise the energy loss (relative).
const CONDITION_MARGIN: f64 = 0.02;

fn calm(args: &[&str]) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let out = Command::new(env!("CARGO_BIN_EXE_calm")).args(args).current_dir(root).output().unwrap();
    let err = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "calm {args:?}:\n{err}");
    eprintln!("{err}");
    out.stdout
}

#[test]
#[ignore = "takes minutes; run by name"]
fn a_shortened_quickstart_learns_to_rebuild_and_to_predict() {
    let dir = tempfile::tempdir().unwrap();
    let (run, cache) = (dir.path().join("run"), dir.path().join("cache"));
    let (run, cache) = (run.to_str().unwrap(), cache.to_str().unwrap());
    let mut args =
        vec!["train", "--config", "quickstart", "--out", run, "--cache", cache, "--format", "json"];
    for shorter in
        ["train.autoencoder.steps=250", "train.lm.steps=1200", "train.lm.eval_every=600", "eval.documents=40"]
    {
        args.extend(["--set", shorter]);
    }
    let results: Value = serde_json::from_slice(&calm(&args)).unwrap();
    let accuracy = results["autoencoder"]["token_accuracy"].as_f64().unwrap();
    let at = |key: &str| results["condition"][key].as_f64().unwrap();
    let (loss, exchanged) = (at("loss"), at("loss_exchanged"));
    eprintln!("token accuracy {accuracy:.4}; loss {loss:.3}, with exchanged hidden states {exchanged:.3}");
    assert!(accuracy >= TOKEN_ACCURACY, "the autoencoder rebuilds only {accuracy} of held-out tokens");
    assert!(
        exchanged - loss >= CONDITION_MARGIN * loss,
        "the head hardly uses its condition: {loss} against {exchanged}"
    );
    let prompt = "fn main() {";
    let text = calm(&["generate", "--run", run, "--prompt", prompt, "--max-tokens", "40"]);
    assert!(text.starts_with(prompt.as_bytes()));
}
