//! Twenty steps of every kind of model, as they were recorded: what changes no arithmetic changes no digit.
//!
//! `CALM_RECORD_TRACE=1 cargo test --release -p calm-cli --test cli loss_trace` records `eval/golden/trace/` anew;
//! a change that means to alter the numbers says so in the changelog.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::house::House;

/// Heads beside the energy head, as their settings.
const HEADS: [(&str, &str); 3] = [
    ("energy", "{ energy: { blocks: 1, noise_size: 8, samples: 4, targets: 8 } }"),
    ("flow", "{ flow: { blocks: 1, repeats: 2, steps: 2 } }"),
    ("diffusion", "{ diffusion: { blocks: 1, repeats: 2, steps: 20, sampling_steps: 4 } }"),
];

const CALM: &str = r"version: 1
seed: 3
data: { source: { path: text.txt }, validation: 0.3 }
tokenizer: { bpe: { vocab_size: 300 } }
model:
  calm:
    chunk_size: 3
    autoencoder: { hidden_size: 48, intermediate_size: 64, latent_size: 24, init: { normal: 0.1 } }
    backbone: { layers: 2, hidden_size: 48, intermediate_size: 64, heads: 2, kv_heads: 1, init: { normal: 0.1 } }
    head: HEAD
train:
  autoencoder: { steps: 20, batch_rows: 4, context: 32, learning_rate: 5e-3, warmup_steps: 5, log_every: 1, eval_every: 10 }
  lm: { steps: 20, batch_rows: 4, accumulation: 2, context: 32, learning_rate: 5e-3, warmup_steps: 5, log_every: 1, eval_every: 10 }
eval: { training_documents: 2, documents: 2, chunks_per_document: 24, bootstrap: 50 }
";

const BASELINE: &str = r"version: 1
seed: 3
data: { source: { path: text.txt }, validation: 0.3 }
tokenizer: { chars: {} }
model:
  baseline:
    backbone: { layers: 2, hidden_size: 48, intermediate_size: 64, heads: 2, init: { normal: 0.1 } }
train:
  lm: { steps: 20, batch_rows: 4, context: 64, learning_rate: 5e-3, warmup_steps: 5, log_every: 1, eval_every: 10, recompute: true }
eval: { training_documents: 2, documents: 2, chunks_per_document: 24, bootstrap: 50 }
";

const CONCEPTS: &str = r"version: 1
seed: 3
data: { source: { path: text.txt }, validation: 0.3 }
tokenizer: { bpe: { vocab_size: 300 } }
model:
  dlcm:
    tokens: { layers: 3, hidden_size: 48, intermediate_size: 64, heads: 2, kv_heads: 1, init: { normal: 0.1 } }
    concepts: { layers: 1, hidden_size: 64, intermediate_size: 96, heads: 2, init: { normal: 0.1 } }
train:
  lm: { steps: 20, batch_rows: 4, accumulation: 2, context: 64, learning_rate: 5e-3, warmup_steps: 5, log_every: 1, eval_every: 10 }
eval: { training_documents: 2, documents: 2, chunks_per_document: 24, bootstrap: 50 }
";

/// Models with probabilities of chunks, and what is each one's own.
const CHUNKS: [(&str, &str); 2] =
    [("patch", "local: { layers: 1, hidden_size: 24 }"), ("multi-token", "heads: { intermediate_size: 40 }")];

const CHUNK: &str = r"version: 1
seed: 3
data: { source: { path: text.txt }, validation: 0.3 }
tokenizer: { bpe: { vocab_size: 300 } }
model:
  FAMILY:
    chunk_size: 3
    backbone: { layers: 2, hidden_size: 48, intermediate_size: 64, heads: 2, kv_heads: 1, init: { normal: 0.1 } }
    OWN
train:
  lm: { steps: 20, batch_rows: 4, accumulation: 2, context: 32, learning_rate: 5e-3, warmup_steps: 5, log_every: 1, eval_every: 10 }
eval: { training_documents: 2, documents: 2, chunks_per_document: 24, bootstrap: 50 }
";

/// A recorded training.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Trace {
    /// Instructions that the sums depend on: with others the last digits differ.
    instructions: Vec<String>,
    steps: Vec<Step>,
    validations: Vec<Step>,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Step {
    stage: String,
    step: u64,
    /// Every digit, as text: what reads a number may round it.
    loss: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    gradient_norm: Option<String>,
}

fn instructions() -> Vec<String> {
    let mut found = vec![std::env::consts::ARCH.to_owned()];
    #[cfg(target_arch = "x86_64")]
    for (name, there) in
        [("avx512f", std::is_x86_feature_detected!("avx512f")), ("fma", std::is_x86_feature_detected!("fma"))]
    {
        if there {
            found.push(name.to_owned());
        }
    }
    found
}

/// Trains `config` and reads its metrics.
fn train(name: &str, config: &str) -> Trace {
    let house = House::new();
    house.write("trace.yaml", config);
    let folder = format!("runs/{name}");
    house.ok(&["train", "--config", "trace.yaml", "--out", &folder, "--threads", "2"]);
    let mut trace = Trace { instructions: instructions(), steps: Vec::new(), validations: Vec::new() };
    for line in house.metrics(&folder) {
        let number = |key: &str| line["values"][key].as_f64().map(|x| format!("{x:?}"));
        let (stage, step) = (line["stage"].as_str().unwrap().to_owned(), line["step"].as_u64().unwrap());
        if let Some(loss) = number("train/loss") {
            let gradient_norm = number("train/gradient_norm");
            trace.steps.push(Step { stage: stage.clone(), step, loss, gradient_norm });
        }
        if let Some(loss) = number("validation/loss") {
            trace.validations.push(Step { stage, step, loss, gradient_norm: None });
        }
    }
    assert!(trace.steps.len() >= 20 && trace.validations.len() >= 2, "{name}: {trace:?}");
    trace
}

/// Compares with what was recorded: every digit on a processor with the same instructions, elsewhere as many as
/// twenty steps of f32 training leave.
fn hold(name: &str, config: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../../eval/golden/trace")
        .join(format!("{name}.json"));
    let now = train(name, config);
    if std::env::var_os("CALM_RECORD_TRACE").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&now).unwrap() + "\n").unwrap();
    }
    let then: Trace = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    if now.instructions == then.instructions {
        assert_eq!(now, then, "{name}");
        return;
    }
    for (a, b) in [(&now.steps, &then.steps), (&now.validations, &then.validations)] {
        assert_eq!(a.len(), b.len(), "{name}");
        for (a, b) in a.iter().zip(b) {
            assert_eq!((&a.stage, a.step), (&b.stage, b.step), "{name}");
            let [x, y] = [a, b].map(|step| step.loss.parse::<f64>().unwrap());
            assert!((x - y).abs() <= 2e-3 * y.abs(), "{name}: {a:?} against {b:?}");
        }
    }
}

#[test]
fn a_calm_with_each_head_and_its_autoencoder_train_as_recorded() {
    for (name, head) in HEADS {
        hold(name, &CALM.replace("HEAD", head));
    }
}

#[test]
fn models_with_probabilities_of_chunks_train_as_recorded() {
    for (name, own) in CHUNKS {
        hold(name, &CHUNK.replace("FAMILY", name).replace("OWN", own));
    }
}

#[test]
fn a_dynamic_concept_model_trains_as_recorded() {
    hold("dlcm", CONCEPTS);
}

#[test]
fn the_baseline_trains_as_recorded() {
    hold("baseline", BASELINE);
}
