//! What an ablation's file says.
//!
//! ```yaml
//! version: 1
//! description: the semantic bandwidth K, and tokens one by one
//! budget: { tokens: 2e6 }          # or { flops: 1e13 }, or { seconds: 120 }: equal for all runs
//! seeds: [1, 2, 3]
//! variants:                        # the first is what the others are compared with
//!   - { name: baseline, config: baseline }
//!   - { name: k4, config: k4, set: { model.calm.head.energy.targets: 100 } }
//! grid: { train.lm.learning_rate: [1e-3, 2e-3] }   # every combination, for each variant
//! ```

use calm_config::{Problems, Validate};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A grid of runs under an equal budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AblationConfig {
    /// Version of this schema: 1.
    pub version: u64,
    /// What it is for; shown in the plan and the report.
    #[serde(default)]
    pub description: String,
    /// What every run may spend on training its language model (autoencoders are trained as configured).
    pub budget: Budget,
    /// Seeds; every variant is trained from each.
    #[serde(default = "first_seed")]
    pub seeds: Vec<u64>,
    /// Whether one autoencoder serves all seeds.
    #[serde(default)]
    pub autoencoder: Sharing,
    /// What is validated while a run is trained: its learning curve.
    #[serde(default)]
    pub validation: ValidationConfig,
    /// Context of every run in tokens (null: as configured). A run of chunk size K gets a K-th of it in chunks.
    #[serde(default)]
    pub context_tokens: Option<usize>,
    /// Settings of all runs, as `key.path: value`.
    #[serde(default)]
    pub set: Map<String, Value>,
    /// What is compared.
    pub variants: Vec<VariantConfig>,
    /// Values by key path; every combination is a variant of its own.
    #[serde(default)]
    pub grid: Map<String, Value>,
    /// How runs are scored.
    #[serde(default)]
    pub score: ScoreConfig,
}

fn first_seed() -> Vec<u64> {
    vec![1]
}

fn yes() -> bool {
    true
}

/// An equal budget.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Budget {
    /// Training tokens.
    Tokens(f64),
    /// Training FLOPs by formula.
    Flops(f64),
    /// Training time on this machine, turned into steps by a measurement before the start.
    Seconds(f64),
    /// Whatever each configuration says (`as_configured: {}`): not an equal budget.
    AsConfigured {},
}

/// Learning curves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Validations of a run: points of its curve.
    pub points: u64,
    /// Held-out documents.
    pub documents: usize,
    /// Tokens of each, from its start.
    pub tokens: usize,
}

impl Default for ValidationConfig {
    fn default() -> Self {
        Self { points: 16, documents: 64, tokens: 128 }
    }
}

/// Whether an autoencoder serves several seeds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Sharing {
    /// One for all seeds, trained from the first: seeds differ in the language model alone.
    #[default]
    Shared,
    /// One a seed: what seeds differ in includes the autoencoder's training.
    Own,
}

/// One thing that is compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VariantConfig {
    /// Its name.
    pub name: String,
    /// A shipped configuration or a file.
    pub config: String,
    /// Settings of this variant alone.
    #[serde(default)]
    pub set: Map<String, Value>,
    /// Whether the grid applies to it.
    #[serde(default = "yes")]
    pub grid: bool,
}

/// How runs are scored: the same documents and positions for all.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ScoreConfig {
    /// Tokens between scored positions (null: the smallest multiple of every K).
    pub every: Option<usize>,
    /// Tokens in a window (null: the shortest context of all runs).
    pub context: Option<usize>,
    /// Tokens scored per held-out document, from its start (null: all).
    pub tokens_per_document: Option<usize>,
    /// Held-out documents (null: all).
    pub documents: Option<usize>,
    /// Draws of a CALM per position.
    pub samples: usize,
    /// Draws of a CALM per position for the bound on its cross-entropy (0: no bound).
    pub bound_samples: usize,
    /// Bootstrap replicates.
    pub bootstrap: usize,
    /// Held-out documents scored by the reference protocol, which reads them whole (null: it is left out).
    pub reference_documents: Option<usize>,
    /// N of the batch sampler whose generation rate is measured.
    pub draws: usize,
    /// Rounds of the measurement of costs; 0 leaves it out.
    pub rounds: usize,
    /// Tokens of held-out text that samples continue.
    pub prompt_tokens: usize,
}

