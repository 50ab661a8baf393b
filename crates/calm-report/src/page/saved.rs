//! What a reader of the page can save or copy, without a script: links that carry a file in themselves, and texts that
//! are selected whole by a click.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use maud::{Markup, html as markup};

use super::grid::Grid;
use super::visible::visible;
use crate::ReportError;
use crate::chart::Chart;
use crate::plot_file;

/// A link that saves a text under a name.
fn link(name: &str, ending: &str, kind: &str, text: &str) -> Markup {
    // A record of CSV ends in two characters of which one is a control character.
    let content = STANDARD.encode(visible(&text.replace("\r\n", "\n")));
    markup! {
        a download={ (name) "." (ending) } href={ "data:" (kind) ";base64," (content) } { (ending.to_uppercase()) }
    }
}

/// Links to a plot as SVG and to its numbers as CSV.
pub(super) fn plot(chart: &Chart, names: &[(usize, String)]) -> Result<Markup, ReportError> {
    let name = slug(&chart.description);
    let svg = plot_file::svg(chart, names)?;
    let csv = plot_file::csv(chart, names);
    Ok(markup! {
        p.save { (link(&name, "svg", "image/svg+xml", &svg)) " " (link(&name, "csv", "text/csv", &csv)) }
    })
}

/// A table to be copied or saved.
pub(super) fn table(caption: &str, rows: &Markup) -> Markup {
    let (grid, name) = (Grid::of(&rows.0), slug(caption));
    let (csv, latex) = (grid.csv(), grid.latex(caption));
    markup! {
        details.save {
            summary { "Copy or save this table" }
            p { (link(&name, "csv", "text/csv", &csv)) " " (link(&name, "tex", "application/x-tex", &latex)) }
            pre.copy { "\n" (latex) }
        }
    }
}

/// A text to be copied, with a link that saves it.
pub(super) fn text(name: &str, ending: &str, text: &str) -> Markup {
    markup! {
        pre.copy { "\n" (text) }
        p.save { (link(name, ending, "text/plain", text)) }
    }
}

/// The files that a page offers, by name; those of one name are numbered.
pub(crate) fn files(page: &str) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = Vec::new();
    for rest in page.split("<a download=\"").skip(1) {
        let parts = rest.split_once("\" href=\"").and_then(|(name, rest)| {
            let content = rest.split_once('"')?.0.split_once(";base64,")?.1;
            Some((name, STANDARD.decode(content).ok()?))
        });
        let Some((name, content)) = parts else { continue };
        let (stem, ending) = name.rsplit_once('.').unwrap_or((name, "txt"));
        let taken = |name: &str| files.iter().any(|(there, _)| there == name);
        let numbered = (2..).map(|n| format!("{stem}-{n}.{ending}"));
        let free = std::iter::once(name.to_owned()).chain(numbered).find(|name| !taken(name));
        files.extend(free.map(|name| (name, String::from_utf8_lossy(&content).into_owned())));
    }
    files
}

/// A text as the name of a file.
fn slug(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.ends_with('-') && !out.is_empty() {
            out.push('-');
        }
        if out.len() >= 72 {
            break;
        }
    }
    let name = out.trim_matches('-');
    if name.is_empty() { "plot".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_plain_and_files_of_one_name_are_numbered() {
        assert_eq!(slug("BrierLM, % against “FLOPs” / run"), "brierlm-against-flops-run");
        assert_eq!([slug("σ"), slug("../x")], ["plot", "x"]);
        let page =
            [link("a", "csv", "text/csv", "1"), link("a", "csv", "text/csv", "\u{1}2")].map(|m| m.0).concat();
        let expected = [("a.csv", "1"), ("a-2.csv", "\u{2401}2")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        assert_eq!(files(&page), expected);
        let csv = link("a", "csv", "text/csv", "x,y\r\n1,2\r\n").0;
        assert_eq!(files(&csv)[0].1, "x,y\n1,2\n");
    }
}
