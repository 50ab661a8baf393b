//! The `config.json` of a published checkpoint: the words in which a family and a head say how they are published.
//!
//! ```text
//! config.json ── Keys ──> settings      an entry of the registry names the `architectures` that it reads
//! settings ── ConfigJson ──> config.json, over what was recorded when the model was imported
//! ```
//! Which keys a family, a head, the backbone has stands beside its settings; an autoencoder's folder is in
//! [`autoencoder`]. What never comes as a checkpoint says nothing: all of this is optional.

pub mod autoencoder;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;

use serde_json::{Map, Value, json};

use crate::sampler::SpecialIds;

/// How a kind of model is called in its `config.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Names {
    /// The one value of `architectures`.
    pub architecture: &'static str,
    /// Its `model_type`.
    pub model_type: &'static str,
}

/// What was found while reading: what forbids the import, and what a user should know.
#[derive(Debug, Default)]
pub struct Findings {
    /// What forbids it.
    pub problems: Vec<String>,
    /// What a user should know.
    pub notes: Vec<String>,
}

impl Findings {
    /// Adds a problem.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems.push(text.into());
    }

    /// Adds a note.
    pub fn note(&mut self, text: impl Into<String>) {
        self.notes.push(text.into());
    }
}

/// Special ids as a `config.json` gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids {
    /// Start of a document.
    pub bos: Option<u32>,
    /// End of a document.
    pub eos: Option<u32>,
    /// Everything after the end.
    pub pad: Option<u32>,
}

/// What every published model says of its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishedText {
    /// V.
    pub vocab_size: usize,
    /// Ids with a meaning.
    pub ids: Ids,
}

/// Keys of one `config.json`; remembers which were understood.
#[derive(Debug)]
pub struct Keys<'a> {
    file: &'a str,
    map: &'a Map<String, Value>,
    seen: BTreeSet<&'static str>,
    findings: &'a mut Findings,
}

/// Keys that say nothing about the model's numbers, or that we decide ourselves.
const SILENT: [&str; 9] = [
    "_name_or_path",
    "architectures",
    "model_type",
    "torch_dtype",
    "dtype",
    "transformers_version",
    "use_cache",
    "pretraining_tp",
    "ae_path",
];

/// Keys that must have this value (or be absent), and what another one would mean.
const FIXED: [(&str, &str, &str); 6] = [
    ("hidden_act", "\"silu\"", "another activation"),
    ("attention_bias", "false", "biases in the attention"),
    ("mlp_bias", "false", "biases in the gated MLPs"),
    ("sliding_window", "null", "attention in windows"),
    ("quantization_config", "null", "quantised weights"),
    ("attention_dropout", "0", "dropout in the attention"),
];

/// The context of a model whose `config.json` names none, in positions.
const DEFAULT_CONTEXT: usize = 2048;

/// The largest width, vocabulary or number of layers that is read: beyond it a file is damaged.
const LARGEST_SIZE: u64 = 1 << 22;

impl<'a> Keys<'a> {
    /// Keys of a `config.json` that messages call `file`; settings that no model here has are problems at once.
    pub fn new(file: &'a str, map: &'a Map<String, Value>, findings: &'a mut Findings) -> Self {
        let mut keys = Self { file, map, seen: SILENT.into(), findings };
        keys.seen.extend(
            ["rope_scaling", "rope_parameters"].iter().filter(|k| map.get(**k).is_none_or(Value::is_null)),
        );
        for (key, wanted, means) in FIXED {
            keys.seen.insert(key);
            let Some(value) = map.get(key) else { continue };
            let text = value.to_string();
            let fits = value.is_null() || text == wanted || (wanted == "0" && value.as_f64() == Some(0.0));
            if !fits {
                keys.problem(key, format!("is {value}: {means} cannot be represented (only {wanted})"));
            }
        }
        keys
    }

    /// Adds what is wrong with a key.
    pub fn problem(&mut self, key: &str, text: impl Display) {
        self.findings.problem(format!("{}: {key} {text}", self.file));
    }

