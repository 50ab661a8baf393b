//! How a run is scored.

use calm_config::Problems;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How scores are taken.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// Held-out documents scored during training.
    pub training_documents: usize,
    /// Held-out documents scored at the end and by `calm eval` (null: all).
    pub documents: Option<usize>,
    /// Chunks scored per document, from its start (null: all).
    pub chunks_per_document: Option<usize>,
    /// Draws per position of a CALM; all pairs are used.
    pub samples: usize,
    /// Draws per position for the bound on a CALM's cross-entropy with its decoder sampled (0: no bound).
    pub bound_samples: usize,
    /// Bootstrap replicates for standard errors.
    pub bootstrap: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            training_documents: 32,
            documents: None,
            chunks_per_document: Some(256),
            samples: 2,
            bound_samples: 8,
            bootstrap: 1000,
        }
    }
}

impl EvalConfig {
    /// Adds what cannot be scored; key paths are relative to this block.
    pub fn validate(&self, problems: &mut Problems) {
        if self.samples < 2 {
            problems
                .add("samples", format!("is {}: Brier scores compare two draws, at least 2", self.samples));
        }
        for (key, value) in [
            ("documents", self.documents),
            ("chunks_per_document", self.chunks_per_document),
            ("training_documents", Some(self.training_documents)),
        ] {
            if value == Some(0) {
                problems.add(key, "must be at least 1 (null: all)");
            }
        }
    }
}
