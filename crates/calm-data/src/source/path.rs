//! Documents from files and folders.
//!
//! - A folder: every file below it, sorted by path; hidden and binary files are skipped and counted, and so is what
//!   this program wrote (see `own.rs`).
//! - `.jsonl`, `.json`: one object a line, or one array of objects, or one object; each with a `text` field.
//! - Any other file is text. In a folder it is one document; given alone it is divided in pieces (see `pieces`),
//!   because a held-out part needs documents.
//! - `.gz` and `.zst` after any of these names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::bytes::read_text;
use super::documents::{self, Documents, Found, Input, Text};
use super::loaded::Skipped;
use super::own;
use super::records::records;
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
    let mut foreign = BTreeMap::new();
    if metadata.is_dir() {
        let mut files = Vec::new();
        list(path, &own::inside(path), &mut files, &mut found.skipped)?;
        files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let total = files.iter().map(|f| f.1).sum();
        let mut done = 0;
        for (file, len) in &files {
            let id = file.strip_prefix(path).unwrap_or(file).to_string_lossy().replace('\\', "/");
            read_file_of_folder(file, &id, &mut found, &mut foreign)?;
            done += len;
            reading(done, total);
        }
        found.description = format!(
            "{} documents of {} files in {}{}",
            found.documents.len(),
            files.len(),
            path.display(),
            left_out("; left out: ", &found.skipped, &foreign)
        );
    } else {
        let id = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = read_text(path)?;
        found.documents = match format_of(path).0 {
            Format::Records => records(path, &id, &text)?,
            Format::Text => pieces(&text, &id),
        };
        reading(metadata.len(), metadata.len());
        found.description = path.display().to_string();
    }
    found.documents.retain(|d| !d.text.is_empty());
    if found.documents.is_empty() {
        let Skipped { binary, hidden, without_text, .. } = found.skipped;
        let detail = if metadata.is_dir() {
            let more = left_out(", ", &found.skipped, &foreign);
            format!(" (skipped: {binary} binary, {hidden} hidden, {without_text} without text{more})")
        } else {
            String::new()
        };
        return Err(Error::Empty { path: path.into(), detail });
    }
    Ok(found)
}

/// Looks at a file or folder, whose documents [`read`] gives.
///
/// # Errors
/// When it is missing or may not be looked at.
pub fn open(path: &Path) -> Result<Box<dyn Text>> {
    let metadata = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
    let mut files = Vec::new();
    if metadata.is_dir() {
        list(path, &own::inside(path), &mut files, &mut Skipped::default())?;
        files.sort_unstable_by(|a, b| a.0.cmp(&b.0));
    } else {
        files.push((path.to_owned(), metadata.len()));
    }
    let inputs = files.iter().map(|(file, _)| Input::of_file(file)).collect::<Result<_>>()?;
    Ok(Box::new(OfPath { path: path.to_owned(), inputs }))
}

/// A file or folder.
struct OfPath {
    path: PathBuf,
    inputs: Vec<Input>,
}

impl Text for OfPath {
    fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    fn read(&self) -> Result<Box<dyn Documents + '_>> {
        let read = read(&self.path, &mut |_, _| ())?;
        let found = Found { description: read.description, skipped: read.skipped };
        let length = self.inputs.iter().map(|input| input.length).sum();
        Ok(Box::new(documents::Loaded::new(read.documents, length, found)))
    }
}

/// What a person might have meant to be read, and was not, after `begin`, or nothing.
fn left_out(begin: &str, skipped: &Skipped, foreign: &BTreeMap<&str, usize>) -> String {
    let own = (skipped.own > 0).then(|| match skipped.own {
        1 => "1 output of calm".to_owned(),
        n => format!("{n} outputs of calm"),
    });
    let kinds = foreign.iter().map(|(what, n)| format!("{n} × {what}"));
    let parts: Vec<String> = own.into_iter().chain(kinds).collect();
    if parts.is_empty() { String::new() } else { format!("{begin}{}", parts.join(", ")) }
}

fn read_file_of_folder(
    file: &Path,
    id: &str,
    found: &mut Read,
    foreign: &mut BTreeMap<&'static str, usize>,
) -> Result<()> {
    let text = match read_text(file) {
        Ok(text) => text,
        Err(Error::Binary { .. }) => {
            found.skipped.binary += 1;
            return Ok(());
        }
        Err(Error::Foreign { what, .. }) => {
            found.skipped.binary += 1;
            *foreign.entry(what).or_default() += 1;
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

/// Files below a folder; `own` are names in it that are left out.
fn list(folder: &Path, own: &[&str], files: &mut Vec<(PathBuf, u64)>, skipped: &mut Skipped) -> Result<()> {
    let fail = |e| Error::io("read", folder, e);
    for entry in fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.')) {
            skipped.hidden += 1;
            continue;
        }
        if path.file_name().is_some_and(|name| own.iter().any(|own| name == *own)) {
            skipped.own += 1;
            continue;
        }
        let metadata = fs::symlink_metadata(&path).map_err(|e| Error::io("read", &path, e))?;
        if metadata.is_dir() && !own::inside(&path).is_empty() {
            skipped.own += 1;
        } else if metadata.is_dir() {
            list(&path, &[], files, skipped)?;
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
