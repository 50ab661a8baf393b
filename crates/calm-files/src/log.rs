//! Files that grow at their end.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::Sum;
use crate::disk::{self, How, parent};

/// A file that grows: what was appended is with the operating system when the call returns, and on the disk after
/// [`Log::sync`].
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
    hasher: blake3::Hasher,
    cut: u64,
    /// Whether the folder knows its name for certain.
    named: bool,
}

impl Log {
    /// A new file, which must not be there. Folders that lead to it are made.
    ///
    /// # Errors
    /// The file is there, or cannot be made.
    pub fn create(path: &Path) -> io::Result<Self> {
        disk::create_folder(parent(path))?;
        let file = disk::open(path, How::MustBeNew)?;
        Ok(Self { file, path: path.to_owned(), hasher: blake3::Hasher::new(), cut: 0, named: false })
    }

    /// Opens a file of lines to append some, or begins it. An end that is no whole line, or whose lines `holds`
    /// rejects, was being written when a process ended or the power failed: it is cut off.
    ///
    /// # Errors
    /// The file cannot be read or written.
    pub fn open_lines(path: &Path, holds: impl Fn(&[u8]) -> bool) -> io::Result<Self> {
        disk::create_folder(parent(path))?;
        let file = disk::open(path, How::AtEnd)?;
        let mut log =
            Self { file, path: path.to_owned(), hasher: blake3::Hasher::new(), cut: 0, named: false };
        // A device or a pipe has no end to be looked at.
        if log.file.metadata()?.is_file() {
            let bytes = fs::read(path)?;
            let mut keep = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            while keep > 0 {
                let begin = bytes[..keep - 1].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
                if holds(&bytes[begin..keep - 1]) {
                    break;
                }
                keep = begin;
            }
            log.cut = (bytes.len() - keep) as u64;
            if log.cut > 0 {
                disk::truncate(&log.file, path, keep as u64)?;
            }
            log.hasher.update(&bytes[..keep]);
        }
        Ok(log)
    }

    /// Bytes that were cut off when it was opened.
    pub fn cut(&self) -> u64 {
        self.cut
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Appends bytes in one write, so that lines of two processes do not mix.
    ///
    /// # Errors
    /// Not all of it could be written; the log should not be continued, but opened anew.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        disk::write_all(&mut self.file, &self.path, bytes)?;
        self.hasher.update(bytes);
        Ok(())
    }

    /// Flushes it to the disk, and the name of a new one; returns its length and hash so far.
    ///
    /// # Errors
    /// The disk failed: what was appended since the last call may be lost.
    pub fn sync(&mut self) -> io::Result<Sum> {
        if self.file.metadata()?.is_file() {
            disk::sync_file(&self.file, &self.path)?;
        }
        if !self.named {
            disk::sync_folder(parent(&self.path))?;
            self.named = true;
        }
        Ok(Sum::finish(&self.hasher))
    }
}
