//! `calm ablate`.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_config::{Resolved, load};
use calm_data::Corpus;
use calm_kernels::device::{self, Choice};
use calm_nn::Precision;
use calm_report::study::Machine;
use calm_run::checkpoint::{write_json, write_text};
use calm_run::config::RunConfig;
use calm_run::{Begin, Error, Run, Stage};
use calm_study::config::{AblationConfig, Budget};
use calm_study::costs::{self, Meter};
use calm_study::execute::{Failures, execute, missing, prepare};
use calm_study::plan::{ABLATION, Ablation, Sizes};
use calm_study::{gather, score};
use calm_train::pipeline::Reporter;
use calm_train::plan::{Plan, Target, describe};
use serde_json::{Value, json};

use super::RUNS;
use super::report::{publish, table};
use crate::args::{AblateArgs, Format};
use crate::children::Children;
use crate::error::{Hinted, hint};
use crate::hardware;
use crate::screen::Screen;
use crate::ui::{Printer, Table, format};
use crate::{report, shipped, version};

/// File of an ablation's folder with the rates that turned a budget of seconds into steps.
const RATES: &str = "rates.json";
/// File of an ablation's folder that says where and when it was scored and measured.
const MACHINE: &str = "machine.json";
/// Rounds in which the rates of a budget of seconds are measured.
const PILOT_ROUNDS: usize = 3;

/// Runs the command.
pub fn run(args: &AblateArgs, threads: Option<usize>, device: Choice, printer: &Printer) -> Result<()> {
    // Children open it: a process that only waits would hold memory there.
    let choice = hardware::check(device)?;
    let mut resolved = load::<AblationConfig>(shipped::find_ablation(&args.config)?, &args.overrides)?;
    if let Some(data) = &args.data {
        // One path means the same from every folder.
        let data = data.canonicalize().unwrap_or_else(|_| data.clone());
        resolved.value.set.insert("data.source".into(), json!({ "path": data }));
        resolved.tree["set"]["data.source"] = json!({ "path": data });
    }
    let folder = args.out.clone().unwrap_or_else(|| Path::new(RUNS).join(shipped::run_name(&args.config)));
    let mut children = Children::new(threads, choice, &args.cache, printer);
    children.catch_interrupts();
    let lock = if args.dry_run { None } else { Some(lock(&folder)?) };
    let (ablation, plans, corpus) = {
        let mut screen = Screen::new(printer);
        let mut sizes = Measured::new(&folder, &args.cache, &mut screen, &mut children, args.dry_run);
        sizes.choice = choice;
        let ablation = Ablation::expand(&resolved.value, &folder, &shipped::find, &mut sizes)?;
        let plans = sizes.plans(&ablation)?;
        let corpus = sizes.corpus(&ablation.runs[0].config.value)?.clone();
        (ablation, plans, corpus)
    };
    let text = plan_table(&ablation, &plans, args.dry_run)?;
    if args.dry_run {
        return Ok(printer.result(&text)?);
    }
    printer.note(text);
    prepare(&ablation, &corpus)?;
    write_text(&folder.join(ABLATION), &resolved.to_yaml())?;
    let stopped =
        || Hinted::new("stopped; what was trained so far is kept", "run the same command again to go on");
    let Some(mut failures) = execute(&ablation, &mut children)? else {
        return Err(stopped().into());
    };
    let mut screen = Screen::new(printer);
    let used = {
        let device = hardware::open(choice, printer)?;
        score::score(&ablation, &args.cache, &device, &mut failures, &mut screen)?;
        describe(&device)
    };
    drop(screen);
    let threads = working(threads);
    let machine = Machine { device: used, ..machine(threads) };
    write_json(&folder.join(MACHINE), &machine)?;
    // What was trained and scored is in the report whatever becomes of the measurement.
    let mut study = gather::gather(&ablation, &failures, machine.clone())?;
    let page = publish(&study, &folder)?;
    if ablation.config.score.rounds > 0 {
        if !costs::measure(&ablation, threads, &mut children, &mut failures)? {
            return Err(stopped().into());
        }
        study = gather::gather(&ablation, &failures, machine)?;
        publish(&study, &folder)?;
    }
    match args.format {
        Format::Json => printer.result(&calm_report::json(&study)?)?,
        Format::Table => printer.result(&table(&study))?,
    }
    printer.note(format!("report: {}", page.display()));
    drop(lock);
    match failures.len() {
        0 => Ok(()),
        n => Err(failed(n, &failures)),
    }
}

fn failed(n: usize, failures: &Failures) -> anyhow::Error {
    let runs = if n == 1 { "run" } else { "runs" };
    let list: Vec<String> = failures.iter().map(|(run, why)| format!("{run}: {why}")).collect();
    Hinted::new(
        format!("{n} {runs} failed, the others are in the report\n  {}", list.join("\n  ")),
        "mend the cause and run the same command again: what is finished is kept",
    )
    .into()
}

