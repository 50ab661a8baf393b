//! Files, written under another name, flushed and renamed: a name that is there is a whole file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Sum;
use crate::disk::{self, How, parent, with_ending};
use crate::folder::{PARTIAL, is_being_filled};

/// Small pieces are gathered to so many bytes.
const GATHERED: usize = 1 << 18;

/// Where the content of a new file goes.
pub struct Writer<'a> {
    file: File,
    path: &'a Path,
    gathered: Vec<u8>,
    hasher: blake3::Hasher,
}

impl Writer<'_> {
    fn pass_on(&mut self) -> io::Result<()> {
        let gathered = std::mem::take(&mut self.gathered);
        if !gathered.is_empty() {
            self.hasher.update(&gathered);
            disk::write_all(&mut self.file, self.path, &gathered)?;
        }
        Ok(())
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.gathered.len() + bytes.len() > GATHERED {
            self.pass_on()?;
        }
        if bytes.len() > GATHERED {
            self.hasher.update(bytes);
            disk::write_all(&mut self.file, self.path, bytes)?;
        } else {
            self.gathered.extend_from_slice(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.pass_on()
    }
}

/// Writes a file and returns its length and hash. After an error the old file is there as before; after success the
/// new one is, also after a power cut. Folders that lead to it are made.
///
/// Inside of a folder that is itself being written (see [`crate::write_folder`]) nobody can meet a half file, so
/// there it is flushed and no more.
///
/// # Errors
/// The file system says no, or `fill` does.
pub fn write(path: &Path, fill: impl FnOnce(&mut Writer<'_>) -> io::Result<()>) -> io::Result<Sum> {
    // What a link leads to is replaced, not the link.
    let linked = path.symlink_metadata().is_ok_and(|there| there.is_symlink());
    let target = if linked { path.canonicalize()? } else { path.to_owned() };
    // A device or a pipe is nothing to be replaced.
    if target.metadata().is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        return fill_file(&target, fill);
    }
    let path = target.as_path();
    let folder = parent(path);
    disk::create_folder(folder)?;
    if is_being_filled(folder) {
        return fill_file(path, fill);
    }
    let partial = partial_of(path);
    let written = fill_file(&partial, fill).and_then(|sum| {
        disk::rename(&partial, path)?;
        Ok(sum)
    });
    match written {
        Ok(sum) => disk::sync_folder(folder).map(|()| sum),
        Err(e) => {
            let _ = disk::remove_file(&partial);
            Err(e)
        }
    }
}

/// A file whose content comes over time: nobody meets it under its name before [`Pending::finish`], and one that is
/// dropped before leaves nothing.
pub struct Pending {
    writer: Option<(File, blake3::Hasher)>,
    partial: PathBuf,
    path: PathBuf,
}

impl Pending {
    /// Begins a file. Folders that lead to it are made.
    ///
    /// # Errors
    /// The file system says no.
    pub fn begin(path: &Path) -> io::Result<Self> {
        disk::create_folder(parent(path))?;
        let partial = partial_of(path);
        let file = disk::open(&partial, How::Anew)?;
        Ok(Self { writer: Some((file, blake3::Hasher::new())), partial, path: path.to_owned() })
    }

    /// Adds bytes, in one write.
    ///
    /// # Errors
    /// The file system says no; the file cannot be finished then.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let Some((file, hasher)) = &mut self.writer else {
            return Err(io::Error::other("writing to it failed before"));
        };
        let written = disk::write_all(file, &self.partial, bytes);
        hasher.update(bytes);
        if written.is_err() {
            self.writer = None;
        }
        written
    }

    /// Flushes the file and gives it its name, in the place of what was there; returns its length and hash.
    ///
    /// # Errors
    /// The file system says no; what was there before stays.
    pub fn finish(mut self) -> io::Result<Sum> {
        let Some((file, hasher)) = self.writer.take() else {
            return Err(io::Error::other("writing to it failed before"));
        };
        disk::sync_file(&file, &self.partial)?;
        disk::rename(&self.partial, &self.path)?;
        disk::sync_folder(parent(&self.path))?;
        Ok(Sum::finish(&hasher))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if self.partial.exists() {
            let _ = disk::remove_file(&self.partial);
        }
    }
}

/// Two processes may write the same file (a cache): each has a name of its own for it.
fn partial_of(path: &Path) -> PathBuf {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    with_ending(path, &format!(".{}-{number}{PARTIAL}", std::process::id()))
}

fn fill_file(path: &Path, fill: impl FnOnce(&mut Writer<'_>) -> io::Result<()>) -> io::Result<Sum> {
    let file = disk::open(path, How::Anew)?;
    let mut writer = Writer { file, path, gathered: Vec::new(), hasher: blake3::Hasher::new() };
    fill(&mut writer)?;
    writer.pass_on()?;
    if writer.file.metadata()?.is_file() {
        disk::sync_file(&writer.file, path)?;
    }
    Ok(Sum::finish(&writer.hasher))
}

/// Writes a file that holds these bytes; see [`write`].
///
/// # Errors
/// The file system says no.
pub fn write_bytes(path: &Path, bytes: &[u8]) -> io::Result<Sum> {
    write(path, |out| out.write_all(bytes))
}

/// Copies a file; see [`write`].
///
/// # Errors
/// The file system says no to reading or writing.
pub fn copy(from: &Path, to: &Path) -> io::Result<Sum> {
    let mut file = File::open(from)?;
    write(to, |out| {
        let mut piece = vec![0; 1 << 20];
        loop {
            let n = file.read(&mut piece)?;
            if n == 0 {
                return Ok(());
            }
            out.write_all(&piece[..n])?;
        }
    })
}
