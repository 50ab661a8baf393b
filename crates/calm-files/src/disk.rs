//! The single operations. Every call of the operating system that changes a file or a folder stands here, and asks
//! the thread's plan of faults first (see [`crate::faults`]); without one that costs a look at a thread-local.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::faults::{self, Op, Verdict};

/// The folder that holds a path's last name.
pub(crate) fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A path with something added to its last name.
pub(crate) fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(ending);
    path.with_file_name(name)
}

fn act<T>(op: impl Fn() -> Op, real: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    match faults::ask(&op) {
        Verdict::Go => real(),
        Verdict::GoAndNote(op) => {
            let done = real()?;
            faults::note(op);
            Ok(done)
        }
        Verdict::Fail(error) | Verdict::Short(error) => Err(error),
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// New; what was there is emptied.
    Anew,
    /// New; must not be there.
    MustBeNew,
    /// At the end of what is there.
    AtEnd,
}

pub(crate) fn open(path: &Path, how: How) -> io::Result<File> {
    let op = || match how {
        How::Anew => Op::Create(path.to_owned()),
        How::MustBeNew => Op::CreateNew(path.to_owned()),
        How::AtEnd => Op::Append(path.to_owned()),
    };
    act(op, || {
        let mut options = OpenOptions::new();
        match how {
            How::Anew => options.write(true).create(true).truncate(true),
            How::MustBeNew => options.write(true).create_new(true),
            How::AtEnd => options.read(true).append(true).create(true),
        };
        options.open(path)
    })
}

pub(crate) fn write_all(file: &mut File, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let op = || Op::Write(path.to_owned(), bytes.to_owned());
    match faults::ask(&op) {
        Verdict::Go => file.write_all(bytes),
        Verdict::GoAndNote(op) => {
            file.write_all(bytes)?;
            faults::note(op);
            Ok(())
        }
        Verdict::Fail(error) => Err(error),
        Verdict::Short(error) => {
            let half = &bytes[..bytes.len() / 2];
            file.write_all(half)?;
            faults::note(Op::Write(path.to_owned(), half.to_owned()));
            Err(error)
        }
    }
}

pub(crate) fn truncate(file: &File, path: &Path, length: u64) -> io::Result<()> {
    act(|| Op::Truncate(path.to_owned(), length), || file.set_len(length))
}

pub(crate) fn sync_file(file: &File, path: &Path) -> io::Result<()> {
    act(|| Op::SyncFile(path.to_owned()), || file.sync_all())
}

pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    act(|| Op::Rename(from.to_owned(), to.to_owned()), || fs::rename(from, to))
}

/// Makes a link that must not be there.
pub(crate) fn symlink(to: &Path, link: &Path) -> io::Result<()> {
    #[cfg(unix)]
    let make = || std::os::unix::fs::symlink(to, link);
    #[cfg(windows)]
    let make = || std::os::windows::fs::symlink_file(to, link);
    #[cfg(not(any(unix, windows)))]
    let make = || Err(io::ErrorKind::Unsupported.into());
    act(|| Op::Link(link.to_owned()), make)
}

pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    act(|| Op::RemoveFile(path.to_owned()), || fs::remove_file(path))
}

pub(crate) fn remove_empty_folder(path: &Path) -> io::Result<()> {
    act(|| Op::RemoveFolder(path.to_owned()), || fs::remove_dir(path))
}

/// Makes one folder, whose parent must be there; one that is there is an error.
pub(crate) fn make_folder(path: &Path) -> io::Result<()> {
    act(|| Op::CreateFolder(path.to_owned()), || fs::create_dir(path))
}

/// Flushes the names that a folder holds, so that a new name survives a power cut. Where a system cannot flush a
/// folder there is nothing to do.
///
/// # Errors
/// The disk failed.
pub fn sync_folder(path: &Path) -> io::Result<()> {
    act(
        || Op::SyncFolder(path.to_owned()),
        || {
            if !cfg!(unix) {
                return Ok(());
            }
            match File::open(path)?.sync_all() {
                Err(e) if matches!(e.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
                    Ok(())
                }
                done => done,
            }
        },
    )
}

/// Makes a folder with all that lead to it, and flushes their names.
///
/// # Errors
/// One cannot be made, or something that is no folder has its name.
pub fn create_folder(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    let above = parent(path);
    create_folder(above)?;
    match make_folder(path) {
        Ok(()) => sync_folder(above),
        // Another process was faster.
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(io::ErrorKind::NotADirectory.into()),
        Err(e) => Err(e),
    }
}
