//! What can be typed.

mod ablate;
mod attention;
mod compress;
mod data;
mod exchange;
mod guide;
mod invert;
mod measure;
mod prompts;
mod segments;
mod shared;
mod watch;

use std::path::PathBuf;

use calm_data::chat::LossOn;
use calm_kernels::device::Choice;
use calm_run::Stage;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};

pub use ablate::AblateArgs;
pub use attention::AttentionArgs;
pub use compress::{CompressArgs, CompressionArgs, DecompressArgs};
pub use data::{DataArgs, DataCommand, SampleArgs};
pub use exchange::{DtypeName, ExportArgs, ExportFormat, ImportArgs, PullArgs, PushArgs};
pub use guide::{DemoArgs, ExplainArgs, InitConfigArgs, ManArgs};
pub use invert::{InvertArgs, KeptName, LayerName, PassName, PolicyName};
pub use measure::{BenchArgs, BenchItem, DoctorArgs, PrecisionName};
pub use prompts::PromptsArgs;
pub use segments::{SegmentsArgs, TextKind};
use shared::whole;
pub use shared::{CheckpointName, ConfigSource, Count, DecodeName, Format, LossOnName, OtherText, RunSource};
pub use watch::{MetricsArgs, MetricsFormat, WatchArgs};

/// Train, measure and compare Continuous Autoregressive Language Models.
#[derive(Debug, Parser)]
#[command(name = "calm", disable_version_flag = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Print the version and the features compiled in.
    #[arg(short = 'V', long)]
    pub version: bool,
    /// Say less: results, warnings and errors only.
    #[arg(short, long, global = true)]
    pub quiet: bool,
    /// Threads to work with (default: all cores). Results do not depend on it.
    #[arg(long, global = true, value_name = "N", value_parser = whole::<usize>)]
    pub threads: Option<usize>,
    /// Where to compute: `auto` (a GPU if there is one that can be used, else the CPU), `cpu`, `cuda` or `cuda:N`.
    #[arg(long, global = true, value_name = "NAME", default_value_t, env = "CALM_DEVICE")]
    pub device: Choice,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a small model in two minutes, and show what it is made of.
    Demo(DemoArgs),
    /// Train a model from a configuration: data, tokenizer, stages, scores.
    Train(TrainArgs),
    /// Make a run with random weights, to try a size before training it.
    Init(InitArgs),
    /// Prepare, count, show and check the text of a configuration.
    #[command(subcommand)]
    Data(DataCommand),
    /// Score a trained model, or any model's samples.
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Train and compare a grid of models under an equal budget.
    Ablate(AblateArgs),
    /// Follow runs while they are trained: curves, pace, samples, in the terminal.
    Watch(WatchArgs),
    /// Write the metrics of runs as a table: CSV, Parquet, or for Trackio.
    Metrics(MetricsArgs),
    /// Compare trained runs, or an ablation as far as it is: an HTML page, CSV and JSON.
    Report(ReportArgs),
    /// Measure operators, training, scoring and generation on this machine.
    Bench(BenchArgs),
    /// Show what this machine computes with, how fast, and what stands in the way.
    Doctor(DoctorArgs),
    /// Write text with a trained model.
    Generate(GenerateArgs),
    /// Make any file short with a trained model, so that `calm decompress` gives it back to the bit.
    Compress(CompressArgs),
    /// Give back a file that `calm compress` made short, with the same model, on any machine.
    Decompress(DecompressArgs),
    /// Check a configuration and print it with all defaults, or explain a key.
    Config(ConfigArgs),
    /// Write a configuration with all settings, each with its explanation.
    InitConfig(InitConfigArgs),
    /// Print a page of the book.
    Explain(ExplainArgs),
    /// Write posterior latents of held-out text as a NumPy file.
    Latents(LatentsArgs),
    /// Find text behind the hidden states of a model, or latent vectors, and say how far they give it away.
    Invert(InvertArgs),
    /// Make a run of a checkpoint of the reference implementation (or a Llama baseline).
    Import(ImportArgs),
    /// Write a run as a checkpoint of the reference implementation.
    Export(ExportArgs),
    /// Fetch a model from a Hugging Face hub as a run.
    Pull(PullArgs),
    /// Send a run to a Hugging Face hub, with a model card written from its record.
    Push(PushArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages.
    Man(ManArgs),
}

