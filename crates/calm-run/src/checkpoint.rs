//! Checkpoints of one stage: folders `step-N/` with model, optimiser and state, written aside, flushed and
//! renamed, so that a reader never sees half of one. The latest and the best are kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calm_nn::finite::non_finite;
use calm_nn::{AdamW, ParamStore, read_weights, write_weights};
use candle_core::Device;
use serde::{Deserialize, Serialize};

use crate::divergence::Trend;
use crate::error::{Error, Result};

/// What a stage remembers besides tensors. All noise and all batches are functions of the step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageState {
    /// Steps done.
    pub step: u64,
    /// Whether the stage reached its last step; at step 0: trained elsewhere and imported.
    pub finished: bool,
    /// Tokens seen.
    pub tokens: u64,
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
    /// Where loss and gradient norm were going.
    #[serde(default)]
    pub trend: Trend,
    /// The checkpoint before, kept until a step from this one has been seen.
    #[serde(skip)]
    pub keep: Option<u64>,
}

impl StageState {
    /// Place of the next step's batch in the sequence of all batches: the step itself, beyond what was left out.
    pub fn batch(&self) -> u64 {
        self.step + self.skipped.iter().filter(|s| s.after <= self.step).map(|s| s.batches).sum::<u64>()
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
}

const MODEL: &str = "model.safetensors";
const OPTIMIZER: &str = "optimizer.safetensors";
const STATE: &str = "state.json";

impl Checkpoints {
    /// Checkpoints in `folder`, which need not exist yet.
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Steps for which a whole checkpoint is there, ascending.
    pub fn steps(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let mut steps: Vec<u64> = entries
            .flatten()
            .filter(|e| e.path().join(STATE).is_file())
            .filter_map(|e| e.file_name().to_str()?.strip_prefix("step-")?.parse().ok())
            .collect();
        steps.sort_unstable();
        steps
    }

    /// The folder of one step.
    pub fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step}"))
    }

    /// State of the latest checkpoint.
    pub fn latest(&self) -> Result<Option<StageState>> {
        self.steps().last().map(|step| self.state(*step)).transpose()
    }

    /// State of one checkpoint.
    pub fn state(&self, step: u64) -> Result<StageState> {
        let path = self.path(step).join(STATE);
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        serde_json::from_str(&text).map_err(|e| {
            Error::user(
                format!("{} is damaged: {e}", path.display()),
                "delete this step's folder to go back to an older checkpoint",
            )
        })
    }

    /// The step to load for evaluation.
    pub fn step(&self, which: Which) -> Result<u64> {
        let Some(latest) = self.latest()? else {
            return Err(Error::user(
                format!("{} holds no checkpoint", self.folder.display()),
                "train the run first, or name another one with --run",
            ));
        };
        Ok(match (which, latest.best) {
            (Which::Best, Some(best)) if self.path(best.step).join(STATE).is_file() => best.step,
            _ => latest.step,
        })
    }

    /// Weights file of one step.
    pub fn model_path(&self, step: u64) -> PathBuf {
        self.path(step).join(MODEL)
    }

    /// Loads the weights of one step; every mismatch is reported at once.
    pub fn load_model(&self, step: u64, store: &ParamStore) -> Result<()> {
        load_weights(&self.model_path(step), store)
    }

    /// Loads the optimiser's state of one step. Imported weights (step 0) have none: the optimiser stays new.
    pub fn load_optimizer(&self, step: u64, store: &ParamStore, optimizer: &mut AdamW) -> Result<()> {
        let path = self.path(step).join(OPTIMIZER);
        if step == 0 && !path.exists() {
            return Ok(());
        }
        let (tensors, _) = read_weights(&path, &Device::Cpu)?;
        Ok(optimizer.restore(store, &tensors, step as u32)?)
    }

    /// Writes a checkpoint and removes those that are neither the latest nor the best. The state of an
    /// existing step is replaced.
    pub fn save(
        &self,
        state: &StageState,
        store: &ParamStore,
        optimizer: &AdamW,
        metadata: &BTreeMap<String, String>,
    ) -> Result<()> {
        self.write(state, |folder| {
            write_weights(&folder.join(MODEL), &store.snapshot()?, metadata)?;
            Ok(write_weights(&folder.join(OPTIMIZER), &optimizer.state(store)?, metadata)?)
        })
    }

    /// Writes weights that were trained elsewhere: a finished stage at step 0, without optimiser state.
    pub fn save_imported(&self, store: &ParamStore, metadata: &BTreeMap<String, String>) -> Result<()> {
        self.write(&StageState { finished: true, ..StageState::default() }, |folder| {
            Ok(write_weights(&folder.join(MODEL), &store.snapshot()?, metadata)?)
        })
    }

    /// As [`Checkpoints::save_imported`], from a weights file, byte for byte: its hash stays.
    pub fn copy_imported(&self, weights: &Path) -> Result<()> {
        self.write(&StageState { finished: true, ..StageState::default() }, |folder| {
            let target = folder.join(MODEL);
            fs::copy(weights, &target).map_err(|e| Error::io("write", &target, e))?;
            let file = fs::File::open(&target).and_then(|f| f.sync_all());
            file.map_err(|e| Error::io("write", &target, e))
        })
    }

    /// `fill` writes the weights into the folder it is given.
    fn write(&self, state: &StageState, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        fs::create_dir_all(&self.folder).map_err(|e| Error::io("create", &self.folder, e))?;
        let partial = self.folder.join(format!("step-{}.partial", state.step));
        let _ = fs::remove_dir_all(&partial);
        let whole = self.path(state.step);
        let write = || -> Result<()> {
            fs::create_dir(&partial).map_err(|e| Error::io("create", &partial, e))?;
            fill(&partial)?;
            write_json(&partial.join(STATE), state)?;
            if whole.exists() {
                fs::remove_dir_all(&whole).map_err(|e| Error::io("replace", &whole, e))?;
            }
            fs::rename(&partial, &whole).map_err(|e| Error::io("write", &whole, e))?;
            if let Ok(folder) = fs::File::open(&self.folder) {
                let _ = folder.sync_all();
            }
            Ok(())
        };
        write().inspect_err(|_| {
            let _ = fs::remove_dir_all(&partial);
        })?;
        self.sweep(state);
        Ok(())
    }

    /// Removes checkpoints before this state's that are neither the best nor to be kept.
    pub fn sweep(&self, state: &StageState) {
        for step in self.steps() {
            let kept = state.best.is_some_and(|b| b.step == step) || state.keep == Some(step);
            if step < state.step && !kept {
                let _ = fs::remove_dir_all(self.path(step));
            }
        }
    }

    /// Removes a checkpoint from which nothing can go on.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn discard(&self, step: u64) -> Result<()> {
        let path = self.path(step);
        fs::remove_dir_all(&path).map_err(|e| Error::io("remove", &path, e))
    }

    /// Reads a checkpoint with `read`, which is given its step. Where it was replaced in the meantime by a training that
    /// goes on, the one that is there now is read.
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

