//! `pytorch_model.bin`: the archive that `torch.save` writes, as tensors by name.
//!
//! ```text
//! ARCHIVE/data.pkl      a pickle: names, and for each tensor its storage's key, shape, strides, number format
//! ARCHIVE/data/KEY      the numbers of a storage
//! ```

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use zip::ZipArchive;

use super::pickle::{Id, Node, Pickle};
use super::tensors::Found;

/// Why a file cannot be read, and what to do.
pub(super) struct Fault {
    pub reason: String,
    pub remedy: &'static str,
}

const AGAIN: &str = "it may be cut short: copy it again";
const SAVE_ANEW: &str = "load it with torch and save its state_dict() anew with torch.save";

fn fault(reason: impl Into<String>, remedy: &'static str) -> Fault {
    Fault { reason: reason.into(), remedy }
}

impl From<String> for Fault {
    fn from(reason: String) -> Self {
        fault(reason, AGAIN)
    }
}

impl From<zip::result::ZipError> for Fault {
    fn from(e: zip::result::ZipError) -> Self {
        fault(e.to_string(), AGAIN)
    }
}

impl From<std::io::Error> for Fault {
    fn from(e: std::io::Error) -> Self {
        fault(e.to_string(), AGAIN)
    }
}

/// Keys under which training programs keep a model's weights beside an optimiser and the like, by preference.
const WRAPPERS: [&str; 7] = ["state_dict", "model_state_dict", "model", "module", "net", "weights", "params"];

/// Reads all tensors of a file.
pub(super) fn read(path: &Path) -> Result<Found, Fault> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut start = Vec::new();
    file.by_ref().take(14).read_to_end(&mut start)?;
    // The number that files of torch before 1.6 begin with.
    if start.len() > 4 && start[0] == 0x80 && start[2..] == LEGACY[..start.len() - 2] {
        return Err(fault("it was written by torch before 1.6, or in its old format", SAVE_ANEW));
    }
    let mut archive = Archive::open(File::open(path)?, length)?;
    let pickle = archive.entry("data.pkl", u64::MAX)?;
    let pickle = Pickle::read(&pickle)?;
    if archive.entry("byteorder", 16).is_ok_and(|order| order == b"big") {
        return Err(fault("its numbers are big-endian", SAVE_ANEW));
    }
    let mut found = Found::default();
    let items = state_dict(&pickle, &mut found)?;
    let mut planned = Vec::new();
    for (name, value) in items {
        match layout(&pickle, value, 0) {
            Some(Ok(layout)) => planned.push((name, layout)),
            Some(Err(other)) => drop(found.others.insert(name.to_owned(), other)),
            None => {}
        }
    }
    // One storage after the other, each read once.
    planned.sort_by(|a, b| (&a.1.key, a.0).cmp(&(&b.1.key, b.0)));
    let mut read = (String::new(), Vec::new());
    let mut total = 0;
    for (name, layout) in planned {
        let bytes = layout.bytes().ok_or_else(|| format!("{name} has an impossible shape"))?;
        total += bytes as u64;
        // Names may share a storage, but not so many that a small file fills the memory.
        if total > SHARED * length + (1 << 20) {
            return Err(fault("its tensors share their numbers too often", SAVE_ANEW));
        }
        if read.0 != layout.key || read.1.is_empty() {
            read = (layout.key.clone(), archive.entry(&format!("data/{}", layout.key), length)?);
        }
        let numbers =
            layout.gather(&read.1).ok_or_else(|| format!("the numbers of {name} are not all there"))?;
        let tensor = Tensor::from_raw_buffer(&numbers, layout.dtype, &layout.shape, &Device::Cpu)
            .map_err(|e| e.to_string())?;
        found.tensors.insert(name.to_owned(), tensor);
    }
    Ok(found)
}

/// How many times the bytes of a file its tensors may take together.
const SHARED: u64 = 16;

/// `LONG1`, ten bytes: 0x1950a86a20f9469cfc6c.
const LEGACY: [u8; 12] = [0x8a, 0x0a, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];

/// The archive with the folder that all its files lie in.
struct Archive {
    zip: ZipArchive<BufReader<File>>,
    folder: String,
}

