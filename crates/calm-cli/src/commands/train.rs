//! `calm train`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_train::config::{ModelConfig, RunConfig, load};
use calm_train::pipeline::{Results, Stages, TrainOptions, train};
use calm_train::{Begin, Provenance, Run};
use candle_core::Device;

use super::RUNS;
use crate::args::{Format, StageName, TrainArgs};
use crate::error::Hinted;
use crate::screen::Screen;
use crate::ui::Printer;
use crate::{report, shipped, version};

/// Runs the command.
pub fn run(args: &TrainArgs, printer: &Printer) -> Result<()> {
    let resolved = load::<RunConfig>(shipped::find(&args.source.config)?, &args.source.overrides)?;
    let folder =
        args.out.clone().unwrap_or_else(|| Path::new(RUNS).join(shipped::run_name(&args.source.config)));
    if args.dry_run {
        return dry_run(&resolved.value, args, printer);
    }
    let stages = match args.stage {
        None => Stages::All,
        Some(StageName::Autoencoder) => Stages::Autoencoder,
        Some(StageName::Lm) => Stages::Lm,
    };
    let begin = match (args.resume, args.restart) {
        (true, _) => Begin::Resume,
        (_, true) => Begin::Restart(stages),
        _ => Begin::New,
    };
    for other in [&args.init_from, &args.autoencoder].into_iter().flatten() {
        let same = |a: &Path, b: &Path| {
            a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b))
        };
        if same(other, &folder) {
            return Err(Hinted::new(
                format!("{} is the run itself, not another one to take weights from", other.display()),
                "give the new run a folder of its own with --out",
            )
            .into());
        }
    }
    let run = Run::create(&folder, &resolved, begin)?;
    printer.note(format!("run folder {}", folder.display()));
    let options = TrainOptions {
        stages,
        resume: args.resume,
        init_from: args.init_from.clone(),
        autoencoder_from: args.autoencoder.clone(),
        cache: args.cache.clone(),
        provenance: Provenance {
            command: std::env::args().collect(),
            version: version::VERSION.to_owned(),
            commit: version::commit(),
            features: version::features(),
            failure: None,
        },
        skip_scores: args.skip_scores,
    };
    let mut screen = Screen::new(printer);
    screen.catch_interrupts();
    let results = train(&run, &options, &Device::Cpu, &mut screen).inspect_err(|e| run.note_failure(e))?;
    drop(screen);
    if args.skip_scores {
        return Ok(());
    }
    show(&results, args.format, printer)?;
    next_commands(&run, &folder, &results, printer);
    Ok(())
}

fn dry_run(config: &RunConfig, args: &TrainArgs, printer: &Printer) -> Result<()> {
    let mut screen = Screen::new(printer);
    let mut corpus = calm_data::prepare(&config.data, &config.tokenizer, &args.cache, &mut |p| {
        calm_train::pipeline::Reporter::data(&mut screen, &p);
    })?;
    drop(screen);
    corpus.tokenizer = config.fit(corpus.tokenizer).map_err(calm_train::Error::from)?;
    let plan = calm_train::plan::Plan::new(config, &corpus)?;
    match args.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&plan)?)?,
        Format::Table => printer.result(&report::plan(&plan))?,
    }
    Ok(())
}

fn show(results: &Results, format: Format, printer: &Printer) -> Result<()> {
    if format == Format::Json {
        return Ok(printer.result(&serde_json::to_string_pretty(results)?)?);
    }
    if let Some(r) = &results.autoencoder {
        printer.result(&report::autoencoder(r))?;
    }
    if let Some(b) = &results.brier {
        printer.result(&report::brier(b))?;
    }
    if let Some(c) = &results.condition {
        printer.result(&report::condition(c))?;
    }
    if let Some(text) = &results.sample {
        printer.result(&format!("a sample:\n{}", report::indent(text)))?;
    }
    Ok(())
}

fn next_commands(run: &Run, folder: &PathBuf, results: &Results, printer: &Printer) {
    let run_option = if *folder == Path::new(RUNS).join("quickstart") {
        String::new()
    } else {
        format!(" --run {}", folder.display())
    };
    let mut lines = vec!["next:".to_owned()];
    if results.brier.is_some() {
        lines.push(format!("  calm generate{run_option} --prompt \"fn main() {{\" --temperature 0.5"));
        lines.push(format!("  calm eval brierlm{run_option} --format json"));
    }
    if matches!(run.config.model, ModelConfig::Calm(_)) {
        lines.push(format!("  calm eval autoencoder{run_option}"));
    }
    lines.push(format!("  tensorboard --logdir {}", folder.join("tensorboard").display()));
    printer.note(lines.join("\n"));
}
