//! `calm ablate`.

mod jobs;

use std::path::Path;

use anyhow::Result;
use calm_config::load;
use calm_kernels::device::{self, Choice};
use calm_nn::Precision;
use calm_report::study::Machine;
use calm_run::config::RunConfig;
use calm_run::{Error, Lock};
use calm_study::config::{AblationConfig, Budget};
use calm_study::execute::{Failures, check, execute, prepare};
use calm_study::outlook::Outlook;
use calm_study::plan::Ablation;
use calm_study::survey::{Site, Survey};
use calm_study::{costs, folder, gather, score};
use calm_train::plan::{Plan, Target, describe};
use serde_json::json;

use super::RUNS;
use crate::args::{AblateArgs, Format};
use crate::children::Children;
use crate::comparison::table;
use crate::error::{Hinted, remedy};
use crate::hardware;
use crate::screen::Screen;
use crate::stop::Stop;
use crate::ui::{Printer, Table, format};
use crate::{report, shipped};

/// Runs the command.
pub fn run(
    args: &AblateArgs,
    threads: Option<usize>,
    device: Choice,
    stop: &Stop,
    printer: &Printer,
) -> Result<()> {
    // Children open it: a process that only waits would hold memory there.
    let lanes = match args.print_jobs {
        // The jobs run elsewhere.
        true => vec![device],
        false => lanes(args, device)?,
    };
    let choice = lanes[0];
    let mut children = Children::new(threads, lanes, &args.cache, stop, printer);
    let config = match (&args.job, &args.out, &args.config) {
        (Some(job), Some(out), _) => return jobs::run(job, out, &children, printer),
        (_, _, config) => config.as_deref().unwrap_or_default(),
    };
    let mut resolved = load::<AblationConfig>(shipped::find_ablation(config)?, &args.overrides)?;
    if let Some(data) = &args.data {
        // One path means the same from every folder.
        let data = data.canonicalize().unwrap_or_else(|_| data.clone());
        resolved.value.set.insert("data.source".into(), json!({ "path": data }));
        resolved.tree["set"]["data.source"] = json!({ "path": data });
    }
    let out = args.out.clone().unwrap_or_else(|| Path::new(RUNS).join(shipped::run_name(config)));
    let lock = match args.dry_run {
        true => None,
        false => Some(Lock::take(&out, &mut |note| printer.warn(note))?),
    };
    let (ablation, plans, corpus) = {
        let mut screen = Screen::new(printer);
        let mut site = Here { choice, elsewhere: args.print_jobs, printer, targets: Vec::new() };
        let mut survey = Survey::new(&out, &args.cache, args.dry_run, &mut site, &mut children, &mut screen);
        let ablation = Ablation::expand(&resolved.value, &out, &shipped::find, &mut survey)?;
        let plans = survey.plans(&ablation)?;
        let corpus = survey.corpus(&ablation.runs[0].config.value)?.clone();
        (ablation, plans, corpus)
    };
    let outlook = Outlook::new(&ablation, &plans)?;
    children.at_most(outlook.autoencoders + outlook.runs);
    // On one device they share what it can do.
    let at_once = (children.lanes(), if args.devices.is_empty() { 1 } else { children.lanes() });
    let text = plan_table(&ablation, &plans, &outlook, at_once, args.dry_run);
    if args.dry_run {
        // What the real run would refuse is no plan.
        check(&ablation, &corpus)?;
        return Ok(printer.result(&text)?);
    }
    printer.note(text);
    prepare(&ablation, &corpus)?;
    ablation.save_config(&resolved)?;
    if args.print_jobs {
        return Ok(printer.result(&jobs::script(args, threads, device, &ablation)?)?);
    }
    let sharing = if args.devices.is_empty() { children.lanes() } else { 1 };
    if let Some(warning) = crowded(&plans, &outlook, sharing) {
        printer.warn(warning);
    }
    // Of several at work none says that it stops: this one does.
    stop.patient(children.lanes() > 1);
    let trained = execute(&ablation, &children, children.lanes());
    stop.patient(false);
    let Some(mut failures) = trained? else {
        return Err(Error::Stopped.into());
    };
    // All may have been trained when somebody asked.
    if stop.asked() {
        return Err(Error::Stopped.into());
    }
    let mut screen = Screen::new(printer);
    let used = {
        let device = hardware::open(choice, printer)?;
        score::score(&ablation, &args.cache, &device, &mut failures, &mut screen)?;
        describe(&device)
    };
    drop(screen);
    let machine = Machine { device: used, ..hardware::machine(threads) };
    folder::write_machine(&out, &machine)?;
    // What was trained and scored is in the report whatever becomes of the measurement.
    let mut study = gather::gather(&ablation, &failures, machine.clone())?;
    let page = folder::publish(&study, &out)?;
    if ablation.config.score.rounds > 0 {
        if let Err(damaged) = costs::kept(&ablation, None) {
            printer.warn(format!("{damaged}; they are measured again"));
        }
        if !costs::measure(&ablation, machine.threads, &mut children, &mut failures)? {
            return Err(Error::Stopped.into());
        }
        study = gather::gather(&ablation, &failures, machine)?;
        folder::publish(&study, &out)?;
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

/// The device of each run that is trained at a time.
fn lanes(args: &AblateArgs, device: Choice) -> Result<Vec<Choice>> {
    if args.processes == Some(0) {
        return Err(Hinted::new("--processes 0", "give 1 or more").into());
    }
    if args.devices.is_empty() {
        return Ok(vec![hardware::check(device)?; args.processes.unwrap_or(1)]);
    }
    // What stands in the environment is what `--device` is otherwise.
    if device != Choice::Auto && std::env::var_os("CALM_DEVICE").is_none() {
        return Err(Hinted::new(
            format!("--device {device} beside --devices: which of them?"),
            "leave one of them away; the first of --devices scores and measures",
        )
        .into());
    }
    for (at, device) in args.devices.iter().enumerate() {
        if *device == Choice::Auto {
            return Err(Hinted::new(
                "--devices auto: which one?",
                "name each, such as --devices cuda:0,cuda:1; `calm doctor` shows which there are",
            )
            .into());
        }
        if args.devices[..at].contains(device) {
            return Err(Hinted::new(
                format!("--devices: {device} is there twice"),
                "one run on each at a time; --processes trains several on one",
            )
            .into());
        }
        hardware::check(*device)?;
    }
    Ok(args.devices.clone())
}

/// What to say where so many runs at a time need more memory than there is, on a device that they share.
fn crowded(plans: &[Plan], outlook: &Outlook<'_>, lanes: usize) -> Option<String> {
    let target = &plans.first()?.target;
    let (needed, free) = (outlook.memory(lanes), target.free?);
    (lanes > 1 && needed > free).then(|| {
        format!(
            "{lanes} runs at a time need about {} of memory, and {} has {} free: the system may end some; fewer with --processes",
            format::bytes(needed),
            target.device,
            format::bytes(free)
        )
    })
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

/// The device that was asked for.
struct Here<'a> {
    choice: Choice,
    /// Whether it may be that of another machine.
    elsewhere: bool,
    printer: &'a Printer,
    /// The device with its rate in a number format.
    targets: Vec<(Precision, Target)>,
}

impl Here<'_> {
    fn find(&mut self, precision: Precision) -> Result<Target> {
        if let Some((_, target)) = self.targets.iter().find(|(p, _)| *p == precision) {
            return Ok(target.clone());
        }
        let target = match self.here(precision) {
            // A CPU is here, too.
            Err(_) if self.elsewhere && self.choice != Choice::Cpu => Target {
                device: "the device of the jobs".to_owned(),
                gpu: true,
                free: None,
                matrix_rate: None,
                devices: 1,
            },
            found => found?,
        };
        self.targets.push((precision, target.clone()));
        Ok(target)
    }

    /// The device of this machine with its rate.
    fn here(&self, precision: Precision) -> Result<Target> {
        let device = hardware::open(self.choice, self.printer)?;
        hardware::check_precision(precision, &device, self.choice)?;
        Ok(Target::of(&device, precision)?)
    }
}

impl Site for Here<'_> {
    fn target(&mut self, config: &RunConfig) -> calm_run::Result<Target> {
        self.find(config.precision).map_err(|e| Error::user(e.to_string(), remedy(&e).unwrap_or_default()))
    }

    fn gpu(&self) -> Option<String> {
        let number = match self.choice {
            Choice::Cpu => return None,
            Choice::Auto => 0,
            Choice::Cuda(number) => number,
        };
        let (gpus, _) = device::gpus().ok()?;
        gpus.get(number).map(|gpu| gpu.name.clone())
    }
}

