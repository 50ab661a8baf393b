//! The rows of a stage: to train on, and to validate with.

use calm_data::{Corpus, EvaluationRows, RowPlan};
use calm_run::{Error, Result, Run, Stage};

use crate::held_out::evaluation_rows;

/// Rows of a stage, in which there is something to learn and something to measure.
pub(crate) struct Rows {
    pub plan: RowPlan,
    pub validation: EvaluationRows,
}

impl Rows {
    /// Lays the text into rows.
    ///
    /// # Errors
    /// Text of which these settings leave nothing to predict: a loss of it would be 0, whatever the model does.
    pub fn new(run: &Run, corpus: &Corpus, stage: Stage) -> Result<Self> {
        let layout = match stage {
            Stage::Autoencoder => run.autoencoder_layout(),
            Stage::Lm => run.lm_layout(),
        };
        let (special, eval) = (corpus.tokenizer.special(), &run.config.eval);
        let plan = match packs_as_a_whole(run)? {
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
            let documents = eval.documents;
            let scored =
                evaluation_rows(&corpus.validation, special, layout, documents, eval.chunks_per_document)?;
            if scored.predicted_chunks() == 0 {
                return Err(nothing(run, "held-out documents that are scored"));
            }
        }
        Ok(Self { plan, validation })
    }
}

/// Whether an earlier version trained this run, which knew no sections.
///
/// # Errors
/// A record or a checkpoint that cannot be read.
pub(crate) fn packs_as_a_whole(run: &Run) -> Result<bool> {
    if run.record()?.is_none_or(|record| record.row_order.is_some()) {
        return Ok(false);
    }
    for stage in Stage::ALL {
        if run.checkpoints(stage).latest()?.is_some_and(|state| state.step > 0) {
            return Ok(true);
        }
    }
    Ok(false)
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
