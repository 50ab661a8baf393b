//! Numbers as people read them.

use std::time::Duration;

/// A quantity with a decimal prefix: `950`, `1.2 k`, `12.3 k`, `123 M`.
pub fn count(value: f64) -> String {
    scaled(value, "")
}

/// A size in decimal units: `512 B`, `3.4 GB`.
pub fn bytes(value: f64) -> String {
    scaled(value, "B")
}

/// A speed: `12.3 k tokens/s`.
pub fn rate(per_second: f64, unit: &str) -> String {
    match per_second {
        // Slow things still have a speed.
        slow if slow.abs() < 10.0 => format!("{slow:.2} {unit}/s"),
        fast if unit.is_empty() || fast.abs() < 1000.0 => format!("{fast:.0} {unit}/s"),
        fast => format!("{} {unit}/s", count(fast)),
    }
}

fn scaled(value: f64, unit: &str) -> String {
    const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];
    let mut size = value.abs();
    let mut prefix = 0;
    // 999.95 would be shown as 1000.
    while size >= if prefix == 0 { 999.5 } else { 999.95 } && prefix + 1 < PREFIXES.len() {
        size /= 1000.0;
        prefix += 1;
    }
    let sign = if value < 0.0 { "-" } else { "" };
    let number = match (prefix, size) {
        (0, _) => format!("{sign}{size:.0}"),
        (_, small) if small < 99.95 => format!("{sign}{small:.1}"),
        (_, large) => format!("{sign}{large:.0}"),
    };
    match format!("{}{unit}", PREFIXES[prefix]) {
        suffix if suffix.is_empty() => number,
        suffix => format!("{number} {suffix}"),
    }
}

/// A time span by its two largest units: `120 ms`, `4.2 s`, `2 min 13 s`, `1 h 5 min`, `3 d 4 h`.
pub fn duration(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    let whole = seconds.round() as u64;
    match whole {
        _ if seconds < 0.9995 => format!("{:.0} ms", seconds * 1000.0),
        _ if seconds < 9.95 => format!("{seconds:.1} s"),
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// A value and its standard error, both to the error's second digit: `5.12 ± 0.31`.
pub fn plus_minus(value: f64, error: f64) -> String {
    if !(error > 0.0 && error.is_finite()) {
        return number(value, 2);
    }
    // Found after rounding: an error of 0.0996 is 0.100, one digit fewer.
    let digits = |error: f64| (1 - error.log10().floor() as i32).clamp(0, 8) as usize;
    let decimals = digits(format!("{error:.*}", digits(error)).parse().unwrap_or(error));
    format!("{value:.decimals$} ± {error:.decimals$}")
}

/// A value with a fixed number of decimals; what is not a number is `undefined`.
pub fn number(value: f64, decimals: usize) -> String {
    if value.is_nan() { "undefined".to_string() } else { format!("{value:.decimals$}") }
}

/// A fraction in percent: `99.95 %`. Only what is exactly 1 is shown as 100.
pub fn percent(fraction: f64, decimals: usize) -> String {
    if fraction.is_nan() {
        return "undefined".to_string();
    }
    let percent = fraction * 100.0;
    let text = format!("{percent:.decimals$}");
    if fraction < 1.0 && text.parse::<f64>().is_ok_and(|shown| shown >= 100.0) {
        let below = 100.0 - 10f64.powi(-(decimals as i32));
        return format!("{below:.decimals$} %");
    }
    format!("{text} %")
}

/// A text cut to a width, with a mark where something is missing.
pub fn shorten(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_string();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).take(width).collect()
}

/// A text cut at its front: what tells the members of a grid apart stands at the end of their names.
pub fn shorten_front(text: &str, width: usize) -> String {
    let length = text.chars().count();
    if length <= width {
        return text.to_string();
    }
    ['…'].into_iter().chain(text.chars().skip(length + 1 - width)).take(width).collect()
}

/// Fills lines of `width` with the words of a text, all but the first indented; words longer than a line
/// stay whole.
pub fn wrap(text: &str, width: usize, indent: &str) -> String {
    let mut out = String::new();
    let mut used = 0;
    for (i, word) in text.split(' ').enumerate() {
        let length = word.chars().count();
        if i > 0 && used + 1 + length > width {
            out.push('\n');
            out.push_str(indent);
            used = indent.chars().count();
        } else if i > 0 {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_two_or_three_digits_and_a_prefix() {
        let cases = [
            (0.0, "0"),
            (7.0, "7"),
            (999.0, "999"),
            (999.6, "1.0 k"),
            (1234.0, "1.2 k"),
            (12_345.0, "12.3 k"),
        ];
        for (value, text) in cases {
            assert_eq!(count(value), text);
        }
        assert_eq!([count(999_960.0), count(123_456_789.0), count(-2500.0)], ["1.0 M", "123 M", "-2.5 k"]);
        assert_eq!([bytes(512.0), bytes(3.4e9), bytes(99_960.0)], ["512 B", "3.4 GB", "100 kB"]);
        assert_eq!(rate(12_345.0, "tokens"), "12.3 k tokens/s");
        assert_eq!([rate(0.314, "steps"), rate(42.4, "steps")], ["0.31 steps/s", "42 steps/s"]);
    }

    #[test]
    fn time_spans_have_their_two_largest_units() {
        let cases = [
            (0.1204, "120 ms"),
            (0.9997, "1.0 s"),
            (4.21, "4.2 s"),
            (42.0, "42 s"),
            (59.7, "1 min 0 s"),
            (133.0, "2 min 13 s"),
            (3_900.0, "1 h 5 min"),
            (273_600.0, "3 d 4 h"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(Duration::from_secs_f64(seconds)), text);
        }
    }

    #[test]
    fn errors_have_two_digits_and_values_as_many_decimals() {
        assert_eq!(plus_minus(5.1234, 0.312), "5.12 ± 0.31");
        assert_eq!(plus_minus(5.1234, 0.0996), "5.12 ± 0.10");
        assert_eq!(plus_minus(1234.5, 42.0), "1234 ± 42");
        assert_eq!(plus_minus(-0.000_123_4, 0.000_021), "-0.000123 ± 0.000021");
        assert_eq!([plus_minus(5.0, 0.0), plus_minus(f64::NAN, f64::NAN)], ["5.00", "undefined"]);
    }

    #[test]
    fn only_all_is_shown_as_100_percent() {
        assert_eq!(
            [percent(0.9995, 2), percent(1.0, 2), percent(0.999_99, 2)],
            ["99.95 %", "100.00 %", "99.99 %"]
        );
        assert_eq!(
            [percent(0.996, 0), percent(0.5, 1), percent(f64::NAN, 1)],
            ["99 %", "50.0 %", "undefined"]
        );
    }

    #[test]
    fn texts_are_cut_and_wrapped_by_characters() {
        assert_eq!([shorten("größer", 6), shorten("größer", 4), shorten("ab", 0)], ["größer", "grö…", ""]);
        assert_eq!(wrap("aa bb cc", 5, " "), "aa bb\n cc");
        assert_eq!(wrap("a very-long-word b", 5, ""), "a\nvery-long-word\nb");
    }
}
