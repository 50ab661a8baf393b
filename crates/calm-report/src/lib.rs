//! A study of trained models as one self-contained HTML page, CSV and JSON. Plain numbers in, text out: nothing
//! here knows a model.
//!
//! ```text
//! Study ─┬─ html   one page: tables, plots (inline SVG), samples; no network, no JavaScript, light and dark
//!        ├─ files  each plot as SVG and CSV, each table as CSV and LaTeX: what the page lets its reader save
//!        ├─ csv    one line a run
//!        └─ json   everything, and back with `read`
//! ```

mod axis;
mod chart;
pub mod correlation;
mod number;
mod page;
mod plot_file;
pub mod study;
mod table;

pub use correlation::{pearson, spearman};
pub use page::{files, html};
pub use study::Study;
pub use table::csv;

/// What can go wrong in writing or reading a report.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// A plot could not be drawn.
    #[error("a plot could not be drawn: {0}")]
    Plot(String),
    /// A study could not be written as JSON, or the JSON is not a study.
    #[error("not the JSON of a study")]
    Json(#[from] serde_json::Error),
    /// A number that must be finite is not: JSON has no such number.
    #[error(
        "the study holds an infinite or undefined number where a number is needed, which JSON cannot hold"
    )]
    NotFinite(#[source] serde_json::Error),
}

/// The whole study as indented JSON, to be read back by [`read`] without a change.
///
/// # Errors
/// [`ReportError::NotFinite`] if a number that is not optional is infinite or undefined.
pub fn json(study: &Study) -> Result<String, ReportError> {
    let text = serde_json::to_string_pretty(study)?;
    // serde_json writes such numbers as null without a word; only an optional number reads back from that.
    serde_json::from_str::<Study>(&text).map_err(ReportError::NotFinite)?;
    Ok(text)
}

/// A study from the JSON that [`json`] wrote.
///
/// # Errors
/// [`ReportError::Json`] if the text is not JSON or not a study.
pub fn read(json: &str) -> Result<Study, ReportError> {
    Ok(serde_json::from_str(json)?)
}
