//! Checkpoints of the reference implementation: folders with `config.json` and weights, in and out.
//!
//! ```text
//! folder ── read ──> tensors ──┐
//!   config.json ── find ───────┼── import ──> run folder ── export ──> folder
//!   tokenizer ─────────────────┘
//! ```
//!
//! * Parameter names are the reference's, so a weight moves without renaming. A tensor that has two names there
//!   (`decoder.lm_head_weight` = `encoder.embed_tokens.weight`, `generative_head.*` = `mlp_generator.*`) may
//!   come under either; both names are written back.
//! * A language model's file carries its autoencoder under `ae_model.*`; the folder that `ae_path` names holds
//!   it once more.
//! * Weights become 32-bit numbers, which hold every bf16 and f16 value exactly. The number format of every
//!   tensor is recorded in the run (`reference.json`) and written back by default: import, then export, keeps
//!   every bit.
//!
//! What goes to a hub is an export with ours beside it: configuration, record and scores in `calm-run/`, and a model card.
//! From such a folder the run comes back as it was, in every family.
//!
//! An export has its hashes beside it (`SHA256SUMS`), and an import compares them where they are.
//!
//! No family and no head is named here: the registries of `calm-lm` say who reads a `config.json`, the settings of a
//! run what they write into one ([`calm_lm::published`]).
//!
//! This room may use runs (`calm-run`) and the models they build (`calm-train`).

mod card;
mod export;
mod find;
mod import;
mod merge;
mod parts;
mod pickle;
mod publish;
mod read;
mod restore;
mod sizes;
mod sums;
mod tensors;
mod torch;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::DType;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use export::{ExportOptions, ExportReport, export};
pub use import::{ImportOptions, ImportReport, TokenizerFrom, import};
pub use publish::{PublishOptions, PublishReport, belongs, publish};
pub use read::{Weights, read_config, read_weights_folder};
pub use restore::{is_ours, restore, wanted};

use calm_run::checked::{read_json, write_json};
use calm_run::lock::LOCK;
use calm_run::{Error, ORIGIN, Result, Run};

/// Prefix of the autoencoder's tensors in a language model's file.
const AE_PREFIX: &str = "ae_model.";

/// Folder of a language model's autoencoder inside the exported one (`ae_path`).
const AE_FOLDER: &str = "ae";

/// What an imported model was, as `reference.json` of its run records it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The language model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<OriginPart>,
    /// The autoencoder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoencoder: Option<OriginPart>,
}

/// One folder of a published model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OriginPart {
    /// Its `config.json`.
    pub config: Map<String, Value>,
    /// Number format of every tensor, by its name in the file.
    pub dtypes: BTreeMap<String, String>,
}

impl OriginPart {
    fn new(config: Map<String, Value>, weights: Option<&Weights>) -> Self {
        let dtypes = weights
            .map(|w| w.tensors.iter().map(|(n, t)| (n.clone(), dtype_name(t.dtype()).to_owned())).collect())
            .unwrap_or_default();
        Self { config, dtypes }
    }
}

impl Origin {
    /// Reads the record of a run; empty for a run that was not imported.
    ///
    /// # Errors
    /// The record cannot be read, or is damaged.
    pub fn read(run: &Run) -> Result<Self> {
        let hint = "import the model again; or delete the file: number formats then are 32 bits";
        Ok(read_json(&run.folder.join(ORIGIN), hint)?.unwrap_or_default())
    }

    fn write(&self, folder: &Path) -> Result<()> {
        write_json(&folder.join(ORIGIN), self)
    }
}

/// Folder of a model at a hub that holds what the reference does not know: configuration, record, scores.
const OURS_FOLDER: &str = "calm-run";

/// Name of a number format in weight files.
fn dtype_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "F32",
        DType::BF16 => "BF16",
        DType::F16 => "F16",
        DType::F64 => "F64",
        DType::I64 => "I64",
        DType::U32 => "U32",
        DType::U8 => "U8",
        _ => "other",
    }
}

/// The number format of a name that [`dtype_name`] gave, if weights may have it.
fn dtype_of(name: &str) -> Option<DType> {
    match name {
        "F32" => Some(DType::F32),
        "BF16" => Some(DType::BF16),
        "F16" => Some(DType::F16),
        _ => None,
    }
}

/// Refuses an output folder that holds something.
///
/// # Errors
/// It does, is a file, or cannot be read.
pub fn require_empty(folder: &Path) -> Result<()> {
    let holds_something = match std::fs::read_dir(folder) {
        Ok(entries) => entries.flatten().any(|entry| entry.file_name() != LOCK),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
            return Err(Error::user(
                format!("{} is a file and no folder", folder.display()),
                "choose another folder with --out",
            ));
        }
        Err(e) => return Err(Error::io("read", folder, e)),
    };
    if holds_something {
        return Err(Error::user(
            format!("{} is not empty", folder.display()),
            "choose another folder with --out, or delete it first",
        ));
    }
    Ok(())
}
