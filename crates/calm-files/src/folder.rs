//! Folders that are there whole or not at all, and how they go.
//!
//! ```text
//! NAME.partial     being written, or left by a process that was killed: never read
//! NAME.replaced    what NAME was, while another takes its place; without NAME it *is* what NAME was
//! NAME.gone        removed, and perhaps half deleted: never read
//! NAME.damaged     found damaged and set aside; it stays until something newer is there
//! ```

use std::cell::RefCell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::{self, parent, with_ending};

pub(crate) const PARTIAL: &str = ".partial";
const OLD: &str = ".replaced";
const GONE: &str = ".gone";
/// How the name of what [`set_aside`] set aside ends.
pub const DAMAGED: &str = ".damaged";

/// Writes a folder: `fill` puts its files into the folder that it is given, by way of this crate. At no moment is
/// there neither the old folder nor the new one (see [`whole_folder`] and [`settle`]).
///
/// # Errors
/// The file system says no, which `refused` puts into words, or `fill` does; then the old folder is there as before.
pub fn write_folder<T, E>(
    path: &Path,
    refused: impl Fn(io::Error) -> E,
    fill: impl FnOnce(&Path) -> Result<T, E>,
) -> Result<T, E> {
    let partial = with_ending(path, PARTIAL);
    let begin = || -> io::Result<()> {
        disk::create_folder(parent(path))?;
        delete(&partial)?;
        disk::make_folder(&partial)
    };
    let write = || -> Result<T, E> {
        begin().map_err(&refused)?;
        let filled = {
            let _filling = Filling::begin(&partial);
            fill(&partial)?
        };
        disk::sync_folder(&partial).and_then(|()| replace(&partial, path)).map_err(&refused)?;
        Ok(filled)
    };
    write().inspect_err(|_| {
        let _ = delete(&partial);
    })
}

thread_local! {
    /// Folders that this thread is filling.
    static FILLING: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// While it lives, a folder is being filled.
struct Filling;

impl Filling {
    fn begin(partial: &Path) -> Self {
        FILLING.with_borrow_mut(|filling| filling.push(partial.to_owned()));
        Self
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        FILLING.with_borrow_mut(|filling| drop(filling.pop()));
    }
}

/// Whether a folder is one that this thread is filling: nobody reads it yet.
pub(crate) fn is_being_filled(folder: &Path) -> bool {
    FILLING.with_borrow(|filling| filling.iter().any(|partial| partial == folder))
}

/// Gives a whole folder its name.
fn replace(partial: &Path, path: &Path) -> io::Result<()> {
    let folder = parent(path);
    let old = with_ending(path, OLD);
    let replaces = path.exists();
    if replaces {
        delete(&old)?;
        disk::rename(path, &old)?;
        disk::sync_folder(folder)?;
    }
    if let Err(e) = disk::rename(partial, path) {
        if replaces {
            disk::rename(&old, path)?;
        }
        return Err(e);
    }
    disk::sync_folder(folder)?;
    if replaces { remove(&old) } else { Ok(()) }
}

/// Where a folder's content lies: under its name, or under that of the old one if a process ended while another was
/// taking its place.
pub fn whole_folder(path: &Path) -> PathBuf {
    if path.exists() {
        return path.to_owned();
    }
    let old = with_ending(path, OLD);
    if old.is_dir() { old } else { path.to_owned() }
}

/// Removes a file, or a folder with all that it holds; nothing there is fine. A folder first gets a name that says
/// it is gone, so that half of one is never read.
///
/// # Errors
/// The file system says no.
pub fn remove(path: &Path) -> io::Result<()> {
    let Some(metadata) = found(path)? else { return Ok(()) };
    if !metadata.is_dir() {
        disk::remove_file(path)?;
        return disk::sync_folder(parent(path));
    }
    let gone = with_ending(path, GONE);
    delete(&gone)?;
    disk::rename(path, &gone)?;
    // Before anything of it goes.
    disk::sync_folder(parent(path))?;
    delete(&gone)
}

/// Gives a damaged folder a name under which it is not read, and returns it.
///
/// # Errors
/// The file system says no.
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let aside = with_ending(path, DAMAGED);
    delete(&aside)?;
    disk::rename(path, &aside)?;
    disk::sync_folder(parent(path))?;
    Ok(aside)
}

/// Puts a folder in order after processes that were killed in it: half of what was being written or removed goes,
/// what was about to be replaced gets its name back. Only for a folder that nobody else writes into. Returns what
/// was removed or put back. With `all`, what was set aside as damaged goes too.
///
/// # Errors
/// The file system says no.
pub fn settle(folder: &Path, all: bool) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = entries.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    let mut settled = Vec::new();
    for path in paths {
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        let is_folder = path.is_dir();
        if let Some(name) = name.strip_suffix(OLD).filter(|_| is_folder) {
            let whole = path.with_file_name(name);
            if whole.exists() {
                remove(&path)?;
            } else {
                disk::rename(&path, &whole)?;
                disk::sync_folder(folder)?;
            }
        } else if name.ends_with(PARTIAL)
            || (is_folder && (name.ends_with(GONE) || (all && name.ends_with(DAMAGED))))
        {
            delete(&path)?;
        } else {
            continue;
        }
        settled.push(path);
    }
    Ok(settled)
}

/// Removes half files that nobody wrote to for `left_alone`: in a folder that several processes write into, where
/// [`settle`] may not be used.
///
/// # Errors
/// The file system says no.
pub fn sweep(folder: &Path, left_alone: Duration) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let half = entry.file_name().to_string_lossy().ends_with(PARTIAL);
        let age = || entry.metadata().ok()?.modified().ok()?.elapsed().ok();
        if half && age().is_some_and(|age| age > left_alone) {
            delete(&entry.path())?;
        }
    }
    Ok(())
}

/// Deletes what nobody reads.
fn delete(path: &Path) -> io::Result<()> {
    let Some(metadata) = found(path)? else { return Ok(()) };
    if !metadata.is_dir() {
        return disk::remove_file(path);
    }
    let mut inside = fs::read_dir(path)?.map(|e| Ok(e?.path())).collect::<io::Result<Vec<_>>>()?;
    inside.sort();
    for path in inside {
        delete(&path)?;
    }
    disk::remove_empty_folder(path)
}

/// What lies there, links not followed.
fn found(path: &Path) -> io::Result<Option<fs::Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(metadata) => Ok(Some(metadata)),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(e),
    }
}
