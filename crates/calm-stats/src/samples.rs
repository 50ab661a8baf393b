//! BrierLM of any model from a file of its drawn samples.
//!
//! One JSON object a line (JSON Lines), one line a scored position:
//!
//! ```json
//! {"document": "wiki-17", "target": [15, 9, 4, 27], "samples": [[15, 9, 4, 2], [15, 3, 3, 8]]}
//! ```
//!
//! - `document`: a string or a whole number. Standard errors are by document, so give positions of one text
//!   the same name. Two files are compared by these names.
//! - `target`: the true tokens, four or more; only the first four are scored.
//! - `samples`: two or more independent continuations of the same context, four or more tokens each. More
//!   than two are averaged over all samples and all pairs.
//!
//! Tokens are whole numbers or strings, and only compared for equality (1 and "1" differ). What follows the
//! end of a text must be the same in targets and samples: fill up with one padding token, or name the end
//! token ([`SamplesOptions::eos`]), after which everything is taken as padding and lists may stop.
//! Other keys and empty lines are ignored.

use std::io;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::brier::{BrierError, BrierSums, EndOfText, NGRAM, sample_terms};

/// What is wrong with a file of samples; lines count from 1.
#[derive(Debug, Error)]
pub enum SamplesError {
    /// The file cannot be read on.
    #[error("line {line}: cannot be read: {source}")]
    Read {
        /// Line number.
        line: usize,
        /// Cause.
        source: io::Error,
    },
    /// Not a JSON object of the format.
    #[error("line {line}: {source}")]
    Json {
        /// Line number.
        line: usize,
        /// Cause.
        source: serde_json::Error,
    },
    /// Too few samples or tokens.
    #[error("line {line}: {source}")]
    Position {
        /// Line number.
        line: usize,
        /// Cause.
        source: BrierError,
    },
    /// No line at all.
    #[error("the file holds no positions")]
    Empty,
}

impl SamplesError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Read { .. } => None,
            Self::Json { .. } | Self::Empty => Some(FORMAT),
            Self::Position { source, .. } => source.remedy(),
        }
    }
}

/// What a file of samples must be.
pub const FORMAT: &str = "one JSON object a line: {\"document\": 7, \"target\": [t1, t2, t3, t4], \
                          \"samples\": [[..], [..]]}; tokens are ids or strings";

/// A token: a whole number or a string.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum SampleToken {
    /// A token id.
    Id(i64),
    /// A token's text.
    Text(String),
}

/// Name of a document.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum DocumentName {
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
}

#[derive(Deserialize)]
struct Line {
    document: DocumentName,
    target: Vec<SampleToken>,
    samples: Vec<Vec<SampleToken>>,
}

/// Numbers of named documents, in order of appearance. Use one for all files that are to be compared.
#[derive(Clone, Debug, Default)]
pub struct DocumentNames {
    numbers: FxHashMap<DocumentName, u64>,
    names: Vec<DocumentName>,
}

impl DocumentNames {
    /// Number of a name, new or known.
    pub fn number(&mut self, name: DocumentName) -> u64 {
        if let Some(&number) = self.numbers.get(&name) {
            return number;
        }
        let number = self.names.len() as u64;
        self.names.push(name.clone());
        self.numbers.insert(name, number);
        number
    }

    /// Name of a number.
    pub fn name(&self, number: u64) -> Option<&DocumentName> {
        self.names.get(usize::try_from(number).ok()?)
    }
}

/// How to read a file of samples.
#[derive(Clone, Debug, Default)]
pub struct SamplesOptions {
    /// The token that ends a text; None if the file is already filled up with padding.
    pub eos: Option<SampleToken>,
}

/// Scores lines, one at a time; `BufRead::lines` gives those of a file. The sums go to [`crate::bootstrap::report`].
///
/// # Errors
/// With the line's number: unreadable, no JSON of the format, fewer than two samples, fewer than four
/// tokens. An empty file.
pub fn score_samples(
    lines: impl IntoIterator<Item = io::Result<String>>,
    options: &SamplesOptions,
    names: &mut DocumentNames,
) -> Result<BrierSums, SamplesError> {
    let mut sums = BrierSums::new();
    for (number, text) in lines.into_iter().enumerate() {
        let line = number + 1;
        let text = text.map_err(|source| SamplesError::Read { line, source })?;
        // A byte order mark is what some editors put in front of a file.
        let text = text.trim().trim_start_matches('\u{feff}');
        if text.is_empty() {
            continue;
        }
        let parsed: Line =
            serde_json::from_str(text).map_err(|source| SamplesError::Json { line, source })?;
        // Ids of this line only: tokens are compared within a position. 0 is EOS, 1 its padding.
        let mut ids: FxHashMap<&SampleToken, u32> = FxHashMap::default();
        if let Some(eos) = &options.eos {
            ids.insert(eos, 0);
        }
        let target = intern(&parsed.target, &mut ids);
        let samples: Vec<Vec<u32>> = parsed.samples.iter().map(|s| intern(s, &mut ids)).collect();
        let end = options.eos.as_ref().map(|_| EndOfText { eos: 0, pad: 1 });
        let terms =
            sample_terms(&target, &samples, end).map_err(|source| SamplesError::Position { line, source })?;
        sums.add(names.number(parsed.document), &terms.brier());
    }
    if sums.documents() == 0 {
        return Err(SamplesError::Empty);
    }
    Ok(sums)
}

