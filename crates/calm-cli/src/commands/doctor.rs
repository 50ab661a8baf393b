//! `calm doctor`: what there is to compute with, what it reaches, and what stands in the way.

use std::path::Path;
use std::thread::available_parallelism;

use anyhow::Result;
use calm_bench::{Machine, MatrixRate, matrix_peak, memory};
use serde::Serialize;

use crate::args::{DoctorArgs, Format};
use crate::ui::{Printer, Table, format};
use crate::version;

/// Other programs' share of a core from which times are no measurements.
const BUSY: f64 = 0.3;
/// Less memory than this does not train the quickstart beside anything else.
const LITTLE_MEMORY: u64 = 1 << 30;

#[derive(Serialize)]
struct Findings {
    #[serde(flatten)]
    machine: Machine,
    commit: Option<String>,
    features: Vec<String>,
    cores: usize,
    /// Those that operators choose between at run time.
    instructions: Vec<&'static str>,
    memory_bytes: Option<u64>,
    memory_available_bytes: Option<u64>,
    /// Mean number of programs that wanted to run in the last minute.
    load: Option<f64>,
    matrix: Vec<MatrixRate>,
    copy_bytes_per_second: f64,
    /// Version of the NVIDIA driver, if one is loaded.
    gpu_driver: Option<String>,
    problems: Vec<Problem>,
}

#[derive(Serialize)]
struct Problem {
    what: String,
    remedy: &'static str,
}

/// Runs the command.
pub fn run(args: &DoctorArgs, printer: &Printer) -> Result<()> {
    // Before we add to it.
    let load = load();
    printer.note("measuring for a few seconds");
    let (matrix, copy) = matrix_peak(args.seconds);
    let mut findings = Findings {
        machine: Machine::here(version::VERSION),
        commit: version::commit(),
        features: version::features(),
        cores: available_parallelism().map_or(1, usize::from),
        instructions: instructions(),
        memory_bytes: memory::of_system("MemTotal"),
        memory_available_bytes: memory::of_system("MemAvailable"),
        load,
        matrix,
        copy_bytes_per_second: copy,
        gpu_driver: gpu_driver(Path::new("/proc/driver/nvidia/version")),
        problems: Vec::new(),
    };
    findings.problems = problems(&findings);
    if args.format == Format::Json {
        return Ok(printer.result(&serde_json::to_string_pretty(&findings)?)?);
    }
    Ok(printer.result(&text(&findings))?)
}

fn load() -> Option<f64> {
    std::fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

fn instructions() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let known = [
            ("AVX2", is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            ("AVX-512", is_x86_feature_detected!("avx512f")),
            ("AVX-512 VNNI", is_x86_feature_detected!("avx512vnni")),
        ];
        known.into_iter().filter(|k| k.1).map(|k| k.0).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        Vec::new()
    }
}

fn gpu_driver(path: &Path) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    let line = text.lines().next()?;
    // `NVRM version: NVIDIA UNIX ... 580.65.06  Release Build ...`: the first word that is a version.
    let version =
        line.split_whitespace().find(|w| w.contains('.') && w.starts_with(|c: char| c.is_ascii_digit()));
    Some(version.unwrap_or(line).to_owned())
}

fn problems(f: &Findings) -> Vec<Problem> {
    let mut found = Vec::new();
    let mut add = |what: String, remedy: &'static str| found.push(Problem { what, remedy });
    if cfg!(debug_assertions) {
        add("this is a debug build: numbers take many times longer".into(), "cargo build --release");
    }
    if f.machine.threads < f.cores {
        let what = format!("only {} of {} cores are used", f.machine.threads, f.cores);
        add(what, "leave out --threads and RAYON_NUM_THREADS, unless other work needs the rest");
    }
    if f.machine.threads > f.cores {
        let what = format!("{} threads on {} cores wait for each other", f.machine.threads, f.cores);
        add(what, "no more --threads (or RAYON_NUM_THREADS) than cores");
    }
    if let Some(load) = f.load.filter(|load| *load > BUSY) {
        let what = format!("{load:.1} cores were busy in the last minute, before this command");
        add(what, "training beside them is slow; time nothing until they are done");
    }
    if let Some(free) = f.memory_available_bytes.filter(|free| *free < LITTLE_MEMORY) {
        add(
            format!("{} of memory are free", format::bytes(free as f64)),
            "end other programs, or train with a smaller batch_rows and more accumulation",
        );
    }
    if cfg!(target_arch = "x86_64") && !f.instructions.contains(&"AVX2") {
        add("the processor has no AVX2: operators run on narrow vectors".into(), "another machine");
    }
    if std::env::var("CANDLE_NUM_THREADS").is_ok_and(|n| n != "1") {
        add(
            "CANDLE_NUM_THREADS starts a second pool, which waits by spinning".into(),
            "unset CANDLE_NUM_THREADS",
        );
    }
    if let Some(driver) = &f.gpu_driver {
        let what = format!("an NVIDIA driver ({driver}) is loaded, but this build computes on the CPU only");
        add(what, "none yet: calm has no CUDA backend");
    }
    found
}

fn text(f: &Findings) -> String {
    let commit = f.commit.as_ref().map_or(String::new(), |c| format!(" ({c})"));
    let mut table = Table::new(&["", ""]).title(format!("calm {}{commit}", f.machine.version));
    let mut row = |name: &str, value: String| {
        table.row([name.to_owned(), value]);
    };
    row("devices compiled in", f.features.join(", "));
    row("processor", f.machine.device.clone());
    row("cores, threads used", format!("{}, {}", f.cores, f.machine.threads));
    if !f.instructions.is_empty() {
        row("vector instructions", f.instructions.join(", "));
    }
    if let (Some(all), Some(free)) = (f.memory_bytes, f.memory_available_bytes) {
        row("memory, free", format!("{}, {}", format::bytes(all as f64), format::bytes(free as f64)));
    }
    for rate in &f.matrix {
        row(&format!("matrix product {}", rate.shape), format!("{:.0} GFLOP/s", rate.flops_per_second / 1e9));
    }
    row("copying memory", format!("{:.1} GB/s read and written", f.copy_bytes_per_second / 1e9));
    row("NVIDIA driver", f.gpu_driver.clone().unwrap_or_else(|| "none".to_owned()));
    let mut out = vec![table.to_string()];
    for p in &f.problems {
        out.push(format!("{}\n  -> {}", format::wrap(&p.what, 80, "  "), p.remedy));
    }
    if f.problems.is_empty() {
        out.push("nothing stands in the way".to_owned());
    }
    out.join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_version_is_found_in_its_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("version");
        assert_eq!(gpu_driver(&path), None);
        std::fs::write(
            &path,
            "NVRM version: NVIDIA UNIX Open Kernel Module  580.65.06  Release Build\nGCC\n",
        )
        .unwrap();
        assert_eq!(gpu_driver(&path), Some("580.65.06".into()));
    }
}
