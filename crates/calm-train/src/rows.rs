//! The rows of a stage: to train on, and to validate with.

use calm_data::{Corpus, EvaluationRows, RowPlan, spread};
use calm_eval::protocol::Protocol;
use calm_eval::score::positions;
use calm_run::{Error, Result, Resumption, Run, Stage};
use calm_stats::brier::{EndOfText, NGRAM};

use crate::held_out::{SCORE_ROWS, evaluation_rows, predicts};
use crate::scoring::reader;

/// Rows of a stage, in which there is something to learn and something to measure.
pub(crate) struct Rows {
    pub plan: RowPlan,
    pub validation: EvaluationRows,
}

impl Rows {
    /// Lays the text into rows.
    ///
    /// # Errors
    /// Text of which these settings leave nothing to predict: a loss of it would be 0, whatever the model does. Where the
    /// model is `scored` when it is trained, held-out text without a place for a score. `whole`: packed as by earlier
    /// versions, which knew no sections.
    pub fn new(run: &Run, corpus: &Corpus, stage: Stage, scored: bool, whole: bool) -> Result<Self> {
        let layout = match stage {
            Stage::Autoencoder => run.autoencoder_layout(),
            Stage::Lm => run.lm_layout(),
        };
        let (special, eval) = (corpus.tokenizer.special(), &run.config.eval);
        let plan = match whole {
            true => RowPlan::whole(&corpus.train, layout, special, run.config.seed)?,
            false => corpus.plan(layout, run.config.seed)?,
        };
        let documents = Some(eval.training_documents);
        let validation =
            evaluation_rows(&corpus.validation, special, layout, documents, eval.chunks_per_document)?;
        // The autoencoder takes every chunk for itself, and every document has one.
        if stage == Stage::Lm {
            if plan.predicted_chunks() == 0 {
                return Err(nothing(run, "training text"));
            }
            if validation.predicted_chunks() == 0 {
                return Err(nothing(run, "held-out documents that are validated"));
            }
            let (documents, chunks) = (eval.documents, eval.chunks_per_document);
            if !predicts(&corpus.validation, special, layout, documents, chunks)? {
                return Err(nothing(run, "held-out documents that are scored"));
            }
            if scored && !has_scores(run, corpus)? {
                return Err(no_scores(layout.context, layout.chunk_size));
            }
        }
        Ok(Self { plan, validation })
    }
}

