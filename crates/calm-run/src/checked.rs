//! Files of a run that are read again, with a checksum inside: a byte that changed on the disk is noticed.
//!
//! JSON gets a last key `checksum`, the BLAKE3 of all that stands before it; YAML, which could be cut anywhere unnoticed,
//! a first comment `# checksum: ...`, that of all that stands after it.
//! Files without one (of version 0.1, or written by hand) are read as they are.

use std::fs;
use std::io;
use std::path::Path;

use calm_config::ConfigText;
use calm_files::Sum;
use calm_files::seal::{BROKEN, is_broken, seal};
use serde::{Serialize, de::DeserializeOwned};

use crate::error::{Error, Result};

const IN_JSON: &str = ",\n  \"checksum\": \"";
const AFTER_JSON: &str = "\"\n}\n";

/// Writes JSON, with its checksum if it is an object.
///
/// # Errors
/// The file cannot be written.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = pretty(path, value)?;
    if let Some(body) = text.strip_suffix("\n}") {
        text = format!("{body}{IN_JSON}{}{AFTER_JSON}", Sum::of(body.as_bytes()).blake3);
    } else {
        text.push('\n');
    }
    write_text(path, &text)
}

/// Writes JSON that other programs read, and ours do not.
///
/// # Errors
/// The file cannot be written.
pub fn write_plain_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_text(path, &(pretty(path, value)? + "\n"))
}

fn pretty(path: &Path, value: &impl Serialize) -> Result<String> {
    serde_json::to_string_pretty(value)
        .map_err(|e| Error::user(format!("cannot write {}: {e}", path.display()), ""))
}

/// Reads what [`write_json`] wrote; None where there is no file.
///
/// # Errors
/// It cannot be read, or is damaged; then `remedy` says what to do.
pub fn read_json<T: DeserializeOwned>(path: &Path, remedy: &str) -> Result<Option<T>> {
    let damaged = |why: &str| Error::user(format!("{} is damaged: {why}", path.display()), remedy);
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("read", path, e)),
    };
    let text = String::from_utf8(bytes).map_err(|_| damaged("it is not text"))?;
    let whole = match text.rfind(IN_JSON) {
        Some(at) => {
            let (body, rest) = (&text[..at], &text[at + IN_JSON.len()..]);
            if rest.strip_suffix(AFTER_JSON) != Some(Sum::of(body.as_bytes()).blake3.as_str()) {
                return Err(damaged(BROKEN));
            }
            format!("{body}\n}}")
        }
        None => text,
    };
    serde_json::from_str(&whole).map(Some).map_err(|e| damaged(&e.to_string()))
}

/// Writes a text aside, flushes and renames.
///
/// # Errors
/// The file cannot be written.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    calm_files::write_bytes(path, text.as_bytes()).map(|_| ()).map_err(|e| Error::io("write", path, e))
}

/// Writes a configuration with its checksum.
///
/// # Errors
/// The file cannot be written.
pub fn write_config(path: &Path, yaml: &str) -> Result<()> {
    write_text(path, &seal(yaml))
}

/// Reads what [`write_config`] wrote.
///
/// # Errors
/// It cannot be read, or differs from its checksum.
pub fn read_config(path: &Path) -> Result<ConfigText> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    if is_broken(&bytes) {
        return Err(Error::user(
            format!("{} is damaged: {BROKEN}", path.display()),
            "restore the file, or take out its first line if the change is yours",
        ));
    }
    Ok(ConfigText::read(path)?)
}

/// BLAKE3 of a file's bytes, in hexadecimal.
///
/// # Errors
/// It cannot be read.
pub fn file_hash(path: &Path) -> Result<String> {
    Sum::of_file(path).map(|sum| sum.blake3).map_err(|e| Error::io("read", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed_or_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        type Map = BTreeMap<String, f64>;
        let map: Map = [("loss".to_owned(), 2.774_521_031_379_7), ("steps".to_owned(), 10.0)].into();
        write_json(&path, &map).unwrap();
        let read = || read_json::<Map>(&path, "do this");
        assert_eq!(read().unwrap(), Some(map.clone()));
        let whole = fs::read(&path).unwrap();
        let harmless = |now: &Map| now.iter().filter(|(k, _)| map.contains_key(*k)).eq(map.iter());
        for at in 0..whole.len() {
            for bit in 0..8 {
                let mut bytes = whole.clone();
                bytes[at] ^= 1 << bit;
                fs::write(&path, &bytes).unwrap();
                match read() {
                    Ok(now) => assert!(harmless(&now.unwrap()), "byte {at} bit {bit}"),
                    Err(e) => assert_eq!(e.remedy().as_deref(), Some("do this")),
                }
            }
            fs::write(&path, &whole[..at]).unwrap();
            assert!(read().is_err(), "cut at {at}");
        }
        assert!(read_json::<Map>(&dir.path().join("none"), "").unwrap().is_none());
        fs::write(&path, "{\"by\": 1.5}").unwrap();
        assert_eq!(read().unwrap().unwrap()["by"], 1.5, "without a checksum it is read as it is");
    }

    #[test]
    fn a_changed_configuration_is_noticed_and_one_without_checksum_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.yaml");
        write_config(&path, "seed: 1\nsteps: 20").unwrap();
        read_config(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        let body = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        for at in body - 20..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            let e = read_config(&path).unwrap_err();
            assert!(
                e.to_string().contains("is damaged") && e.remedy().unwrap().contains("first line"),
                "{e}"
            );
        }
        for cut in body..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(read_config(&path).is_err(), "cut at {cut}");
        }
        fs::write(&path, &whole[body..]).unwrap();
        read_config(&path).unwrap();
    }
}
