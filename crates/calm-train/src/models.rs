//! The models of a run: new, or as a checkpoint holds them.

use calm_autoencoder::Autoencoder;
use calm_data::{SpecialTokens, Tokenizer};
use calm_lm::{Baseline, Calm, SpecialIds};
use calm_nn::{ParamStore, read_weights};
use calm_run::checkpoint::{Which, file_hash, load_weights};
use calm_run::config::ModelConfig;
use calm_run::{Error, Result, Run};
use candle_core::Device;

use crate::objective::{AutoencoderObjective, BaselineObjective, CalmObjective};

/// The configuration's ids in the form models use.
pub fn special_ids(s: SpecialTokens) -> SpecialIds {
    SpecialIds { bos: s.bos, eos: s.eos, pad: s.pad }
}

/// A new autoencoder with its parameters.
pub fn new_autoencoder(run: &Run, tokenizer: &Tokenizer, device: &Device) -> Result<AutoencoderObjective> {
    let ModelConfig::Calm(c) = &run.config.model else {
        return Err(Error::user("a baseline has no autoencoder", "name a CALM run with --run"));
    };
    let store = ParamStore::of_precision(device, run.config.precision, run.config.seed)?;
    let model = Autoencoder::with_store(
        &store,
        &c.autoencoder,
        c.chunk_size,
        tokenizer.vocab_size(),
        tokenizer.special().bos,
    )?;
    store.prepare()?;
    Ok(AutoencoderObjective { model, store })
}

/// The trained autoencoder and the hash of its weights file.
pub fn load_autoencoder(
    run: &Run,
    which: Which,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<(AutoencoderObjective, String)> {
    let objective = new_autoencoder(run, tokenizer, device)?;
    let checkpoints = run.checkpoints("autoencoder");
    let path = checkpoints.model_path(checkpoints.step(which)?);
    load_weights(&path, &objective.store)?;
    Ok((objective, file_hash(&path)?))
}

/// A new CALM on an autoencoder.
pub fn new_calm(
    run: &Run,
    autoencoder: Autoencoder,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<CalmObjective> {
    let ModelConfig::Calm(c) = &run.config.model else {
        return Err(Error::user("this run is a baseline", "name a CALM run with --run"));
    };
    let store = ParamStore::of_precision(device, run.config.precision, run.config.seed)?;
    let special = special_ids(tokenizer.special());
    let context = run.config.train.lm.context;
    let bos_chunk = run.config.bos_chunk;
    let mut model =
        Calm::new(&store.builder(), &c.backbone, &c.head, autoencoder, special, context, bos_chunk)?;
    model.set_recompute(run.config.train.lm.recompute);
    store.prepare()?;
    Ok(CalmObjective { model, store })
}

/// The trained CALM; its weights file names the autoencoder it belongs to.
pub fn load_calm(run: &Run, which: Which, tokenizer: &Tokenizer, device: &Device) -> Result<CalmObjective> {
    let (autoencoder, hash) = load_autoencoder(run, Which::Best, tokenizer, device)?;
    let objective = new_calm(run, autoencoder.model, tokenizer, device)?;
    let checkpoints = run.checkpoints("lm");
    let path = checkpoints.model_path(checkpoints.step(which)?);
    let (_, metadata) = read_weights(&path, device)?;
    if metadata.get("autoencoder").is_some_and(|h| *h != hash) {
        return Err(Error::user(
            format!("{} was trained on another autoencoder than the one in this run", path.display()),
            "put the autoencoder back, or train the language model again (--stage lm --restart)",
        ));
    }
    load_weights(&path, &objective.store)?;
    Ok(objective)
}

/// A new baseline.
pub fn new_baseline(run: &Run, tokenizer: &Tokenizer, device: &Device) -> Result<BaselineObjective> {
    let ModelConfig::Baseline(c) = &run.config.model else {
        return Err(Error::user("this run is a CALM", "name a baseline run with --run"));
    };
    let store = ParamStore::of_precision(device, run.config.precision, run.config.seed)?;
    let special = special_ids(tokenizer.special());
    let context = run.config.train.lm.context;
    let (vocab, bos) = (tokenizer.vocab_size(), run.config.bos_chunk);
    let mut model = Baseline::new(&store.builder(), &c.backbone, vocab, special, context, bos)?;
    model.set_recompute(run.config.train.lm.recompute);
    store.prepare()?;
    Ok(BaselineObjective { model, store })
}

/// The trained baseline.
pub fn load_baseline(
    run: &Run,
    which: Which,
    tokenizer: &Tokenizer,
    device: &Device,
) -> Result<BaselineObjective> {
    let objective = new_baseline(run, tokenizer, device)?;
    let checkpoints = run.checkpoints("lm");
    load_weights(&checkpoints.model_path(checkpoints.step(which)?), &objective.store)?;
    Ok(objective)
}
