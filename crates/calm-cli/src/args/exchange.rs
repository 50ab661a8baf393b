//! What `calm import` and `calm export` take.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::shared::RunSource;

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
