//! `calm demo`: a small model in two minutes, and what it is made of: chunks, latent vectors, how much noise these stand,
//! text at three temperatures, scores.

mod shown;

use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_config::{Resolved, load};
use calm_data::Source;
use calm_kernels::device::Choice;
use calm_run::checkpoint::StageState;
use calm_run::config::RunConfig;
use calm_run::results::Results;
use calm_run::run::CONFIG;
use calm_run::{Begin, Lock, Resumption, Run, Stage};
use calm_train::options::TrainOptions;
use calm_train::pipeline;
use calm_train::plan::{Plan, describe};
use calm_train::reporter::Reporter;
use calm_train::training::{Observer, StepReport, Validation};

use self::shown::WIDTH;
use crate::args::DemoArgs;
use crate::book::PAGES;
use crate::error::Hinted;
use crate::hardware;
use crate::screen::Screen;
use crate::stop::Stop;
use crate::ui::{Printer, format, pasted};
use crate::{report, shipped, version};

/// The configuration that is trained.
const NAME: &str = "demo";

/// Runs the command.
pub fn run(args: &DemoArgs, choice: Choice, stop: &Stop, printer: &Printer) -> Result<()> {
    let resolved = configuration(args, printer)?;
    let device = hardware::open(choice, printer)?;
    let lock = Lock::take(&args.out, &mut |note| printer.warn(note))?;
    // What was stopped goes on; what is finished is only shown.
    let begun = args.out.join(CONFIG).is_file();
    let begin = if begun { Begin::Resume } else { Begin::New };
    let resumption = Resumption::decide(&args.out, &resolved, begin)?;
    let run = resumption.run().clone();
    let options = TrainOptions {
        resume: begun,
        cache: args.cache.clone(),
        provenance: version::provenance(Some(describe(&device))),
        ..TrainOptions::default()
    };
    let mut screen = Quiet(Screen::new(printer).stopped_by(stop));
    let results = pipeline::begin(&resumption, &options, &device, &mut screen)?;
    drop(screen);
    drop(lock);
    let run = run.on(&device);
    let parts = shown::Parts::load(&run, &args.cache, &device, printer)?;
    for part in [
        parts.chunks()?,
        parts.latents()?,
        parts.noise()?,
        results.autoencoder.as_ref().map(report::autoencoder),
        Some(parts.samples()?),
        results.brier.as_ref().map(|brier| report::brier(&run.config.model, brier)),
    ]
    .into_iter()
    .flatten()
    {
        printer.result(&format!("{part}\n"))?;
    }
    end(&run, &results, &args.out, printer)
}

/// The demonstration's settings, on the default corpus where it is, else on the book that is in this program.
fn configuration(args: &DemoArgs, printer: &Printer) -> Result<Resolved<RunConfig>> {
    let own = args.out.join(CONFIG);
    if own.is_file() {
        // As it was begun: whatever is there now.
        return Ok(load(super::of_run(&own, &args.out)?, &args.overrides)?);
    }
    let text = shipped::find(NAME)?;
    let resolved = load::<RunConfig>(text.clone(), &args.overrides)?;
    if !matches!(resolved.value.data.source, Source::Crates(_)) {
        return Ok(resolved);
    }
    let mut screen = Screen::new(printer);
    let data = &resolved.value.data;
    let found = calm_data::prepare(data, &resolved.value.tokenizer, &args.cache, &mut |p| screen.data(&p));
    drop(screen);
    let of_user = args.overrides.iter().any(|setting| setting.trim_start().starts_with("data"));
    let missing = match found {
        Ok(_) => return Ok(resolved),
        Err(missing @ calm_data::Error::MissingCrates { .. }) if !of_user => missing,
        Err(other) => return Err(other.into()),
    };
    let folder = book(&args.cache)?;
    printer.note(format!(
        "the default corpus is not on this machine: this program's own book is the text ({missing})"
    ));
    let source = format!("data.source={{path: {}}}", serde_json::json!(folder));
    let overrides: Vec<String> = args.overrides.iter().cloned().chain([source]).collect();
    Ok(load(text, &overrides)?)
}

/// Writes the pages of the book as texts.
fn book(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("book");
    for (name, page) in PAGES {
        let path = folder.join(format!("{name}.txt"));
        if std::fs::read(&path).is_ok_and(|there| there == page.as_bytes()) {
            continue;
        }
        calm_files::write_bytes(&path, page.as_bytes()).map_err(|e| {
            let what = format!("cannot write {}: {e}", path.display());
            Hinted::new(what, "name a folder that can be written with --cache")
        })?;
    }
    Ok(folder)
}

/// The last words.
fn end(run: &Run, results: &Results, folder: &Path, printer: &Printer) -> Result<()> {
    let scored = results.brier.as_ref();
    let score = scored.and_then(|brier| brier.report.brierlm).map_or_else(
        || "undefined: it needs all four scores above 0".to_owned(),
        |score| format!("{score:.2}, between 0 and 100"),
    );
    let text = format!(
        "This was {}: K = {} tokens a chunk, trained in minutes. BrierLM is {score}. More steps, data and width is what \
         it lacks.",
        run.config.model.title(),
        run.config.chunk_size(),
    );
    printer.result(&format::wrap(&text, WIDTH, ""))?;
    let run_folder = pasted(folder);
    let next = [
        "next:".to_owned(),
        format!("  calm generate --run {run_folder} --temperature 0.5"),
        "  calm train --config quickstart".to_owned(),
        "  calm init-config --set 'data.source={path: MY.txt}'".to_owned(),
    ];
    printer.note(next.join("\n"));
    Ok(())
}

/// A screen that leaves out what somebody who looks for the first time does not need: the plan, and validations.
struct Quiet<'a>(Screen<'a>);

impl Observer for Quiet<'_> {
    fn begin(&mut self, stage: Stage, from: u64, steps: u64) {
        self.0.begin(stage, from, steps);
    }
    fn step(&mut self, report: &StepReport) {
        self.0.step(report);
    }
    fn validation(&mut self, _: Stage, _: u64, _: &Validation) {}
    fn end(&mut self, stage: Stage, state: &StageState) {
        self.0.end(stage, state);
    }
    fn should_stop(&self) -> bool {
        self.0.should_stop()
    }
    fn alarm(&mut self, _: Stage, text: &str) {
        self.0.warn(text);
    }
}

impl Reporter for Quiet<'_> {
    fn data(&mut self, progress: &calm_data::Progress) {
        self.0.data(progress);
    }
    fn data_done(&mut self) {
        self.0.data_done();
    }
    fn note(&mut self, text: &str) {
        self.0.note(text);
    }
    fn plan(&mut self, plan: &Plan) {
        let parameters: u64 = plan.stages.iter().map(|stage| stage.parameter_count()).sum();
        let text = format!(
            "calm demo: a CALM of {} parameters, trained on {}",
            format::count(parameters as f64),
            plan.corpus
        );
        self.0.note(&format::wrap(&text, WIDTH, "  "));
    }
    fn scoring(&mut self, what: &str, done: usize, total: usize) {
        self.0.scoring(what, done, total);
    }
    fn warn(&mut self, text: &str) {
        self.0.warn(text);
    }
}
