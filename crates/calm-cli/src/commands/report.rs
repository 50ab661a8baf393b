//! `calm report`: an ablation, or any finished runs, as a page, CSV and JSON.

mod serve;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use calm_kernels::device::Choice;
use calm_report::Study;
use calm_run::Run;
use calm_study::plan::{ABLATION, Ablation};
use calm_study::{execute, folder, gather, score};
use candle_core::Device;

use super::RUNS;
use crate::args::{Format, ReportArgs};
use crate::comparison::table;
use crate::error::Hinted;
use crate::hardware;
use crate::screen::Screen;
use crate::stop::Stop;
use crate::ui::Printer;

/// Runs the command.
pub fn run(args: &ReportArgs, device: Choice, stop: &Stop, printer: &Printer) -> Result<()> {
    let device = hardware::open(device, printer)?;
    if let Some(port) = args.serve {
        return show(args, port, &device, stop, printer);
    }
    let (study, out) = gathered(args, &device, printer)?;
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
    files(args, &study, &out, printer)
}

/// Writes plots and tables as files, if that was asked for.
fn files(args: &ReportArgs, study: &Study, out: &Path, printer: &Printer) -> Result<()> {
    if args.files {
        let (folder, number) = folder::publish_files(study, out)?;
        printer.note(format!("{number} plots and tables: {}", folder.display()));
    }
    Ok(())
}

/// What is known of the folders, and where its report goes.
fn gathered(args: &ReportArgs, device: &Device, printer: &Printer) -> Result<(Study, PathBuf)> {
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
    score::score(&ablation, &args.cache, device, &mut failures, &mut screen)?;
    drop(screen);
    let machine = folder::machine_of(&ablation.folder)?.unwrap_or_else(|| hardware::machine(None));
    Ok((gather::gather(&ablation, &failures, machine)?, out))
}

/// Makes the page that is shown, and writes it as without --serve.
fn anew(args: &ReportArgs, served: &serve::Served, device: &Device, printer: &Printer) -> Result<()> {
    let (study, out) = gathered(args, device, printer)?;
    served.show(&study)?;
    if study.variants.iter().any(|v| !v.runs.is_empty()) {
        folder::publish(&study, &out)?;
        files(args, &study, &out, printer)?;
    }
    Ok(())
}

/// Shows the page, and anew when something has come of the runs, until somebody says to stop.
fn show(args: &ReportArgs, port: u16, device: &Device, stop: &Stop, printer: &Printer) -> Result<()> {
    let served = serve::Served::start(port)?;
    let mut told = false;
    let mut seen = None;
    loop {
        let (began, now) = (Instant::now(), serve::state(&args.folders));
        if seen != Some(now) {
            match anew(args, &served, device, printer) {
                // Runs at work may be met between two files; the page that is shown stays.
                Err(e) if told => printer.warn(format!("{e:#}")),
                made => made?,
            }
            // Not as it is now: what was logged meanwhile is not on the page.
            seen = Some(now);
        }
        if !told {
            printer.result(&served.address())?;
            printer.note("Ctrl-C ends it; the page is made anew when something has come of the runs");
            told = true;
        }
        // Nothing is lost by a stop here.
        stop.left_to_others(true);
        let next = Instant::now() + serve::pause(began);
        while Instant::now() < next && !stop.asked() {
            std::thread::sleep(Duration::from_millis(100));
        }
        stop.left_to_others(false);
        if stop.asked() {
            return Ok(());
        }
    }
}