impl Archive {
    fn open(file: File, length: u64) -> Result<Self, Fault> {
        let zip = ZipArchive::new(BufReader::new(file)).map_err(|e| match length {
            0 => fault("it is empty", AGAIN),
            _ => fault(e.to_string(), AGAIN),
        })?;
        let names: Vec<String> = zip.file_names().filter_map(Result::ok).map(|n| n.into_owned()).collect();
        if names.iter().any(|name| name.contains("/code/")) {
            return Err(fault("it is a TorchScript program", SAVE_ANEW));
        }
        let folder = names.iter().find_map(|name| name.strip_suffix("data.pkl"));
        let folder = folder.ok_or_else(|| fault("it is an archive of something else", SAVE_ANEW))?.to_owned();
        Ok(Self { zip, folder })
    }

    /// A file of it, of at most so many bytes.
    fn entry(&mut self, name: &str, most: u64) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        self.zip.by_name(&format!("{}{name}", self.folder))?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }
}

/// Names and values of the dictionary that holds the tensors: the whole, or one inside it, which is noted.
fn state_dict<'a>(pickle: &'a Pickle, found: &mut Found) -> Result<Vec<(&'a str, Id)>, Fault> {
    let items = |id: Id| -> Vec<(&'a str, Id)> {
        match pickle.node(id) {
            Node::Dict(items) => items.iter().filter_map(|(k, v)| Some((pickle.text(*k)?, *v))).collect(),
            _ => Vec::new(),
        }
    };
    let holds_tensors = |id: Id| items(id).iter().any(|(_, value)| layout(pickle, *value, 0).is_some());
    if holds_tensors(pickle.top) {
        return Ok(items(pickle.top));
    }
    let outer = items(pickle.top);
    let inner: Vec<&(&str, Id)> = outer.iter().filter(|(_, value)| holds_tensors(*value)).collect();
    let preferred = WRAPPERS.iter().find_map(|name| inner.iter().find(|(key, _)| key == name));
    let chosen = preferred.or(match &inner[..] {
        [only] => Some(only),
        _ => None,
    });
    if let Some((name, value)) = chosen {
        found.notes.push(format!("the weights are those under `{name}`"));
        return Ok(items(*value));
    }
    let names = |list: &mut dyn Iterator<Item = &'a str>| list.take(12).collect::<Vec<_>>().join(", ");
    Err(match pickle.node(pickle.top) {
        Node::Dict(_) if inner.len() > 1 => fault(
            format!("it holds several sets of tensors: {}", names(&mut inner.iter().map(|i| i.0))),
            "load it with torch and save one of them with torch.save",
        ),
        Node::Dict(_) if !outer.is_empty() => fault(
            format!("it holds no tensor by name, but: {}", names(&mut outer.iter().map(|i| i.0))),
            SAVE_ANEW,
        ),
        Node::Call { callable, .. } => fault(
            format!(
                "it holds an object of {} and no state_dict",
                pickle.global(*callable).unwrap_or_else(|| "some class".into())
            ),
            SAVE_ANEW,
        ),
        _ => fault("it holds no tensor by name", SAVE_ANEW),
    })
}

/// Where a tensor's numbers lie.
#[derive(Debug)]
struct Layout {
    key: String,
    dtype: DType,
    offset: usize,
    shape: Vec<usize>,
    strides: Vec<usize>,
}

impl Layout {
    fn bytes(&self) -> Option<usize> {
        let numel = self.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d))?;
        numel.checked_mul(self.dtype.size_in_bytes())
    }

    /// The numbers in the order of the shape; none where the storage ends before.
    fn gather(&self, storage: &[u8]) -> Option<Vec<u8>> {
        let size = self.dtype.size_in_bytes();
        let bytes = self.bytes()?;
        if bytes == 0 {
            return Some(Vec::new());
        }
        // The last number, and with it all others, must lie inside.
        let reach = self
            .shape
            .iter()
            .zip(&self.strides)
            .try_fold(self.offset, |at, (d, s)| at.checked_add((d - 1).checked_mul(*s)?))?;
        if reach.checked_add(1)?.checked_mul(size)? > storage.len() {
            return None;
        }
        let mut wanted = 1;
        let contiguous = self.shape.iter().zip(&self.strides).rev().all(|(d, s)| {
            let fits = *d == 1 || *s == wanted;
            wanted *= d;
            fits
        });
        if contiguous {
            return storage.get(self.offset * size..self.offset * size + bytes).map(<[u8]>::to_vec);
        }
        let mut out = Vec::with_capacity(bytes);
        let mut place = vec![0; self.shape.len()];
        while out.len() < bytes {
            let at: usize = self.offset + place.iter().zip(&self.strides).map(|(p, s)| p * s).sum::<usize>();
            out.extend_from_slice(storage.get(at * size..(at + 1) * size)?);
            for (p, d) in place.iter_mut().zip(&self.shape).rev() {
                *p += 1;
                if *p < *d {
                    break;
                }
                *p = 0;
            }
        }
        Some(out)
    }
}

