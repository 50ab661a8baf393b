//! `calm ablate`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use calm_data::Corpus;
use calm_report::study::Machine;
use calm_study::config::{AblationConfig, Budget};
use calm_study::execute::{Failures, execute, missing, prepare};
use calm_study::plan::{Ablation, Sizes};
use calm_study::{costs, gather, score};
use calm_train::checkpoint::{write_json, write_text};
use calm_train::config::{ConfigText, Resolved, RunConfig, load};
use calm_train::pipeline::Reporter;
use calm_train::plan::Plan;
use calm_train::{Begin, Error, Run};
use candle_core::Device;
use serde_json::{Value, json};

use super::RUNS;
use super::report::{publish, table};
use crate::args::{AblateArgs, Format};
use crate::children::Children;
use crate::error::Hinted;
use crate::screen::Screen;
use crate::ui::{Printer, Table, format};
use crate::{report, shipped, version};

/// File of an ablation's folder with what was asked for.
pub const ABLATION: &str = "ablation.yaml";
/// File of an ablation's folder with the rates that turned a budget of seconds into steps.
const RATES: &str = "rates.json";

/// Runs the command.
pub fn run(args: &AblateArgs, threads: Option<usize>, printer: &Printer) -> Result<()> {
    let mut resolved = load::<AblationConfig>(shipped::find_ablation(&args.config)?, &args.overrides)?;
    if let Some(data) = &args.data {
        // One path means the same from every folder.
        let data = data.canonicalize().unwrap_or_else(|_| data.clone());
        resolved.value.set.insert("data.source".into(), json!({ "path": data }));
        resolved.tree["set"]["data.source"] = json!({ "path": data });
    }
    let folder = args.out.clone().unwrap_or_else(|| Path::new(RUNS).join(shipped::run_name(&args.config)));
    let mut children = Children::new(threads, &args.cache, printer);
    let (ablation, plans) = {
        let mut screen = Screen::new(printer);
        let mut sizes = Measured::new(&folder, &args.cache, &mut screen, &mut children, args.dry_run);
        let ablation = Ablation::expand(&resolved.value, &folder, &shipped::find, &mut sizes)?;
        let plans = sizes.plans(&ablation)?;
        (ablation, plans)
    };
    let text = plan_table(&ablation, &plans)?;
    if args.dry_run {
        return Ok(printer.result(&text)?);
    }
    printer.note(text);
    prepare(&ablation)?;
    write_text(&folder.join(ABLATION), &resolved.to_yaml())?;
    children.catch_interrupts();
    let stopped =
        || Hinted::new("stopped; what was trained so far is kept", "run the same command again to go on");
    let Some(mut failures) = execute(&ablation, &mut children)? else {
        return Err(stopped().into());
    };
    let mut screen = Screen::new(printer);
    score::score(&ablation, &args.cache, &Device::Cpu, &mut failures, &mut screen)?;
    drop(screen);
    if !costs::measure(&ablation, &mut children)? {
        return Err(stopped().into());
    }
    let study = gather::gather(&ablation, &failures, machine())?;
    let paths = publish(&study, &folder)?;
    match args.format {
        Format::Json => printer.result(&calm_report::json(&study)?)?,
        Format::Table => printer.result(&table(&study))?,
    }
    printer.note(format!("report: {}", paths.display()));
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

/// Who made a study.
pub fn machine() -> Machine {
    Machine {
        platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        version: version::VERSION.to_owned(),
        commit: version::commit(),
        date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
    }
}

/// The ablation that lies in a folder.
pub fn open(folder: &Path, cache: &Path, printer: &Printer) -> Result<Ablation> {
    let resolved: Resolved<AblationConfig> = load(ConfigText::read(&folder.join(ABLATION))?, &[])?;
    let mut children = Children::new(None, cache, printer);
    let mut screen = Screen::new(printer);
    let mut sizes = Measured::new(folder, cache, &mut screen, &mut children, true);
    Ok(Ablation::expand(&resolved.value, folder, &shipped::find, &mut sizes)?)
}

/// Sizes from the text itself, rates from a pilot.
struct Measured<'a, 'p> {
    folder: PathBuf,
    cache: PathBuf,
    screen: &'a mut Screen<'p>,
    children: &'a mut Children<'p>,
    /// Nothing may be written: rates that are not known are estimated.
    dry: bool,
    corpora: Vec<(Value, Corpus)>,
    rates: BTreeMap<String, f64>,
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
            corpora: Vec::new(),
            rates,
        }
    }

    /// The text of a configuration, read once for all that share it.
    fn corpus(&mut self, config: &RunConfig) -> calm_train::Result<&Corpus> {
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

    /// The plan of each variant's first run.
    fn plans(&mut self, ablation: &Ablation) -> Result<Vec<Plan>> {
        let mut plans = Vec::new();
        for run in &ablation.runs[..ablation.variants.len()] {
            let config = &run.config.value;
            plans.push(Plan::new(config, self.corpus(config)?)?);
        }
        Ok(plans)
    }
}

