//! What `calm compress`, `calm decompress` and `calm eval compression` take.

use std::path::PathBuf;

use calm_lossless::Options;
use clap::Args;

use super::shared::{Format, RunSource, whole};

/// How a file is coded.
#[derive(Debug, Args)]
pub struct CodingArgs {
    /// Pieces that are read side by side: more are read faster, and a little longer (default: one for every 64 KiB, at
    /// most 16).
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub windows: Option<usize>,
    /// Tokens that are read again when the model's context is full (default: half of it).
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>)]
    pub overlap: Option<usize>,
    /// Latent vectors a chunk, of a CALM: more are slower and shorter (default: 32).
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub draws: Option<usize>,
}

impl CodingArgs {
    /// For the coder.
    pub fn options(&self) -> Options {
        Options { windows: self.windows, overlap: self.overlap, draws: self.draws }
    }
}

/// `calm compress`
#[derive(Debug, Args)]
pub struct CompressArgs {
    /// Any file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Where the result goes (default: FILE.calmz).
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    pub force: bool,
    /// The model.
    #[command(flatten)]
    pub source: RunSource,
    /// How it is coded.
    #[command(flatten)]
    pub coding: CodingArgs,
    /// What the result is printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
}

/// `calm decompress`
#[derive(Debug, Args)]
pub struct DecompressArgs {
    /// A file that `calm compress` wrote.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// Where the original goes (default: FILE without its ending .calmz).
    #[arg(short, long, value_name = "FILE")]
    pub out: Option<PathBuf>,
    /// Replace a file that is there.
    #[arg(long)]
    pub force: bool,
    /// The model that compressed it.
    #[command(flatten)]
    pub source: RunSource,
    /// What the result is printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
}

/// `calm eval compression`
#[derive(Debug, Args)]
pub struct CompressionArgs {
    /// Files to compress (default: the run's held-out documents, one after the other).
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,
    /// Bytes of each that are compressed, from its start.
    #[arg(long, value_name = "N", default_value = "1e6", value_parser = whole::<usize>)]
    pub bytes: usize,
    /// The model.
    #[command(flatten)]
    pub source: RunSource,
    /// How they are coded.
    #[command(flatten)]
    pub coding: CodingArgs,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
}
