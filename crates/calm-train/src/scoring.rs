//! Scores of a finished run: its language model by protocol, and its autoencoder.

use std::collections::BTreeMap;

use calm_data::batch::spread;
use calm_data::{Batch, Corpus, TokenFile, Tokenizer};
use calm_eval::attention::{AttentionRanks, attention_ranks};
use calm_eval::bound::{BoundOptions, FLOOR, bound};
use calm_eval::protocol::{Protocol, Reader};
use calm_eval::reconstruction::{ReconstructionReport, reconstruct};
use calm_eval::score::{Position, ScoreOptions, Scores, score, to_tensors};
use calm_eval::segments::{Segments, segments};
use calm_eval::workers::{Exact, Workers};
use calm_lm::{DrawKind, LanguageModel, ModelConfig};
use calm_nn::Noise;
use calm_parallel::Ranks;
use calm_stats::bootstrap::{Bootstrap, report};
use calm_stats::bound::{Floor, Point};
use calm_stats::ngram::{
    DEFAULT_LAMBDA, NgramError, NgramModels, NgramPosition, NgramReport, SpecialIds as NgramIds,
};
use candle_core::Device;

use crate::held_out::{SCORE_ROWS, evaluation_rows};
use crate::models;
use crate::reporter::Reporter;
use crate::together::Together;
use calm_eval::EvalConfig;
use calm_run::checkpoint::Which;
use calm_run::results::{BoundPoint, BoundResults, BrierResults, ConditionCheck};
use calm_run::{Error, Result, Run};

/// Tokens of a batch, from which on it has fewer rows: memory stays bounded with long contexts.
const BATCH_TOKENS: usize = 8192;

/// A run's language model, loaded once and scored by any number of protocols.
pub struct Scorer<'a> {
    run: &'a Run,
    tokenizer: Tokenizer,
    step: u64,
    ranks: Ranks,
    /// With its weights.
    pub model: Box<dyn LanguageModel>,
}

/// What protocols have to know of a run's model.
pub fn reader(run: &Run) -> Reader {
    let layout = run.lm_layout();
    Reader {
        chunk_size: layout.chunk_size,
        context: layout.context,
        bos_chunk: layout.bos_chunk,
        draws: run.config.model.draws(),
    }
}

impl<'a> Scorer<'a> {
    /// Loads a checkpoint.
    ///
    /// # Errors
    /// Weights that are missing, damaged or of another shape.
    pub fn load(run: &'a Run, which: Which, tokenizer: &Tokenizer, device: &Device) -> Result<Self> {
        let (model, step) = models::load_lm_with_step(run, which, tokenizer, device)?;
        Ok(Self { run, tokenizer: tokenizer.clone(), step, ranks: Ranks::alone(), model })
    }

    /// The same among other processes, which all score the same, each on a part of the documents: each has the results.
    #[must_use]
    pub fn among(self, ranks: &Ranks) -> Self {
        Self { ranks: ranks.clone(), ..self }
    }

