//! Everything that an ablation's folder holds, as one [`Study`]: means over seeds with both parts of their
//! standard errors, paired differences to the first variant, costs.

use calm_eval::protocol::Protocol;
use calm_lm::DrawKind;
use calm_nn::costs::Flops;
use calm_report::study::{
    Autoencoder, Bound, Costs, Difference, DifferenceEstimate, Estimate, Failure, Machine, Score, SeedRun,
    Segments, Study, Variant,
};
use calm_run::checkpoint::StageState;
use calm_run::{Error, Result};
use calm_run::{Run, RunRecord, Stage};
use calm_stats::bootstrap::Bootstrap;
use calm_stats::brier::BrierSums;
use calm_stats::seeds::{self, Contrast, SeededDifference, SeededReport};

use crate::config::{Budget, Sharing};
use crate::costs;
use crate::done::finished;
use crate::plan::{Ablation, PlannedRun};
use crate::queue::Failures;
use crate::score::{RunScores, Scored, curve, kept, kept_reconstruction};
use crate::segments;

/// A run that is trained and scored.
struct Finished<'a> {
    planned: &'a PlannedRun,
    run: Run,
    scores: RunScores,
}

/// Gathers what is there; runs without scores are left out (the failures say why).
///
/// # Errors
/// A file of the folder is damaged, or runs were scored on different documents.
pub fn gather(ablation: &Ablation, failures: &Failures, machine: Machine) -> Result<Study> {
    let config = &ablation.config;
    let bootstrap = Bootstrap { replicates: config.score.bootstrap, seed: 0 };
    let mut notes = Vec::new();
    let all = finished_runs(ablation, failures, &mut notes)?;
    let first = all.iter().flatten().next();
    let record = first.map(|f| f.run.record()).transpose()?.flatten().unwrap_or_default();
    same_text(all.iter().flatten(), &record)?;
    match config.budget {
        Budget::Seconds(seconds) => note_off_budget(all.iter().flatten(), seconds, &mut notes)?,
        Budget::Flops(flops) => note_off_flops(all.iter().flatten(), flops, record.vocab_size, &mut notes)?,
        Budget::Tokens(_) | Budget::AsConfigured {} => {}
    }
    let differences = differences(ablation, &all, &bootstrap, &mut notes)?;
    Ok(Study {
        name: ablation.folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default(),
        description: config.description.clone(),
        budget: budget(ablation),
        corpus: record.corpus.clone(),
        corpus_hash: record.corpus_hash.clone(),
        vocab_size: record.vocab_size,
        aligned: protocol_words(&ablation.protocol()?),
        reference: config.score.reference_documents.map(|n| {
            format!(
                "{n} documents joined without EOS, in blocks as long as each model's context; every K at its own \
                 chunk starts, so that scores compare with the same K only"
            )
        }),
        batch_draws: config.score.draws,
        machine,
        variants: variants(ablation, &all, record.vocab_size, &bootstrap, &mut notes)?,
        differences,
        autoencoders: autoencoders(ablation, record.vocab_size, &mut notes)?,
        ngrams: first.map(|f| f.scores.ngrams.clone()).unwrap_or_default(),
        failures: failures
            .iter()
            .map(|(run, reason)| Failure { run: run.clone(), reason: reason.clone() })
            .collect(),
        notes,
    })
}

/// The runs of each variant that are trained and scored, by rising seed.
fn finished_runs<'a>(
    ablation: &'a Ablation,
    failures: &Failures,
    notes: &mut Vec<String>,
) -> Result<Vec<Vec<Finished<'a>>>> {
    let mut all = Vec::new();
    for i in 0..ablation.variants.len() {
        let mut found = Vec::new();
        for planned in ablation.runs_of(i) {
            let run = Run { folder: planned.folder.clone(), config: planned.config.value.clone() };
            if finished(&run.folder, &run.config, Stage::Lm)
                && let Some(scores) = kept(ablation, &run)?
            {
                notes.extend(calm_run::metrics::check(&run.folder));
                found.push(Finished { planned, run, scores });
            } else if !failures.contains_key(&planned.name) {
                notes.push(unfinished(&run, &planned.name)?);
            }
        }
        found.sort_by_key(|f| f.run.config.seed);
        all.push(found);
    }
    Ok(all)
}