/// What is going to be trained, and what that costs.
fn plan_table(
    ablation: &Ablation,
    plans: &[Plan],
    outlook: &Outlook<'_>,
    (lanes, devices): (usize, usize),
    dry: bool,
) -> String {
    let mut table = Table::new(&["each run", "runs", "steps", "tokens", "FLOPs", "time", "memory"])
        .title("plan (time and memory are estimates)");
    for planned in &outlook.stages {
        let stage = planned.stage;
        table.row([
            format::shorten_front(&planned.name, 34),
            planned.runs.to_string(),
            stage.steps.to_string(),
            format::count((stage.tokens_per_step * stage.steps) as f64),
            format!("{:.1e}", stage.flops),
            stage.seconds.map_or("?".into(), |t| format!("~{}", report::short(t))),
            format!("~{}", format::bytes(stage.memory.total())),
        ]);
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
    let memory = format::bytes(outlook.memory(lanes));
    let memory = match lanes {
        1 => format!("at most ~{memory} at a time"),
        n => format!("{n} at a time, at most ~{memory}"),
    };
    let time = match outlook.stages.iter().all(|planned| planned.stage.seconds.is_some()) {
        true => format!("~{}", report::short(outlook.seconds() / devices as f64)),
        false => "for a time that is unknown here".to_owned(),
    };
    out.push_str(&format!(
        "\nleft to train: {} autoencoder(s), {} run(s), {time}; {memory}{pilot}",
        outlook.autoencoders, outlook.runs,
    ));
    out
}
