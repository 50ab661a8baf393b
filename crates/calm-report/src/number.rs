//! Numbers as a reader wants them. What is not finite reads `undefined`; what is missing reads as a dash.

use crate::study::Estimate;

/// Stands where nothing was measured.
pub const MISSING: &str = "–";

const MINUS: char = '−';

/// With a fixed number of decimals, a true minus sign and no negative zero.
pub fn fixed(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return "undefined".into();
    }
    let text = format!("{:.decimals$}", value.abs());
    if value < 0.0 && text.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        format!("{MINUS}{text}")
    } else {
        text
    }
}

/// As [`fixed`], with a plus sign on what is positive: for differences.
pub fn signed(value: f64, decimals: usize) -> String {
    let text = fixed(value, decimals);
    if value.is_finite() && value > 0.0 && text.bytes().any(|b| (b'1'..=b'9').contains(&b)) {
        format!("+{text}")
    } else {
        text
    }
}

/// Decimals of a column of percentages: at least two, more (up to four) where the smallest standard error of
/// the column would read 0.00.
pub fn decimals(errors: impl Iterator<Item = f64>) -> usize {
    let smallest = errors.filter(|e| e.is_finite() && *e > 0.0).fold(f64::INFINITY, f64::min);
    if smallest.is_finite() { (-smallest.log10().floor()).clamp(2.0, 4.0) as usize } else { 2 }
}

/// `0.60 ± 0.07`, or the number alone where it has no standard error.
pub fn estimate(estimate: &Estimate, decimals: usize) -> String {
    let value = fixed(estimate.value, decimals);
    match estimate.se().filter(|se| se.is_finite()) {
        Some(se) if estimate.value.is_finite() => format!("{value} ± {}", fixed(se, decimals)),
        _ => value,
    }
}

/// Three significant digits with an SI prefix: `1.23 P`. For FLOPs and rates.
pub fn si(value: f64) -> String {
    if !value.is_finite() {
        return "undefined".into();
    }
    if value == 0.0 {
        return "0".into();
    }
    // Rounded to three digits first, so that 999.9 becomes 1.00 k.
    let digits = 10f64.powf(2.0 - value.abs().log10().floor());
    let rounded = (value.abs() * digits).round() / digits;
    let (scaled, prefix) = prefixed(rounded);
    let decimals = (2.0 - scaled.log10().floor()).clamp(0.0, 2.0) as usize;
    join(&fixed(scaled.copysign(value), decimals), prefix)
}

/// As [`si`] without trailing zeros, for the labels of an axis: `2 M`, `1.5 T`.
pub fn si_short(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return si(value);
    }
    let (scaled, prefix) = prefixed(value.abs());
    let text = fixed(scaled.copysign(value), 3);
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    join(text, prefix)
}

/// A positive number between 1 and 1000 and the prefix that goes with it; below 1 no prefix is used.
fn prefixed(value: f64) -> (f64, &'static str) {
    const PREFIXES: [&str; 9] = ["", "k", "M", "G", "T", "P", "E", "Z", "Y"];
    // The small factor keeps exact powers of ten, whose logarithm may fall short of the integer, on their side.
    let step = ((value * (1.0 + 1e-12)).log10() / 3.0).floor().clamp(0.0, 8.0);
    (value / 1000f64.powf(step), PREFIXES[step as usize])
}

fn join(number: &str, prefix: &str) -> String {
    // A no-break space, so that a table never parts a number from its prefix.
    if prefix.is_empty() { number.into() } else { format!("{number}\u{a0}{prefix}") }
}

/// With thousands separators: `89,335`.
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate in units a second: thousands separated, decimals only where they matter.
pub fn rate(value: f64) -> String {
    if !value.is_finite() || value < 0.0 {
        return "undefined".into();
    }
    if value >= 100.0 { count(value.round() as u64) } else { fixed(value, if value >= 10.0 { 1 } else { 2 }) }
}

