//! Settings of runs beside each other: which differ, and which decide an autoencoder.

use std::collections::{BTreeMap, BTreeSet};

use calm_run::config::RunConfig;
use serde_json::{Value, json};

/// What decides how an autoencoder comes out.
pub fn autoencoder_key(config: &RunConfig) -> Value {
    json!({
        "seed": config.seed,
        "precision": config.precision,
        "data": config.data,
        "tokenizer": config.tokenizer,
        "vocabulary": config.vocabulary,
        "chunk_size": config.chunk_size(),
        "autoencoder": config.model.autoencoder(),
        "train": config.train.autoencoder,
    })
}

/// Per tree, the settings whose values are not the same in all (`-` where a tree has no such setting). Seeds,
/// descriptions and how a run is watched are left out.
pub fn differing_settings(trees: &[&Value]) -> Vec<Vec<(String, String)>> {
    let flat: Vec<BTreeMap<String, String>> = trees
        .iter()
        .map(|tree| {
            let mut out = BTreeMap::new();
            flatten("", tree, &mut out);
            out
        })
        .collect();
    let keys: BTreeSet<&String> = flat.iter().flat_map(|f| f.keys()).collect();
    let hidden = |key: &str| {
        key == "seed"
            || key == "description"
            || key.starts_with("eval.")
            || key.ends_with(".eval_every")
            || key.ends_with(".checkpoint_every")
    };
    let shown: Vec<&String> = keys
        .into_iter()
        .filter(|k| !hidden(k) && flat.iter().any(|f| f.get(*k) != flat[0].get(*k)))
        .collect();
    flat.iter()
        .map(|f| {
            let value = |k: &String| f.get(k).cloned().unwrap_or_else(|| "-".to_owned());
            shown.iter().map(|k| ((*k).clone(), value(k))).collect()
        })
        .collect()
}

/// Leaves by path; the model's family is no part of it, so that the backbones of two families meet.
fn flatten(path: &str, value: &Value, out: &mut BTreeMap<String, String>) {
    let Some(map) = value.as_object().filter(|m| !m.is_empty()) else {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        out.insert(path.to_owned(), text);
        return;
    };
    for (key, child) in map {
        let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        // `model: { FAMILY: settings }`.
        let family = child.as_object().filter(|_| at == "model").and_then(|m| m.values().next());
        flatten(&at, family.unwrap_or(child), out);
    }
}
