//! Scores of all runs at the same positions, kept in each run's folder by document, so that they can be paired
//! later and are not drawn twice.

use std::collections::BTreeMap;
use std::path::Path;

use calm_data::{Corpus, spread};
use calm_eval::EvalConfig;
use calm_eval::generate::{Decoding, GenerateOptions, generate};
use calm_eval::protocol::{Protocol, REFERENCE_EXACT_BLOCK, REFERENCE_SAMPLED_BLOCK, Reader};
use calm_eval::reconstruction::ReconstructionReport;
use calm_eval::score::VERSION;
use calm_lm::{DrawKind, LanguageModel, Sampler, TokenDecoding};
use calm_report::study::{Reference, Sample, Segments};
use calm_run::checkpoint::{Which, read_json, write_json};
use calm_run::results::BoundResults;
use calm_run::{Error, Result, Run, Stage, metrics};
use calm_stats::bootstrap::BrierReport;
use calm_stats::brier::BrierSums;
use calm_stats::ngram::NgramModels;
use calm_stats::temperature::Temperature;
use calm_train::pipeline::prepare_data;
use calm_train::reporter::Reporter;
use calm_train::scoring::{Means, Scorer, ngram_models, reader, reconstruct_run};
use candle_core::Device;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;

use crate::config::ScoreConfig;
use crate::done::finished;
use crate::hash;
use crate::plan::Ablation;
use crate::segments;

/// File with scores of a run, or the reconstruction of an autoencoder, in its folder: one a protocol, so that
/// several comparisons of one run stand beside each other.
fn file(run: &Run, what: &str, key: &str) -> std::path::PathBuf {
    run.folder.join(format!("{what}-{}.json", &key[..8]))
}

const SCORES: &str = "scores";
const RECONSTRUCTION: &str = "reconstruction";

/// Tokens of a sample.
const SAMPLE_TOKENS: usize = 64;

/// What was scored, and what came of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct KeptScores<T> {
    /// Hash of all that the scores depend on.
    key: String,
    #[serde(flatten)]
    scores: T,
}

/// Scores of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RunScores {
    /// Aligned protocol.
    pub aligned: Scored,
    /// Reference protocol.
    pub reference: Option<Scored>,
    /// n-gram models on the positions of the aligned protocol.
    pub ngrams: Vec<Reference>,
    /// Texts.
    pub samples: Vec<Sample>,
    /// How a model that cuts text does it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments: Option<Segments>,
}

/// Scores by one protocol.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scored {
    /// Contributions by document (block).
    pub sums: BrierSums,
    /// With probabilities: nats a token.
    pub cross_entropy: Option<f64>,
    /// With probabilities: bits per byte.
    pub bits_per_byte: Option<f64>,
    /// Without: the bound by sampled decoding.
    #[serde(default)]
    pub bound: Option<BoundResults>,
}

/// The reference protocol of a run.
fn reference(reader: &Reader) -> Protocol {
    Protocol::reference(reader, REFERENCE_SAMPLED_BLOCK, REFERENCE_EXACT_BLOCK, false)
}