/// Numbers of the first four tokens, from 2 on for new ones.
fn intern<'a>(tokens: &'a [SampleToken], ids: &mut FxHashMap<&'a SampleToken, u32>) -> Vec<u32> {
    let known = |token: &'a SampleToken| {
        let fresh = ids.len() as u32 + 2;
        *ids.entry(token).or_insert(fresh)
    };
    tokens.iter().take(NGRAM).map(known).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::BufRead as _;

    fn score(text: &str, eos: Option<SampleToken>) -> Result<BrierSums, SamplesError> {
        score_samples(text.as_bytes().lines(), &SamplesOptions { eos }, &mut DocumentNames::default())
    }

    #[test]
    fn positions_are_scored_by_document() {
        let text = concat!(
            r#"{"document": "a", "target": [1, 2, 3, 4], "samples": [[1, 2, 3, 4, 5], [1, 2, 3, 4]]}"#,
            "\n\n",
            r#"{"document": 7, "target": [1, 2, 3, 4, 9], "samples": [[5, 2, 3, 4], [1, 9, 3, 4]], "note": 1}"#,
            "\r\n",
            r#"{"document": "a", "target": ["x", "y", "z", "1"], "samples": [["x", "y", "z", 1], ["x", "", "", ""]]}"#,
        );
        let mut names = DocumentNames::default();
        let sums = score_samples(text.as_bytes().lines(), &SamplesOptions::default(), &mut names).unwrap();
        let found: Vec<_> = sums.iter().map(|(d, s)| (d, s.sum, s.positions)).collect();
        assert_eq!(found, [(0, [2.0, 2.0, 2.0, 1.0], 2), (1, [1.0, 0.0, 0.0, 0.0], 1)]);
        assert_eq!(names.name(1), Some(&DocumentName::Number(7)));
        assert_eq!(names.name(2), None);
        assert_eq!(names.number(DocumentName::Text("a".into())), 0);
    }

    #[test]
    fn a_named_end_makes_the_rest_padding() {
        let text = r#"{"document": 0, "target": ["a", "<end>"], "samples": [["a", "<end>", "b"], ["a", "<end>", "c", "d"]]}"#;
        let sums = score(text, Some(SampleToken::Text("<end>".into()))).unwrap();
        assert_eq!(sums.brier(), Some([100.0; 4]));
        assert!(matches!(score(text, None), Err(SamplesError::Position { line: 1, .. })));
    }

    #[test]
    fn errors_name_the_line_and_what_is_expected() {
        let good = r#"{"document": 0, "target": [1, 2, 3, 4], "samples": [[1, 2, 3, 4], [1, 2, 3, 4]]}"#;
        for (bad, part) in [
            ("{", "EOF"),
            (r#"{"target": [1, 2, 3, 4], "samples": []}"#, "document"),
            (r#"{"document": 0, "target": [1.5], "samples": []}"#, "did not match"),
            (r#"{"document": 0, "target": [1, 2, 3, 4], "samples": [[1, 2, 3, 4]]}"#, "at least 2 samples"),
            (r#"{"document": 0, "target": [1, 2], "samples": [[1, 2, 3, 4], [1, 2, 3, 4]]}"#, "target"),
            (r#"{"document": 0, "target": [1, 2, 3, 4], "samples": [[1, 2], [1, 2]]}"#, "2 tokens"),
        ] {
            let error = score(&format!("{good}\n{bad}\n"), None).unwrap_err().to_string();
            assert!(error.starts_with("line 2: ") && error.contains(part), "{bad}: {error}");
        }
        assert!(matches!(score("\n \n", None), Err(SamplesError::Empty)));
        let binary = [good.as_bytes(), &[10, 0xff, 0xfe]].concat();
        let names = &mut DocumentNames::default();
        let error = score_samples(binary.lines(), &SamplesOptions::default(), names).unwrap_err();
        assert!(matches!(error, SamplesError::Read { line: 2, .. }));
    }
}
