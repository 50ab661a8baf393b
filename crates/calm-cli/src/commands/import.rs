//! `calm import`: a checkpoint of the reference implementation as a run.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_data::Llama3Config;
use calm_interchange::{ImportOptions, ImportReport, TokenizerFrom, import};
use calm_run::Stage;

use crate::args::ImportArgs;
use crate::ui::{Printer, pasted};
use crate::version;

/// Runs the command.
pub fn run(args: &ImportArgs, printer: &Printer) -> Result<()> {
    let tokenizer = tokenizer(args.tokenizer.as_ref(), args.llama3.as_deref());
    let report = import(&ImportOptions {
        folder: args.folder.clone(),
        out: args.out.clone(),
        tokenizer,
        autoencoder: args.autoencoder.clone(),
        data: args.data.clone(),
        from: None,
        provenance: version::provenance(None),
    })?;
    told(&report, "imported", false, &args.out, printer)
}

/// The tokenizer that somebody named.
pub(super) fn tokenizer(file: Option<&PathBuf>, llama3: Option<&str>) -> Option<TokenizerFrom> {
    if let Some(path) = file {
        return Some(TokenizerFrom::File(path.clone()));
    }
    let files = llama3?;
    let (ranks, config) = match files.split_once(',') {
        Some((ranks, config)) => (ranks, Some(config.into())),
        None => (files, None),
    };
    Some(TokenizerFrom::Llama3(Llama3Config { ranks: ranks.into(), config }))
}

/// Says what a run was made of, and what can be done with it.
/// A run that is as it was goes on with its own text alone.
pub(super) fn told(
    report: &ImportReport,
    how: &str,
    as_it_was: bool,
    out: &Path,
    printer: &Printer,
) -> Result<()> {
    for note in &report.notes {
        printer.warn(note);
    }
    let stages: Vec<String> =
        report.stages.iter().map(|(stage, n)| format!("{stage} with {n} parameters")).collect();
    let made = format!("{}: {} {how}", report.architecture, stages.join(", "));
    printer.result(&format!("{made} into {}", out.display()))?;
    let (run, config) = (pasted(out), pasted(&out.join("config.yaml")));
    let mut next = vec!["next:".to_owned()];
    if report.stages.iter().all(|(stage, _)| *stage == Stage::Autoencoder) {
        next.push(format!("  calm eval autoencoder --run {run} --data TEXT"));
    } else {
        next.push(format!("  calm generate --run {run} --prompt TEXT"));
        next.push(format!("  calm eval brierlm --run {run}"));
        let text = if as_it_was { "" } else { " --set 'data.source={path: TEXT}'" };
        next.push(format!("  calm train --config {config} --out {run}{text} --resume"));
    }
    printer.note(next.join("\n"));
    Ok(())
}
