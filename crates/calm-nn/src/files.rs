//! Weight files: safetensors written aside, flushed and renamed, so that a crash never leaves half a file.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

/// A weight file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The file system said no.
    #[error("cannot {verb} {path}: {source}")]
    Io {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The content is not a whole safetensors file.
    #[error("{path} is not a valid safetensors file ({reason}); it may be truncated: restore it or use another checkpoint")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

/// Writes `tensors` in name order with string metadata.
pub fn write_weights(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), WeightsError> {
    let io = |source| WeightsError::Io { verb: "write", path: path.to_owned(), source };
    let meta: HashMap<String, String> = metadata.clone().into_iter().collect();
    let bytes = safetensors::serialize(tensors, Some(meta))
        .map_err(|e| WeightsError::Malformed { path: path.to_owned(), reason: e.to_string() })?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".partial");
    let partial = path.with_file_name(name);
    let write = || -> std::io::Result<()> {
        let mut f = fs::File::create(&partial)?;
        f.write_all(&bytes)?;
        f.sync_all()?;
        fs::rename(&partial, path)
    };
    write().map_err(|e| {
        let _ = fs::remove_file(&partial);
        io(e)
    })
}

/// Reads all tensors and the metadata.
pub fn read_weights(
    path: &Path,
    device: &Device,
) -> Result<(HashMap<String, Tensor>, BTreeMap<String, String>), WeightsError> {
    let bytes = fs::read(path)
        .map_err(|source| WeightsError::Io { verb: "read", path: path.to_owned(), source })?;
    let malformed = |reason: String| WeightsError::Malformed { path: path.to_owned(), reason };
    let (_, meta) =
        safetensors::SafeTensors::read_metadata(&bytes).map_err(|e| malformed(e.to_string()))?;
    let metadata = meta.metadata().clone().unwrap_or_default().into_iter().collect();
    let tensors =
        candle_core::safetensors::load_buffer(&bytes, device).map_err(|e| malformed(e.to_string()))?;
    Ok((tensors, metadata))
}