/// Scores every finished run that has no scores for its weights and this protocol yet; a run that cannot be
/// scored is noted in `failures`.
///
/// # Errors
/// The text is not there, or the folder cannot be written.
pub fn score(
    ablation: &Ablation,
    cache: &Path,
    device: &Device,
    failures: &mut crate::queue::Failures,
    reporter: &mut dyn Reporter,
) -> Result<()> {
    let mut ngram: Option<NgramModels> = None;
    let protocol = ablation.protocol()?;
    let mut corpus: Option<Corpus> = None;
    for planned in &ablation.runs {
        if !finished(&planned.folder, &planned.config.value, Stage::Lm)
            || failures.contains_key(&planned.name)
        {
            continue;
        }
        let run = Run { folder: planned.folder.clone(), config: planned.config.value.clone() };
        let key = match run_key(&run, &protocol, &ablation.config.score) {
            Ok(key) => key,
            Err(e) => {
                reporter.warn(&format!("{} cannot be scored: {e}", planned.name));
                failures.insert(planned.name.clone(), format!("it was trained, but cannot be scored: {e}"));
                continue;
            }
        };
        if is_kept::<RunScores>(&file(&run, SCORES, &key), &key, reporter) {
            continue;
        }
        if corpus.is_none() {
            corpus = Some(prepare_data(&run, cache, reporter)?);
        }
        let Some(corpus) = &corpus else { continue };
        if ngram.is_none() {
            ngram = Some(ngram_models(&corpus.train, &corpus.tokenizer)?);
        }
        reporter.note(&format!("scoring {}", planned.name));
        match score_run(&run, corpus, &protocol, &ablation.config.score, ngram.as_ref(), device, reporter) {
            Ok(scores) => keep(&run, SCORES, key, scores)?,
            Err(e) => {
                reporter.warn(&format!("{} cannot be scored: {e}", planned.name));
                failures.insert(planned.name.clone(), format!("it was trained, but cannot be scored: {e}"));
            }
        }
    }
    for autoencoder in &ablation.autoencoders {
        if !finished(&autoencoder.folder, &autoencoder.config.value, Stage::Autoencoder) {
            continue;
        }
        let run = Run { folder: autoencoder.folder.clone(), config: autoencoder.config.value.clone() };
        let eval = eval_config(&ablation.config.score, run.config.chunk_size());
        let key = reconstruction_key(&run, &eval)?;
        if is_kept::<ReconstructionReport>(&file(&run, RECONSTRUCTION, &key), &key, reporter) {
            continue;
        }
        if corpus.is_none() {
            corpus = Some(prepare_data(&run, cache, reporter)?);
        }
        let Some(corpus) = &corpus else { continue };
        let (tokenizer, held_out) = (&corpus.tokenizer, &corpus.validation);
        reporter.note(&format!("scoring autoencoder {}", autoencoder.name));
        let means = Means::alone(&eval, device);
        match reconstruct_run(&run, tokenizer, held_out, Which::Best, &means, reporter) {
            Ok(scores) => keep(&run, RECONSTRUCTION, key, scores)?,
            Err(e) => {
                reporter.warn(&format!("autoencoder {} cannot be scored: {e}", autoencoder.name));
                failures
                    .insert(format!("autoencoder {}", autoencoder.name), format!("cannot be scored: {e}"));
            }
        }
    }
    Ok(())
}

/// The scores of a run, if they are those of its weights by this ablation's protocol.
///
/// # Errors
/// The window holds no two positions; the language model is missing or damaged, or the scores are.
pub fn kept(ablation: &Ablation, run: &Run) -> Result<Option<RunScores>> {
    let key = run_key(run, &ablation.protocol()?, &ablation.config.score)?;
    read(&file(run, SCORES, &key), &key)
}

/// An autoencoder's reconstruction, if it is that of its weights.
///
/// # Errors
/// As [`Run::autoencoder_hash`].
pub fn kept_reconstruction(ablation: &Ablation, run: &Run) -> Result<Option<ReconstructionReport>> {
    let key = reconstruction_key(run, &eval_config(&ablation.config.score, run.config.chunk_size()))?;
    read(&file(run, RECONSTRUCTION, &key), &key)
}

fn reconstruction_key(run: &Run, eval: &EvalConfig) -> Result<String> {
    Ok(hash(&json!([VERSION, run.autoencoder_hash()?, eval.documents, eval.chunks_per_document])))
}

fn run_key(run: &Run, protocol: &Protocol, score: &ScoreConfig) -> Result<String> {
    let lm = run.checkpoints(Stage::Lm);
    let weights = lm.model_hash(lm.step(Which::Best)?)?;
    let ScoreConfig { documents, samples, reference_documents, draws, prompt_tokens, bound_samples, .. } =
        score;
    let how =
        json!([documents, samples, reference_documents, draws, prompt_tokens, bound_samples, SAMPLE_TOKENS]);
    // The decoding changes draws, not weights.
    Ok(hash(&json!([VERSION, weights, protocol, how, run.config.model.decode()])))
}