/// Keeps a second process from training the same runs at the same time.
fn lock(folder: &Path) -> Result<File> {
    let cannot = |e: std::io::Error| {
        Hinted::new(format!("cannot write in {}: {e}", folder.display()), "choose another folder with --out")
    };
    std::fs::create_dir_all(folder).map_err(cannot)?;
    let file = File::create(folder.join(".lock")).map_err(cannot)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Hinted::new(
            format!("another calm works on {}", folder.display()),
            "wait for it, or give this one its own folder with --out",
        )
        .into()),
        // A file system without locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(file),
    }
}

/// Threads that work.
fn working(threads: Option<usize>) -> usize {
    threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Who makes a study, here and today.
pub fn machine(threads: usize) -> Machine {
    Machine {
        platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        threads,
        device: String::new(),
        version: version::VERSION.to_owned(),
        commit: version::commit(),
        date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
    }
}

/// Who made the study that lies in a folder; who asks, if nobody wrote it down.
pub fn machine_of(folder: &Path) -> Machine {
    std::fs::read_to_string(folder.join(MACHINE))
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_else(|| machine(working(None)))
}

/// Sizes from the text itself, rates from a pilot.
struct Measured<'a, 'p> {
    folder: PathBuf,
    cache: PathBuf,
    screen: &'a mut Screen<'p>,
    children: &'a mut Children<'p>,
    /// Nothing may be written: rates that are not known are estimated.
    dry: bool,
    choice: Choice,
    /// The device with its rate in a number format.
    targets: Vec<(Precision, Target)>,
    corpora: Vec<(Value, Corpus)>,
    /// Tokens a second of each round, by what was measured.
    rates: BTreeMap<String, Vec<f64>>,
}

impl<'a, 'p> Measured<'a, 'p> {
    fn new(
        folder: &Path,
        cache: &Path,
        screen: &'a mut Screen<'p>,
        children: &'a mut Children<'p>,
        dry: bool,
    ) -> Self {
        let rates = std::fs::read_to_string(folder.join(RATES))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        Self {
            folder: folder.to_owned(),
            cache: cache.to_owned(),
            screen,
            children,
            dry,
            choice: Choice::Cpu,
            targets: Vec::new(),
            corpora: Vec::new(),
            rates,
        }
    }

    /// The text of a configuration, read once for all that share it.
    fn corpus(&mut self, config: &RunConfig) -> calm_run::Result<&Corpus> {
        let key = json!([config.data, config.tokenizer, config.vocabulary]);
        let at = match self.corpora.iter().position(|(k, _)| *k == key) {
            Some(at) => at,
            None => {
                let mut corpus =
                    calm_data::prepare(&config.data, &config.tokenizer, &self.cache, &mut |p| {
                        self.screen.data(&p);
                    })?;
                self.screen.data_done();
                corpus.tokenizer = config.fit(corpus.tokenizer)?;
                self.corpora.push((key, corpus));
                self.corpora.len() - 1
            }
        };
        Ok(&self.corpora[at].1)
    }

    /// What a measured rate belongs to.
    fn rate_key(&self, config: &RunConfig) -> String {
        let cores = std::thread::available_parallelism().ok().map(usize::from);
        let mut what = json!([config, std::env::consts::ARCH, cores]);
        if let (Choice::Auto | Choice::Cuda(_), Ok((gpus, _))) = (self.choice, device::gpus()) {
            let number = if let Choice::Cuda(number) = self.choice { number } else { 0 };
            what = json!([what, gpus.get(number).map(|g| &g.name)]);
        }
        calm_study::hash(&what)
    }

    /// The device that trains, as plans need it.
    fn target(&mut self, config: &RunConfig) -> Result<Target> {
        if let Some((_, target)) = self.targets.iter().find(|(p, _)| *p == config.precision) {
            return Ok(target.clone());
        }
        let device = hardware::open(self.choice, self.screen.printer())?;
        hardware::check_precision(config.precision, &device, self.choice)?;
        let target = Target::of(&device, config.precision)?;
        self.targets.push((config.precision, target.clone()));
        Ok(target)
    }

    /// Median of the rounds, if all were measured.
    fn median(&self, config: &RunConfig) -> Option<f64> {
        let mut rounds = self.rates.get(&self.rate_key(config)).filter(|r| r.len() >= PILOT_ROUNDS)?.clone();
        rounds.sort_by(f64::total_cmp);
        Some(rounds[rounds.len() / 2])
    }

    /// The plan of each variant's first run.
    fn plans(&mut self, ablation: &Ablation) -> Result<Vec<Plan>> {
        let mut plans = Vec::new();
        for run in &ablation.runs[..ablation.variants.len()] {
            let config = &run.config.value;
            let target = self.target(config)?;
            plans.push(Plan::new(config, self.corpus(config)?, &target));
        }
        Ok(plans)
    }
}

impl Sizes for Measured<'_, '_> {
    fn vocab_size(&mut self, config: &RunConfig) -> calm_run::Result<usize> {
        Ok(self.corpus(config)?.tokenizer.vocab_size())
    }

    /// All variants in turn, several rounds: what else the machine does falls on all of them alike.
    fn rates(&mut self, variants: &[(String, RunConfig)]) -> calm_run::Result<Vec<f64>> {
        if self.dry {
            let known: Vec<Option<f64>> = variants.iter().map(|(_, c)| self.median(c)).collect();
            let mut rates = Vec::new();
            for ((_, config), known) in variants.iter().zip(known) {
                rates.push(match known {
                    Some(rate) => rate,
                    None => {
                        let target = self
                            .target(config)
                            .map_err(|e| Error::user(e.to_string(), hint(&e).unwrap_or_default()))?;
                        let plan = Plan::new(config, self.corpus(config)?, &target);
                        let lm = plan.stages.last().and_then(|lm| Some((lm, lm.seconds?)));
                        lm.map_or(1.0, |(lm, seconds)| (lm.tokens_per_step * lm.steps) as f64 / seconds)
                    }
                });
            }
            return Ok(rates);
        }
        for round in 0..PILOT_ROUNDS {
            for (name, config) in variants {
                let key = self.rate_key(config);
                if self.rates.get(&key).is_some_and(|r| r.len() > round) {
                    continue;
                }
                let pilot = self.folder.join("pilot").join(name);
                let tree = serde_json::to_value(config)
                    .map_err(|e| Error::user(format!("cannot write the pilot's configuration: {e}"), ""))?;
                let overrides = Vec::new();
                let resolved =
                    Resolved { value: config.clone(), name: String::new(), path: None, overrides, tree };
                Run::create(&pilot, &resolved, Begin::Restart(None))?;
                let title = format!("training rate of {name}, round {} of {PILOT_ROUNDS}", round + 1);
                let Some(costs) = Meter::measure(self.children, &pilot, 0, &title)? else {
                    return Err(Error::user("stopped", "run the same command again to go on"));
                };
                self.rates.entry(key).or_default().push(costs.training);
                write_json(&self.folder.join(RATES), &self.rates)?;
            }
        }
        Ok(variants.iter().map(|(_, c)| self.median(c).unwrap_or(1.0)).collect())
    }
}

/// What is going to be trained, and what that costs.
fn plan_table(ablation: &Ablation, plans: &[Plan], dry: bool) -> Result<String> {
    let (autoencoders, runs) = missing(ablation)?;
    let seeds = ablation.config.seeds.len();
    let mut table = Table::new(&["each run", "runs", "steps", "tokens", "FLOPs", "time", "memory"])
        .title("plan (time and memory are estimates)");
    let (mut seconds, mut memory) = (0.0, 0.0f64);
    let mut row = |name: String, count: usize, left: usize, stage: &calm_train::plan::StagePlan| {
        table.row([
            format::shorten_front(&name, 34),
            count.to_string(),
            stage.steps.to_string(),
            format::count((stage.tokens_per_step * stage.steps) as f64),
            format!("{:.1e}", stage.flops),
            stage.seconds.map_or("?".into(), |t| format!("~{}", report::short(t))),
            format!("~{}", format::bytes(stage.memory.total())),
        ]);
        seconds += left as f64 * stage.seconds.unwrap_or(0.0);
        memory = memory.max(stage.memory.total());
    };
    let mut shown: Vec<usize> = Vec::new();
    for (i, plan) in plans.iter().enumerate() {
        let run = &ablation.runs[i];
        if let Some(at) = run.autoencoder
            && !shown.contains(&at)
            && let Some(stage) = plan.stages.iter().find(|s| s.stage == Stage::Autoencoder)
        {
            shown.push(at);
            let own = |r: &&calm_study::plan::PlannedRun| r.variant == i;
            let mut of: Vec<usize> = ablation.runs.iter().filter(own).filter_map(|r| r.autoencoder).collect();
            of.dedup();
            let left = of.iter().filter(|a| autoencoders.contains(a)).count();
            row(format!("autoencoder {}", ablation.autoencoders[at].name), of.len(), left, stage);
        }
        if let Some(stage) = plan.stages.iter().find(|s| s.stage == Stage::Lm) {
            let left = runs.iter().filter(|r| ablation.runs[**r].variant == i).count();
            row(ablation.variants[i].name.clone(), seeds, left, stage);
        }
    }
    let mut out = String::new();
    if !ablation.config.description.is_empty() {
        out.push_str(&format!("{}\n", format::wrap(&ablation.config.description, 78, "  ")));
    }
    if let Some(plan) = plans.first() {
        out.push_str(&format!(
            "{}\nvocabulary {}, {} training tokens\n{}\n",
            format::wrap(&plan.corpus, 78, "  "),
            plan.vocab_size,
            format::count(plan.training_tokens.unwrap_or(0) as f64),
            format::wrap(&report::device(plan), 78, "  "),
        ));
    }
    out.push_str(&table.to_string());
    let pilot = match (ablation.config.budget, dry) {
        (Budget::Seconds(_), true) => "; steps are estimates too until the start measures them",
        (Budget::Seconds(_), false) => "; steps follow from measured rates",
        _ => "",
    };
    out.push_str(&format!(
        "\nleft to train: {} autoencoder(s), {} run(s), ~{}; at most ~{} at a time{pilot}",
        autoencoders.len(),
        runs.len(),
        report::short(seconds),
        format::bytes(memory),
    ));
    Ok(out)
}
