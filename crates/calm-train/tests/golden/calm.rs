//! Kind `calm_energy`: the language model with the energy head, from the input module to generation.

use std::collections::HashMap;

use calm_lm::backbone::{Branch, Rows};
use calm_lm::{Cache, Calm, CalmConfig, ChunkBatch, EnergyConfig, LanguageModel, SpecialIds, TextFormat};
use calm_nn::{Noise, ParamStore};
use calm_stats::brier::{self as arithmetic, NGRAM};
use candle_core::{DType, Device, IndexOp, Result, Tensor, bail};

use crate::brier::{self, flat};
use crate::compare::{self, Check};
use crate::reference;
use crate::set::{Case, Config, Tensors};

/// Configs and weights of one case.
struct Models {
    config: Config,
    weights: HashMap<String, Tensor>,
    autoencoder: Config,
    autoencoder_weights: HashMap<String, Tensor>,
}

pub fn run(case: &Case, check: &mut Check) -> Result<()> {
    let config = Config(case.json("config.json")?);
    let Some(ae) = config.0["ae_path"].as_str().map(str::to_owned) else {
        bail!("config.json has no ae_path")
    };
    let models = Models {
        autoencoder: Config(case.json(&format!("{ae}/config.json"))?),
        autoencoder_weights: case.weights(&format!("{ae}/model.safetensors"))?,
        weights: case.weights("model.safetensors")?,
        config,
    };
    let file = format!("{}/model.safetensors", case.name);
    for (name, t) in &models.autoencoder_weights {
        let same = match models.weights.get(&format!("ae_model.{name}")) {
            Some(inside) => compare::identical(inside, t)?,
            None => false,
        };
        check.holds(&file, &format!("ae_model.{name} equals the autoencoder's"), same);
    }
    for (alias, name) in [("generative_head.", "mlp_generator."), ("mlp_generator.", "generative_head.")] {
        if !models.weights.keys().any(|n| n.starts_with(name)) {
            continue;
        }
        let weights = reference::without(&models.weights, |n| n.starts_with(alias));
        let fits = models.build(&weights, &EnergyConfig::default()).is_ok();
        check.holds(&file, &format!("loads without {alias}*"), fits);
    }
    let base = case.tensors("io.safetensors")?;
    for file in case.io_files() {
        let io = case.tensors(&file)?;
        if io.has("prompt") {
            generate(&models, &io, check)?;
        } else {
            let inputs = if io.has("input_ids") { &io } else { &base };
            forward(&models, inputs, &io, check)?;
        }
    }
    Ok(())
}

impl Models {
    /// The model with the energy head's `noise_size` and blocks of config.json; N, M and α from `head`.
    fn build(&self, weights: &HashMap<String, Tensor>, head: &EnergyConfig) -> Result<(ParamStore, Calm)> {
        let (c, backbone) = (&self.config, reference::backbone_config(&self.config)?);
        let (_, autoencoder) = reference::autoencoder(&self.autoencoder, &self.autoencoder_weights, false)?;
        let head = EnergyConfig {
            blocks: Some(c.size("num_mlp_layers")?),
            noise_size: c.size("noise_size")?,
            ..head.clone()
        };
        let special =
            SpecialIds { bos: c.id("bos_token_id")?, eos: c.id("eos_token_id")?, pad: c.id("pad_token_id")? };
        let store = ParamStore::new(&Device::Cpu, DType::F32, 0);
        // The reference never shortens a context.
        let context = 1 << 20;
        let text = TextFormat { vocab_size: c.size("vocab_size")?, special, context, bos_chunk: false };
        let config = CalmConfig {
            chunk_size: autoencoder.chunk_size(),
            autoencoder: autoencoder.config().clone(),
            backbone,
            head: head.into(),
            decode: Default::default(),
            likelihood: None,
        };
        let model = Calm::new(&store, &config, autoencoder, &text)?;
        reference::load(&store, &reference::without(weights, |n| n.starts_with("ae_model.")))?;
        Ok((store, model))
    }
}

/// The reference's samples come first: `[N, R, ..] -> [R, N, ..]` and back.
fn swap(t: &Tensor) -> Result<Tensor> {
    t.transpose(0, 1)?.contiguous()
}

/// Head noise as our stream: uniform in [0, 1), `[R, N, noise_size]`.
fn head_noise(shifted: &Tensor) -> Result<HashMap<String, Tensor>> {
    Ok(HashMap::from([("head".to_owned(), (swap(shifted)? + 0.5)?)]))
}

