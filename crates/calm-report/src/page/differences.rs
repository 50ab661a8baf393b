//! Differences of each variant to the first, paired by document and seed, with what the study could have seen.

use maud::{Markup, html};

use super::parts::{Section, cell, name_head, table};
use crate::ReportError;
use crate::number;
use crate::study::{Difference, DifferenceEstimate, Study};

pub fn section(study: &Study) -> Result<Option<Section>, ReportError> {
    let Some(first) = study.differences.first() else { return Ok(None) };
    let caption = |scores: &str| format!("{scores}: difference to {}, percentage points", first.against);
    let body = html! {
        p {
            "Each variant minus “" (first.against) "”, on the same documents and, seed by seed, from the same "
            "seeds: what both share cancels. A difference is "
            em { "resolved" }
            " where its 95 % interval leaves 0 out. Where it is not, the detectable effect is the smallest true "
            "difference that a study of this size shows in four of five repetitions: a smaller one may exist."
        }
        (table(&caption("BrierLM and Brier-1"), &rows(study, &[0, 1])?))
        @if study.differences.iter().any(|d| d.brier.len() > 1) {
            details {
                summary { "Brier-2, Brier-3 and Brier-4" }
                (table(&caption("Brier-2 to Brier-4"), &rows(study, &[2, 3, 4])?))
            }
        }
    };
    Ok(Some(Section { id: "differences", title: "Differences", body }))
}

/// Score 0 is BrierLM, score n is Brier-n.
fn of(difference: &Difference, score: usize) -> Option<DifferenceEstimate> {
    if score == 0 { difference.brierlm } else { difference.brier.get(score - 1).copied() }
}

fn rows(study: &Study, scores: &[usize]) -> Result<Markup, ReportError> {
    let name = |score: usize| if score == 0 { "BrierLM".into() } else { format!("Brier-{score}") };
    let heads = study
        .differences
        .iter()
        .map(|d| name_head(study.variants.iter().position(|v| v.name == d.variant), &d.variant))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(html! {
        thead {
            tr {
                th scope="col" rowspan="2" { "Variant" }
                th scope="col" rowspan="2" { "Difference" }
                th scope="colgroup" colspan="3" { "Standard error" }
                th scope="col" rowspan="2" { "95 % interval" }
                th scope="col" rowspan="2" { "Detectable effect" }
                th.text scope="col" rowspan="2" { "Verdict" }
            }
            tr {
                th scope="col" { "documents" } th scope="col" { "seeds" } th scope="col" { "both" }
            }
        }
        @for score in scores {
            @let errors = study.differences.iter().filter_map(|d| of(d, *score)?.estimate.se());
            @let decimals = number::decimals(errors);
            tbody {
                tr.group { th scope="rowgroup" colspan="8" { (name(*score)) } }
                @for (difference, head) in study.differences.iter().zip(&heads) {
                    tr {
                        (head)
                        @match of(difference, *score) {
                            Some(estimate) => (cells(&estimate, decimals)),
                            None => {
                                td.undefined { "undefined" }
                                @for _ in 0..5 { td.missing { (number::MISSING) } }
                                td.verdict { "undefined" }
                            }
                        }
                    }
                }
            }
        }
    })
}

fn cells(difference: &DifferenceEstimate, decimals: usize) -> Markup {
    let fixed = |value: Option<f64>| cell(value.map(|v| number::fixed(v, decimals)));
    let estimate = &difference.estimate;
    html! {
        td.strong { (number::signed(estimate.value, decimals)) }
        (fixed(estimate.documents))
        (fixed(estimate.seeds))
        (fixed(estimate.se()))
        (cell(difference.half_width.map(|h| format!("± {}", number::fixed(h, decimals)))))
        (fixed(difference.detectable))
        @match (difference.resolved(), difference.detectable) {
            (Some(true), _) => td.verdict {
                span.resolved { "resolved" } (if estimate.value > 0.0 { ": higher" } else { ": lower" })
            },
            (Some(false), Some(effect)) => td.verdict {
                span.unresolved { "not resolved" } ", detectable effect " (number::fixed(effect, decimals))
            },
            (Some(false), None) => td.verdict { span.unresolved { "not resolved" } },
            (None, _) => td.verdict { "no standard error" },
        }
    }
}
