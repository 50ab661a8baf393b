//! A stage's folder in order before it is worked on: what killed processes left goes, what is damaged is set aside.

use std::path::{Path, PathBuf};

use calm_files::Sum;

use super::{Checkpoints, DAMAGED, MODEL, STATE};
use crate::checked::write_json;
use crate::error::{Error, Result};

impl Checkpoints {
    /// Removes what killed processes left, and what was set aside as damaged up to a step that is there whole by now.
    /// Weights without their state are set aside. (Versions before this one began to remove a checkpoint under its own
    /// name.) Returns what was set aside.
    ///
    /// # Errors
    /// The file system says no.
    pub(super) fn sweep(&self, until: Option<u64>) -> Result<Vec<PathBuf>> {
        let io = |path: &Path, e| Error::io("write", path, e);
        // Of a file that nobody can look at nothing is known.
        let there = |path: PathBuf| path.try_exists().map_err(|e| Error::io("read", &path, e));
        calm_files::settle(&self.folder, false).map_err(|e| io(&self.folder, e))?;
        let mut aside = Vec::new();
        let entries = self.entries().map_err(|e| Error::io("read", &self.folder, e))?;
        for path in entries.into_iter().filter(|path| path.is_dir()) {
            let name = path.file_name().and_then(|n| n.to_str()).unwrap_or_default();
            let Some(name) = name.strip_prefix("step-") else { continue };
            if name.parse::<u64>().is_ok() && !there(path.join(STATE))? {
                if there(path.join(MODEL))? {
                    aside.push(calm_files::set_aside(&path).map_err(|e| io(&path, e))?);
                } else {
                    calm_files::remove(&path).map_err(|e| io(&path, e))?;
                }
            } else if let Some(Ok(step)) = name.strip_suffix(calm_files::DAMAGED).map(str::parse::<u64>)
                && until.is_some_and(|until| step <= until)
            {
                calm_files::remove(&path).map_err(|e| io(&path, e))?;
            }
        }
        Ok(aside)
    }

    /// Removes what the last checkpoint of a finished stage made needless, where a process ended before it did. Such a stage
    /// is not worked on any more, and nobody else would.
    ///
    /// # Errors
    /// The file system says no.
    pub fn tidy(&self) -> Result<()> {
        match self.latest() {
            Ok(Some(state)) if state.finished => {
                self.clear(&state).map_err(|e| Error::io("write", &self.folder, e))
            }
            _ => Ok(()),
        }
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
        let aside = self.sweep(None)?;
        let steps = self.listed()?;
        if let (Some(path), true) = (aside.first(), steps.is_empty()) {
            return Err(Error::user(
                format!(
                    "{} has weights without their {STATE}, and there is no other checkpoint",
                    path.display()
                ),
                "restore the file and the folder's name, or begin the stage anew with --restart",
            ));
        }
        let mut damaged = Vec::new();
        let mut whole = None;
        for step in steps.iter().rev() {
            match self.check(*step) {
                Ok(()) => {
                    whole.get_or_insert(*step);
                }
                // A file system that does not answer says nothing about what was written.
                Err(e) if !e.is_damage() => return Err(e),
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
        let without_state =
            |path: PathBuf| format!("weights without their {STATE} are {} now", path.display());
        let mut said: Vec<String> = aside.into_iter().map(without_state).collect();
        for (step, why) in damaged {
            let path = self.path(step);
            let aside = calm_files::set_aside(&path).map_err(|e| Error::io("write", &path, e))?;
            let then = if step > whole { format!("going back to step {whole}") } else { "left out".into() };
            said.push(format!("{why}; {then} (the damaged checkpoint is {})", aside.display()));
        }
        let mut saved = self.saved(whole)?;
        let steps = self.steps();
        if let Some(best) = saved.state.best.filter(|best| !steps.contains(&best.step)) {
            saved.state.best = None;
            write_json(&self.path(whole).join(STATE), &saved)?;
            said.push(format!(
                "the best checkpoint, step {}, is gone: step {whole} counts in its place",
                best.step
            ));
        }
        // A process may have ended before it removed the checkpoints that its last one made needless. The one before
        // stays until a step from the last one has been seen.
        saved.state.keep = steps.iter().copied().rev().find(|step| *step < whole);
        self.clear(&saved.state).map_err(|e| Error::io("write", &self.folder, e))?;
        Ok(said)
    }
}
