//! Scores of a finished run: its language model by protocol, and its autoencoder.

use calm_data::batch::spread;
use calm_data::{Batch, Corpus, TokenFile, Tokenizer};
use calm_eval::protocol::{Protocol, Reader};
use calm_eval::reconstruction::{ReconstructionReport, reconstruct};
use calm_eval::score::{Position, Scores, score_baseline_at, score_calm_at};
use calm_stats::bootstrap::{Bootstrap, report};
use calm_stats::ngram::{
    DEFAULT_LAMBDA, NgramError, NgramModels, NgramPosition, NgramReport, SpecialIds as NgramIds,
};
use candle_core::Device;

use crate::models;
use crate::objective::{BaselineObjective, CalmObjective, Objective};
use crate::pipeline::{Reporter, SCORE_ROWS, evaluation_rows};
use calm_eval::EvalConfig;
use calm_run::Run;
use calm_run::checkpoint::Which;
use calm_run::config::ModelConfig;
use calm_run::results::{BrierResults, ConditionCheck};
use calm_run::{Error, Result};

/// Rows of a batch, as long as they are short.
const ROWS: usize = 4;
/// Tokens of a batch, from which on it has fewer rows: memory stays bounded with long contexts.
const BATCH_TOKENS: usize = 8192;

/// The weights of a run's language model.
pub enum Weights {
    /// A continuous autoregressive language model.
    Calm(Box<CalmObjective>),
    /// A discrete baseline.
    Baseline(Box<BaselineObjective>),
}

/// A run's language model, loaded once and scored by any number of protocols.
pub struct Scorer<'a> {
    run: &'a Run,
    tokenizer: Tokenizer,
    step: u64,
    device: &'a Device,
    /// Its weights.
    pub weights: Weights,
}

/// What protocols have to know of a run's model.
pub fn reader(run: &Run) -> Reader {
    let layout = run.lm_layout();
    Reader {
        chunk_size: layout.chunk_size,
        context: layout.context,
        bos_chunk: layout.bos_chunk,
        baseline: matches!(run.config.model, ModelConfig::Baseline(_)),
    }
}

impl<'a> Scorer<'a> {
    /// Loads a checkpoint.
    pub fn load(run: &'a Run, which: Which, tokenizer: &Tokenizer, device: &'a Device) -> Result<Self> {
        let weights = match &run.config.model {
            ModelConfig::Calm(_) => {
                Weights::Calm(Box::new(models::load_calm(run, which, tokenizer, device)?))
            }
            ModelConfig::Baseline(_) => {
                Weights::Baseline(Box::new(models::load_baseline(run, which, tokenizer, device)?))
            }
        };
        let step = run.checkpoints("lm").step(which)?;
        Ok(Self { run, tokenizer: tokenizer.clone(), step, device, weights })
    }

    /// Scores these documents by a protocol, beside n-gram models on the same positions. The contributions by
    /// document go to paired differences between models.
    pub fn score(
        &self,
        held_out: &TokenFile,
        documents: &[usize],
        protocol: &Protocol,
        eval: &EvalConfig,
        ngram: Option<&NgramModels>,
        reporter: &mut dyn Reporter,
    ) -> Result<(BrierResults, Scores)> {
        let view = protocol.view(held_out, self.tokenizer.special(), &reader(self.run), documents)?;
        let rows = (BATCH_TOKENS / protocol.row_tokens()).clamp(1, ROWS);
        let total = view.batch_count(rows);
        let (seed, rule) = (self.run.config.seed, view.rule);
        let label = format!("BrierLM, {}", protocol.name());
        let mut progress = |done| reporter.scoring(&label, done, total);
        let batches = view.batches(rows);
        let (scores, samples) = match &self.weights {
            Weights::Calm(o) => {
                let n = eval.samples;
                (score_calm_at(&o.model, batches, rule, n, seed, self.device, &mut progress)?, n)
            }
            Weights::Baseline(o) => {
                (score_baseline_at(&o.model, batches, rule, seed, self.device, &mut progress)?, 2)
            }
        };
        let bootstrap = Bootstrap { replicates: eval.bootstrap, seed };
        let ngram = ngram.map(|models| ngram_scores(models, &scores.positions, &bootstrap)).transpose()?;
        let cross_entropy = scores.cross_entropy.map(|(nats, n)| nats / n.max(1) as f64);
        let results = BrierResults {
            report: report(&scores.sums, &bootstrap),
            protocol: *protocol,
            chunk_size: self.run.config.chunk_size(),
            samples,
            ngram,
            cross_entropy,
            perplexity: cross_entropy.map(f64::exp),
            bits_per_byte: self.bits_per_byte(&scores),
            step: self.step,
            corpus_hash: self.run.record()?.map(|r| r.corpus_hash).unwrap_or_default(),
            text_hash: held_out.data_hash(),
        };
        Ok((results, scores))
    }
}

