//! A published folder as tensors: `model.safetensors` or `pytorch_model.bin`, whole or in shards with an index.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use calm_data::source::records::strict;
use calm_nn::{WeightsError, is_pointer};
use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use calm_run::{Error, Result};

use super::tensors::Found;
use super::torch;

/// Tensors of one folder, in their own number formats.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    /// By their names in the files.
    pub tensors: BTreeMap<String, Tensor>,
    /// The files they came from.
    pub files: Vec<PathBuf>,
    /// What a sharded folder's index says and its files do not hold, or the other way round.
    pub problems: Vec<String>,
    /// How names were read.
    pub notes: Vec<String>,
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

/// Whether this is the name of a weight file, of a shard or of an index of shards.
pub(super) fn is_weights(name: &str) -> bool {
    let shard = |begin: &str, end: &str| {
        let middle = name.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
        middle.is_some_and(|m| {
            m.contains("-of-") && m.bytes().all(|b| b.is_ascii_digit() || b"-of".contains(&b))
        })
    };
    FILES.contains(&name) || shard("model-", ".safetensors") || shard("pytorch_model-", ".bin")
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
    let mut weights = if name.ends_with(".index.json") {
        read_shards(folder, &path)?
    } else {
        let mut weights = Weights::default();
        let found = read_file(&path)?;
        weights.tensors = weights.add(&path, found);
        weights.files.push(path);
        weights
    };
    weights.unwrap_names();
    Ok(weights)
}

impl Weights {
    /// Takes over what is said of a file; gives back its tensors.
    fn add(&mut self, path: &Path, found: Found) -> BTreeMap<String, Tensor> {
        self.notes.extend(found.notes.iter().map(|note| format!("{}: {note}", path.display())));
        let mut by_type: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (name, kind) in found.others {
            by_type.entry(kind).or_default().push(name);
        }
        for (kind, names) in by_type {
            let more = names.len().saturating_sub(3);
            let names = names[..names.len() - more].join(", ");
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            self.problems.push(format!(
                "{}: {names}{more}: the number format is {kind}; weights are F32, BF16 or F16",
                path.display()
            ));
        }
        found.tensors
    }

    /// Takes away what training programs put around every name: `module.` of data-parallel training in front, the words
    /// of compiled, sharded and recomputed modules anywhere.
    fn unwrap_names(&mut self) {
        const FRONT: &str = "module.";
        const ANYWHERE: [&str; 3] = ["_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module."];
        let mut taken = BTreeSet::new();
        loop {
            let word = match ANYWHERE.iter().find(|word| self.tensors.keys().any(|name| name.contains(*word)))
            {
                Some(word) => *word,
                None if !self.tensors.is_empty() && self.tensors.keys().all(|n| n.starts_with(FRONT)) => {
                    FRONT
                }
                None => break,
            };
            let plain = |name: &str| match word {
                FRONT => name[FRONT.len()..].to_owned(),
                word => name.replace(word, ""),
            };
            let names: BTreeSet<String> = self.tensors.keys().map(|name| plain(name)).collect();
            if names.len() < self.tensors.len() {
                self.problems.push(format!("without `{word}` two tensors would have one name"));
                break;
            }
            taken.insert(word);
            self.tensors =
                std::mem::take(&mut self.tensors).into_iter().map(|(n, t)| (plain(&n), t)).collect();
        }
        for word in taken {
            self.notes.push(format!("names are read without the `{word}` that a training program put in"));
        }
    }
}

fn read_shards(folder: &Path, path: &Path) -> Result<Weights> {
    let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let index: Index = read_json(&text).map_err(|e| {
        not_json(
            path,
            &text,
            format!("is not an index of weight shards: {e}"),
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
        let found = read_file(&file)?;
        for (name, tensor) in out.add(&file, found) {
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

fn read_file(path: &Path) -> Result<Found> {
    if path.extension().is_some_and(|e| e == "safetensors") {
        return read_safetensors(path);
    }
    torch::read(path).map_err(|fault| {
        let start = fs::File::open(path).and_then(|file| {
            let mut start = Vec::new();
            file.take(64).read_to_end(&mut start).map(|_| start)
        });
        if start.is_ok_and(|start| is_pointer(&start)) {
            return WeightsError::Pointer { path: path.to_owned() }.into();
        }
        let (reason, remedy) = (fault.reason, fault.remedy);
        Error::user(format!("{} is not a whole PyTorch checkpoint ({reason})", path.display()), remedy)
    })
}

fn read_safetensors(path: &Path) -> Result<Found> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    if is_pointer(&bytes) {
        return Err(WeightsError::Pointer { path: path.to_owned() }.into());
    }
    let malformed = |reason: String| WeightsError::Malformed { path: path.to_owned(), reason };
    let file = SafeTensors::deserialize(&bytes).map_err(|e| malformed(e.to_string()))?;
    let mut found = Found::default();
    for (name, view) in file.tensors() {
        // Formats of less than a byte, and those that candle has no numbers for.
        let dtype = match DType::try_from(view.dtype()) {
            Ok(dtype) if dtype_of_weights(dtype) => dtype,
            _ => {
                found.others.insert(name, view.dtype().to_string());
                continue;
            }
        };
        let tensor = Tensor::from_raw_buffer(view.data(), dtype, view.shape(), &Device::Cpu)
            .map_err(|e| malformed(format!("{name}: {e}")))?;
        found.tensors.insert(name, tensor);
    }
    Ok(found)
}

/// Number formats that are read: those of weights, and those whose tensors are named one by one where they do not fit.
fn dtype_of_weights(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F16 | DType::BF16 | DType::F64 | DType::I64 | DType::U32 | DType::U8)
}

/// Reads JSON as Python writes it: with a byte order mark, with numbers that JSON does not have.
fn read_json<T: DeserializeOwned>(bytes: &[u8]) -> std::result::Result<T, String> {
    let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    serde_json::from_str(text).or_else(|e| match strict(text) {
        Some(text) => serde_json::from_str(&text).map_err(|e| e.to_string()),
        None => Err(e.to_string()),
    })
}

/// An error about a JSON file, or about what lies in its place.
fn not_json(path: &Path, bytes: &[u8], what: String, remedy: &str) -> Error {
    if is_pointer(bytes) {
        return WeightsError::Pointer { path: path.to_owned() }.into();
    }
    Error::user(format!("{} {what}", path.display()), remedy)
}

/// Reads a folder's `config.json`.
///
/// # Errors
/// When it is missing or not a JSON object.
pub fn read_config(folder: &Path) -> Result<Map<String, Value>> {
    let path = folder.join("config.json");
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Err(Error::user(
                format!("{} is not a published model: it has no config.json", folder.display()),
                "give the folder that holds config.json and model.safetensors or pytorch_model.bin",
            ));
        }
        Err(e) => return Err(Error::io("read", &path, e)),
    };
    read_json(&text).map_err(|e| {
        not_json(&path, &text, format!("is not a JSON object: {e}"), "copy it again from the checkpoint")
    })
}
