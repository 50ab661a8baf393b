//! A run is a record: one folder with everything that explains and reproduces it.
//!
//! ```text
//! runs/NAME/
//!   config.yaml        resolved configuration, written before the first step
//!   run.json           command, version, commit, hashes of data and tokenizer
//!   tokenizer.json
//!   metrics.jsonl      one line a logged step or validation
//!   metrics.sum        its length and hash at the last checkpoint
//!   tensorboard/       the same for TensorBoard
//!   autoencoder/step-N/{model,optimizer}.safetensors, state.json     stage 1
//!   lm/step-N/...                                                    stage 2, or the baseline
//!   reference.json     an imported model's own config.json and number formats
//!   results.json       scores on the held-out documents
//! ```

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calm_config::{Resolved, load};
use calm_data::{Layout, Tokenizer};
use serde::{Deserialize, Serialize};

use crate::checked::{file_hash, read_config, read_json, write_config, write_json};
use crate::checkpoint::{Checkpoints, Which};
use crate::config::RunConfig;
use crate::error::{Error, Result};
use crate::metrics::SUM;
use crate::stage::Stage;

/// File of a run that says what an imported model was; `calm export` writes it back.
pub const ORIGIN: &str = "reference.json";

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
    /// Why it ended, if not by finishing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// What `run.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// One entry per `calm train` that worked on this folder.
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
}

/// A run's folder with its configuration.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where it lies.
    pub folder: PathBuf,
    /// The resolved configuration.
    pub config: RunConfig,
}

