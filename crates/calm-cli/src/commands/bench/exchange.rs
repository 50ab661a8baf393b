//! `calm bench --what exchange`: as one of several processes.

use anyhow::Result;
use calm_bench::{Exchanged, Machine, Place, exchange};
use calm_kernels::device::Choice;
use calm_nn::Precision;
use calm_parallel::Ranks;
use serde::Serialize;

use super::figures::{gigabytes, spread, time};
use crate::args::{BenchArgs, BenchItem, Format};
use crate::error::Hinted;
use crate::fitting::Fitting;
use crate::hardware;
use crate::processes;
use crate::stop::Stop;
use crate::ui::{Printer, Table, Unit, format};
use crate::version;

/// What was exchanged.
#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    machine: Machine,
    /// Machine of each process.
    hosts: Vec<String>,
    exchange: Vec<Exchanged>,
}

/// Runs the command, where it is one for several processes; false if it is not.
pub(super) fn run(
    args: &BenchArgs,
    device: Choice,
    fitting: &Fitting,
    stop: &Stop,
    printer: &Printer,
) -> Result<bool> {
    let asked = args.what.contains(&BenchItem::Exchange);
    let alone = args.run.is_some() || args.what.iter().any(|item| *item != BenchItem::Exchange);
    if alone && (asked || args.processes.is_some_and(|number| number > 1)) {
        return Err(Hinted::new(
            "several processes measure what they exchange and nothing else",
            "--what exchange by itself; what one process does, without --processes",
        )
        .into());
    }
    if let Some(number) = processes::to_start(args.processes)? {
        processes::start(number, device, stop, printer)?;
        return Ok(true);
    }
    let (ranks, device) = processes::join(args.processes, device, printer)?;
    if ranks.is_alone() {
        return match asked {
            false => Ok(false),
            true => Err(Hinted::new(
                "--what exchange: one process has nobody to exchange anything with",
                "start more with --processes 2, or `mpirun -n 2 calm bench --what exchange`",
            )
            .into()),
        };
    }
    let done = match alone {
        true => Err(Hinted::new(
            format!("{} processes measure what they exchange and nothing else", ranks.size()),
            "--what exchange by itself, or one process",
        )
        .into()),
        false => measure(args, device, &ranks, printer),
    };
    processes::conclude(&ranks, done, fitting, stop, printer)?;
    Ok(true)
}

fn measure(args: &BenchArgs, device: Choice, ranks: &Ranks, printer: &Printer) -> Result<()> {
    let device = hardware::open(device, printer)?;
    let machine = Machine::at(version::VERSION, &Place::new(&device, Precision::F32)?);
    let mut report = Report { machine, hosts: ranks.hosts().to_vec(), exchange: Vec::new() };
    let bar = printer.progress("measuring", None, Unit::Other("measurements"));
    exchange(ranks, &device, args.seconds / 4.0, &mut |measured| {
        report.exchange.push(measured);
        bar.set(report.exchange.len() as u64, "");
    })
    .map_err(processes::hinted)?;
    bar.finish("");
    if !ranks.leads() {
        return Ok(());
    }
    let text = match args.format {
        Format::Json => serde_json::to_string_pretty(&report)?,
        Format::Table => table(&report),
    };
    Ok(printer.result(&text)?)
}

fn table(report: &Report) -> String {
    let machines: std::collections::BTreeSet<&String> = report.hosts.iter().collect();
    let machines = match machines.len() {
        1 => "one machine".to_owned(),
        n => format!("{n} machines"),
    };
    let head = format!("{} processes on {machines}, {}", report.hosts.len(), report.machine.device);
    let mut table = Table::new(&["exchange", "size", "time", "quartiles", "rate", "sent by each"]);
    for e in &report.exchange {
        table.row([
            e.what.name().to_owned(),
            format::bytes(e.bytes as f64),
            time(e.seconds.median),
            spread(e.seconds.median, e.seconds.quartiles),
            gigabytes(e.bytes_per_second),
            e.sent_per_second.map_or(String::new(), gigabytes),
        ]);
    }
    let legend = "size: of what each process has. sent by each: 2 (W - 1) / W of it for W processes, what \
                  `calm train --dry-run --link` takes where they stand on different machines.";
    format!("{}\n\n{table}\n\n{}", format::wrap(&head, 80, ""), format::wrap(legend, 80, ""))
}
