//! `calm bench`.

mod exchange;
mod figures;

use anyhow::Result;
use calm_bench::{Machine, MatrixRate, Measured, MeasuredOperator, Options, Place, Size, What, operators};
use calm_kernels::device::Choice;
use calm_run::Run;
use calm_train::measure::{MeasureOptions, measure};
use figures::{gflops, gigabytes, spread, time};
use serde::Serialize;

use crate::args::{BenchArgs, BenchItem, Format};
use crate::error::Hinted;
use crate::fitting::Fitting;
use crate::hardware;
use crate::memory;
use crate::screen::Screen;
use crate::stop::Stop;
use crate::ui::{Printer, Table, Unit, format};
use crate::version;

/// Runs the command.
pub fn run(
    args: &BenchArgs,
    device: Choice,
    fitting: &Fitting,
    stop: &Stop,
    printer: &Printer,
) -> Result<()> {
    if args.draws == 1 {
        return Err(Hinted::new("--draws 1", "give 0 or at least 2 draws").into());
    }
    if exchange::run(args, device, fitting, stop, printer)? {
        return Ok(());
    }
    match &args.run {
        Some(folder) => of_run(folder, args, device, printer),
        None => of_size(args, device, printer),
    }
}

/// Everything measured at a size.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    machine: Machine,
    size: String,
    matrix: Vec<MatrixRate>,
    copy_bytes_per_second: Option<f64>,
    operators: Vec<MeasuredOperator>,
    /// What a GPU could not do, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    skipped: Vec<Skipped>,
    work: Vec<Measured>,
}

#[derive(Serialize)]
struct Skipped {
    name: &'static str,
    reason: String,
}

impl Skipped {
    fn new(name: &'static str, reason: &str) -> Self {
        Self { name, reason: reason.lines().next().unwrap_or_default().to_owned() }
    }
}

fn of_size(args: &BenchArgs, choice: Choice, printer: &Printer) -> Result<()> {
    let sizes = Size::all();
    let Some(size) = sizes.get(&args.size) else {
        let names: Vec<_> = sizes.keys().map(String::as_str).collect();
        return Err(Hinted::new(
            format!("--size {}: there is no such size", args.size),
            format!("sizes: {}", names.join(", ")),
        )
        .into());
    };
    let everything: Vec<BenchItem> =
        [BenchItem::Matrix, BenchItem::Operators].into_iter().chain(What::ALL.map(BenchItem::Work)).collect();
    let items = if args.what.is_empty() { &everything } else { &args.what };
    let device = hardware::open(choice, printer)?;
    hardware::check_precision(args.precision.into(), &device, choice)?;
    let place = Place::new(&device, args.precision.into())?;
    let machine = Machine::at(version::VERSION, &place);
    let options = Options { seconds: args.seconds, give_back: memory::give_back };
    let mut report = Report {
        machine: machine.clone(),
        size: args.size.clone(),
        matrix: Vec::new(),
        copy_bytes_per_second: None,
        operators: Vec::new(),
        skipped: Vec::new(),
        work: Vec::new(),
    };
    let bar = printer.progress("measuring", items.len() as u64, Unit::Other("measurements"));
    for (done, item) in items.iter().enumerate() {
        match *item {
            BenchItem::Matrix => {
                let (matrix, copy) = calm_bench::matrix_peak(args.seconds, &place)?;
                (report.matrix, report.copy_bytes_per_second) = (matrix, Some(copy));
            }
            BenchItem::Operators => {
                for operator in operators::all(size, &place)? {
                    // There are many, with three measurements each.
                    let options = Options { seconds: args.seconds / 4.0, ..options };
                    let name = operator.name;
                    match calm_bench::operator(operator, &options, &place) {
                        Ok(measured) => report.operators.push(measured),
                        // One that a GPU has no memory for does not take the others along.
                        Err(e) if device.is_cuda() => report.skipped.push(Skipped::new(name, &e.to_string())),
                        Err(e) => return Err(e.into()),
                    }
                }
            }
            // Of several processes, which one is not.
            BenchItem::Exchange => {}
            BenchItem::Work(what) => {
                match calm_bench::work_at(what, &args.size, size, &options, &machine, &place) {
                    Ok(measured) => report.work.push(measured),
                    Err(e) if device.is_cuda() => {
                        report.skipped.push(Skipped::new(what.name(), &e.to_string()));
                    }
                    Err(e) => return Err(e.into()),
                }
            }
        }
        bar.set(done as u64 + 1, "");
    }
    bar.finish("");
    if args.format == Format::Json {
        return Ok(printer.result(&serde_json::to_string_pretty(&report)?)?);
    }
    Ok(printer.result(&tables(&report))?)
}

