//! A training loop of one's own: text, a model from its settings, and [`Stepper`] for a step. No run, no folder.
//!
//! `cargo run --release -p calm-train --example own_loop -- TEXT`

use std::error::Error;
use std::path::Path;

use calm_data::{CharsConfig, DataConfig, Layout, RowPlan, Source, TokenizerConfig, prepare};
use calm_lm::{LanguageModel, ModelConfig, TextFormat};
use calm_nn::ParamStore;
use calm_run::config::StageConfig;
use calm_train::models::special_ids;
use calm_train::step::Stepper;
use candle_core::{DType, Device};
use serde_json::json;

/// Trains a small model on a text; the loss of every step, in nats a token.
fn train(text: &Path, cache: &Path, steps: u64) -> Result<Vec<f64>, Box<dyn Error>> {
    // Text -> tokens -> rows, a function of the step.
    let data = DataConfig { source: Source::Path(text.to_owned()), ..DataConfig::default() };
    let tokenizer = TokenizerConfig::Chars(CharsConfig::default());
    let corpus = prepare(&data, &tokenizer, cache, &mut |_| ())?;
    let stage: StageConfig = serde_json::from_value(
        json!({ "steps": steps, "batch_rows": 8, "context": 64, "learning_rate": 3e-3 }),
    )?;

    // The settings of any family, as a configuration has them under `model`.
    let backbone = json!({ "layers": 2, "hidden_size": 64, "intermediate_size": 128, "heads": 2 });
    let settings: ModelConfig = serde_json::from_value(json!({ "baseline": { "backbone": backbone } }))?;
    let (special, seed) = (corpus.tokenizer.special(), 1);
    let format = TextFormat {
        vocab_size: corpus.tokenizer.vocab_size(),
        special: special_ids(special),
        context: stage.context,
        bos_chunk: true,
    };
    let layout = Layout::new(settings.chunk_size(), format.context, format.bos_chunk)?;
    let rows = RowPlan::new(&corpus.train, layout, special, seed)?;
    let model = settings.build(&ParamStore::new(&Device::Cpu, DType::F32, seed), &format, None)?;

    // Loss, gradients, clipping and update; what comes between the steps is yours.
    let mut stepper = Stepper::new(LanguageModel::store(&*model), &stage, seed)?;
    let mut losses = Vec::new();
    for step in 0..stage.steps {
        let batch = rows.batch(step, 0..stage.batch_rows, stage.batch_rows)?;
        let report = stepper.step(&*model, &[batch], step, true)?;
        losses.extend(report.values.map(|values| values.loss));
    }
    Ok(losses)
}

fn main() -> Result<(), Box<dyn Error>> {
    let text = std::env::args().nth(1).ok_or("name a folder of text files, or a .jsonl file")?;
    for (step, loss) in train(Path::new(&text), Path::new("runs/cache"), 200)?.iter().enumerate() {
        println!("{:4}  {loss:.4}", step + 1);
    }
    Ok(())
}

#[test]
fn the_loss_falls() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("text.jsonl");
    // Pieces of the alphabet: a letter says which one comes next.
    let alphabet: String = ('a'..='z').cycle().take(70).collect();
    let documents = (0..40).map(|i| format!("{}\n", json!({ "text": &alphabet[i..i + 20 + i % 7] })));
    std::fs::write(&text, documents.collect::<String>()).unwrap();
    let losses = train(&text, dir.path(), 30).unwrap();
    assert_eq!(losses.len(), 30);
    assert!(losses[29] < 0.8 * losses[0], "{losses:?}");
}
