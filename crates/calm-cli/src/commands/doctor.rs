//! `calm doctor`: what there is to compute with, what it reaches, and what stands in the way.

use std::path::Path;
use std::thread::available_parallelism;

use anyhow::Result;
use calm_bench::{GpuRates, Machine, MatrixRate, Place, gpu_rates, matrix_peak, memory};
use calm_kernels::device::{self, Choice, GpuInfo};
use serde::Serialize;

use crate::args::{DoctorArgs, Format};
use crate::hardware;
use crate::ui::{Printer, Table, format};
use crate::version;

/// Other programs' share of a core from which times are no measurements.
const BUSY: f64 = 0.3;
/// Less memory than this does not train the quickstart beside anything else.
const LITTLE_MEMORY: u64 = 1 << 30;

/// The oldest version of CUDA whose driver runs the kernels, as the driver counts.
const OLDEST_CUDA: i32 = 12_000;
/// The oldest compute capability with bf16 and the kernels' instructions.
const OLDEST_CAPABILITY: i32 = 8;

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
    /// Version of CUDA that the driver has, `13.0`.
    cuda: Option<String>,
    gpus: Vec<Gpu>,
    problems: Vec<Problem>,
}

/// A GPU, and what it reaches.
#[derive(Serialize)]
struct Gpu {
    /// As `--device` takes it.
    device: String,
    name: String,
    compute_capability: String,
    multiprocessors: usize,
    memory_bytes: usize,
    memory_free_bytes: usize,
    /// Null if it was not asked for, or cannot be used.
    rates: Option<GpuRates>,
}

#[derive(Serialize)]
struct Problem {
    what: String,
    remedy: String,
}

/// Runs the command.
pub fn run(args: &DoctorArgs, choice: Choice, printer: &Printer) -> Result<()> {
    let choice = hardware::check(choice)?;
    // Before we add to it.
    let load = load();
    printer.note("measuring for a few seconds");
    let (matrix, copy) = matrix_peak(args.seconds, &Place::cpu())?;
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
        cuda: None,
        gpus: Vec::new(),
        problems: Vec::new(),
    };
    findings.problems = problems(&findings);
    match device::gpus() {
        Ok((gpus, version)) => {
            let (major, minor) = (version / 1000, version % 1000 / 10);
            findings.cuda = Some(format!("{major}.{minor}"));
            if version < OLDEST_CUDA {
                findings.problems.push(Problem {
                    what: format!("NVIDIA's driver is of CUDA {major}.{minor}; the kernels need 12 or later"),
                    remedy: "a newer driver (525 or later)".into(),
                });
            }
            for info in gpus {
                let asked = choice == Choice::Auto || choice == Choice::Cuda(info.number);
                let (gpu, problem) = gpu(info, asked, args.seconds);
                findings.gpus.push(gpu);
                findings.problems.extend(problem);
            }
        }
        // Said by the driver's line already, or nobody expects a GPU here.
        Err(_) if !device::has_cuda() => {}
        Err(e) => findings
            .problems
            .push(Problem { what: format!("no GPU can be used: {}", e.reason), remedy: e.remedy }),
    }
    if args.format == Format::Json {
        return Ok(printer.result(&serde_json::to_string_pretty(&findings)?)?);
    }
    Ok(printer.result(&text(&findings))?)
}