impl Scorer<'_> {
    /// Bits of all predicted tokens per byte of text they stand for (EOS: none). Undefined for vocabularies
    /// whose tokens are not bytes of the text.
    fn bits_per_byte(&self, scores: &Scores) -> Option<f64> {
        let (nats, _) = scores.cross_entropy.filter(|_| self.tokenizer.is_byte_exact())?;
        let bytes: u64 =
            scores.predicted.iter().map(|(id, n)| n * self.tokenizer.token_bytes(*id).len() as u64).sum();
        (bytes > 0).then(|| nats / std::f64::consts::LN_2 / bytes as f64)
    }
}

fn ngram_error(e: NgramError) -> Error {
    Error::user(format!("n-gram models: {e}"), "")
}

/// Unigram and bigram counts of a training split.
pub fn ngram_models(train: &TokenFile, tokenizer: &Tokenizer) -> Result<NgramModels> {
    let s = tokenizer.special();
    NgramModels::from_documents(
        tokenizer.vocab_size(),
        NgramIds { bos: s.bos, eos: s.eos },
        (0..train.len()).map(|i| train.document(i)),
        DEFAULT_LAMBDA,
    )
    .map_err(ngram_error)
}

/// Closed-form scores of n-gram models on the positions that a model was scored at.
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

/// Scores the language model of a run on held-out documents, beside n-gram models of the training split on
/// the same positions: aligned with the run's own chunks and context (see [`Scorer`] for other protocols).
pub fn score_run(
    run: &Run,
    corpus: &Corpus,
    held_out: &TokenFile,
    which: Which,
    eval: &EvalConfig,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<(BrierResults, Option<ConditionCheck>)> {
    let documents = spread(held_out.len(), eval.documents);
    let protocol = Protocol::own(&reader(run), eval.chunks_per_document);
    let ngram = ngram_models(&corpus.train, &corpus.tokenizer)?;
    let scorer = Scorer::load(run, which, &corpus.tokenizer, device)?;
    let (results, _) = scorer.score(held_out, &documents, &protocol, eval, Some(&ngram), reporter)?;
    let condition = match &scorer.weights {
        Weights::Calm(o) => {
            let special = corpus.tokenizer.special();
            let rows = evaluation_rows(
                held_out,
                special,
                run.lm_layout(),
                eval.documents,
                eval.chunks_per_document,
            )?;
            condition_check(o, rows.batches(SCORE_ROWS), run.config.seed)?
        }
        Weights::Baseline(_) => None,
    };
    Ok((results, condition))
}

fn condition_check(
    objective: &CalmObjective,
    batches: impl Iterator<Item = Batch>,
    seed: u64,
) -> Result<Option<ConditionCheck>> {
    let (mut loss, mut exchanged, mut n) = (0.0, 0.0, 0usize);
    for batch in batches.take(8) {
        let rows = objective.targets(&batch);
        if rows < 2 {
            continue;
        }
        let (a, b) = objective.condition_check(&batch, seed)?;
        loss += a * rows as f64;
        exchanged += b * rows as f64;
        n += rows;
    }
    // A text of one chunk has nothing to exchange.
    let mean = |sum: f64| sum / n as f64;
    Ok((n > 0).then(|| ConditionCheck { loss: mean(loss), loss_exchanged: mean(exchanged) }))
}

/// Scores a run's autoencoder on held-out documents.
pub fn reconstruct_run(
    run: &Run,
    tokenizer: &Tokenizer,
    held_out: &TokenFile,
    which: Which,
    eval: &EvalConfig,
    device: &Device,
    reporter: &mut dyn Reporter,
) -> Result<ReconstructionReport> {
    let (objective, _) = models::load_autoencoder(run, which, tokenizer, device)?;
    let special = tokenizer.special();
    let rows = evaluation_rows(
        held_out,
        special,
        run.autoencoder_layout(),
        eval.documents,
        eval.chunks_per_document,
    )?;
    let batches = rows.batches(SCORE_ROWS);
    let total = batches.len();
    let pad = special.pad;
    Ok(reconstruct(&objective.model, batches, pad, run.config.seed, device, |done| {
        reporter.scoring("reconstruction", done, total)
    })?)
}
