//! As much of Markdown as our pages use: fenced blocks, headings, code spans and links, each with its line.

use std::path::{Path, PathBuf};

use crate::root;

/// A page, taken apart.
#[derive(Debug, Default)]
pub struct Page {
    /// Its file.
    pub path: PathBuf,
    /// Anchors of the headings.
    pub anchors: Vec<String>,
    /// Targets of links, outside code.
    pub links: Vec<Found>,
    /// Code spans, outside fenced blocks.
    pub spans: Vec<Found>,
    /// Fenced blocks.
    pub blocks: Vec<Block>,
}

/// A piece of text and the line where it stands.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    pub line: usize,
    pub text: String,
}

/// A fenced block.
#[derive(Debug, Default)]
pub struct Block {
    /// What follows the fence: `console`, `rust,ignore`, ...
    pub language: String,
    /// The file that the block is, where the line before it ends in its name, such as `` `a.yaml`: ``
    pub file: Option<String>,
    /// Its lines.
    pub lines: Vec<Found>,
}

impl Page {
    pub fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let page = std::panic::catch_unwind(|| Self::parse(&text));
        Self { path: path.into(), ..page.unwrap_or_else(|_| panic!("{}", path.display())) }
    }

    pub fn parse(text: &str) -> Self {
        let mut page = Self::default();
        let mut fence: Option<(String, usize)> = None;
        let mut before = "";
        for (line, content) in (1..).zip(text.lines()) {
            let trimmed = content.trim_start();
            let ticks: String = trimmed.chars().take_while(|c| *c == '`').collect();
            match &fence {
                Some((open, _)) if trimmed.trim_end() == open => fence = None,
                Some((_, indent)) => {
                    let block = page.blocks.last_mut().unwrap();
                    // A block inside a list is as far to the right as its fence.
                    let text = content.get(*indent..).unwrap_or("").to_owned();
                    block.lines.push(Found { line, text });
                }
                None if ticks.len() >= 3 => {
                    let language = trimmed[ticks.len()..].trim().to_owned();
                    page.blocks.push(Block { language, file: named(before), ..Block::default() });
                    fence = Some((ticks, content.len() - trimmed.len()));
                }
                None => {
                    if let Some(heading) = trimmed
                        .strip_prefix('#')
                        .map(|h| h.trim_start_matches('#'))
                        .filter(|h| h.starts_with(' '))
                    {
                        page.anchors.push(anchor(heading));
                    }
                    page.inline(line, content);
                }
            }
            if !trimmed.is_empty() {
                before = trimmed;
            }
        }
        assert!(fence.is_none(), "a fenced block is not closed");
        page
    }

    /// Code spans and links of a line. (Neither goes over the end of a line in our pages, but for the text of a
    /// link, whose target is then found all the same.)
    fn inline(&mut self, line: usize, content: &str) {
        assert!(
            content.matches('`').count().is_multiple_of(2),
            "a code span goes over the end of a line: {content}"
        );
        let mut outside = String::new();
        for (i, part) in content.split('`').enumerate() {
            if i % 2 == 0 {
                outside.push_str(part);
            } else {
                // `\|` is a bar inside a table.
                self.spans.push(Found { line, text: part.replace("\\|", "|") });
            }
        }
        let mut rest = outside.as_str();
        while let Some(at) = rest.find("](") {
            rest = &rest[at + 2..];
            let Some(end) = rest.find(')') else { break };
            self.links.push(Found { line, text: rest[..end].to_owned() });
            rest = &rest[end..];
        }
    }

    /// `FILE:LINE`, from the project's folder.
    pub fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path.strip_prefix(root()).unwrap_or(&self.path).display())
    }
}

/// The file that a line announces: it ends in a name with an ending in code, and a colon.
fn named(line: &str) -> Option<String> {
    let (_, name) = line.trim_end().strip_suffix("`:")?.rsplit_once('`')?;
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    (name.contains('.') && name.chars().all(plain)).then(|| name.to_owned())
}

/// A heading's anchor, as GitHub and mdBook make it.
pub fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
    heading.trim().to_lowercase().chars().filter(kept).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn a_page_is_taken_apart() {
    let page = Page::parse(
        "# One `two`, three!\n\na [link](x.md#y), `code](no)` and [b](c)\n\n1. list\n   ```sh\n   $ a\n     b\n   ```\n\
         Save as `a-1.yaml`:\n\n```yaml\nb: 1\n```\n",
    );
    assert_eq!(page.anchors, ["one-two-three"]);
    let texts = |found: &[Found]| found.iter().map(|f| f.text.clone()).collect::<Vec<_>>();
    assert_eq!(texts(&page.links), ["x.md#y", "c"]);
    assert_eq!(texts(&page.spans), ["two", "code](no)", "a-1.yaml"]);
    assert_eq!(page.blocks[0].language, "sh");
    assert_eq!(
        page.blocks[0].lines,
        [Found { line: 7, text: "$ a".into() }, Found { line: 8, text: "  b".into() }]
    );
    assert_eq!((&page.blocks[0].file, page.blocks[1].file.as_deref()), (&None, Some("a-1.yaml")));
}