impl Sizes for Measured<'_, '_> {
    fn vocab_size(&mut self, config: &RunConfig) -> calm_train::Result<usize> {
        Ok(self.corpus(config)?.tokenizer.vocab_size())
    }

    fn rate(&mut self, variant: &str, config: &RunConfig) -> calm_train::Result<f64> {
        if let Some(rate) = self.rates.get(variant) {
            return Ok(*rate);
        }
        if self.dry {
            let plan = Plan::new(config, self.corpus(config)?)?;
            let Some(lm) = plan.stages.last() else { return Ok(1.0) };
            return Ok((lm.tokens_per_step * lm.steps) as f64 / lm.seconds);
        }
        let pilot = self.folder.join("pilot").join(variant);
        let tree = serde_json::to_value(config)
            .map_err(|e| Error::user(format!("cannot write the pilot's configuration: {e}"), ""))?;
        let resolved =
            Resolved { value: config.clone(), name: String::new(), path: None, overrides: Vec::new(), tree };
        Run::create(&pilot, &resolved, Begin::New)?;
        let title = format!("training rate of {variant}");
        let costs = costs::Meter::measure(self.children, &pilot, 0, &title)?;
        let Some(costs) = costs else {
            return Err(Error::user("stopped", "run the same command again to go on"));
        };
        self.rates.insert(variant.to_owned(), costs.training);
        write_json(&self.folder.join(RATES), &self.rates)?;
        Ok(costs.training)
    }
}

/// What is going to be trained, and what that costs.
fn plan_table(ablation: &Ablation, plans: &[Plan]) -> Result<String> {
    let (autoencoders, runs) = missing(ablation)?;
    let seeds = ablation.config.seeds.len();
    let mut table = Table::new(&["each run", "runs", "steps", "tokens", "FLOPs", "time", "memory"])
        .title("plan (time and memory are estimates)");
    let (mut seconds, mut memory) = (0.0, 0.0f64);
    let mut row = |name: String, count: usize, left: usize, stage: &calm_train::plan::StagePlan| {
        table.row([
            format::shorten(&name, 34),
            count.to_string(),
            stage.steps.to_string(),
            format::count((stage.tokens_per_step * stage.steps) as f64),
            format!("{:.1e}", stage.flops),
            format!("~{}", report::short(stage.seconds)),
            format!("~{}", format::bytes(stage.memory)),
        ]);
        seconds += left as f64 * stage.seconds;
        memory = memory.max(stage.memory);
    };
    let mut shown: Vec<usize> = Vec::new();
    for (i, plan) in plans.iter().enumerate() {
        let run = &ablation.runs[i];
        if let Some(at) = run.autoencoder
            && !shown.contains(&at)
            && let Some(stage) = plan.stages.iter().find(|s| s.stage == "autoencoder")
        {
            shown.push(at);
            let own = |r: &&calm_study::plan::PlannedRun| r.variant == i;
            let mut of: Vec<usize> = ablation.runs.iter().filter(own).filter_map(|r| r.autoencoder).collect();
            of.dedup();
            let left = of.iter().filter(|a| autoencoders.contains(a)).count();
            row(format!("autoencoder {}", ablation.autoencoders[at].name), of.len(), left, stage);
        }
        if let Some(stage) = plan.stages.iter().find(|s| s.stage == "lm") {
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
            "{}\nvocabulary {}, {} training tokens; this machine multiplies at {}FLOP/s\n",
            format::wrap(&plan.corpus, 78, "  "),
            plan.vocab_size,
            format::count(plan.training_tokens as f64),
            format::count(plan.matrix_rate),
        ));
    }
    out.push_str(&table.to_string());
    let pilot = match ablation.config.budget {
        Budget::Seconds(_) => "; steps follow from measured rates",
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
