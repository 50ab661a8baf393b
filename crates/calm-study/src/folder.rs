//! The folder of an ablation: who works on it, where and when it was measured, what is published there.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use calm_report::Study;
use calm_report::study::Machine;
use calm_run::checkpoint::{read_json, write_json, write_text};
use calm_run::{Error, Result};

/// File that says where and when an ablation was scored and measured.
const MACHINE: &str = "machine.json";

/// Keeps a second process from training the same runs at the same time, until it is dropped.
#[derive(Debug)]
pub struct Lock(#[allow(dead_code, reason = "held, not read")] File);

/// Makes the folder, and takes it for this process.
///
/// # Errors
/// It cannot be made, or another process works on it.
pub fn lock(folder: &Path) -> Result<Lock> {
    let cannot = |e: std::io::Error| {
        Error::user(format!("cannot write in {}: {e}", folder.display()), "choose another folder with --out")
    };
    calm_files::create_folder(folder).map_err(cannot)?;
    let file = File::create(folder.join(".lock")).map_err(cannot)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::user(
            format!("another calm works on {}", folder.display()),
            "wait for it, or give this one its own folder with --out",
        )),
        // A file system without locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Lock(file)),
    }
}

/// Writes down where and when an ablation was scored and measured.
///
/// # Errors
/// The folder cannot be written.
pub fn write_machine(folder: &Path, machine: &Machine) -> Result<()> {
    write_json(&folder.join(MACHINE), machine)
}

/// Who made the study that lies in a folder, if somebody wrote it down.
pub fn machine_of(folder: &Path) -> Option<Machine> {
    read_json(&folder.join(MACHINE), "").ok()?
}

/// Writes the page, the CSV and the JSON of a study; returns the page's path.
///
/// # Errors
/// The folder cannot be written, or a plot not be drawn.
pub fn publish(study: &Study, folder: &Path) -> Result<PathBuf> {
    calm_files::create_folder(folder).map_err(|e| {
        Error::user(format!("cannot create {}: {e}", folder.display()), "choose another folder with --out")
    })?;
    let fail = |e: calm_report::ReportError| Error::user(format!("cannot write the report: {e}"), "");
    write_text(&folder.join("study.json"), &calm_report::json(study).map_err(fail)?)?;
    write_text(&folder.join("report.csv"), &calm_report::csv(study))?;
    let page = folder.join("report.html");
    write_text(&page, &calm_report::html(study).map_err(fail)?)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_belongs_to_one_process_until_it_is_let_go() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("runs/new");
        let held = lock(&folder).unwrap();
        let error = lock(&folder).unwrap_err();
        assert!(error.to_string().starts_with("another calm works on"), "{error}");
        assert!(error.remedy().is_some_and(|h| h.contains("--out")));
        drop(held);
        lock(&folder).unwrap();
    }

    #[test]
    fn a_study_is_published_and_says_who_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        let page = publish(&Study::default(), &folder).unwrap();
        assert!(std::fs::read_to_string(page).unwrap().contains("<html"));
        assert!(folder.join("study.json").is_file() && folder.join("report.csv").is_file());
        assert_eq!(machine_of(&folder), None);
        let machine = Machine { threads: 3, ..Machine::default() };
        write_machine(&folder, &machine).unwrap();
        assert_eq!(machine_of(&folder), Some(machine));
    }
}
