//! Files that arrive piece by piece from elsewhere, and are continued after a break; and what a cache of others needs:
//! links, and a lock while something arrives.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::disk::{self, How, parent};

/// A file under a name of its own until it is whole. What has arrived stays there when the process ends, and the next
/// one goes on behind it.
#[derive(Debug)]
pub struct Partial {
    file: File,
    path: PathBuf,
    len: u64,
}

impl Partial {
    /// Opens it at its end, or begins it. Folders that lead to it are made.
    ///
    /// # Errors
    /// The file system says no.
    pub fn open(path: &Path) -> io::Result<Self> {
        disk::create_folder(parent(path))?;
        let file = disk::open(path, How::AtEnd)?;
        let len = file.metadata()?.len();
        Ok(Self { file, path: path.to_owned(), len })
    }

    /// Bytes that are there.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing is there yet.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its name while it is not whole.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds bytes at its end.
    ///
    /// # Errors
    /// Not all of them could be written: it must be opened anew, which tells how many were.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        disk::write_all(&mut self.file, &self.path, bytes)?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Begins from nothing.
    ///
    /// # Errors
    /// The file system says no.
    pub fn restart(&mut self) -> io::Result<()> {
        disk::truncate(&self.file, &self.path, 0)?;
        self.len = 0;
        Ok(())
    }

    /// Keeps the first `len` bytes; what is behind them goes.
    ///
    /// # Errors
    /// The file system says no.
    pub fn cut(&mut self, len: u64) -> io::Result<()> {
        if len < self.len {
            disk::truncate(&self.file, &self.path, len)?;
            self.len = len;
        }
        Ok(())
    }

    /// Flushes what there is to the disk, and its name.
    ///
    /// # Errors
    /// The disk failed.
    pub fn sync(&mut self) -> io::Result<()> {
        if self.file.metadata()?.is_file() {
            disk::sync_file(&self.file, &self.path)?;
            disk::sync_folder(parent(&self.path))?;
        }
        Ok(())
    }

    /// It is whole: it is flushed and gets its name, and what had that name goes.
    ///
    /// # Errors
    /// The file system says no; it keeps the name of a partial one.
    pub fn finish(self, name: &Path) -> io::Result<()> {
        disk::sync_file(&self.file, &self.path)?;
        disk::rename(&self.path, name)?;
        disk::sync_folder(parent(name))
    }
}

/// Makes a link to a file, by the way from one to the other, so that a moved cache stays one. What has the link's name
/// is replaced. Where links cannot be made it is a copy.
///
/// # Errors
/// The file system says no to both.
pub fn link(to: &Path, link: &Path) -> io::Result<()> {
    let folder = parent(link);
    disk::create_folder(folder)?;
    let way = way(&std::path::absolute(folder)?, &std::path::absolute(to)?);
    let new = disk::with_ending(link, &format!(".{}-link", std::process::id()));
    let _ = disk::remove_file(&new);
    match disk::symlink(&way, &new).and_then(|()| disk::rename(&new, link)) {
        Ok(()) => Ok(()),
        Err(_) => {
            let _ = disk::remove_file(&new);
            crate::copy(to, link).map(|_| ())
        }
    }
}

/// The way from a folder to a file, over what both have above them.
fn way(folder: &Path, file: &Path) -> PathBuf {
    let shared = folder.components().zip(file.components()).take_while(|(a, b)| a == b).count();
    let up = folder.components().skip(shared).map(|_| "..");
    up.map(PathBuf::from).chain(file.components().skip(shared).map(|c| c.as_os_str().into())).collect()
}

/// A lock that other programs see too (`flock`), until it is dropped. Its file stays.
#[derive(Debug)]
pub struct Held {
    _file: File,
}

/// Takes the lock of a file, which is made if needed, and waits for who has it; `waits` is called once if that is so.
/// Where a file system has no locks there is none to wait for.
///
/// # Errors
/// The file cannot be made.
pub fn hold(path: &Path, waits: &mut dyn FnMut()) -> io::Result<Held> {
    disk::create_folder(parent(path))?;
    let file = disk::open(path, How::AtEnd)?;
    if matches!(file.try_lock(), Err(std::fs::TryLockError::WouldBlock)) {
        waits();
        file.lock()?;
    }
    Ok(Held { _file: file })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn what_arrived_is_continued_and_gets_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let (path, name) = (dir.path().join("new/a.incomplete"), dir.path().join("new/a"));
        let mut partial = Partial::open(&path).unwrap();
        assert!(partial.is_empty());
        partial.append(b"one ").unwrap();
        drop(partial);
        let mut partial = Partial::open(&path).unwrap();
        assert_eq!(partial.len(), 4);
        partial.append(b"two").unwrap();
        partial.finish(&name).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"one two");
        assert!(!path.exists());
        let mut again = Partial::open(&path).unwrap();
        again.append(b"wrong").unwrap();
        again.cut(9).unwrap();
        again.cut(2).unwrap();
        again.sync().unwrap();
        assert_eq!((again.len(), fs::read(&path).unwrap()), (2, b"wr".to_vec()));
        again.restart().unwrap();
        again.append(b"right").unwrap();
        assert_eq!(again.len(), 5);
        again.finish(&name).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"right");
    }

    #[test]
    fn a_link_is_a_way_that_survives_a_move() {
        let dir = tempfile::tempdir().unwrap();
        let (blob, name) = (dir.path().join("a/blobs/x"), dir.path().join("a/snapshots/c/data/x.txt"));
        crate::write_bytes(&blob, b"x").unwrap();
        link(&blob, &name).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"x");
        let again = dir.path().join("a/blobs/y");
        crate::write_bytes(&again, b"y").unwrap();
        link(&again, &name).unwrap();
        assert_eq!(fs::read(&name).unwrap(), b"y");
        if cfg!(unix) {
            assert_eq!(fs::read_link(&name).unwrap(), Path::new("../../../blobs/y"));
            fs::rename(dir.path().join("a"), dir.path().join("b")).unwrap();
            assert_eq!(fs::read(dir.path().join("b/snapshots/c/data/x.txt")).unwrap(), b"y");
        }
    }

    #[test]
    fn a_lock_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".locks/a.lock");
        let held = hold(&path, &mut || panic!("nobody has it")).unwrap();
        let (said, heard) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || hold(&path, &mut || said.send(()).unwrap()).map(|_| ()));
        heard.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
        drop(held);
        other.join().unwrap().unwrap();
    }
}