/// `calm train`
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration.
    #[command(flatten)]
    pub source: ConfigSource,
    /// The run's folder (default: runs/<config name>).
    #[arg(short, long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Train one stage alone.
    #[arg(long, value_parser = stage())]
    pub stage: Option<Stage>,
    /// Continue an unfinished run.
    #[arg(long, conflicts_with = "restart")]
    pub resume: bool,
    /// Throw away what the folder holds and begin anew.
    #[arg(long)]
    pub restart: bool,
    /// Start from the weights of another run (fine-tuning).
    #[arg(long, value_name = "RUN")]
    pub init_from: Option<PathBuf>,
    /// Take the finished autoencoder of another run instead of training one.
    #[arg(long, value_name = "RUN")]
    pub autoencoder: Option<PathBuf>,
    /// Print the plan and stop.
    #[arg(long)]
    pub dry_run: bool,
    /// With --dry-run: plan for a GPU with so much memory instead of this machine, e.g. `80GB`.
    #[arg(long, value_name = "SIZE", requires = "dry_run", value_parser = bytes)]
    pub memory: Option<f64>,
    /// GPUs that a plan is made for.
    #[command(flatten)]
    pub cluster: ClusterArgs,
    /// Share the training out over so many processes on this machine (needs a build with the feature `mpi`, and mpirun).
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub processes: Option<usize>,
    /// Train only: no scores at the end (`calm eval` gives them later).
    #[arg(long)]
    pub skip_scores: bool,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
    /// Where tokenizers and token files are kept.
    #[arg(long, value_name = "FOLDER", default_value = "runs/.cache", env = "CALM_CACHE")]
    pub cache: PathBuf,
}

/// Many GPUs that `calm train --dry-run` plans for.
#[derive(Debug, Args)]
pub struct ClusterArgs {
    /// With --dry-run and --memory: plan for so many GPUs.
    #[arg(long, value_name = "GPUS", requires_all = ["dry_run", "memory", "rate"], value_parser = whole::<usize>)]
    pub world: Option<usize>,
    /// With --world: what one GPU reaches in a training step, FLOP/s, e.g. `380T` (CALM-M in bf16 on an H200).
    #[arg(long, value_name = "FLOP/S", requires = "world", value_parser = rate)]
    pub rate: Option<f64>,
    /// With --world: GPUs in a node.
    #[arg(long, value_name = "N", default_value = "8", value_parser = whole::<usize>)]
    pub gpus_per_node: usize,
    /// With --world: what a GPU sends to other nodes in a second, in bits (`400Gb`) or bytes (`50GB`).
    #[arg(long, value_name = "SPEED", default_value = "400Gb", value_parser = speed)]
    pub link: f64,
    /// With --world: the same within a node.
    #[arg(long, value_name = "SPEED", default_value = "450GB", value_parser = speed)]
    pub node_link: f64,
}

/// `calm report`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// An ablation's folder, or the folders of finished runs (the first is what the others are compared with).
    #[arg(value_name = "FOLDER", required = true)]
    pub folders: Vec<PathBuf>,
    /// Where report.html, report.csv and study.json go (default: the ablation's folder; runs: runs/report).
    #[arg(short, long, value_name = "FOLDER")]
    pub out: Option<PathBuf>,
    /// Write each plot (SVG, CSV) and each table (CSV, LaTeX) as a file too, into the folder `report-files` there.
    #[arg(long)]
    pub files: bool,
    /// Show the page at http://127.0.0.1:PORT, and anew when something has come of the runs, until Ctrl-C.
    #[arg(long, value_name = "PORT", num_args = 0..=1, require_equals = true, default_missing_value = "8722", conflicts_with = "format")]
    pub serve: Option<u16>,
    /// What is printed.
    #[arg(long, default_value = "table")]
    pub format: Format,
    /// Where tokenizers and token files are kept.
    #[arg(long, value_name = "FOLDER", default_value = "runs/.cache", env = "CALM_CACHE")]
    pub cache: PathBuf,
}

