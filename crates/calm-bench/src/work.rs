//! The pieces of work that are measured: each a function that does one step, on random tokens.

use std::fmt;
use std::str::FromStr;

use calm_autoencoder::Autoencoder;
use calm_data::Batch;
use calm_eval::generate::{Decoding, GenerateOptions, generate};
use calm_eval::protocol::Rule;
use calm_eval::score::{ScoreOptions, score};
use calm_eval::workers::Alone;
use calm_kernels as ops;
use calm_lm::{Baseline, BaselineConfig, Calm, HeadSettings, LanguageModel, SpecialIds, TextFormat};
use calm_nn::{AdamWConfig, NoiseKey, ParamStore, RowId, philox};
use calm_run::config::{Reduction, Schedule, Shard, StageConfig};
use calm_run::divergence::DivergenceConfig;
use calm_stats::brier::chunks_per_gram;
use calm_stats::temperature::Temperature;
use calm_train::models::StageOne;
use calm_train::objective::Objective;
use calm_train::step::Stepper;
use candle_core::{DType, Device, Result, Tensor, Var, bail};
use serde::Serialize;

use crate::place::Place;
use crate::size::Size;

/// A piece of work, by the name that the PyTorch peers use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A training step of the autoencoder.
    Ae,
    /// A training step of CALM: the frozen autoencoder encodes, N samples, M targets, energy loss.
    Lm,
    /// A training step of the discrete baseline on as many tokens.
    Baseline,
    /// The energy loss alone on as many positions, forward and backward.
    Energy,
    /// Causal attention alone on as many positions, forward and backward.
    Attention,
    /// Reading a prompt and generating chunks at T = 1/2 from a batch of candidates each.
    Generate,
    /// Brier-1 to 4 with chunks of one token.
    BrierK1,
    /// Brier-1 to 4 with chunks of two tokens.
    BrierK2,
    /// Brier-1 to 4 with chunks of four tokens.
    BrierK4,
}

impl What {
    /// All of it.
    pub const ALL: [What; 9] = [
        What::Ae,
        What::Lm,
        What::Baseline,
        What::Energy,
        What::Attention,
        What::Generate,
        What::BrierK1,
        What::BrierK2,
        What::BrierK4,
    ];

    /// The name.
    pub fn name(self) -> &'static str {
        match self {
            What::Ae => "ae",
            What::Lm => "lm",
            What::Baseline => "baseline",
            What::Energy => "energy",
            What::Attention => "attention",
            What::Generate => "generate",
            What::BrierK1 => "brier_k1",
            What::BrierK2 => "brier_k2",
            What::BrierK4 => "brier_k4",
        }
    }

    /// Whether parameters are updated.
    pub fn is_training(self) -> bool {
        matches!(self, What::Ae | What::Lm | What::Baseline)
    }

    /// K.
    pub fn chunk_size(self, s: &Size) -> usize {
        match self {
            What::BrierK1 => 1,
            What::BrierK2 => 2,
            What::BrierK4 => 4,
            _ => s.chunk_size,
        }
    }

    /// FLOPs of a step by formula: the conventions of [`calm_nn::costs`]; of the energy loss 6·L for each pair
    /// of points (difference, square, sum, and the gradient); of attention alone the keys up to each position.
    pub fn flops(self, s: &Size) -> f64 {
        let k = self.chunk_size(s);
        let chunks = (s.batch_rows * s.context_chunks) as f64;
        let (b, head) = (s.backbone(), s.head());
        let backbone = |context: usize| b.matrix_flops() + b.attention_flops(context);
        let input = |k: usize| (4 * k * s.hidden * s.hidden + 4 * s.hidden * s.hidden) as f64;
        let head = |latent: usize| head.pass_flops(&b, latent);
        let decode = |latent: usize| {
            let a = s.autoencoder(latent);
            a.decode_flops(k) + a.vocabulary_flops(k, s.vocab)
        };
        let encode = s.autoencoder(s.latent).encode_flops(k);
        match self {
            What::Ae => {
                let rows = (s.ae_rows * s.ae_context) as f64;
                3.0 * rows * (encode + decode(s.latent))
            }
            What::Lm => {
                let trained = input(k) + backbone(s.context_chunks) + s.samples as f64 * head(s.latent);
                chunks * (encode + 3.0 * trained)
            }
            What::Baseline => {
                let vocabulary = (2 * s.hidden * s.vocab) as f64;
                3.0 * chunks * k as f64 * (backbone(s.context_chunks * k) + vocabulary)
            }
            What::Energy => {
                let (n, m) = (s.samples, s.targets);
                chunks * (6 * s.latent * (n * m + n * (n - 1) / 2)) as f64
            }
            What::Attention => {
                // Two products forward, five backward.
                let t = s.context_chunks;
                14.0 * (s.batch_rows * s.hidden * t * (t + 1) / 2) as f64
            }
            What::Generate => {
                let context = s.prompt_chunks + s.new_chunks;
                let read = (context - 1) as f64 * (input(k) + backbone(context));
                let draws = (s.new_chunks * s.candidates) as f64;
                s.generate_rows as f64 * (read + draws * (head(s.latent) + decode(s.latent)))
            }
            What::BrierK1 | What::BrierK2 | What::BrierK4 => {
                let (latent, positions) = (k * s.brier_latent_per_token, s.brier_tokens / k);
                let draws = input(k) + backbone(positions) + 2.0 * (head(latent) + decode(latent));
                let later = chunks_per_gram(k) - 1;
                let rolled = if later > 0 { (positions - later - 1) * later } else { 0 };
                (s.brier_rows * (positions + rolled)) as f64 * draws
            }
        }
    }
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for What {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let names = What::ALL.map(What::name).join(", ");
        What::ALL.into_iter().find(|w| w.name() == name).ok_or_else(|| format!("one of {names}"))
    }
}