/// Loss, scores and gradients expected in `io` for the inputs and draws in `inputs`, usually the same file.
fn forward(models: &Models, inputs: &Tensors, io: &Tensors, check: &mut Check) -> Result<()> {
    let (noise, eps) = (inputs.get("noise")?, inputs.get("eps")?);
    let (n, _, _) = noise.dims3()?;
    let alpha = if io.has("beta") { io.scalar("beta")? } else { models.config.number("beta")? };
    let head = EnergyConfig { samples: n, targets: eps.dim(0)?, alpha, ..Default::default() };
    let (store, model) = models.build(&models.weights, &head)?;
    let k = model.chunk_size();

    // A chunk is a target where its first label is not the ignored one (−100).
    let ids = inputs.ids("input_ids")?;
    let (b, t) = ids.dims2()?;
    let s = t / k;
    let labels = inputs.get("labels")?.to_vec2::<i64>()?;
    let predicts: Vec<bool> = labels.iter().flat_map(|row| (1..s).map(|c| row[c * k] >= 0)).collect();
    let batch = reference::batch(&ids, k, Some(&predicts))?;
    let rows = batch.sources.len();
    let mut streams = head_noise(&noise)?;
    streams.insert("target".to_owned(), eps);
    let given = Noise::Given(&streams);

    if io.has("embed_proj") {
        stages(&model, &batch, io, check, &given, n)?;
        let mask = predicts.iter().map(|p| u32::from(*p)).collect::<Vec<_>>();
        if io.has("row_mask") {
            check.integers(io, "row_mask", &Tensor::from_vec(mask, (b, s - 1), &Device::Cpu)?)?;
        }
        let kept: Vec<u32> = batch
            .sources
            .iter()
            .flat_map(|at| {
                let (row, chunk) = (*at as usize / s, *at as usize % s + 1);
                labels[row][chunk * k..][..k].iter().map(|l| *l as u32)
            })
            .collect();
        check.holds(&io.file, "the labels kept are the ids predicted", kept == flat(&batch.targets()?)?);
    }

    let hidden = model.hidden(&batch)?;
    let posterior = model.posterior(&batch.targets()?)?;
    let score = model.head().loss(&hidden, &posterior, &given)?.neg()?;
    check.values(io, "energy_score", &score)?;
    let loss = (model.loss(&batch, &given)?.sum / rows as f64)?;
    check.values(io, "loss", &loss)?;
    check.gradients(io, "", &store, &loss.backward()?)?;

    if io.has("predictions_1") {
        score_predictions(&model, &batch, &hidden, io, check, &given, n)?;
    }
    Ok(())
}

/// Input module, backbone (whole rows, and with a cache), posterior, latents.
fn stages(
    model: &Calm,
    batch: &ChunkBatch,
    io: &Tensors,
    check: &mut Check,
    noise: &Noise<'_>,
    samples: usize,
) -> Result<()> {
    let (b, s, k) = batch.ids.dims3()?;
    let inputs = model.embed(&batch.ids.narrow(1, 0, s - 1)?.contiguous()?)?;
    check.values(io, "embed_proj", &inputs)?;
    let (positions, segments) = reference::plain_rows(b, s - 1)?;
    let hidden = model.backbone().forward(&inputs, &Rows::causal(&positions, &segments))?;
    check.values(io, "hidden_states", &hidden)?;
    let mut cache = Cache::default();
    let mut cached = Vec::new();
    for p in 0..s - 1 {
        cached.push(model.backbone().forward_cached(&inputs.narrow(1, p, 1)?.contiguous()?, &mut cache)?);
    }
    check.values(io, "hidden_states", &Tensor::cat(&cached, 1)?)?;

    let picked = model.hidden(batch)?;
    let expected = io.get("hidden_states")?.reshape((b * (s - 1), ()))?;
    let kept: Vec<u32> =
        batch.sources.iter().map(|at| at / s as u32 * (s as u32 - 1) + at % s as u32).collect();
    let expected = expected.index_select(&Tensor::new(kept, &Device::Cpu)?, 0)?;
    check.part(io, "hidden_states of the predicted rows", &picked, &expected)?;

    let posterior = model.posterior(&batch.targets()?)?;
    check.values(io, "target_mean", &posterior.mean)?;
    check.values(io, "target_log_std", &posterior.log_std)?;
    check.values(io, "latent_predictions", &swap(&model.head().sample(&picked, samples, noise)?)?)?;
    check.holds(&io.file, "chunks have patch_size tokens", k == model.chunk_size());
    Ok(())
}

/// Decoded samples, Brier-1..4, and for K < 4 the roll-outs behind the collision term.
fn score_predictions(
    model: &Calm,
    batch: &ChunkBatch,
    hidden: &Tensor,
    io: &Tensors,
    check: &mut Check,
    noise: &Noise<'_>,
    samples: usize,
) -> Result<()> {
    let (b, s, k) = batch.ids.dims3()?;
    let latents = model.head().sample(hidden, samples, noise)?;
    let tokens = Tensor::from_vec(model.argmax(&latents, hidden)?, (b, s - 1, samples, k), &Device::Cpu)?;
    let sample = |n: usize| tokens.narrow(2, n, 1)?.squeeze(2)?.contiguous();
    let predictions = [sample(0)?, sample(1)?];
    check.integers(io, "predictions_1", &predictions[0])?;
    check.integers(io, "predictions_2", &predictions[1])?;
    let steps = if k < NGRAM { roll_out(model, batch, &predictions[0], io, check)? } else { Vec::new() };
    let data = brier::Data {
        shape: [b, s - 1, k],
        predictions: [flat(&predictions[0])?, flat(&predictions[1])?],
        targets: flat(&batch.ids.narrow(1, 1, s - 1)?.contiguous()?)?,
        steps,
    };
    let scored = brier::score(&data)?;
    if io.has("collision") {
        check.list(io, "collision", scored.collision)?;
    }
    check.list(io, "brier", scored.brier.to_vec())?;
    check.scalar(io, "brierlm", arithmetic::reference_brierlm(&scored.brier))
}

