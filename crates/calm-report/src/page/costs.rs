//! Where the FLOPs go, part by part.

use maud::{Markup, html};

use super::parts::{Section, cell, table, variant_head};
use crate::ReportError;
use crate::number;
use crate::study::{Costs, Study};

type Parts = fn(&Costs) -> &[(String, f64)];

pub fn section(study: &Study) -> Result<Option<Section>, ReportError> {
    let training: Parts = |c| &c.training_parts;
    let inference: Parts = |c| &c.inference_parts;
    let known = |parts: Parts| study.variants.iter().any(|v| !parts(&v.costs).is_empty());
    if !known(training) && !known(inference) {
        return Ok(None);
    }
    let body = html! {
        p {
            "FLOPs of one token by formula, with their share of the whole. Only products of matrices count, and "
            "attention in full; a position of a CALM is shared by the K tokens of its chunk."
        }
        @if known(training) {
            (table("Training, FLOPs per token", &rows(study, training)?))
        }
        @if known(inference) {
            (table("Generation at T = 1, FLOPs per token", &rows(study, inference)?))
        }
    };
    Ok(Some(Section { id: "flops", title: "FLOPs by part", body }))
}

fn rows(study: &Study, parts: Parts) -> Result<Markup, ReportError> {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in study.variants.iter().flat_map(|v| parts(&v.costs)) {
        if !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    let heads =
        study.variants.iter().map(|v| variant_head(study, v)).collect::<Result<Vec<_>, ReportError>>()?;
    Ok(html! {
        thead { tr {
            th scope="col" { "Variant" }
            @for name in &names { th scope="col" { (name) } }
            th scope="col" { "Sum" }
        } }
        tbody {
            @for (variant, head) in study.variants.iter().zip(&heads) {
                @let parts = parts(&variant.costs);
                @let sum: f64 = parts.iter().map(|p| p.1).sum();
                tr {
                    (head)
                    @for name in &names {
                        @match parts.iter().find(|p| p.0 == *name && p.1 > 0.0) {
                            Some((_, flops)) => td {
                                (number::si(*flops)) span.share { (format!("{:.0}\u{a0}%", 100.0 * flops / sum)) }
                            },
                            None => (cell(None)),
                        }
                    }
                    td.strong { (number::si(sum)) }
                }
            }
        }
    })
}