/// Loads a weights file into a store; every mismatch is reported at once.
pub fn load_weights(path: &Path, store: &ParamStore) -> Result<()> {
    let (tensors, _) = read_weights(path, store.device())?;
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

/// BLAKE3 of a file's bytes, in hexadecimal.
pub fn file_hash(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut file = fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    std::io::copy(&mut file, &mut hasher).map_err(|e| Error::io("read", path, e))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Writes JSON aside, flushes and renames.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::user(format!("cannot write {}: {e}", path.display()), ""))?;
    write_text(path, &(text + "\n"))
}

/// Writes a text aside, flushes and renames.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut f = fs::File::create(&partial)?;
        f.write_all(text.as_bytes())?;
        f.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&partial);
        Error::io("write", path, e)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_nn::{AdamWConfig, Init};
    use candle_core::DType;

    fn store() -> ParamStore {
        let store = ParamStore::new(&Device::Cpu, DType::F32, 1);
        store.builder().weight("w", &[3, 2], Init::Normal(1.0)).unwrap();
        store
    }

    #[test]
    fn the_latest_and_the_best_checkpoint_are_kept() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(&dir.path().join("lm"));
        let store = store();
        let opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
        for (step, best) in [(1, 1), (2, 2), (3, 2), (4, 2)] {
            let best = Some(Best { step: best, loss: 1.0 });
            let state = StageState { step, best, ..Default::default() };
            checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
        }
        assert_eq!(checkpoints.steps(), [2, 4]);
        assert_eq!(checkpoints.step(Which::Best).unwrap(), 2);
        assert_eq!(checkpoints.step(Which::Latest).unwrap(), 4);
        assert!(!dir.path().join("lm/step-4.partial").exists());
    }

    #[test]
    fn a_checkpoint_that_is_replaced_while_it_is_read_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path());
        let store = store();
        let opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
        let save = |step| {
            let state = StageState { step, ..Default::default() };
            checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
        };
        save(1);
        let mut seen = Vec::new();
        let read = checkpoints.reading(Which::Latest, |step| {
            seen.push(step);
            // A training that goes on.
            if step == 1 {
                save(2);
            }
            load_weights(&checkpoints.model_path(step), &store).map(|()| step)
        });
        assert_eq!((read.unwrap(), seen), (2, vec![1, 2]));
        // What fails for another reason fails at once.
        let mut tries = 0;
        let failed: Result<()> = checkpoints.reading(Which::Latest, |_| {
            tries += 1;
            Err(Error::user("no", ""))
        });
        assert!(failed.is_err() && tries == 1);
    }

    #[test]
    fn the_checkpoint_before_is_kept_until_it_is_swept() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path());
        let store = store();
        let opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
        for (step, keep) in [(1, None), (2, Some(1)), (3, Some(2))] {
            let state = StageState { step, keep, ..Default::default() };
            checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
        }
        assert_eq!(checkpoints.steps(), [2, 3]);
        checkpoints.sweep(&StageState { step: 3, ..Default::default() });
        assert_eq!(checkpoints.steps(), [3]);
    }

    #[test]
    fn weights_that_do_not_fit_or_are_cut_off_are_errors_that_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path());
        let small = store();
        let opt = AdamW::new(&small, AdamWConfig::default()).unwrap();
        checkpoints
            .save(&StageState { step: 7, ..Default::default() }, &small, &opt, &BTreeMap::new())
            .unwrap();
        let other = ParamStore::new(&Device::Cpu, DType::F32, 1);
        other.builder().weight("w", &[3, 3], Init::Ones).unwrap();
        other.builder().weight("v", &[1], Init::Ones).unwrap();
        let e = checkpoints.load_model(7, &other).unwrap_err().to_string();
        assert!(e.contains("missing: v") && e.contains("wrong shape: w"), "{e}");
        let path = checkpoints.model_path(7);
        let bytes = fs::read(&path).unwrap();
        fs::write(&path, &bytes[..bytes.len() - 5]).unwrap();
        let e = checkpoints.load_model(7, &small).unwrap_err();
        assert!(e.to_string().contains("model.safetensors"), "{e}");
        assert!(e.remedy().is_some_and(|r| r.contains("truncated")), "{e:?}");
    }
}
