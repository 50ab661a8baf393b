//! Axes: which stretch of numbers a plot shows, and at which round numbers it is labelled.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

use crate::number;

/// Labels an axis has at most; more would touch in a panel of a phone's width.
const MOST_TICKS: usize = 6;

/// What the numbers of an axis are, for its labels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Unit {
    /// Plain decimals: scores, losses, percentages, K.
    Plain,
    /// Large numbers with an SI prefix: FLOPs, tokens.
    Si,
    /// Seconds, labelled in the unit that fits.
    Time,
}

/// One axis of a plot. Positions along it are linear in the number, or in its decimal logarithm.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with unit.
    pub label: String,
    log: bool,
    /// First position.
    pub low: f64,
    /// Last position.
    pub high: f64,
    /// Labelled positions, rising.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// A linear axis over `values`; None without a finite one. It starts at 0 unless the values lie in a
    /// narrow band far from it.
    pub fn linear(label: &str, unit: Unit, values: impl IntoIterator<Item = f64>) -> Option<Axis> {
        let (min, max) = extent(values.into_iter().filter(|v| v.is_finite()))?;
        let low = if min > 0.0 && min < 0.6 * max { 0.0 } else { min };
        Some(Axis::fitted(label, unit, low, max))
    }

    /// A linear axis over `values` alone, for what has no meaningful 0, such as a loss.
    pub fn close(label: &str, values: impl IntoIterator<Item = f64>) -> Option<Axis> {
        let (low, high) = extent(values.into_iter().filter(|v| v.is_finite()))?;
        Some(Axis::fitted(label, Unit::Plain, low, high))
    }

    fn fitted(label: &str, unit: Unit, min: f64, max: f64) -> Axis {
        let (mut low, mut high) = (min, max);
        if high <= low {
            let room = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
            (low, high) = (low - room, high + room);
        }
        let margin = 0.06 * (high - low);
        if low != 0.0 {
            low -= margin;
        }
        high += margin;
        let ticks = linear_ticks(low, high).into_iter().map(|(v, d)| (v, text(v, d, unit))).collect();
        Axis { label: label.into(), log: false, low, high, ticks }
    }

    /// A logarithmic axis over the positive ones of `values`; None if there are none.
    pub fn log(label: &str, unit: Unit, values: impl IntoIterator<Item = f64>) -> Option<Axis> {
        let (min, max) = extent(values.into_iter().filter(|v| v.is_finite() && *v > 0.0))?;
        // A tenth of the way on either side, and at least a factor of 1.1, so that one value has an axis too.
        let margin = (0.1 * (max / min).log10()).max(1.1f64.log10());
        let (low, high) = (min.log10() - margin, max.log10() + margin);
        let ticks = log_ticks(10f64.powf(low), 10f64.powf(high), unit)
            .into_iter()
            .map(|(v, d)| (v.log10(), text(v, d, unit)))
            .collect();
        Some(Axis { label: label.into(), log: true, low, high, ticks })
    }

    /// A logarithmic axis whose labels are exactly the given numbers, such as the values of K.
    pub fn log_at(label: &str, values: &[f64]) -> Option<Axis> {
        let mut axis = Axis::log(label, Unit::Plain, values.iter().copied())?;
        let mut values: Vec<f64> = values.iter().copied().filter(|v| v.is_finite() && *v > 0.0).collect();
        values.sort_by(f64::total_cmp);
        values.dedup();
        axis.ticks = values.into_iter().map(|v| (v.log10(), v.to_string())).collect();
        Some(axis)
    }

    /// Position of a number; None where the axis has no place for it.
    pub fn place(&self, value: f64) -> Option<f64> {
        match value.is_finite() {
            false => None,
            true if !self.log => Some(value),
            true => (value > 0.0).then(|| value.log10()),
        }
    }
}

/// What plotters draws an axis from: positions as numbers, ticks with their labels.
impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, position: &f64, (first, last): (i32, i32)) -> i32 {
        let share = (position - self.low) / (self.high - self.low);
        first + (share * f64::from(last - first)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        if hint.weight().allow_light_points() {
            return Vec::new();
        }
        self.ticks.iter().map(|t| t.0).collect()
    }

    fn range(&self) -> Range<f64> {
        self.low..self.high
    }
}

impl ValueFormatter<f64> for Axis {
    fn format(position: &f64) -> String {
        position.to_string()
    }

    fn format_ext(&self, position: &f64) -> String {
        self.ticks.iter().find(|t| t.0 == *position).map(|t| t.1.clone()).unwrap_or_default()
    }
}