/// A step that can be repeated.
pub struct Step {
    /// Does it; the result is its loss, or Brier-1. A training step that is told not to read it (false) does not
    /// wait for a GPU, and answers NaN.
    pub run: Box<dyn FnMut(bool) -> Result<f64>>,
    /// Tokens predicted, scored or generated in it.
    pub tokens: usize,
}

const SEED: u64 = 1;

/// Token ids in `0..V − 1`: the last id is PAD and does not occur.
fn ids(count: usize, vocab: usize) -> Vec<u32> {
    let row = [RowId { example: 0, position: 0 }];
    let u = philox::uniform(NoiseKey::new(SEED, "bench/ids", 0), &row, 1, count);
    u.into_iter().map(|u| (f64::from(u) * (vocab - 1) as f64) as u32).collect()
}

/// The last ids. None of them comes out of an untrained model, whose every draw is token 0.
fn special(vocab: usize) -> SpecialIds {
    let last = vocab as u32 - 1;
    SpecialIds { bos: last - 2, eos: last - 1, pad: last }
}

/// Rows of text in one segment each; all positions but the last predict the next.
fn batch(rows: usize, positions: usize, k: usize, vocab: usize) -> Batch {
    let places = rows * positions;
    let row = |f: &dyn Fn(usize) -> u32| (0..places).map(|i| f(i % positions)).collect::<Vec<u32>>();
    Batch {
        rows,
        context: positions,
        chunk_size: k,
        ids: ids(places * k, vocab),
        filled: vec![true; places],
        predicts: (0..places).map(|i| i % positions + 1 < positions).collect(),
        counting: None,
        target: (0..places).map(|i| i % positions > 0).collect(),
        segments: vec![0; places],
        documents: (0..places).map(|i| (i / positions) as u32).collect(),
        positions: row(&|i| i as u32),
        chunk_index: row(&|i| i as u32),
        examples: (0..rows as u32).collect(),
    }
}

/// The real training step of some objective on a batch; as [`Step::run`] wants it.
fn training<O: Objective + ?Sized + 'static>(objective: Box<O>, batch: Batch, tokens: usize) -> Result<Step> {
    let config = StageConfig {
        steps: u64::from(u32::MAX),
        batch_rows: batch.rows,
        context: batch.context,
        accumulation: 1,
        reduction: Reduction::default(),
        pieces: 1,
        shard: Shard::default(),
        overlap: true,
        recompute: false,
        learning_rate: 3e-4,
        warmup_steps: 0,
        schedule: Schedule::Constant,
        adamw: AdamWConfig::default(),
        clip_norm: 1.0,
        eval_every: 0,
        checkpoint_every: 0,
        log_every: 1,
        divergence: DivergenceConfig::default(),
    };
    let mut stepper = Stepper::new(objective.store(), &config, SEED).map_err(candle_core::Error::wrap)?;
    let (batches, mut step) = ([batch], 0);
    let run = move |read: bool| {
        let report = stepper.step(&*objective, &batches, step, read).map_err(candle_core::Error::wrap)?;
        step += 1;
        Ok(report.values.filter(|_| read).map_or(f64::NAN, |v| v.loss))
    };
    Ok(Step { run: Box::new(run), tokens })
}

