//! What `calm ablate` takes.

use std::path::PathBuf;

use calm_kernels::device::Choice;
use clap::Args;

use super::shared::{Format, whole};

/// `calm ablate`
#[derive(Debug, Args)]
pub struct AblateArgs {
    /// An ablation's YAML file, or the name of a shipped one (`ablate-k`).
    #[arg(short, long, value_name = "FILE|NAME", required_unless_present = "job")]
    pub config: Option<String>,
    /// Change one setting of the ablation's file, e.g. `--set 'seeds=[1]'` (may be repeated).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Train and compare on this text instead of the configured one.
    #[arg(long, value_name = "FILE|FOLDER")]
    pub data: Option<PathBuf>,
    /// The ablation's folder (default: runs/<config name>). One that is there is continued.
    #[arg(short, long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Train so many runs at a time; the cores are divided among them, or --threads says how many each has.
    #[arg(long, value_name = "N", value_parser = whole::<usize>, conflicts_with = "devices")]
    pub processes: Option<usize>,
    /// Train on all of these at a time, one run on each, e.g. `cuda:0,cuda:1`; the first one scores and measures.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub devices: Vec<Choice>,
    /// Prepare everything, then print the runs that are left to train as a script for `sbatch` or `bash`, and stop.
    #[arg(long, conflicts_with_all = ["processes", "devices", "dry_run"])]
    pub print_jobs: bool,
    /// Train one run of the ablation in --out and nothing else, as a script of --print-jobs does.
    #[arg(long, value_name = "RUN", requires = "out",
        conflicts_with_all = ["config", "overrides", "data", "processes", "devices", "print_jobs", "dry_run"])]
    pub job: Option<String>,
    /// Print the plan and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
    /// Where tokenizers and token files are kept.
    #[arg(long, value_name = "FOLDER", default_value = "runs/.cache", env = "CALM_CACHE")]
    pub cache: PathBuf,
}
