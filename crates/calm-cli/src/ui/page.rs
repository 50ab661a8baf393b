//! Pages of Markdown as plain text for a screen: paragraphs, headings, lists, tables and code, in 80 columns.

use pulldown_cmark::{Event, HeadingLevel, Options, Parser, Tag, TagEnd};

use super::WIDTH;
use super::table::{Align, Table, wrapped};

/// A page of the book as plain text. Lines of code are as long as they are; a link into the book is followed by the name of
/// its page in brackets, another by its address.
pub fn plain(markdown: &str) -> String {
    let mut setter = Setter::default();
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        setter.take(event);
    }
    setter.out.trim_end().to_owned()
}

/// What stands to the left of everything inside a list or a quotation: at its first line, and at the others.
struct Margin {
    first: Option<String>,
    rest: String,
}

#[derive(Default)]
struct Setter {
    out: String,
    /// What is not set yet: the words of a paragraph, a heading or a cell.
    text: String,
    margins: Vec<Margin>,
    /// Numbers of the lists that are open; None has bullets.
    lists: Vec<Option<u64>>,
    /// Targets of the links that are open.
    links: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Setter {
    fn take(&mut self, event: Event<'_>) {
        match event {
            Event::Start(tag) => self.start(tag),
            Event::End(tag) => self.end(tag),
            Event::Text(text) => self.text.push_str(&text),
            Event::Code(code) => self.text.push_str(&format!("`{code}`")),
            Event::SoftBreak | Event::HardBreak => self.text.push(' '),
            Event::Rule => self.lines(&["-".repeat(WIDTH / 2)]),
            _ => {}
        }
    }

    fn start(&mut self, tag: Tag<'_>) {
        match tag {
            Tag::CodeBlock(_) => self.paragraph(),
            Tag::List(number) => {
                self.paragraph();
                self.lists.push(number);
            }
            Tag::Item => {
                let bullet = match self.lists.last_mut() {
                    Some(Some(number)) => {
                        *number += 1;
                        format!("{}. ", *number - 1)
                    }
                    _ => "- ".to_owned(),
                };
                let rest = " ".repeat(bullet.len());
                self.margins.push(Margin { first: Some(bullet), rest });
            }
            Tag::BlockQuote(_) => self.margins.push(Margin { first: None, rest: "| ".into() }),
            Tag::Link { dest_url, .. } => self.links.push(dest_url.into_string()),
            Tag::TableHead | Tag::TableRow => self.rows.push(Vec::new()),
            _ => {}
        }
    }

    fn end(&mut self, tag: TagEnd) {
        match tag {
            TagEnd::Paragraph => {
                self.paragraph();
                self.gap();
            }
            TagEnd::Heading(level) => self.heading(level),
            TagEnd::CodeBlock => {
                let code = std::mem::take(&mut self.text);
                let lines: Vec<String> = code.lines().map(|line| format!("    {}", included(line))).collect();
                self.lines(&lines);
                self.gap();
            }
            TagEnd::Item => {
                self.paragraph();
                self.margins.pop();
            }
            TagEnd::List(_) => {
                self.lists.pop();
                self.gap();
            }
            TagEnd::BlockQuote(_) => {
                self.margins.pop();
                self.gap();
            }
            TagEnd::Link => {
                let target = self.links.pop().unwrap_or_default();
                self.text.push_str(&shown(&target));
            }
            TagEnd::TableCell => {
                let cell = std::mem::take(&mut self.text);
                if let Some(row) = self.rows.last_mut() {
                    row.push(cell);
                }
            }
            TagEnd::Table => self.table(),
            _ => {}
        }
    }

    /// An empty line, once.
    fn gap(&mut self) {
        if !self.out.is_empty() && !self.out.ends_with("\n\n") {
            self.out.push('\n');
        }
    }

    /// Columns that are left of the margins.
    fn width(&self) -> usize {
        let margins: usize = self.margins.iter().map(|margin| margin.rest.chars().count()).sum();
        WIDTH.saturating_sub(margins).max(WIDTH / 4)
    }

    /// Sets lines as they are, within the margins.
    fn lines(&mut self, lines: &[String]) {
        for line in lines {
            let margin: String =
                self.margins.iter_mut().map(|m| m.first.take().unwrap_or_else(|| m.rest.clone())).collect();
            self.out.push_str(format!("{margin}{line}").trim_end());
            self.out.push('\n');
        }
    }

    fn paragraph(&mut self) {
        let text = std::mem::take(&mut self.text);
        if !text.trim().is_empty() {
            self.lines(&wrapped(text.trim(), self.width()));
        }
    }

    fn heading(&mut self, level: HeadingLevel) {
        let lines = wrapped(std::mem::take(&mut self.text).trim(), self.width());
        let under = match level {
            HeadingLevel::H1 => "=",
            HeadingLevel::H2 => "-",
            _ => "",
        };
        let longest = lines.iter().map(|line| line.chars().count()).max().unwrap_or(0);
        self.gap();
        self.lines(&lines);
        if !under.is_empty() {
            self.lines(&[under.repeat(longest)]);
        }
        self.gap();
    }

    fn table(&mut self) {
        let rows = std::mem::take(&mut self.rows);
        let Some((head, rows)) = rows.split_first() else { return };
        let names: Vec<&str> = head.iter().map(String::as_str).collect();
        let mut table = Table::new(&names).align(&vec![Align::Left; names.len()]).width(self.width());
        for row in rows {
            table.row(row.iter().map(String::as_str));
        }
        let lines: Vec<String> = table.to_string().lines().map(str::to_owned).collect();
        self.lines(&lines);
        self.gap();
    }
}

/// What follows the words of a link.
fn shown(target: &str) -> String {
    let page = target.split('#').next().unwrap_or_default();
    if target.contains("://") {
        format!(" <{target}>")
    } else if let Some(topic) = page.strip_suffix(".md").filter(|topic| !topic.contains('/')) {
        format!(" [{topic}]")
    } else {
        String::new()
    }
}

/// A line of code; a file that the built book takes in is named.
fn included(line: &str) -> String {
    match line.trim().strip_prefix("{{#include ").and_then(|rest| rest.strip_suffix("}}")) {
        Some(file) => format!("(the file {} of the sources)", file.trim_start_matches("../")),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_set_as_plain_text() {
        let page = "# One `two`\n\nSome *words*\nof a [page](numerics.md#sums) and [elsewhere](https://a.b).\n\n\
                    ## Below\n\n- first\n  goes on\n- second\n\n  1. inner\n  2. more\n\n\
                    ```console\n$ calm\n{{#include ../../crates/x.rs}}\n```\n\n\
                    | a | b |\n|---|---|\n| `c` | d |\n";
        let expected = "\
One `two`
=========

Some words of a page [numerics] and elsewhere <https://a.b>.

Below
-----

- first goes on

- second

  1. inner
  2. more

    $ calm
    (the file crates/x.rs of the sources)

a    b
---  -
`c`  d";
        assert_eq!(plain(page), expected);
    }

    #[test]
    fn paragraphs_lists_and_tables_keep_to_the_width() {
        let words = "several words ".repeat(30);
        let page = format!(
            "{words}\n\n- {words}\n  - {words}\n\n> {words}\n\n| a | b |\n|---|---|\n| {words} | {words} |\n"
        );
        let text = plain(&page);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert_eq!(text.matches("several").count(), 180);
        assert!(
            text.lines().any(|line| line.starts_with("    several") || line.starts_with("  - several")),
            "{text}"
        );
    }
}
