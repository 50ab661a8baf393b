//! Kind `llama_rope`: the decoder alone on given inputs, whole rows and with a cache; rotary angles.

use calm_kernels as ops;
use calm_lm::backbone::Rows;
use calm_lm::{Backbone, Cache};
use calm_nn::ParamStore;
use candle_core::{DType, Device, Result, Tensor};

use crate::compare::{Check, VALUES};
use crate::reference;
use crate::set::{Case, Config};

/// The reference computes angles in float32, ours are in double precision. Frequency and product are rounded
/// to 6e-8 each there, so that an angle at position p is off by up to 1.2e-7·p: more than the tolerance from
/// p = 167 on.
fn tolerance(positions: usize) -> f64 {
    VALUES.max(1.2e-7 * positions as f64)
}

pub fn run(case: &Case, check: &mut Check) -> Result<()> {
    let config = reference::backbone_config(&Config(case.json("config.json")?))?;
    let store = ParamStore::new(&Device::Cpu, DType::F32, 0);
    let backbone = Backbone::new(&store.builder(), &config)?;
    // Fed with embeddings: the table of tokens is not used.
    let weights = case.weights("model.safetensors")?;
    reference::load(&store, &reference::without(&weights, |n| n == "embed_tokens.weight"))?;

    for file in case.io_files() {
        let io = case.tensors(&file)?;
        let x = io.get("inputs_embeds")?;
        let (b, t, _) = x.dims3()?;
        let first = |n: usize| x.narrow(1, 0, n)?.contiguous();
        let names = io.names();
        for (name, length) in names.iter().filter_map(|n| Some((n, n.strip_prefix("hidden_")?.parse().ok()?)))
        {
            let (positions, segments) = reference::plain_rows(b, length)?;
            let hidden = backbone.forward(&first(length)?, &Rows::causal(&positions, &segments))?;
            check.values_within(&io, name, &hidden, tolerance(length))?;
        }
        for (name, layer) in
            names.iter().filter_map(|n| Some((n, n.strip_prefix("layer_input_")?.parse::<usize>().ok()?)))
        {
            let length = io.get(name)?.dim(1)?;
            let (positions, segments) = reference::plain_rows(b, length)?;
            let streams = backbone.residual_streams(&first(length)?, &Rows::causal(&positions, &segments))?;
            check.values_within(&io, name, &streams[layer], tolerance(length))?;
        }
        if io.has("chunks") {
            let (mut cache, mut at, mut parts) = (Cache::default(), 0, Vec::new());
            for n in io.get("chunks")?.to_vec1::<i64>()? {
                let piece = x.narrow(1, at, n as usize)?.contiguous()?;
                parts.push(backbone.forward_cached(&piece, &mut cache)?);
                at += n as usize;
            }
            check.holds(&io.file, "the cache holds every position", cache.len() == at);
            check.values_within(&io, "hidden_cached", &Tensor::cat(&parts, 1)?, tolerance(at))?;
        }
        if io.has("rope_cos") {
            // A vector of ones and zeros turns into cosines and sines: (1, 0) -> (cos, sin).
            let half = config.head_size() / 2;
            let one = Tensor::ones((1, t, 1, half), DType::F32, &Device::Cpu)?;
            let zero = one.zeros_like()?;
            let (positions, _) = reference::plain_rows(1, t)?;
            let turned = ops::rotary(&Tensor::cat(&[&one, &zero], 3)?, &positions, config.rope_theta)?;
            for (name, from) in [("rope_cos", 0), ("rope_sin", half)] {
                let table = turned.narrow(3, from, half)?.reshape((t, half))?;
                check.values_within(&io, name, &Tensor::cat(&[&table, &table], 1)?, tolerance(t))?;
            }
        }
    }
    Ok(())
}
