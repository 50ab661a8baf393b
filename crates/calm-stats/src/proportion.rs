//! A share of trials with its interval (Wilson 1927): it stays inside 0 and 1, and says something where all or none succeeded.
//!
//! ```text
//! (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n),  z = 1.96 for 95 %
//! ```

use serde::{Deserialize, Serialize};

/// 97.5 % of a standard normal number lie below it.
const Z: f64 = 1.959_963_984_540_054;

/// Successes among trials.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Proportion {
    /// How many succeeded.
    pub hits: usize,
    /// Of how many.
    pub trials: usize,
    /// The share.
    pub value: f64,
    /// Ends of its 95 % interval.
    pub interval: (f64, f64),
}

/// Of independent trials; of none the interval is all there is.
pub fn proportion(hits: usize, trials: usize) -> Proportion {
    if trials == 0 {
        return Proportion { hits, trials, value: 0.0, interval: (0.0, 1.0) };
    }
    let n = trials as f64;
    let p = hits as f64 / n;
    let middle = p + Z * Z / (2.0 * n);
    let half = Z * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + Z * Z / n;
    let interval = (((middle - half) / scale).max(0.0), ((middle + half) / scale).min(1.0));
    Proportion { hits, trials, value: p, interval }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_tables() {
        // Newcombe 1998, table I, method 3.
        for (hits, trials, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let (a, b) = proportion(hits, trials).interval;
            assert!((a - low).abs() < 6e-5 && (b - high).abs() < 6e-5, "{hits} of {trials}: {a} {b}");
        }
        let all = proportion(2000, 2000);
        assert!(all.value == 1.0 && 1.0 - all.interval.1 < 1e-12 && all.interval.0 > 0.998);
        assert_eq!(proportion(0, 0).interval, (0.0, 1.0));
    }
}
