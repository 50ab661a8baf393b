//! What can go wrong with data: each message says what and where, and [`Error::remedy`] what to do about it.

use std::io;
use std::path::{Path, PathBuf};

use calm_config::Problems;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error about data, a tokenizer or a cache.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that is not there.
    #[error("{path}: no such file or folder", path = path.display())]
    Missing {
        /// The path as given.
        path: PathBuf,
    },
    /// A file or folder that may not be read or written.
    #[error("{path}: no permission to {action} it", path = path.display())]
    Permission {
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
    },
    /// Any other failure of the operating system, a full disk among them.
    #[error("{path}: cannot {action} it: {source}", path = path.display())]
    Io {
        /// What was tried: `read`, `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A source without any text.
    #[error("{path}: there is no text in it{detail}", path = path.display())]
    Empty {
        /// The file or folder.
        path: PathBuf,
        /// What was found instead.
        detail: String,
    },
    /// A file that is not text.
    #[error("{path}: not a text file ({what} at byte {at})", path = path.display())]
    Binary {
        /// The file.
        path: PathBuf,
        /// `a zero byte` or `invalid UTF-8`.
        what: &'static str,
        /// Offset of the first wrong byte in the (decompressed) file.
        at: usize,
    },
    /// A file of a kind that holds text in no form that is read here.
    #[error("{path}: this is {what}", path = path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it is: `a tar archive`.
        what: &'static str,
        /// What to do with it.
        remedy: &'static str,
    },
    /// A file whose ending promises compressed text.
    #[error("{path}: {what}", path = path.display())]
    Packed {
        /// The file.
        path: PathBuf,
        /// What it holds instead, or besides.
        what: String,
        /// What to do with it.
        remedy: String,
    },
    /// A compressed file that ends early or is damaged.
    #[error("{path}: the {format} data is damaged or cut short ({source})", path = path.display())]
    Compressed {
        /// The file.
        path: PathBuf,
        /// `gzip` or `zstd`.
        format: &'static str,
        /// The decoder's reason.
        source: io::Error,
    },
    /// A record that is not JSON.
    #[error("{path}, line {line}: not valid JSON ({message})", path = path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Line in the (decompressed) file, from 1.
        line: usize,
        /// The parser's reason.
        message: String,
        /// Whether the text ended inside a value.
        truncated: bool,
    },
    /// A text that is no Unicode: half of a surrogate pair.
    #[error("{path}, line {line}: `{column}` holds half of a surrogate pair (\\ud800 to \\udfff), which is no character", path = path.display())]
    Surrogate {
        /// The file.
        path: PathBuf,
        /// Line in the (decompressed) file, from 1.
        line: usize,
        /// The field of the text.
        column: String,
    },
    /// A record without text.
    #[error("{path}, {place}: this record has no `{column}` field that is a string", path = path.display())]
    NoText {
        /// The file.
        path: PathBuf,
        /// `line 3`, in an array `record 3`, in a table `row 3 of row group 1`.
        place: String,
        /// The field that was looked for.
        column: String,
    },
    /// A conversation that cannot be read as one.
    #[error("{path}, {place}: {what}", path = path.display())]
    Conversation {
        /// The file.
        path: PathBuf,
        /// `line 3`, in an array `record 3`, in a table `row 3 of row group 1`.
        place: String,
        /// Why.
        what: String,
    },
    /// A source that changed while it was read.
    #[error("{path}: it changed while the text was prepared", path = path.display())]
    Changed {
        /// The file.
        path: PathBuf,
    },
    /// A document that is too large to be one.
    #[error("{path}: at byte {at} there is a document of more than 1 GiB", path = path.display())]
    TooLong {
        /// The file.
        path: PathBuf,
        /// Where that was noticed in the (decompressed) file.
        at: u64,
    },
    /// A table that cannot be read, or a part of it.
    #[error("{path}{place}: {what}", path = path.display())]
    Table {
        /// The file.
        path: PathBuf,
        /// `, row group 2, column text`, or nothing where it is the whole file.
        place: String,
        /// What is wrong.
        what: String,
        /// What to do about it.
        remedy: String,
    },
    /// A file or field that a source does not have.
    #[error("{source_name}: {what}")]
    Selection {
        /// The source.
        source_name: String,
        /// What was looked for, and what there is.
        what: String,
        /// What to write instead.
        remedy: String,
    },
    /// A failure of a hub.
    #[cfg(feature = "hub")]
    #[error(transparent)]
    Hub(Box<calm_hub::Error>),
    /// Too few documents for a held-out split.
    #[error("{path}: {documents} document(s) cannot be divided in a training and a held-out part", path = path.display())]
    TooSmall {
        /// The source.
        path: PathBuf,
        /// How many documents it has.
        documents: usize,
    },
    /// A manifest that cannot be used.
    #[error("{path}: not a usable manifest of crates: {message}", path = path.display())]
    Manifest {
        /// The manifest.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// Crates of the default corpus that are not on this machine.
    #[error("{count} crate(s) of the corpus are not on this machine: {list}", count = crates.len(), list = some_of(crates))]
    MissingCrates {
        /// Names with versions.
        crates: Vec<String>,
        /// The project folder.
        project: PathBuf,
        /// More that was found out on the way.
        note: String,
    },
    /// A crate whose files are not those of the manifest.
    #[error("{path}: {what} of crate {name} differ from the manifest (expected {expected}, found {found})", path = path.display())]
    CrateContent {
        /// Name and version.
        name: String,
        /// The crate's folder.
        path: PathBuf,
        /// Which property differs.
        what: &'static str,
        /// The manifest's value.
        expected: String,
        /// This machine's value.
        found: String,
    },
    /// A tokenizer file that cannot be used.
    #[error("{path}: not a usable tokenizer: {message}", path = path.display())]
    TokenizerFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
        /// What to give instead; empty where that is plain.
        remedy: String,
    },
    /// A failure inside a tokenizer.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A text that a tokenizer cannot encode.
    #[error("{}: {message}", tokenizer.as_ref().map_or("tokenizer".into(), |path| path.display().to_string()))]
    Encode {
        /// Its file, if it was read from one.
        tokenizer: Option<PathBuf>,
        /// What is wrong.
        message: String,
    },
    /// A tokenizer whose ids are not those of a model.
    #[error("tokenizer: it does not fit the model's vocabulary: {}", problems.join("; "))]
    Unfit {
        /// Everything that differs.
        problems: Vec<String>,
    },
    /// A vocabulary that cannot hold all bytes and the special tokens.
    #[error(
        "a vocabulary of {size} is too small: a byte-level tokenizer needs {smallest} (256 bytes, BOS, EOS, PAD) or more"
    )]
    Vocabulary {
        /// Asked for.
        size: usize,
        /// Needed.
        smallest: usize,
    },
    /// A token file that is not whole.
    #[error("{path}: not a usable token file: {message}", path = path.display())]
    TokenFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The folder of tokenizers and token files cannot be used.
    #[error("the cache {path} cannot be written: {reason}", path = path.display())]
    Cache {
        /// The folder.
        path: PathBuf,
        /// The system's reason.
        reason: String,
    },
    /// A layout of rows that cannot work.
    #[error("layout: {0}")]
    Layout(String),
    /// A configuration that cannot work.
    #[error("{key}: {what}")]
    Config {
        /// Path of the key.
        key: String,
        /// What is wrong with it.
        what: String,
        /// What to write instead.
        remedy: Option<String>,
    },
}

