//! Kind `autoencoder`: posterior, sample, logits, losses, gradients, with and without dropout.

use std::collections::HashMap;

use calm_nn::Noise;
use candle_core::{DType, Result, Tensor};

use crate::compare::Check;
use crate::reference;
use crate::set::{Case, Config, Tensors};

pub fn run(case: &Case, check: &mut Check) -> Result<()> {
    let config = Config(case.json("config.json")?);
    let weights = case.weights("model.safetensors")?;
    let names = ["decoder.lm_head_weight", "encoder.embed_tokens.weight"];
    for (alias, name) in [(names[0], names[1]), (names[1], names[0])] {
        if !weights.contains_key(name) {
            continue;
        }
        let fits =
            reference::autoencoder(&config, &reference::without(&weights, |n| n == alias), false).is_ok();
        check.holds(&format!("{}/model.safetensors", case.name), &format!("loads without {alias}"), fits);
    }
    for file in case.io_files() {
        compare(&config, &weights, &case.tensors(&file)?, check)?;
    }
    Ok(())
}

fn compare(
    config: &Config,
    weights: &HashMap<String, Tensor>,
    io: &Tensors,
    check: &mut Check,
) -> Result<()> {
    let dropout = io.has("token_mask");
    let (store, model) = reference::autoencoder(config, weights, dropout)?;
    let (k, l) = (model.chunk_size(), model.latent_size());
    let ids = io.ids("input_ids")?;
    let (b, t) = ids.dims2()?;
    let (s, rows) = (t / k, b * t / k);
    let chunks = ids.reshape((rows, k))?;
    let eps = io.get("eps")?.reshape((rows, l))?;

    // Forward, step by step, on the ids that the encoder sees.
    let token_mask = dropout.then(|| io.ids("token_mask")).transpose()?;
    let seen = match &token_mask {
        Some(mask) => (&chunks * mask.reshape((rows, k))?)?,
        None => chunks.clone(),
    };
    let posterior = model.encode(&seen)?;
    let chunked = |x: &Tensor| x.reshape((b, s, l));
    check.values(io, "mean", &chunked(&posterior.mean)?)?;
    check.values(io, "log_std", &chunked(&posterior.log_std)?)?;
    let kl = posterior.kl()?;
    check.values(io, "kl_elements", &chunked(&kl)?)?;
    check.scalar(
        io,
        "kl_unclamped",
        kl.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()? / rows as f64,
    )?;
    let z = posterior.sample(&eps)?;
    check.values(io, "z", &chunked(&z)?)?;
    let mut noise = HashMap::from([("latent".to_owned(), eps.reshape((rows, 1, l))?)]);
    let z = match &token_mask {
        None => z,
        Some(mask) => {
            // A token is kept where its uniform number is at least the probability of dropping it.
            let uniform = (mask.to_dtype(DType::F32)? * 0.999)?.reshape((rows, 1, k))?;
            let latent_mask = io.get("latent_mask")?.reshape((rows, l))?;
            let dropped = (z * &latent_mask)?;
            check.values(io, "z_dropped", &chunked(&dropped)?)?;
            noise.insert("token".to_owned(), uniform);
            noise.insert("latent.dropout".to_owned(), latent_mask);
            dropped
        }
    };
    check.values(io, "logits", &model.logits(&z)?.reshape((b, t, ()))?)?;
    check.integers(io, "argmax", &model.decode(&z)?.reshape((b, t))?)?;
    let (ce, best) = model.score(&z, &chunks)?;
    check.integers(io, "argmax", &best.reshape((b, t))?)?;
    check.scalar(io, "ce", ce.to_dtype(DType::F64)?.mean_all()?.to_scalar()?)?;

    // The training loss with the same draws, its parts and gradients.
    let loss = model.loss(&chunks, &Noise::Given(&noise))?;
    let mean = |sum: &Tensor, n: usize| -> Result<f64> {
        Ok(sum.to_dtype(DType::F64)?.to_scalar::<f64>()? / n as f64)
    };
    check.scalar(io, "total_loss", mean(&loss.total, rows)?)?;
    check.scalar(io, "ce", mean(&loss.cross_entropy, rows * k)?)?;
    check.scalar(io, "kl", mean(&loss.kl, rows)?)?;
    let grads = (loss.total / rows as f64)?.backward()?;
    check.gradients(io, "", &store, &grads)?;
    Ok(())
}
