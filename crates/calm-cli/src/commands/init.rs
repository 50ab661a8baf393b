//! `calm init`: a run with random weights.

use anyhow::Result;
use calm_config::load;
use calm_run::config::RunConfig;
use calm_run::lock::LOCK;
use calm_run::{Begin, Lock, Run};
use calm_train::init::initialise;
use candle_core::Device;

use crate::args::InitArgs;
use crate::error::Hinted;
use crate::screen::Screen;
use crate::ui::format::count;
use crate::ui::{Printer, pasted};
use crate::{shipped, version};

/// Runs the command.
pub fn run(args: &InitArgs, printer: &Printer) -> Result<()> {
    let resolved = load::<RunConfig>(shipped::find(&args.source.config)?, &args.source.overrides)?;
    if std::fs::read_dir(&args.out).is_ok_and(|all| all.flatten().any(|entry| entry.file_name() != LOCK)) {
        let message = format!("{} is not empty", args.out.display());
        return Err(Hinted::new(message, "give a new folder with --out").into());
    }
    let lock = Lock::take(&args.out, &mut |note| printer.warn(note))?;
    let run = Run::create(&args.out, &resolved, Begin::New)?;
    let provenance = version::provenance(None);
    let mut screen = Screen::new(printer);
    // Weights are drawn on the CPU: there is nothing to compute.
    let stages = initialise(&run.on(&Device::Cpu), &args.cache, provenance, &Device::Cpu, &mut screen);
    drop(screen);
    // Half a run is none: the folder was empty before.
    let stages = stages.inspect_err(|_| {
        let _ = std::fs::remove_dir_all(&run.folder);
    })?;
    drop(lock);
    let stages: Vec<String> =
        stages.iter().map(|(stage, n)| format!("{stage} with {} parameters", count(*n as f64))).collect();
    printer.result(&format!("{}: random weights, {}", args.out.display(), stages.join(", ")))?;
    let out = pasted(&args.out);
    printer.note(format!(
        "next:\n  calm eval brierlm --run {out} --data TEXT --protocol reference\n  calm generate --run {out} --prompt TEXT"
    ));
    Ok(())
}
