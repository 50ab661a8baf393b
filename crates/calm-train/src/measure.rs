//! What a run costs, as measured: a few training steps and some generation, with nothing kept.

use std::path::Path;
use std::time::Instant;

use calm_eval::generate::{Decoding, GenerateOptions, generate};
use calm_lm::{DrawKind, LanguageModel, Sampler};
use calm_stats::temperature::Temperature;
use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::machine::peak_memory;
use crate::models;
use crate::pipeline::prepare_data;
use crate::reporter::Reporter;
use crate::training::Training;
use calm_parallel::Ranks;
use calm_run::checkpoint::Which;
use calm_run::{Error, Result, Run, Stage};

/// How long and what.
#[derive(Clone, Copy, Debug)]
pub struct MeasureOptions {
    /// Seconds for each thing that is measured, at the least.
    pub seconds: f64,
    /// N of the batch sampler; 0: measure training only.
    pub draws: usize,
}

/// Costs of a language model, as measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasuredCosts {
    /// Training tokens a second: tokens of a full batch by the median step.
    pub training: f64,
    /// Steps that were timed.
    pub steps: usize,
    /// Peak memory of the process so far, when training was over; null where the system does not tell.
    pub peak_memory: Option<u64>,
    /// Tokens a second generated at T = 1.
    pub generation: Option<f64>,
    /// Tokens a second generated with the batch sampler at T = 1/2; null where temperature works on probabilities.
    pub generation_batch: Option<f64>,
}

/// Measures the language model of a run; of one that has no weights yet, with random ones.
///
/// # Errors
/// As [`prepare_data`]; weights that are damaged; a loss or gradient that is not finite; what a GPU answers.
pub fn measure(
    run: &Run,
    cache: &Path,
    options: &MeasureOptions,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<MeasuredCosts> {
    let corpus = prepare_data(run, cache, reporter)?;
    let tokenizer = &corpus.tokenizer;
    // A model that knows no start of a document continues the first chunk of one.
    let k = run.config.chunk_size();
    let held_out = &corpus.validation;
    let opening = match run.config.bos_chunk {
        true => Vec::new(),
        false => (0..held_out.len())
            .map(|i| held_out.document(i))
            .find(|d| d.len() >= k)
            .map_or_else(Vec::new, |d| d[..k].to_vec()),
    };
    let trained = run.checkpoints(Stage::Lm).latest()?.is_some();
    let plan = corpus.plan(run.lm_layout(), run.config.seed)?;
    let training = Training {
        config: &run.config.train.lm,
        plan: &plan,
        checkpoints: &run.checkpoints(Stage::Lm),
        metadata: &Default::default(),
        seed: run.config.seed,
        resume: false,
        ranks: &Ranks::alone(),
    };
    // Training changes the weights: each measurement has a model of its own.
    let load = || match trained {
        true => models::load_lm(run, Which::Best, tokenizer, device),
        false => {
            let first =
                run.config.model.autoencoder().map(|_| models::new_autoencoder(run, tokenizer, device));
            let autoencoder = first.transpose()?.map(|stage_one| stage_one.model);
            models::new_lm(run, autoencoder, tokenizer, device)
        }
    };
    let mut costs = train(&training, &*load()?, options.seconds)?;
    if options.draws > 0 {
        let model = load()?;
        let sampler = model.sampler();
        costs.generation = Some(rate(run, &*sampler, &opening, Decoding::Plain, options.seconds)?);
        // Below T = 1 a black box draws many samples; what has probabilities costs the same at any temperature.
        if run.config.model.draws() == DrawKind::Sampled {
            let half = Temperature::new::<candle_core::Error>(0.5).map_err(|e| {
                Error::user(format!("the batch sampler: {e}"), e.remedy().unwrap_or_default())
            })?;
            let batch = Decoding::Batch { temperature: half, samples: options.draws };
            costs.generation_batch = Some(rate(run, &*sampler, &opening, batch, options.seconds)?);
        }
    }
    Ok(costs)
}

fn train(training: &Training<'_>, model: &dyn LanguageModel, seconds: f64) -> Result<MeasuredCosts> {
    let reports = training.time(model, seconds)?;
    let mut rates: Vec<f64> = reports.iter().map(|r| r.tokens as f64 / r.seconds.max(1e-9)).collect();
    rates.sort_by(f64::total_cmp);
    Ok(MeasuredCosts {
        training: rates[rates.len() / 2],
        steps: rates.len(),
        peak_memory: peak_memory(),
        generation: None,
        generation_batch: None,
    })
}

/// Tokens a second of texts as long as the context, one after the other.
fn rate(run: &Run, sampler: &dyn Sampler, opening: &[u32], decoding: Decoding, seconds: f64) -> Result<f64> {
    let k = sampler.chunk_size();
    let room = (run.config.train.lm.context - 1) * k;
    let (mut tokens, mut seed) = (0, 0);
    let started = Instant::now();
    // A model that was not trained may end its texts at once: then the chunks count that were drawn.
    while started.elapsed().as_secs_f64() < seconds {
        seed += 1;
        let options = GenerateOptions { max_tokens: room, decoding, seed, remainder_budget: 1 };
        let before = tokens;
        generate(sampler, opening, &options, |new| {
            tokens += new.len().max(1);
            started.elapsed().as_secs_f64() < seconds
        })
        .map_err(|e| Error::user(format!("cannot generate: {e}"), e.remedy().unwrap_or_default()))?;
        if tokens == before {
            break;
        }
    }
    Ok(tokens as f64 / started.elapsed().as_secs_f64())
}
