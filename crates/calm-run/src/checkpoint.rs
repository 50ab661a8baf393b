//! Checkpoints of one stage: folders `step-N/` with model, optimiser and state, there whole or not at all. Two are
//! kept: the latest and the best, or the one before if these are one. The state holds length and hash of the other
//! files; what is read is compared with them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calm_files::Sum;
use calm_nn::{AdamW, ParamStore, parse_weights, write_weights};
use candle_core::Device;
use serde::{Deserialize, Serialize};

pub use crate::checked::{file_hash, read_json, write_json, write_plain_json, write_text};
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

/// What to do about a checkpoint that is damaged.
const DAMAGED: &str = "the run's own command with --resume goes back to the checkpoint before it; other commands \
                       can take another one with --checkpoint, latest or best";

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
        Self { folder: folder.to_owned() }
    }

    /// Steps for which a whole checkpoint is there, ascending.
    pub fn steps(&self) -> Vec<u64> {
        let Ok(entries) = fs::read_dir(&self.folder) else { return Vec::new() };
        let mut steps: Vec<u64> = entries
            .flatten()
            .filter_map(|e| {
                // Under its old name if a process ended while it was being replaced.
                let name = e.file_name().into_string().ok()?;
                name.strip_prefix("step-")?.trim_end_matches(".replaced").parse().ok()
            })
            .filter(|step| self.path(*step).join(STATE).is_file())
            .collect();
        steps.sort_unstable();
        steps.dedup();
        steps
    }

    /// The folder of one step.
    pub fn path(&self, step: u64) -> PathBuf {
        calm_files::whole_folder(&self.folder.join(format!("step-{step}")))
    }

    /// State of the latest checkpoint.
    ///
    /// # Errors
    /// Its state is damaged.
    pub fn latest(&self) -> Result<Option<StageState>> {
        self.steps().last().map(|step| self.state(*step)).transpose()
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
        let saved: Saved = read_json(&path, DAMAGED)?
            .ok_or_else(|| Error::io("read", &path, std::io::ErrorKind::NotFound.into()))?;
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

    /// Loads the optimiser's state of one step. Imported weights (step 0) have none: the optimiser stays new.
    ///
    /// # Errors
    /// It is not there, damaged, or does not fit the model.
    pub fn load_optimizer(&self, step: u64, store: &ParamStore, optimizer: &mut AdamW) -> Result<()> {
        let path = self.path(step).join(OPTIMIZER);
        if step == 0 && !path.exists() {
            return Ok(());
        }
        let (tensors, _) = parse_weights(&path, &self.read(step, OPTIMIZER)?, &Device::Cpu)?;
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
        self.write(state, |folder| {
            Ok([
                (MODEL, write_weights(&folder.join(MODEL), &store.snapshot()?, metadata)?),
                (OPTIMIZER, write_weights(&folder.join(OPTIMIZER), &optimizer.state(store)?, metadata)?),
            ])
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
        let _ = self.clear(state).and_then(|()| self.sweep(true));
        Ok(())
    }

    /// Removes what is needed no more: all but this checkpoint, the best, and the one before if these are one.
    fn clear(&self, state: &StageState) -> std::io::Result<()> {
        let before: Vec<u64> = self.steps().into_iter().filter(|step| *step < state.step).collect();
        let second = match state.best {
            Some(best) if best.step != state.step => Some(best.step),
            _ => before.last().copied(),
        };
        for step in before {
            if Some(step) != second {
                calm_files::remove(&self.path(step))?;
            }
        }
        Ok(())
    }

    /// Removes what killed processes left. Versions before this one began to remove a checkpoint under its own name.
    fn sweep(&self, damaged: bool) -> std::io::Result<()> {
        calm_files::settle(&self.folder, damaged)?;
        let Ok(entries) = fs::read_dir(&self.folder) else { return Ok(()) };
        for path in entries.flatten().map(|e| e.path()) {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let of_step = name.strip_prefix("step-").is_some_and(|step| step.parse::<u64>().is_ok());
            if of_step && path.is_dir() && !path.join(STATE).exists() {
                calm_files::remove(&path)?;
            }
        }
        Ok(())
    }

    /// Whether a checkpoint is what was written, to the byte; one of version 0.1 is believed.
    ///
    /// # Errors
    /// It is not, or cannot be read.
    pub fn check(&self, step: u64) -> Result<()> {
        for (name, sum) in self.saved(step)?.files {
            let path = self.path(step).join(name);
            let now = Sum::of_file(&path).map_err(|e| Error::io("read", &path, e))?;
            if now != sum {
                let what = format!("{} is damaged: {now} and must be {sum}", path.display());
                return Err(Error::user(what, DAMAGED));
            }
        }
        Ok(())
    }

    /// Puts the stage in order before it is worked on: removes what killed processes left, and sets damaged
    /// checkpoints aside so that training goes on from the one before. Returns what a user should know. Only for a
    /// process that has the run for itself.
    ///
    /// # Errors
    /// All checkpoints are damaged; nothing is touched then. Or the file system says no.
    pub fn settle(&self) -> Result<Vec<String>> {
        self.sweep(false).map_err(|e| Error::io("write", &self.folder, e))?;
        let steps = self.steps();
        let mut damaged = Vec::new();
        let mut whole = None;
        for step in steps.iter().rev() {
            match self.check(*step) {
                Ok(()) => {
                    whole.get_or_insert(*step);
                }
                Err(e) => damaged.push((*step, e.to_string())),
            }
        }
        let Some(whole) = whole else {
            let Some((_, why)) = damaged.into_iter().next() else { return Ok(Vec::new()) };
            return Err(Error::user(
                format!("{why}; no other checkpoint of this stage is whole"),
                "restore the file, or begin the stage anew with --restart",
            ));
        };
        let mut said = Vec::new();
        for (step, why) in damaged {
            let path = self.path(step);
            let aside = calm_files::set_aside(&path).map_err(|e| Error::io("write", &path, e))?;
            let then = if step > whole { format!("going back to step {whole}") } else { "left out".into() };
            said.push(format!("{why}; {then} (the damaged checkpoint is {})", aside.display()));
        }
        // A process may have ended before it removed the checkpoints that its last one made needless.
        self.clear(&self.state(whole)?).map_err(|e| Error::io("write", &self.folder, e))?;
        Ok(said)
    }
}

/// Loads a weights file into a store; every mismatch is reported at once.
///
/// # Errors
/// The file cannot be read, or does not fit the model.
pub fn load_weights(path: &Path, store: &ParamStore) -> Result<()> {
    fill(store, path, &fs::read(path).map_err(|e| Error::io("read", path, e))?)
}

fn fill(store: &ParamStore, path: &Path, bytes: &[u8]) -> Result<()> {
    let (tensors, _) = parse_weights(path, bytes, store.device())?;
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
        for (step, best, kept) in [(1, 1, &[1][..]), (2, 2, &[1, 2]), (3, 2, &[2, 3]), (4, 2, &[2, 4])] {
            let best = Some(Best { step: best, loss: 1.0 });
            let state = StageState { step, best, ..Default::default() };
            checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
            assert_eq!(checkpoints.steps(), kept, "two to go back to, whichever is the best");
        }
        assert_eq!(checkpoints.step(Which::Best).unwrap(), 2);
        assert_eq!(checkpoints.step(Which::Latest).unwrap(), 4);
        assert!(!dir.path().join("lm/step-4.partial").exists());
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
    }

    /// Three checkpoints saved, two kept: 2, the best, and 3.
    fn saved(dir: &Path) -> (Checkpoints, ParamStore, AdamW) {
        let checkpoints = Checkpoints::new(&dir.join("lm"));
        let store = store();
        let opt = AdamW::new(&store, AdamWConfig::default()).unwrap();
        for step in 1..4 {
            let state = StageState {
                step,
                seconds: 0.1,
                best: Some(Best { step: step.min(2), loss: 1.0 }),
                ..Default::default()
            };
            checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
        }
        (checkpoints, store, opt)
    }

    fn flip(path: &Path, at: usize) {
        let mut bytes = fs::read(path).unwrap();
        bytes[at] ^= 4;
        fs::write(path, bytes).unwrap();
    }

    #[test]
    fn no_flipped_bit_of_a_checkpoint_is_loaded() {
        let dir = tempfile::tempdir().unwrap();
        for name in [MODEL, OPTIMIZER, STATE] {
            let (checkpoints, store, mut opt) = saved(dir.path());
            let path = checkpoints.path(3).join(name);
            let length = fs::metadata(&path).unwrap().len() as usize;
            for at in (0..length).step_by(7) {
                flip(&path, at);
                let loaded = checkpoints
                    .load_model(3, &store)
                    .and_then(|()| checkpoints.load_optimizer(3, &store, &mut opt))
                    .and_then(|()| checkpoints.state(3));
                let e = loaded.map_err(|e| (e.to_string(), e.remedy().unwrap_or_default()));
                match e {
                    Err((what, remedy)) => {
                        assert!(what.contains(name) && what.contains("is damaged"), "{what}");
                        assert!(remedy.contains("--resume"), "{remedy}");
                    }
                    // Letters of the word `checksum`.
                    Ok(state) => assert!(name == STATE && state.step == 3 && state.seconds == 0.1),
                }
                flip(&path, at);
            }
            fs::remove_dir_all(dir.path().join("lm")).unwrap();
        }
    }

    #[test]
    fn a_damaged_checkpoint_is_set_aside_and_named_and_the_one_before_counts() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoints, store, opt) = saved(dir.path());
        assert!(checkpoints.settle().unwrap().is_empty());
        flip(&checkpoints.path(3).join(OPTIMIZER), 200);
        let said = checkpoints.settle().unwrap();
        assert_eq!(said.len(), 1);
        for part in ["step-3/optimizer.safetensors is damaged", "going back to step 2", "step-3.damaged"] {
            assert!(said[0].contains(part), "{part}: {}", said[0]);
        }
        assert_eq!(checkpoints.latest().unwrap().unwrap().step, 2);
        // It stays until there is something newer.
        assert!(dir.path().join("lm/step-3.damaged").is_dir());
        let state = StageState { step: 4, best: Some(Best { step: 2, loss: 1.0 }), ..Default::default() };
        checkpoints.save(&state, &store, &opt, &BTreeMap::new()).unwrap();
        assert!(!dir.path().join("lm/step-3.damaged").exists());
        // The best.
        flip(&checkpoints.path(2).join(MODEL), 100);
        let said = checkpoints.settle().unwrap();
        assert!(said[0].contains("left out"), "{said:?}");
        let e = checkpoints.step(Which::Best).unwrap_err();
        assert!(e.to_string().contains("step-2") && e.remedy().unwrap().contains("--checkpoint"), "{e}");
        assert_eq!(checkpoints.step(Which::Latest).unwrap(), 4);
        // The last: nothing is touched.
        flip(&checkpoints.path(4).join(STATE), 20);
        let e = checkpoints.settle().unwrap_err();
        assert!(e.to_string().contains("no other checkpoint") && e.remedy().unwrap().contains("--restart"));
        assert_eq!(checkpoints.steps(), [4]);
    }

    #[test]
    fn what_killed_processes_left_is_swept_and_an_old_checkpoint_has_no_hashes() {
        let dir = tempfile::tempdir().unwrap();
        let (checkpoints, store, _) = saved(dir.path());
        let lm = dir.path().join("lm");
        for left in ["step-9.partial/model.safetensors", "step-1.gone/x", "step-1/model.safetensors"] {
            fs::create_dir_all(lm.join(left).parent().unwrap()).unwrap();
            fs::write(lm.join(left), "half").unwrap();
        }
        assert_eq!(checkpoints.steps(), [2, 3]);
        checkpoints.settle().unwrap();
        assert_eq!(fs::read_dir(&lm).unwrap().count(), 2);
        // Killed while a checkpoint was being replaced: the old one is still read.
        fs::rename(lm.join("step-3"), lm.join("step-3.replaced")).unwrap();
        assert_eq!(checkpoints.steps(), [2, 3]);
        checkpoints.load_model(3, &store).unwrap();
        checkpoints.settle().unwrap();
        assert!(lm.join("step-3").is_dir());
        let state = r#"{"step": 3, "finished": false, "tokens": 0, "seconds": 0.5, "best": null}"#;
        fs::write(lm.join("step-3/state.json"), state).unwrap();
        checkpoints.load_model(3, &store).unwrap();
        assert_eq!(checkpoints.model_hash(3).unwrap(), file_hash(&checkpoints.model_path(3)).unwrap());
        assert!(checkpoints.settle().unwrap().is_empty());
    }
}
