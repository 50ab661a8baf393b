//! What the configuration of a run of an earlier version means where it says less than one of now.
//!
//! Before `hub.config` there was, a data set of a hub without `files` was read as all of its files, whatever its page says of
//! them. Now the page is asked. A run that began so goes on with all files: its `config.yaml` is read as if it said
//! `files: ["**"]`, and so is the same source in a configuration that it is resumed with.

use calm_config::{ConfigText, Resolved, load};
use serde_json::{Map, Value};

use crate::config::RunConfig;
use crate::error::Result;

/// Settings to add to a run's own `config.yaml`, as `--set` takes them; none of one that this version wrote.
pub(crate) fn settings(text: &ConfigText) -> Vec<String> {
    // What is no YAML is told by who loads it.
    let tree = serde_yaml::from_str::<Value>(&text.text).unwrap_or_default();
    settings_of(&tree)
}

/// The same of its tree, as it stands in the file or as a record changed it.
pub(crate) fn settings_of(tree: &Value) -> Vec<String> {
    all_files(tree, |hub| !hub.contains_key("config"))
}

/// Another configuration for the same run: where it has these sources too and says no more of them, they mean the same.
///
/// # Errors
/// As [`load`].
pub(crate) fn applied(settings: &[String], asked: &Resolved<RunConfig>) -> Result<Resolved<RunConfig>> {
    let same = all_files(&asked.tree, |hub| hub.get("config").is_none_or(Value::is_null));
    let same: Vec<String> = settings.iter().filter(|setting| same.contains(setting)).cloned().collect();
    if same.is_empty() {
        return Ok(asked.clone());
    }
    let text = ConfigText { name: asked.name.clone(), path: asked.path.clone(), text: asked.to_yaml() };
    Ok(Resolved { overrides: asked.overrides.clone(), ..load(text, &same)? })
}

/// A setting for each source of a hub that names no files and of which `silent` holds.
fn all_files(tree: &Value, silent: impl Fn(&Map<String, Value>) -> bool) -> Vec<String> {
    let Some(source) = tree.pointer("/data/source") else { return Vec::new() };
    let mixed = source.get("mix").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let alone = ("data.source".to_owned(), source);
    let of_mix = mixed
        .iter()
        .enumerate()
        .filter_map(|(n, part)| Some((format!("data.source.mix[{n}].source"), part.get("source")?)));
    let names_none = |hub: &Map<String, Value>| {
        hub.get("files").and_then(Value::as_array).is_none_or(Vec::is_empty) && silent(hub)
    };
    std::iter::once(alone)
        .chain(of_mix)
        .filter(|(_, source)| source.get("hub").and_then(Value::as_object).is_some_and(names_none))
        .map(|(at, _)| format!("{at}.hub.files=[\"**\"]"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Change;
    use crate::run::after;

    const MODEL: &str = "model: {baseline: {backbone: {hidden_size: 8, layers: 1, heads: 1}}}\n\
        train: {lm: {steps: 1, batch_rows: 1, context: 8, learning_rate: 0.1}}\n";

    fn text(source: &str) -> ConfigText {
        ConfigText::new("x", format!("version: 1\ndata:\n  source: {source}\n{MODEL}"))
    }

    #[test]
    fn a_data_set_that_an_earlier_version_read_whole_is_read_whole() {
        let of = |source: &str| settings(&text(source));
        assert_eq!(of("{hub: {dataset: a/b, files: []}}"), ["data.source.hub.files=[\"**\"]"]);
        assert_eq!(
            of("{mix: [{source: {path: x}}, {source: {hub: {dataset: a/b, split: train}}}]}"),
            ["data.source.mix[1].source.hub.files=[\"**\"]"]
        );
        // What is found can be set.
        let mix = text("{mix: [{source: {path: x}}, {source: {hub: {dataset: a/b, split: train}}}]}");
        let read = load::<RunConfig>(mix.clone(), &settings(&mix)).unwrap();
        let files = read.tree.pointer("/data/source/mix/1/source/hub/files");
        assert_eq!(files, Some(&serde_json::json!(["**"])));
        for now in ["{hub: {dataset: a/b, config: null}}", "{hub: {dataset: a/b, files: [x]}}", "{path: x}"] {
            assert!(of(now).is_empty(), "{now}");
        }
        assert!(settings(&ConfigText::new("x", ": [")).is_empty());
    }

    #[test]
    fn a_data_set_that_an_earlier_version_moved_to_is_read_whole() {
        let began = || load::<RunConfig>(text("{path: x}"), &[]).unwrap();
        let moved = |hub: Value| {
            let change =
                |key: &str, old: Option<Value>, new: Option<Value>| Change { key: key.into(), old, new };
            let changes = [
                change("data.source.hub", None, Some(hub)),
                change("data.source.path", Some(serde_json::json!("x")), None),
            ];
            after(began(), changes.iter()).unwrap()
        };
        let files = |read: &Resolved<RunConfig>| read.tree.pointer("/data/source/hub/files").cloned();
        let earlier = moved(serde_json::json!({"dataset": "a/b", "files": []}));
        assert_eq!(files(&earlier), Some(serde_json::json!(["**"])));
        // A resume with the same source changes nothing.
        let asked = load::<RunConfig>(text("{hub: {dataset: a/b}}"), &[]).unwrap();
        assert_eq!(applied(&earlier.overrides, &asked).unwrap().tree, earlier.tree);
        let now = moved(serde_json::json!({"dataset": "a/b", "files": [], "config": null}));
        assert_eq!(files(&now), Some(serde_json::json!([])));
    }

    #[test]
    fn the_same_source_in_another_configuration_means_the_same_and_another_one_does_not() {
        let earlier = settings(&text("{hub: {dataset: a/b}}"));
        let asked = |source: &str| load::<RunConfig>(text(source), &[]).unwrap();
        let files = |source: &str| {
            let applied = applied(&earlier, &asked(source)).unwrap();
            applied.tree.pointer("/data/source/hub/files").cloned()
        };
        assert_eq!(files("{hub: {dataset: a/b}}"), Some(serde_json::json!(["**"])));
        assert_eq!(files("{hub: {dataset: a/b, config: en}}"), Some(serde_json::json!([])));
        assert_eq!(files("{hub: {dataset: a/b, files: [x]}}"), Some(serde_json::json!(["x"])));
        assert_eq!(files("{path: x}"), None);
        assert_eq!(
            applied(&[], &asked("{hub: {dataset: a/b}}")).unwrap().tree,
            asked("{hub: {dataset: a/b}}").tree
        );
    }
}