fn tables(report: &Report) -> String {
    let m = &report.machine;
    let head = format!("{}, {} threads, {}, size {}", m.device, m.threads, m.precision, report.size);
    let mut out = vec![format::wrap(&head, 80, "")];
    let best = report.matrix.iter().map(|r| r.flops_per_second).reduce(f64::max);
    if !report.matrix.is_empty() {
        let mut table = Table::new(&["peak", "measured"]);
        for rate in &report.matrix {
            table.row([format!("matrix product {}", rate.shape), gflops(rate.flops_per_second)]);
        }
        if let Some(copy) = report.copy_bytes_per_second {
            table.row(["copying memory, read and written".to_owned(), gigabytes(copy)]);
        }
        out.push(table.to_string());
    }
    if !report.operators.is_empty() {
        let mut table =
            Table::new(&["operator", "forward", "fwd+bwd", "composed", "gain", "rate", "of peak"]);
        for o in &report.operators {
            let whole = o.both.unwrap_or(o.forward).median;
            let plain = o.plain.map(|p| p.median);
            let (rate, peak) = match (o.flops_per_second, o.bytes_per_second) {
                (Some(f), _) => (gflops(f), best.map(|b| f / b)),
                (None, Some(b)) => (gigabytes(b), report.copy_bytes_per_second.map(|c| b / c)),
                (None, None) => (String::new(), None),
            };
            table.row([
                o.name.to_owned(),
                time(o.forward.median),
                o.both.map_or(String::new(), |s| time(s.median)),
                plain.map_or(String::new(), time),
                plain.map_or(String::new(), |p| format!("{:.1}", p / whole)),
                rate,
                peak.map_or(String::new(), |p| format::percent(p, 0)),
            ]);
        }
        out.push(table.to_string());
        out.push(format::wrap(
            "composed: the same of plain tensor operations, as far as the operator goes; gain: how many times \
             longer that takes. rate: arithmetic, or numbers read and written once; in-cache rates pass the peak of \
             copying.",
            80,
            "",
        ));
        for o in &report.operators {
            if let Some(why) = &o.plain_fails {
                let text = format!("{}: no composition here: {why}", o.name);
                out.push(format::wrap(&text, 80, "  "));
            }
        }
    }
    if !report.work.is_empty() {
        let headers = ["step", "time", "quartiles", "tokens/s", "GFLOP/s", "of peak", "memory", "peak"];
        let mut table = Table::new(&headers);
        for w in &report.work {
            let size = |bytes: Option<u64>| bytes.map_or(String::new(), |b| format::bytes(b as f64));
            table.row([
                w.what.name().to_owned(),
                time(w.seconds_per_step),
                quartiles(w),
                format::count(w.tokens_per_second),
                format!("{:.0}", w.flops_per_step / w.seconds_per_step / 1e9),
                w.utilisation.map_or(String::new(), |u| format::percent(u, 0)),
                size(w.step_memory),
                size(w.peak_gpu.or(w.peak_rss)),
            ]);
        }
        out.push(table.to_string());
        out.push(format::wrap(
            "FLOPs by formula, N head passes a position, nothing counted twice; peak: the same model's bare matrix \
             products, measured between the steps (on a GPU after them). memory: most that a step takes above what \
             stays between steps. peak: most memory of the process, or of tensors on the GPU.",
            80,
            "",
        ));
    }
    for s in &report.skipped {
        out.push(format::wrap(&format!("{} was not measured: {}", s.name, s.reason), 80, "  "));
    }
    out.join("\n\n")
}

fn quartiles(w: &Measured) -> String {
    spread(w.seconds_per_step, w.seconds_quartiles)
}

fn of_run(folder: &std::path::Path, args: &BenchArgs, choice: Choice, printer: &Printer) -> Result<()> {
    let run = Run::open(folder)?;
    let device = hardware::open(choice, printer)?;
    hardware::check_precision(run.config.precision, &device, choice)?;
    let mut screen = Screen::new(printer);
    let options = MeasureOptions { seconds: args.seconds, draws: args.draws };
    let costs = measure(&run, &args.cache, &options, &device, &mut screen)?;
    drop(screen);
    if args.format == Format::Json {
        return Ok(printer.result(&serde_json::to_string_pretty(&costs)?)?);
    }
    let mut table = Table::new(&["what", "measured"]).title(folder.display().to_string());
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