impl Run {
    /// Opens an existing run.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.yaml");
        if !path.is_file() {
            return Err(Error::user(
                format!("{} is not a run: it has no config.yaml", folder.display()),
                "name the folder of a run with --run (runs/NAME), or train one first",
            ));
        }
        let resolved: Resolved<RunConfig> = load(read_config(&path)?, &[])?;
        Ok(Self { folder: folder.to_owned(), config: resolved.value })
    }

    /// The run in `root` that was worked on last.
    pub fn latest(root: &Path) -> Result<Self> {
        let newest = fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| {
                let record = e.path().join("run.json");
                Some((fs::metadata(record).ok()?.modified().ok()?, e.path()))
            })
            .max();
        match newest {
            Some((_, folder)) => Self::open(&folder),
            None => Err(Error::user(
                format!("there is no run in {}", root.display()),
                "train one (calm train --config quickstart), or name a run's folder with --run",
            )),
        }
    }

    /// Creates the folder, or opens it if it holds the same run. A run that continues may change how it
    /// trains and scores, never what is trained. An imported model has seen no text yet: it may choose its own.
    pub fn create(folder: &Path, resolved: &Resolved<RunConfig>, begin: Begin) -> Result<Self> {
        let resume = begin == Begin::Resume;
        let whole = begin == Begin::Restart(None);
        let config = &resolved.value;
        let path = folder.join("config.yaml");
        // Before the data were ready nothing has come of a run: a wrong path may be put right.
        let begun = folder.join("run.json").is_file() || has_weights(folder);
        if path.is_file() && begun && !whole {
            let old: Resolved<RunConfig> = load(read_config(&path)?, &[])?;
            let opened = Self { folder: folder.to_owned(), config: old.value };
            let unseen = opened.record()?.is_some_and(|r| r.corpus_hash.is_empty());
            let mut differences = differences(&old.tree, &resolved.tree, resume);
            // A stage that is begun anew may be another one.
            differences.retain(|d| !restarted_setting(d.trim_start(), begin));
            differences.retain(|d| !(unseen && resume && d.trim_start().starts_with("data.")));
            if !differences.is_empty() {
                return Err(Error::user(
                    format!(
                        "{} holds a run with another configuration:\n{}",
                        folder.display(),
                        differences.join("\n")
                    ),
                    if resume {
                        "data, tokenizer, model, seed and precision of a run cannot change; give this one its \
                         own folder with --out"
                    } else {
                        "--out FOLDER keeps both; --resume goes on with changed `train` and `eval` settings; \
                         --restart throws the old run away"
                    },
                ));
            }
        }
        // Only of a run: another folder's contents are not ours to throw away.
        if let Begin::Restart(stage) = begin
            && path.is_file()
        {
            // A language model is nothing without its autoencoder.
            let parts: &[&str] = match stage {
                None => {
                    const METRICS: &str = "metrics.jsonl";
                    &["autoencoder", "lm", "tensorboard", SUM, METRICS, "results.json", "run.json", ORIGIN]
                }
                Some(Stage::Autoencoder) => {
                    &["autoencoder", "lm", "tensorboard/autoencoder", "tensorboard/lm", "results.json"]
                }
                Some(Stage::Lm) => &["lm", "tensorboard/lm", "results.json"],
            };
            for part in parts {
                let path = folder.join(part);
                calm_files::remove(&path).map_err(|e| Error::io("remove", &path, e))?;
            }
        }
        write_config(&path, &resolved.to_yaml())?;
        Ok(Self { folder: folder.to_owned(), config: config.clone() })
    }

    /// Checkpoints of a stage.
    pub fn checkpoints(&self, stage: Stage) -> Checkpoints {
        Checkpoints::new(&self.folder.join(stage.name()))
    }

    /// The record, if one was written.
    pub fn record(&self) -> Result<Option<RunRecord>> {
        let path = self.folder.join("run.json");
        read_json(&path, "delete it; it is written anew by --resume")
    }

    /// Writes the record.
    pub fn write_record(&self, record: &RunRecord) -> Result<()> {
        write_json(&self.folder.join("run.json"), record)
    }

    /// Notes in the record why the run ended early. What cannot be noted is lost: the error itself matters more.
    pub fn note_failure(&self, error: &Error) {
        if let Ok(Some(mut record)) = self.record()
            && let Some(last) = record.history.last_mut()
        {
            last.failure = Some(error.to_string());
            let _ = self.write_record(&record);
        }
    }

    /// The run's own tokenizer, with its vocabulary.
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let path = self.folder.join("tokenizer.json");
        let trained_with = self.record()?.map(|r| r.tokenizer_hash).filter(|h| !h.is_empty());
        // The hash of a tokenizer is that of its file; a damaged one is not even parsed.
        if path.is_file() && trained_with.is_some() && trained_with != Some(file_hash(&path)?) {
            return Err(Error::user(
                format!("{} is not the tokenizer that this run was trained with", path.display()),
                "restore the file; the run's own command with --resume writes it again",
            ));
        }
        Ok(self.config.fit(Tokenizer::load(&path)?)?)
    }

    /// Layout of the language model's rows.
    pub fn lm_layout(&self) -> Layout {
        Layout {
            chunk_size: self.config.chunk_size(),
            context: self.config.train.lm.context,
            bos_chunk: self.config.bos_chunk,
        }
    }

    /// Layout of the autoencoder's rows.
    pub fn autoencoder_layout(&self) -> Layout {
        let context =
            self.config.train.autoencoder.as_ref().map_or(self.config.train.lm.context, |s| s.context);
        Layout { chunk_size: self.config.chunk_size(), context, bos_chunk: false }
    }

    /// Hash of the autoencoder's weights file.
    pub fn autoencoder_hash(&self) -> Result<String> {
        let autoencoder = self.checkpoints(Stage::Autoencoder);
        autoencoder.model_hash(autoencoder.step(Which::Best)?)
    }

    /// Whether the latest language model was trained on the autoencoder that is there now (true without a
    /// language model).
    pub fn fits_autoencoder(&self) -> Result<bool> {
        let lm = self.checkpoints(Stage::Lm);
        let Some(state) = lm.latest()? else { return Ok(true) };
        let hash = self.autoencoder_hash()?;
        let metadata = lm.read_model(state.step)?.metadata()?;
        Ok(metadata.get("autoencoder").is_none_or(|h| *h == hash))
    }

    /// What every weights file of this run says about itself.
    pub fn metadata(&self, stage: Stage, record: &RunRecord) -> BTreeMap<String, String> {
        BTreeMap::from([
            ("stage".to_owned(), stage.name().to_owned()),
            ("corpus".to_owned(), record.corpus_hash.clone()),
            ("tokenizer".to_owned(), record.tokenizer_hash.clone()),
        ])
    }
}

/// Whether there are weights of any stage.
fn has_weights(folder: &Path) -> bool {
    Stage::ALL.iter().any(|stage| !Checkpoints::new(&folder.join(stage.name())).steps().is_empty())
}

