//! Times and rates as tables show them.

/// Arithmetic in a second.
pub(super) fn gflops(rate: f64) -> String {
    format!("{:.0} GFLOP/s", rate / 1e9)
}

/// Bytes in a second.
pub(super) fn gigabytes(rate: f64) -> String {
    format!("{:.1} GB/s", rate / 1e9)
}

/// A short time, three digits of it.
pub(super) fn time(seconds: f64) -> String {
    let (scale, unit) = unit(seconds);
    format!("{} {unit}", digits(seconds * scale))
}

/// First and third quartile in the unit of the median.
pub(super) fn spread(median: f64, quartiles: [f64; 2]) -> String {
    let (scale, _) = unit(median);
    let [low, high] = quartiles.map(|q| digits(q * scale));
    format!("{low}..{high}")
}

/// A unit for a time, and how many of it are a second.
fn unit(seconds: f64) -> (f64, &'static str) {
    match seconds {
        s if s >= 1.0 => (1.0, "s"),
        s if s >= 1e-3 => (1e3, "ms"),
        _ => (1e6, "µs"),
    }
}

fn digits(value: f64) -> String {
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$}")
}
