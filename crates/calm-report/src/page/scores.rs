//! Scores and costs: the headline table, its runs, the n-gram lines, and the reference protocol.

use maud::{Markup, html};

use super::parts::{Section, cell, chunk_size, mean, plural, table, variant_head};
use crate::ReportError;
use crate::number;
use crate::study::{Estimate, Measured, Score, SeedRun, Study, Variant};

/// Headings of the five scores.
const SCORES: [&str; 5] = ["BrierLM", "Brier-1", "Brier-2", "Brier-3", "Brier-4"];

/// The order in which they stand: BrierLM leads, unless it is undefined for all.
fn order<'a>(scores: impl Iterator<Item = &'a Score>) -> [usize; 5] {
    let mut scores = scores.peekable();
    let undefined = scores.peek().is_some() && scores.all(|s| s.brierlm.is_none());
    if undefined { [1, 2, 3, 4, 0] } else { [0, 1, 2, 3, 4] }
}

pub fn section(study: &Study) -> Result<Option<Section>, ReportError> {
    if study.variants.is_empty() && study.ngrams.is_empty() {
        return Ok(None);
    }
    let rounds = study.variants.iter().filter_map(|v| v.measured).map(|m| m.rounds).max();
    let body = html! {
        p {
            "All models at the same positions of the same held-out text (aligned protocol), in percent; "
            "higher is better. ± is one standard error over documents and seeds. "
            @if study.variants.iter().any(|v| v.likelihood().is_some()) {
                "Nats and bits of all held-out tokens are exact for models with probabilities; ≤ is a bound from so many "
                "draws. There lower is better, and ± is over seeds."
            }
        }
        (table("Scores, aligned protocol, percent", &score_rows(study, study.variants.iter()
            .map(|v| (v, v.aligned.as_ref())).collect::<Vec<_>>().as_slice(), true)?))
        (table("Costs by formula and as measured", &cost_rows(study)?))
        p.note {
            "Training FLOPs are those of one run of the language model, the training of its autoencoder left out; "
            "FLOPs per token are those of generating at T = 1. The time of a run is as it was, with whatever else the "
            "machine did. "
            @if let Some(rounds) = rounds {
                "Speed and memory were measured apart, all variants in turn on one machine in "
                (plural(rounds, "round")) ": medians, with quartiles in brackets. "
            }
            @if study.batch_draws > 0 {
                "The batch sampler draws " (study.batch_draws) " candidates for every chunk."
            }
        }
        @if study.variants.iter().any(|v| !v.runs.is_empty()) {
            details {
                summary { "Every run" }
                (table("Every run, scores in percent", &run_rows(study)?))
            }
        }
    };
    Ok(Some(Section { id: "scores", title: "Scores and costs", body }))
}

pub fn reference(study: &Study) -> Option<Section> {
    let words = study.reference.as_deref();
    if words.is_none() && study.variants.iter().all(|v| v.reference.is_none()) {
        return None;
    }
    let protocols = |v: &Variant| [("aligned", v.aligned.clone()), ("reference", v.reference.clone())];
    let both: Vec<_> = study.variants.iter().map(|v| (v, protocols(v))).collect();
    let scores = || both.iter().flat_map(|(_, s)| s.iter().filter_map(|s| s.1.as_ref()));
    let (decimals, order) = (column_decimals(scores()), order(scores()));
    let rows = html! {
        thead { tr {
            th scope="col" { "Variant" } th.text scope="col" { "Protocol" }
            @for n in order { th scope="col" { (SCORES[n]) } }
            th scope="col" { "Positions" }
        } }
        @for (variant, scores) in &both {
            tbody {
                @for (i, (protocol, score)) in scores.iter().enumerate() {
                    tr {
                        @if i == 0 {
                            th scope="rowgroup" rowspan="2" { span.name { span { (variant.name) } } }
                        }
                        td.text { (protocol) }
                        (score_cells(score.as_ref(), &order, &decimals))
                        (cell(score.as_ref().map(|s| number::count(s.positions))))
                    }
                }
            }
        }
    };
    let body = html! {
        p {
            strong { "Only aligned scores may be compared with each other. " }
            "The reference protocol is what the authors’ code measures"
            @if let Some(words) = words { " (" (words) ")" }
            ": each kind of model is scored at its own positions with its own context, so its numbers stand "
            "beside published ones, and not beside those of another K or of a baseline. The aligned protocol "
            "scores all models at the same positions with the same text to their left."
        }
        (table("Both protocols, percent", &rows))
    };
    Some(Section { id: "reference", title: "Reference protocol", body })
}