fn keep<T: Serialize>(run: &Run, what: &str, key: String, scores: T) -> Result<()> {
    write_json(&file(run, what, &key), &KeptScores { key, scores })
}

/// Keeps scores of a run that nobody drew.
#[cfg(test)]
pub(crate) fn keep_made_up(ablation: &Ablation, run: &Run, scores: &RunScores) -> Result<()> {
    keep(run, SCORES, run_key(run, &ablation.protocol()?, &ablation.config.score)?, scores)
}

/// Keeps the reconstruction of an autoencoder that nobody measured.
#[cfg(test)]
pub(crate) fn keep_made_up_reconstruction(
    ablation: &Ablation,
    run: &Run,
    report: &ReconstructionReport,
) -> Result<()> {
    let eval = eval_config(&ablation.config.score, run.config.chunk_size());
    keep(run, RECONSTRUCTION, reconstruction_key(run, &eval)?, report)
}

/// What is kept under this key.
fn read<T: DeserializeOwned>(path: &Path, key: &str) -> Result<Option<T>> {
    let kept: Option<KeptScores<T>> = read_json(path, "score the run again: `calm report`")?;
    Ok(kept.filter(|kept| kept.key == key).map(|kept| kept.scores))
}

/// Whether scores are kept under this key; others are made anew, and damaged ones named.
fn is_kept<T: DeserializeOwned>(path: &Path, key: &str, reporter: &mut dyn Reporter) -> bool {
    read::<T>(path, key).map_or_else(
        |e| {
            reporter.warn(&format!("{e}; made anew"));
            false
        },
        |kept| kept.is_some(),
    )
}

fn eval_config(score: &ScoreConfig, chunk_size: usize) -> EvalConfig {
    EvalConfig {
        documents: score.documents,
        chunks_per_document: score.tokens_per_document.map(|t| t.div_ceil(chunk_size)),
        samples: score.samples,
        bootstrap: score.bootstrap,
        bound_samples: score.bound_samples,
        ..EvalConfig::default()
    }
}