/// A size in decimal or binary units: `80GB`, `79.6GiB`.
fn bytes(text: &str) -> Result<f64, String> {
    const UNITS: [(&str, f64); 6] =
        [("KIB", 1024.0), ("MIB", 1048576.0), ("GIB", 1073741824.0), ("KB", 1e3), ("MB", 1e6), ("GB", 1e9)];
    let upper = text.to_uppercase();
    let unit = UNITS.iter().find_map(|(unit, scale)| Some((upper.strip_suffix(unit)?, *scale)));
    let size = unit.and_then(|(number, scale)| Some(number.trim().parse::<f64>().ok()? * scale));
    size.filter(|s| *s > 0.0 && s.is_finite())
        .ok_or_else(|| "a number and a unit, such as 80GB or 24GiB".into())
}

/// Bytes a second, of bits or bytes.
fn speed(text: &str) -> Result<f64, String> {
    let units =
        [("Gb", 1e9 / 8.0), ("Tb", 1e12 / 8.0), ("Mb", 1e6 / 8.0), ("GB", 1e9), ("TB", 1e12), ("MB", 1e6)];
    quantity(text, &units)
        .ok_or_else(|| "a number and a unit, such as 400Gb (bits) or 50GB (bytes) a second".into())
}

/// FLOP/s.
fn rate(text: &str) -> Result<f64, String> {
    let units = [("T", 1e12), ("P", 1e15), ("G", 1e9)];
    quantity(text, &units).ok_or_else(|| "a number and a unit, such as 380T".into())
}

/// A positive number with one of these units.
fn quantity(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let (number, scale) = units.iter().find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)))?;
    Some(number.trim().parse::<f64>().ok()? * scale).filter(|q| *q > 0.0 && q.is_finite())
}

/// `calm init`
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The configuration.
    #[command(flatten)]
    pub source: ConfigSource,
    /// The run's folder, new or empty.
    #[arg(short, long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// Where tokenizers and token files are kept.
    #[arg(long, value_name = "FOLDER", default_value = "runs/.cache", env = "CALM_CACHE")]
    pub cache: PathBuf,
}

/// A stage by its name; the help names each.
fn stage() -> impl TypedValueParser<Value = Stage> {
    let described = |stage: Stage| {
        PossibleValue::new(stage.name()).help(match stage {
            Stage::Autoencoder => "Stage 1",
            Stage::Lm => "Stage 2",
        })
    };
    PossibleValuesParser::new(Stage::ALL.map(described)).try_map(|name| name.parse())
}

/// `calm eval`
#[derive(Debug, Subcommand)]
pub enum EvalCommand {
    /// BrierLM on held-out documents, beside n-gram models.
    Brierlm(BrierArgs),
    /// How well the autoencoder rebuilds held-out text, and how much noise it stands.
    Autoencoder(ReconstructArgs),
    /// Effective rank of the attention matrices by layer, with and without the rotary turns of queries and keys.
    Attention(AttentionArgs),
    /// How a model with segments of its own cuts text: tokens a segment by kind of text, and the loss by place.
    Segments(SegmentsArgs),
    /// Bits a byte as a lossless compressor, beside xz, zstd, brotli and counts of bytes.
    Compression(CompressionArgs),
}

/// Which text is scored.
#[derive(Debug, Args)]
pub struct TextSource {
    /// Score this text instead of the run's held-out documents: a file or folder, a data set of `datasets/` by its name,
    /// or any source as in a configuration, e.g. `{hub: {dataset: OWNER/NAME, split: test}}`.
    #[arg(long, value_name = "FILE|NAME|{SOURCE}")]
    pub data: Option<PathBuf>,
    /// With --data: the field of its records or the column of its tables that holds the text (default: `text`).
    #[arg(long, value_name = "NAME", requires = "data")]
    pub column: Option<String>,
    /// Documents to score (default: as the run's configuration says).
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub documents: Option<usize>,
    /// Chunks to score per document, from its start; `all` for whole documents.
    #[arg(long, value_name = "N|all")]
    pub chunks: Option<Count>,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
}

impl TextSource {
    /// The text that is named, if one is.
    pub fn other(&self) -> Option<OtherText<'_>> {
        let (column, documents) = (self.column.as_deref(), self.documents);
        self.data.as_deref().map(|data| OtherText { data, column, documents, loss_on: None })
    }
}

