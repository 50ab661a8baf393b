//! What `calm eval attention` takes.

use clap::Args;

use super::shared::{Format, RunSource, whole};

/// `calm eval attention`
#[derive(Debug, Args)]
pub struct AttentionArgs {
    /// The run.
    #[command(flatten)]
    pub source: RunSource,
    /// Windows of held-out text to look at: each fills a row, and none is of the same document as another.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = whole::<usize>)]
    pub windows: usize,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
}