fn calm(
    store: &ParamStore,
    place: &Place,
    s: &Size,
    k: usize,
    latent: usize,
    context: usize,
) -> Result<Calm> {
    let special = special(s.vocab);
    let frozen = place.store(SEED)?;
    let ae = Autoencoder::with_store(&frozen, &s.autoencoder(latent), k, s.vocab, special.bos)?;
    frozen.prepare()?;
    let text = TextFormat { vocab_size: s.vocab, special, context, bos_chunk: false };
    let model = Calm::new(store, &s.calm(k, latent), ae, &text)?;
    store.prepare()?;
    Ok(model)
}

/// The step of some work at a size, with random weights.
///
/// # Errors
/// No memory left on a GPU.
pub fn build(what: What, size: &Size, place: &Place) -> Result<Step> {
    let s = size.clone();
    let k = what.chunk_size(&s);
    let store = place.store(SEED)?;
    let rows = s.batch_rows * s.context_chunks;
    match what {
        What::Ae => {
            let special = special(s.vocab);
            let model = Autoencoder::with_store(&store, &s.autoencoder(s.latent), k, s.vocab, special.bos)?;
            store.prepare()?;
            let mut batch = batch(s.ae_rows, s.ae_context, k, s.vocab);
            batch.target.fill(true);
            training(Box::new(StageOne { model, store }), batch, s.ae_rows * s.ae_context * k)
        }
        What::Lm => {
            let model: Box<dyn LanguageModel> =
                Box::new(calm(&store, place, &s, k, s.latent, s.context_chunks)?);
            training(model, batch(s.batch_rows, s.context_chunks + 1, k, s.vocab), rows * k)
        }
        What::Baseline => {
            let context = s.context_chunks * k;
            let special = special(s.vocab);
            let text = TextFormat { vocab_size: s.vocab, special, context, bos_chunk: false };
            let settings = BaselineConfig { backbone: s.backbone() };
            let model: Box<dyn LanguageModel> = Box::new(Baseline::new(&store, &settings, &text)?);
            store.prepare()?;
            training(model, batch(s.batch_rows, context + 1, 1, s.vocab), rows * k)
        }
        What::Energy => energy(&s, rows, place),
        What::Attention => attention(&s, place),
        What::Generate => {
            let context = s.prompt_chunks + s.new_chunks;
            let model = calm(&store, place, &s, k, s.latent, context)?;
            let prompt = ids(s.prompt_chunks * k, s.vocab);
            let half = Temperature::new::<candle_core::Error>(0.5).map_err(candle_core::Error::wrap)?;
            let decoding = Decoding::Batch { temperature: half, samples: s.candidates };
            let max_tokens = s.new_chunks * k;
            let texts = s.generate_rows;
            let run = move |_| {
                let mut first = 0.0;
                for seed in 0..texts as u64 {
                    let options = GenerateOptions { max_tokens, decoding, seed, remainder_budget: 1 };
                    let report = generate(&*model.sampler(), &prompt, &options, |new| {
                        first = new.first().map_or(first, |t| f64::from(*t));
                        true
                    })
                    .map_err(candle_core::Error::wrap)?;
                    if report.tokens != max_tokens {
                        bail!("{} tokens came instead of {max_tokens}", report.tokens)
                    }
                }
                Ok(first)
            };
            Ok(Step { run: Box::new(run), tokens: texts * max_tokens })
        }
        What::BrierK1 | What::BrierK2 | What::BrierK4 => {
            let positions = s.brier_tokens / k;
            let model = calm(&store, place, &s, k, k * s.brier_latent_per_token, positions)?;
            let batch = batch(s.brier_rows, positions + 1, k, s.vocab);
            let run = move |_| {
                let options = ScoreOptions { rule: Rule::All, samples: 2, seed: SEED };
                let scores = score(&model, [batch.clone()].into_iter(), options, Alone(|_| ()))?;
                Ok(scores.sums.brier().map_or(f64::NAN, |b| b[0] / 100.0))
            };
            Ok(Step { run: Box::new(run), tokens: s.brier_rows * s.brier_tokens })
        }
    }
}