/// `calm eval brierlm`
#[derive(Debug, Args)]
pub struct BrierArgs {
    /// With --data: what of it counts (default: as in the run). `all` scores a run that learned answers on any text,
    /// if its attention is causal.
    #[arg(long, value_name = "all|answers", requires = "data")]
    pub loss_on: Option<LossOnName>,
    /// The run.
    #[command(flatten)]
    pub source: RunSource,
    /// The text.
    #[command(flatten)]
    pub text: TextSource,
    /// Score drawn samples of any model from a JSON-lines file; no run is needed.
    #[arg(long, value_name = "FILE.jsonl", conflicts_with_all = ["run", "data", "documents", "chunks"])]
    pub samples: Option<PathBuf>,
    /// With --samples: the end-of-text token; whatever follows it in a sample does not count.
    #[arg(long, value_name = "TOKEN", requires = "samples")]
    pub eos: Option<String>,
    /// Draws per position (all pairs are used).
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub draws: Option<usize>,
    /// Draws per position for the bound on a CALM's cross-entropy (0: none; default: as the run's configuration says).
    #[arg(long, value_name = "N", value_parser = whole::<usize>, conflicts_with = "samples")]
    pub bound_draws: Option<usize>,
    /// How a CALM's latent vectors become tokens (default: as the run's configuration says).
    #[arg(long, conflicts_with = "samples")]
    pub decode: Option<DecodeName>,
    /// Where the model is scored.
    #[command(flatten)]
    pub protocol: ProtocolArgs,
}

impl BrierArgs {
    /// The text that is named, if one is, and what of it counts.
    pub fn other(&self) -> Option<OtherText<'_>> {
        let loss_on = self.loss_on.map(LossOn::from);
        self.text.other().map(|other| OtherText { loss_on, ..other })
    }
}

/// Where a model is scored (default: aligned with the run's own chunks and context).
#[derive(Debug, Args)]
pub struct ProtocolArgs {
    /// Which positions are scored.
    #[arg(long, conflicts_with_all = ["samples", "task"])]
    pub protocol: Option<ProtocolName>,
    /// Aligned: tokens between positions, a multiple of every K compared (default: K).
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>, conflicts_with_all = ["samples", "task"])]
    pub every: Option<usize>,
    /// Most tokens a window or block has (default: the run's context; never more).
    #[arg(long, value_name = "TOKENS", value_parser = whole::<usize>, conflicts_with = "samples")]
    pub context: Option<usize>,
    /// Aligned: tokens to score per document, from its start; `all` for whole documents.
    #[arg(long, value_name = "N|all", conflicts_with_all = ["samples", "chunks"])]
    pub tokens: Option<Count>,
    /// Reference: every document begins with BOS, as with a tokenizer that adds it to every text.
    #[arg(long, conflicts_with_all = ["samples", "task"])]
    pub document_bos: bool,
    /// A named task or its manifest: both protocols on the task's own text, given with --data.
    #[arg(long, value_name = "NAME|FILE", requires = "data", conflicts_with = "samples")]
    pub task: Option<String>,
}

/// Protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProtocolName {
    /// The same tokens with the same left context for every K and for baselines.
    Aligned,
    /// As the reference implementation: joined documents in blocks.
    Reference,
}

/// `calm eval autoencoder`
#[derive(Debug, Args)]
pub struct ReconstructArgs {
    /// The run.
    #[command(flatten)]
    pub source: RunSource,
    /// The text.
    #[command(flatten)]
    pub text: TextSource,
}

/// `calm generate`
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The run.
    #[command(flatten)]
    pub source: RunSource,
    /// Text to continue, of any length; `-` reads it from standard input.
    #[arg(short, long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// Many prompts.
    #[command(flatten)]
    pub many: PromptsArgs,
    /// Converse, with a run that was trained on conversations: a line is what you say, the answer follows.
    #[arg(long, conflicts_with_all = ["prompt", "prompts"])]
    pub chat: bool,
    /// What the system says at the beginning of a conversation.
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub system: Option<String>,
    /// How a CALM's latent vectors become tokens (default: as the run's configuration says).
    #[arg(long)]
    pub decode: Option<DecodeName>,
    /// Temperature: in (0, 1] for a CALM, which samples by drawing; from 0 to 10 for a baseline, by its probabilities,
    /// and for a CALM whose decoder is sampled.
    #[arg(short, long, default_value_t = 1.0)]
    pub temperature: f64,
    /// How a CALM reaches a temperature below 1 (default: batch).
    #[arg(long)]
    pub sampler: Option<SamplerName>,
    /// Draws per chunk of the batch sampler; the most per chunk of the exact one.
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub draws: Option<usize>,
    /// Exact sampler: when the budget is spent, take a biased draw instead of stopping.
    #[arg(long)]
    pub fallback: bool,
    /// Where tokens are drawn from probabilities: keep the most probable ones up to this mass.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// Most tokens after the prompt.
    #[arg(short = 'n', long, default_value_t = 256, value_parser = whole::<usize>)]
    pub max_tokens: usize,
    /// Seed of the draws.
    #[arg(long, default_value_t = 1, value_parser = whole::<u64>)]
    pub seed: u64,
}

