//! What the commands take that follow runs and hand their numbers on.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// `calm watch`
#[derive(Debug, Args)]
pub struct WatchArgs {
    /// Runs, or ablations (default: what is worked on in runs/, else the latest).
    #[arg(value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,
    /// Seconds between two looks at the folders.
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, value_parser = seconds)]
    pub every: f64,
    /// Print a table and end, as where the output is no terminal.
    #[arg(long)]
    pub once: bool,
}

/// `calm metrics`
#[derive(Debug, Args)]
pub struct MetricsArgs {
    /// Runs, or ablations (default: the latest in runs/).
    #[arg(value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,
    /// What is written.
    #[arg(long, value_name = "FORMAT", default_value = "csv")]
    pub to: MetricsFormat,
    /// The file to write, for trackio a folder (default, for CSV: the standard output).
    #[arg(short, long, value_name = "FILE|FOLDER", required_if_eq_any = [("to", "parquet"), ("to", "trackio")])]
    pub out: Option<PathBuf>,
}

/// Forms of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MetricsFormat {
    /// One table: run, stage, step, seconds since 1970, and a column for each value.
    Csv,
    /// The same table as Parquet, for notebooks.
    Parquet,
    /// One CSV file a run for Trackio or W&B: step, timestamp, stage/value.
    Trackio,
}

/// A time that can be waited for.
fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(s) if (0.1..=3600.0).contains(&s) => Ok(s),
        _ => Err("seconds from 0.1 to 3600".into()),
    }
}
