//! The top of the page: what this is, what did not work, and the result in a few sentences.

use maud::{Markup, html};

use super::parts::plural;
use crate::number;
use crate::study::{Estimate, Study, Variant};

pub fn header(study: &Study, title: &str) -> Markup {
    html! {
        header {
            h1 { (title) }
            @if !study.description.is_empty() { p.lead { (study.description) } }
            p.facts {
                @for fact in [&study.budget, &study.corpus] { @if !fact.is_empty() { span { (fact) } } }
                @if !study.machine.date.is_empty() { span.date { (study.machine.date) } }
            }
            (failures(study))
            @if !study.notes.is_empty() {
                ul.notes { @for note in &study.notes { li { (note) } } }
            }
            @let sentences = sentences(study);
            @if !sentences.is_empty() {
                ul.findings {
                    @for sentence in sentences { li { (sentence) } }
                }
            }
        }
    }
}

fn failures(study: &Study) -> Markup {
    html! {
        @if !study.failures.is_empty() {
            aside.failures role="note" aria-label="Runs that did not finish" {
                p {
                    strong {
                        (plural(study.failures.len(), "run"))
                        " did not finish. "
                    }
                    "The figures below are without what did not finish."
                }
                ul {
                    @for failure in &study.failures {
                        li { strong { (failure.run) } ": " (failure.reason) }
                    }
                }
            }
        }
    }
}

/// The result in words, computed from the numbers.
fn sentences(study: &Study) -> Vec<String> {
    let mut sentences = Vec::new();
    let runs: usize = study.variants.iter().map(|v| v.runs.len()).sum();
    if study.variants.is_empty() {
        return sentences;
    }
    sentences.push(format!("{}, {}.", plural(study.variants.len(), "variant"), plural(runs, "trained run")));
    let brierlm = |v: &Variant| v.aligned.as_ref().and_then(|s| s.brierlm);
    let brier_1 = |v: &Variant| v.aligned.as_ref().and_then(|s| s.brier.first().copied());
    let scored = study.variants.iter().filter(|v| v.aligned.is_some()).count();
    let undefined = study.variants.iter().filter(|v| v.aligned.is_some() && brierlm(v).is_none()).count();
    if let Some(text) = best(study, "BrierLM", brierlm) {
        sentences.push(text);
    }
    if undefined > 0 && undefined == scored {
        sentences.push("BrierLM is undefined for all variants, because a Brier-n is not positive.".into());
    } else if undefined > 0 {
        sentences.push(format!("BrierLM is undefined for {undefined} of {scored} variants."));
    }
    if undefined > 0
        && let Some(text) = best(study, "Brier-1", brier_1)
    {
        sentences.push(text);
    }
    if let Some(text) = most_likely(study) {
        sentences.push(text);
    }
    let verdicts: Vec<bool> =
        study.differences.iter().filter_map(|d| d.brierlm.and_then(|e| e.resolved())).collect();
    if let (Some(first), false) = (study.differences.first(), verdicts.is_empty()) {
        let resolved = verdicts.iter().filter(|v| **v).count();
        sentences.push(format!(
            "Of {} in BrierLM to “{}”, {resolved} {} resolved.",
            plural(verdicts.len(), "difference"),
            first.against,
            if resolved == 1 { "is" } else { "are" },
        ));
    }
    sentences
}

/// Which models find the text least surprising. A bound says nothing against an exact cross-entropy below it.
fn most_likely(study: &Study) -> Option<String> {
    let known = study.variants.iter().filter_map(|v| v.likelihood().map(|l| (v, l)));
    let known: Vec<_> = known.filter(|(_, l)| l.nats.value.is_finite()).collect();
    let (variant, least) = known.iter().min_by(|a, b| a.1.nats.value.total_cmp(&b.1.nats.value))?;
    let nats = number::estimate(&least.nats, 3);
    let what = if least.draws.is_some() { "at most " } else { "" };
    (known.len() > 1).then(|| format!("Fewest nats a token: “{}” with {what}{nats}.", variant.name))
}

fn best(study: &Study, score: &str, of: impl Fn(&Variant) -> Option<Estimate>) -> Option<String> {
    let (variant, estimate) = study
        .variants
        .iter()
        .filter_map(|v| of(v).map(|e| (v, e)))
        .filter(|(_, e)| e.value.is_finite())
        .max_by(|a, b| a.1.value.total_cmp(&b.1.value))?;
    let decimals = number::decimals(estimate.se().into_iter());
    Some(format!("Highest {score}: “{}” with {}.", variant.name, number::estimate(&estimate, decimals)))
}
