//! `calm report`: an ablation, or any finished runs, as a page, CSV and JSON.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_kernels::device::Choice;
use calm_run::Run;
use calm_study::plan::{ABLATION, Ablation};
use calm_study::{execute, folder, gather, score};

use super::RUNS;
use crate::args::{Format, ReportArgs};
use crate::comparison::table;
use crate::error::Hinted;
use crate::hardware;
use crate::screen::Screen;
use crate::ui::Printer;

/// Runs the command.
pub fn run(args: &ReportArgs, device: Choice, printer: &Printer) -> Result<()> {
    let device = hardware::open(device, printer)?;
    let of_ablation = |f: &PathBuf| f.join(ABLATION).is_file();
    let (ablation, out) = match &args.folders[..] {
        [folder] if of_ablation(folder) => {
            (Ablation::open(folder)?, args.out.clone().unwrap_or_else(|| folder.clone()))
        }
        folders => {
            if let Some(folder) = folders.iter().find(|f| of_ablation(f)) {
                return Err(Hinted::new(
                    format!("{} is an ablation among other folders", folder.display()),
                    "name one ablation alone, or runs alone",
                )
                .into());
            }
            let runs = folders.iter().map(|f| Run::open(f)).collect::<calm_run::Result<Vec<_>>>()?;
            let out = args.out.clone().unwrap_or_else(|| Path::new(RUNS).join("report"));
            (Ablation::of_runs(&runs, &out)?, out)
        }
    };
    let mut failures = execute::failures(&ablation)?;
    let mut screen = Screen::new(printer);
    score::score(&ablation, &args.cache, &device, &mut failures, &mut screen)?;
    drop(screen);
    let machine = folder::machine_of(&ablation.folder)?.unwrap_or_else(|| hardware::machine(None));
    let study = gather::gather(&ablation, &failures, machine)?;
    if study.variants.iter().all(|v| v.runs.is_empty()) {
        if let Some(failed) = study.failures.first() {
            let message = format!("no run can be scored; {}: {}", failed.run, failed.reason);
            return Err(Hinted::new(message, "mend what is named there, or name other runs").into());
        }
        let why = study.notes.first().map_or(String::new(), |n| format!(": {n}"));
        return Err(Hinted::new(
            format!("no run is finished yet{why}"),
            "train the runs to their end (calm train, calm ablate), then ask for their report",
        )
        .into());
    }
    let page = folder::publish(&study, &out)?;
    match args.format {
        Format::Json => printer.result(&calm_report::json(&study)?)?,
        Format::Table => printer.result(&table(&study))?,
    }
    printer.note(format!("report: {}", page.display()));
    Ok(())
}