/// A GPU, measured if it was asked for, with what stands in its way.
fn gpu(info: GpuInfo, asked: bool, seconds: f64) -> (Gpu, Option<Problem>) {
    let (major, minor) = info.capability;
    let name = Choice::Cuda(info.number).to_string();
    let problem =
        |what: String, remedy: &str| Some(Problem { what: format!("{name}: {what}"), remedy: remedy.into() });
    let mut found = None;
    let mut rates = None;
    if major < OLDEST_CAPABILITY {
        found = problem(
            format!("compute capability {major}.{minor}; the kernels and bf16 need 8.0 (Ampere) or later"),
            "a newer GPU, or --device cpu",
        );
    } else if asked {
        let opened = device::open(Choice::Cuda(info.number));
        match opened.and_then(|gpu| device::check(&gpu).and_then(|()| gpu_rates(&gpu, seconds))) {
            Ok(measured) => rates = Some(measured),
            Err(e) => {
                let line = e.to_string().lines().next().unwrap_or_default().to_owned();
                found = problem(
                    format!("it cannot be used: {line}"),
                    "a driver at least as new as the CUDA toolkit that built calm; see also `nvidia-smi`",
                );
            }
        }
    }
    if found.is_none() && info.free < info.memory / 2 {
        let taken = format::bytes((info.memory - info.free) as f64);
        found = problem(
            format!("{taken} of its memory are taken by others"),
            "see `nvidia-smi`; end them, choose another GPU with --device, or train with more accumulation",
        );
    }
    let gpu = Gpu {
        device: name,
        name: info.name,
        compute_capability: format!("{major}.{minor}"),
        multiprocessors: info.multiprocessors,
        memory_bytes: info.memory,
        memory_free_bytes: info.free,
        rates,
    };
    (gpu, found)
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
    let mut add = |what: String, remedy: &str| found.push(Problem { what, remedy: remedy.to_owned() });
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
    if let Some(driver) = f.gpu_driver.as_ref().filter(|_| !device::has_cuda()) {
        let what = format!("an NVIDIA driver ({driver}) is loaded, but this build computes on the CPU only");
        add(what, "build it with `--features cuda`, which needs nvcc");
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
    let cuda = f.cuda.as_ref().map(|v| format!("CUDA {v}"));
    let driver: Vec<String> = f.gpu_driver.iter().cloned().chain(cuda).collect();
    row("NVIDIA driver", if driver.is_empty() { "none".to_owned() } else { driver.join(", ") });
    let mut out = vec![table.to_string()];
    out.extend(f.gpus.iter().map(gpu_table));
    for p in &f.problems {
        let remedy = format::wrap(&format!("  -> {}", p.remedy), 80, "     ");
        out.push(format!("{}\n{remedy}", format::wrap(&p.what, 80, "  ")));
    }
    if f.problems.is_empty() {
        out.push("nothing stands in the way".to_owned());
    }
    out.join("\n\n")
}

fn gpu_table(gpu: &Gpu) -> String {
    let mut table = Table::new(&["", ""]).title(format!("{}: {}", gpu.device, gpu.name));
    let mut row = |name: &str, value: String| {
        table.row([name.to_owned(), value]);
    };
    row("compute capability", gpu.compute_capability.clone());
    row("multiprocessors", gpu.multiprocessors.to_string());
    let [memory, free] = [gpu.memory_bytes, gpu.memory_free_bytes].map(|b| format::bytes(b as f64));
    row("memory, free", format!("{memory}, {free}"));
    if let Some(rates) = &gpu.rates {
        for rate in &rates.matrix {
            row(
                &format!("matrix product {}", rate.shape),
                format!("{:.1} TFLOP/s", rate.flops_per_second / 1e12),
            );
        }
        let gigabytes = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
        row("copying its memory", format!("{} read and written", gigabytes(rates.copy_bytes_per_second)));
        if let (Some(up), Some(down)) = (rates.upload_bytes_per_second, rates.download_bytes_per_second) {
            row("from pinned memory, back", format!("{}, {}", gigabytes(up), gigabytes(down)));
        }
    }
    table.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_that_is_too_old_or_taken_is_a_problem() {
        let info = |capability, free| GpuInfo {
            number: 3,
            name: "some GPU".into(),
            capability,
            multiprocessors: 80,
            memory: 16_000_000_000,
            free,
        };
        let (old, problem) = gpu(info((7, 0), 15_000_000_000), true, 0.1);
        assert!(old.rates.is_none() && problem.unwrap().what.starts_with("cuda:3: compute capability 7.0"));
        let (gpu, problem) = gpu(info((9, 0), 2_000_000_000), false, 0.1);
        assert!(problem.unwrap().what.contains("14.0 GB of its memory are taken"));
        assert!(gpu_table(&gpu).lines().all(|l| l.chars().count() <= 80));
        assert!(super::gpu(info((9, 0), 15_000_000_000), false, 0.1).1.is_none());
    }

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