/// Notes runs that took clearly more or less than their seconds.
fn note_off_budget<'a>(
    runs: impl Iterator<Item = &'a Finished<'a>>,
    seconds: f64,
    notes: &mut Vec<String>,
) -> Result<()> {
    for f in runs {
        let spent = f.run.checkpoints(Stage::Lm).latest()?.map_or(0.0, |s| s.seconds);
        if (spent / seconds - 1.0).abs() > OFF_BUDGET {
            notes.push(format!("{} trained for {spent:.1} s instead of {seconds} s", f.planned.name));
        }
    }
    Ok(())
}

/// Notes runs of models that cut text whose ratio took clearly more or less than their FLOPs: these are planned at the ratio that
/// was to be.
fn note_off_flops<'a>(
    runs: impl Iterator<Item = &'a Finished<'a>>,
    flops: f64,
    vocab: usize,
    notes: &mut Vec<String>,
) -> Result<()> {
    for f in runs {
        let state = f.run.checkpoints(Stage::Lm).latest()?.unwrap_or_default();
        let Some(ratio) = ratio(&state) else { continue };
        let spent = seed_run(f, vocab)?.flops;
        if (spent / flops - 1.0).abs() > OFF_BUDGET {
            notes.push(format!(
                "{} trained for {spent:.2e} FLOPs instead of {flops:.2e}: at {ratio:.2} tokens a segment",
                f.planned.name
            ));
        }
    }
    Ok(())
}

