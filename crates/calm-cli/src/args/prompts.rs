//! `calm generate --prompts`.

use std::path::PathBuf;

use clap::Args;

use super::shared::whole;

/// Many prompts.
#[derive(Debug, Args)]
pub struct PromptsArgs {
    /// Continue each prompt of a JSON-lines file (plain, gz or zst), several at a time; `-` reads standard input.
    #[arg(long, value_name = "FILE.jsonl", conflicts_with = "prompt")]
    pub prompts: Option<PathBuf>,
    /// With --prompts: where the answers go, in the order of the prompts; a file that a stopped call left is continued.
    /// `-` is standard output.
    #[arg(long, value_name = "FILE.jsonl", requires = "prompts", default_value = "-")]
    pub out: PathBuf,
    /// With --prompts: prompts that are continued side by side. Texts do not depend on it (on a GPU but for rounding).
    #[arg(long, value_name = "N", requires = "prompts", default_value_t = 32, value_parser = whole::<usize>)]
    pub batch: usize,
    /// With --prompts: the field of a record that holds its prompt (default: `prompt`, or `text` where that is missing).
    #[arg(long, value_name = "NAME", requires = "prompts")]
    pub field: Option<String>,
}