    /// A key's value, unless it is absent or null.
    pub fn get(&mut self, key: &'static str) -> Option<&'a Value> {
        self.seen.insert(key);
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// A key that is understood and has nothing to say.
    pub fn ignore(&mut self, key: &'static str) {
        self.seen.insert(key);
    }

    /// A size that must be there, 1 or more; 1 stands in for it otherwise.
    pub fn size(&mut self, key: &'static str) -> usize {
        self.size_up_to(key, LARGEST_SIZE)
    }

    fn size_up_to(&mut self, key: &'static str, most: u64) -> usize {
        match self.get(key) {
            None => self.problem(key, "is missing"),
            Some(value) => match value.as_u64() {
                Some(n) if n > 0 && n <= most => return n as usize,
                _ => self.problem(key, format!("is {value}: it must be a whole number from 1 to {most}")),
            },
        }
        1
    }

    /// A size that may be absent.
    pub fn size_or(&mut self, key: &'static str, default: usize) -> usize {
        if self.get(key).is_some() { self.size(key) } else { default }
    }

    /// A number that may be absent.
    pub fn real_or(&mut self, key: &'static str, default: f64) -> f64 {
        match self.get(key) {
            None => default,
            Some(value) => value.as_f64().unwrap_or_else(|| {
                self.problem(key, format!("is {value}: it must be a number"));
                default
            }),
        }
    }

    /// The base of the rotary angles: `rope_theta`, or, in newer files, that of `rope_parameters`. Scaled angles are a
    /// problem.
    pub fn rope_theta(&mut self, default: f64) -> f64 {
        let mut theta = self.get("rope_theta").is_some().then(|| self.real_or("rope_theta", default));
        for key in ["rope_scaling", "rope_parameters"] {
            let Some(value) = self.get(key) else { continue };
            let map = value.as_object();
            let kind = |name: &str| map.and_then(|m| m.get(name)).filter(|v| !v.is_null());
            let plain = kind("rope_type").or(kind("type")).is_none_or(|v| v == "default");
            let known = |name: &String| ["rope_type", "type", "rope_theta"].contains(&name.as_str());
            if !plain || !map.is_some_and(|m| m.iter().all(|(name, v)| known(name) || v.is_null())) {
                self.problem(
                    key,
                    format!("is {value}: scaled rotary angles cannot be represented (only rope_theta)"),
                );
                continue;
            }
            let Some(own) = kind("rope_theta") else { continue };
            match (own.as_f64(), theta) {
                (None, _) => self.problem(key, format!("is {value}: rope_theta must be a number")),
                (Some(own), Some(theta)) if own != theta => {
                    self.problem(key, format!("is {value}, but rope_theta is {theta}"));
                }
                (own, _) => theta = own,
            }
        }
        theta.unwrap_or(default)
    }

    /// A token id; the first of a list.
    fn id(&mut self, key: &'static str) -> Option<u32> {
        let value = self.get(key)?;
        let first = match value.as_array().map(Vec::as_slice) {
            Some([first, rest @ ..]) => {
                if !rest.is_empty() {
                    self.findings
                        .note(format!("{}: {key} is a list; its first, {first}, is used", self.file));
                }
                first
            }
            _ => value,
        };
        let id = first.as_u64().and_then(|n| u32::try_from(n).ok());
        if id.is_none() {
            self.problem(key, format!("is {value}: it must be a token id"));
        }
        id
    }

    /// Vocabulary and ids.
    pub fn text(&mut self) -> PublishedText {
        let vocab_size = self.size("vocab_size");
        let ids =
            Ids { bos: self.id("bos_token_id"), eos: self.id("eos_token_id"), pad: self.id("pad_token_id") };
        PublishedText { vocab_size, ids }
    }

    /// S of a language model, in positions.
    pub fn context(&mut self) -> usize {
        let key = "max_position_embeddings";
        if self.get(key).is_some() { self.size_up_to(key, u32::MAX.into()) } else { DEFAULT_CONTEXT }
    }

    /// Reports what was not understood.
    pub fn finish(self) {
        for (key, value) in self.map {
            if !self.seen.contains(key.as_str()) {
                self.findings
                    .note(format!("{}: {key} = {value} has no meaning here; kept for the export", self.file));
            }
        }
    }
}

/// What settings write into a `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigJson {
    /// What the folder is called.
    pub names: Names,
    /// Keys that follow from the settings.
    pub keys: Map<String, Value>,
    /// Keys that never change here: for a model that was not imported and has none recorded.
    pub constants: Map<String, Value>,
    /// Settings that the reference implementation has as constants, where ours differ.
    pub notes: Vec<String>,
}

impl ConfigJson {
    /// The whole file: over a `config.json` that was `recorded` when the model was imported. `context` is S of a
    /// language model, in positions.
    pub fn over(
        self,
        recorded: &Map<String, Value>,
        vocab_size: usize,
        ids: SpecialIds,
        context: Option<usize>,
    ) -> Map<String, Value> {
        let always = json!({
            "architectures": [self.names.architecture],
            "model_type": self.names.model_type,
            "vocab_size": vocab_size,
        });
        let once = json!({
            "hidden_act": "silu", "mlp_bias": false, "pretraining_tp": 1, "tie_word_embeddings": false,
            "bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad,
            "max_position_embeddings": context.unwrap_or(DEFAULT_CONTEXT),
        });
        // Sorted, so that two exports differ where the models do.
        let mut out: BTreeMap<String, Value> = recorded.clone().into_iter().collect();
        out.extend(self.keys);
        out.extend(object(always));
        if recorded.is_empty() {
            out.extend(object(once));
            out.extend(self.constants);
        }
        out.into_iter().collect()
    }
}

/// The keys of a value that [`json!`] made of braces.
pub fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