    /// Scores these documents by a protocol, beside n-gram models on the same positions. The contributions by
    /// document go to paired differences between models.
    ///
    /// # Errors
    /// A protocol that the model cannot follow; what a GPU answers.
    pub fn score(
        &self,
        held_out: &TokenFile,
        documents: &[usize],
        protocol: &Protocol,
        eval: &EvalConfig,
        ngram: Option<&NgramModels>,
        reporter: &mut dyn Reporter,
    ) -> Result<(BrierResults, Scores)> {
        let reader = reader(self.run);
        let view = protocol.view(held_out, self.tokenizer.special(), &reader, documents)?;
        let rows = (BATCH_TOKENS / protocol.row_tokens()).clamp(1, SCORE_ROWS);
        let total = view.batch_count(rows);
        let seed = self.run.config.seed;
        let label = format!("BrierLM, {}", protocol.name());
        // What has probabilities draws two paths.
        let samples = match reader.draws {
            DrawKind::Sampled => eval.samples,
            DrawKind::Exact => 2,
        };
        let options = ScoreOptions { rule: view.rule, samples, seed };
        let progress = |done| reporter.scoring(&label, done, total);
        let workers = Together { ranks: &self.ranks, progress };
        let scores = score(&*self.model, view.batches(rows), options, workers)?;
        let bootstrap = Bootstrap { replicates: eval.bootstrap, seed };
        let found = report(&scores.sums, &bootstrap);
        if found.positions == 0 {
            let k = self.run.config.chunk_size();
            return Err(Error::user(
                format!("nothing to score: no position of these documents has K = {k} tokens to predict"),
                "longer documents are needed; with bos_chunk: true a model is scored from the first chunk on",
            ));
        }
        let ngram = ngram.map(|models| ngram_scores(models, &scores.positions, &bootstrap)).transpose()?;
        let cross_entropy = scores.cross_entropy.map(|(nats, n)| nats / n.max(1) as f64);
        let results = BrierResults {
            report: found,
            protocol: *protocol,
            chunk_size: self.run.config.chunk_size(),
            samples,
            decode: self.run.config.model.decode(),
            ngram,
            cross_entropy,
            perplexity: cross_entropy.map(f64::exp),
            bits_per_byte: scores
                .cross_entropy
                .and_then(|(nats, _)| bits_per_byte(&self.tokenizer, nats, &scores.predicted)),
            // A chunk of a block belongs to several documents.
            bound: match protocol {
                Protocol::Aligned { .. } => {
                    let progress = |done| reporter.scoring("bound on the cross-entropy", done, total);
                    let workers = Together { ranks: &self.ranks, progress };
                    let batches = view.batches(rows);
                    bound_results(self.run, &self.tokenizer, &*self.model, batches, eval, workers)?
                }
                Protocol::Reference { .. } => None,
            },
            step: self.step,
            corpus_hash: self.run.record()?.map(|r| r.corpus_hash).unwrap_or_default(),
            text_hash: held_out.data_hash(),
        };
        Ok((results, scores))
    }

    /// How the model cuts this text, with the loss by place; None of a model that cuts none ([`cuts_text`]), or of a text with
    /// nothing to predict.
    ///
    /// # Errors
    /// As [`evaluation_rows`]; what a GPU answers.
    pub fn segments(
        &self,
        held_out: &TokenFile,
        eval: &EvalConfig,
        reporter: &mut dyn Reporter,
    ) -> Result<Option<Segments>> {
        if !cuts_text(&self.run.config.model) {
            return Ok(None);
        }
        let (documents, chunks) = (eval.documents, eval.chunks_per_document);
        let rows =
            evaluation_rows(held_out, self.tokenizer.special(), self.run.lm_layout(), documents, chunks)?;
        let batches = rows.batches(SCORE_ROWS);
        let total = batches.len();
        let progress = |done| reporter.scoring("segments", done, total);
        let found = segments(&*self.model, batches, Together { ranks: &self.ranks, progress })?;
        Ok(found.filter(|found| found.tokens > 0))
    }

    /// Ranks of the attention matrices in the first `windows` windows of this text that fill a row; None of a model without such
    /// matrices, and if no window does.
    ///
    /// # Errors
    /// As [`evaluation_rows`]; what a GPU answers.
    pub fn attention(
        &self,
        held_out: &TokenFile,
        windows: usize,
        reporter: &mut dyn Reporter,
    ) -> Result<Option<AttentionRanks>> {
        let rows = evaluation_rows(held_out, self.tokenizer.special(), self.run.lm_layout(), None, None)?;
        let done = |done| reporter.scoring("attention", done, windows);
        Ok(attention_ranks(&*self.model, rows.batches(1), windows, done)?)
    }

