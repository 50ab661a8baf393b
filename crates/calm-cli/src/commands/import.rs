//! `calm import`: a checkpoint of the reference implementation as a run.

use anyhow::Result;
use calm_data::Llama3Config;
use calm_interchange::{ImportOptions, TokenizerFrom, import};
use calm_run::Stage;

use crate::args::ImportArgs;
use crate::ui::{Printer, pasted};
use crate::version;

/// Runs the command.
pub fn run(args: &ImportArgs, printer: &Printer) -> Result<()> {
    let tokenizer = match (&args.tokenizer, &args.llama3) {
        (Some(path), _) => Some(TokenizerFrom::File(path.clone())),
        (None, Some(files)) => {
            let (ranks, config) = match files.split_once(',') {
                Some((ranks, config)) => (ranks, Some(config.into())),
                None => (files.as_str(), None),
            };
            Some(TokenizerFrom::Llama3(Llama3Config { ranks: ranks.into(), config }))
        }
        (None, None) => None,
    };
    let report = import(&ImportOptions {
        folder: args.folder.clone(),
        out: args.out.clone(),
        tokenizer,
        autoencoder: args.autoencoder.clone(),
        data: args.data.clone(),
        provenance: version::provenance(None),
    })?;
    for note in &report.notes {
        printer.warn(note);
    }
    let stages: Vec<String> =
        report.stages.iter().map(|(stage, n)| format!("{stage} with {n} parameters")).collect();
    let imported = format!("{}: {} imported", report.architecture, stages.join(", "));
    printer.result(&format!("{imported} into {}", args.out.display()))?;
    let (out, config) = (pasted(&args.out), pasted(&args.out.join("config.yaml")));
    let mut next = vec!["next:".to_owned()];
    if report.stages.iter().all(|(stage, _)| *stage == Stage::Autoencoder) {
        next.push(format!("  calm eval autoencoder --run {out} --data TEXT"));
    } else {
        next.push(format!("  calm generate --run {out} --prompt TEXT"));
        next.push(format!("  calm eval brierlm --run {out}"));
        next.push(format!(
            "  calm train --config {config} --out {out} --set 'data.source={{path: TEXT}}' --resume"
        ));
    }
    printer.note(next.join("\n"));
    Ok(())
}
