//! `calm report`: an ablation, or any finished runs, as a page, CSV and JSON.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_kernels::device::Choice;
use calm_report::Study;
use calm_report::study::Estimate;
use calm_run::Run;
use calm_run::checkpoint::write_text;
use calm_study::execute::{FAILURES, Failures};
use calm_study::plan::{ABLATION, Ablation};
use calm_study::{gather, score};

use super::RUNS;
use super::ablate::machine_of;
use crate::args::{Format, ReportArgs};
use crate::error::Hinted;
use crate::hardware;
use crate::screen::Screen;
use crate::ui::{Printer, Table, format};

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
    let mut failures: Failures = std::fs::read_to_string(ablation.folder.join(FAILURES))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    let mut screen = Screen::new(printer);
    score::score(&ablation, &args.cache, &device, &mut failures, &mut screen)?;
    drop(screen);
    let study = gather::gather(&ablation, &failures, machine_of(&ablation.folder))?;
    if study.variants.iter().all(|v| v.runs.is_empty()) {
        let why = study.notes.first().map_or(String::new(), |n| format!(": {n}"));
        return Err(Hinted::new(
            format!("no run is finished yet{why}"),
            "train the runs to their end (calm train, calm ablate), then ask for their report",
        )
        .into());
    }
    let page = publish(&study, &out)?;
    match args.format {
        Format::Json => printer.result(&calm_report::json(&study)?)?,
        Format::Table => printer.result(&table(&study))?,
    }
    printer.note(format!("report: {}", page.display()));
    Ok(())
}

/// Writes the page, the CSV and the JSON of a study; returns the page's path.
pub fn publish(study: &Study, folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder).map_err(|e| {
        Hinted::new(format!("cannot create {}: {e}", folder.display()), "choose another folder with --out")
    })?;
    write_text(&folder.join("study.json"), &calm_report::json(study)?)?;
    write_text(&folder.join("report.csv"), &calm_report::csv(study))?;
    let page = folder.join("report.html");
    write_text(&page, &calm_report::html(study)?)?;
    Ok(page)
}

/// The study in a terminal's width.
pub fn table(study: &Study) -> String {
    let mut table = Table::new(&["variant", "Brier-1", "BrierLM", "train", "generate", "tok/s", "memory"])
        .title(format!("{}: {}", study.name, study.budget));
    let cell = |e: &Estimate| match e.se() {
        Some(se) => format!("{:.2} ±{se:.2}", e.value),
        None => format!("{:.2}", e.value),
    };
    for v in &study.variants {
        let score = v.aligned.as_ref();
        let lm = score.map(|s| s.brierlm.as_ref().map_or("undefined".to_owned(), cell));
        let measured = v.measured.as_ref();
        table.row([
            format::shorten_front(&v.name, 22),
            score.and_then(|s| s.brier.first()).map_or("-".into(), cell),
            lm.unwrap_or_else(|| "-".into()),
            format!("{:.1e}", v.costs.training()),
            format!("{:.1e}", v.costs.inference()),
            measured.map_or("-".into(), |m| format::count(m.training)),
            measured.and_then(|m| m.peak_memory).map_or("-".into(), |m| format::bytes(m as f64)),
        ]);
    }
    for n in &study.ngrams {
        let brier = n.brier.first().map_or("-".into(), |b| format!("{b:.2}"));
        let lm = n.brierlm.map_or("undefined".into(), |b| format!("{b:.2}"));
        let rest = std::iter::repeat_n(String::new(), 4);
        table.row([n.name.clone(), brier, lm].into_iter().chain(rest));
    }
    let seeds = study.variants.iter().filter_map(|v| v.aligned.as_ref()).map(|s| s.seeds).min().unwrap_or(0);
    let parts = if seeds > 1 { "documents and seeds" } else { "documents only: one seed" };
    let legend = format!(
        "percent ± one standard error ({parts}); FLOPs a token by formula; tok/s and memory of \
         training as measured; scored on {}",
        study.aligned
    );
    let mut out = format!("{table}\n{}", format::wrap(&legend, 78, ""));
    out.push('\n');
    if !study.differences.is_empty() {
        out.push_str(&differences(study));
    }
    for note in &study.notes {
        out.push_str(&format!("{}\n", format::wrap(&format!("note: {note}"), 78, "  ")));
    }
    out
}

/// What can be told apart.
fn differences(study: &Study) -> String {
    let against = &study.differences[0].against;
    let mut table = Table::new(&["variant", "score", "difference", "± 95 %", "verdict"])
        .title(format!("differences to {against}, paired by document and seed"));
    for d in &study.differences {
        let (name, estimate) = match (&d.brierlm, d.brier.first()) {
            (Some(lm), _) if lm.half_width.is_some() => ("BrierLM", lm),
            (_, Some(brier)) => ("Brier-1", brier),
            (_, None) => continue,
        };
        let verdict = match (estimate.resolved(), estimate.detectable) {
            (Some(true), _) => "resolved".to_owned(),
            (Some(false), Some(least)) => format!("not resolved; {least:.2} would be"),
            _ => "-".to_owned(),
        };
        table.row([
            format::shorten_front(&d.variant, 26),
            name.to_owned(),
            format!("{:+.2}", estimate.estimate.value),
            estimate.half_width.map_or("-".into(), |h| format!("{h:.2}")),
            verdict,
        ]);
    }
    format!("\n{table}\n")
}