/// How `calm train` begins with a folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// A new run, or the same one again: what is finished is kept.
    New,
    /// Go on with what is unfinished.
    Resume,
    /// Throw a stage away and train it anew; without a name, all.
    Restart(Option<Stage>),
}

/// Whether a difference `key: old -> new` belongs to stages that are begun anew. Of a family's settings the chunk size
/// and the autoencoder decide stage 1, the others the language model only, which is nothing without its autoencoder.
fn restarted_setting(difference: &str, begin: Begin) -> bool {
    let Begin::Restart(restarted) = begin else { return false };
    // The key alone: values have dots of their own. Another family (`model.NAME` as a whole) is another run.
    let key = difference.split_once(": ").map_or(difference, |(key, _)| key);
    let stage = match key.strip_prefix("model.").and_then(|rest| rest.split_once('.')) {
        Some((_, key)) if key == "chunk_size" || key.starts_with("autoencoder.") => Some(Stage::Autoencoder),
        Some(_) => Some(Stage::Lm),
        None => Stage::ALL.into_iter().find(|stage| key.starts_with(&format!("train.{stage}."))),
    };
    match restarted {
        None => true,
        Some(Stage::Lm) => stage == Some(Stage::Lm),
        Some(Stage::Autoencoder) => stage.is_some(),
    }
}

/// Settings that differ, as `key: old -> new`. With `resume`, `train`, `eval` and `description` may.
fn differences(old: &serde_json::Value, new: &serde_json::Value, resume: bool) -> Vec<String> {
    fn walk(path: &str, old: &serde_json::Value, new: &serde_json::Value, out: &mut Vec<String>) {
        if let (Some(a), Some(b)) = (old.as_object(), new.as_object()) {
            let mut keys: Vec<&String> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            for key in keys {
                let null = serde_json::Value::Null;
                let at = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                walk(&at, a.get(key).unwrap_or(&null), b.get(key).unwrap_or(&null), out);
            }
        } else if old != new {
            out.push(format!("  {path}: {old} -> {new}"));
        }
    }
    let mut out = Vec::new();
    walk("", old, new, &mut out);
    out.retain(|d| {
        let free = |section: &str| d.trim_start().starts_with(section);
        !(free("description") || free("eval.") || (resume && free("train.")))
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_is_begun_anew_may_be_another_one_of_the_same_family() {
        let allowed = |difference: &str| {
            [Some(Stage::Lm), Some(Stage::Autoencoder), None]
                .map(|stage| restarted_setting(difference, Begin::Restart(stage)))
        };
        assert_eq!(allowed("model.calm.backbone.init: 0.02 -> 0.1"), [true, true, true]);
        assert_eq!(allowed("train.lm.steps: 5 -> 6"), [true, true, true]);
        assert_eq!(allowed("model.calm.chunk_size: 2 -> 4"), [false, true, true]);
        assert_eq!(allowed("model.calm.autoencoder.hidden_size: 2 -> 4"), [false, true, true]);
        assert_eq!(allowed("train.autoencoder.steps: 5 -> 6"), [false, true, true]);
        assert_eq!(allowed(r#"model.calm: {"kl_weight":0.5} -> null"#), [false, false, true]);
        assert_eq!(allowed("seed: 1 -> 2"), [false, false, true]);
        assert!(!restarted_setting("train.lm.steps: 5 -> 6", Begin::Resume));
    }

    #[test]
    fn a_resumed_run_may_change_how_it_trains_but_not_what() {
        let old = serde_json::json!({"seed": 1, "train": {"lm": {"steps": 5}}, "eval": {"samples": 2}});
        let new = serde_json::json!({"seed": 1, "train": {"lm": {"steps": 9}}, "eval": {"samples": 4}});
        assert!(differences(&old, &new, true).is_empty());
        assert_eq!(differences(&old, &new, false), ["  train.lm.steps: 5 -> 9"]);
        let other = serde_json::json!({"seed": 2, "train": {"lm": {"steps": 5}}, "eval": {"samples": 2}});
        assert_eq!(differences(&old, &other, true), ["  seed: 1 -> 2"]);
    }
}
