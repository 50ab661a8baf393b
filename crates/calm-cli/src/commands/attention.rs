//! `calm eval attention`.

use anyhow::Result;
use calm_kernels::device::Choice;
use calm_train::scoring::Scorer;

use super::{open_run, text_of, which};
use crate::args::{AttentionArgs, Format};
use crate::error::Hinted;
use crate::hardware;
use crate::report as tables;
use crate::screen::Screen;
use crate::ui::Printer;

/// `calm eval attention`
pub fn attention(args: &AttentionArgs, device: Choice, printer: &Printer) -> Result<()> {
    let run = open_run(&args.source)?;
    if args.windows == 0 {
        return Err(Hinted::new("--windows 0 leaves nothing to look at", "give 1 or more").into());
    }
    let device = hardware::open(device, printer)?;
    let run = run.on(&device);
    let mut screen = Screen::new(printer);
    let (text, tokenizer) = text_of(&run, None, &args.source.cache, &mut screen)?;
    let scorer = Scorer::load(&run, which(&args.source), &tokenizer, &device)?;
    let found = scorer.attention(&text, args.windows, &mut screen)?;
    drop(screen);
    let found = found.ok_or_else(|| {
        Hinted::new(
            format!(
                "{}: no window of held-out text fills a row, or the model ({}) has no attention over its positions alone",
                run.folder.display(),
                run.config.model.title()
            ),
            "give a run of baseline, calm, patch or multi-token whose held-out documents are longer than its context",
        )
    })?;
    match args.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&found)?)?,
        Format::Table => printer.result(&tables::attention(&found))?,
    }
    Ok(())
}
