//! The study as one HTML page. It needs nothing but itself: styles inline, plots as SVG, system fonts, no
//! scripts. The markup is XML as well (void elements are closed), so that the tests can read it strictly.

mod autoencoders;
mod bounds;
mod costs;
mod curves;
mod differences;
mod facts;
mod frontier;
mod grid;
mod parts;
mod samples;
mod saved;
mod scores;
mod segments;
mod summary;
mod visible;

use maud::{DOCTYPE, PreEscaped, html as markup};

use self::parts::Section;
use self::visible::visible;
use crate::ReportError;
use crate::study::Study;

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
        bounds::section(study)?,
        autoencoders::section(study)?,
        segments::section(study)?,
        scores::reference(study),
        samples::section(study),
        costs::section(study)?,
        facts::settings(study),
        facts::provenance(study),
        Some(facts::reading(study)),
        Some(facts::citing(study)),
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

/// Every plot of the page as SVG and CSV, every table as CSV and LaTeX, and what is to be cited: names of files and what
/// is in them.
///
/// # Errors
/// As [`html`].
pub fn files(study: &Study) -> Result<Vec<(String, String)>, ReportError> {
    Ok(saved::files(&html(study)?))
}
