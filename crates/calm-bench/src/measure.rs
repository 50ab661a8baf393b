//! Measurements: medians over repetitions, against the matrix product measured in between.

use calm_kernels::device;
use candle_core::Result;
use serde::Serialize;

use crate::clock::{Seconds, once, processor, repeat_on};
use crate::memory::Memory;
use crate::operators::{Amount, OperatorCase, Pass};
use crate::place::Place;
use crate::products::Products;
use crate::size::Size;
use crate::work::{Step, What, build};

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
    /// The processor or GPU, as the system names it.
    pub device: String,
    /// Format of activations and products.
    pub precision: &'static str,
    /// Threads of the pool.
    pub threads: usize,
    /// Version of this program.
    pub version: String,
}

impl Machine {
    /// This machine, and what of it computes.
    pub fn at(version: &str, place: &Place) -> Self {
        let gpu = place.device.is_cuda().then(|| {
            let name = device::name(&place.device);
            let gpus = device::gpus().map(|found| found.0).unwrap_or_default();
            let gpu = gpus.into_iter().find(|g| format!("cuda:{}", g.number) == name);
            gpu.map_or(name.clone(), |g| format!("{}, {name}", g.name))
        });
        let here = Self::here(version);
        Self { device: gpu.unwrap_or(here.device), precision: place.format(), ..here }
    }

    /// This machine.
    pub fn here(version: &str) -> Self {
        let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model =
            info.lines().find_map(|l| l.strip_prefix("model name")?.split_once(':').map(|(_, m)| m.trim()));
        Self {
            device: model.unwrap_or(std::env::consts::ARCH).to_owned(),
            precision: "f32",
            threads: rayon::current_num_threads(),
            version: version.to_owned(),
        }
    }
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
    /// Most memory resident during the steps, bytes; null on a GPU.
    pub peak_rss: Option<u64>,
    /// Most memory of a GPU that tensors held during the steps, bytes; null on the CPU.
    pub peak_gpu: Option<u64>,
    /// The peak less what is held between steps.
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
    place: &Place,
) -> Result<Measured> {
    let mut step = build(what, size, place)?;
    let tokens = step.tokens;
    let products = Products::of(what, size);
    // Beside the steps on the CPU; on a GPU after them, whose memory is counted.
    let mut prepared = place.device.is_cpu().then(|| products.prepare());
    if let Some(prepared) = &mut prepared {
        prepared.round();
    }
    let mut first_result = None;
    for i in 0..WARM_UP {
        // What the last one frees goes back: the rest is state.
        (options.give_back)(i + 1 == WARM_UP);
        let result = (step.run)(true)?;
        first_result.get_or_insert(result);
    }
    (options.give_back)(false);
    let memory = Memory::watch(&place.device);
    let block = block_length(&mut step, place)?;
    let (mut times, mut cpu) = (Vec::new(), 0.0);
    let (mut spent, mut since) = (0.0, f64::INFINITY);
    while times.len() < 3 || spent < options.seconds {
        if let Some(prepared) = prepared.as_mut().filter(|_| since > BETWEEN) {
            prepared.round();
            since = 0.0;
        }
        let before = processor();
        let (_, seconds) = once(|| {
            for _ in 0..block {
                (step.run)(block == 1)?;
            }
            place.wait()
        })?;
        cpu += (processor() - before) / block as f64;
        spent += seconds;
        since += seconds;
        times.push(seconds / block as f64);
    }
    let (peak, step_memory) = memory.peak(&place.device);
    drop(step);
    let mut prepared = match prepared {
        Some(prepared) => prepared,
        None => products.prepare_at(place)?,
    };
    prepared.round_at(place)?;
    let (peak_rss, peak_gpu) = if place.device.is_cuda() { (None, peak) } else { (peak, None) };
    let seconds = Seconds::of(times);
    let flops_per_step = what.flops(size);
    let peak = prepared.rate();
    Ok(Measured {
        what,
        size: name.to_owned(),
        peer: "calm",
        seconds_per_step: seconds.median,
        seconds_quartiles: seconds.quartiles,
        cpu_seconds_per_step: cpu / seconds.n as f64,
        tokens_per_second: tokens as f64 / seconds.median,
        peak_rss,
        peak_gpu,
        step_memory,
        flops_per_step,
        peak_flops_per_second: peak,
        utilisation: peak.map(|peak| flops_per_step / seconds.median / peak),
        n: seconds.n,
        first_result: first_result.unwrap_or(f64::NAN),
        machine: machine.clone(),
    })
}

/// Steps between two waits: on the CPU each is timed; on a GPU as many as take a tenth of a second, because a step
/// that is waited for pays for the wait.
fn block_length(step: &mut Step, place: &Place) -> Result<usize> {
    if place.device.is_cpu() {
        return Ok(1);
    }
    place.wait()?;
    let (_, seconds) = once(|| (step.run)(true))?;
    Ok((0.1 / seconds.max(1e-9)).ceil().clamp(1.0, 100.0) as usize)
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
    /// Why the composition cannot be measured here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plain_fails: Option<String>,
    /// FLOPs a second of the whole, for those that multiply.
    pub flops_per_second: Option<f64>,
    /// Bytes a second of the whole, for those that stream.
    pub bytes_per_second: Option<f64>,
}

/// Measures an operator and its plain composition.
///
/// # Errors
/// It fails.
pub fn operator(mut o: OperatorCase, options: &Options, place: &Place) -> Result<MeasuredOperator> {
    let pass = if o.differentiable { Pass::Both } else { Pass::Forward };
    let device = &place.device;
    let forward = repeat_on(device, options.seconds, || (o.fused)(Pass::Forward))?;
    let both =
        o.differentiable.then(|| repeat_on(device, options.seconds, || (o.fused)(Pass::Both))).transpose()?;
    let plain = o.plain.as_mut().map(|plain| repeat_on(device, options.seconds, || plain(pass)));
    let (plain, plain_fails) = match plain {
        // What the framework lacks on a GPU, or has no memory for.
        Some(Err(e)) if device.is_cuda() => {
            let text = e.to_string();
            (None, Some(text.lines().next().unwrap_or_default().to_owned()))
        }
        plain => (plain.transpose()?, None),
    };
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
        plain_fails,
        flops_per_second: flops,
        bytes_per_second: bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::gpu_places;

    #[test]
    fn a_measurement_is_consistent() {
        let size = &Size::all()["tiny"];
        let options = Options { seconds: 0.0, give_back: |_| () };
        let m = work_at(What::Lm, "tiny", size, &options, &Machine::here("0"), &Place::cpu()).unwrap();
        assert_eq!(m.n, 3);
        assert!(m.seconds_quartiles[0] <= m.seconds_per_step && m.seconds_per_step <= m.seconds_quartiles[1]);
        let utilisation = m.flops_per_step / m.seconds_per_step / m.peak_flops_per_second.unwrap();
        assert_eq!(m.utilisation, Some(utilisation));
        for place in gpu_places() {
            for what in What::ALL {
                let machine = Machine::at("0", &place);
                let m = work_at(what, "tiny", size, &options, &machine, &place).unwrap();
                assert!(m.machine.device.contains("cuda:0") && m.seconds_per_step > 0.0, "{what}");
                assert!(m.first_result.is_finite() && m.peak_rss.is_none(), "{what}");
            }
        }
        let m = work_at(What::Energy, "tiny", size, &options, &Machine::here("0"), &Place::cpu()).unwrap();
        assert_eq!((m.peak_flops_per_second, m.utilisation), (None, None));
    }
}
