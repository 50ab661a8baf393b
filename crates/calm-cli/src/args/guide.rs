//! What the commands take that show and explain things.

use std::path::PathBuf;

use clap::Args;

/// `calm demo`
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// The run's folder. A demonstration that was stopped goes on there; one that is finished is shown again.
    #[arg(short, long, value_name = "FOLDER", default_value = "runs/demo")]
    pub out: PathBuf,
    /// Change one setting, e.g. `--set 'data.source={path: my.txt}'` (may be repeated).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Where tokenizers and token files are kept.
    #[arg(long, value_name = "FOLDER", default_value = "runs/.cache", env = "CALM_CACHE")]
    pub cache: PathBuf,
}

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