    /// Whether the model uses its condition, on the first rows of these documents; None of a model without a head, or
    /// of a text of one chunk, which has nothing to exchange.
    ///
    /// # Errors
    /// What a GPU answers.
    fn condition_check(&self, held_out: &TokenFile, eval: &EvalConfig) -> Result<Option<ConditionCheck>> {
        let (documents, chunks) = (eval.documents, eval.chunks_per_document);
        let special = self.tokenizer.special();
        let rows = evaluation_rows(held_out, special, self.run.lm_layout(), documents, chunks)?;
        let (mut loss, mut exchanged, mut n) = (0.0, 0.0, 0usize);
        let mut without = false;
        let seed = self.run.config.seed;
        let measure = |batch: Batch| {
            let batch = to_tensors(&batch, self.model.store().context())?;
            let noise = Noise::Keyed { seed, purpose: "condition", step: 0, rows: &batch.rows };
            let both = self.model.condition_check(&batch, &noise)?;
            Ok(both.map(|(a, b)| (Exact(a), Exact(b), batch.sources.len())))
        };
        let batches = rows.batches(SCORE_ROWS).take(8).filter(|batch| batch.predict_count() >= 2);
        Together::quiet(&self.ranks).each(batches, measure, |both| match both {
            Some((Exact(a), Exact(b), count)) => {
                loss += a * count as f64;
                exchanged += b * count as f64;
                n += count;
            }
            None => without = true,
        })?;
        if without {
            return Ok(None);
        }
        let mean = |sum: f64| sum / n as f64;
        Ok((n > 0).then(|| ConditionCheck { loss: mean(loss), loss_exchanged: mean(exchanged) }))
    }
}

/// The bound on the cross-entropy of a model whose draws a softmax decodes, at every predicted chunk of these batches;
/// None of others, and where the settings want no draws.
///
/// # Errors
/// A bound that is not finite; what a GPU answers; those of the workers.
pub(crate) fn bound_results<W: Workers>(
    run: &Run,
    tokenizer: &Tokenizer,
    model: &dyn LanguageModel,
    batches: impl Iterator<Item = Batch>,
    eval: &EvalConfig,
    workers: W,
) -> Result<Option<BoundResults>>
where
    Error: From<W::Error>,
{
    if eval.bound_samples == 0 || model.draws() == DrawKind::Exact {
        return Ok(None);
    }
    let floor = Floor { share: FLOOR, vocab: tokenizer.vocab_size() };
    let options = BoundOptions { samples: eval.bound_samples, floor, seed: run.config.seed };
    let Some(found) = bound(model, batches, options, workers)? else { return Ok(None) };
    let tokens = found.bound.tokens();
    let at = |point: Point| BoundPoint {
        point,
        bits_per_byte: bits_per_byte(tokenizer, point.nats * tokens as f64, &found.predicted),
    };
    let curve: Vec<BoundPoint> = found.bound.curve().into_iter().map(at).collect();
    if curve.iter().any(|p| !p.point.nats.is_finite()) {
        return Err(Error::user(
            format!("{}: the bound on the cross-entropy is not finite", run.folder.display()),
            "its weights are too large to compute with; --set eval.bound_samples=0 leaves the bound out",
        ));
    }
    Ok((!curve.is_empty()).then_some(BoundResults { curve, floor: FLOOR, tokens }))
}

/// Bits of all predicted tokens per byte of text they stand for (EOS: none), from their nats and how often each token
/// is among them. Undefined for vocabularies whose tokens are not bytes of the text.
pub(crate) fn bits_per_byte(tokenizer: &Tokenizer, nats: f64, predicted: &BTreeMap<u32, u64>) -> Option<f64> {
    if !tokenizer.is_byte_exact() {
        return None;
    }
    let bytes: u64 = predicted.iter().map(|(id, n)| n * tokenizer.token_bytes(*id).len() as u64).sum();
    (bytes > 0).then(|| nats / std::f64::consts::LN_2 / bytes as f64)
}

fn ngram_error(e: NgramError) -> Error {
    Error::user(format!("n-gram models: {e}"), e.remedy().unwrap_or_default())
}

/// Tokens that are counted of a text of many sections.
const COUNTED: u64 = 1 << 28;

/// Unigram and bigram counts of a training split; of a text of many sections, of as many of them as hold about 2^28 tokens,
/// at even distances.
///
/// # Errors
/// There are no documents, or they hold ids outside the vocabulary.
pub fn ngram_models(train: &TokenFile, tokenizer: &Tokenizer) -> Result<NgramModels> {
    let s = tokenizer.special();
    let all = train.sections();
    let most = (all as u64 * COUNTED).checked_div(train.tokens()).unwrap_or(u64::MAX).max(1);
    let sections = spread(all, usize::try_from(most).ok());
    NgramModels::from_documents(
        tokenizer.vocab_size(),
        NgramIds { bos: s.bos, eos: s.eos },
        sections.into_iter().flat_map(|s| train.section_documents(s)).map(|i| train.document(i)),
        DEFAULT_LAMBDA,
    )
    .map_err(ngram_error)
}

