//! What `calm import`, `calm export`, `calm pull` and `calm push` take.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::shared::{CheckpointName, RunSource};

/// `calm import`
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The published folder: config.json with model.safetensors or pytorch_model.bin (whole or in shards).
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// The run's folder, new or empty.
    #[arg(short, long, value_name = "RUN")]
    pub out: PathBuf,
    /// The model's tokenizer (default: tokenizer.json in the folder).
    #[arg(long, value_name = "tokenizer.json", conflicts_with = "llama3")]
    pub tokenizer: Option<PathBuf>,
    /// The Llama-3 tokenizer from its BPE ranks, and the tokenizer_config.json with its special tokens.
    #[arg(long, value_name = "RANKS[,CONFIG]")]
    pub llama3: Option<String>,
    /// Folder of a language model's autoencoder (default: as its ae_path says, or from its own weights).
    #[arg(long, value_name = "FOLDER")]
    pub autoencoder: Option<PathBuf>,
    /// Text for evaluation and further training (default: the default corpus).
    #[arg(long, value_name = "FILE|FOLDER")]
    pub data: Option<PathBuf>,
}

/// `calm export`
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run.
    #[command(flatten)]
    pub source: RunSource,
    /// The folder to write, new or empty.
    #[arg(short, long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Weight files.
    #[arg(long, default_value = "safetensors")]
    pub format: ExportFormat,
    /// Number format of the weights.
    #[arg(long, default_value = "recorded")]
    pub dtype: DtypeName,
}

/// `calm pull`
#[derive(Debug, Args)]
pub struct PullArgs {
    /// The model, as in the address of its page.
    #[arg(value_name = "OWNER/NAME")]
    pub name: String,
    /// A branch, a tag or a commit.
    #[arg(long, value_name = "NAME", default_value = "main")]
    pub revision: String,
    /// The run's folder, new or empty (default: runs/NAME).
    #[arg(short, long, value_name = "RUN")]
    pub out: Option<PathBuf>,
    /// The model's tokenizer (default: the tokenizer.json beside it).
    #[arg(long, value_name = "tokenizer.json", conflicts_with = "llama3")]
    pub tokenizer: Option<PathBuf>,
    /// The Llama-3 tokenizer from its BPE ranks, and the tokenizer_config.json with its special tokens.
    #[arg(long, value_name = "RANKS[,CONFIG]")]
    pub llama3: Option<String>,
    /// A language model's autoencoder, here or at the hub (default: as its ae_path says, or from its own weights).
    #[arg(long, value_name = "FOLDER|OWNER/NAME")]
    pub autoencoder: Option<String>,
    /// Text for evaluation and further training (default: the text that it was trained on, or the default corpus).
    #[arg(long, value_name = "FILE|FOLDER")]
    pub data: Option<PathBuf>,
}

/// `calm push`
#[derive(Debug, Args)]
pub struct PushArgs {
    /// The run.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// The model at the hub; it is made if it is not there.
    #[arg(value_name = "OWNER/NAME")]
    pub name: String,
    /// Which checkpoint.
    #[arg(long, default_value = "best")]
    pub checkpoint: CheckpointName,
    /// Number format of the weights.
    #[arg(long, default_value = "recorded")]
    pub dtype: DtypeName,
    /// A model that is made can be seen by everybody (default: by its owner alone).
    #[arg(long)]
    pub public: bool,
    /// Replace the files of a model that is there.
    #[arg(long)]
    pub replace: bool,
    /// The licence that the model card names, as the hub calls it: `mit`, `apache-2.0`.
    #[arg(long, value_name = "NAME")]
    pub license: Option<String>,
    /// First line of the commit.
    #[arg(short, long, value_name = "TEXT", default_value = "Pushed with calm")]
    pub message: String,
    /// Print the model card and the files, and send nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Where the files lie until they are sent.
    #[arg(long, value_name = "FOLDER", default_value = "runs/.cache", env = "CALM_CACHE")]
    pub cache: PathBuf,
}

/// Weight files that can be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// model.safetensors.
    Safetensors,
}

/// Number formats of exported weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DtypeName {
    /// As each tensor was imported; 32 bits in a model that was trained here.
    Recorded,
    /// 32 bits.
    F32,
    /// bfloat16.
    Bf16,
    /// float16.
    F16,
}