/// Temperature samplers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SamplerName {
    /// Approximation from a pool of draws, for T = 1/n.
    Batch,
    /// Exact at any T, with a budget of draws.
    Exact,
}

/// `calm config`
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// A YAML file, or the name of a shipped configuration.
    #[arg(value_name = "FILE|NAME", required_unless_present_any = ["schema", "list", "explain"])]
    pub config: Option<String>,
    /// Change one setting (may be repeated).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print the JSON schema of configurations, for editors.
    #[arg(long)]
    pub schema: bool,
    /// List the shipped configurations.
    #[arg(long)]
    pub list: bool,
    /// Say what a key means, which values it takes and its default, e.g. `train.lm.recompute`.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["config", "overrides", "schema", "list"])]
    pub explain: Option<String>,
}

/// `calm latents`
#[derive(Debug, Args)]
pub struct LatentsArgs {
    /// The run.
    #[command(flatten)]
    pub source: RunSource,
    /// The file to write: float32 `[chunks, 2, L]`, mean and log std.
    #[arg(short, long, value_name = "FILE.npy")]
    pub out: PathBuf,
    /// Encode this text instead of the run's held-out documents: a file, a folder, or what `calm eval --data` takes.
    #[arg(long, value_name = "FILE|NAME|{SOURCE}")]
    pub data: Option<PathBuf>,
    /// With --data: the field of its records or the column of its tables that holds the text.
    #[arg(long, value_name = "NAME", requires = "data")]
    pub column: Option<String>,
    /// Documents to encode (default: all).
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub documents: Option<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_their_units() {
        assert_eq!([bytes("80GB"), bytes("80 gb"), bytes("1.5MiB")], [Ok(80e9), Ok(80e9), Ok(1_572_864.0)]);
        for wrong in ["80", "GB", "-1GB", "nanGB", "80TB"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn whole_numbers_may_have_an_exponent() {
        assert_eq!(["7", "1e3", "2.0", "0"].map(whole::<usize>), [Ok(7), Ok(1000), Ok(2), Ok(0)]);
        assert_eq!(whole("18446744073709551615"), Ok(u64::MAX));
        for wrong in ["1.5", "-1", "1e30", "nan", "", "many"] {
            assert!(whole::<usize>(wrong).is_err(), "{wrong}");
        }
        assert_eq!("1e2".parse(), Ok(Count(Some(100))));
    }

    #[test]
    fn speeds_are_of_bits_or_bytes() {
        assert_eq!(["400Gb", "50GB", "0.4 Tb"].map(speed), [Ok(50e9), Ok(50e9), Ok(50e9)]);
        assert_eq!(rate("380T"), Ok(380e12));
        for wrong in ["400", "400gb", "-1GB", "GB", "0GB"] {
            assert!(speed(wrong).is_err(), "{wrong}");
        }
        let all =
            ["calm", "train", "-c", "k4", "--dry-run", "--memory", "80GB", "--world", "64", "--rate", "380T"];
        assert!(Cli::try_parse_from(all).is_ok());
        assert!(Cli::try_parse_from(&all[..9]).is_err(), "a plan of many GPUs needs the rate of one");
    }

    #[test]
    fn every_command_takes_a_device() {
        for name in ["cpu", "cuda:1"] {
            let cli = Cli::try_parse_from(["calm", "generate", "--device", name]).unwrap();
            assert_eq!(cli.device.to_string(), name);
        }
        assert!(Cli::try_parse_from(["calm", "--device", "gpu", "generate"]).is_err());
    }
}
