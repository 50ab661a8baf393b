//! Problems of a configuration, and how they are shown: all together, each with its place and a remedy.

use crate::locate::{KeyPath, Part, Place};
use std::fmt::{self, Display};

/// Widest line that a report prints, paths and long words excepted.
const WIDTH: usize = 80;

/// The rules that a well-formed configuration breaks, collected by [`Validate`](super::Validate).
///
/// Paths are relative to the block that is being checked; [`Problems::within`] enters an inner block.
#[derive(Debug, Default)]
pub struct Problems {
    prefix: KeyPath,
    list: Vec<Problem>,
}

impl Problems {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a problem with the value at `path` (`calm.latent_size`, `stages[1].steps`); a remedy and the
    /// other keys it depends on are added to what is returned.
    pub fn add(&mut self, path: &str, what: impl Into<String>) -> &mut Problem {
        self.list.push(Problem {
            path: self.prefix.join(&KeyPath::parse(path)),
            prefix: self.prefix.clone(),
            what: what.into(),
            remedy: None,
            involved: Vec::new(),
        });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// Adds a problem unless `holds`.
    pub fn require(&mut self, holds: bool, path: &str, what: &str, remedy: &str) {
        if !holds {
            self.add(path, what).remedy(remedy);
        }
    }

    /// Adds a problem unless `low <= value <= high`. A value that cannot be compared (NaN) is one.
    pub fn within_range<N: PartialOrd + Display>(&mut self, path: &str, value: N, low: N, high: N) {
        if !(value >= low && value <= high) {
            self.add(path, format!("{value} is out of range"))
                .remedy(format!("a value from {low} to {high} is possible"));
        }
    }

    /// Adds a problem unless `value >= low`.
    pub fn at_least<N: PartialOrd + Display>(&mut self, path: &str, value: N, low: N) {
        if value.partial_cmp(&low).is_none_or(|order| order.is_lt()) {
            self.add(path, format!("{value} is too small"))
                .remedy(format!("the smallest possible value is {low}"));
        }
    }

    /// Checks an inner block: paths added by `check` are relative to `path`.
    pub fn within(&mut self, path: &str, check: impl FnOnce(&mut Problems)) {
        let inner = self.prefix.join(&KeyPath::parse(path));
        let outer = std::mem::replace(&mut self.prefix, inner);
        check(self);
        self.prefix = outer;
    }

    /// The key paths of all problems, in the order in which they were found.
    pub fn paths(&self) -> Vec<String> {
        self.list.iter().map(|problem| problem.path.to_string()).collect()
    }

    /// Whether nothing was found.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many problems were found.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// The problems, in the order in which they were added.
    pub fn iter(&self) -> std::slice::Iter<'_, Problem> {
        self.list.iter()
    }

    pub(super) fn into_list(self) -> Vec<Problem> {
        self.list
    }
}

impl<'a> IntoIterator for &'a Problems {
    type Item = &'a Problem;
    type IntoIter = std::slice::Iter<'a, Problem>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// One broken rule: what is wrong, with which key, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key path of the value that breaks the rule.
    pub path: KeyPath,
    prefix: KeyPath,
    /// What is wrong.
    pub what: String,
    /// What to do about it, if that is known.
    pub remedy: Option<String>,
    pub(super) involved: Vec<KeyPath>,
}

impl Problem {
    /// Says what to do about it: the valid range, the value that would fit.
    pub fn remedy(&mut self, remedy: impl Into<String>) -> &mut Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Names other keys that the rule reads. Where one of them could not be read, the rule was checked
    /// against a stand-in, and the problem is not shown.
    pub fn involves(&mut self, paths: &[&str]) -> &mut Self {
        self.involved.extend(paths.iter().map(|path| self.prefix.join(&KeyPath::parse(path))));
        self
    }
}

/// Something wrong in the file or the overrides, before its place is looked up.
#[derive(Clone, Debug)]
pub(super) struct Finding {
    pub path: KeyPath,
    pub part: Part,
    /// Which one, for a key that is written more than once.
    pub occurrence: usize,
    pub what: String,
    pub remedy: Option<String>,
}

/// A problem with its place, ready to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The key path, `model.calm.latent_size`.
    pub path: String,
    /// What is wrong.
    pub what: String,
    /// Where it was written.
    pub place: Origin,
    /// What to do about it.
    pub remedy: Option<String>,
}

/// Where a faulty value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In the file, at a line and column (from 1), with that line's text.
    File {
        /// Line and column.
        place: Place,
        /// The line as written.
        line: String,
    },
    /// In a `--set` argument, given as written.
    Override(String),
    /// The key is in neither: its default is at fault, or the key is missing.
    Absent,
}

/// Everything that is wrong with a configuration; `Display` is what the user sees (plain text, several
/// lines, no colours).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file's name, as given by the user.
    pub name: String,
    /// In order of their lines; those of overrides last.
    pub reports: Vec<Report>,
}

impl std::error::Error for ConfigErrors {}

impl ConfigErrors {
    /// A single problem with the file as a whole.
    pub fn whole_file(
        name: impl Into<String>,
        what: impl Into<String>,
        remedy: Option<impl Into<String>>,
    ) -> Self {
        let report = Report {
            path: String::new(),
            what: what.into(),
            place: Origin::Absent,
            remedy: remedy.map(Into::into),
        };
        Self { name: name.into(), reports: vec![report] }
    }

