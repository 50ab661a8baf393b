//! Held-out rows: of which documents, and how many at a time.

use calm_data::{EvaluationOptions, EvaluationRows, Layout, RowPlan, TokenFile, spread};
use calm_run::Result;
use calm_run::config::StageConfig;

use crate::memory::micro_rows;

/// Rows of a batch in scoring and validation.
pub(crate) const SCORE_ROWS: usize = 4;

/// The same while a stage is trained, whose state lies in the memory beside it: no more than a micro-batch.
pub(crate) fn validation_rows(c: &StageConfig) -> usize {
    SCORE_ROWS.min(micro_rows(c))
}

/// Held-out rows of a corpus.
///
/// # Errors
/// A layout that cannot work.
pub fn evaluation_rows(
    file: &TokenFile,
    special: calm_data::SpecialTokens,
    layout: Layout,
    documents: Option<usize>,
    chunks: Option<usize>,
) -> Result<EvaluationRows> {
    let options = EvaluationOptions { max_chunks: chunks, overlap: 1 };
    Ok(RowPlan::evaluation(file, layout, special, &spread(file.len(), documents), options)?)
}

/// Whether these rows would predict anything. Documents are looked at until one does: held-out text may be large, and all of
/// it is not wanted in memory for this.
///
/// # Errors
/// As [`evaluation_rows`].
pub(crate) fn predicts(
    file: &TokenFile,
    special: calm_data::SpecialTokens,
    layout: Layout,
    documents: Option<usize>,
    chunks: Option<usize>,
) -> Result<bool> {
    let options = EvaluationOptions { max_chunks: chunks, overlap: 1 };
    for document in spread(file.len(), documents) {
        if RowPlan::evaluation(file, layout, special, &[document], options)?.predicted_chunks() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}
