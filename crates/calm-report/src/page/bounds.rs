//! What a likelihood says of models that have none: the bound by sampled decoding, against the number of draws.

use maud::html;

use super::parts::{Section, all_variants, figure, legend};
use crate::ReportError;
use crate::axis::Axis;
use crate::chart::{Chart, Mark, Point};
use crate::study::{Estimate, Study, Variant};

/// Mean over seeds of the bound at each number of draws that all of them have, with the standard error over seeds; with
/// one seed that over its documents.
fn curve(variant: &Variant) -> Vec<(f64, f64, Option<f64>)> {
    let Some(first) = variant.runs.first() else { return Vec::new() };
    let at = |draws: usize| -> Option<(f64, f64, Option<f64>)> {
        let points: Option<Vec<_>> =
            variant.runs.iter().map(|r| r.bound.iter().find(|p| p.samples == draws)).collect();
        let points = points?;
        let mean = Estimate::over_seeds(&points.iter().map(|p| p.nats).collect::<Vec<_>>())?;
        Some((draws as f64, mean.value, mean.seeds.or(points[0].nats_se)))
    };
    first.bound.iter().filter_map(|p| at(p.samples)).filter(|p| p.1.is_finite()).collect()
}

pub fn section(study: &Study) -> Result<Option<Section>, ReportError> {
    let curves: Vec<_> = study.variants.iter().map(curve).collect();
    let exact: Vec<f64> =
        study.variants.iter().flat_map(|v| &v.runs).filter_map(|r| r.cross_entropy).collect();
    let ends = |&(_, y, se): &(f64, f64, Option<f64>)| [y - se.unwrap_or(0.0), y + se.unwrap_or(0.0)];
    let heights = curves.iter().flatten().flat_map(ends).chain(exact.iter().copied());
    let draws: Vec<f64> = curves.iter().flatten().map(|p| p.0).collect();
    let (Some(x), Some(y)) =
        (Axis::log_at("draws of a latent vector, N", &draws), Axis::close("bound, nats per token", heights))
    else {
        return Ok(None);
    };
    let (least, most) = draws.iter().fold((f64::INFINITY, 0.0f64), |(a, b), d| (a.min(*d), b.max(*d)));
    let mut marks = Vec::new();
    for (series, variant) in study.variants.iter().enumerate() {
        let exact: Vec<f64> = variant.runs.iter().filter_map(|r| r.cross_entropy).collect();
        if !exact.is_empty() {
            let mean = exact.iter().sum::<f64>() / exact.len() as f64;
            marks.push(Mark::Line { points: vec![(least, mean), (most, mean)], series, faint: false });
        }
    }
    for (series, curve) in curves.iter().enumerate().filter(|(_, c)| !c.is_empty()) {
        marks.push(Mark::Line { points: curve.iter().map(|p| (p.0, p.1)).collect(), series, faint: false });
        for &(x, y, se) in curve {
            let y_range = se.map(|se| (y - se, y + se));
            marks.push(Mark::Point(Point { x, y, y_range, series, small: true, ..Point::default() }));
        }
    }
    let description = "Bound on the cross-entropy against the number of draws".to_owned();
    let floor =
        study.variants.iter().flat_map(|v| &v.runs).find_map(|r| Some(r.bound.first()?.floor)).unwrap_or(0.0);
    let caption = html! {
        "A model that draws latent vectors has no likelihood, but drawing one and sampling the decoder's softmax is a "
        "distribution over chunks. With N draws, "
        (format!("−ln[(1 − {floor}) · 1/N Σ p(chunk | draw) + {floor} · uniform]"))
        " bounds from above the cross-entropy of the model with such a share of uniform tokens mixed in, the closer the more draws. Level lines are models with probabilities, "
        "whose cross-entropy is exact. Bars are ± one standard error over seeds (one seed: over documents)."
    };
    let body = figure(&legend(all_variants(study))?, &[Chart { description, x, y, marks }], &caption)?;
    Ok(Some(Section { id: "bound", title: "Bound on the cross-entropy", body }))
}
