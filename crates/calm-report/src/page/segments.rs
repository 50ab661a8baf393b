//! How models that cut text into segments of their own do it: the ratio that training realised, the loss by place in a segment,
//! and a held-out text in tints.

use maud::{Markup, html};

use super::parts::{Section, cell, figure, legend, table, variant_head};
use crate::ReportError;
use crate::axis::{Axis, Unit};
use crate::chart::{Chart, Mark, Point};
use crate::number;
use crate::study::{Piece, Place, SeedRun, Segments, Study, Variant};

pub fn section(study: &Study) -> Result<Option<Section>, ReportError> {
    let cutting: Vec<(usize, &Variant)> =
        study.variants.iter().enumerate().filter(|(_, v)| all(v).next().is_some()).collect();
    if cutting.is_empty() {
        return Ok(None);
    }
    let panels: Vec<Chart> = [
        training(&cutting),
        by_place(&cutting, "place of the token before, from the beginning", 1.0, |s| &s.from_start),
        by_place(&cutting, "place of the token before, from the end", -1.0, |s| &s.from_end),
    ]
    .into_iter()
    .flatten()
    .collect();
    let caption = html! {
        "Tokens for each segment that a model began while it was trained, with the ratio that it was to have as a dashed line; "
        "and nats a token on held-out text, by the place of the token before it in its segment (0 begins one, −1 ends one; the "
        "outermost place counts all beyond it). Lines are single seeds."
    };
    let names = cutting.iter().map(|(series, variant)| (*series, variant.name.as_str()));
    let rows = rows(study, &cutting)?;
    let body = html! {
        @if !panels.is_empty() { (figure(&legend(names)?, &panels, &caption)?) }
        (table("Segments of held-out text", &rows))
        @for (_, variant) in &cutting {
            @if let Some((run, segments)) = all(variant).find(|(_, segments)| !segments.text.is_empty()) {
                details {
                    summary { "Held-out text as " (variant.name) " cuts it" }
                    (text(&segments.text))
                    p.seed { "seed " (run.seed) ": a bar and another tint where a segment begins; point at a piece for its numbers" }
                }
            }
        }
    };
    Ok(Some(Section { id: "segments", title: "Segments", body }))
}

/// The runs of a variant that cut text.
fn all(variant: &Variant) -> impl Iterator<Item = (&SeedRun, &Segments)> {
    variant.runs.iter().filter_map(|run| Some((run, run.segments.as_ref()?)))
}

fn training(cutting: &[(usize, &Variant)]) -> Option<Chart> {
    let (mut marks, mut values, mut targets) = (Vec::new(), Vec::new(), Vec::<f64>::new());
    for (series, variant) in cutting {
        for (_, segments) in all(variant) {
            let points: Vec<(f64, f64)> =
                segments.training.iter().map(|(tokens, ratio)| (*tokens as f64, *ratio)).collect();
            if points.len() < 2 {
                continue;
            }
            values.extend(points.iter().copied());
            targets.extend(segments.target);
            marks.push(Mark::Line { points, series: *series, faint: false });
        }
    }
    targets.sort_by(f64::total_cmp);
    targets.dedup();
    let x = Axis::linear("training tokens", Unit::Si, values.iter().map(|v| v.0).chain([0.0]))?;
    let y = Axis::linear(
        "tokens a segment",
        Unit::Plain,
        values.iter().map(|v| v.1).chain(targets.iter().copied()),
    )?;
    let level = |y: f64| Mark::Level { y, label: format!("to be {y}") };
    marks.extend(targets.into_iter().map(level));
    Some(Chart { description: "Tokens a segment while training".to_owned(), x, y, marks })
}

fn by_place(
    cutting: &[(usize, &Variant)],
    label: &str,
    sign: f64,
    of: fn(&Segments) -> &[Place],
) -> Option<Chart> {
    let (mut lines, mut dots, mut places, mut heights) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for &(series, variant) in cutting {
        for (_, segments) in all(variant) {
            let mut points: Vec<(f64, f64)> = Vec::new();
            for place in of(segments) {
                let (x, y) = (sign * place.place as f64, place.nats);
                let y_range = place.nats_se.map(|se| (y - se, y + se));
                heights.extend([y].into_iter().chain(y_range.into_iter().flat_map(|(a, b)| [a, b])));
                places.push(x);
                points.push((x, y));
                dots.push(Mark::Point(Point { x, y, y_range, series, small: true, ..Point::default() }));
            }
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            if points.len() > 1 {
                lines.push(Mark::Line { points, series, faint: false });
            }
        }
    }
    let x = Axis::close(label, places)?;
    let y = Axis::close("nats a token", heights)?;
    lines.extend(dots);
    Some(Chart {
        description: format!("Nats a token against the {label} of its segment"),
        x,
        y,
        marks: lines,
    })
}

fn rows(study: &Study, cutting: &[(usize, &Variant)]) -> Result<Markup, ReportError> {
    let mut rows = Vec::new();
    for (_, variant) in cutting {
        for (run, segments) in all(variant) {
            rows.push((variant_head(study, variant)?, run, segments));
        }
    }
    let with_error = |value: f64, se: Option<f64>| {
        let error = se.map_or_else(String::new, |se| format!(" ± {}", number::fixed(se, 2)));
        format!("{}{error}", number::fixed(value, 2))
    };
    Ok(html! {
        thead {
            tr {
                th scope="col" { "Variant" }
                th scope="col" { "Seed" }
                th scope="col" { "Tokens a segment, to be" }
                th scope="col" { "in training" }
                th scope="col" { "on held-out text" }
                th scope="col" { "Tokens" }
            }
        }
        tbody {
            @for (head, run, segments) in rows {
                tr {
                    (head)
                    td { (run.seed) }
                    (cell(segments.target.map(|target| target.to_string())))
                    (cell(segments.realised.map(|ratio| number::fixed(ratio, 2))))
                    td { (with_error(segments.ratio, segments.ratio_se)) }
                    td { (number::count(segments.tokens)) }
                }
            }
        }
    })
}

/// A text in two tints by turns. Nothing between the tags: every space of a <pre> shows.
fn text(pieces: &[Piece]) -> Markup {
    let mut number = 0usize;
    let pieces = pieces.iter().map(|piece| {
        number += usize::from(piece.opens);
        let tint = if number.is_multiple_of(2) { "even" } else { "odd" };
        let class = if piece.opens { format!("{tint} opens") } else { tint.to_owned() };
        (class, says(piece), piece.text.as_str())
    });
    html! {
        pre.segments { "\n" @for (class, says, text) in pieces { span class=(class) title=(says) { (text) } } }
    }
}

/// What a piece is pointed at for.
fn says(piece: &Piece) -> String {
    let probability = piece.probability.map(|p| format!("a segment begins with p = {}", number::fixed(p, 3)));
    let nats = piece.nats.map(|nats| format!("{} nats", number::fixed(nats, 2)));
    probability.into_iter().chain(nats).collect::<Vec<_>>().join(", ")
}
