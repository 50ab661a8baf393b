//! What `run.json` holds: what a run is made of, and who worked on it with which settings.
//!
//! `config.yaml` is what a run began with and is never written again. A setting that was changed later stands here, in
//! the entry of the command that changed it, with the steps that each stage had done by then: the configuration in
//! force is the first one with all changes in order.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::error::Error;
use crate::stage::Stage;

/// Who made a run, and with what.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Provenance {
    /// The command line.
    pub command: Vec<String>,
    /// Version of calm.
    pub version: String,
    /// Commit it was built from, if known.
    pub commit: Option<String>,
    /// Features compiled in.
    pub features: Vec<String>,
    /// What it computed with, `cpu` or `cuda:0 (NAME)`; null if nothing was computed.
    #[serde(default)]
    pub device: Option<String>,
    /// When it began, in UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// Name of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Settings that it changed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// Steps that each stage had done when it began.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub after: BTreeMap<Stage, u64>,
    /// Where it was stopped, if somebody asked it to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Why it ended, if neither by finishing nor by being stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

impl Provenance {
    /// Says when and where.
    pub fn stamped(mut self) -> Self {
        self.time = Some(crate::host::now());
        self.host = Some(crate::host::name());
        self
    }

    /// Says why it ended early.
    pub fn end(&mut self, error: &Error) {
        let text = Some(error.to_string());
        if error.is_stop() { self.stopped = text } else { self.failure = text }
    }
}

/// A setting that was changed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Its path: `train.lm.steps`.
    pub key: String,
    /// Its value before; absent where there was none.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub old: Option<Value>,
    /// Its value since; absent where there is none.
    #[serde(default, deserialize_with = "present", skip_serializing_if = "Option::is_none")]
    pub new: Option<Value>,
}

/// A value that is there, null included.
fn present<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = |value: &Option<Value>| value.as_ref().map_or_else(|| "-".to_owned(), Value::to_string);
        write!(f, "{}: {} -> {}", self.key, shown(&self.old), shown(&self.new))
    }
}

/// The settings that differ between two trees, each at its own path.
pub(crate) fn differences(old: &Value, new: &Value) -> Vec<Change> {
    fn walk(path: &str, old: Option<&Value>, new: Option<&Value>, out: &mut Vec<Change>) {
        match (old.and_then(Value::as_object), new.and_then(Value::as_object)) {
            (Some(a), Some(b)) => {
                let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
                keys.sort();
                keys.dedup();
                for key in keys {
                    let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                    walk(&at, a.get(key), b.get(key), out);
                }
            }
            _ if old != new => {
                out.push(Change { key: path.to_owned(), old: old.cloned(), new: new.cloned() });
            }
            _ => {}
        }
    }
    let mut out = Vec::new();
    walk("", Some(old), Some(new), &mut out);
    out
}

/// Makes changes in a tree of settings.
pub(crate) fn apply<'a>(tree: &mut Value, changes: impl IntoIterator<Item = &'a Change>) {
    for change in changes {
        let mut at = &mut *tree;
        let mut path: Vec<&str> = change.key.split('.').collect();
        let Some(last) = path.pop() else { continue };
        for key in path {
            if !at.is_object() {
                *at = Value::Object(Map::new());
            }
            at = &mut at[key];
        }
        if !at.is_object() {
            *at = Value::Object(Map::new());
        }
        if let Some(map) = at.as_object_mut() {
            match &change.new {
                Some(value) => map.insert(last.to_owned(), value.clone()),
                None => map.shift_remove(last),
            };
        }
    }
}

/// What `run.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// One entry per command that worked on this folder.
    pub history: Vec<Provenance>,
    /// Hash of the text (sources, split, sampling).
    pub corpus_hash: String,
    /// Hash of the tokenizer.
    pub tokenizer_hash: String,
    /// V.
    pub vocab_size: usize,
    /// What the text is, for people.
    pub corpus: String,
    /// Operating system and processor architecture.
    pub platform: String,
    /// Threads at work.
    pub threads: usize,
    /// Hash of another run's autoencoder, if stage 1 was taken from there.
    #[serde(default)]
    pub imported_autoencoder: Option<String>,
    /// How the order of rows is found: 1 by sections. Absent where an earlier version trained, which packed a text as a
    /// whole; of a text of one section both are the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row_order: Option<u32>,
}

impl RunRecord {
    /// All changes, in order.
    pub fn changes(&self) -> impl Iterator<Item = &Change> {
        self.history.iter().flat_map(|entry| &entry.changes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn changes_lead_from_one_tree_to_the_other_and_come_back_from_a_file() {
        let old =
            json!({"a": {"b": 1, "c": {"cosine": {"floor": 0.1}}}, "d": null, "e": "constant", "g": [1]});
        let new =
            json!({"a": {"b": 2, "c": {"decay": {"share": 0.2}}}, "d": 3, "e": {"cosine": {}}, "g": null});
        let changes = differences(&old, &new);
        let shown: Vec<String> = changes.iter().map(Change::to_string).collect();
        assert_eq!(shown[0], "a.b: 1 -> 2");
        assert_eq!(shown[1], r#"a.c.cosine: {"floor":0.1} -> -"#);
        let text = serde_json::to_string(&changes).unwrap();
        let read: Vec<Change> = serde_json::from_str(&text).unwrap();
        assert_eq!(read, changes);
        let mut tree = old.clone();
        apply(&mut tree, &read);
        assert_eq!(tree, new);
        assert!(differences(&new, &new).is_empty());
    }
}
