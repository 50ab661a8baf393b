//! The folder of an ablation: where and when it was measured, what is published there.

use std::path::{Path, PathBuf};

use calm_report::Study;
use calm_report::study::Machine;
use calm_run::checkpoint::{read_json, write_json, write_text};
use calm_run::{Error, Result};

/// File that says where and when an ablation was scored and measured.
const MACHINE: &str = "machine.json";

/// Writes down where and when an ablation was scored and measured.
///
/// # Errors
/// The folder cannot be written.
pub fn write_machine(folder: &Path, machine: &Machine) -> Result<()> {
    write_json(&folder.join(MACHINE), machine)
}

/// Who made the study that lies in a folder, if somebody wrote it down.
///
/// # Errors
/// What was written is damaged.
pub fn machine_of(folder: &Path) -> Result<Option<Machine>> {
    read_json(&folder.join(MACHINE), "run `calm ablate` again to write it anew, or remove it")
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

/// Writes each plot and each table of a study as files of their own; returns their folder and their number.
///
/// # Errors
/// As [`publish`].
pub fn publish_files(study: &Study, folder: &Path) -> Result<(PathBuf, usize)> {
    let files =
        calm_report::files(study).map_err(|e| Error::user(format!("cannot write the report: {e}"), ""))?;
    let folder = folder.join("report-files");
    // What an earlier report had and this one has not would stand beside it.
    calm_files::write_folder(
        &folder,
        |e| Error::io("write", &folder, e),
        |partial| files.iter().try_for_each(|(name, content)| write_text(&partial.join(name), content)),
    )?;
    Ok((folder, files.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_study_is_published_and_says_who_made_it() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("out");
        let page = publish(&Study::default(), &folder).unwrap();
        assert!(std::fs::read_to_string(page).unwrap().contains("<html"));
        assert!(folder.join("study.json").is_file() && folder.join("report.csv").is_file());
        let (files, number) = publish_files(&Study::default(), &folder).unwrap();
        assert_eq!(std::fs::read_dir(&files).unwrap().count(), number);
        assert!(files.join("citations.bib").is_file());
        assert_eq!(machine_of(&folder).unwrap(), None);
        let machine = Machine { threads: 3, ..Machine::default() };
        write_machine(&folder, &machine).unwrap();
        assert_eq!(machine_of(&folder).unwrap(), Some(machine));
    }
}
