//! What the sections of the page are made of: tables, figures, legends, cells.

use maud::{Markup, PreEscaped, html as markup};

use super::saved;
use crate::ReportError;
use crate::chart::{self, Chart};
use crate::number;
use crate::study::{Study, Variant};

/// A part of the page with its own heading.
pub(super) struct Section {
    pub(super) id: &'static str,
    pub(super) title: &'static str,
    pub(super) body: Markup,
}

/// A table that scrolls within itself where the screen is narrow. `rows` is everything after the caption.
pub(super) fn table(caption: &str, rows: &Markup) -> Markup {
    markup! {
        div.scroll role="region" aria-label=(caption) tabindex="0" {
            table { caption { (caption) } (rows) }
        }
        (saved::table(caption, rows))
    }
}

/// Plots side by side, with a legend above and a sentence below.
pub(super) fn figure(legend: &Legend, panels: &[Chart], caption: &Markup) -> Result<Markup, ReportError> {
    let drawn = panels
        .iter()
        .map(|chart| Ok((chart.svg()?, saved::plot(chart, &legend.names)?)))
        .collect::<Result<Vec<_>, ReportError>>()?;
    // Three in a row, but never a single one in the second row.
    let two = drawn.len() == 4 || drawn.len() <= 2;
    Ok(markup! {
        figure {
            (legend.markup)
            div class=(if two { "panels two" } else { "panels" }) {
                @for (svg, links) in &drawn { div.panel { (PreEscaped(svg)) (links) } }
            }
            figcaption { (caption) }
        }
    })
}

/// Names with their markers.
pub(super) struct Legend {
    /// Series and name.
    names: Vec<(usize, String)>,
    markup: Markup,
}

/// Names with their markers: (series, name).
pub(super) fn legend<'a>(entries: impl IntoIterator<Item = (usize, &'a str)>) -> Result<Legend, ReportError> {
    let entries: Vec<(usize, &str)> = entries.into_iter().collect();
    let names = entries.iter().map(|(series, name)| (*series, (*name).to_owned())).collect();
    let entries = entries
        .into_iter()
        .map(|(series, name)| Ok((chart::key(series, false)?, name)))
        .collect::<Result<Vec<_>, ReportError>>()?;
    let markup = markup! {
        ul.legend {
            @for (key, name) in &entries { li { (PreEscaped(key)) span { (name) } } }
        }
    };
    Ok(Legend { names, markup })
}

/// The variants of a study with their series, for a legend.
pub(super) fn all_variants(study: &Study) -> impl Iterator<Item = (usize, &str)> {
    study.variants.iter().enumerate().map(|(i, v)| (i, v.name.as_str()))
}

/// The name of a variant with its marker, as the head of a table row.
pub(super) fn variant_head(study: &Study, variant: &Variant) -> Result<Markup, ReportError> {
    let series = study.variants.iter().position(|v| v.name == variant.name);
    name_head(series, &variant.name)
}

pub(super) fn name_head(series: Option<usize>, name: &str) -> Result<Markup, ReportError> {
    let key = series.map(|s| chart::key(s, false)).transpose()?;
    Ok(markup! {
        th scope="row" {
            span.name {
                @if let Some(key) = key { (PreEscaped(key)) }
                span { (name) }
            }
        }
    })
}

/// A cell with a number, or the dash of what was not measured.
pub(super) fn cell(text: Option<String>) -> Markup {
    markup! {
        @match text {
            Some(text) => td { (text) },
            None => td.missing { (number::MISSING) },
        }
    }
}

/// `4`, or `tokens` of a model with probabilities of single ones.
pub(super) fn chunk_size(variant: &Variant) -> String {
    match (variant.chunk_size, variant.probabilities) {
        (1, true) => "tokens".into(),
        (k, _) => k.to_string(),
    }
}

/// Mean of what was measured; None without any.
pub(super) fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// `1 run`, `3 runs`.
pub(super) fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