impl Default for ScoreConfig {
    fn default() -> Self {
        Self {
            every: None,
            context: None,
            tokens_per_document: Some(512),
            documents: None,
            samples: 8,
            bound_samples: 64,
            bootstrap: 1000,
            reference_documents: Some(40),
            draws: 200,
            rounds: 5,
            prompt_tokens: 32,
        }
    }
}

/// Settings that other parts of the file decide.
const DECIDED: [(&str, &str); 6] = [
    ("train.lm.steps", "the budget decides it"),
    ("train.lm.eval_every", "`validation.points` decides it"),
    ("train.lm.checkpoint_every", "`validation.points` decides it"),
    ("eval.training_documents", "`validation.documents` decides it"),
    ("eval.chunks_per_document", "`validation.tokens` and `score.tokens_per_document` decide it"),
    ("seed", "`seeds` lists them"),
];

impl Validate for AblationConfig {
    fn validate(&self, problems: &mut Problems) {
        let (key, amount) = match self.budget {
            Budget::AsConfigured {} => ("", 1.0),
            Budget::Tokens(n) => ("budget.tokens", n),
            Budget::Flops(n) => ("budget.flops", n),
            Budget::Seconds(n) => ("budget.seconds", n),
        };
        if !(amount > 0.0 && amount.is_finite()) {
            problems.add(key, format!("is {amount}: must be above 0"));
        }
        if self.seeds.is_empty() {
            problems.add("seeds", "lists no seed").remedy("for example [1, 2, 3]");
        }
        let mut seeds = self.seeds.clone();
        seeds.sort_unstable();
        seeds.dedup();
        if seeds.len() < self.seeds.len() {
            problems.add("seeds", "lists a seed twice");
        }
        problems.at_least("validation.points", self.validation.points, 1);
        problems.at_least("validation.documents", self.validation.documents, 1);
        problems.at_least("validation.tokens", self.validation.tokens, 1);
        if self.variants.is_empty() {
            problems.add("variants", "lists nothing").remedy("for example - { name: k4, config: k4 }");
        }
        for (i, v) in self.variants.iter().enumerate() {
            let at = format!("variants[{i}]");
            if v.name.is_empty() || !v.name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.=+".contains(c))
            {
                problems
                    .add(&format!("{at}.name"), format!("`{}` cannot name a folder", v.name))
                    .remedy("letters, digits and - _ . = +");
            }
            if self.variants[..i].iter().any(|other| other.name == v.name) {
                problems.add(&format!("{at}.name"), format!("`{}` is there already", v.name));
            }
            decided(&v.set, self.budget, &format!("{at}.set"), problems);
        }
        decided(&self.set, self.budget, "set", problems);
        decided(&self.grid, self.budget, "grid", problems);
        for (key, values) in &self.grid {
            if values.as_array().is_none_or(Vec::is_empty) {
                problems
                    .add(&format!("grid.{key}"), "must list values")
                    .remedy(format!("for example {key}: [1, 2]"));
            }
        }
        let s = &self.score;
        problems.at_least("score.samples", s.samples, 2);
        problems.at_least("score.draws", s.draws, 2);
        problems.at_least("score.bootstrap", s.bootstrap, 2);
        for (key, value) in [
            ("every", s.every),
            ("context", s.context),
            ("tokens_per_document", s.tokens_per_document),
            ("documents", s.documents),
            ("reference_documents", s.reference_documents),
            ("prompt_tokens", Some(s.prompt_tokens)),
        ] {
            if value == Some(0) {
                problems.add(&format!("score.{key}"), "must be at least 1");
            }
        }
        if self.context_tokens == Some(0) {
            problems.add("context_tokens", "must be at least 1");
        }
    }
}

fn decided(settings: &Map<String, Value>, budget: Budget, at: &str, problems: &mut Problems) {
    for (key, why) in DECIDED {
        let free = key == "train.lm.steps" && budget == Budget::AsConfigured {};
        if settings.contains_key(key) && !free {
            problems.add(at, format!("{key} cannot be set here: {why}"));
        }
    }
}
