//! What several commands take.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Which configuration.
#[derive(Debug, Args)]
pub struct ConfigSource {
    /// A YAML file, or the name of a shipped configuration (see `calm config --list`).
    #[arg(short, long, value_name = "FILE|NAME")]
    pub config: String,
    /// Change one setting, e.g. `--set train.lm.steps=100` (may be repeated).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For programs.
    Json,
}

/// Which run, and which of its checkpoints.
#[derive(Debug, Args)]
pub struct RunSource {
    /// A run's folder (default: the latest in runs/).
    #[arg(short, long, value_name = "FOLDER")]
    pub run: Option<PathBuf>,
    /// Which checkpoint.
    #[arg(long, default_value = "best")]
    pub checkpoint: CheckpointName,
    /// Where tokenizers and token files are kept.
    #[arg(long, value_name = "FOLDER", default_value = "runs/.cache", env = "CALM_CACHE")]
    pub cache: PathBuf,
}

/// Checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CheckpointName {
    /// Lowest validation loss.
    Best,
    /// The last.
    Latest,
}
