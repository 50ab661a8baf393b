//! What `results.json` and `--format json` hold.

use calm_eval::protocol::Protocol;
use calm_eval::reconstruction::ReconstructionReport;
use calm_eval::segments::Segments;
use calm_lm::Decode;
use calm_stats::bootstrap::BrierReport;
use calm_stats::bound::Point;
use calm_stats::ngram::NgramReport;
use serde::{Deserialize, Serialize};

/// Scores on the held-out documents, as `results.json` and `--format json` hold them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Results {
    /// Stage 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub autoencoder: Option<ReconstructionReport>,
    /// The language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub brier: Option<BrierResults>,
    /// Mean loss with true and with exchanged hidden states.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub condition: Option<ConditionCheck>,
    /// How a model with segments of its own cuts the held-out text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub segments: Vec<SegmentResults>,
    /// A short text of the language model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
    /// Hash of the text.
    pub corpus_hash: String,
    /// Hash of the tokenizer.
    pub tokenizer_hash: String,
}

/// How a model cuts one kind of text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SegmentResults {
    /// The kind, as the reader knows it.
    pub kind: String,
    /// Its segments.
    #[serde(flatten)]
    pub segments: Segments,
}

impl SegmentResults {
    /// How the held-out text of a run is called.
    pub const HELD_OUT: &str = "held-out text";
}

/// Does the head use its condition?
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ConditionCheck {
    /// Mean validation loss with the true hidden states.
    pub loss: f64,
    /// With each position given another position's hidden state.
    pub loss_exchanged: f64,
}

/// An upper bound on the cross-entropy of drawing a latent vector and sampling the decoder, with a share of uniform
/// tokens mixed in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundResults {
    /// By number of draws, ascending.
    pub curve: Vec<BoundPoint>,
    /// ε, share of uniform tokens in the distribution.
    pub floor: f64,
    /// Predicted tokens.
    pub tokens: u64,
}

/// The bound with N draws.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BoundPoint {
    /// N, nats a token, and its standard error.
    #[serde(flatten)]
    pub point: Point,
    /// Bits per byte of text (EOS counted in); null for vocabularies whose tokens are not bytes of the text.
    pub bits_per_byte: Option<f64>,
}

/// Brier scores of a model and of n-gram models on the same positions.
#[derive(Clone, Debug, Serialize)]
pub struct BrierResults {
    /// The model's scores, percent.
    #[serde(flatten)]
    pub report: BrierReport,
    /// Where it was scored.
    pub protocol: Protocol,
    /// K.
    pub chunk_size: usize,
    /// Draws per position.
    pub samples: usize,
    /// How a latent vector became tokens, of families that draw one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decode: Option<Decode>,
    /// Unigram and bigram models of the training split, closed form; null where there is no training split.
    pub ngram: Option<NgramReport>,
    /// Families with probabilities: nats per token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cross_entropy: Option<f64>,
    /// Families with probabilities: exp of the cross-entropy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// Families with probabilities: bits per byte of text (EOS counted in).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bits_per_byte: Option<f64>,
    /// Families that draw latent vectors: a bound on the cross-entropy when the decoder is sampled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<BoundResults>,
    /// Step of the checkpoint.
    pub step: u64,
    /// Hash of the text the model was trained on; empty for a model that was not trained here.
    pub corpus_hash: String,
    /// Hash of the text it was scored on.
    pub text_hash: String,
}
