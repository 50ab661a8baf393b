//! `calm train`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_config::{ConfigText, load};
use calm_data::{Source, TokenizerConfig};
use calm_kernels::device::Choice;
use calm_lm::ModelConfig;
use calm_parallel::forecast::Cluster;
use calm_parallel::{Patience, Ranks};
use calm_run::config::RunConfig;
use calm_run::results::Results;
use calm_run::run::CONFIG;
use calm_run::{Begin, Lock, Resumption, Run, Stage};
use calm_train::options::TrainOptions;
use calm_train::pipeline;
use calm_train::plan::cluster::ClusterPlan;
use calm_train::plan::{Plan, Target, describe};

use super::{RUNS, of_run};
use crate::args::{ClusterArgs, Format, TrainArgs};
use crate::error::Hinted;
use crate::fitting::Fitting;
use crate::hardware;
use crate::processes;
use crate::screen::Screen;
use crate::stop::Stop;
use crate::ui::Printer;
use crate::{report, shipped, version};

/// Runs the command: as the only process, as one of several, or as the one that starts them.
pub fn run(
    args: &TrainArgs,
    device: Choice,
    fitting: &Fitting,
    stop: &Stop,
    printer: &Printer,
) -> Result<()> {
    if let Some(number) = processes::to_start(args.processes)? {
        return processes::start(number, device, stop, printer);
    }
    let (ranks, device) = processes::join(args.processes, device, printer)?;
    let done = train(args, device, &ranks, stop, printer);
    processes::conclude(&ranks, done, fitting, stop, printer)
}

fn train(args: &TrainArgs, device: Choice, ranks: &Ranks, stop: &Stop, printer: &Printer) -> Result<()> {
    let folder =
        args.out.clone().unwrap_or_else(|| Path::new(RUNS).join(shipped::run_name(&args.source.config)));
    let resolved = load::<RunConfig>(configuration(args, &folder)?, &args.source.overrides)?;
    processes::agree(ranks, args, device, &resolved)?;
    if args.dry_run {
        if ranks.leads() {
            dry_run(&resolved.value, args, device, ranks.size(), printer)?;
        }
        ranks.meet("the plan, made by rank 0", Patience::WhileTheyAnswer).map_err(processes::hinted)?;
        return Ok(());
    }
    let begin = match (args.resume, args.restart) {
        (true, _) => Begin::Resume,
        (_, true) => Begin::Restart(args.stage),
        _ => Begin::New,
    };
    for other in [&args.init_from, &args.autoencoder].into_iter().flatten() {
        if same(other, &folder) {
            return Err(Hinted::new(
                format!("{} is the run itself, not another one to take weights from", other.display()),
                "give the new run a folder of its own with --out",
            )
            .into());
        }
    }
    if !args.resume {
        let (init_from, autoencoder) = (args.init_from.as_deref(), args.autoencoder.as_deref());
        calm_train::reuse::look(&resolved.value, args.stage, init_from, autoencoder)?;
    }
    let choice = device;
    let device = hardware::open(choice, printer)?;
    hardware::check_precision(resolved.value.precision, &device, choice)?;
    let options = TrainOptions {
        only: args.stage,
        resume: args.resume,
        init_from: args.init_from.clone(),
        autoencoder_from: args.autoencoder.clone(),
        cache: args.cache.clone(),
        ranks: ranks.clone(),
        provenance: version::provenance(Some(describe(&device))),
        skip_scores: args.skip_scores,
    };
    let mut screen = Screen::new(printer).stopped_by(stop);
    if !ranks.leads() {
        return Ok(pipeline::follow(&folder, &options, &device, &mut screen)?);
    }
    let lock = Lock::take(&folder, &mut |note| printer.warn(note))?;
    let resumption = Resumption::decide(&folder, &resolved, begin)?;
    let run = resumption.run().clone();
    printer.note(format!("run folder {}", folder.display()));
    let results = pipeline::begin(&resumption, &options, &device, &mut screen)?;
    drop(screen);
    drop(lock);
    if args.skip_scores {
        return Ok(());
    }
    show(&run.config.model, &results, args.format, printer)?;
    next_commands(&run, &folder, &results, printer);
    Ok(())
}

/// The configuration that was asked for. A run's own file means that run as it is now.
fn configuration(args: &TrainArgs, folder: &Path) -> Result<ConfigText> {
    let name = &args.source.config;
    let own = folder.join(CONFIG);
    if !same(Path::new(name), &own) {
        return Ok(shipped::find(name)?);
    }
    of_run(&own, folder)
}

