//! What `calm bench` and `calm doctor` take.

use std::path::PathBuf;

use calm_bench::What;
use calm_nn::Precision;
use clap::{Args, ValueEnum};

use super::shared::{Format, whole};

/// `calm bench`
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// Measure a run's training and generation instead (one without weights with random ones).
    #[arg(short, long, value_name = "FOLDER", conflicts_with_all = ["size", "what"])]
    pub run: Option<PathBuf>,
    /// Which size is measured: small, small-v1024, medium, tiny; calm-m, calm-l, baseline-s (the paper's,
    /// for a GPU).
    #[arg(long, value_name = "NAME", default_value = "small")]
    pub size: String,
    /// What of it (default: all): matrix, operators, and the steps ae, lm, baseline, energy, attention, generate,
    /// brier_k1, brier_k2, brier_k4; exchange: what several processes sum.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub what: Vec<BenchItem>,
    /// Measure what so many processes on this machine exchange (needs a build with the feature `mpi`, and mpirun).
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub processes: Option<usize>,
    /// Number format of activations and products; bf16 needs a GPU. A run has its own.
    #[arg(long, value_name = "f32|bf16", default_value = "f32", conflicts_with = "run")]
    pub precision: PrecisionName,
    /// Seconds for each thing that is measured.
    #[arg(long, default_value_t = 2.0, value_parser = seconds)]
    pub seconds: f64,
    /// With --run: N of the batch sampler; 0: training only.
    #[arg(long, default_value_t = 200, requires = "run", value_parser = whole::<usize>)]
    pub draws: usize,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
    /// Where tokenizers and token files are kept.
    #[arg(long, value_name = "FOLDER", default_value = "runs/.cache", env = "CALM_CACHE")]
    pub cache: PathBuf,
}

/// `calm doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Seconds of measuring.
    #[arg(long, default_value_t = 4.0, value_parser = seconds)]
    pub seconds: f64,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
}

/// A span of time that ends.
fn seconds(text: &str) -> Result<f64, String> {
    let value = text.parse().unwrap_or(f64::NAN);
    if value > 0.0 && value <= 3600.0 { Ok(value) } else { Err("seconds above 0, at most 3600".into()) }
}

/// One item of `calm bench`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchItem {
    /// Matrix products and copying memory.
    Matrix,
    /// Each fused operator.
    Operators,
    /// A step.
    Work(What),
    /// What several processes sum.
    Exchange,
}

impl std::str::FromStr for BenchItem {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "matrix" => Ok(Self::Matrix),
            "operators" => Ok(Self::Operators),
            "exchange" => Ok(Self::Exchange),
            work => work
                .parse()
                .map(Self::Work)
                .map_err(|names| format!("matrix, operators, exchange, or {names}")),
        }
    }
}

/// Number formats that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrecisionName {
    /// 32 bits.
    F32,
    /// bfloat16, with parameters of 32 bits.
    Bf16,
}

impl From<PrecisionName> for Precision {
    fn from(name: PrecisionName) -> Self {
        match name {
            PrecisionName::F32 => Self::F32,
            PrecisionName::Bf16 => Self::Bf16,
        }
    }
}
