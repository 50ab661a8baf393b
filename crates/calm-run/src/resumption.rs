//! What becomes of a folder that a command wants to train in: decided before anything is touched.
//!
//! [`Resumption::decide`] compares what the folder holds with what is asked for, and either refuses, with a reason for
//! each setting, or says what would be done. [`Resumption::act`] does it. Between the two the text is read and the plan
//! is checked, so that a run which cannot be trained is not changed either. The table of what may change stands in the
//! book (`docs/src/resuming.md`).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calm_config::Resolved;

use crate::checked::write_config;
use crate::checkpoint::{Checkpoints, StageState};
use crate::config::RunConfig;
use crate::earlier;
use crate::error::{Error, Result};
use crate::metrics::SUM;
use crate::record::{Change, Provenance, RunRecord, differences};
use crate::run::{CONFIG, ORIGIN, RECORD, RESULTS, Run};
use crate::stage::Stage;

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

/// What is going to be done with a folder. Nothing of it has been done yet.
#[derive(Clone, Debug)]
pub struct Resumption {
    run: Run,
    /// The configuration to write, where the folder holds none that counts.
    config: Option<String>,
    /// Settings that will have changed.
    changes: Vec<Change>,
    /// Stages that are thrown away.
    anew: Vec<Stage>,
    /// Whether all of the old run goes, its record too.
    whole: bool,
    /// What is thrown away.
    remove: Vec<PathBuf>,
}

impl Resumption {
    /// Decides. A run that continues may change how it trains from here on and how it is scored, never what is trained
    /// nor what its record says of steps that are done.
    ///
    /// # Errors
    /// All settings that may not change, each with its reason; a folder that cannot be read.
    pub fn decide(folder: &Path, resolved: &Resolved<RunConfig>, begin: Begin) -> Result<Self> {
        let mut run = Run { folder: folder.to_owned(), config: resolved.value.clone() };
        let there = folder.join(CONFIG).is_file();
        // Before the data were ready nothing has come of a run: a wrong path may be put right.
        let begun = folder.join(RECORD).is_file() || has_weights(folder)?;
        let whole = begin == Begin::Restart(None);
        if !there && begun && !whole {
            return Err(Error::user(
                format!("{} holds a run without its {CONFIG}", folder.display()),
                format!("restore {CONFIG}; --restart throws the run away, --out FOLDER leaves it alone"),
            ));
        }
        let fresh = !there || !begun || whole;
        let mut changes = Vec::new();
        if !fresh {
            let before = Run::resolved(folder)?;
            let asked = earlier::applied(&before.overrides, resolved)?;
            changes = differences(&before.tree, &asked.tree);
            run.config = asked.value;
            let judge = Judge::new(&run, &before.value, begin)?;
            let refused: Vec<(&Change, Refusal)> =
                changes.iter().filter_map(|change| Some((change, judge.refuses(change)?))).collect();
            if !refused.is_empty() {
                return Err(refusal(folder, &refused));
            }
        }
        // Only of a run: another folder's contents are not ours to throw away.
        let (anew, parts): (Vec<Stage>, &[&str]) = match begin {
            Begin::Restart(stage) if there || begun => match stage {
                None => (
                    Stage::ALL.to_vec(),
                    &["autoencoder", "lm", "tensorboard", SUM, "metrics.jsonl", RESULTS, RECORD, ORIGIN],
                ),
                // A language model is nothing without its autoencoder.
                Some(Stage::Autoencoder) => (
                    Stage::ALL.to_vec(),
                    &["autoencoder", "lm", "tensorboard/autoencoder", "tensorboard/lm", RESULTS],
                ),
                Some(Stage::Lm) => (vec![Stage::Lm], &["lm", "tensorboard/lm", RESULTS]),
            },
            _ => (Vec::new(), &[]),
        };
        Ok(Self {
            config: fresh.then(|| resolved.to_yaml()),
            changes,
            anew,
            whole,
            remove: parts.iter().map(|part| folder.join(part)).collect(),
            run,
        })
    }

    /// Of a run whose folder is as it shall be.
    pub fn settled(run: &Run) -> Self {
        Self {
            run: run.clone(),
            config: None,
            changes: Vec::new(),
            anew: Vec::new(),
            whole: false,
            remove: Vec::new(),
        }
    }

    /// The run as it will be.
    pub fn run(&self) -> &Run {
        &self.run
    }

