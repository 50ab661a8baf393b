//! Validation while the models were trained: learning curves, and BrierLM against cross-entropy.

use maud::html;

use super::parts::{Section, all_variants, figure, legend, plural};
use crate::ReportError;
use crate::axis::{Axis, Unit};
use crate::chart::{Chart, Mark, Point};
use crate::correlation::{pearson, spearman};
use crate::number;
use crate::study::{CurvePoint, SeedRun, Study, Variant};

/// A number of a validation.
type Of = fn(&CurvePoint) -> Option<f64>;

const BRIERLM: Of = |p| p.brierlm;
const BRIER_1: Of = |p| p.brier_1;
const NATS: Of = |p| p.nats;
const LOSS: Of = |p| Some(p.loss);

/// Nats of models with probabilities and bounds of others, in one plot.
const NATS_LABEL: &str = "nats per token, exact or a bound";

pub fn learning(study: &Study) -> Result<Option<Section>, ReportError> {
    let panels: Vec<Chart> = [
        curves(study, "BrierLM, %", BRIERLM, |_| true),
        curves(study, "Brier-1, %", BRIER_1, |_| true),
        curves(study, NATS_LABEL, NATS, |_| true),
        curves(study, "loss of latent heads", LOSS, |v| !v.probabilities),
    ]
    .into_iter()
    .flatten()
    .collect();
    if panels.is_empty() {
        return Ok(None);
    }
    let caption = html! {
        "Validation while training, against the training tokens seen. Strong lines are means over the seeds, thin "
        "ones single seeds; with one seed, bars are ± one standard error over the documents. Losses of heads live in "
        "different latent spaces: read each for itself, not one against another. Where BrierLM is undefined its "
        "line has no point."
    };
    let body = figure(&legend(all_variants(study))?, &panels, &caption)?;
    Ok(Some(Section { id: "curves", title: "Learning curves", body }))
}

fn curves(study: &Study, label: &str, of: Of, which: fn(&Variant) -> bool) -> Option<Chart> {
    let mut marks = Vec::new();
    let mut strong = Vec::new();
    let mut values = Vec::new();
    for (series, variant) in study.variants.iter().enumerate().filter(|(_, v)| which(v)) {
        let lines: Vec<Vec<(f64, f64)>> = variant.runs.iter().map(|run| line(run, of)).collect();
        values.extend(lines.iter().flatten().copied());
        let single = variant.runs.len() == 1;
        let mean = if single { lines[0].clone() } else { common_mean(&lines) };
        if !single {
            let faint = lines.into_iter().filter(|l| l.len() > 1);
            marks.extend(faint.map(|points| Mark::Line { points, series, faint: true }));
        }
        let errors = |x: f64| {
            let point = variant.runs[0].curve.iter().find(|p| p.tokens as f64 == x)?;
            let (value, se) = (of(point)?, point.brierlm_se?);
            (single && label.starts_with("BrierLM") && se.is_finite()).then_some((value - se, value + se))
        };
        for &(x, y) in &mean {
            let y_range = errors(x);
            values.extend(y_range.into_iter().flat_map(|(a, b)| [(x, a), (x, b)]));
            strong.push(Mark::Point(Point { x, y, y_range, series, small: true, ..Point::default() }));
        }
        if mean.len() > 1 {
            marks.push(Mark::Line { points: mean, series, faint: false });
        }
    }
    marks.extend(strong);
    let x = Axis::linear("training tokens", Unit::Si, values.iter().map(|v| v.0).chain([0.0]))?;
    let heights = values.iter().map(|v| v.1);
    let y = if label.ends_with('%') {
        Axis::linear(label, Unit::Plain, heights)
    } else {
        Axis::close(label, heights)
    }?;
    let description = format!("{label} against training tokens");
    Some(Chart { description, x, y, marks })
}

/// (tokens, value) where the value is defined.
fn line(run: &SeedRun, of: Of) -> Vec<(f64, f64)> {
    run.curve.iter().filter_map(|p| Some((p.tokens as f64, of(p)?))).filter(|p| p.1.is_finite()).collect()
}