/// Every variant that has a run planned, with what its finished runs give.
fn variants(
    ablation: &Ablation,
    all: &[Vec<Finished<'_>>],
    vocab: usize,
    bootstrap: &Bootstrap,
    notes: &mut Vec<String>,
) -> Result<Vec<Variant>> {
    let rounds = costs::kept(ablation, None).unwrap_or_else(|e| {
        notes.push(format!("{e}; the measured costs are left out"));
        costs::Rounds::default()
    });
    let mut variants = Vec::new();
    for (i, (variant, runs)) in ablation.variants.iter().zip(all).enumerate() {
        let Some(planned) = ablation.runs_of(i).next() else { continue };
        let settings = &planned.config.value;
        let costs = formula(planned, vocab, ablation.config.score.draws);
        variants.push(Variant {
            name: variant.name.clone(),
            chunk_size: settings.chunk_size(),
            probabilities: settings.model.draws() == DrawKind::Exact,
            settings: variant.settings.clone(),
            aligned: over_seeds(runs, |s| Some(&s.aligned), bootstrap)?,
            reference: over_seeds(runs, |s| s.reference.as_ref(), bootstrap)?,
            measured: rounds.variants.get(&variant.name).and_then(|r| costs::summary(r)),
            runs: runs.iter().map(|f| seed_run(f, vocab)).collect::<Result<_>>()?,
            costs,
        });
    }
    Ok(variants)
}

/// Differences of all variants to the first, each over the seeds that both have.
fn differences(
    ablation: &Ablation,
    all: &[Vec<Finished<'_>>],
    bootstrap: &Bootstrap,
    notes: &mut Vec<String>,
) -> Result<Vec<Difference>> {
    let mut differences = Vec::new();
    let Some(reference) = all.first() else { return Ok(differences) };
    let against = &ablation.variants[0].name;
    for (variant, runs) in ablation.variants.iter().zip(all).skip(1).filter(|(_, runs)| !runs.is_empty()) {
        // Only runs from the same seeds pair.
        let pairs: Vec<(BrierSums, BrierSums)> = runs
            .iter()
            .filter_map(|f| {
                let other = reference.iter().find(|r| r.run.config.seed == f.run.config.seed)?;
                Some((f.scores.aligned.sums.clone(), other.scores.aligned.sums.clone()))
            })
            .collect();
        if pairs.is_empty() {
            notes.push(format!("{} has no seed in common with {against}: no difference", variant.name));
            continue;
        }
        if pairs.len() < runs.len().max(reference.len()) {
            let n = pairs.len();
            notes.push(format!("the difference of {} to {against} is that of {n} seed(s)", variant.name));
        }
        let (own, other): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let d = seeds::difference_over_seeds(&own, &other, bootstrap).map_err(unpaired)?;
        differences.push(difference(&variant.name, against, &d));
    }
    Ok(differences)
}

/// The autoencoders that are trained and whose reconstruction is measured.
fn autoencoders(ablation: &Ablation, vocab: usize, notes: &mut Vec<String>) -> Result<Vec<Autoencoder>> {
    let mut found = Vec::new();
    for autoencoder in &ablation.autoencoders {
        let run = Run { folder: autoencoder.folder.clone(), config: autoencoder.config.value.clone() };
        if let Err(e) = run.checkpoints(Stage::Autoencoder).latest() {
            notes.push(format!("autoencoder {} is left out: {e}", autoencoder.name));
        }
        if !finished(&run.folder, &run.config, Stage::Autoencoder) {
            continue;
        }
        let (Some(r), Some(settings)) =
            (kept_reconstruction(ablation, &run)?, run.config.model.autoencoder())
        else {
            continue;
        };
        let k = run.config.chunk_size();
        let state = run.checkpoints(Stage::Autoencoder).latest()?.unwrap_or_default();
        found.push(Autoencoder {
            name: autoencoder.name.clone(),
            variants: autoencoder.variants.clone(),
            seed: run.config.seed,
            chunk_size: k,
            latent_size: r.latent_size,
            token_accuracy: r.token_accuracy,
            chunk_accuracy: r.chunk_accuracy,
            tokens: r.tokens,
            noise: r.noise.iter().map(|n| (n.sigma, n.token_accuracy)).collect(),
            kl: r.kl,
            posterior_std: r.posterior_std,
            collapsed_dimensions: r.collapsed_dimensions,
            seconds: state.seconds,
            flops: settings.training_flops(k, vocab).total() * state.tokens as f64,
        });
    }
    Ok(found)
}

/// Share by which a run may miss a budget of seconds before the report says so.
const OFF_BUDGET: f64 = 0.1;

/// Why a run is not in the study.
fn unfinished(run: &Run, name: &str) -> Result<String> {
    let steps = run.config.train.lm.steps;
    Ok(match run.checkpoints(Stage::Lm).latest()? {
        Some(s) if s.step < steps => format!("{name} is at step {} of {steps}", s.step),
        Some(_) => format!("{name} is trained, but not scored yet"),
        None => format!("{name} is not trained yet"),
    })
}

/// Scores of different texts do not compare.
fn same_text<'a>(runs: impl Iterator<Item = &'a Finished<'a>>, first: &RunRecord) -> Result<()> {
    for f in runs {
        let record = f.run.record()?.unwrap_or_default();
        if (&record.corpus_hash, &record.tokenizer_hash) != (&first.corpus_hash, &first.tokenizer_hash) {
            return Err(Error::user(
                format!("{} was trained on another text or tokenizer than the first run", f.planned.name),
                "compare runs on the same text",
            ));
        }
    }
    Ok(())
}

fn unpaired(e: impl std::fmt::Display) -> Error {
    Error::user(
        format!("the runs do not pair: {e}"),
        "remove the files scores-*.json from the runs' folders and run again",
    )
}

fn budget(ablation: &Ablation) -> String {
    let count = |n: f64, unit: &str| match n {
        n if n >= 1e15 => format!("{n:.2e} {unit}"),
        n if n >= 1e9 => format!("{} G {unit}", n / 1e9),
        n if n >= 1e6 => format!("{} M {unit}", n / 1e6),
        n => format!("{n} {unit}"),
    };
    let amount = match ablation.config.budget {
        Budget::Tokens(n) => count(n, "training tokens"),
        Budget::Flops(n) => count(n, "training FLOPs"),
        Budget::Seconds(n) => format!("{n} s of training"),
        Budget::AsConfigured {} => return "as each run was configured".to_owned(),
    };
    let seeds = ablation.config.seeds.len();
    let sharing = match ablation.config.autoencoder {
        Sharing::Shared => "one autoencoder for all seeds",
        Sharing::Own => "an autoencoder for each seed",
    };
    format!("{amount} a run, {seeds} seed{}, {sharing}", if seeds == 1 { "" } else { "s" })
}

fn protocol_words(protocol: &Protocol) -> String {
    match protocol {
        Protocol::Aligned { every, context, tokens_per_document, .. } => {
            let limit = tokens_per_document.map_or(String::new(), |t| format!(" of the first {t}"));
            format!(
                "the same documents at every {every} tokens{limit}, for all models alike, in windows of {context} \
                 tokens; each run's checkpoint with the lowest validation loss"
            )
        }
        Protocol::Reference { .. } => String::new(),
    }
}

/// Costs by formula.
fn formula(planned: &PlannedRun, vocab: usize, draws: usize) -> Costs {
    let config = &planned.config.value;
    let (model, context) = (&config.model, config.train.lm.context);
    let parts = |flops: &Flops| -> Vec<(String, f64)> {
        flops.parts.iter().map(|(n, f)| ((*n).to_owned(), *f)).collect()
    };
    Costs {
        parameters: model.parameters(vocab).total().0,
        training_parts: parts(&model.training_flops(vocab, context)),
        inference_parts: parts(&model.inference_flops(vocab, context, 1)),
        inference_batch: model.inference_flops(vocab, context, draws).total(),
    }
}

fn estimate(e: &seeds::Estimate) -> Estimate {
    Estimate { value: e.value, documents: e.documents, seeds: e.seeds }
}

fn over_seeds(
    runs: &[Finished<'_>],
    of: impl Fn(&RunScores) -> Option<&Scored>,
    bootstrap: &Bootstrap,
) -> Result<Option<Score>> {
    let sums: Vec<BrierSums> = runs.iter().filter_map(|f| of(&f.scores)).map(|s| s.sums.clone()).collect();
    if sums.is_empty() {
        return Ok(None);
    }
    let r: SeededReport = seeds::over_seeds(&sums, bootstrap).map_err(unpaired)?;
    Ok(r.brier.map(|brier| Score {
        brierlm: r.brierlm.as_ref().map(estimate),
        brier: brier.iter().map(estimate).collect(),
        seeds: r.seeds,
        documents: r.documents,
        positions: r.positions,
    }))
}

fn seed_run(f: &Finished<'_>, vocab: usize) -> Result<SeedRun> {
    let state = f.run.checkpoints(Stage::Lm).latest()?.unwrap_or_default();
    // A context that was changed on the way has other costs since.
    let segments = f.run.token_count(Stage::Lm)?.by_context(state.step);
    let all: u64 = segments.iter().map(|(_, tokens)| tokens).sum();
    let share = |tokens: u64| if all > 0 { tokens as f64 / all as f64 } else { 1.0 };
    // Of a model that cuts text, at the ratio that it realised.
    let realised = ratio(&state).and_then(|ratio| f.run.config.model.at_ratio(ratio));
    let model = realised.as_ref().unwrap_or(&f.run.config.model);
    let flops_per_token: f64 = segments
        .iter()
        .map(|(context, tokens)| share(*tokens) * model.training_flops(vocab, *context).total())
        .sum();
    let brier = f.scores.aligned.sums.brier();
    Ok(SeedRun {
        seed: f.run.config.seed,
        folder: f.planned.name.clone(),
        tokens: state.tokens,
        flops: state.tokens as f64 * flops_per_token,
        seconds: state.seconds,
        brierlm: brier.as_ref().and_then(calm_stats::brier::brierlm),
        brier,
        cross_entropy: f.scores.aligned.cross_entropy,
        bits_per_byte: f.scores.aligned.bits_per_byte,
        bound: bounds(&f.scores.aligned),
        curve: curve(&f.run),
        samples: f.scores.samples.clone(),
        segments: f.scores.segments.clone().map(|found| Segments {
            realised: ratio(&state),
            training: segments::training(&f.run),
            ..found
        }),
    })
}

/// Tokens for each unit that a model chose while it was trained; None of a model that chooses none.
fn ratio(state: &StageState) -> Option<f64> {
    (state.units > 0).then(|| state.tokens as f64 / state.units as f64)
}

fn bounds(scored: &Scored) -> Vec<Bound> {
    let Some(bound) = &scored.bound else { return Vec::new() };
    let curve = bound.curve.iter();
    curve
        .map(|p| Bound {
            samples: p.point.samples,
            floor: bound.floor,
            nats: p.point.nats,
            nats_se: p.point.nats_se,
            bits_per_byte: p.bits_per_byte,
        })
        .collect()
}

fn difference(variant: &str, against: &str, d: &SeededDifference) -> Difference {
    let contrast = |c: &Contrast| DifferenceEstimate {
        estimate: estimate(&c.estimate),
        half_width: c.half_width,
        detectable: c.detectable,
    };
    Difference {
        variant: variant.to_owned(),
        against: against.to_owned(),
        brierlm: d.brierlm.as_ref().map(contrast),
        brier: d.brier.iter().map(contrast).collect(),
    }
}

#[cfg(test)]
mod tests;
