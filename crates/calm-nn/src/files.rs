//! Weight files: safetensors.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use calm_files::Sum;
use candle_core::safetensors::Load;
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
    #[error("{path} is not a valid safetensors file ({reason})")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// The file stands for another that was not fetched.
    #[error("{path} is a git-lfs pointer and not the weights that it stands for")]
    Pointer {
        /// The file.
        path: PathBuf,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

impl WeightsError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Malformed { .. } => Some("it may be truncated: restore it or use another checkpoint"),
            Self::Pointer { .. } => {
                Some("fetch the file itself (git lfs pull, in the checkpoint's repository)")
            }
            Self::Io { .. } | Self::Tensor(_) => None,
        }
    }
}

/// Writes `tensors` in name order with string metadata; returns the file's length and hash.
///
/// # Errors
/// The file cannot be written.
pub fn write_weights(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    metadata: &BTreeMap<String, String>,
) -> Result<Sum, WeightsError> {
    let text = serde_json::to_string(metadata)
        .map_err(|e| WeightsError::Malformed { path: path.to_owned(), reason: e.to_string() })?;
    write_tensors(path, tensors, (METADATA, &text))
}

/// Writes `tensors` in name order with one entry of plain metadata, as other programs expect it; returns the file's
/// length and hash.
///
/// # Errors
/// The file cannot be written.
pub fn write_tensors(
    path: &Path,
    tensors: &BTreeMap<String, Tensor>,
    (key, value): (&str, &str),
) -> Result<Sum, WeightsError> {
    let meta = HashMap::from([(key.to_owned(), value.to_owned())]);
    let bytes = safetensors::serialize(tensors, Some(meta))
        .map_err(|e| WeightsError::Malformed { path: path.to_owned(), reason: e.to_string() })?;
    calm_files::write_bytes(path, &bytes).map_err(|source| WeightsError::Io {
        verb: "write",
        path: path.to_owned(),
        source,
    })
}

/// Whether a file is what git-lfs leaves in the place of one that was not fetched.
pub fn is_pointer(start: &[u8]) -> bool {
    start.starts_with(b"version https://git-lfs.github.com/spec/v1")
}

/// The one metadata key of our files, a JSON object: the format's own metadata is an unordered map, and
/// equal contents must give equal bytes (and hashes).
const METADATA: &str = "calm";

/// Tensors by name, and string metadata.
pub type Weights = (HashMap<String, Tensor>, BTreeMap<String, String>);

/// Reads all tensors and the metadata.
///
/// # Errors
/// The file cannot be read; as [`parse_weights`].
pub fn read_weights(path: &Path, device: &Device) -> Result<Weights, WeightsError> {
    let bytes =
        fs::read(path).map_err(|source| WeightsError::Io { verb: "read", path: path.to_owned(), source })?;
    parse_weights(path, &bytes, device)
}

/// Tensors and metadata of a file's bytes; `path` names it in errors.
///
/// # Errors
/// The bytes are no whole safetensors file.
pub fn parse_weights(path: &Path, bytes: &[u8], device: &Device) -> Result<Weights, WeightsError> {
    parse_some(path, bytes, device, |_| true)
}

/// The same of the tensors whose names are wanted; the others take no memory.
///
/// # Errors
/// As [`parse_weights`].
pub fn parse_some(
    path: &Path,
    bytes: &[u8],
    device: &Device,
    wanted: impl Fn(&str) -> bool,
) -> Result<Weights, WeightsError> {
    if is_pointer(bytes) {
        return Err(WeightsError::Pointer { path: path.to_owned() });
    }
    let malformed = |reason: String| WeightsError::Malformed { path: path.to_owned(), reason };
    let (_, meta) = safetensors::SafeTensors::read_metadata(bytes).map_err(|e| malformed(e.to_string()))?;
    let metadata = match meta.metadata().as_ref().and_then(|m| m.get(METADATA)) {
        Some(text) => serde_json::from_str(text).map_err(|e| malformed(format!("its metadata: {e}")))?,
        None => BTreeMap::new(),
    };
    let all = safetensors::SafeTensors::deserialize(bytes).map_err(|e| malformed(e.to_string()))?;
    let mut tensors = HashMap::new();
    for (name, view) in all.iter().filter(|(name, _)| wanted(name)) {
        let tensor = view.load(device).map_err(|e| malformed(e.to_string()))?;
        tensors.insert(name.to_owned(), tensor);
    }
    Ok((tensors, metadata))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::DType;

    #[test]
    fn equal_contents_give_equal_bytes_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let tensors = BTreeMap::from([
            ("b".to_owned(), Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap()),
            ("a".to_owned(), Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap()),
        ]);
        let metadata: BTreeMap<String, String> =
            (0..8).map(|i| (format!("key {i}"), format!("value {i}"))).collect();
        let write = |name: &str| {
            let path = dir.path().join(name);
            write_weights(&path, &tensors, &metadata).unwrap();
            (fs::read(&path).unwrap(), read_weights(&path, &Device::Cpu).unwrap())
        };
        let (first, (back, meta)) = write("one");
        assert_eq!(first, write("two").0);
        assert_eq!(meta, metadata);
        assert_eq!(back["b"].dims(), [2, 3]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_named() {
        let e = read_weights(Path::new("no/such/file"), &Device::Cpu).unwrap_err();
        assert!(e.to_string().contains("no/such/file"), "{e}");
    }
}