/// The layout of a value that is a tensor; its number format, if that is none of ours; none if it is no tensor.
fn layout(pickle: &Pickle, value: Id, depth: usize) -> Option<Result<Layout, String>> {
    let Node::Call { callable, args } = pickle.node(value) else { return None };
    let function = pickle.global(*callable)?;
    let args = pickle.tuple(*args)?;
    // Parameters and subclasses of tensors are wrapped around one.
    if depth > 4 {
        return None;
    }
    match function.as_str() {
        "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
            return layout(pickle, *args.first()?, depth + 1);
        }
        "torch._tensor._rebuild_from_type_v2" => {
            return match (pickle.global(*args.first()?)?.as_str(), pickle.tuple(*args.get(2)?)?) {
                ("torch._utils._rebuild_tensor_v2", inner) => Some(plain(pickle, inner)?),
                _ => Some(Err("of a class of its own".into())),
            };
        }
        "torch._utils._rebuild_tensor_v2" | "torch._utils._rebuild_tensor_v3" => {}
        "torch._utils._rebuild_qtensor" => return Some(Err("quantised".into())),
        "torch._utils._rebuild_sparse_tensor" => return Some(Err("sparse".into())),
        _ => return None,
    }
    plain(pickle, args)
}

/// The arguments of `_rebuild_tensor_v2` (and, with a number format as the seventh, `_v3`): storage, offset, shape,
/// strides.
fn plain(pickle: &Pickle, args: &[Id]) -> Option<Result<Layout, String>> {
    let [storage, offset, shape, strides, ..] = args else { return None };
    let Node::Outside(storage) = pickle.node(*storage) else { return None };
    let [_, kind, key, ..] = pickle.tuple(*storage)? else { return None };
    let sizes = |id: Id| pickle.tuple(id)?.iter().map(|id| pickle.size(*id)).collect::<Option<Vec<usize>>>();
    let (shape, strides) = (sizes(*shape)?, sizes(*strides)?);
    let kind = pickle.global(*kind)?;
    let named = args.get(6).and_then(|id| pickle.global(*id));
    let kind = if kind.ends_with("UntypedStorage") { named? } else { kind };
    let kind = kind.trim_start_matches("torch.").trim_end_matches("Storage");
    let dtype = match kind {
        "Float" | "float32" => DType::F32,
        "Double" | "float64" => DType::F64,
        "Half" | "float16" => DType::F16,
        "BFloat16" | "bfloat16" => DType::BF16,
        "Long" | "int64" => DType::I64,
        "Byte" | "uint8" => DType::U8,
        other => return Some(Err(other.to_uppercase())),
    };
    if shape.len() != strides.len() {
        return None;
    }
    let key = pickle.text(*key)?.to_owned();
    Some(Ok(Layout { key, dtype, offset: pickle.size(*offset)?, shape, strides }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout_of(offset: usize, shape: &[usize], strides: &[usize]) -> Layout {
        let (shape, strides) = (shape.to_vec(), strides.to_vec());
        Layout { key: "0".into(), dtype: DType::U8, offset, shape, strides }
    }

    #[test]
    fn numbers_are_gathered_by_their_strides() {
        let storage: Vec<u8> = (0..12).collect();
        assert_eq!(layout_of(1, &[2, 3], &[3, 1]).gather(&storage).unwrap(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(layout_of(0, &[3, 2], &[1, 3]).gather(&storage).unwrap(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(layout_of(5, &[2, 2], &[0, 1]).gather(&storage).unwrap(), [5, 6, 5, 6]);
        assert_eq!(layout_of(7, &[], &[]).gather(&storage).unwrap(), [7]);
        assert!(layout_of(0, &[0, 5], &[5, 1]).gather(&storage).unwrap().is_empty());
    }

    #[test]
    fn numbers_that_are_not_there_are_none() {
        let storage = [0; 12];
        for wrong in [
            layout_of(7, &[2, 3], &[3, 1]),
            layout_of(usize::MAX, &[1], &[1]),
            layout_of(0, &[2, 2], &[usize::MAX, 1]),
            layout_of(0, &[usize::MAX, 2], &[0, 0]),
        ] {
            assert!(wrong.gather(&storage).is_none(), "{wrong:?}");
        }
    }
}
