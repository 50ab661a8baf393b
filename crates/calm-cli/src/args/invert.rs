//! What `calm invert` takes.

use std::path::PathBuf;

use calm_eval::invert::kept::Kept;
use calm_eval::invert::policy::Policy;
use calm_eval::invert::trial::Pass;
use clap::{Args, ValueEnum};

use super::shared::{Format, OtherText, RunSource, whole};

/// `calm invert`
#[derive(Debug, Args)]
pub struct InvertArgs {
    /// The run.
    #[command(flatten)]
    pub source: RunSource,
    /// Find this text behind its own states (may be repeated; default: parts of held-out documents).
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["states", "collisions"])]
    pub prompt: Vec<String>,
    /// Find the text behind the states in this file: float32 `[positions, D]`, from the first position of a document on.
    #[arg(long, value_name = "FILE.npy", conflicts_with_all = ["collisions", "noise", "pass", "seed"])]
    pub states: Option<PathBuf>,
    /// Write the states of the one --prompt, as they were kept, instead of searching.
    #[arg(long, value_name = "FILE.npy", requires = "prompt", conflicts_with_all = ["states", "policy", "radius_positions"])]
    pub save_states: Option<PathBuf>,
    /// Search the smallest distance between the last states of many prompts instead.
    #[arg(long, conflicts_with_all = ["policy", "kept", "noise", "pass", "radius_positions", "seed"])]
    pub collisions: bool,
    /// Prompts from held-out documents (default: 20; with --collisions 100000).
    #[arg(long, value_name = "N", conflicts_with_all = ["prompt", "states"], value_parser = whole::<usize>)]
    pub prompts: Option<usize>,
    /// Tokens of each, whole chunks (default: 20 or a little more, as far as the model reads).
    #[arg(long, value_name = "N", value_parser = whole::<usize>)]
    pub tokens: Option<usize>,
    /// Take prompts from this text instead of the run's held-out documents: a file, a folder, or what
    /// `calm eval brierlm --data` takes.
    #[arg(long, value_name = "FILE|NAME|{SOURCE}")]
    pub data: Option<PathBuf>,
    /// With --data: the field of its records or the column of its tables that holds the text (default: `text`).
    #[arg(long, value_name = "NAME", requires = "data")]
    pub column: Option<String>,
    /// Which states: 0 behind the way in (not with --collisions), 1, 2, .. behind that layer, `last` behind the final norm (several with commas).
    #[arg(long, value_name = "N|last|all", default_value = "last", value_delimiter = ',')]
    pub layer: Vec<LayerName>,
    /// The latent vectors of a CALM's chunks instead of hidden states.
    #[arg(long, conflicts_with = "layer")]
    pub latents: bool,
    /// In which order tokens are tried; chunks of several tokens have `guided` alone (several with commas).
    #[arg(long, default_value = "guided", value_delimiter = ',')]
    pub policy: Vec<PolicyName>,
    /// What states were kept in (several with commas).
    #[arg(long, default_value = "f32", value_delimiter = ',')]
    pub kept: Vec<KeptName>,
    /// Noise on the states, as a share of the root of their mean square (several with commas).
    #[arg(long, value_name = "SHARE", default_value = "0", value_delimiter = ',', value_parser = share)]
    pub noise: Vec<f64>,
    /// How the states of prompts are computed (several with commas).
    #[arg(long, default_value = "whole", value_delimiter = ',')]
    pub pass: Vec<PassName>,
    /// Positions of held-out text that the radius is measured at.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = whole::<usize>)]
    pub radius_positions: usize,
    /// Seed of the noise.
    #[arg(long, default_value_t = 1, value_parser = whole::<u64>)]
    pub seed: u64,
    /// What the results are printed as.
    #[arg(long, default_value = "table")]
    pub format: Format,
}

impl InvertArgs {
    /// The text that is named, if one is.
    pub fn other(&self) -> Option<OtherText<'_>> {
        let column = self.column.as_deref();
        self.data.as_deref().map(|data| OtherText { data, column, documents: None, loss_on: None })
    }
}

/// A state of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerName {
    /// By its number.
    Number(usize),
    /// The last.
    Last,
    /// Each.
    All,
}

impl std::str::FromStr for LayerName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "last" => Ok(Self::Last),
            "all" => Ok(Self::All),
            number => number.parse().map(Self::Number).map_err(|_| "a number, `last`, or `all`".into()),
        }
    }
}

/// Orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// Those first that the gradient leads to.
    Guided,
    /// All of the vocabulary, in blocks.
    Brute,
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::Guided => Self::Guided,
            PolicyName::Brute => Self::Brute,
        }
    }
}

/// Formats of kept states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeptName {
    /// 32-bit floats.
    F32,
    /// 16-bit floats with 8 bits of significand.
    Bf16,
    /// 8-bit whole numbers, and one float a state.
    Int8,
}

impl From<KeptName> for Kept {
    fn from(name: KeptName) -> Self {
        match name {
            KeptName::F32 => Self::F32,
            KeptName::Bf16 => Self::Bf16,
            KeptName::Int8 => Self::Int8,
        }
    }
}

/// Ways of computing states.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PassName {
    /// All positions of a prompt in one pass.
    Whole,
    /// Each as the last of its prefix.
    Prefixes,
}

impl From<PassName> for Pass {
    fn from(name: PassName) -> Self {
        match name {
            PassName::Whole => Self::Whole,
            PassName::Prefixes => Self::Prefixes,
        }
    }
}

/// A number of 0 or more.
fn share(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|x: &f64| *x >= 0.0 && x.is_finite()).ok_or_else(|| "0 or more".into())
}