fn score_run(
    run: &Run,
    corpus: &Corpus,
    protocol: &Protocol,
    score: &ScoreConfig,
    ngram: Option<&NgramModels>,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<RunScores> {
    let eval = eval_config(score, run.config.chunk_size());
    let held_out = &corpus.validation;
    let documents = spread(held_out.len(), score.documents);
    let run = &run.on(device);
    let scorer = Scorer::load(run, Which::Best, &corpus.tokenizer, device)?;
    let mut by = |protocol: &Protocol,
                  documents: &[usize],
                  eval: &EvalConfig,
                  ngram: Option<&NgramModels>|
     -> Result<_> {
        let (r, scores) = scorer.score(held_out, documents, protocol, eval, ngram, reporter)?;
        let scored = Scored {
            sums: scores.sums,
            cross_entropy: r.cross_entropy,
            bits_per_byte: r.bits_per_byte,
            bound: r.bound,
        };
        Ok((scored, r.ngram))
    };
    let (aligned, ngram) = by(protocol, &documents, &eval, ngram)?;
    let reference = match score.reference_documents {
        Some(n) => {
            let documents = spread(held_out.len(), Some(score.documents.map_or(n, |d| d.min(n))));
            // The bound of the aligned protocol is that of the report.
            let eval = EvalConfig { bound_samples: 0, ..eval.clone() };
            Some(by(&reference(&reader(run)), &documents, &eval, None)?.0)
        }
        None => None,
    };
    let named = |name: &str, r: &BrierReport| Reference {
        name: name.to_owned(),
        brierlm: r.brierlm,
        brier: r.brier.map(Vec::from).unwrap_or_default(),
    };
    let ngrams =
        ngram.map_or_else(Vec::new, |n| vec![named("bigram", &n.bigram), named("unigram", &n.unigram)]);
    let samples = samples(run, &*scorer.model, corpus, score)?;
    let segments = segments::of_run(run, &scorer, corpus, &eval, reporter)?;
    Ok(RunScores { aligned, reference, ngrams, samples, segments })
}

/// The opening of a held-out document, continued at T = 1 and T = 1/2.
fn samples(
    run: &Run,
    model: &dyn LanguageModel,
    corpus: &Corpus,
    score: &ScoreConfig,
) -> Result<Vec<Sample>> {
    let held_out = &corpus.validation;
    let room = run.config.train.lm.context * run.config.chunk_size();
    let prompt = score.prompt_tokens.min(room / 2);
    let Some(document) = (0..held_out.len()).map(|i| held_out.document(i)).find(|d| d.len() >= 2 * prompt)
    else {
        return Ok(Vec::new());
    };
    let prompt = &document[..prompt];
    let plain = sample(run, &*model.sampler(), prompt, Decoding::Plain, "T = 1", corpus)?;
    let half = TokenDecoding { temperature: 0.5, top_p: 1.0 };
    let sharper = match model.tempered_sampler(half) {
        Some(sampler) => sample(run, &*sampler, prompt, Decoding::Plain, "T = 0.5", corpus)?,
        None => {
            let half = Temperature::new::<candle_core::Error>(0.5).map_err(|e| {
                Error::user(format!("the batch sampler: {e}"), e.remedy().unwrap_or_default())
            })?;
            let batch = Decoding::Batch { temperature: half, samples: score.draws };
            let name = format!("T = 0.5, batch of {}", score.draws);
            sample(run, &*model.sampler(), prompt, batch, &name, corpus)?
        }
    };
    Ok(vec![plain, sharper])
}

fn sample(
    run: &Run,
    sampler: &dyn Sampler,
    prompt: &[u32],
    decoding: Decoding,
    name: &str,
    corpus: &Corpus,
) -> Result<Sample> {
    let mut tokens = Vec::new();
    let options = GenerateOptions {
        max_tokens: SAMPLE_TOKENS,
        decoding,
        seed: run.config.seed,
        remainder_budget: 1024,
    };
    generate(sampler, prompt, &options, |new| {
        tokens.extend_from_slice(new);
        true
    })
    .map_err(|e| Error::user(format!("cannot draw a sample: {e}"), e.remedy().unwrap_or_default()))?;
    Ok(Sample {
        decoding: name.to_owned(),
        prompt: corpus.tokenizer.decode(prompt),
        text: corpus.tokenizer.decode_after(prompt, &tokens),
    })
}

/// Validations of a run's language model while it was trained, by rising step.
pub fn curve(run: &Run) -> Vec<calm_report::study::CurvePoint> {
    let Ok(lines) = metrics::read_lines(&run.folder.join("metrics.jsonl")) else { return Vec::new() };
    let Ok(tokens) = run.token_count(Stage::Lm) else { return Vec::new() };
    let exact = run.config.model.draws() == DrawKind::Exact;
    let mut points = Vec::new();
    for line in lines.iter().filter(|l| l.stage == Stage::Lm) {
        let value = |name: &str| line.values.get(name).copied().flatten();
        if let Some(loss) = value("validation/loss") {
            points.push(calm_report::study::CurvePoint {
                tokens: tokens.until(line.step),
                loss,
                nats: if exact { Some(loss) } else { tightest_bound(&line.values) },
                brierlm: value("validation/brierlm"),
                brierlm_se: value("validation/brierlm_se"),
                brier_1: value("validation/brier_1"),
            });
        }
    }
    points
}

/// The bound of the most draws: `validation/bound_N`.
fn tightest_bound(values: &BTreeMap<String, Option<f64>>) -> Option<f64> {
    let bound = |(name, value): (&String, &Option<f64>)| {
        Some((name.strip_prefix("validation/bound_")?.parse::<usize>().ok()?, (*value)?))
    };
    values.iter().filter_map(bound).max_by_key(|(draws, _)| *draws).map(|(_, nats)| nats)
}
