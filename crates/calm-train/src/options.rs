//! How a run is asked to be trained.

use std::path::PathBuf;

use calm_parallel::Ranks;
use calm_run::{Provenance, Stage};

/// Options of a training run that are not part of its configuration.
#[derive(Clone, Debug, Default)]
pub struct TrainOptions {
    /// Work on this stage alone; None: on all, in order.
    pub only: Option<Stage>,
    /// Continue unfinished stages.
    pub resume: bool,
    /// Start from the weights of another run (fine-tuning).
    pub init_from: Option<PathBuf>,
    /// Take stage 1 from another run with the same data, tokenizer and autoencoder.
    pub autoencoder_from: Option<PathBuf>,
    /// Train only; scores come later.
    pub skip_scores: bool,
    /// Where tokenizers and token files are kept.
    pub cache: PathBuf,
    /// The processes that train together.
    pub ranks: Ranks,
    /// Who runs this.
    pub provenance: Provenance,
}
