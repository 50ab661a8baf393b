//! What the `calm` binary is made of: arguments, commands, the screen. The work is done by the other crates.

#![allow(clippy::missing_errors_doc, reason = "commands answer the person in front of the screen")]

pub mod args;
mod book;
mod children;
pub mod commands;
mod comparison;
mod error;
pub mod fitting;
mod hardware;
mod memory;
mod placement;
mod processes;
mod report;
mod screen;
pub mod shipped;
mod start;
mod started;
mod stop;
pub mod ui;
pub mod version;
mod watch;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command, EvalCommand};
use fitting::Fitting;
use stop::Stop;
use ui::{Printer, UiOptions, Verbosity};

/// Parses the command line and runs it. Exit code 0: done; 1: an error, printed with its remedy; 2: usage; 128 and the
/// signal: stopped.
pub fn main() -> ExitCode {
    // SAFETY: this is the start of `main`; no other thread runs.
    unsafe { start::forget_empty_variables() };
    let arguments = start::arguments(std::env::args_os(), start::home().as_deref());
    let mut cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(e) => {
            let code = e.exit_code();
            let _ = e.print();
            return ExitCode::from(code as u8);
        }
    };
    // `srun bash jobs.sh` starts as many ablations, each of which trains what the others do not.
    if matches!(cli.command, Some(Command::Ablate(_))) {
        // SAFETY: this is still the start of `main`; no other thread runs.
        unsafe { start::forget_launchers() };
    }
    memory::keep_freed();
    let verbosity = match cli.quiet {
        _ if !calm_parallel::speaks() => Verbosity::Silent,
        true => Verbosity::Quiet,
        false => Verbosity::Normal,
    };
    let printer = Printer::new(UiOptions { verbosity, ..UiOptions::default() });
    let fitting = Fitting::new(cli.command.as_ref());
    let (threads, note) = match start::threads(cli.threads) {
        Ok(found) => found,
        Err(e) => return printer.conclude_with(Err(e.into()), |e| fitting.remedy(e)),
    };
    note.iter().for_each(|note| printer.warn(note));
    cli.threads = threads;
    let stop = Stop::listen(&printer);
    // On a thread of the pool: one outside would sleep and be woken for every parallel loop.
    match rayon::scope(|_| run(&cli, &fitting, &stop, &printer)) {
        Err(e) if error::is_stop(&e) => {
            printer.stopped(&e.to_string(), fitting.remedy(&e).as_deref());
            ExitCode::from(stop.code())
        }
        result => printer.conclude_with(result, |e| fitting.remedy(e)),
    }
}

fn run(cli: &Cli, fitting: &Fitting, stop: &Stop, printer: &Printer) -> anyhow::Result<()> {
    if cli.threads == Some(0) {
        return Err(error::Hinted::new("--threads 0", "give 1 or more").into());
    }
    if cli.version {
        return Ok(printer.result(&version::line())?);
    }
    let device = cli.device;
    match &cli.command {
        None => {
            let help = Cli::command().render_help().to_string();
            Ok(printer.result(&help)?)
        }
        Some(Command::Train(a)) => commands::train::run(a, device, fitting, stop, printer),
        Some(Command::Init(a)) => commands::init::run(a, printer),
        Some(Command::Data(a)) => commands::data::run(a, printer),
        Some(Command::Eval(EvalCommand::Brierlm(a))) => commands::eval::brierlm(a, device, printer),
        Some(Command::Eval(EvalCommand::Autoencoder(a))) => commands::eval::autoencoder(a, device, printer),
        Some(Command::Eval(EvalCommand::Attention(a))) => commands::attention::attention(a, device, printer),
        Some(Command::Eval(EvalCommand::Segments(a))) => commands::segments::segments(a, device, printer),
        Some(Command::Eval(EvalCommand::Compression(a))) => commands::compression::run(a, printer),
        Some(Command::Compress(a)) => commands::compress::compress(a, printer),
        Some(Command::Decompress(a)) => commands::compress::decompress(a, printer),
        Some(Command::Ablate(a)) => commands::ablate::run(a, cli.threads, device, stop, printer),
        Some(Command::Watch(a)) => commands::watch::run(a, stop, printer),
        Some(Command::Metrics(a)) => commands::metrics::run(a, printer),
        Some(Command::Report(a)) => commands::report::run(a, device, printer),
        Some(Command::Bench(a)) => commands::bench::run(a, device, fitting, stop, printer),
        Some(Command::Doctor(a)) => commands::doctor::run(a, device, printer),
        Some(Command::Generate(a)) => commands::generate::run(a, device, printer),
        Some(Command::Config(a)) => commands::config::run(a, printer),
        Some(Command::InitConfig(a)) => commands::init_config::run(a, printer),
        Some(Command::Explain(a)) => commands::explain::run(a, printer),
        Some(Command::Man(a)) => commands::man::run(a, printer),
        Some(Command::Latents(a)) => commands::latents::run(a, device, printer),
        Some(Command::Import(a)) => commands::import::run(a, printer),
        Some(Command::Export(a)) => commands::export::run(a, printer),
        Some(Command::Completions { shell }) => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "calm", &mut script);
            Ok(printer.text(&String::from_utf8_lossy(&script))?)
        }
    }
}