/// Whether a model of this run is scored anywhere: a score is taken of four tokens, all of which count, a loss of one.
fn has_scores(run: &Run, corpus: &Corpus) -> Result<bool> {
    let (eval, special, reader) = (&run.config.eval, corpus.tokenizer.special(), reader(run));
    let end = EndOfText { eos: special.eos, pad: special.pad };
    let protocol = Protocol::own(&reader, eval.chunks_per_document);
    for document in spread(corpus.validation.len(), eval.documents) {
        let view = protocol.view(&corpus.validation, special, &reader, &[document])?;
        if view.batches(SCORE_ROWS).any(|batch| !positions(&batch, end, view.rule).is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether an earlier version, which knew no sections, trained what of this run stays.
///
/// # Errors
/// A record or a checkpoint that cannot be read.
pub(crate) fn packs_as_a_whole(resumption: &Resumption) -> Result<bool> {
    if resumption.record()?.row_order.is_some() {
        return Ok(false);
    }
    for stage in Stage::ALL {
        if resumption.latest(stage)?.is_some_and(|state| state.step > 0) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What the record of a run that goes on says of it.
///
/// # Errors
/// As [`Run::record`].
pub(crate) fn packed_as_a_whole(run: &Run) -> Result<bool> {
    Ok(run.record()?.is_some_and(|record| record.row_order.is_none()))
}

fn nothing(run: &Run, text: &str) -> Error {
    let (k, name) = (run.config.chunk_size(), run.config.model.name());
    let why = match run.config.bos_chunk {
        true => "there are none".to_owned(),
        false => format!(
            "with bos_chunk: false the first chunk is not predicted, and none has a second one of K = {k}"
        ),
    };
    Error::user(
        format!("nothing to predict in the {text}: {why}"),
        format!(
            "--set bos_chunk=true predicts the first chunk too; a smaller model.{name}.chunk_size, longer documents, or \
             more of eval.training_documents, eval.documents and eval.chunks_per_document help as well"
        ),
    )
}

/// Of held-out documents without a place for a score, read in windows of so many chunks.
fn no_scores(context: usize, chunk_size: usize) -> Error {
    // Nothing comes before the first chunk of a window.
    if context.saturating_sub(1) * chunk_size < NGRAM {
        let least = 1 + NGRAM.div_ceil(chunk_size);
        return Error::user(
            format!(
                "nothing to score in the held-out documents: a score is taken of four tokens together, and a window of \
                 {context} chunks of K = {chunk_size} predicts fewer"
            ),
            format!("raise train.lm.context to {least} or more; --skip-scores trains without scores"),
        );
    }
    Error::user(
        "nothing to score in the held-out documents: nowhere stand four tokens together that count",
        "longer answers or documents help, or more of eval.documents and eval.chunks_per_document; \
         --skip-scores trains without scores",
    )
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use calm_data::{
        Batch, CharsConfig, Cut, DataConfig, Preparation, Source, TokenizerConfig, prepare_with,
    };
    use calm_run::Begin;

    use super::*;

    fn rows(run: &Run, corpus: &Corpus) -> Vec<String> {
        let whole = packs_as_a_whole(&Resumption::settled(run)).unwrap();
        let plan = Rows::new(run, corpus, Stage::Lm, false, whole).unwrap().plan;
        (0..30).map(|step| Batch::hash(&[plan.batch(step, 0..4, 4).unwrap()])).collect()
    }

    #[test]
    fn a_window_that_is_too_short_for_a_score_is_told_apart_from_short_documents() {
        for (context, chunk_size, least) in [(4, 1, "to 5"), (2, 3, "to 3"), (1, 4, "to 2")] {
            let error = no_scores(context, chunk_size);
            let remedy = error.remedy().unwrap_or_default();
            assert!(remedy.contains(&format!("train.lm.context {least} ")), "{remedy}");
            assert!(!remedy.contains("longer"), "{remedy}");
        }
        for (context, chunk_size) in [(5, 1), (3, 3), (2, 4)] {
            let remedy = no_scores(context, chunk_size).remedy().unwrap_or_default();
            assert!(remedy.contains("longer answers") && !remedy.contains("context"), "{remedy}");
        }
    }

    #[test]
    fn a_run_of_an_earlier_version_keeps_its_order_of_rows_whatever_sections_its_text_has() {
        let folder = tempfile::tempdir().unwrap();
        let text = folder.path().join("text.jsonl");
        let mut lines = String::new();
        for i in 0..600 {
            let words = "some words about something ".repeat(1 + i * 7 % 5);
            writeln!(lines, "{{\"text\": \"document {i}: {words}\"}}").unwrap();
        }
        std::fs::write(&text, lines).unwrap();
        let data = DataConfig { source: Source::Path(text), ..DataConfig::default() };
        let prepared = |cut: Cut| {
            let (cache, how) = (folder.path().join("cache"), Preparation { cut, ..Preparation::default() });
            let tokenizer = TokenizerConfig::Chars(CharsConfig {});
            prepare_with(&data, &tokenizer, &cache, how, &mut |_| ()).unwrap()
        };
        let one = prepared(Cut::default());
        let many =
            prepared(Cut { whole_bytes: 0, section_tokens: 3000, section_documents: 64, shard_bytes: 9000 });
        assert!(one.train.sections() == 1 && many.train.sections() > 5 && one.hash == many.hash);

        let old = Path::new(env!("CARGO_MANIFEST_DIR")).join("../calm-cli/tests/runs-0.1.0");
        for name in ["baseline", "calm"] {
            let old = Run::open(&old.join(name)).unwrap();
            assert_eq!(old.record().unwrap().unwrap().row_order, None);
            let new = folder.path().join(name);
            std::fs::create_dir(&new).unwrap();
            std::fs::copy(old.folder.join("config.yaml"), new.join("config.yaml")).unwrap();
            let new = Run::open(&new).unwrap();
            let before = rows(&old, &one);
            assert_eq!(rows(&old, &many), before, "{name}: sections are none of its business");
            assert_eq!(rows(&new, &one), before, "{name}: one section is packed as it always was");
            assert_ne!(rows(&new, &many), before, "{name}: else this test would show nothing");
            // What is thrown away does not decide how the run that replaces it is packed.
            let resolved = Run::resolved(&old.folder).unwrap();
            let again = Resumption::decide(&old.folder, &resolved, Begin::Restart(None)).unwrap();
            assert!(!packs_as_a_whole(&again).unwrap(), "{name}");
            assert!(packed_as_a_whole(&old).unwrap() && !packed_as_a_whole(&new).unwrap(), "{name}");
        }
    }
}
