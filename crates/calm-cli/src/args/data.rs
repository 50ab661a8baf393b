//! What `calm data` takes.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::shared::{ConfigSource, Format, whole};

/// `calm data`
#[derive(Debug, Subcommand)]
pub enum DataCommand {
    /// Read, divide and tokenise the text of a configuration, which `calm train` would do by itself.
    Prepare(DataArgs),
    /// What the text is: documents, tokens, duplicates, what the tokenizer does not know.
    Info(DataArgs),
    /// Rows as the model sees them: `|` between chunks, `[` and `]` around each piece of a document, `▸` before a chunk that
    /// counts where not all do.
    Sample(SampleArgs),
    /// Read everything again and compare it with its hashes; look for held-out text in the training text.
    Check(DataArgs),
}

/// Which text.
#[derive(Debug, Args)]
pub struct DataArgs {
    /// The configuration.
    #[command(flatten)]
    pub source: ConfigSource,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
    /// Where tokenizers and token files are kept.
    #[arg(long, value_name = "FOLDER", default_value = "runs/.cache", env = "CALM_CACHE")]
    pub cache: PathBuf,
}

/// `calm data sample`
#[derive(Debug, Args)]
pub struct SampleArgs {
    /// The text.
    #[command(flatten)]
    pub data: DataArgs,
    /// Rows to show.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 4, value_parser = whole::<usize>)]
    pub rows: usize,
    /// Of which step of the language model's training, from 0.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = whole::<u64>)]
    pub step: u64,
}
