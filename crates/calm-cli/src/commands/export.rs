//! `calm export`: a run as a checkpoint of the reference implementation.

use anyhow::Result;
use calm_interchange::{ExportOptions, export};
use candle_core::DType;

use super::{open_run, which};
use crate::args::{DtypeName, ExportArgs, ExportFormat};
use crate::ui::Printer;

/// Runs the command.
pub fn run(args: &ExportArgs, printer: &Printer) -> Result<()> {
    let run = open_run(&args.source)?;
    let ExportFormat::Safetensors = args.format;
    let options =
        ExportOptions { out: args.out.clone(), which: which(&args.source), dtype: dtype(args.dtype) };
    let report = export(&run, &options)?;
    for note in &report.notes {
        printer.warn(note);
    }
    let files: Vec<String> = report.files.iter().map(|f| format!("  {}", f.display())).collect();
    Ok(printer.result(&format!(
        "{}: {} tensors written\n{}",
        report.architecture,
        report.tensors,
        files.join("\n")
    ))?)
}

/// The number format that was asked for; none: as it was recorded.
pub(super) fn dtype(name: DtypeName) -> Option<DType> {
    match name {
        DtypeName::Recorded => None,
        DtypeName::F32 => Some(DType::F32),
        DtypeName::Bf16 => Some(DType::BF16),
        DtypeName::F16 => Some(DType::F16),
    }
}