fn extent(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| match range {
        None => Some((v, v)),
        Some((low, high)) => Some((low.min(v), high.max(v))),
    })
}

/// Multiples of 1, 2 or 5 times a power of ten within the range, with the decimals they need.
fn linear_ticks(low: f64, high: f64) -> Vec<(f64, usize)> {
    let raw = (high - low) / (MOST_TICKS as f64 - 1.0);
    let power = raw.log10().floor();
    for (multiple, more) in [(1.0, 0.0), (2.0, 0.0), (5.0, 0.0), (1.0, 1.0), (2.0, 1.0)] {
        let step = multiple * 10f64.powf(power + more);
        let (first, last) = ((low / step).ceil(), (high / step).floor());
        if last - first < MOST_TICKS as f64 {
            let decimals = (-(power + more)).max(0.0) as usize;
            return (0..=(last - first).max(0.0) as usize)
                .map(|i| ((first + i as f64) * step, decimals))
                .collect();
        }
    }
    vec![(low, 3), (high, 3)]
}

/// Round numbers within the range that lie well apart on a logarithmic axis, with the decimals they need.
fn log_ticks(low: f64, high: f64, unit: Unit) -> Vec<(f64, usize)> {
    const STEPS: [&[f64]; 4] = [&[1.0, 1.5, 2.0, 3.0, 5.0, 7.0], &[1.0, 2.0, 5.0], &[1.0, 3.0], &[1.0]];
    let inside = |v: &f64| (low..=high).contains(v);
    let fits = |ticks: &[f64]| (3..=MOST_TICKS).contains(&ticks.len());
    if unit == Unit::Time && high > 10.0 {
        for (steps, stride) in [(TIMES, 1), (MORE_TIMES, 1), (TIMES, 2), (TIMES, 3), (TIMES, 4)] {
            let ticks: Vec<f64> = times(steps).into_iter().filter(inside).step_by(stride).collect();
            if fits(&ticks) {
                return ticks.into_iter().map(|v| (v, 0)).collect();
            }
        }
        // A narrow range: round numbers of its unit, so 1.5 min and not 100 s.
        let unit = [86_400.0, 3600.0, 60.0].into_iter().find(|u| high >= 3.0 * u).unwrap_or(1.0);
        let ticks = log_ticks(low / unit, high / unit, Unit::Plain);
        return ticks.into_iter().map(|(v, decimals)| (v * unit, decimals)).collect();
    }
    let powers = low.log10().floor() as i32..=high.log10().floor() as i32;
    for steps in STEPS {
        let ticks: Vec<f64> = powers
            .clone()
            .flat_map(|p| steps.iter().map(move |s| s * 10f64.powi(p)))
            .filter(inside)
            .collect();
        if fits(&ticks) {
            // 1.5 is the only step with a decimal.
            return ticks.into_iter().map(|v| (v, (1.0 - v.log10().floor()).max(0.0) as usize)).collect();
        }
    }
    let decades: Vec<f64> = powers.map(|p| 10f64.powi(p)).filter(inside).collect();
    if decades.len() > MOST_TICKS {
        let stride = decades.len().div_ceil(MOST_TICKS);
        return decades.into_iter().step_by(stride).map(|v| (v, 0)).collect();
    }
    // Less than a few steps: the logarithm is nearly a line.
    let mut ticks = linear_ticks(low, high);
    ticks.retain(|t| t.0 > 0.0);
    ticks
}

/// Round numbers of seconds and minutes; of hours and days what comes before the next unit.
const TIMES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
/// More of them, for narrower ranges.
const MORE_TIMES: &[f64] = &[1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 30.0];

/// Round times from a second to years, rising.
fn times(steps: &[f64]) -> Vec<f64> {
    let units = [(1.0, 60.0), (60.0, 60.0), (3600.0, 24.0), (86_400.0, 10_000.0)];
    units
        .into_iter()
        .flat_map(|(unit, next)| {
            let steps = steps.iter().chain(&[50.0, 100.0, 200.0, 500.0, 1000.0]);
            // 50 s is not round; 50 days are.
            steps.filter(move |s| **s < if next > 60.0 { next } else { 50.0 }).map(move |s| s * unit)
        })
        .collect()
}

fn text(value: f64, decimals: usize, unit: Unit) -> String {
    match unit {
        Unit::Si if value.abs() >= 1.0 || value == 0.0 => number::si_short(value),
        Unit::Time if value > 0.0 => time_text(value),
        _ => {
            let text = number::fixed(value, decimals);
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
        }
    }
}