impl Error {
    /// An operating system's error with its file: missing and forbidden files become errors of their own.
    pub(crate) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::PermissionDenied => Self::Permission { action, path },
            _ => Self::Io { action, path, source },
        }
    }

    /// A failure of the operating system under the cache, as one of the cache.
    pub(crate) fn of_cache(self, cache: &Path) -> Self {
        let inside = |path: &Path| path.starts_with(cache);
        let reason = match &self {
            Self::Missing { path } if inside(path) => "no such file or folder".to_owned(),
            Self::Permission { path, .. } if inside(path) => "no permission".to_owned(),
            Self::Io { path, source, .. } if inside(path) => source.to_string(),
            _ => return self,
        };
        Self::Cache { path: cache.to_owned(), reason }
    }

    pub(crate) fn token_file(path: &Path, message: impl Into<String>) -> Self {
        Self::TokenFile { path: path.to_path_buf(), message: message.into() }
    }

    /// A tokenizer file with what is wrong and what to give instead (may be empty).
    pub(crate) fn tokenizer_file(path: &Path, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::TokenizerFile { path: path.to_path_buf(), message: message.into(), remedy: remedy.into() }
    }

    /// Whether this is about a single document of a source, and the ones behind it can be read.
    pub(crate) fn is_of_a_document(&self) -> bool {
        match self {
            Self::Json { .. } | Self::Surrogate { .. } | Self::NoText { .. } => true,
            Self::Conversation { .. } | Self::Binary { .. } => true,
            Self::Table { place, .. } => !place.is_empty(),
            _ => false,
        }
    }

    /// The first of these problems with the block `block` of a configuration.
    pub(crate) fn first_of(block: &str, problems: &Problems) -> Option<Self> {
        problems.iter().next().map(|problem| Self::Config {
            key: format!("{block}.{}", problem.path),
            what: problem.what.clone(),
            remedy: problem.remedy.clone(),
        })
    }

    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<String> {
        let fixed = match self {
            // Not a path that anybody typed.
            Self::Missing { path } if path.ends_with("datasets/crates.yaml") => {
                "the default corpus is the source text of the crates that this program is built from, which only a checkout \
                 has; train on a text of your own: `data.source: {path: FILE}`"
            }
            Self::Missing { .. } => "check the path (it is taken from the current folder)",
            Self::Permission { .. } => "change its permissions or choose another path",
            Self::Io { source, .. } => io_remedy(source)?,
            Self::Empty { .. } => {
                "give a text file, a folder of text files, or .json, .jsonl or .parquet records with a `text` field"
            }
            Self::Binary { .. } => {
                "it must be UTF-8: convert it (for example with iconv), or take it out of the source"
            }
            Self::Foreign { remedy, .. } => remedy,
            Self::Packed { remedy, .. } => remedy,
            Self::Compressed { .. } => "download or copy the file again",
            Self::Surrogate { .. } => {
                "write the file anew from text that was decoded without errors, or leave such records out with \
                 `data.on_bad_document: skip`"
            }
            Self::Json { truncated: false, .. } => {
                "each line must hold one object, or the file one array of objects; `data.on_bad_document: skip` leaves \
                 out what is none"
            }
            Self::Json { truncated: true, .. } => {
                "each line must hold one object, or the file one array of objects; the file seems to be cut short: \
                 download or copy it again; `data.on_bad_document: skip` leaves out what is none"
            }
            Self::Changed { .. } => "start again when nothing writes to it any more; nothing of it was kept",
            Self::NoText { .. } => {
                "every record needs one: name it with `data.column`, or `--column` beside `--data`, or leave such records \
                 out with `data.on_bad_document: skip`"
            }
            Self::Conversation { .. } => {
                "mend it, name the messages with `data.column`, or `--column` beside `--data`, or leave such records out \
                 with `data.on_bad_document: skip`"
            }
            Self::TooLong { .. } => "divide it, or write its documents as .jsonl or .parquet",
            Self::Table { remedy, .. } | Self::Selection { remedy, .. } => remedy,
            #[cfg(feature = "hub")]
            Self::Hub(error) => return error.remedy(),
            Self::TooSmall { .. } => "give more text, or a held-out file with `validation: { path: FILE }`",
            Self::Manifest { .. } => {
                "restore the file, or write it anew with `cargo run --release -p calm-data --example pin_crates`"
            }
            Self::MissingCrates { project, note, .. } => {
                let project = project.display();
                return Some(format!("run `cargo fetch` in {project} (it needs the network once){note}"));
            }
            Self::CrateContent { .. } => {
                "remove this folder and run `cargo fetch`, so that cargo unpacks it again"
            }
            Self::TokenizerFile { remedy, .. } if !remedy.is_empty() => remedy,
            Self::Encode { .. } => {
                "take such text out of the source, or give a tokenizer that has a token for every byte, as \
                 `tokenizer: { bpe: { vocab_size: ... } }` trains one"
            }
            Self::TokenFile { .. } => "delete it, it is made anew from the text",
            Self::Cache { .. } => {
                "tokenizers and token files are kept there: name a folder that can be written with --cache (or CALM_CACHE)"
            }
            Self::Config { remedy, .. } => remedy.as_deref()?,
            Self::TokenizerFile { .. }
            | Self::Tokenizer(_)
            | Self::Unfit { .. }
            | Self::Vocabulary { .. }
            | Self::Layout(_) => return None,
        };
        Some(fixed.to_owned())
    }

    /// Message and remedy in one text.
    #[cfg(test)]
    pub(crate) fn told(&self) -> String {
        self.remedy().map_or_else(|| self.to_string(), |remedy| format!("{self}; {remedy}"))
    }
}

