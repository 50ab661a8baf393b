//! The models of a run: new, or as a checkpoint holds them.

use calm_autoencoder::{Autoencoder, AutoencoderConfig};
use calm_data::{SpecialTokens, Tokenizer};
use calm_lm::{LanguageModel, SpecialIds, TextFormat};
use calm_nn::ParamStore;
use calm_run::checkpoint::Which;
use calm_run::{Error, Result, Run, Stage};
use candle_core::Device;

/// An autoencoder with its parameters.
pub struct StageOne {
    /// The model.
    pub model: Autoencoder,
    /// Its parameters.
    pub store: ParamStore,
}

/// The configuration's ids in the form models use.
pub fn special_ids(s: SpecialTokens) -> SpecialIds {
    SpecialIds { bos: s.bos, eos: s.eos, pad: s.pad }
}

/// The text of a run as its language model meets it.
pub fn text_format(run: &Run, tokenizer: &Tokenizer) -> TextFormat {
    TextFormat {
        vocab_size: tokenizer.vocab_size(),
        special: special_ids(tokenizer.special()),
        context: run.config.train.lm.context,
        bos_chunk: run.config.bos_chunk,
    }
}

fn new_store(run: &Run, device: &Device) -> Result<ParamStore> {
    Ok(ParamStore::of_precision(device, run.config.precision, run.config.seed)?)
}

/// The settings of a run's autoencoder.
///
/// # Errors
/// A family that has none.
pub fn autoencoder_config(run: &Run) -> Result<&AutoencoderConfig> {
    run.config.model.autoencoder().ok_or_else(|| {
        Error::user(
            format!("{} has no autoencoder", run.config.model.title()),
            "name a run whose model has one with --run",
        )
    })
}

/// A new autoencoder with its parameters.
///
/// # Errors
/// A family that has none; no memory left on a GPU.
pub fn new_autoencoder(run: &Run, tokenizer: &Tokenizer, device: &Device) -> Result<StageOne> {
    autoencoder_in(new_store(run, device)?, run, tokenizer)
}

fn autoencoder_in(store: ParamStore, run: &Run, tokenizer: &Tokenizer) -> Result<StageOne> {
    let config = autoencoder_config(run)?;
    let (k, v) = (run.config.chunk_size(), tokenizer.vocab_size());
    let model = Autoencoder::with_store(&store, config, k, v, tokenizer.special().bos)?;
    store.prepare()?;
    Ok(StageOne { model, store })
}

/// The trained autoencoder, frozen, and the hash of its weights file.
///
/// # Errors
/// As [`new_autoencoder`]; weights that are missing, damaged or of another shape.
pub fn load_autoencoder(
    run: &Run,
    which: Which,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<(StageOne, String)> {
    let stage_one = autoencoder_in(new_store(run, device)?.frozen(), run, tokenizer)?;
    let checkpoints = run.checkpoints(Stage::Autoencoder);
    let hash = checkpoints.reading(which, |step| {
        let weights = checkpoints.read_model(step)?;
        weights.load(&stage_one.store)?;
        Ok(weights.hash)
    })?;
    Ok((stage_one, hash))
}

/// A new language model, on an autoencoder where its family needs one.
///
/// # Errors
/// A missing autoencoder; no memory left on a GPU.
pub fn new_lm(
    run: &Run,
    autoencoder: Option<Autoencoder>,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<Box<dyn LanguageModel>> {
    lm_in(new_store(run, device)?, run, autoencoder, tokenizer)
}

fn lm_in(
    store: ParamStore,
    run: &Run,
    autoencoder: Option<Autoencoder>,
    tokenizer: &Tokenizer,
) -> Result<Box<dyn LanguageModel>> {
    let mut model = run.config.model.build(&store, &text_format(run, tokenizer), autoencoder)?;
    model.set_recompute(run.config.train.lm.recompute);
    store.prepare()?;
    Ok(model)
}

/// The trained language model; its weights file names the autoencoder it belongs to.
///
/// # Errors
/// Weights that are missing, damaged, of another shape, not finite, or of another autoencoder.
pub fn load_lm(
    run: &Run,
    which: Which,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<Box<dyn LanguageModel>> {
    Ok(load_lm_with_step(run, which, tokenizer, device)?.0)
}

/// The same, with the step of the checkpoint that was read.
///
/// # Errors
/// As [`load_lm`].
pub fn load_lm_with_step(
    run: &Run,
    which: Which,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<(Box<dyn LanguageModel>, u64)> {
    load_in(new_store(run, device)?, run, which, tokenizer, device)
}

/// The same with constant weights: gradients flow through it to what goes in, and none are computed for the weights.
///
/// # Errors
/// As [`load_lm`].
pub fn load_frozen_lm(
    run: &Run,
    which: Which,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<(Box<dyn LanguageModel>, u64)> {
    load_in(new_store(run, device)?.frozen(), run, which, tokenizer, device)
}

fn load_in(
    store: ParamStore,
    run: &Run,
    which: Which,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<(Box<dyn LanguageModel>, u64)> {
    let checkpoints = run.checkpoints(Stage::Lm);
    let first = match run.config.model.autoencoder() {
        Some(_) => Some(load_autoencoder(run, Which::Best, tokenizer, device)?),
        None => None,
    };
    let (autoencoder, hash) = first.map(|(stage_one, hash)| (stage_one.model, hash)).unzip();
    checkpoints.step(which)?;
    let model = lm_in(store, run, autoencoder, tokenizer)?;
    let step = checkpoints.reading(which, |step| {
        let weights = checkpoints.read_model(step)?;
        if let Some(hash) = &hash
            && weights.metadata()?.get("autoencoder").is_some_and(|h| h != hash)
        {
            return Err(Error::user(
                format!(
                    "{} was trained on another autoencoder than the one in this run",
                    weights.path().display()
                ),
                "put the autoencoder back, or train the language model again (--stage lm --restart)",
            ));
        }
        weights.load(model.store())?;
        Ok(step)
    })?;
    Ok((model, step))
}