/// A round time in the largest unit that it is a simple number of: `5 min`, `1.5 h`, but `65 s`.
fn time_text(seconds: f64) -> String {
    const UNITS: [(f64, &str); 6] =
        [(86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"), (1e-3, "ms"), (1e-6, "µs")];
    let simple =
        |value: f64| value >= 2.999 || (value >= 0.999 && (value * 2.0 - (value * 2.0).round()).abs() < 1e-6);
    let (size, unit) = UNITS.into_iter().find(|(size, _)| simple(seconds / size)).unwrap_or((1e-6, "µs"));
    let text = number::fixed(seconds / size, 2);
    format!("{}\u{a0}{unit}", text.trim_end_matches('0').trim_end_matches('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: Option<Axis>) -> Vec<String> {
        axis.expect("an axis").ticks.into_iter().map(|t| t.1.replace('\u{a0}', " ")).collect()
    }

    #[test]
    fn flops_are_labelled_with_round_prefixed_numbers() {
        let axis = Axis::log("", Unit::Si, [2.1e12, 3.3e13]);
        assert_eq!(labels(axis), ["2 T", "5 T", "10 T", "20 T"]);
        assert_eq!(labels(Axis::log("", Unit::Si, [1e9, 1e15])), ["1 G", "100 G", "10 T", "1 P"]);
        assert_eq!(labels(Axis::log("", Unit::Si, [1.02e6, 1.05e6])).len(), 5);
    }

    #[test]
    fn times_are_labelled_in_minutes_and_hours() {
        assert_eq!(
            labels(Axis::log("", Unit::Time, [45.0, 1500.0])),
            ["1 min", "2 min", "5 min", "10 min", "20 min"]
        );
        assert_eq!(labels(Axis::log("", Unit::Time, [0.0004, 0.004])), ["500 µs", "1 ms", "2 ms", "5 ms"]);
        assert_eq!(labels(Axis::log("", Unit::Time, [48.0, 237.0])), ["1 min", "1.5 min", "2 min", "3 min"]);
        assert_eq!(
            labels(Axis::log("", Unit::Time, [9e3, 2e5])),
            ["2 h", "5 h", "10 h", "20 h", "1 d", "2 d"]
        );
        assert_eq!(labels(Axis::log("", Unit::Time, [70.0, 80.0])), ["65 s", "70 s", "75 s", "80 s", "85 s"]);
    }

    #[test]
    fn every_axis_has_between_two_and_seven_labels_inside_its_range() {
        for low in [1e-6, 0.003, 0.7, 1.0, 42.0, 3.3e5, 8.8e14] {
            for factor in [1.0, 1.001, 1.1, 1.7, 3.0, 12.0, 450.0, 1e7] {
                for unit in [Unit::Plain, Unit::Si, Unit::Time] {
                    let values = [low, low * factor];
                    for axis in [Axis::linear("", unit, values), Axis::log("", unit, values)] {
                        let axis = axis.expect("an axis");
                        let context = format!("{values:?} {axis:?}");
                        assert!((2..=7).contains(&axis.ticks.len()), "{context}");
                        let inside = |t: f64| (axis.low - 1e-9..=axis.high + 1e-9).contains(&t);
                        assert!(axis.ticks.iter().all(|t| inside(t.0)), "{context}");
                        assert!(axis.ticks.windows(2).all(|w| w[0].0 < w[1].0), "{context}");
                        for v in values {
                            assert!(inside(axis.place(v).expect("a place")), "{context}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_linear_axis_starts_at_zero_unless_the_values_are_far_from_it() {
        assert_eq!(Axis::linear("", Unit::Plain, [0.5, 5.0]).expect("an axis").low, 0.0);
        assert!(Axis::linear("", Unit::Plain, [5.0, 5.2]).expect("an axis").low > 4.9);
        assert!(Axis::linear("", Unit::Plain, [-0.5, 5.0]).expect("an axis").low < -0.5);
        assert_eq!(labels(Axis::linear("", Unit::Plain, [0.0, 1.0])), ["0", "0.2", "0.4", "0.6", "0.8", "1"]);
    }

    #[test]
    fn what_cannot_be_placed_is_left_out() {
        assert!(Axis::log("", Unit::Si, [0.0, -1.0, f64::NAN]).is_none());
        assert!(Axis::linear("", Unit::Si, []).is_none());
        let axis = Axis::log("", Unit::Si, [0.0, 10.0]).expect("an axis");
        assert_eq!(axis.place(0.0), None);
        assert_eq!(axis.place(f64::INFINITY), None);
        assert_eq!(labels(Axis::log_at("K", &[4.0, 1.0, 2.0, 4.0])), ["1", "2", "4"]);
    }
}