fn io_remedy(source: &io::Error) -> Option<&'static str> {
    match source.kind() {
        io::ErrorKind::StorageFull => Some("free some space, or choose another folder"),
        io::ErrorKind::IsADirectory | io::ErrorKind::NotADirectory => Some("check the path"),
        _ => None,
    }
}

/// The first twenty names and how many more there are.
fn some_of(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown} and {} more", names.len() - SHOWN) } else { shown }
}

#[cfg(feature = "hub")]
impl From<calm_hub::Error> for Error {
    fn from(error: calm_hub::Error) -> Self {
        Self::Hub(Box::new(error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_of_missing_crates_is_shortened_but_counted() {
        let crates = (0..30).map(|i| format!("crate-{i} 1.0.0")).collect();
        let error = Error::MissingCrates { crates, project: "here".into(), note: String::new() }.told();
        assert!(
            error.starts_with("30 crate(s)") && error.contains("and 10 more; run `cargo fetch`"),
            "{error}"
        );
        assert!(error.contains("crate-19") && !error.contains("crate-20"), "{error}");
    }

    #[test]
    fn missing_and_forbidden_files_have_a_remedy() {
        let path = Path::new("x.txt");
        let missing = Error::io("read", path, io::Error::from(io::ErrorKind::NotFound)).told();
        assert!(missing.contains("x.txt") && missing.contains("check the path"), "{missing}");
        let forbidden = Error::io("read", path, io::Error::from(io::ErrorKind::PermissionDenied)).told();
        assert!(forbidden.contains("permission"), "{forbidden}");
        let full = Error::io("write", path, io::Error::from(io::ErrorKind::StorageFull)).told();
        assert!(full.contains("free some space"), "{full}");
    }
}
