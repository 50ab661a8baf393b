//! What several commands take.

use std::path::{Path, PathBuf};

use calm_data::chat::LossOn;
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

/// Another text that a command names.
pub struct OtherText<'a> {
    /// A file, a folder, the name of a data set, or a source as in a configuration.
    pub data: &'a Path,
    /// The field or column of the text.
    pub column: Option<&'a str>,
    /// Documents that are looked at, where not all are.
    pub documents: Option<usize>,
    /// What of it counts, if not what counts in the run's own text.
    pub loss_on: Option<LossOn>,
}

/// What scores are taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LossOnName {
    /// All text.
    All,
    /// What the assistant says in conversations.
    Answers,
}

impl From<LossOnName> for LossOn {
    fn from(name: LossOnName) -> Self {
        match name {
            LossOnName::All => Self::All,
            LossOnName::Answers => Self::Answers,
        }
    }
}

/// How a CALM's latent vectors become tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DecodeName {
    /// The decoder's most probable tokens.
    Argmax,
    /// Drawn from the decoder's softmax.
    Sample,
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

/// A whole number, also as `1e3`: settings are read that way too.
pub(super) fn whole<N: TryFrom<u64>>(text: &str) -> Result<N, String> {
    let number = text.parse::<u64>().ok().or_else(|| {
        let value = text.parse::<f64>().ok()?;
        // Up to here every whole number has a float of its own.
        (value.fract() == 0.0 && (0.0..=MOST_EXACT).contains(&value)).then_some(value as u64)
    });
    number.and_then(|n| n.try_into().ok()).ok_or_else(|| "a whole number".into())
}

/// 2^53.
const MOST_EXACT: f64 = 9_007_199_254_740_992.0;

/// A number or `all`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub Option<usize>);

impl std::str::FromStr for Count {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        if s == "all" {
            return Ok(Self(None));
        }
        match whole(s) {
            Ok(n) if n > 0 => Ok(Self(Some(n))),
            _ => Err("a number above 0, or `all`".into()),
        }
    }
}
