//! The device that `--device` names.

use anyhow::Result;
use calm_kernels::device::{self, Choice};
use calm_nn::Precision;
use calm_report::study::Machine;
use candle_core::Device;

use crate::error::Hinted;
use crate::ui::Printer;
use crate::version;

/// Opens a device.
///
/// # Errors
/// A GPU that was asked for and is not there, with the remedy. `auto` takes the CPU then, and warns only of a GPU
/// that is there and cannot be used.
pub fn open(choice: Choice, printer: &Printer) -> Result<Device> {
    match check(choice)? {
        Choice::Auto if device::gpus().is_ok() => {
            let gpu = open_number(0);
            if let Err(e) = &gpu {
                printer.warn(format!("computing on the CPU: {e}"));
            }
            Ok(gpu.unwrap_or(Device::Cpu))
        }
        Choice::Auto | Choice::Cpu => Ok(Device::Cpu),
        Choice::Cuda(number) => open_number(number),
    }
}

/// Whether the device is there, without opening it; returns the choice.
///
/// # Errors
/// As [`open`].
pub fn check(choice: Choice) -> Result<Choice> {
    let Choice::Cuda(number) = choice else { return Ok(choice) };
    let (gpus, _) =
        device::gpus().map_err(|e| Hinted::new(format!("--device {choice}: {}", e.reason), e.remedy))?;
    if number < gpus.len() {
        return Ok(choice);
    }
    let names: Vec<String> = gpus.iter().map(|g| format!("cuda:{} ({})", g.number, g.name)).collect();
    let message = format!("--device {choice}: there is no such GPU");
    Err(Hinted::new(message, format!("choose among cpu, {}", names.join(", "))).into())
}

fn open_number(number: usize) -> Result<Device> {
    device::open(Choice::Cuda(number)).map_err(|e| {
        let hint = "`calm doctor` shows what stands in the way; `--device cpu` does without";
        Hinted::new(format!("cuda:{number} cannot be used: {}", first_line(&e.to_string())), hint).into()
    })
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Refuses a number format that the device cannot compute in.
///
/// # Errors
/// bf16 on the CPU; where `auto` chose it, with the reason why there is no GPU.
pub fn check_precision(precision: Precision, device: &Device, choice: Choice) -> Result<()> {
    if precision.check(device).is_ok() {
        return Ok(());
    }
    let (why, remedy) = match (choice, device::gpus()) {
        (Choice::Auto, Err(e)) => (format!(": {}", e.reason), format!(", or: {}", first_part(&e.remedy))),
        _ => (", and the device is the CPU".into(), ", or --device cuda".into()),
    };
    let message = format!("precision bf16 needs a GPU{why}");
    Err(Hinted::new(message, format!("--set precision=f32 computes on the CPU{remedy}")).into())
}

/// A remedy without the other way out that it ends with, the CPU.
fn first_part(remedy: &str) -> &str {
    remedy.split(", or use `--device cpu`").next().unwrap_or(remedy)
}

/// Who makes a study, here and today; `threads` as asked for.
pub fn machine(threads: Option<usize>) -> Machine {
    Machine {
        platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
        threads: threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from)),
        device: String::new(),
        version: version::VERSION.to_owned(),
        commit: version::commit(),
        date: jiff::Timestamp::now().strftime("%Y-%m-%d").to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::remedy;

    #[test]
    fn a_gpu_that_is_not_there_is_an_error_with_a_remedy() {
        let e = check(Choice::Cuda(99)).unwrap_err();
        assert!(e.to_string().starts_with("--device cuda:99: "), "{e}");
        assert!(remedy(&e).is_some_and(|h| h.contains("cpu")), "{e}");
        assert_eq!([Choice::Auto, Choice::Cpu].map(|c| check(c).unwrap()), [Choice::Auto, Choice::Cpu]);
    }

    #[test]
    fn bf16_is_refused_on_the_cpu_with_what_would_help() {
        check_precision(Precision::F32, &Device::Cpu, Choice::Auto).unwrap();
        for choice in [Choice::Auto, Choice::Cpu] {
            let e = check_precision(Precision::Bf16, &Device::Cpu, choice).unwrap_err();
            assert!(e.to_string().contains("precision bf16 needs a GPU"), "{e}");
            assert!(remedy(&e).is_some_and(|h| h.contains("precision=f32")), "{e}");
        }
    }
}
