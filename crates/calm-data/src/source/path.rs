//! Documents from files and folders.
//!
//! - A folder: every file below it, sorted by path; hidden and binary files are skipped and counted.
//! - `.jsonl`, `.json`: one object a line, or one array of objects, or one object; each with a `text` field.
//! - Any other file is text. In a folder it is one document; given alone it is divided in pieces (see [`pieces`]),
//!   because a held-out part needs documents.
//! - `.gz` and `.zst` after any of these names.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::loaded::Skipped;
use crate::document::Document;
use crate::error::{Error, Result};

/// What a path holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The documents, in the order of paths and records.
    pub documents: Vec<Document>,
    /// One line for people.
    pub description: String,
    /// Files of a folder that were left out.
    pub skipped: Skipped,
}

/// Reads a file or folder. `reading` is called with bytes read and all bytes (as they lie on the disk).
///
/// # Errors
/// When it is missing, may not be read, is damaged, or holds no text. In a folder, binary files are no error.
pub fn read(path: &Path, reading: &mut dyn FnMut(u64, u64)) -> Result<Read> {
    let metadata = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
    let mut found = Read::default();
    if metadata.is_dir() {
        let mut files = Vec::new();
        list(path, &mut files, &mut found.skipped)?;
        files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let total = files.iter().map(|f| f.1).sum();
        let mut done = 0;
        for (file, len) in &files {
            let id = file.strip_prefix(path).unwrap_or(file).to_string_lossy().replace('\\', "/");
            read_file_of_folder(file, &id, &mut found)?;
            done += len;
            reading(done, total);
        }
        found.description =
            format!("{} of {} files in {}", found.documents.len(), files.len(), path.display());
    } else {
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let bytes = read_bytes(path)?;
        found.documents = match format_of(path).0 {
            Format::Records => records(path, &id, &text(path, bytes)?)?,
            Format::Text => pieces(&text(path, bytes)?, &id),
        };
        reading(metadata.len(), metadata.len());
        found.description = path.display().to_string();
    }
    found.documents.retain(|d| !d.text.is_empty());
    if found.documents.is_empty() {
        let Skipped { binary, hidden, without_text } = found.skipped;
        let detail = if metadata.is_dir() {
            format!(" (skipped: {binary} binary, {hidden} hidden, {without_text} without text)")
        } else {
            String::new()
        };
        return Err(Error::Empty { path: path.into(), detail });
    }
    Ok(found)
}

fn read_file_of_folder(file: &Path, id: &str, found: &mut Read) -> Result<()> {
    let text = match read_bytes(file).and_then(|bytes| text(file, bytes)) {
        Ok(text) => text,
        Err(Error::Binary { .. }) => {
            found.skipped.binary += 1;
            return Ok(());
        }
        Err(error) => return Err(error),
    };
    let (format, json_lines) = format_of(file);
    if text.is_empty() {
        found.skipped.without_text += 1;
    } else if format == Format::Records {
        match records(file, id, &text) {
            Ok(documents) => found.documents.extend(documents),
            // A folder may well hold a settings.json; a .jsonl is meant as records.
            Err(_) if !json_lines => found.skipped.without_text += 1,
            Err(error) => return Err(error),
        }
    } else {
        found.documents.push(Document::new(id, text));
    }
    Ok(())
}

fn list(folder: &Path, files: &mut Vec<(PathBuf, u64)>, skipped: &mut Skipped) -> Result<()> {
    let fail = |e| Error::io("read", folder, e);
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            skipped.hidden += 1;
            continue;
        }
        let metadata = fs::symlink_metadata(&path).map_err(|e| Error::io("read", &path, e))?;
        if metadata.is_dir() {
            list(&path, files, skipped)?;
        } else if metadata.is_file() {
            files.push((path, metadata.len()));
        } else if fs::metadata(&path).is_ok_and(|m| m.is_file()) {
            // A link to a file is read, a link to a folder is not followed: it could lead in a circle.
            files.push((path, 0));
        }
    }
    Ok(())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Records,
}

/// The format by name, and whether the name says one record a line.
fn format_of(path: &Path) -> (Format, bool) {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    let name = name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name);
    let lines = name.ends_with(".jsonl") || name.ends_with(".ndjson");
    (if lines || name.ends_with(".json") { Format::Records } else { Format::Text }, lines)
}

