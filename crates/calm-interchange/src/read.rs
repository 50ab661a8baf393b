//! A published folder as tensors: `model.safetensors` or `pytorch_model.bin`, whole or in shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use calm_nn::read_weights;
use candle_core::pickle::PthTensors;
use candle_core::{Device, Tensor};
use serde::Deserialize;
use serde_json::{Map, Value};

use calm_run::{Error, Result};

/// Tensors of one folder, in their own number formats.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// By their names in the files.
    pub tensors: BTreeMap<String, Tensor>,
    /// The files they came from.
    pub files: Vec<PathBuf>,
    /// What a sharded folder's index says and its files do not hold, or the other way round.
    pub problems: Vec<String>,
}

/// Weight files by preference: when a folder holds several, the first is read, as the reference does.
const FILES: [&str; 4] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
];

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Whether a folder holds weights.
pub(super) fn has_weights(folder: &Path) -> bool {
    FILES.iter().any(|f| folder.join(f).is_file())
}

/// Reads all tensors of a folder.
///
/// # Errors
/// When there is no weight file, or one is damaged or cut short.
pub fn read_weights_folder(folder: &Path) -> Result<Weights> {
    let Some(name) = FILES.iter().find(|f| folder.join(f).is_file()) else {
        return Err(Error::user(
            format!("{} holds no weights", folder.display()),
            format!("a published model has one of {}", FILES.join(", ")),
        ));
    };
    let path = folder.join(name);
    if name.ends_with(".index.json") {
        return read_shards(folder, &path);
    }
    Ok(Weights { tensors: read_file(&path)?, files: vec![path], problems: Vec::new() })
}

fn read_shards(folder: &Path, path: &Path) -> Result<Weights> {
    let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let index: Index = serde_json::from_str(&text).map_err(|e| {
        Error::user(
            format!("{} is not an index of weight shards: {e}", path.display()),
            "it needs `weight_map`, from tensor names to file names; copy it again",
        )
    })?;
    let mut out = Weights::default();
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    for shard in shards {
        // An index names files beside it, nothing elsewhere.
        if Path::new(shard).file_name().is_none_or(|f| f != shard.as_str()) {
            out.problems.push(format!("{}: {shard:?} is not the name of a file beside it", path.display()));
            continue;
        }
        let file = folder.join(shard);
        if !file.is_file() {
            out.problems.push(format!("{}: the shard {shard} is missing", path.display()));
            continue;
        }
        for (name, tensor) in read_file(&file)? {
            match index.weight_map.get(&name) {
                Some(place) if place == shard => {
                    out.tensors.insert(name, tensor);
                }
                Some(place) => {
                    out.problems.push(format!("{shard} holds {name}, which the index puts into {place}"))
                }
                None => out.problems.push(format!("{shard} holds {name}, which the index does not name")),
            }
        }
        out.files.push(file);
    }
    for (name, shard) in &index.weight_map {
        if !out.tensors.contains_key(name) && out.files.iter().any(|f| f.ends_with(shard)) {
            out.problems.push(format!("{shard} lacks {name}, which the index puts there"));
        }
    }
    Ok(out)
}

fn read_file(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    if path.extension().is_some_and(|e| e == "safetensors") {
        return Ok(read_weights(path, &Device::Cpu)?.0.into_iter().collect());
    }
    read_pickle(path).map_err(|e| {
        // Candle's errors may carry a backtrace.
        let reason = e.to_string();
        let reason = reason.lines().next().unwrap_or_default();
        Error::user(
            format!("{} is not a whole PyTorch checkpoint ({reason})", path.display()),
            "it may be cut short: copy it again; files older than torch 1.6 must be saved anew with torch.save",
        )
    })
}

fn read_pickle(path: &Path) -> candle_core::Result<BTreeMap<String, Tensor>> {
    let file = PthTensors::new(path, None)?;
    let mut out = BTreeMap::new();
    for name in file.tensor_infos().keys() {
        if let Some(tensor) = file.get(name)? {
            out.insert(name.clone(), tensor.contiguous()?);
        }
    }
    if out.is_empty() {
        candle_core::bail!("it holds no tensor by name")
    }
    Ok(out)
}

/// Reads a folder's `config.json`.
///
/// # Errors
/// When it is missing or not a JSON object.
pub fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join("config.json");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::user(
                format!("{} is not a published model: it has no config.json", folder.display()),
                "give the folder that holds config.json and model.safetensors or pytorch_model.bin",
            ));
        }
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    serde_json::from_str(&text).map_err(|e| {
        Error::user(
            format!("{} is not a JSON object: {e}", path.display()),
            "copy it again from the checkpoint",
        )
    })
}
