//! Measurements: medians over repetitions, against the matrix product measured in between.

use std::time::Instant;

use candle_core::Result;
use serde::Serialize;

use crate::clock::{Seconds, once, processor, repeat};
use crate::memory::Memory;
use crate::operators::{Amount, Operator, Pass};
use crate::products::Products;
use crate::size::Size;
use crate::work::{What, build};

/// Steps before the clock starts: they make moments and fill the allocator.
const WARM_UP: usize = 2;
/// Most seconds between two rounds of bare products.
const BETWEEN: f64 = 1.0;

/// How measurements are made.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Seconds for each measurement, at the least three repetitions.
    pub seconds: f64,
    /// From now on, freed memory goes back to the system at once (true) or is kept (false).
    pub give_back: fn(bool),
}

/// Where it was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Machine {
    /// The processor, as the system names it.
    pub device: String,
    /// Threads of the pool.
    pub threads: usize,
    /// Version of this program.
    pub version: String,
}

impl Machine {
    /// This machine.
    pub fn here(version: &str) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, m)| m.trim()));
        Self {
            device: model.unwrap_or(std::env::consts::ARCH).to_owned(),
            threads: rayon::current_num_threads(),
            version: version.to_owned(),
        }
    }
}

/// Rate of the bare matrix product.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MatrixRate {
    /// Which products.
    pub shape: String,
    /// FLOP/s.
    pub flops_per_second: f64,
}

/// Rates of square products and of copying memory (bytes/s, read and written): what shares of a peak refer to.
pub fn matrix_peak(seconds: f64) -> (Vec<MatrixRate>, f64) {
    let rate = |side: usize| {
        let mut prepared = Products::square(side).prepare();
        let started = Instant::now();
        for _ in 0.. {
            prepared.round();
            if started.elapsed().as_secs_f64() > seconds / 4.0 {
                break;
            }
        }
        MatrixRate { shape: format!("{side}³"), flops_per_second: prepared.rate().unwrap_or(0.0) }
    };
    ([512, 1024, 2048].map(rate).to_vec(), copy_rate(seconds / 4.0))
}

/// Bytes a second read and written by copying 64 MiB with all threads.
fn copy_rate(seconds: f64) -> f64 {
    use rayon::prelude::*;
    const BLOCK: usize = 1 << 16;
    let from = vec![1.0f32; 16 << 20];
    let mut to = vec![0.0f32; from.len()];
    let run = || {
        to.par_chunks_mut(BLOCK).zip(from.par_chunks(BLOCK)).for_each(|(to, from)| to.copy_from_slice(from));
        Ok::<_, std::convert::Infallible>(())
    };
    let Ok(times) = repeat(seconds, run);
    2.0 * size_of_val(&from[..]) as f64 / times.median
}

/// A piece of work, measured. The fields are those of the PyTorch peers' `bench.py`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Measured {
    /// The work.
    pub what: What,
    /// Name of the size.
    pub size: String,
    /// Who did it.
    pub peer: &'static str,
    /// Median.
    pub seconds_per_step: f64,
    /// First and third quartile.
    pub seconds_quartiles: [f64; 2],
    /// Processor seconds of all threads, mean.
    pub cpu_seconds_per_step: f64,
    /// Tokens predicted, scored or generated.
    pub tokens_per_second: f64,
    /// Most memory resident during the steps, bytes.
    pub peak_rss: Option<u64>,
    /// The same less what is resident between steps.
    pub step_memory: Option<u64>,
    /// By formula.
    pub flops_per_step: f64,
    /// FLOP/s of the model's own matrix products alone, measured between the steps; null without such.
    pub peak_flops_per_second: Option<f64>,
    /// Model FLOPs utilisation: the formula's FLOPs in the step's time over that peak.
    pub utilisation: Option<f64>,
    /// Timed steps.
    pub n: usize,
    /// Loss of the first step, or Brier-1.
    pub first_result: f64,
    /// Where.
    #[serde(flatten)]
    pub machine: Machine,
}

