//! `calm bench`.

use anyhow::Result;
use calm_train::Run;
use calm_train::measure::{MeasureOptions, measure};
use candle_core::Device;

use crate::args::{BenchArgs, Format};
use crate::error::Hinted;
use crate::screen::Screen;
use crate::ui::{Printer, Table, format};

/// Runs the command.
pub fn run(args: &BenchArgs, printer: &Printer) -> Result<()> {
    if !(args.seconds > 0.0 && args.seconds.is_finite()) || args.draws == 1 {
        return Err(Hinted::new(
            format!("--seconds {} --draws {}", args.seconds, args.draws),
            "give a time above 0, and 0 or at least 2 draws",
        )
        .into());
    }
    let run = Run::open(&args.run)?;
    let mut screen = Screen::new(printer);
    let options = MeasureOptions { seconds: args.seconds, draws: args.draws };
    let costs = measure(&run, &args.cache, &options, &Device::Cpu, &mut screen)?;
    drop(screen);
    if args.format == Format::Json {
        return Ok(printer.result(&serde_json::to_string_pretty(&costs)?)?);
    }
    let mut table = Table::new(&["what", "measured"]).title(args.run.display().to_string());
    let rate = |r: f64| format::rate(r, "tokens");
    table.row(["training".to_owned(), rate(costs.training)]);
    if let Some(peak) = costs.peak_memory {
        table.row(["peak memory of training".to_owned(), format::bytes(peak as f64)]);
    }
    if let Some(r) = costs.generation {
        table.row(["generation, T = 1".to_owned(), rate(r)]);
    }
    if let Some(r) = costs.generation_batch {
        table.row([format!("generation, T = 0.5, batch of {}", args.draws), rate(r)]);
    }
    Ok(printer.result(&table.to_string())?)
}