/// Whether two paths lead to the same place.
fn same(a: &Path, b: &Path) -> bool {
    a.canonicalize().ok().is_some_and(|a| b.canonicalize().is_ok_and(|b| a == b))
}

/// Seconds from one GPU to another beside the bytes' time, in another node and in the same: assumed.
const BETWEEN_NODES: f64 = 10e-6;
const IN_A_NODE: f64 = 3e-6;

fn dry_run(
    config: &RunConfig,
    args: &TrainArgs,
    choice: Choice,
    processes: usize,
    printer: &Printer,
) -> Result<()> {
    let target = match args.memory {
        Some(memory) => Target::gpus_with(memory, args.cluster.world.unwrap_or(1)),
        None => {
            let device = hardware::open(choice, printer)?;
            if config.precision.check(&device).is_err() {
                printer.warn("precision bf16 needs a GPU: this plan is of f32 on the CPU; see --memory");
            }
            Target::of(&device, config.precision)?.among(processes)
        }
    };
    let mut screen = Screen::new(printer);
    let found = calm_data::prepare(&config.data, &config.tokenizer, &args.cache, &mut |p| {
        calm_train::reporter::Reporter::data(&mut screen, &p);
    });
    drop(screen);
    let mut plan = match (found, args.memory.and(vocabulary(config))) {
        (Ok(mut corpus), _) => {
            corpus.tokenizer = config.fit(corpus.tokenizer).map_err(calm_run::Error::from)?;
            Plan::new(config, &corpus, &target)
        }
        // A plan for another machine may be asked for where the text is not.
        (Err(e), Some(vocab)) => {
            let text = format!("the text cannot be read here ({e})");
            Plan::of_sizes(config, vocab, None, text, &target)
        }
        (Err(e), None) => return Err(e.into()),
    };
    if let (Some(world), Some(rate)) = (args.cluster.world, args.cluster.rate) {
        let ClusterArgs { gpus_per_node, link, node_link, .. } = args.cluster;
        let (latency, node_latency) = (BETWEEN_NODES, IN_A_NODE);
        let cluster = Cluster { world, gpus_per_node, rate, link, node_link, latency, node_latency };
        plan.cluster = Some(ClusterPlan::new(config, plan.vocab_size, cluster)?);
    }
    match args.format {
        Format::Json => printer.result(&serde_json::to_string_pretty(&plan)?)?,
        Format::Table => printer.result(&report::plan(&plan))?,
    }
    let stages: Vec<Stage> = plan.stages.iter().map(|s| s.stage).collect();
    if let Some(warning) = plan.check(&stages)? {
        printer.warn(&warning);
    }
    Ok(())
}

/// V, where a configuration alone tells it.
fn vocabulary(config: &RunConfig) -> Option<usize> {
    /// Tokens of the Llama-3 ranks with their special ones, and PAD.
    const LLAMA3: usize = 128_257;
    let own = match &config.tokenizer {
        TokenizerConfig::Bpe(bpe) => Some(bpe.vocab_size),
        TokenizerConfig::Llama3(_) => Some(LLAMA3),
        _ => None,
    };
    config.vocabulary.map(|v| v.size).or(own)
}

fn show(model: &ModelConfig, results: &Results, format: Format, printer: &Printer) -> Result<()> {
    if format == Format::Json {
        return Ok(printer.result(&serde_json::to_string_pretty(results)?)?);
    }
    if let Some(r) = &results.autoencoder {
        printer.result(&report::autoencoder(r))?;
    }
    if let Some(b) = &results.brier {
        printer.result(&report::brier(model, b))?;
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
        format!(" --run {}", crate::ui::pasted(folder))
    };
    let mut lines = vec!["next:".to_owned()];
    if results.brier.is_some() {
        // Of other text nobody knows how it begins.
        let sources = matches!(run.config.data.source, Source::Crates(_));
        let prompt = if sources { " --prompt \"fn main() {\"" } else { "" };
        lines.push(format!("  calm generate{run_option}{prompt} --temperature 0.5"));
        lines.push(format!("  calm eval brierlm{run_option} --format json"));
    }
    if run.config.model.autoencoder().is_some() {
        lines.push(format!("  calm eval autoencoder{run_option}"));
    }
    lines.push(format!("  tensorboard --logdir {}", crate::ui::pasted(&folder.join("tensorboard"))));
    printer.note(lines.join("\n"));
}
