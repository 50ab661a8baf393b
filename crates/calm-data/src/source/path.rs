//! Documents from files and folders.
//!
//! - A folder: every file below it, sorted by path; hidden and binary files are skipped and counted, and so is what
//!   this program wrote (see `own.rs`). A text file is one document.
//! - A file alone: a text is divided in pieces (see `pieces.rs`), because a held-out part needs documents.

use std::fs;
use std::path::{Path, PathBuf};

use super::apart::Known;
use super::documents::{Documents, Input, Text};
use super::files::{Entry, Files, Given, Reading};
use super::loaded::Skipped;
use super::own;
use crate::document::Document;
use crate::error::{Error, Result};

/// What a path holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Read {
    /// The documents, in the order of paths and records.
    pub documents: Vec<Document>,
    /// One line for people.
    pub description: String,
    /// What was left out.
    pub skipped: Skipped,
}

/// Reads a file or folder at once. `reading` is called with bytes read and all bytes (as they lie on the disk).
///
/// # Errors
/// When it is missing, may not be read, is damaged, or holds no text. In a folder, binary files are no error.
pub fn read(path: &Path, reading: &mut dyn FnMut(u64, u64)) -> Result<Read> {
    let text = open(path)?;
    let total = text.inputs().iter().map(|input| input.length).sum();
    let mut stream = text.read()?;
    let (mut documents, mut told) = (Vec::new(), 0);
    while let Some(document) = stream.next() {
        documents.push(document?);
        if stream.read_bytes() != told {
            told = stream.read_bytes();
            reading(told, total);
        }
    }
    reading(total, total);
    let found = stream.found();
    Ok(Read { documents, description: found.description, skipped: found.skipped })
}

/// Looks at a file or folder, whose documents have a field `text` if they are records.
///
/// # Errors
/// When it is missing or may not be looked at.
pub fn open(path: &Path) -> Result<Box<dyn Text>> {
    open_for(path, Reading::default(), &[])
}

/// Looks at a file or folder; what is held out of a folder is none of its text.
pub(super) fn open_for(path: &Path, reading: Reading, held_out: &[Input]) -> Result<Box<dyn Text>> {
    let metadata = fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
    let (mut files, mut skipped) = (Vec::new(), Skipped::default());
    let given = if metadata.is_dir() {
        list(path, &own::inside(path), &mut files, &mut skipped)?;
        files.sort_unstable();
        Given::InFolder
    } else {
        files.push(path.to_owned());
        Given::Alone
    };
    let mut found = Vec::with_capacity(files.len());
    for file in files {
        found.push((Input::of_file(&file)?, file));
    }
    // Where nothing else is there, source and held-out text are one: that is told when both are known.
    let (held_out, all) = (Known::new(held_out), found.len());
    if given == Given::InFolder && found.iter().any(|(input, _)| !held_out.has(input)) {
        found.retain(|(input, _)| !held_out.has(input));
    }
    let held_out = all - found.len();
    let (inputs, files): (Vec<Input>, Vec<PathBuf>) = found.into_iter().unzip();
    let mut entries = Vec::with_capacity(files.len());
    for (file, input) in files.iter().zip(&inputs) {
        let id = match given {
            Given::Alone => Path::new(file.file_name().unwrap_or_default()),
            Given::InFolder => file.strip_prefix(path).unwrap_or(file),
        };
        let id = id.to_string_lossy().replace('\\', "/");
        entries.push(Entry { id, length: input.length });
    }
    Ok(Box::new(OfPath { path: path.to_owned(), given, files, entries, inputs, skipped, held_out, reading }))
}

/// A file or folder.
struct OfPath {
    path: PathBuf,
    given: Given,
    files: Vec<PathBuf>,
    entries: Vec<Entry>,
    inputs: Vec<Input>,
    skipped: Skipped,
    /// Files that were left out because they are held out.
    held_out: usize,
    reading: Reading,
}

impl Text for OfPath {
    fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    fn read(&self) -> Result<Box<dyn Documents + '_>> {
        let describe = |documents: usize, left_out: &str| match self.given {
            Given::Alone => format!("{}{left_out}", self.path.display()),
            Given::InFolder => format!(
                "{documents} documents of {} files in {}{left_out}",
                self.files.len(),
                self.path.display()
            ),
        };
        let get = |n: usize| Ok(self.files[n].clone());
        let files = Files::new(
            &self.entries,
            self.given,
            self.reading.clone(),
            &self.path,
            Box::new(get),
            Box::new(describe),
        );
        Ok(Box::new(files.with_left_out(self.skipped, self.held_out)))
    }
}

/// Files below a folder; `own` are names in it that are left out.
fn list(folder: &Path, own: &[&str], files: &mut Vec<PathBuf>, skipped: &mut Skipped) -> Result<()> {
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
            files.push(path);
        } else if fs::metadata(&path).is_ok_and(|m| m.is_file()) {
            // A link to a file is read, a link to a folder is not followed: it could lead in a circle.
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
