//! What the commands that explain things take.

use std::path::PathBuf;

use clap::Args;

/// `calm explain`
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// A page of the book, e.g. `glossary`; none: the list of them.
    #[arg(value_name = "TOPIC")]
    pub topic: Option<String>,
}

/// `calm init-config`
#[derive(Debug, Args)]
pub struct InitConfigArgs {
    /// What to begin with: a YAML file, or the name of a shipped configuration.
    #[arg(value_name = "FILE|NAME", default_value = "k4")]
    pub config: String,
    /// Change one setting, e.g. `--set 'data.source={path: my.txt}'` (may be repeated).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// The file to write; its schema for editors is put beside it.
    #[arg(short, long, value_name = "FILE", default_value = "calm.yaml")]
    pub out: PathBuf,
}

/// `calm man`
#[derive(Debug, Args)]
pub struct ManArgs {
    /// Where the pages go, one a command; the folder is made if it is not there.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}
