//! A study as tables for a terminal.

use calm_report::Study;
use calm_report::study::Estimate;

use crate::ui::{Table, format};

/// The study in a terminal's width.
pub fn table(study: &Study) -> String {
    let mut table = Table::new(&["variant", "Brier-1", "BrierLM", "train", "generate", "tok/s", "memory"])
        .title(format!("{}: {}", study.name, study.budget));
    let cell = |e: &Estimate| match e.se() {
        Some(se) => format!("{:.2} ±{se:.2}", e.value),
        None => format!("{:.2}", e.value),
    };
    for v in &study.variants {
        let score = v.aligned.as_ref();
        let lm = score.map(|s| s.brierlm.as_ref().map_or("undefined".to_owned(), cell));
        let measured = v.measured.as_ref();
        table.row([
            format::shorten_front(&v.name, 22),
            score.and_then(|s| s.brier.first()).map_or("-".into(), cell),
            lm.unwrap_or_else(|| "-".into()),
            format!("{:.1e}", v.costs.training()),
            format!("{:.1e}", v.costs.inference()),
            measured.map_or("-".into(), |m| format::count(m.training)),
            measured.and_then(|m| m.peak_memory).map_or("-".into(), |m| format::bytes(m as f64)),
        ]);
    }
    for n in &study.ngrams {
        let brier = n.brier.first().map_or("-".into(), |b| format!("{b:.2}"));
        let lm = n.brierlm.map_or("undefined".into(), |b| format!("{b:.2}"));
        let rest = std::iter::repeat_n(String::new(), 4);
        table.row([n.name.clone(), brier, lm].into_iter().chain(rest));
    }
    let seeds = study.variants.iter().filter_map(|v| v.aligned.as_ref()).map(|s| s.seeds).min().unwrap_or(0);
    let parts = if seeds > 1 { "documents and seeds" } else { "documents only: one seed" };
    let legend = format!(
        "percent ± one standard error ({parts}); FLOPs a token by formula; tok/s and memory of \
         training as measured; scored on {}",
        study.aligned
    );
    let mut out = format!("{table}\n{}", format::wrap(&legend, 78, ""));
    out.push('\n');
    out.push_str(&likelihood(study));
    if !study.differences.is_empty() {
        out.push_str(&differences(study));
    }
    for note in &study.notes {
        out.push_str(&format!("{}\n", format::wrap(&format!("note: {note}"), 78, "  ")));
    }
    out
}

/// Nats a token and bits per byte of the variants that have them.
fn likelihood(study: &Study) -> String {
    let mut table = Table::new(&["variant", "nats/token", "bits/byte", ""])
        .title("likelihood of held-out text, ± over seeds".to_owned());
    let mut rows = 0;
    for v in &study.variants {
        let Some(found) = v.likelihood() else { continue };
        let cell = |e: &Estimate| match e.se() {
            Some(se) => format!("{:.3} ±{se:.3}", e.value),
            None => format!("{:.3}", e.value),
        };
        table.row([
            format::shorten_front(&v.name, 26),
            cell(&found.nats),
            found.bits_per_byte.as_ref().map_or("-".into(), cell),
            found.draws.map_or("exact".into(), |n| format!("at most, {n} draws")),
        ]);
        rows += 1;
    }
    if rows == 0 { String::new() } else { format!("\n{table}\n") }
}

/// What can be told apart.
fn differences(study: &Study) -> String {
    let against = &study.differences[0].against;
    let mut table = Table::new(&["variant", "score", "difference", "± 95 %", "verdict"])
        .title(format!("differences to {against}, paired by document and seed"));
    for d in &study.differences {
        let (name, estimate) = match (&d.brierlm, d.brier.first()) {
            (Some(lm), _) if lm.half_width.is_some() => ("BrierLM", lm),
            (_, Some(brier)) => ("Brier-1", brier),
            (_, None) => continue,
        };
        let verdict = match (estimate.resolved(), estimate.detectable) {
            (Some(true), _) => "resolved".to_owned(),
            (Some(false), Some(least)) => format!("not resolved; {least:.2} would be"),
            _ => "-".to_owned(),
        };
        table.row([
            format::shorten_front(&d.variant, 26),
            name.to_owned(),
            format!("{:+.2}", estimate.estimate.value),
            estimate.half_width.map_or("-".into(), |h| format!("{h:.2}")),
            verdict,
        ]);
    }
    format!("\n{table}\n")
}