/// A time: `12 min 27 s`, `3 h 05 min`, `4.2 s`, `12.5 ms`.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "undefined".into();
    }
    const N: char = '\u{a0}';
    let whole = seconds.round() as u64;
    match seconds {
        0.0 => format!("0{N}s"),
        s if s < 1e-3 => format!("{}{N}µs", fixed(s * 1e6, 1)),
        s if s < 1.0 => format!("{}{N}ms", fixed(s * 1e3, 1)),
        s if s < 10.0 => format!("{}{N}s", fixed(s, 1)),
        _ if whole < 60 => format!("{whole}{N}s"),
        _ if whole < 3600 => format!("{}{N}min {:02}{N}s", whole / 60, whole % 60),
        _ if whole < 172_800 => format!("{}{N}h {:02}{N}min", whole / 3600, whole % 3600 / 60),
        _ => format!("{}{N}d {:02}{N}h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Memory in decimal units: `345 MB`.
pub fn bytes(value: u64) -> String {
    let text = si(value as f64);
    if value < 1000 { format!("{text}\u{a0}B") } else { format!("{text}B") }
}

/// A fraction as percent, with decimals enough to tell one wrong token in 100,000 from none.
pub fn share(fraction: f64) -> String {
    fixed(fraction * 100.0, 3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_are_typographic_and_zero_has_none() {
        assert_eq!(fixed(-1.25, 1), "−1.2");
        assert_eq!(fixed(-0.001, 2), "0.00");
        assert_eq!(signed(0.25, 2), "+0.25");
        assert_eq!(signed(0.001, 2), "0.00");
        assert_eq!(signed(-3.0, 1), "−3.0");
        assert_eq!(fixed(f64::NAN, 2), "undefined");
        assert_eq!(signed(f64::INFINITY, 2), "undefined");
    }

    #[test]
    fn estimates_show_the_whole_standard_error() {
        let both = Estimate { value: 0.6, documents: Some(0.03), seeds: Some(0.04) };
        assert_eq!(estimate(&both, 2), "0.60 ± 0.05");
        assert_eq!(estimate(&Estimate { value: 0.6, documents: Some(0.03), seeds: None }, 2), "0.60 ± 0.03");
        assert_eq!(estimate(&Estimate { value: 0.6, ..Estimate::default() }, 2), "0.60");
        assert_eq!(estimate(&Estimate { value: f64::NAN, ..both }, 2), "undefined");
    }

    #[test]
    fn a_column_has_decimals_enough_for_its_smallest_error() {
        assert_eq!(decimals([0.25, 0.07].into_iter()), 2);
        assert_eq!(decimals([0.25, 0.004].into_iter()), 3);
        assert_eq!(decimals([0.0, 1e-9].into_iter()), 4);
        assert_eq!(decimals(std::iter::empty()), 2);
        assert_eq!(decimals([12.0].into_iter()), 2);
    }

    #[test]
    fn large_numbers_take_si_prefixes_with_three_digits() {
        assert_eq!(si(1.234e15), "1.23\u{a0}P");
        assert_eq!(si(999.96), "1.00\u{a0}k");
        assert_eq!(si(12_345_678.0), "12.3\u{a0}M");
        assert_eq!(si(456e9), "456\u{a0}G");
        assert_eq!(si(1e3), "1.00\u{a0}k");
        assert_eq!(si(0.0), "0");
        assert_eq!(si(-2e6), "−2.00\u{a0}M");
        assert_eq!(si(1e30), "1000000\u{a0}Y");
        assert_eq!(si_short(2e6), "2\u{a0}M");
        assert_eq!(si_short(1.5e12), "1.5\u{a0}T");
        assert_eq!(si_short(100.0), "100");
        assert_eq!(si_short(1e15), "1\u{a0}P");
    }

    #[test]
    fn counts_rates_and_memory_read_like_the_readme() {
        assert_eq!(count(89_335), "89,335");
        assert_eq!(count(0), "0");
        assert_eq!(count(1_000_000), "1,000,000");
        assert_eq!(rate(12_345.6), "12,346");
        assert_eq!(rate(12.34), "12.3");
        assert_eq!(rate(1.234), "1.23");
        assert_eq!(bytes(345_000_000), "345\u{a0}MB");
        assert_eq!(bytes(12), "12.0\u{a0}B");
        assert_eq!(share(0.89), "89.000");
        assert_eq!(share(0.999_961), "99.996");
    }

    #[test]
    fn times_choose_their_units() {
        let plain = |s: f64| duration(s).replace('\u{a0}', " ");
        assert_eq!(plain(747.0), "12 min 27 s");
        assert_eq!(plain(11_100.0), "3 h 05 min");
        assert_eq!(plain(59.7), "1 min 00 s");
        assert_eq!(plain(4.21), "4.2 s");
        assert_eq!(plain(0.0125), "12.5 ms");
        assert_eq!(plain(0.0), "0 s");
        assert_eq!(plain(259_200.0), "3 d 00 h");
        assert_eq!(plain(f64::NAN), "undefined");
    }
}
