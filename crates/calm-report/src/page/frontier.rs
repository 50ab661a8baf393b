//! Quality against cost: the Brier scores, and bits per byte, over FLOPs and measured time.

use maud::{Markup, html};

use super::parts::{Section, all_variants, figure, legend, mean};
use crate::ReportError;
use crate::axis::{Axis, Unit};
use crate::chart::{Chart, Mark, Point};
use crate::study::{Estimate, Likelihood, Reference, Study, Variant};

/// A score that is plotted.
struct Quality {
    name: &'static str,
    unit: &'static str,
    of: fn(&Variant) -> Option<Estimate>,
    of_ngram: fn(&Reference) -> Option<f64>,
    better: Better,
}

#[derive(Clone, Copy, PartialEq)]
enum Better {
    Higher,
    Lower,
}

/// In the order in which they are shown, if as many variants have one as the other.
const QUALITIES: [Quality; 4] = [
    Quality {
        name: "BrierLM",
        unit: "%",
        of: |v| v.aligned.as_ref()?.brierlm,
        of_ngram: |n| n.brierlm,
        better: Better::Higher,
    },
    Quality {
        name: "Brier-1",
        unit: "%",
        of: |v| v.aligned.as_ref()?.brier.first().copied(),
        of_ngram: |n| n.brier.first().copied(),
        better: Better::Higher,
    },
    Quality {
        name: "bits per byte",
        unit: "exact or a bound",
        of: |v| v.likelihood()?.bits_per_byte,
        of_ngram: |_| None,
        better: Better::Lower,
    },
    // Where tokens are not bytes of the text.
    Quality {
        name: "nats a token",
        unit: "exact or a bound",
        of: |v| v.likelihood().filter(|l: &Likelihood| l.bits_per_byte.is_none()).map(|l| l.nats),
        of_ngram: |_| None,
        better: Better::Lower,
    },
];

/// What some variant has, those first that most variants have.
fn defined(study: &Study) -> Vec<&'static Quality> {
    let having = |quality: &Quality| study.variants.iter().filter(|v| (quality.of)(v).is_some()).count();
    let mut found: Vec<_> = QUALITIES.iter().filter(|quality| having(quality) > 0).collect();
    found.sort_by_key(|quality| std::cmp::Reverse(having(quality)));
    found
}

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
    let legend = legend(all_variants(study))?;
    let mut figures: Vec<Markup> = Vec::new();
    // One kind of time for all: what was measured in turn and what it took by the way do not compare.
    let time = if study.variants.iter().any(|v| v.measured.is_some()) { TRAINING_TIME } else { WALL_TIME };
    let qualities = defined(study);
    for quality in &qualities {
        let panels: Vec<Chart> = [TRAINING_FLOPS, INFERENCE_FLOPS, time]
            .iter()
            .filter_map(|cost| panel(study, quality, cost))
            .collect();
        if panels.is_empty() {
            continue;
        }
        let caption = html! {
            (quality.name) ", " @if quality.better == Better::Higher { "in the aligned protocol, " }
            "against training FLOPs, FLOPs per generated token and training time, on logarithmic axes: "
            (quality.better.corner()) " is better. " (BARS)
        };
        figures.push(figure(&legend, &panels, &caption)?);
    }
    let generation: Vec<Chart> =
        qualities.iter().filter_map(|quality| panel(study, quality, &GENERATION_TIME)).collect();
    if !generation.is_empty() {
        let caption = html! {
            "The same against the measured time of a generated token at T = 1, one text at a time: to the left is "
            "cheaper. " (BARS)
        };
        figures.push(figure(&legend, &generation, &caption)?);
    }
    if figures.is_empty() {
        return Ok(None);
    }
    let body = html! { @for figure in &figures { (figure) } };
    Ok(Some(Section { id: "frontier", title: "Quality against cost", body }))
}

impl Better {
    fn corner(self) -> &'static str {
        match self {
            Self::Higher => "up and to the left",
            Self::Lower => "down and to the left",
        }
    }
}

/// What every plot of this section needs said.
const BARS: &str = "Vertical bars are ± one standard error, horizontal ones the quartiles of the measured rounds; \
                    the grey steps join variants that no cheaper one reaches, dashed lines are n-gram models.";

fn panel(study: &Study, quality: &Quality, cost: &Cost) -> Option<Chart> {
    let mut points = Vec::new();
    for (series, variant) in study.variants.iter().enumerate() {
        let Some(estimate) = (quality.of)(variant) else { continue };
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
    let level = |n: &'_ Reference| Some(((quality.of_ngram)(n)?, n.name.clone()));
    let levels: Vec<(f64, String)> = study.ngrams.iter().filter_map(level).collect();
    let y_values = points.iter().flat_map(|p| [Some(p.y), p.y_range.map(|r| r.0), p.y_range.map(|r| r.1)]);
    let y_values = y_values.flatten().chain(levels.iter().map(|l| l.0));
    let label = format!("{}, {}", quality.name, quality.unit);
    let y = match quality.better {
        Better::Higher => Axis::linear(&label, Unit::Plain, y_values),
        Better::Lower => Axis::close(&label, y_values),
    }?;
    let mut marks = vec![Mark::Steps(frontier(&points, quality.better))];
    marks.extend(points.into_iter().map(Mark::Point));
    marks.extend(levels.into_iter().map(|(y, label)| Mark::Level { y, label }));
    Some(Chart { description: format!("{} against {}", quality.name, cost.label), x, y, marks })
}

/// The points that no point of lower or equal cost reaches, by rising cost.
fn frontier(points: &[Point], better: Better) -> Vec<(f64, f64)> {
    let height = |y: f64| if better == Better::Higher { y } else { -y };
    let mut sorted: Vec<(f64, f64)> = points.iter().map(|p| (p.x, p.y)).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0).then(height(b.1).total_cmp(&height(a.1))));
    let mut best = f64::NEG_INFINITY;
    sorted.retain(|p| {
        let reaches = height(p.1) > best;
        best = best.max(height(p.1));
        reaches
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
        assert_eq!(frontier(&points, Better::Higher), [(1.0, 1.0), (3.0, 2.0)]);
        assert_eq!(frontier(&points, Better::Lower), [(1.0, 1.0), (2.0, 0.5)]);
        assert!(frontier(&[], Better::Higher).is_empty());
    }

    #[test]
    fn what_most_variants_have_comes_first_and_what_none_has_not_at_all() {
        let estimate = |value| Estimate { value, ..Default::default() };
        let score = |brierlm| {
            let brier = vec![estimate(1.0); 4];
            Some(crate::study::Score { brierlm, brier, ..Default::default() })
        };
        let variant = |brierlm| Variant { aligned: score(brierlm), ..Default::default() };
        let names = |variants: Vec<Variant>| -> Vec<&str> {
            defined(&Study { variants, ..Default::default() }).iter().map(|q| q.name).collect()
        };
        assert_eq!(names(vec![variant(None), variant(None)]), ["Brier-1"]);
        assert_eq!(names(vec![variant(Some(estimate(1.0))), variant(None)]), ["Brier-1", "BrierLM"]);
        assert_eq!(names(vec![variant(Some(estimate(1.0)))]), ["BrierLM", "Brier-1"]);
    }
}