/// Measures a piece of work at a size; bare products of the same shapes are timed between the steps.
///
/// # Errors
/// A step fails.
pub fn work_at(
    what: What,
    name: &str,
    size: &Size,
    options: &Options,
    machine: &Machine,
) -> Result<Measured> {
    let mut step = build(what, size)?;
    let mut products = Products::of(what, size).prepare();
    products.round();
    let mut first_result = None;
    for i in 0..WARM_UP {
        // What the last one frees goes back: the rest is state.
        (options.give_back)(i + 1 == WARM_UP);
        let result = (step.run)()?;
        first_result.get_or_insert(result);
    }
    (options.give_back)(false);
    let memory = Memory::watch();
    let (mut times, mut cpu) = (Vec::new(), 0.0);
    let (mut spent, mut since) = (0.0, f64::INFINITY);
    while times.len() < 3 || spent < options.seconds {
        if since > BETWEEN {
            products.round();
            since = 0.0;
        }
        let before = processor();
        let (_, seconds) = once(&mut step.run)?;
        cpu += processor() - before;
        spent += seconds;
        since += seconds;
        times.push(seconds);
    }
    products.round();
    let (peak_rss, step_memory) = memory.peak();
    let seconds = Seconds::of(times);
    let flops_per_step = what.flops(size);
    let peak = products.rate();
    Ok(Measured {
        what,
        size: name.to_owned(),
        peer: "calm",
        seconds_per_step: seconds.median,
        seconds_quartiles: seconds.quartiles,
        cpu_seconds_per_step: cpu / seconds.n as f64,
        tokens_per_second: step.tokens as f64 / seconds.median,
        peak_rss,
        step_memory,
        flops_per_step,
        peak_flops_per_second: peak,
        utilisation: peak.map(|peak| flops_per_step / seconds.median / peak),
        n: seconds.n,
        first_result: first_result.unwrap_or(f64::NAN),
        machine: machine.clone(),
    })
}

/// An operator, measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MeasuredOperator {
    /// Its name.
    pub name: &'static str,
    /// Its inputs.
    pub shape: String,
    /// Forward alone.
    pub forward: Seconds,
    /// Forward and backward; null where there is no backward.
    pub both: Option<Seconds>,
    /// The plain composition, as far as the operator goes.
    pub plain: Option<Seconds>,
    /// FLOPs a second of the whole, for those that multiply.
    pub flops_per_second: Option<f64>,
    /// Bytes a second of the whole, for those that stream.
    pub bytes_per_second: Option<f64>,
}

/// Measures an operator and its plain composition.
///
/// # Errors
/// It fails.
pub fn operator(mut o: Operator, options: &Options) -> Result<MeasuredOperator> {
    let pass = if o.differentiable { Pass::Both } else { Pass::Forward };
    let forward = repeat(options.seconds, || (o.fused)(Pass::Forward))?;
    let both = o.differentiable.then(|| repeat(options.seconds, || (o.fused)(Pass::Both))).transpose()?;
    let plain = o.plain.as_mut().map(|plain| repeat(options.seconds, || plain(pass))).transpose()?;
    let whole = both.unwrap_or(forward).median;
    let (flops, bytes) = match o.amount {
        Amount::Flops(f) => (Some(f / whole), None),
        Amount::Bytes(b) => (None, Some(b / whole)),
    };
    Ok(MeasuredOperator {
        name: o.name,
        shape: o.shape,
        forward,
        both,
        plain,
        flops_per_second: flops,
        bytes_per_second: bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_measurement_is_consistent() {
        let size = &Size::all()["tiny"];
        let options = Options { seconds: 0.0, give_back: |_| () };
        let m = work_at(What::Lm, "tiny", size, &options, &Machine::here("0")).unwrap();
        assert_eq!(m.n, 3);
        assert!(m.seconds_quartiles[0] <= m.seconds_per_step && m.seconds_per_step <= m.seconds_quartiles[1]);
        let utilisation = m.flops_per_step / m.seconds_per_step / m.peak_flops_per_second.unwrap();
        assert_eq!(m.utilisation, Some(utilisation));
        let m = work_at(What::Energy, "tiny", size, &options, &Machine::here("0")).unwrap();
        assert_eq!((m.peak_flops_per_second, m.utilisation), (None, None));
    }
}
