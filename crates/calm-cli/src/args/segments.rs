//! What `calm eval segments` takes.

use std::path::{Path, PathBuf};

use clap::Args;

use super::shared::{Count, Format, OtherText, RunSource, whole};

/// `calm eval segments`
#[derive(Debug, Args)]
pub struct SegmentsArgs {
    /// The run.
    #[command(flatten)]
    pub source: RunSource,
    /// A kind of text to be measured beside others, by its name (may be repeated; default: the run's held-out documents): a file
    /// or folder, a data set of `datasets/` by its name, or any source as in a configuration.
    #[arg(long, value_name = "[KIND=]TEXT")]
    pub data: Vec<TextKind>,
    /// With --data: the field of its records or the column of its tables that holds the text (default: `text`).
    #[arg(long, value_name = "NAME", requires = "data")]
    pub column: Option<String>,
    /// Documents to measure (default: as the run's configuration says; of --data all).
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub documents: Option<usize>,
    /// Tokens to measure per document, from its start; `all` for whole documents.
    #[arg(long, value_name = "N|all")]
    pub chunks: Option<Count>,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
}

impl SegmentsArgs {
    /// One of the texts that are named.
    pub fn other<'a>(&'a self, kind: &'a TextKind) -> OtherText<'a> {
        let (column, documents) = (self.column.as_deref(), self.documents);
        OtherText { data: &kind.text, column, documents, loss_on: None }
    }
}

/// A text with the name of its kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextKind {
    /// Its name: what stands before the `=`, or the text as it is written.
    pub name: String,
    /// Where it is.
    pub text: PathBuf,
}

impl std::str::FromStr for TextKind {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let is_name = |name: &str| {
            !name.is_empty()
                && name.chars().all(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ' | '.'))
        };
        let (name, text) = match given.split_once('=') {
            Some((name, text)) if is_name(name) => (name.to_owned(), text),
            _ => {
                let name = Path::new(given).file_stem().map(|stem| stem.to_string_lossy().into_owned());
                (name.unwrap_or_else(|| given.to_owned()), given)
            }
        };
        if text.is_empty() {
            return Err("KIND=FILE, KIND=NAME of a data set, or KIND={SOURCE}".into());
        }
        Ok(Self { name, text: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_the_name_before_the_sign_or_that_of_its_file() {
        let parse = |text: &str| text.parse::<TextKind>().map(|kind| (kind.name, kind.text));
        let kind = |name: &str, text: &str| Ok((name.to_owned(), PathBuf::from(text)));
        assert_eq!(parse("code=src/main.rs"), kind("code", "src/main.rs"));
        assert_eq!(parse("texts/english.txt"), kind("english", "texts/english.txt"));
        assert_eq!(parse("a/b=c.txt"), kind("b=c", "a/b=c.txt"));
        assert_eq!(parse("maths={path: a=b}"), kind("maths", "{path: a=b}"));
        assert!(parse("code=").unwrap_err().contains("KIND="));
    }
}
