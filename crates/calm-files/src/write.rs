//! Files, written under another name, flushed and renamed: a name that is there is a whole file.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
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
    static NUMBER: AtomicU64 = AtomicU64::new(0);
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
    // Two processes may write the same file (a cache): each has a name of its own for it.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let partial = with_ending(path, &format!(".{}-{number}{PARTIAL}", std::process::id()));
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
