//! The study as one HTML page. It needs nothing but itself: styles inline, plots as SVG, system fonts, no
//! scripts. The markup is XML as well (void elements are closed), so that the tests can read it strictly.

mod autoencoders;
mod costs;
mod curves;
mod differences;
mod facts;
mod frontier;
mod samples;
mod scores;
mod summary;

use maud::{DOCTYPE, Markup, PreEscaped, html as markup};

use crate::ReportError;
use crate::chart::{self, Chart};
use crate::number;
use crate::study::{Study, Variant};

/// The study as one HTML page that needs no network and no JavaScript.
///
/// # Errors
/// [`ReportError::Plot`] if a plot cannot be drawn.
pub fn html(study: &Study) -> Result<String, ReportError> {
    let sections: Vec<Section> = [
        scores::section(study)?,
        differences::section(study)?,
        frontier::section(study)?,
        curves::learning(study)?,
        curves::against_cross_entropy(study)?,
        autoencoders::section(study)?,
        scores::reference(study),
        samples::section(study),
        costs::section(study)?,
        facts::settings(study),
        facts::provenance(study),
        Some(facts::reading(study)),
    ]
    .into_iter()
    .flatten()
    .collect();
    let title = if study.name.is_empty() { "Study" } else { &study.name };
    let page = markup! {
        (DOCTYPE)
        html lang="en" {
            head {
                (PreEscaped(r#"<meta charset="utf-8"/>"#))
                (PreEscaped(r#"<meta name="viewport" content="width=device-width, initial-scale=1"/>"#))
                (PreEscaped(r#"<meta name="color-scheme" content="light dark"/>"#))
                title { (title) }
                style { (PreEscaped(include_str!("../style.css"))) }
            }
            body {
                (summary::header(study, title))
                @if study.variants.is_empty() && study.failures.is_empty() {
                    p.empty { "There are no variants in this study yet: nothing has been trained." }
                }
                nav aria-label="Contents" {
                    ul {
                        @for s in &sections { li { a href={ "#" (s.id) } { (s.title) } } }
                    }
                }
                main {
                    @for s in &sections {
                        section id=(s.id) {
                            h2 { (s.title) }
                            (s.body)
                        }
                    }
                }
            }
        }
    };
    Ok(visible(&page.into_string()))
}

/// A part of the page with its own heading.
struct Section {
    id: &'static str,
    title: &'static str,
    body: Markup,
}

/// Control characters that a model may well write, as their Unicode pictures: neither HTML nor XML has a
/// place for them.
fn visible(page: &str) -> String {
    page.chars()
        .map(|c| match c {
            '\n' | '\t' => c,
            '\0'..='\u{1f}' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{fffd}'),
            '\u{7f}' => '\u{2421}',
            '\u{80}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => '\u{fffd}',
            // These turn the direction of what follows, beyond the text they stand in.
            '\u{202a}'..='\u{202e}' => '\u{fffd}',
            _ => c,
        })
        .collect()
}

/// A table that scrolls within itself where the screen is narrow. `rows` is everything after the caption.
fn table(caption: &str, rows: &Markup) -> Markup {
    markup! {
        div.scroll role="region" aria-label=(caption) tabindex="0" {
            table { caption { (caption) } (rows) }
        }
    }
}

/// Plots side by side, with a legend above and a sentence below.
fn figure(legend: &Markup, panels: &[Chart], caption: &Markup) -> Result<Markup, ReportError> {
    let drawn = panels.iter().map(Chart::svg).collect::<Result<Vec<_>, _>>()?;
    // Three in a row, but never a single one in the second row.
    let two = drawn.len() == 4 || drawn.len() <= 2;
    Ok(markup! {
        figure {
            (legend)
            div class=(if two { "panels two" } else { "panels" }) {
                @for svg in &drawn { div.panel { (PreEscaped(svg)) } }
            }
            figcaption { (caption) }
        }
    })
}

/// Names with their markers: (series, name).
fn legend<'a>(entries: impl IntoIterator<Item = (usize, &'a str)>) -> Result<Markup, ReportError> {
    let entries = entries
        .into_iter()
        .map(|(series, name)| Ok((chart::key(series, false)?, name)))
        .collect::<Result<Vec<_>, ReportError>>()?;
    Ok(markup! {
        ul.legend {
            @for (key, name) in &entries { li { (PreEscaped(key)) span { (name) } } }
        }
    })
}

/// The variants of a study with their series, for a legend.
fn all_variants(study: &Study) -> impl Iterator<Item = (usize, &str)> {
    study.variants.iter().enumerate().map(|(i, v)| (i, v.name.as_str()))
}

/// The name of a variant with its marker, as the head of a table row.
fn variant_head(study: &Study, variant: &Variant) -> Result<Markup, ReportError> {
    let series = study.variants.iter().position(|v| v.name == variant.name);
    name_head(series, &variant.name)
}

fn name_head(series: Option<usize>, name: &str) -> Result<Markup, ReportError> {
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
fn cell(text: Option<String>) -> Markup {
    markup! {
        @match text {
            Some(text) => td { (text) },
            None => td.missing { (number::MISSING) },
        }
    }
}

/// `4`, or `tokens` for a baseline.
fn chunk_size(variant: &Variant) -> String {
    match (variant.chunk_size, variant.probabilities) {
        (1, true) => "tokens".into(),
        (k, _) => k.to_string(),
    }
}

/// Mean of what was measured; None without any.
fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let values: Vec<f64> = values.filter(|v| v.is_finite()).collect();
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// `1 run`, `3 runs`.
fn plural(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}