/// Rows of the five scores for each variant and, with `ngrams`, for each n-gram model.
fn score_rows(
    study: &Study,
    variants: &[(&Variant, Option<&Score>)],
    ngrams: bool,
) -> Result<Markup, ReportError> {
    let decimals = column_decimals(variants.iter().filter_map(|v| v.1));
    let heads =
        variants.iter().map(|(v, _)| variant_head(study, v)).collect::<Result<Vec<_>, ReportError>>()?;
    let likelihood = variants.iter().any(|(v, _)| v.likelihood().is_some());
    let order = order(variants.iter().filter_map(|v| v.1));
    Ok(html! {
        thead { tr {
            th scope="col" { "Variant" } th scope="col" { "K" }
            @for n in order { th scope="col" { (SCORES[n]) } }
            @if likelihood { th scope="col" { "Nats/token" } th scope="col" { "Bits/byte" } }
            th scope="col" { "Seeds" } th scope="col" { "Documents" } th scope="col" { "Positions" }
        } }
        tbody {
            @for ((variant, score), head) in variants.iter().zip(&heads) {
                tr {
                    (head)
                    td { (chunk_size(variant)) }
                    (score_cells(*score, &order, &decimals))
                    @if likelihood { @for text in likelihood_cells(variant) { (cell(text)) } }
                    (cell(score.map(|s| s.seeds.to_string())))
                    (cell(score.map(|s| number::count(s.documents as u64))))
                    (cell(score.map(|s| number::count(s.positions))))
                }
            }
        }
        @if ngrams && !study.ngrams.is_empty() {
            tbody.references {
                @for ngram in &study.ngrams {
                    tr {
                        th scope="row" { span.name { span { (ngram.name) } } }
                        td { "n-gram" }
                        @for n in order {
                            @if n == 0 {
                                td { (ngram.brierlm.map_or("undefined".into(), |b| number::fixed(b, decimals[0]))) }
                            } @else {
                                (cell(ngram.brier.get(n - 1).map(|b| number::fixed(*b, decimals[n]))))
                            }
                        }
                        @for _ in 0..(if likelihood { 5 } else { 3 }) { (cell(None)) }
                    }
                }
            }
        }
    })
}

/// Nats a token and bits per byte, exact or the tightest bound.
fn likelihood_cells(variant: &Variant) -> [Option<String>; 2] {
    let Some(found) = variant.likelihood() else { return [None, None] };
    let (sign, draws) = match found.draws {
        Some(draws) => ("≤ ", format!(" (N = {draws})")),
        None => ("", String::new()),
    };
    let text = |e: &Estimate| format!("{sign}{}", number::estimate(e, 3));
    [Some(text(&found.nats) + &draws), found.bits_per_byte.as_ref().map(text)]
}

/// The five scores of one row.
fn score_cells(score: Option<&Score>, order: &[usize; 5], decimals: &[usize; 5]) -> Markup {
    html! {
        @match score {
            None => @for _ in 0..5 { td.missing { (number::MISSING) } },
            Some(score) => @for n in order {
                @match (n, score.brierlm) {
                    (0, Some(e)) => td.strong { (number::estimate(&e, decimals[0])) },
                    (0, None) => td.undefined { "undefined" },
                    _ => (cell(score.brier.get(n - 1).map(|e| number::estimate(e, decimals[*n])))),
                }
            }
        }
    }
}

/// Decimals of the five columns.
fn column_decimals<'a>(scores: impl Iterator<Item = &'a Score>) -> [usize; 5] {
    let scores: Vec<&Score> = scores.collect();
    let of = |pick: &dyn Fn(&Score) -> Option<Estimate>| {
        number::decimals(scores.iter().filter_map(|s| pick(s)).filter_map(|e| e.se()))
    };
    std::array::from_fn(|i| if i == 0 { of(&|s| s.brierlm) } else { of(&|s| s.brier.get(i - 1).copied()) })
}

