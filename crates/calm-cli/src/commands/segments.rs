//! `calm eval segments`.

use anyhow::Result;
use calm_run::results::SegmentResults;
use calm_train::scoring::{Means, Scorer, cuts_text};

use super::{open_run, text_of, which};
use crate::args::{Format, SegmentsArgs};
use crate::error::Hinted;
use crate::hardware;
use crate::report as tables;
use crate::screen::Screen;
use crate::ui::Printer;
use calm_kernels::device::Choice;

/// `calm eval segments`
pub fn segments(args: &SegmentsArgs, device: Choice, printer: &Printer) -> Result<()> {
    let run = open_run(&args.source)?;
    if !cuts_text(&run.config.model) {
        return Err(Hinted::new(
            format!(
                "{} is {}: it does not cut text into segments of its own",
                run.folder.display(),
                run.config.model.title()
            ),
            "give a run of a family that does: dlcm",
        )
        .into());
    }
    if args.documents == Some(0) {
        return Err(Hinted::new("--documents 0 leaves nothing to measure", "give 1 or more").into());
    }
    let device = hardware::open(device, printer)?;
    let run = run.on(&device);
    let mut eval = run.config.eval.clone();
    if !args.data.is_empty() {
        // Another text is measured whole unless asked otherwise.
        (eval.documents, eval.chunks_per_document) = (None, None);
    }
    eval.documents = args.documents.or(eval.documents);
    if let Some(chunks) = args.chunks {
        eval.chunks_per_document = chunks.0;
    }
    let mut screen = Screen::new(printer);
    let cache = &args.source.cache;
    let mut texts = Vec::new();
    for kind in &args.data {
        let (text, tokenizer) = text_of(&run, Some(args.other(kind)), cache, &mut screen)?;
        texts.push((kind.name.clone(), text, tokenizer));
    }
    if texts.is_empty() {
        let (text, tokenizer) = text_of(&run, None, cache, &mut screen)?;
        texts.push((SegmentResults::HELD_OUT.to_owned(), text, tokenizer));
    }
    let means = Means::alone(&eval, &device);
    let mut found = Vec::new();
    let mut scorer: Option<Scorer<'_>> = None;
    for (kind, text, tokenizer) in &texts {
        if scorer.is_none() {
            scorer = Some(Scorer::load(&run, which(&args.source), tokenizer, &device)?);
        }
        let segments =
            scorer.as_ref().map(|scorer| scorer.segments(text, means.eval, &mut screen)).transpose()?;
        if let Some(segments) = segments.flatten() {
            found.push(SegmentResults { kind: kind.clone(), segments });
        }
    }
    drop(screen);
    match args.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&found)?)?,
        Format::Table => printer.result(&tables::segments(&found))?,
    }
    Ok(())
}
