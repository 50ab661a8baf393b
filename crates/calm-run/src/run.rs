//! A run is a record: one folder with everything that explains and reproduces it.
//!
//! ```text
//! runs/NAME/
//!   config.yaml        resolved configuration that the run began with, written before the first step
//!   run.json           command, version, commit, hashes of data and tokenizer, settings that were changed later
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

use crate::checked::{file_hash, read_config, read_json, write_json};
use crate::checkpoint::{Checkpoints, Which};
use crate::config::RunConfig;
use crate::earlier;
use crate::error::{Error, Result};
use crate::record::{Change, RunRecord, apply};
use crate::stage::Stage;
use calm_config::{ConfigText, Resolved, load};
use calm_data::{Layout, Tokenizer};

/// File of a run that says what an imported model was; `calm export` writes it back.
pub const ORIGIN: &str = "reference.json";
/// File of a run with the configuration that it began with.
pub const CONFIG: &str = "config.yaml";
/// File of a run that says what it is and who worked on it.
pub const RECORD: &str = "run.json";
/// File of a run with its scores.
pub const RESULTS: &str = "results.json";

/// A run's folder with its configuration.
#[derive(Clone, Debug)]
pub struct Run {
    /// Where it lies.
    pub folder: PathBuf,
    /// The resolved configuration.
    pub config: RunConfig,
}

impl Run {
    /// Opens an existing run, with the configuration in force.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Self { folder: folder.to_owned(), config: Self::resolved(folder)?.value })
    }

    /// The configuration in force of the run in a folder: what it began with, and what was changed since.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn resolved(folder: &Path) -> Result<Resolved<RunConfig>> {
        let path = folder.join(CONFIG);
        if !path.is_file() {
            return Err(Error::user(
                format!("{} is not a run: it has no {CONFIG}", folder.display()),
                "name the folder of a run (runs/NAME), or train one first",
            ));
        }
        let text = read_config(&path)?;
        let earlier = earlier::settings(&text);
        let began: Resolved<RunConfig> = load(text, &earlier)?;
        let record = read_record(folder)?.unwrap_or_default();
        after(began, record.changes())
    }

    /// The run in `root` that was worked on last.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn latest(root: &Path) -> Result<Self> {
        let newest = fs::read_dir(root)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|e| {
                let record = e.path().join(RECORD);
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

    /// Checkpoints of a stage.
    pub fn checkpoints(&self, stage: Stage) -> Checkpoints {
        Checkpoints::new(&self.folder.join(stage.name()))
    }

    /// The record, if one was written.
    ///
    /// # Errors
    /// It is damaged.
    pub fn record(&self) -> Result<Option<RunRecord>> {
        read_record(&self.folder)
    }

    /// Writes the record.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn write_record(&self, record: &RunRecord) -> Result<()> {
        write_json(&self.folder.join(RECORD), record)
    }

    /// Notes in the last entry of the record why its command ended early, by a stop or by a failure. What cannot be
    /// noted is lost: the error itself matters more.
    pub fn note_end(&self, error: &Error) {
        if let Ok(Some(mut record)) = self.record()
            && let Some(last) = record.history.last_mut()
        {
            last.end(error);
            let _ = self.write_record(&record);
        }
    }

    /// The run's own tokenizer, with its vocabulary.
    ///
    /// # Errors
    /// The record is damaged; the tokenizer is missing, damaged, or not the one that the run was trained with.
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
    ///
    /// # Errors
    /// As [`Checkpoints::step`] and [`Checkpoints::model_hash`].
    pub fn autoencoder_hash(&self) -> Result<String> {
        let autoencoder = self.checkpoints(Stage::Autoencoder);
        autoencoder.model_hash(autoencoder.step(Which::Best)?)
    }

    /// Whether the latest language model was trained on the autoencoder that is there now (true without a
    /// language model).
    ///
    /// # Errors
    /// Checkpoints that are missing or damaged.
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

/// The record of the run in a folder.
fn read_record(folder: &Path) -> Result<Option<RunRecord>> {
    read_json(
        &folder.join(RECORD),
        "restore it; without it --resume writes a new one, and settings that were changed on the way must be given again",
    )
}

/// A configuration after changes, those that an earlier version wrote down included.
pub(crate) fn after<'a>(
    began: Resolved<RunConfig>,
    changes: impl Iterator<Item = &'a Change>,
) -> Result<Resolved<RunConfig>> {
    let mut changed = began.tree.clone();
    apply(&mut changed, changes);
    if changed == began.tree {
        return Ok(began);
    }
    let earlier = earlier::settings_of(&changed);
    let now = Resolved { tree: changed, ..began };
    let name = format!("{} as {RECORD} changed it", now.name);
    let text = ConfigText { name, path: now.path.clone(), text: now.to_yaml() };
    let mut now: Resolved<RunConfig> = Resolved { overrides: now.overrides, ..load(text, &earlier)? };
    now.overrides.extend(earlier);
    Ok(now)
}
