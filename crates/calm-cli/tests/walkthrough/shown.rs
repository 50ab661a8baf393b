//! What a page shows, as steps: files, and commands with their output.

use crate::markdown::Page;

/// Something that a reader does.
pub enum Step {
    /// Saves a file.
    File { name: String, text: String },
    /// Types a command, and sees something.
    Typed { place: String, command: String, shown: Shown },
}

/// Output as a page shows it.
pub struct Shown {
    lines: Vec<String>,
    how: How,
}

/// How it is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Words,
    Exact,
    Said,
}

/// What there is to do on a page, in order.
pub fn steps(page: &Page) -> Vec<Step> {
    let mut steps = Vec::new();
    for block in &page.blocks {
        if let Some(name) = &block.file {
            let lines = block.lines.iter().map(|line| format!("{}\n", line.text));
            steps.push(Step::File { name: name.clone(), text: lines.collect() });
        }
        let how = match block.language.as_str() {
            "console" => How::Words,
            "console,exact" => How::Exact,
            "console,said" => How::Said,
            _ => continue,
        };
        for line in &block.lines {
            if let Some(command) = line.text.strip_prefix("$ ") {
                let shown = Shown { lines: Vec::new(), how };
                steps.push(Step::Typed { place: page.place(line.line), command: command.into(), shown });
            } else if let Some(Step::Typed { shown, .. }) = steps.last_mut() {
                shown.lines.push(line.text.clone());
            } else {
                panic!("{}: output before any command", page.place(line.line));
            }
        }
    }
    steps
}

impl Shown {
    /// Whether a command printed this.
    pub fn holds(&self, said: &str) -> Result<(), String> {
        if self.how == How::Said || self.lines.is_empty() {
            return Ok(());
        }
        let mut said = said.lines().filter(|line| !line.trim().is_empty());
        let mut skips = false;
        for shown in self.lines.iter().filter(|line| !line.trim().is_empty()) {
            if shown.trim() == "..." {
                skips = true;
                continue;
            }
            let found = if skips {
                said.any(|line| self.same(shown, line))
            } else {
                said.next().is_some_and(|line| self.same(shown, line))
            };
            if !found {
                return Err(format!("is not what the page shows: {shown}"));
            }
            skips = false;
        }
        match said.next().filter(|_| !skips) {
            Some(more) => Err(format!("the page does not show: {more}")),
            None => Ok(()),
        }
    }

    fn same(&self, shown: &str, line: &str) -> bool {
        match self.how {
            How::Exact => shown == line,
            _ => words(shown) == words(line) && numbers(shown) == numbers(line),
        }
    }
}

/// Units that change with the size of a number.
const UNITS: [&str; 20] = [
    "k", "M", "G", "T", "ms", "s", "min", "h", "B", "kB", "MB", "GB", "%", "tokens/s", "second", "seconds",
    "step", "steps", "run", "runs",
];

/// A number, what stands where one might be, or a line of a table.
fn is_number(word: &str) -> bool {
    let digits = word.trim_start_matches(|c: char| "~<>±+-−×(".contains(c));
    digits.starts_with(|c: char| c.is_ascii_digit()) || word == "undefined" || word.chars().all(|c| c == '-')
}

/// What must be the same: all but numbers and their units. Numbers inside words, as in `step-200`, become signs.
fn words(line: &str) -> Vec<String> {
    let kept =
        |word: &&str| !is_number(word) && !UNITS.contains(&word.trim_end_matches([',', ';', ')', '.']));
    line.split_whitespace().filter(kept).map(without_numbers).collect()
}

fn without_numbers(word: &str) -> String {
    let mut out = String::new();
    for c in word.chars() {
        match c {
            '0'..='9' if out.ends_with('#') => {}
            '0'..='9' => out.push('#'),
            c => out.push(c),
        }
    }
    out
}

/// Whether there are any numbers.
fn numbers(line: &str) -> bool {
    line.split_whitespace().any(is_number)
}

#[test]
fn words_are_compared_and_numbers_are_not() {
    let holds = |how, shown: &str, said: &str| {
        let lines = shown.lines().map(str::to_owned).collect();
        Shown { lines, how }.holds(said).is_ok()
    };
    let words = |shown: &str, said: &str| holds(How::Words, shown, said);
    assert!(words("CALM, K = 4  6.34 ±0.26  0.90 ±0.08", "CALM, K = 4  16.3 ±0.2  -"));
    assert!(
        words("from runs/a/step-200  4.1", "from runs/a/step-60  undefined")
            && !words("from a/step-200", "from b/step-200")
    );
    assert!(words("trained in 4 min 3 s", "trained in 12.0 s"));
    assert!(words("a  b\n-  -----\n", "a  b\n--  --\n"));
    assert!(!words("CALM, K = 4  6.34", "baseline  6.34"));
    assert!(!words("steps 4", "steps none"));
    assert!(
        !words("first", "first\nsecond")
            && !words("first\nsecond", "first")
            && !words("second", "first\nsecond")
    );
    assert!(
        words("...\nsecond 2", "first 1\nsecond 3") && words("first 1\n...", "first 2\nsecond 2\nthird 3")
    );
    assert!(!words("...\nthird 3", "first 1\nsecond 3"));
    assert!(words("", "anything"));
    assert!(
        holds(How::Exact, "a  1", "a  1\n")
            && !holds(How::Exact, "a  1", "a  2")
            && !holds(How::Exact, "a 1", "a  1")
    );
    assert!(holds(How::Said, "one thing", "another"));
}
