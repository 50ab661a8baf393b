//! `calm eval brierlm` and `calm eval autoencoder`.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::Result;
use calm_data::chat::LossOn;
use calm_data::source::records::strict;
use calm_eval::EvalConfig;
use calm_kernels::device::Choice;
use calm_stats::bootstrap::{Bootstrap, report};
use calm_stats::samples::{DocumentNames, FORMAT, SampleToken, SamplesOptions, score_samples};
use calm_train::pipeline::prepare_data;
use calm_train::scoring::{Means, reconstruct_run, score_run};

use super::{decoded_by, open_run, text_of, which};
use crate::args::{BrierArgs, Format, LossOnName, OtherText, ReconstructArgs, TextSource};
use crate::error::Hinted;
use crate::hardware;
use crate::report as tables;
use crate::screen::Screen;
use crate::ui::Printer;

/// The run's evaluation settings with what the command line says.
fn settings(eval: &EvalConfig, text: &TextSource, draws: Option<usize>) -> Result<EvalConfig> {
    let mut eval = eval.clone();
    if text.data.is_some() {
        // Another text is scored whole unless asked otherwise.
        eval.documents = None;
        eval.chunks_per_document = None;
    }
    if text.documents == Some(0) {
        return Err(Hinted::new("--documents 0 leaves nothing to score", "give 1 or more").into());
    }
    eval.documents = text.documents.or(eval.documents);
    if let Some(chunks) = text.chunks {
        eval.chunks_per_document = chunks.0;
    }
    if let Some(n) = draws {
        if n < 2 {
            return Err(Hinted::new(
                format!("--draws {n}: Brier scores compare two draws"),
                "give 2 or more",
            )
            .into());
        }
        eval.samples = n;
    }
    Ok(eval)
}

/// `calm eval brierlm`
pub fn brierlm(args: &BrierArgs, device: Choice, printer: &Printer) -> Result<()> {
    if let Some(path) = &args.samples {
        return samples(path, args, printer);
    }
    let run = decoded_by(open_run(&args.source)?, args.decode)?;
    if args.loss_on == Some(LossOnName::All) && run.config.model.reads_input() {
        return Err(Hinted::new(
            "--loss-on all leaves no input, and this run was trained with attention that looks at one",
            "leave --loss-on out to score it as it was trained",
        )
        .into());
    }
    let device = hardware::open(device, printer)?;
    let run = run.on(&device);
    let mut eval = settings(&run.config.eval, &args.text, args.draws)?;
    eval.bound_samples = args.bound_draws.unwrap_or(eval.bound_samples);
    let other_text = args.text.data.is_some();
    let trained = run.record()?.is_some_and(|r| !r.corpus_hash.is_empty());
    if super::protocols::asked(args) || (other_text && !trained) {
        return super::protocols::brierlm(&run, &eval, args, &device, printer);
    }
    let mut screen = Screen::new(printer);
    let corpus = match prepare_data(&run, &args.source.cache, &mut screen) {
        // Other text can be scored without the text of the run.
        Err(_) if other_text => {
            drop(screen);
            return super::protocols::brierlm(&run, &eval, args, &device, printer);
        }
        corpus => corpus?,
    };
    let (held_out, _) = match &args.text.data {
        Some(_) => text_of(&run, args.other(), &args.source.cache, &mut screen)?,
        None => (corpus.validation.clone(), corpus.tokenizer.clone()),
    };
    let means = Means::alone(&eval, &device);
    let found = score_run(&run, &corpus, &held_out, which(&args.source), &means, &mut screen)?;
    let (results, condition) = (found.brier, found.condition);
    drop(screen);
    match args.text.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&results)?)?,
        Format::Table => {
            printer.result(&tables::brier(&run.config.model, &results))?;
            if let Some(c) = &condition {
                printer.result(&tables::condition(c))?;
            }
        }
    }
    Ok(())
}

fn samples(path: &Path, args: &BrierArgs, printer: &Printer) -> Result<()> {
    let file = File::open(path).map_err(|e| {
        Hinted::new(format!("cannot read {}: {e}", path.display()), "give a JSON-lines file of samples")
    })?;
    let eos = args.eos.as_ref().map(|t| match t.parse() {
        Ok(id) => SampleToken::Id(id),
        Err(_) => SampleToken::Text(t.clone()),
    });
    let mut names = DocumentNames::default();
    // Other fields of a line may hold the numbers that Python writes and JSON does not have.
    let lines = BufReader::new(file).lines().map(|line| line.map(|line| strict(&line).unwrap_or(line)));
    let sums = score_samples(lines, &SamplesOptions { eos }, &mut names)
        .map_err(|e| Hinted::new(format!("{}: {e}", path.display()), e.remedy().unwrap_or(FORMAT)))?;
    let r = report(&sums, &Bootstrap::default());
    match args.text.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&r)?)?,
        Format::Table => printer.result(&tables::brier_report(&r, "samples"))?,
    }
    Ok(())
}

/// `calm eval autoencoder`
pub fn autoencoder(args: &ReconstructArgs, device: Choice, printer: &Printer) -> Result<()> {
    let run = open_run(&args.source)?;
    let device = hardware::open(device, printer)?;
    let run = run.on(&device);
    let eval = settings(&run.config.eval, &args.text, None)?;
    let mut screen = Screen::new(printer);
    // The autoencoder learned every chunk.
    let other = args.text.other().map(|other| OtherText { loss_on: Some(LossOn::All), ..other });
    let (held_out, tokenizer) = text_of(&run, other, &args.source.cache, &mut screen)?;
    let means = Means::alone(&eval, &device);
    let r = reconstruct_run(&run, &tokenizer, &held_out, which(&args.source), &means, &mut screen)?;
    drop(screen);
    match args.text.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&r)?)?,
        Format::Table => printer.result(&tables::autoencoder(&r))?,
    }
    Ok(())
}
