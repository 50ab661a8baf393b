//! Checkpoints of one stage: folders `step-N/` with model, optimiser and state, there whole or not at all. Two are
//! kept: the latest and the best, or the one before if these are one. The state holds length and hash of the other
//! files; what is read is compared with them.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use calm_files::Sum;
use calm_nn::finite::non_finite;
use calm_nn::{AdamW, ParamStore, parse_some, parse_weights, write_weights};
use candle_core::{Device, Tensor};
use serde::{Deserialize, Serialize};

pub use crate::checked::{file_hash, read_json, write_json, write_plain_json, write_text};
use crate::divergence::Trend;
use crate::error::{Error, Result};

mod settle;

/// What a stage remembers besides tensors. All noise and all batches are functions of the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageState {
    /// Steps done.
    pub step: u64,
    /// Whether the stage reached its last step; at step 0: trained elsewhere and imported.
    pub finished: bool,
    /// Tokens seen.
    pub tokens: u64,
    /// What a model chose of them, such as tokens at which a concept begins: tokens / units is the ratio that was realised.
    #[serde(default, skip_serializing_if = "is_none")]
    pub units: u64,
    /// Seconds of training so far (scoring left out).
    pub seconds: f64,
    /// The best validation so far.
    pub best: Option<Best>,
    /// Whether a validation was due after this step when the stage was stopped; it is made up for first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub validation_due: bool,
    /// Batches that are left out, after a spike.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped: Vec<Skipped>,
    /// Steps whose update was left out.
    #[serde(default, skip_serializing_if = "is_none")]
    pub left_out: u64,
    /// Where loss and gradient norm were going.
    #[serde(default)]
    pub trend: Trend,
    /// What was read; absent where an earlier version began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<Rows>,
    /// The checkpoint before, kept until a step from this one has been seen.
    #[serde(skip)]
    pub keep: Option<u64>,
}

fn is_none(count: &u64) -> bool {
    *count == 0
}

impl StageState {
    /// Place of the next step's batch in the sequence of all batches: the step itself, beyond what was left out.
    pub fn batch(&self) -> u64 {
        self.step + self.skipped.iter().filter(|s| s.after <= self.step).map(|s| s.batches).sum::<u64>()
    }

    /// Place of the last step's batch; none before the first step.
    pub fn last_batch(&self) -> Option<u64> {
        let step = self.step.checked_sub(1)?;
        Some(step + self.skipped.iter().filter(|s| s.after <= step).map(|s| s.batches).sum::<u64>())
    }
}

/// Proof of what was read: a resume compares the rows of the last step, two runs all of them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rows {
    /// Hash of the rows of the last step.
    pub last: String,
    /// Hash of this and all before it.
    pub all: String,
    /// Rows of a step, and chunk positions of a row: with others its rows are others.
    pub size: (usize, usize),
}

impl Rows {
    /// After a step of so many rows and chunk positions, whose rows have this hash.
    pub fn after(before: Option<Self>, last: &str, size: (usize, usize)) -> Self {
        let chain = before.map(|rows| rows.all).unwrap_or_default() + last;
        let all = blake3::hash(chain.as_bytes()).to_hex()[..32].to_owned();
        Self { last: last.to_owned(), all, size }
    }
}

/// Batches that are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Skipped {
    /// After so many steps.
    pub after: u64,
    /// So many batches.
    pub batches: u64,
}

/// The best validation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// Steps done then.
    pub step: u64,
    /// Validation loss then (lower is better).
    pub loss: f64,
}

/// Which checkpoint of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// The one with the lowest validation loss.
    #[default]
    Best,
    /// The last one.
    Latest,
}

/// The checkpoints of one stage of a run.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    folder: PathBuf,
    read_only: bool,
}

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

/// What to do about a checkpoint that is damaged.
const DAMAGED: &str = "take another one with --checkpoint, latest or best; the run's own command with --resume goes back \
                       to the checkpoint before it";

/// What `state.json` holds.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    #[serde(flatten)]
    state: StageState,
    /// The other files of the checkpoint, by name; empty in checkpoints of version 0.1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    files: BTreeMap<String, Sum>,
}

