//! The rows of a table of the page as plain cells, and those as CSV and LaTeX: what is copied is what is shown.

use crate::table::push_line;

/// A table without its markup. Headings of several lines are one, `FLOPs by formula: training`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Grid {
    head: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// A cell while it is read.
struct Cell {
    rows: usize,
    columns: usize,
    text: String,
}

impl Grid {
    /// Reads what the sections of the page wrote, which is well formed.
    pub(super) fn of(markup: &str) -> Self {
        let (mut heads, mut rows): (Vec<Vec<String>>, Vec<Vec<String>>) = Default::default();
        let mut reader = Rows::default();
        let mut in_head = false;
        for piece in markup.split('<').skip(1) {
            let (tag, text) = piece.split_once('>').unwrap_or((piece, ""));
            match tag.split([' ', '/']).find(|word| !word.is_empty()).unwrap_or_default() {
                "thead" => in_head = !tag.starts_with('/'),
                "th" | "td" if tag.starts_with('/') => reader.close(in_head),
                "th" | "td" => reader.open(tag),
                "tr" if tag.starts_with('/') => {
                    let row = reader.end();
                    if in_head { heads.push(row) } else { rows.push(row) }
                }
                // What begins here is shown apart from what stands before it.
                "span" | "br" if !tag.starts_with('/') => reader.add(" "),
                _ => {}
            }
            reader.add(text);
        }
        Self { head: joined(&heads), rows }
    }

    /// As CSV.
    pub(super) fn csv(&self) -> String {
        let mut out = String::new();
        push_line(&mut out, &self.head);
        self.rows.iter().for_each(|row| push_line(&mut out, row));
        out
    }

    /// As a LaTeX table (`booktabs`).
    pub(super) fn latex(&self, caption: &str) -> String {
        let columns: String =
            (0..self.head.len()).map(|n| if n == 0 || self.is_text(n) { 'l' } else { 'r' }).collect();
        let line = |cells: &[String]| {
            format!("  {} \\\\\n", cells.iter().map(|cell| escaped(cell)).collect::<Vec<_>>().join(" & "))
        };
        let mut out = format!(
            "% needs \\usepackage{{booktabs}}\n\\begin{{table}}\n  \\caption{{{}}}\n",
            escaped(caption)
        );
        out.push_str(&format!(
            "  \\begin{{tabular}}{{{columns}}}\n  \\toprule\n{}  \\midrule\n",
            line(&self.head)
        ));
        self.rows.iter().for_each(|row| out.push_str(&line(row)));
        out.push_str("  \\bottomrule\n  \\end{tabular}\n\\end{table}\n");
        out
    }

    /// Whether a column holds words.
    fn is_text(&self, column: usize) -> bool {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        let words = cells.filter(|cell| cell.chars().filter(|c| c.is_alphabetic()).count() > 4).count();
        2 * words > self.rows.len()
    }
}

/// A row while it is read, and the cells of rows before that reach into it.
#[derive(Default)]
struct Rows {
    row: Vec<String>,
    cell: Option<Cell>,
    /// By column: rows that are still to be filled, and with what.
    reaching: Vec<(usize, String)>,
}

impl Rows {
    fn open(&mut self, tag: &str) {
        let span = |name: &str| {
            let value = tag.split_once(&format!("{name}=\"")).and_then(|(_, rest)| rest.split_once('"'));
            value.and_then(|(value, _)| value.parse().ok()).unwrap_or(1)
        };
        self.cell = Some(Cell { rows: span("rowspan"), columns: span("colspan"), text: String::new() });
    }

    fn add(&mut self, text: &str) {
        if let Some(cell) = &mut self.cell {
            cell.text.push_str(text);
        }
    }

    /// Puts in what reaches here from above.
    fn fill(&mut self) {
        while let Some((left, text)) = self.reaching.get_mut(self.row.len()).filter(|(left, _)| *left > 0) {
            *left -= 1;
            self.row.push(text.clone());
        }
    }

    /// A heading stands over each of its columns, a cell in its first one alone.
    fn close(&mut self, in_head: bool) {
        let Some(cell) = self.cell.take() else { return };
        let whole = plain(&cell.text);
        for n in 0..cell.columns {
            let text = if n == 0 || in_head { whole.clone() } else { String::new() };
            self.fill();
            let column = self.row.len();
            self.reaching.resize(self.reaching.len().max(column + 1), (0, String::new()));
            self.reaching[column] = (cell.rows - 1, text.clone());
            self.row.push(text);
        }
    }

    fn end(&mut self) -> Vec<String> {
        self.fill();
        std::mem::take(&mut self.row)
    }
}

/// Several lines of headings as one.
fn joined(heads: &[Vec<String>]) -> Vec<String> {
    let columns = heads.iter().map(Vec::len).max().unwrap_or(0);
    let one = |column: usize| {
        let mut words: Vec<&str> = heads.iter().filter_map(|row| Some(row.get(column)?.as_str())).collect();
        words.dedup();
        words.retain(|word| !word.is_empty());
        words.join(": ")
    };
    (0..columns).map(one).collect()
}

/// A text as it is read.
fn plain(markup: &str) -> String {
    let words = markup.split_whitespace().collect::<Vec<_>>().join(" ");
    words.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"").replace("&amp;", "&")
}

fn escaped(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars() {
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '±' => out.push_str("$\\pm$"),
            '≤' => out.push_str("$\\leq$"),
            '×' => out.push_str("$\\times$"),
            '−' => out.push_str("$-$"),
            'σ' => out.push_str("$\\sigma$"),
            '–' | '—' => out.push_str("--"),
            c if c.is_control() => out.push(' '),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "<thead><tr><th rowspan=\"2\">Variant</th><th colspan=\"2\">FLOPs</th></tr>\
        <tr><th scope=\"col\">training</th><th>a &amp; b</th></tr></thead><tbody><tr><th scope=\"rowgroup\" rowspan=\"2\">\
        <span class=\"name\"><svg viewBox=\"0 0 1 1\"></svg><span>k_4, \"x\"</span></span></th><td>1.0 ± 0.1</td><td>–</td></tr>\
        <tr><td>2 M<span class=\"share\">60 %</span></td><td>≤ 3</td></tr><tr><th colspan=\"3\">all</th></tr></tbody>";

    #[test]
    fn spans_are_filled_and_headings_joined() {
        let grid = Grid::of(TABLE);
        assert_eq!(grid.head, ["Variant", "FLOPs: training", "FLOPs: a & b"]);
        assert_eq!(
            grid.rows,
            [["k_4, \"x\"", "1.0 ± 0.1", "–"], ["k_4, \"x\"", "2 M 60 %", "≤ 3"], ["all", "", ""]]
        );
        assert_eq!(
            grid.csv(),
            "Variant,FLOPs: training,FLOPs: a & b\r\n\"k_4, \"\"x\"\"\",1.0 ± 0.1,–\r\n\"k_4, \"\"x\"\"\",2 M 60 %,≤ 3\r\nall,,\r\n"
        );
        let latex = grid.latex("100 % of it");
        assert!(latex.contains("\\caption{100 \\% of it}") && latex.contains("{lrr}"), "{latex}");
        assert!(latex.contains("  k\\_4, \"x\" & 1.0 $\\pm$ 0.1 & -- \\\\\n"), "{latex}");
        assert!(latex.contains("& 2 M 60 \\% & $\\leq$ 3"), "{latex}");
    }
}