/// The bytes of a file, decompressed.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let damaged = |format, source| Error::Compressed { path: path.into(), format, source };
    let mut out = Vec::new();
    match extension.as_str() {
        "gz" => {
            let mut decoder = flate2::bufread::MultiGzDecoder::new(bytes.as_slice());
            decoder.read_to_end(&mut out).map_err(|e| damaged("gzip", e))?;
        }
        "zst" => {
            let decode = |out: &mut Vec<u8>| -> io::Result<usize> {
                zstd::stream::read::Decoder::with_buffer(bytes.as_slice())?.read_to_end(out)
            };
            decode(&mut out).map_err(|e| damaged("zstd", e))?;
        }
        _ => return Ok(bytes),
    }
    Ok(out)
}

/// Bytes as text. A zero byte is valid UTF-8 but no text.
pub(crate) fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let binary = |what, at| Error::Binary { path: path.into(), what, at };
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err(binary("a zero byte", at));
    }
    String::from_utf8(bytes).map_err(|e| binary("invalid UTF-8", e.utf8_error().valid_up_to()))
}

/// The records of a JSON file: one object a line, an array of objects, or a single object.
fn records(path: &Path, id: &str, text: &str) -> Result<Vec<Document>> {
    let error = |e: &serde_json::Error, before: usize| Error::Json {
        path: path.into(),
        line: before + e.line().max(1),
        message: without_place(e),
        truncated: e.is_eof(),
    };
    let document = |mut value: Value, kind: &str, number: usize| match value.get_mut("text").map(Value::take)
    {
        Some(Value::String(text)) => Ok(Document::new(format!("{id}:{number}"), text)),
        _ => Err(Error::NoText { path: path.into(), place: format!("{kind} {number}") }),
    };
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim_start().starts_with('[') {
        let values: Vec<Value> = serde_json::from_str(text).map_err(|e| error(&e, 0))?;
        return values
            .into_iter()
            .zip(1..)
            .map(|(value, number)| document(value, "record", number))
            .collect();
    }
    let mut documents = Vec::new();
    for (number, line) in text.lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str(line) {
            Ok(value) => documents.push(document(value, "line", number + 1)?),
            // The first line of an object that is written over several lines.
            Err(e) if documents.is_empty() && e.is_eof() => {
                let value = serde_json::from_str(text).map_err(|e| error(&e, 0))?;
                return Ok(vec![document(value, "line", number + 1)?]);
            }
            Err(e) => return Err(error(&e, number)),
        }
    }
    Ok(documents)
}

/// serde_json's message without its ` at line 1 column 5`: the line would be counted inside the record.
fn without_place(e: &serde_json::Error) -> String {
    let message = e.to_string();
    message.split(" at line ").next().unwrap_or(&message).to_string()
}

/// Fewest and most bytes after which a piece of a text file ends.
const PIECE: (usize, usize) = (2 << 10, 64 << 10);

/// A text file without document structure as documents: it is divided at blank lines in about 256 pieces, each of
/// at least 2 KiB, and of no more than 64 KiB before its end is looked for. Where no blank line follows within as
/// many bytes again, a piece ends at a line's end, or (a file of one line) at a space or between two characters.
/// Joined in order the pieces are the file, byte for byte.
pub fn pieces(text: &str, id: &str) -> Vec<Document> {
    let size = (text.len() / 256).clamp(PIECE.0, PIECE.1);
    let mut documents = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = if rest.len() <= size + size / 2 { rest.len() } else { piece_end(rest, size) };
        let (piece, after) = rest.split_at(end);
        documents.push(Document::new(format!("{id}#{}", documents.len()), piece));
        rest = after;
    }
    documents
}

fn piece_end(text: &str, size: usize) -> usize {
    let from = ceil_char(text, size);
    let to = ceil_char(text, 2 * size);
    let window = &text[from..to];
    let blank = ["\n\n", "\n\r\n"].iter().filter_map(|b| window.find(b).map(|at| at + b.len())).min();
    blank
        .map(|at| {
            // Further empty lines belong to the piece that they end.
            let more = text[from + at..].bytes().take_while(|b| matches!(b, b'\n' | b'\r')).count();
            from + at + more
        })
        .or_else(|| window.find('\n').map(|at| from + at + 1))
        .or_else(|| window.find(' ').map(|at| from + at + 1))
        .unwrap_or(to)
}

/// The first character boundary at or after a byte.
fn ceil_char(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests;