    /// What the record says now of what will still hold: nothing, if the whole run goes.
    ///
    /// # Errors
    /// As [`Run::record`].
    pub fn record(&self) -> Result<RunRecord> {
        if self.whole { Ok(Default::default()) } else { Ok(self.run.record()?.unwrap_or_default()) }
    }

    /// The state of a stage that will be there: that of its latest checkpoint, unless it is thrown away.
    ///
    /// # Errors
    /// A damaged checkpoint.
    pub fn latest(&self, stage: Stage) -> Result<Option<StageState>> {
        if self.anew.contains(&stage) { Ok(None) } else { self.run.checkpoints(stage).latest() }
    }

    /// Settings that will have changed.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Settings of the text or tokenizer that will have changed: allowed if both stay the same ones.
    pub fn changes_of_text(&self) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(|change| is_text(change))
    }

    /// Does it: throws away what is begun anew and writes the configuration of a new run. The entry for the record says
    /// what else changed.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn act(&self, by: Provenance) -> Result<Provenance> {
        for path in &self.remove {
            calm_files::remove(path).map_err(|e| Error::io("remove", path, e))?;
        }
        let folder = &self.run.folder;
        calm_files::create_folder(folder).map_err(|e| Error::io("create", folder, e))?;
        if let Some(text) = &self.config {
            sweep_config(folder).map_err(|e| Error::io("write", folder, e))?;
            write_config(&folder.join(CONFIG), text)?;
        }
        let mut after = BTreeMap::new();
        for stage in Stage::ALL {
            if let Some(state) = self.run.checkpoints(stage).latest()? {
                after.insert(stage, state.step);
            }
        }
        Ok(Provenance { changes: self.changes.clone(), after, ..by })
    }
}

impl Run {
    /// Decides and acts at once, for a caller that trains nothing or checks the text itself.
    ///
    /// # Errors
    /// As [`Resumption::decide`] and [`Resumption::act`].
    pub fn create(folder: &Path, resolved: &Resolved<RunConfig>, begin: Begin) -> Result<Self> {
        let resumption = Resumption::decide(folder, resolved, begin)?;
        let entry = resumption.act(Provenance::default().stamped())?;
        if !entry.changes.is_empty() {
            let mut record = resumption.record()?;
            record.history.push(entry);
            resumption.run.write_record(&record)?;
        }
        Ok(resumption.run)
    }
}

/// Removes half a configuration that a killed process left: before there is a whole one nothing else is ours.
fn sweep_config(folder: &Path) -> std::io::Result<()> {
    for path in std::fs::read_dir(folder)?.flatten().map(|entry| entry.path()) {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with(&format!("{CONFIG}.")) && name.ends_with(".partial") {
            calm_files::remove(&path)?;
        }
    }
    Ok(())
}

/// Why a setting may not change, and what to do.
struct Refusal {
    why: String,
    remedy: String,
}

/// What decides about a setting.
struct Judge<'a> {
    begin: Begin,
    asked: &'a RunConfig,
    before: &'a RunConfig,
    states: BTreeMap<Stage, StageState>,
}

impl<'a> Judge<'a> {
    fn new(run: &'a Run, before: &'a RunConfig, begin: Begin) -> Result<Self> {
        let mut states = BTreeMap::new();
        for stage in Stage::ALL {
            // A damaged one is gone back from before anything is trained.
            if let Some(state) = run.checkpoints(stage).latest_readable()? {
                states.insert(stage, state);
            }
        }
        Ok(Self { begin, asked: &run.config, before, states })
    }

    fn refuses(&self, change: &Change) -> Option<Refusal> {
        let key = change.key.as_str();
        let free = key == "description" || key.starts_with("eval.") || key == "eval";
        // Another place of the same text is no change: the hash decides when it has been read.
        if free || is_text(change) || restarted_setting(key, self.begin) {
            return None;
        }
        let stage = Stage::ALL.into_iter().find_map(|s| Some((s, key.strip_prefix(&format!("train.{s}."))?)));
        match (self.begin, stage) {
            (Begin::Resume, Some((stage, setting))) => self.refuses_of_stage(stage, setting),
            (Begin::Resume, None) => Some(Refusal {
                why: "what is trained is settled".into(),
                remedy: "data, tokenizer, model, seed and precision of a run cannot change; give this one its own \
                         folder with --out"
                    .into(),
            }),
            _ => Some(Refusal {
                why: String::new(),
                remedy: "--out FOLDER keeps both; --resume goes on with changed `train` and `eval` settings; \
                         --restart throws the old run away"
                    .into(),
            }),
        }
    }