fn energy(s: &Size, rows: usize, place: &Place) -> Result<Step> {
    let (n, m, l, alpha) = (s.samples, s.targets, s.latent, s.alpha);
    let ids: Vec<RowId> = (0..rows as u32).map(|position| RowId { example: 0, position }).collect();
    let normal = |stream: &str, samples: usize| {
        let values = philox::normal(NoiseKey::new(SEED, stream, 0), &ids, samples, l);
        Tensor::from_vec(values, (rows, samples, l), &Device::Cpu)
    };
    let x = Var::from_tensor(&place.tensor(&normal("bench/predictions", n)?)?)?;
    // The posterior is f32 everywhere.
    let there = |t: Tensor| t.to_device(&place.device);
    let mean = there(normal("bench/mean", 1)?.squeeze(1)?)?;
    let log_std = there(((normal("bench/log_std", 1)?.squeeze(1)? * 0.1)? - 1.2)?)?;
    let context = ops::Context::new(&place.device);
    let mut step = 0;
    let run = move |read: bool| {
        let key = NoiseKey::new(SEED, "bench/target", step);
        step += 1;
        let noise = ops::TargetNoise::Draw { key, rows: &ids, samples: m };
        let loss = ops::energy_score(&context.with(&x), &mean, &log_std, noise, alpha)?.mean_all()?;
        let gradients = loss.backward()?;
        match gradients.get(x.as_tensor()) {
            Some(_) if !read => Ok(f64::NAN),
            Some(_) => Ok(f64::from(loss.to_scalar::<f32>()?)),
            None => bail!("no gradient reaches the predictions"),
        }
    };
    Ok(Step { run: Box::new(run), tokens: rows * s.chunk_size })
}

fn attention(s: &Size, place: &Place) -> Result<Step> {
    let (b, t, width) = (s.batch_rows, s.context_chunks, s.hidden / s.heads);
    let ids: Vec<RowId> = (0..(b * t) as u32).map(|position| RowId { example: 0, position }).collect();
    let normal = |stream: &str, heads: usize| {
        let values = philox::normal(NoiseKey::new(SEED, stream, 0), &ids, heads, width);
        Var::from_tensor(&place.tensor(&Tensor::from_vec(values, (b, t, heads, width), &Device::Cpu)?)?)
    };
    let q = normal("bench/queries", s.heads)?;
    let (k, v) = (normal("bench/keys", s.kv_heads)?, normal("bench/values", s.kv_heads)?);
    let segments = Tensor::zeros((b, t), DType::U32, &place.device)?;
    let context = ops::Context::new(&place.device);
    let run = move |read: bool| {
        let y = ops::causal_attention(&context.with(&q), &k, &v, &segments)?;
        let gradients = y.backward()?;
        match gradients.get(q.as_tensor()) {
            Some(_) if !read => Ok(f64::NAN),
            Some(_) => {
                let first = y.flatten_all()?.narrow(0, 0, 1)?.to_dtype(DType::F32)?;
                Ok(f64::from(first.squeeze(0)?.to_scalar::<f32>()?))
            }
            None => bail!("no gradient reaches the queries"),
        }
    };
    Ok(Step { run: Box::new(run), tokens: b * t * s.chunk_size })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_of_work_runs_and_starts_as_an_untrained_model() {
        let size = &Size::all()["tiny"];
        for what in What::ALL {
            let mut step = build(what, size, &Place::cpu()).unwrap();
            let first = (step.run)(true).unwrap();
            match what {
                // Uniform over the vocabulary, for each of K tokens of a chunk, and a little KL.
                What::Ae => assert!((first - 4.0 * (96f64).ln()).abs() < 0.3, "{first}"),
                What::Baseline => assert!((first - (96f64).ln()).abs() < 0.3, "{first}"),
                What::Generate => assert_eq!(first, 0.0),
                // All draws agree: 2·P(hit) − 1.
                What::BrierK1 | What::BrierK2 | What::BrierK4 => assert!((-1.0..-0.5).contains(&first)),
                What::Lm | What::Energy => assert!(first > 0.0),
                What::Attention => assert!(first.is_finite()),
            }
            assert!((step.run)(true).unwrap().is_finite() && step.tokens > 0 && what.flops(size) > 0.0);
            assert_eq!(what.name().parse(), Ok(what));
        }
        assert!("all".parse::<What>().is_err());
    }
}
