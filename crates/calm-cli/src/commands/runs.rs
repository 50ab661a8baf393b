//! Which runs are meant: folders of runs, or of ablations with their runs inside.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_run::run::CONFIG;
use calm_run::{Lock, Run};

use super::RUNS;
use crate::error::Hinted;

/// The runs of the folders that were named; none: those that somebody works on, else the latest.
pub fn named_or_at_work(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if named.is_empty() {
        let working = inside(Path::new(RUNS), |f| Lock::holder(f).is_some());
        let working: Vec<PathBuf> = working.iter().flat_map(|f| expanded(f)).collect();
        if !working.is_empty() {
            return Ok(working);
        }
    }
    named_or_latest(named)
}

/// The runs of the folders that were named; none: the latest.
pub fn named_or_latest(named: &[PathBuf]) -> Result<Vec<PathBuf>> {
    if named.is_empty() {
        return Ok(vec![Run::latest(Path::new(RUNS))?.folder]);
    }
    if let Some(folder) = named.iter().find(|f| !f.is_dir()) {
        let what = format!("{}: no such folder", folder.display());
        return Err(Hinted::new(what, "name the folders of runs or ablations (runs/NAME)").into());
    }
    let mut all: Vec<PathBuf> = Vec::new();
    for folder in named.iter().flat_map(|f| expanded(f)) {
        if !all.contains(&folder) {
            all.push(folder);
        }
    }
    Ok(all)
}

/// The runs of an ablation with its shared autoencoders, or the run itself.
fn expanded(folder: &Path) -> Vec<PathBuf> {
    let is_run = |f: &Path| f.join(CONFIG).is_file();
    let runs = [inside(&folder.join("autoencoders"), is_run), inside(folder, is_run)].concat();
    if folder.join(CONFIG).is_file() || runs.is_empty() { vec![folder.to_owned()] } else { runs }
}

/// Folders in a folder, by name.
fn inside(folder: &Path, of: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries.map(|e| e.path()).filter(|p| p.is_dir() && of(p)).collect();
    found.sort();
    found
}
