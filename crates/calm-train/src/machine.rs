//! What the system says about memory.

/// Most memory that this process has held so far, bytes.
pub fn peak_memory() -> Option<u64> {
    size_in("/proc/self/status", "VmHWM:")
}

/// Memory of the system that programs can still have, bytes.
pub fn available_memory() -> Option<u64> {
    size_in("/proc/meminfo", "MemAvailable:")
}

fn size_in(file: &str, key: &str) -> Option<u64> {
    let status = std::fs::read_to_string(file).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix(key))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}
