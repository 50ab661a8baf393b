//! Memory of this process, as the system sees it, and of a GPU, as its pool counts it.

use std::fs;

use candle_core::Device;

use crate::pool::Used;

/// Memory of a measurement in bytes; None where the system does not tell (Linux does).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Held when the watch began; None if its high-water mark could not be set back.
    state: Option<u64>,
}

impl Memory {
    /// Begins a watch. Unused pages should have gone back to the system: what is resident now is taken for
    /// state that exists between steps (parameters, gradients, moments).
    pub fn watch(device: &Device) -> Self {
        if device.is_cuda() {
            // What was freed is free when the GPU has come so far.
            let _ = device.synchronize();
            Used::restart(device);
            return Self { state: Used::of(device).map(|used| used.now) };
        }
        // The high-water mark starts anew.
        let reset = fs::write("/proc/self/clear_refs", "5").is_ok();
        Self { state: status("VmRSS").filter(|_| reset) }
    }

    /// Highest memory since the watch began, and the same without the state.
    pub fn peak(&self, device: &Device) -> (Option<u64>, Option<u64>) {
        let most = || if device.is_cuda() { Used::of(device).map(|u| u.most) } else { status("VmHWM") };
        let peak = self.state.and_then(|_| most());
        let above = |(peak, state): (u64, u64)| peak.saturating_sub(state);
        (peak, peak.zip(self.state).map(above))
    }
}

/// A size in `/proc/self/status`, bytes.
fn status(key: &str) -> Option<u64> {
    size_in("/proc/self/status", key)
}

/// Memory of the whole system, bytes: `MemTotal`, `MemAvailable`.
pub fn of_system(key: &str) -> Option<u64> {
    size_in("/proc/meminfo", key)
}

fn size_in(file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_touched_and_freed_is_seen() {
        // Other tests of this process take memory as well, and begin to watch, which forgets the peak.
        let seen = (0..20).any(|_| {
            let memory = Memory::watch(&Device::Cpu);
            let block = vec![1u8; 64 << 20];
            assert!(std::hint::black_box(&block).iter().step_by(4096).all(|b| *b == 1));
            drop(block);
            let (peak, above) = memory.peak(&Device::Cpu);
            peak >= Some(64 << 20) && above >= Some(60 << 20)
        });
        assert!(seen);
    }
}