/// The weights of a checkpoint as they lie in their file, which is the one that was written.
#[derive(Debug)]
pub struct SavedWeights {
    path: PathBuf,
    bytes: Vec<u8>,
    /// BLAKE3 of the file.
    pub hash: String,
}

impl SavedWeights {
    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says about itself.
    ///
    /// # Errors
    /// It is no weights file.
    pub fn metadata(&self) -> Result<BTreeMap<String, String>> {
        Ok(parse_weights(&self.path, &self.bytes, &Device::Cpu)?.1)
    }

    /// Puts the weights into a store; every mismatch is reported at once.
    ///
    /// # Errors
    /// They do not fit the model.
    pub fn load(&self, store: &ParamStore) -> Result<()> {
        fill(store, &self.path, &self.bytes)
    }
}

impl Checkpoints {
    /// Checkpoints in `folder`, which need not exist yet.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), read_only: false }
    }

    /// The same, for a process that leaves writing to another one: to save, to clear and to discard do nothing.
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { read_only: true, ..self }
    }

    /// Steps for which a whole checkpoint is there, ascending.
    pub fn steps(&self) -> Vec<u64> {
        self.listed().unwrap_or_default()
    }

    /// As [`Checkpoints::steps`], for those who would begin anew where nothing is there.
    ///
    /// # Errors
    /// The file system does not answer: that is not the same as nothing.
    pub fn listed(&self) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        for path in self.entries().map_err(|e| Error::io("read", &self.folder, e))? {
            // Under its old name if a process ended while it was being replaced.
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let step = name.strip_prefix("step-").map(|name| name.trim_end_matches(".replaced").parse());
            if let Some(Ok(step)) = step {
                let state = self.path(step).join(STATE);
                if state.try_exists().map_err(|e| Error::io("read", &state, e))? {
                    steps.push(step);
                }
            }
        }
        steps.sort_unstable();
        steps.dedup();
        Ok(steps)
    }

    /// What lies in the folder, which need not be there.
    fn entries(&self) -> std::io::Result<Vec<PathBuf>> {
        match fs::read_dir(&self.folder) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
            entries => entries?.map(|entry| Ok(entry?.path())).collect(),
        }
    }

    /// The folder of one step.
    pub fn path(&self, step: u64) -> PathBuf {
        calm_files::whole_folder(&self.folder.join(format!("step-{step}")))
    }

    /// State of the latest checkpoint.
    ///
    /// # Errors
    /// Its state is damaged, or nobody can say which it is.
    pub fn latest(&self) -> Result<Option<StageState>> {
        self.listed()?.last().map(|step| self.state(*step)).transpose()
    }

    /// State of the latest checkpoint whose state can be read: what a damaged one falls back to.
    ///
    /// # Errors
    /// As [`Checkpoints::listed`].
    pub fn latest_readable(&self) -> Result<Option<StageState>> {
        Ok(self.listed()?.iter().rev().find_map(|step| self.state(*step).ok()))
    }

    /// State of one checkpoint.
    ///
    /// # Errors
    /// It is not there, or damaged.
    pub fn state(&self, step: u64) -> Result<StageState> {
        Ok(self.saved(step)?.state)
    }

    fn saved(&self, step: u64) -> Result<Saved> {
        let path = self.path(step).join(STATE);
        let saved: Saved =
            read_json(&path, DAMAGED)?.ok_or_else(|| Error::io("read", &path, ErrorKind::NotFound.into()))?;
        if saved.state.step != step {
            let what = format!("{} is damaged: it is of step {}", path.display(), saved.state.step);
            return Err(Error::user(what, DAMAGED));
        }
        Ok(saved)
    }

    /// The step to load for evaluation.
    ///
    /// # Errors
    /// There is no checkpoint, or the best one is gone.
    pub fn step(&self, which: Which) -> Result<u64> {
        let Some(latest) = self.latest()? else {
            return Err(Error::user(
                format!("{} holds no checkpoint", self.folder.display()),
                "train the run first, or name another one with --run",
            ));
        };
        match (which, latest.best) {
            (Which::Best, Some(best)) if !self.path(best.step).join(STATE).is_file() => Err(Error::user(
                format!("{}, the best checkpoint, is gone", self.path(best.step).display()),
                "put it back, or take the latest with --checkpoint latest where the command has that option",
            )),
            (Which::Best, Some(best)) => Ok(best.step),
            _ => Ok(latest.step),
        }
    }

    /// Weights file of one step.
    pub fn model_path(&self, step: u64) -> PathBuf {
        self.path(step).join(MODEL)
    }

    /// BLAKE3 of the weights file of one step, as it was written.
    ///
    /// # Errors
    /// The state is damaged; the file of an old checkpoint, which has no hashes, cannot be read.
    pub fn model_hash(&self, step: u64) -> Result<String> {
        match self.saved(step)?.files.remove(MODEL) {
            Some(sum) => Ok(sum.blake3),
            None => file_hash(&self.model_path(step)),
        }
    }

    /// Reads a file of a checkpoint, which must be the one that was written.
    fn read(&self, step: u64, name: &str) -> Result<Vec<u8>> {
        let saved = self.saved(step)?;
        let path = self.path(step).join(name);
        let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
        match saved.files.get(name).and_then(|sum| sum.differs(&bytes)) {
            Some(why) => Err(Error::user(format!("{} is damaged: {why}", path.display()), DAMAGED)),
            None => Ok(bytes),
        }
    }

    /// Reads the weights of one step.
    ///
    /// # Errors
    /// They are not there, or damaged.
    pub fn read_model(&self, step: u64) -> Result<SavedWeights> {
        let bytes = self.read(step, MODEL)?;
        Ok(SavedWeights { path: self.model_path(step), hash: Sum::of(&bytes).blake3, bytes })
    }

    /// Loads the weights of one step; every mismatch is reported at once.
    ///
    /// # Errors
    /// They are not there, damaged, or do not fit the model.
    pub fn load_model(&self, step: u64, store: &ParamStore) -> Result<()> {
        fill(store, &self.model_path(step), &self.read(step, MODEL)?)
    }

    /// Loads the optimiser's state of one step, of its own part. Imported weights (step 0) have none: the optimiser stays new.
    ///
    /// # Errors
    /// It is not there, damaged, or does not fit the model.
    pub fn load_optimizer(&self, step: u64, store: &ParamStore, optimizer: &mut AdamW) -> Result<()> {
        let path = self.path(step).join(OPTIMIZER);
        if step == 0 && !path.exists() {
            return Ok(());
        }
        let wanted = optimizer.state_names(store);
        let bytes = self.read(step, OPTIMIZER)?;
        let (tensors, _) = parse_some(&path, &bytes, &Device::Cpu, |name| wanted.contains(name))?;
        Ok(optimizer.restore(store, &tensors, step as u32)?)
    }

    /// Writes a checkpoint and removes what is needed no more. The state of an existing step is replaced.
    ///
    /// # Errors
    /// It cannot be written; then the checkpoints before are there as they were.
    pub fn save(
        &self,
        state: &StageState,
        store: &ParamStore,
        optimizer: &AdamW,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        self.save_with(state, store, || Ok(optimizer.state(store)?), metadata)
    }

    /// As [`Checkpoints::save`], with what `moments` gives as the optimiser's state; a process that writes nothing does not
    /// ask for it.
    ///
    /// # Errors
    /// As [`Checkpoints::save`]; those of `moments`.
    pub fn save_with(
        &self,
        state: &StageState,
        store: &ParamStore,
        moments: impl FnOnce() -> Result<BTreeMap<String, Tensor>>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        self.write(state, |folder| {
            // One after the other: what is copied for the first is gone before the second.
            let model = write_weights(&folder.join(MODEL), &store.snapshot()?, metadata)?;
            let optimizer = write_weights(&folder.join(OPTIMIZER), &moments()?, metadata)?;
            Ok([(MODEL, model), (OPTIMIZER, optimizer)])
        })
    }

    /// Writes weights that were trained elsewhere: a finished stage at step 0, without optimiser state.
    ///
    /// # Errors
    /// They cannot be written.
    pub fn save_imported(&self, store: &ParamStore, metadata: &BTreeMap<String, String>) -> Result<()> {
        self.write(&StageState { finished: true, ..StageState::default() }, |folder| {
            Ok([(MODEL, write_weights(&folder.join(MODEL), &store.snapshot()?, metadata)?)])
        })
    }

    /// As [`Checkpoints::save_imported`], from another stage's checkpoint, byte for byte: its hash stays.
    ///
    /// # Errors
    /// The weights there are damaged, or cannot be written here.
    pub fn copy_imported(&self, from: &Self, step: u64) -> Result<()> {
        let weights = from.read_model(step)?;
        self.write(&StageState { finished: true, ..StageState::default() }, |folder| {
            let target = folder.join(MODEL);
            let sum = calm_files::write_bytes(&target, &weights.bytes);
            Ok([(MODEL, sum.map_err(|e| Error::io("write", &target, e))?)])
        })
    }

    /// `fill` writes the weights into the folder it is given.
    fn write<const N: usize>(
        &self,
        state: &StageState,
        fill: impl FnOnce(&Path) -> Result<[(&'static str, Sum); N]>,
    ) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let whole = self.folder.join(format!("step-{}", state.step));
        calm_files::write_folder(
            &whole,
            |e| Error::io("write", &whole, e),
            |partial| {
                let files = fill(partial)?.map(|(name, sum)| (name.to_owned(), sum)).into();
                write_json(&partial.join(STATE), &Saved { state: state.clone(), files })
            },
        )?;
        // What is left over may be removed with the next one as well.
        let _ = self.clear(state);
        let _ = self.sweep(Some(state.step));
        Ok(())
    }

    /// Removes what is needed no more before this state's checkpoint: all but the best, the one that the state keeps,
    /// and the one before if there is neither.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn clear(&self, state: &StageState) -> std::io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        let before: Vec<u64> = self.steps().into_iter().filter(|step| *step < state.step).collect();
        let best = state.best.map(|best| best.step).filter(|best| before.contains(best));
        let second = best.or_else(|| before.last().copied());
        for step in before {
            if Some(step) != second && Some(step) != state.keep {
                calm_files::remove(&self.path(step))?;
            }
        }
        Ok(())
    }

    /// Removes a checkpoint from which nothing can go on.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard(&self, step: u64) -> Result<()> {
        if self.read_only {
            return Ok(());
        }
        let path = self.path(step);
        calm_files::remove(&path).map_err(|e| Error::io("remove", &path, e))
    }

    /// Reads a checkpoint with `read`, which is given its step. Where it was replaced in the meantime by a training
    /// that goes on, the one that is there now is read.
    ///
    /// # Errors
    /// As [`Checkpoints::step`] and `read`.
    pub fn reading<T>(&self, which: Which, mut read: impl FnMut(u64) -> Result<T>) -> Result<T> {
        let mut left = 5;
        loop {
            let step = self.step(which)?;
            match read(step) {
                Err(_) if left > 0 && !self.path(step).join(STATE).is_file() => left -= 1,
                result => return result,
            }
        }
    }
}

/// Puts the weights of a file into a store; every mismatch is reported at once.
fn fill(store: &ParamStore, path: &Path, bytes: &[u8]) -> Result<()> {
    let (tensors, _) = parse_weights(path, bytes, store.device())?;
    if let Some(name) = non_finite(tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)))? {
        return Err(Error::user(
            format!(
                "{} holds numbers that are not finite (in {name}): its training diverged",
                path.display()
            ),
            "take another checkpoint or another run; trained anew, a lower learning rate helps",
        ));
    }
    let report = store.load(&tensors)?;
    if report.is_clean() {
        return Ok(());
    }
    Err(Error::user(
        format!("{} does not fit the configuration:\n{report}", path.display()),
        "use the configuration that this checkpoint was trained with (config.yaml of its run)",
    ))
}

#[cfg(test)]
mod tests;