    pub(super) fn sorted(name: &str, mut reports: Vec<Report>) -> Self {
        reports.sort_by_key(|report| match &report.place {
            Origin::Absent => (0, 0, 0),
            Origin::File { place, .. } => (1, place.line, place.column),
            Origin::Override(_) => (2, 0, 0),
        });
        Self { name: name.to_string(), reports }
    }
}

impl Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.reports.len() {
            1 => write!(f, "{} has a problem", self.name)?,
            n => write!(f, "{} has {n} problems", self.name)?,
        }
        for (i, report) in self.reports.iter().enumerate() {
            let number = format!("{:>3}. ", i + 1);
            let text = match report.path.as_str() {
                "" => report.what.clone(),
                path => format!("{path}: {}", report.what),
            };
            write!(f, "\n\n{}", wrap(&text, &number, "     "))?;
            match &report.place {
                Origin::File { place, line } => {
                    write!(f, "\n     at {}:{}:{}", self.name, place.line, place.column)?;
                    write!(f, "\n{}", excerpt(*place, line))?;
                }
                Origin::Override(raw) => {
                    write!(f, "\n{}", wrap(&format!("in --set {raw}"), "     ", "     "))?
                }
                Origin::Absent => {}
            }
            if let Some(remedy) = &report.remedy {
                write!(f, "\n{}", wrap(&format!("hint: {remedy}"), "     ", "           "))?;
            }
        }
        Ok(())
    }
}

/// Fills lines of [`WIDTH`] with the words of a text; words longer than that stay whole.
fn wrap(text: &str, first: &str, indent: &str) -> String {
    let mut out = first.to_string();
    let mut used = first.chars().count();
    let mut start = true;
    for word in text.split(' ') {
        let length = word.chars().count();
        if !start && used + 1 + length > WIDTH {
            out.push('\n');
            out.push_str(indent);
            used = indent.chars().count();
        } else if !start {
            out.push(' ');
            used += 1;
        }
        out.push_str(word);
        used += length;
        start = false;
    }
    out
}

/// The offending line with its number and a mark under the token, cut to fit.
fn excerpt(place: Place, line: &str) -> String {
    let number = format!("{:>9} | ", place.line);
    let room = WIDTH - number.len();
    let characters: Vec<char> =
        line.trim_end().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let column = (place.column - 1).min(characters.len());
    let length = token_length(&characters[column..]);
    // A window of the line that shows the token, with a little before it.
    let start = if column + length <= room || characters.len() <= room {
        0
    } else {
        column.saturating_sub(room / 4).min(characters.len().saturating_sub(room))
    };
    let mut shown: Vec<char> = characters[start..].iter().copied().take(room).collect();
    if start > 0 {
        shown[0] = '…';
    }
    if start + room < characters.len() {
        shown[room - 1] = '…';
    }
    let text: String = shown.into_iter().collect();
    let gap = column - start;
    let marks = "^".repeat(length.clamp(1, room.saturating_sub(gap).max(1)));
    let first = format!("{number}{text}");
    format!("{}\n          | {}{marks}", first.trim_end(), " ".repeat(gap))
}

/// How many characters of a line belong to the key or scalar at its start.
fn token_length(line: &[char]) -> usize {
    let end = match line.first() {
        Some(quote @ ('"' | '\'')) => line[1..].iter().position(|c| c == quote).map_or(line.len(), |i| i + 2),
        _ => (0..line.len())
            .find(|&i| match line[i] {
                ',' | ']' | '}' => true,
                ':' => line.get(i + 1).is_none_or(|c| c.is_whitespace()),
                '#' => i > 0 && line[i - 1].is_whitespace(),
                _ => false,
            })
            .unwrap_or(line.len()),
    };
    let token = &line[..end];
    token.len() - token.iter().rev().take_while(|c| c.is_whitespace()).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lines_are_cut_around_the_token_and_fit_80_columns() {
        let line = format!("{}bad: 1{}", "x".repeat(120), "y".repeat(120));
        let text = excerpt(Place { line: 7, column: 121 }, &line);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line.chars().count() <= WIDTH), "{text}");
        let mark = lines[1].chars().position(|c| c == '^').unwrap();
        let under: String = lines[0].chars().skip(mark).take(3).collect();
        assert_eq!(under, "bad");
        assert_eq!(lines[1].matches('^').count(), 3);
    }

    #[test]
    fn a_place_past_the_end_of_its_line_is_still_shown() {
        assert!(excerpt(Place { line: 1, column: 9 }, "a:").contains('^'));
        assert!(excerpt(Place { line: 1, column: 1 }, "").contains('^'));
    }

    #[test]
    fn text_is_wrapped_between_words_only() {
        let text = wrap(&"word ".repeat(40), "  1. ", "     ");
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH));
        let long = "x".repeat(100);
        assert!(wrap(&format!("see {long} now"), "", "").contains(&long));
    }

    #[test]
    fn inner_blocks_prefix_their_paths_and_ranges_refuse_nan() {
        let mut problems = Problems::new();
        problems.within("model.calm", |p| {
            p.at_least("latent_size", 0, 1);
            p.within("head", |p| p.within_range("alpha", f64::NAN, 0.0, 2.0));
            p.within_range("fine", 1.0, 0.0, 2.0);
            p.at_least("fine", 3, 1);
        });
        problems.add("steps", "odd").remedy("even").involves(&["other"]);
        problems.require(true, "x", "m", "h");
        assert_eq!((problems.len(), problems.is_empty()), (3, false));
        let paths: Vec<_> = problems.into_list().iter().map(|p| p.path.to_string()).collect();
        assert_eq!(paths, ["model.calm.latent_size", "model.calm.head.alpha", "steps"]);
    }
}