/// Mean of several lines at the places that all of them have: a mean over fewer seeds would jump.
fn common_mean(lines: &[Vec<(f64, f64)>]) -> Vec<(f64, f64)> {
    let Some(first) = lines.first() else { return Vec::new() };
    let at = |line: &[(f64, f64)], x: f64| line.iter().find(|p| p.0 == x).map(|p| p.1);
    first
        .iter()
        .filter_map(|&(x, _)| {
            let values: Option<Vec<f64>> = lines.iter().map(|l| at(l, x)).collect();
            Some((x, values?.iter().sum::<f64>() / lines.len() as f64))
        })
        .collect()
}

pub fn against_cross_entropy(study: &Study) -> Result<Option<Section>, ReportError> {
    let points = |of: Of| {
        let runs = study.variants.iter().enumerate().flat_map(|(i, v)| v.runs.iter().map(move |r| (i, r)));
        runs.flat_map(|(i, r)| r.curve.iter().map(move |p| (i, p)))
            .filter_map(move |(series, p)| Some((series, p, p.nats?, of(p)?)))
            .filter(|(_, _, x, y)| x.is_finite() && y.is_finite())
            .collect::<Vec<_>>()
    };
    let mut panels = Vec::new();
    let mut rows = Vec::new();
    for (name, of) in [("BrierLM", BRIERLM), ("Brier-1", BRIER_1)] {
        let points = points(of);
        for (whose, exact) in [("with probabilities", true), ("without, by their bound", false)] {
            let of_these = points.iter().filter(|(i, ..)| study.variants[*i].probabilities == exact);
            let pairs: Vec<(f64, f64)> = of_these.map(|(_, _, x, y)| (*x, *y)).collect();
            if !pairs.is_empty() {
                rows.push((name, whose, pearson(&pairs), spearman(&pairs), pairs.len()));
            }
        }
        let Some(x) = Axis::close(NATS_LABEL, points.iter().map(|p| p.2)) else { continue };
        let ranges = |p: &CurvePoint, y: f64| {
            let se = p.brierlm_se.filter(|se| name == "BrierLM" && se.is_finite())?;
            Some((y - se, y + se))
        };
        let heights = points.iter().flat_map(|(_, p, _, y)| {
            let (low, high) = ranges(p, *y).unwrap_or((*y, *y));
            [low, high]
        });
        let Some(y) = Axis::linear(&format!("{name}, %"), Unit::Plain, heights) else { continue };
        let marks = points
            .iter()
            .map(|&(series, p, x, y)| Point {
                x,
                y,
                y_range: ranges(p, y),
                series,
                small: true,
                ..Point::default()
            })
            .map(Mark::Point)
            .collect();
        let description = format!("{name} against nats a token over the checkpoints of all models");
        panels.push(Chart { description, x, y, marks });
    }
    if panels.is_empty() {
        return Ok(None);
    }
    let known = |v: &Variant| v.runs.iter().flat_map(|r| &r.curve).any(|p| p.nats.is_some());
    let shown = all_variants(study).filter(|(i, _)| known(&study.variants[*i]));
    let caption = html! {
        "Every validation that has both numbers: if the scores measure what cross-entropy measures, they fall along a "
        "line (Pearson) or at least in order (Spearman). Models that draw latent vectors stand at a bound, which may be "
        "far above the truth. Bars are ± one standard error."
    };
    let plots = figure(&legend(shown)?, &panels, &caption)?;
    let coefficient = |c: Option<f64>| c.map_or_else(|| "undefined".into(), |c| number::fixed(c, 3));
    let body = html! {
        @for (name, whose, pearson, spearman, n) in &rows {
            p {
                (name) " and nats a token, models " (whose) ": Pearson " strong { (coefficient(*pearson)) }
                ", Spearman " strong { (coefficient(*spearman)) } ", over " (plural(*n, "checkpoint")) "."
            }
        }
        (plots)
        p.note {
            "The checkpoints of a run follow from each other, so these coefficients say how closely the scores "
            "move together along training, not how sure that is."
        }
    };
    Ok(Some(Section { id: "cross-entropy", title: "BrierLM and cross-entropy", body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mean_curve_has_only_the_places_that_all_seeds_have() {
        let lines = [vec![(1.0, 2.0), (2.0, 4.0), (3.0, 9.0)], vec![(1.0, 4.0), (3.0, 1.0)]];
        assert_eq!(common_mean(&lines), [(1.0, 3.0), (3.0, 5.0)]);
        assert!(common_mean(&[]).is_empty());
        assert!(common_mean(&[vec![(1.0, 1.0)], vec![]]).is_empty());
    }
}