    fn refuses_of_stage(&self, stage: Stage, setting: &str) -> Option<Refusal> {
        // Nothing was trained: nothing would become untrue.
        let state = self.states.get(&stage).filter(|state| state.step > 0)?;
        let steps = |config: &RunConfig| config.train.stage(stage).map_or(0, |c| c.steps);
        let (asked, done) = (steps(self.asked), state.step);
        let finished = done >= steps(self.before);
        // What decides neither the weights nor the record.
        let watching =
            ["eval_every", "checkpoint_every", "log_every", "accumulation", "recompute", "shard", "overlap"];
        if watching.contains(&setting) || setting == "divergence" || setting.starts_with("divergence.") {
            return None;
        }
        if setting == "steps" {
            if asked < done || (asked == done && !finished) {
                return Some(Refusal {
                    why: format!("{done} steps of it are done"),
                    remedy: format!("give train.{stage}.steps more than {done}, or --out another folder"),
                });
            }
            if asked > done && stage == Stage::Autoencoder && self.states.contains_key(&Stage::Lm) {
                return Some(stands_on_it());
            }
            return None;
        }
        (asked <= done).then(|| Refusal {
            why: format!("stage {stage} is finished, and says how it was trained"),
            remedy: format!(
                "leave it as it was, or raise train.{stage}.steps with it; --out FOLDER with --init-from RUN \
                 trains the weights further in a run of their own"
            ),
        })
    }
}

/// Of an autoencoder that may not be trained further, since a language model stands on its latents.
fn stands_on_it() -> Refusal {
    let why = "the language model of this run stands on the autoencoder as it is".into();
    let remedy = "train it further in a run of its own (--out FOLDER with --init-from RUN), or begin both stages anew \
                  (--restart)";
    Refusal { why, remedy: remedy.into() }
}

/// The same as an error, where nothing in the configuration asks for it.
pub fn autoencoder_is_settled(folder: &Path) -> Error {
    let Refusal { why, remedy } = stands_on_it();
    Error::user(format!("the autoencoder in {} cannot be trained further: {why}", folder.display()), remedy)
}

fn refusal(folder: &Path, refused: &[(&Change, Refusal)]) -> Error {
    let mut what = format!("{} holds a run with another configuration:", folder.display());
    let mut remedies: Vec<&str> = Vec::new();
    for (change, Refusal { why, remedy }) in refused {
        what.push_str(&format!("\n  {change}"));
        if !why.is_empty() {
            what.push_str(&format!(": {why}"));
        }
        if !remedies.contains(&remedy.as_str()) {
            remedies.push(remedy);
        }
    }
    Error::user(what, remedies.join("; "))
}

/// Whether it is a setting whose change the hash of the text or of the tokenizer judges.
fn is_text(change: &Change) -> bool {
    let both = change.old.is_some() && change.new.is_some();
    change.key.starts_with("data.") || (change.key == "tokenizer.file" && both)
}

/// Whether a setting belongs to stages that are begun anew. Of a family's settings the chunk size and the autoencoder
/// decide stage 1, the others the language model only, which is nothing without its autoencoder.
fn restarted_setting(key: &str, begin: Begin) -> bool {
    let Begin::Restart(restarted) = begin else { return false };
    // Another family (`model.NAME` as a whole) is another run.
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

/// Whether there are weights of any stage.
fn has_weights(folder: &Path) -> Result<bool> {
    for stage in Stage::ALL {
        if !Checkpoints::new(&folder.join(stage.name())).listed()?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_that_is_begun_anew_may_be_another_one_of_the_same_family() {
        let allowed = |key: &str| {
            [Some(Stage::Lm), Some(Stage::Autoencoder), None]
                .map(|stage| restarted_setting(key, Begin::Restart(stage)))
        };
        assert_eq!(allowed("model.calm.backbone.init"), [true, true, true]);
        assert_eq!(allowed("train.lm.steps"), [true, true, true]);
        assert_eq!(allowed("model.calm.chunk_size"), [false, true, true]);
        assert_eq!(allowed("model.calm.autoencoder.hidden_size"), [false, true, true]);
        assert_eq!(allowed("train.autoencoder.steps"), [false, true, true]);
        assert_eq!(allowed("model.calm"), [false, false, true]);
        assert_eq!(allowed("seed"), [false, false, true]);
        assert!(!restarted_setting("train.lm.steps", Begin::Resume));
    }
}