fn cost_rows(study: &Study) -> Result<Markup, ReportError> {
    let heads =
        study.variants.iter().map(|v| variant_head(study, v)).collect::<Result<Vec<_>, ReportError>>()?;
    let average = |v: &Variant, of: fn(&SeedRun) -> f64| mean(v.runs.iter().map(of));
    let positive = |value: f64| (value > 0.0).then(|| number::si(value));
    Ok(html! {
        thead {
            tr {
                th scope="col" rowspan="2" { "Variant" }
                th scope="col" rowspan="2" { "Parameters" }
                th scope="colgroup" colspan="3" { "FLOPs by formula" }
                th scope="col" rowspan="2" { "Time of a run" }
                th scope="colgroup" colspan="2" { "Training, measured" }
                th scope="colgroup" colspan="2" { "Generation, tokens/s" }
            }
            tr {
                th scope="col" { "training" }
                th scope="col" { "per token" }
                th scope="col" { "per token, batch" }
                th scope="col" { "tokens/s" }
                th scope="col" { "peak memory" }
                th scope="col" { "T = 1" }
                th scope="col" { "batch sampler" }
            }
        }
        tbody {
            @for (v, head) in study.variants.iter().zip(&heads) {
                tr {
                    (head)
                    (cell(positive(v.costs.parameters as f64)))
                    (cell(average(v, |r| r.flops).and_then(positive)))
                    (cell(positive(v.costs.inference())))
                    (cell(positive(v.costs.inference_batch)))
                    (cell(average(v, |r| r.seconds).map(number::duration)))
                    (training_rate(v.measured.as_ref()))
                    (cell(v.measured.and_then(|m| m.peak_memory).map(number::bytes)))
                    (cell(v.measured.map(|m| number::rate(m.generation))))
                    (cell(v.measured.and_then(|m| m.generation_batch).map(number::rate)))
                }
            }
        }
    })
}

/// Median of the rounds with its quartiles.
fn training_rate(measured: Option<&Measured>) -> Markup {
    html! {
        @match measured {
            None => (cell(None)),
            Some(m) => td {
                (number::rate(m.training))
                @let (low, high) = m.training_quartiles;
                @if low < high { span.quartiles { "(" (number::rate(low)) " to " (number::rate(high)) ")" } }
            }
        }
    }
}

/// Nats a token and bits per byte, exact or the tightest bound.
fn likelihood(run: &SeedRun) -> (Option<String>, Option<String>) {
    match run.bound.last() {
        Some(bound) => (
            Some(format!("≤ {} (N = {})", number::fixed(bound.nats, 4), bound.samples)),
            bound.bits_per_byte.map(|b| format!("≤ {}", number::fixed(b, 4))),
        ),
        None => {
            (run.cross_entropy.map(|c| number::fixed(c, 4)), run.bits_per_byte.map(|b| number::fixed(b, 4)))
        }
    }
}

fn run_rows(study: &Study) -> Result<Markup, ReportError> {
    let heads =
        study.variants.iter().map(|v| variant_head(study, v)).collect::<Result<Vec<_>, ReportError>>()?;
    let runs = || study.variants.iter().flat_map(|v| &v.runs);
    let entropy = runs().any(|r| r.cross_entropy.is_some() || !r.bound.is_empty());
    let unfinished: Vec<&str> =
        study.variants.iter().filter(|v| v.runs.is_empty()).map(|v| v.name.as_str()).collect();
    Ok(html! {
        thead { tr {
            th scope="col" { "Variant" } th scope="col" { "Seed" }
            @for name in SCORES { th scope="col" { (name) } }
            @if entropy { th scope="col" { "Cross-entropy, nats/token" } th scope="col" { "Bits/byte" } }
            th scope="col" { "Tokens" } th scope="col" { "FLOPs" } th scope="col" { "Time" }
            th.text scope="col" { "Folder" }
        } }
        tbody {
            @for (v, head) in study.variants.iter().zip(&heads) {
                @for r in &v.runs {
                    tr {
                        (head)
                        td { (r.seed) }
                        @match (r.brier, r.brierlm) {
                            (_, Some(b)) => td { (number::fixed(b, 3)) },
                            (Some(_), None) => td.undefined { "undefined" },
                            (None, None) => td.missing { (number::MISSING) },
                        }
                        @for n in 0..4 { (cell(r.brier.map(|b| number::fixed(b[n], 3)))) }
                        @if entropy {
                            @let (nats, bits) = likelihood(r);
                            (cell(nats)) (cell(bits))
                        }
                        td { (number::count(r.tokens)) }
                        td { (number::si(r.flops)) }
                        td { (number::duration(r.seconds)) }
                        td.text { (r.folder) }
                    }
                }
            }
        }
        @if !unfinished.is_empty() {
            tfoot { tr { td.text colspan=(if entropy { 13 } else { 11 }) {
                "Without a finished run: " (unfinished.join(", "))
            } } }
        }
    })
}
