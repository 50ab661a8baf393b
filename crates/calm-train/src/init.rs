//! A run with new, random weights: to see what a size costs, and that everything around it works, before anything
//! is trained.

use calm_data::{Tokenizer, TokenizerConfig, llama3};
use candle_core::Device;
use std::path::Path;

use crate::models::{new_autoencoder, new_lm};
use crate::reporter::Reporter;
use calm_run::Result;
use calm_run::{Provenance, Run, RunRecord, Stage};

/// The tokenizer that a run's configuration asks for. One that is trained on the text needs the text.
fn find_tokenizer(run: &Run, cache: &Path, reporter: &mut dyn Reporter) -> Result<Tokenizer> {
    let tokenizer = match &run.config.tokenizer {
        TokenizerConfig::File(path) => Tokenizer::load(path)?,
        TokenizerConfig::Llama3(config) => llama3::load(config)?,
        config => {
            let corpus = calm_data::prepare(&run.config.data, config, cache, &mut |p| reporter.data(&p))?;
            reporter.data_done();
            corpus.tokenizer
        }
    };
    for note in tokenizer.notes() {
        reporter.note(&format!("tokenizer: {note}"));
    }
    Ok(run.config.fit(tokenizer)?)
}

/// Writes the run's tokenizer and its initial weights as finished stages at step 0, and returns the stages with
/// their numbers of parameters. `calm train --resume` goes on from them.
///
/// # Errors
/// The tokenizer cannot be had, or does not fit; no memory left on a GPU; a file cannot be written.
pub fn initialise(
    run: &Run,
    cache: &Path,
    provenance: Provenance,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<Vec<(Stage, usize)>> {
    let tokenizer = find_tokenizer(run, cache, reporter)?;
    tokenizer.save(&run.folder.join("tokenizer.json"))?;
    let record = RunRecord {
        history: vec![provenance],
        tokenizer_hash: tokenizer.hash(),
        vocab_size: tokenizer.vocab_size(),
        corpus: "none: random weights".into(),
        platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        threads: candle_core::utils::get_num_threads(),
        ..RunRecord::default()
    };
    let mut metadata = run.metadata(Stage::Lm, &record);
    let mut stages = Vec::new();
    let mut autoencoder = None;
    if run.config.model.autoencoder().is_some() {
        let stage_one = new_autoencoder(run, &tokenizer, device)?;
        let checkpoints = run.checkpoints(Stage::Autoencoder);
        checkpoints.save_imported(&stage_one.store, &run.metadata(Stage::Autoencoder, &record))?;
        metadata.insert("autoencoder".into(), checkpoints.model_hash(0)?);
        stages.push((Stage::Autoencoder, stage_one.store.element_count()));
        autoencoder = Some(stage_one.model);
    }
    let model = new_lm(run, autoencoder, &tokenizer, device)?;
    run.checkpoints(Stage::Lm).save_imported(model.store(), &metadata)?;
    stages.push((Stage::Lm, model.store().element_count()));
    run.write_record(&record)?;
    Ok(stages)
}
