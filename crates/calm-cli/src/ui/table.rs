//! Plain aligned tables that fit the screen.

use super::WIDTH;
use std::fmt;

/// How a column is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table: headers, rows, perhaps a title. `Display` sets it in 80 columns without a line break at its end.
///
/// The first column is set to the left, the others to the right, unless [`Table::align`] says otherwise.
/// Cells too wide are wrapped between words, in the widest column first.
#[derive(Clone, Debug)]
pub struct Table {
    title: Option<String>,
    headers: Vec<String>,
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
    width: usize,
}

const GAP: &str = "  ";
const NARROWEST: usize = 6;

impl Table {
    /// A table with these column headers; with all of them empty, no header line is printed.
    pub fn new(headers: &[&str]) -> Self {
        let align = (0..headers.len()).map(|i| if i == 0 { Align::Left } else { Align::Right }).collect();
        let headers = headers.iter().map(|header| header.to_string()).collect();
        Self { title: None, headers, align, rows: Vec::new(), width: WIDTH }
    }

    /// A line above the table.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// How the columns are set, from the first; the rest stays as it is.
    pub fn align(mut self, align: &[Align]) -> Self {
        for (column, align) in self.align.iter_mut().zip(align) {
            *column = *align;
        }
        self
    }

    /// Another width than 80.
    pub fn width(mut self, width: usize) -> Self {
        self.width = width;
        self
    }

    /// Adds a row. Missing cells stay empty; more cells than headers are left out.
    pub fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) -> &mut Self {
        let mut row: Vec<String> = cells.into_iter().map(Into::into).take(self.headers.len()).collect();
        row.resize(self.headers.len(), String::new());
        self.rows.push(row);
        self
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn widths(&self) -> Vec<usize> {
        let cells = |column: usize| {
            std::iter::once(&self.headers).chain(&self.rows).flat_map(move |row| row[column].lines())
        };
        let mut widths: Vec<usize> = (0..self.headers.len())
            .map(|column| cells(column).map(|line| line.chars().count()).max().unwrap_or(0))
            .collect();
        let room = self.width.saturating_sub(GAP.len() * widths.len().saturating_sub(1));
        while widths.iter().sum::<usize>() > room {
            match widths.iter_mut().max() {
                Some(widest) if *widest > NARROWEST => *widest -= 1,
                _ => break,
            }
        }
        widths
    }
}

/// A text in lines of at most `width` characters; longer words are broken.
pub fn wrapped(cell: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for text in cell.lines() {
        let mut line = String::new();
        for word in text.split(' ') {
            let used = line.chars().count();
            if used > 0 && used + 1 + word.chars().count() > width {
                lines.push(std::mem::take(&mut line));
            } else if used > 0 {
                line.push(' ');
            }
            for character in word.chars() {
                if line.chars().count() >= width.max(1) {
                    lines.push(std::mem::take(&mut line));
                }
                line.push(character);
            }
        }
        lines.push(line);
    }
    lines
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let mut out: Vec<String> = self.title.iter().cloned().collect();
        let set = |out: &mut Vec<String>, row: &[String]| {
            let cells: Vec<Vec<String>> =
                row.iter().zip(&widths).map(|(cell, width)| wrapped(cell, *width)).collect();
            for i in 0..cells.iter().map(Vec::len).max().unwrap_or(0).max(1) {
                let parts: Vec<String> = cells
                    .iter()
                    .zip(&widths)
                    .zip(&self.align)
                    .map(|((lines, &width), align)| {
                        let text = lines.get(i).map_or("", String::as_str);
                        match align {
                            Align::Left => format!("{text:<width$}"),
                            Align::Right => format!("{text:>width$}"),
                        }
                    })
                    .collect();
                out.push(parts.join(GAP).trim_end().to_string());
            }
        };
        if self.headers.iter().any(|header| !header.is_empty()) {
            set(&mut out, &self.headers);
            let rule: Vec<String> = widths.iter().map(|&width| "-".repeat(width)).collect();
            out.push(rule.join(GAP));
        }
        for row in &self.rows {
            set(&mut out, row);
        }
        f.write_str(&out.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_words_left_and_numbers_right() {
        let mut table = Table::new(&["score", "value", "±"]).title("BrierLM on 12 documents");
        table.row(["Brier-1", "5.12", "0.31"]).row(["größte", "123.4", ""]).row(["short"]);
        let expected = "\
BrierLM on 12 documents
score    value     ±
-------  -----  ----
Brier-1   5.12  0.31
größte   123.4
short";
        assert_eq!(table.to_string(), expected);
        assert!(!table.is_empty());
    }

    #[test]
    fn wide_cells_are_wrapped_to_80_columns() {
        let mut table = Table::new(&["key", "text", "n"]).align(&[Align::Left, Align::Left]);
        table.row(["a", &"several words ".repeat(20), "1"]);
        table.row(["b", &"x".repeat(200), "2"]);
        let text = table.to_string();
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert_eq!(text.matches("several").count(), 20);
        assert_eq!(text.matches('x').count(), 200 + 1, "{text}");
        assert!(text.lines().next().is_some_and(|line| line.ends_with('n')));
    }

    #[test]
    fn without_headers_there_is_no_rule() {
        let mut table = Table::new(&["", ""]);
        table.row(["parameters", "1.2 M"]).row(["memory", "3.4 GB"]);
        assert_eq!(table.to_string(), "parameters   1.2 M\nmemory      3.4 GB");
        assert_eq!(Table::new(&[]).to_string(), "");
    }
}