/// Rolls every start position forward along sample 1 with the given draws: `[starts, steps, 2, B, K]`.
///
/// All positions branch off in one pass a step; the reference cuts its cache back for each of them. Draws it
/// did not make (no sample of the batch still agreed) stay 0.
fn roll_out(
    model: &Calm,
    batch: &ChunkBatch,
    first: &Tensor,
    io: &Tensors,
    check: &mut Check,
) -> Result<Vec<u32>> {
    let (b, s, k) = batch.ids.dims3()?;
    let (positions, ahead) = (s - 1, arithmetic::chunks_per_gram(k) - 1);
    let starts = positions.saturating_sub(ahead + 1);
    let index = io.get("step_index")?.to_vec2::<i64>()?;
    let noise = io.get("step_noise")?;
    let mut steps = vec![0u32; starts * ahead * 2 * b * k];
    let mut drawn: Vec<Tensor> = vec![first.zeros_like()?.narrow(1, 0, 1)?.squeeze(1)?; 2 * index.len()];
    let (_, trunk) =
        model.backbone().forward_trunk(&model.embed(&batch.ids)?, &model.backbone().rows(batch)?)?;
    let mut branch = Branch::default();
    let mut previous = Tensor::cat(&[first, &batch.ids.narrow(1, s - 1, 1)?], 1)?;
    for step in 1..=ahead {
        let hidden = model.backbone().forward_branch(&model.embed(&previous)?, &trunk, &mut branch)?;
        let mut next = previous.zeros_like()?;
        for (draw, at) in index.iter().enumerate().filter(|(_, at)| at[1] as usize == step) {
            let start = at[0] as usize;
            let rows = hidden.narrow(1, start, 1)?.squeeze(1)?.contiguous()?;
            let streams = head_noise(&noise.get(draw)?.reshape((2, b, ()))?)?;
            let latents = model.head().sample(&rows, 2, &Noise::Given(&streams))?;
            let tokens = Tensor::from_vec(model.argmax(&latents, &rows)?, (b, 2, k), &Device::Cpu)?;
            for sample in 0..2 {
                let mine = tokens.narrow(1, sample, 1)?.squeeze(1)?.contiguous()?;
                let to = ((start * ahead + step - 1) * 2 + sample) * b * k;
                steps[to..to + b * k].copy_from_slice(&flat(&mine)?);
                drawn[2 * draw + sample] = mine;
            }
            next = next.slice_assign(&[0..b, start..start + 1, 0..k], &drawn[2 * draw].unsqueeze(1)?)?;
        }
        previous = next;
    }
    if !drawn.is_empty() {
        let drawn = Tensor::stack(&drawn, 0)?.reshape((index.len(), 2, b, k))?;
        check.integers(io, "step_predictions", &drawn)?;
    }
    Ok(steps)
}

/// The reference's generation at T = 1: an incomplete prompt is filled with PAD inside its last chunk, what
/// follows an EOS inside its chunk is kept, later chunks are PAD, and in the end all PADs move to the end.
fn generate(models: &Models, io: &Tensors, check: &mut Check) -> Result<()> {
    let (_, model) = models.build(&models.weights, &EnergyConfig::default())?;
    let (k, special) = (model.chunk_size(), model.special());
    let prompts = io.ids("prompt")?.to_vec2::<u32>()?;
    let limit = io.scalar("max_length")? as usize;
    let noise = io.get("noise")?;
    let given = noise.dim(0)?;
    let mut rows = Vec::new();
    let mut states = Vec::new();
    for mut prompt in prompts {
        prompt.resize(prompt.len().next_multiple_of(k), special.pad);
        let mut state = model.begin()?;
        model.read(&mut state, &prompt)?;
        states.push(state);
        rows.push(prompt);
    }
    let mut used = 0;
    let mut ended = vec![false; rows.len()];
    while rows[0].len() < limit && !ended.iter().all(|e| *e) && used < given {
        for (row, (tokens, state)) in rows.iter_mut().zip(&mut states).enumerate() {
            let mut chunk = vec![special.pad; k];
            if !ended[row] {
                let shifted = noise.i((used, row))?.reshape((1, 1, ()))?;
                let streams = head_noise(&shifted)?;
                let latent = model.head().sample(state.hidden()?, 1, &Noise::Given(&streams))?;
                chunk = model.argmax(&latent, state.hidden()?)?;
                ended[row] = chunk.contains(&special.eos);
                model.read(state, &chunk)?;
            }
            tokens.extend(chunk);
        }
        used += 1;
    }
    check.holds(&io.file, "as many steps as the reference", used == given);
    let length = rows[0].len();
    for tokens in &mut rows {
        tokens.retain(|t| *t != special.pad);
        tokens.resize(length, special.pad);
    }
    check.integers(io, "output_ids", &Tensor::new(rows, &Device::Cpu)?)
}
