//! The reference's configs as ours, and models with its weights.

use std::collections::HashMap;

use calm_autoencoder::{Autoencoder, AutoencoderConfig};
use calm_lm::{BackboneConfig, ChunkBatch};
use calm_nn::ParamStore;
use candle_core::{DType, Device, Result, Tensor, bail};

use crate::compare::{Check, identical};
use crate::set::{Case, Config};

/// Settings of the autoencoder; dropout only where a file holds its masks.
pub fn autoencoder_config(c: &Config, dropout: bool) -> Result<AutoencoderConfig> {
    c.refuse_unknown_variants()?;
    let p = if dropout { c.number("ae_dropout")? } else { 0.0 };
    Ok(AutoencoderConfig {
        latent_size: Some(c.size("latent_size")?),
        hidden_size: c.size("hidden_size")?,
        intermediate_size: c.size("intermediate_size")?,
        encoder_layers: c.size("num_encoder_layers")?,
        decoder_layers: c.size("num_decoder_layers")?,
        token_dropout: p,
        dropped_token_id: Some(0),
        latent_dropout: p,
        kl_weight: c.number("kl_weight")?,
        kl_clip: c.number("kl_clamp")?,
        norm_eps: c.number("rms_norm_eps")?,
        ..Default::default()
    })
}

/// An autoencoder with the weights of a file.
pub fn autoencoder(
    c: &Config,
    weights: &HashMap<String, Tensor>,
    dropout: bool,
) -> Result<(ParamStore, Autoencoder)> {
    let store = ParamStore::new(&Device::Cpu, DType::F32, 0);
    let config = autoencoder_config(c, dropout)?;
    let model = Autoencoder::with_store(&store, &config, c.size("patch_size")?, c.size("vocab_size")?, 0)?;
    load(&store, weights)?;
    Ok((store, model))
}

/// Settings of the Llama stack.
pub fn backbone_config(c: &Config) -> Result<BackboneConfig> {
    c.refuse_unknown_variants()?;
    Ok(BackboneConfig {
        layers: c.size("num_hidden_layers")?,
        hidden_size: c.size("hidden_size")?,
        intermediate_size: c.size("intermediate_size")?,
        heads: c.size("num_attention_heads")?,
        kv_heads: c.0["num_key_value_heads"].as_u64().map(|n| n as usize),
        rope_theta: c.number("rope_theta")?,
        norm_eps: c.number("rms_norm_eps")?,
        ..Default::default()
    })
}

/// Loads weights; every name and shape that does not fit is in the error.
pub fn load(store: &ParamStore, weights: &HashMap<String, Tensor>) -> Result<()> {
    let report = store.load(weights)?;
    if !report.is_clean() {
        bail!("the weights do not fit:\n{report}")
    }
    Ok(())
}

/// Names whose removal leaves the other name of the same tensor: both ways a de-duplicated file can look.
pub fn without(weights: &HashMap<String, Tensor>, drop: impl Fn(&str) -> bool) -> HashMap<String, Tensor> {
    weights.iter().filter(|(n, _)| !drop(n)).map(|(n, t)| (n.clone(), t.clone())).collect()
}

/// The rows of ids `[B, T]` as one segment each, in chunks of `k`; position (b, s) is predicted from where
/// `predicts` (row-major `[B, S−1]`) says so.
pub fn batch(ids: &Tensor, k: usize, predicts: Option<&[bool]>) -> Result<ChunkBatch> {
    let (b, t) = ids.dims2()?;
    let s = t / k;
    let flags: Vec<bool> = (0..b * s)
        .map(|at| at % s + 1 < s && predicts.is_none_or(|p| p[at / s * (s - 1) + at % s]))
        .collect();
    let positions: Vec<u32> = (0..b * s).map(|at| (at % s) as u32).collect();
    let examples: Vec<u32> = (0..b as u32).collect();
    let ids: Vec<u32> = ids.flatten_all()?.to_vec1()?;
    ChunkBatch::new((b, s, k), &ids, &positions, &vec![0; b * s], &flags, &examples, &Device::Cpu)
}

/// U32 positions 0.. and one segment for rows `[B, S]`.
pub fn plain_rows(b: usize, s: usize) -> Result<(Tensor, Tensor)> {
    let positions = Tensor::arange(0u32, s as u32, &Device::Cpu)?.repeat((b, 1))?;
    Ok((positions, Tensor::zeros((b, s), DType::U32, &Device::Cpu)?))
}

/// Every tensor of a `pytorch_model.bin` equals that of the `model.safetensors` beside it.
pub fn same_weights_in_both_formats(case: &Case, check: &mut Check) -> Result<()> {
    for file in case.files().iter().filter(|f| f.ends_with("pytorch_model.bin")) {
        let weights = case.weights(&file.replace("pytorch_model.bin", "model.safetensors"))?;
        let pickled = candle_core::pickle::read_all(case.path(file))?.into_iter().collect();
        same_weights(&format!("{}/{file}", case.name), &weights, &pickled, check)?;
    }
    Ok(())
}

fn same_weights(
    file: &str,
    weights: &HashMap<String, Tensor>,
    pickled: &HashMap<String, Tensor>,
    check: &mut Check,
) -> Result<()> {
    for name in weights.keys().chain(pickled.keys().filter(|n| !weights.contains_key(*n))) {
        let same = match (weights.get(name), pickled.get(name)) {
            (Some(a), Some(b)) => identical(a, b)?,
            _ => false,
        };
        check.holds(file, &format!("{name} equals that of model.safetensors"), same);
    }
    Ok(())
}