/// Closed-form scores of n-gram models on the positions that a model was scored at.
///
/// # Errors
/// As [`NgramModels::score`].
pub fn ngram_scores(
    models: &NgramModels,
    positions: &[Position],
    bootstrap: &Bootstrap,
) -> Result<NgramReport> {
    let positions = positions.iter().map(|p| NgramPosition {
        document: u64::from(p.group),
        context: p.previous,
        target: &p.target,
    });
    models.score(positions, bootstrap).map_err(ngram_error)
}

/// Whether models of these settings cut text into segments of their own.
pub fn cuts_text(model: &ModelConfig) -> bool {
    model.at_ratio(1.0).is_some()
}

/// With what a run is scored.
#[derive(Clone, Debug)]
pub struct Means<'a> {
    /// How much of the text, and how often.
    pub eval: &'a EvalConfig,
    /// Where the model is.
    pub device: &'a Device,
    /// The processes that share the documents; all call the same, and each has what one process would have.
    pub ranks: Ranks,
}

impl<'a> Means<'a> {
    /// One process.
    pub fn alone(eval: &'a EvalConfig, device: &'a Device) -> Self {
        Self { eval, device, ranks: Ranks::alone() }
    }
}

/// What a language model is found to do on held-out documents.
#[derive(Clone, Debug)]
pub struct RunScores {
    /// Its scores.
    pub brier: BrierResults,
    /// Whether a head uses its condition.
    pub condition: Option<ConditionCheck>,
    /// How a model with segments of its own cuts the text.
    pub segments: Option<Segments>,
}

/// Scores the language model of a run on held-out documents, beside n-gram models of the training split on
/// the same positions: aligned with the run's own chunks and context (see [`Scorer`] for other protocols). Of several processes
/// the first has the n-gram models.
///
/// # Errors
/// As [`ngram_models`], [`Scorer::load`], [`Scorer::score`] and [`Scorer::segments`].
pub fn score_run(
    run: &Run,
    corpus: &Corpus,
    held_out: &TokenFile,
    which: Which,
    means: &Means<'_>,
    reporter: &mut dyn Reporter,
) -> Result<RunScores> {
    let Means { eval, device, ranks } = means;
    let documents = spread(held_out.len(), eval.documents);
    let protocol = Protocol::own(&reader(run), eval.chunks_per_document);
    let ngram = ranks.leads().then(|| ngram_models(&corpus.train, &corpus.tokenizer)).transpose()?;
    let scorer = Scorer::load(run, which, &corpus.tokenizer, device)?.among(ranks);
    let (brier, _) = scorer.score(held_out, &documents, &protocol, eval, ngram.as_ref(), reporter)?;
    let condition = scorer.condition_check(held_out, eval)?;
    let segments = scorer.segments(held_out, eval, reporter)?;
    Ok(RunScores { brier, condition, segments })
}

/// Scores a run's autoencoder on held-out documents.
///
/// # Errors
/// As [`models::load_autoencoder`] and [`evaluation_rows`]; what a GPU answers; another process that fails or does not come.
pub fn reconstruct_run(
    run: &Run,
    tokenizer: &Tokenizer,
    held_out: &TokenFile,
    which: Which,
    means: &Means<'_>,
    reporter: &mut dyn Reporter,
) -> Result<ReconstructionReport> {
    let Means { eval, device, ranks } = means;
    let (stage_one, _) = models::load_autoencoder(run, which, tokenizer, device)?;
    let special = tokenizer.special();
    let layout = run.autoencoder_layout();
    let rows = evaluation_rows(held_out, special, layout, eval.documents, eval.chunks_per_document)?;
    let batches = rows.batches(SCORE_ROWS);
    let total = batches.len();
    let workers = Together { ranks, progress: |done| reporter.scoring("reconstruction", done, total) };
    reconstruct(&stage_one.model, batches, special.pad, run.config.seed, device, workers)
}
