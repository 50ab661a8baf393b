//! Quality against cost: BrierLM, and Brier-1, which is always defined, over FLOPs and measured time.

use maud::{Markup, html};

use super::parts::{Section, all_variants, figure, legend, mean};
use crate::ReportError;
use crate::axis::{Axis, Unit};
use crate::chart::{Chart, Mark, Point};
use crate::study::{Estimate, Score, Study, Variant};

/// A score that is plotted.
struct Quality {
    name: &'static str,
    of: fn(&Score) -> Option<Estimate>,
}

const QUALITIES: [Quality; 2] = [
    Quality { name: "BrierLM", of: |s| s.brierlm },
    Quality { name: "Brier-1", of: |s| s.brier.first().copied() },
];

/// From, to; None where there is but one number.
type Range = Option<(f64, f64)>;

/// What a variant costs, with the quartiles where it was measured in rounds.
#[derive(Clone, Copy)]
struct Cost {
    label: &'static str,
    unit: Unit,
    of: fn(&Variant) -> Option<(f64, Range)>,
}

const TRAINING_FLOPS: Cost = Cost {
    label: "training FLOPs of a run",
    unit: Unit::Si,
    of: |v| Some((mean(v.runs.iter().map(|r| r.flops))?, None)),
};
const INFERENCE_FLOPS: Cost = Cost {
    label: "inference FLOPs per token, T = 1",
    unit: Unit::Si,
    of: |v| Some((v.costs.inference(), None)),
};
const TRAINING_TIME: Cost = Cost {
    label: "measured training time of a run",
    unit: Unit::Time,
    of: |v| {
        let tokens = mean(v.runs.iter().map(|r| r.tokens as f64))?;
        let m = v.measured?;
        let (low, high) = m.training_quartiles;
        Some((tokens / m.training, Some((tokens / high, tokens / low))))
    },
};
/// Where nothing was measured apart: the time the runs took, whatever else the machine did.
const WALL_TIME: Cost = Cost {
    label: "training time of the runs as it was",
    unit: Unit::Time,
    of: |v| Some((mean(v.runs.iter().map(|r| r.seconds))?, None)),
};
const GENERATION_TIME: Cost = Cost {
    label: "measured time per generated token, T = 1",
    unit: Unit::Time,
    of: |v| Some((1.0 / v.measured?.generation, None)),
};

pub fn section(study: &Study) -> Result<Option<Section>, ReportError> {
    if study.variants.iter().all(|v| v.aligned.is_none()) {
        return Ok(None);
    }
    let legend = legend(all_variants(study))?;
    let mut figures: Vec<Markup> = Vec::new();
    // One kind of time for all: what was measured in turn and what it took by the way do not compare.
    let time = if study.variants.iter().any(|v| v.measured.is_some()) { TRAINING_TIME } else { WALL_TIME };
    for quality in &QUALITIES {
        let panels: Vec<Chart> = [TRAINING_FLOPS, INFERENCE_FLOPS, time]
            .iter()
            .filter_map(|cost| panel(study, quality, cost))
            .collect();
        if panels.is_empty() {
            figures.push(html! {
                p.note {
                    (quality.name)
                    " cannot be plotted: it is undefined for every variant, or nothing is known of their cost."
                }
            });
            continue;
        }
        let caption = html! {
            (quality.name) " in the aligned protocol against training FLOPs, FLOPs per generated token and "
            "training time, on logarithmic axes: up and to the left is better. " (BARS)
        };
        figures.push(figure(&legend, &panels, &caption)?);
    }
    let generation: Vec<Chart> =
        QUALITIES.iter().filter_map(|quality| panel(study, quality, &GENERATION_TIME)).collect();
    if !generation.is_empty() {
        let caption = html! {
            "Scores against the measured time of a generated token at T = 1, one text at a time: up and to the "
            "left is better. " (BARS)
        };
        figures.push(figure(&legend, &generation, &caption)?);
    }
    let body = html! { @for figure in &figures { (figure) } };
    Ok(Some(Section { id: "frontier", title: "Quality against cost", body }))
}

/// What every plot of this section needs said.
const BARS: &str = "Vertical bars are ± one standard error, horizontal ones the quartiles of the measured rounds; \
                    the grey steps join variants that no cheaper one reaches, dashed lines are n-gram models.";

fn panel(study: &Study, quality: &Quality, cost: &Cost) -> Option<Chart> {
    let mut points = Vec::new();
    for (series, variant) in study.variants.iter().enumerate() {
        let Some(estimate) = variant.aligned.as_ref().and_then(quality.of) else { continue };
        let Some((x, x_range)) = (cost.of)(variant) else { continue };
        if estimate.value.is_finite() && x.is_finite() && x > 0.0 {
            let y_range = estimate
                .se()
                .filter(|se| se.is_finite())
                .map(|se| (estimate.value - se, estimate.value + se));
            // More names than this would hide the points; the legend has them all.
            let label = (study.variants.len() <= 10).then(|| variant.name.clone());
            points.push(Point { x, y: estimate.value, x_range, y_range, series, label, ..Point::default() });
        }
    }
    let x_values = points.iter().flat_map(|p| [Some(p.x), p.x_range.map(|r| r.0), p.x_range.map(|r| r.1)]);
    let x = Axis::log(cost.label, cost.unit, x_values.flatten())?;
    let levels: Vec<(f64, &str)> = study
        .ngrams
        .iter()
        .filter_map(|n| {
            let y = if quality.name == "BrierLM" { n.brierlm } else { n.brier.first().copied() };
            Some((y?, n.name.as_str()))
        })
        .collect();
    let y_values = points.iter().flat_map(|p| [Some(p.y), p.y_range.map(|r| r.0), p.y_range.map(|r| r.1)]);
    let y_values = y_values.flatten().chain(levels.iter().map(|l| l.0));
    let y = Axis::linear(&format!("{}, %", quality.name), Unit::Plain, y_values)?;
    let mut marks = vec![Mark::Steps(frontier(&points))];
    marks.extend(points.into_iter().map(Mark::Point));
    marks.extend(levels.into_iter().map(|(y, name)| Mark::Level { y, label: name.into() }));
    Some(Chart { description: format!("{} against {}", quality.name, cost.label), x, y, marks })
}

/// The points that no point of lower or equal cost reaches, by rising cost.
fn frontier(points: &[Point]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<(f64, f64)> = points.iter().map(|p| (p.x, p.y)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(b.1.total_cmp(&a.1)));
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|p| {
        let better = p.1 > best;
        best = best.max(p.1);
        better
    });
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frontier_keeps_what_nothing_cheaper_reaches() {
        let at = |x, y| Point { x, y, ..Point::default() };
        let points = [at(3.0, 2.0), at(1.0, 1.0), at(2.0, 0.5), at(4.0, 2.0), at(3.0, 1.5)];
        assert_eq!(frontier(&points), [(1.0, 1.0), (3.0, 2.0)]);
        assert!(frontier(&[]).is_empty());
    }
}
