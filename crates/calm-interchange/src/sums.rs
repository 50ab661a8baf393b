//! Hashes beside the files of a published folder, in the form of `sha256sum`: so that a folder that was copied, sent
//! or stored is compared with what was exported, by us and by anybody.
//!
//! Folders of other programs have none, and are read as they are.

use std::fs::File;
use std::io;
use std::path::{Component, Path};

use calm_run::{Error, Result};
use sha2::{Digest, Sha256};

/// The file of the hashes.
pub(super) const SUMS: &str = "SHA256SUMS";

/// Writes the hashes of files of a folder.
///
/// # Errors
/// A file cannot be read, or the list not be written.
pub(super) fn write(folder: &Path, names: &[&str]) -> Result<()> {
    let mut text = String::new();
    for name in names {
        let path = folder.join(name);
        let hash = hash(&path).map_err(|e| Error::io("read", &path, e))?;
        text.push_str(&format!("{hash}  {name}\n"));
    }
    let path = folder.join(SUMS);
    calm_files::write_bytes(&path, text.as_bytes()).map(|_| ()).map_err(|e| Error::io("write", &path, e))
}

/// Compares the files of a folder with their hashes, where it has some. A file that is not there is not compared.
///
/// # Errors
/// A file is not what was written, or cannot be read.
pub(super) fn check(folder: &Path) -> Result<()> {
    let sums = folder.join(SUMS);
    let list = match std::fs::read(&sums) {
        Ok(list) => list,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(e) => return Err(Error::io("read", &sums, e)),
    };
    for (expected, name) in String::from_utf8_lossy(&list).lines().filter_map(entry) {
        let path = folder.join(name);
        if !path.is_file() {
            continue;
        }
        if !hash(&path).map_err(|e| Error::io("read", &path, e))?.eq_ignore_ascii_case(expected) {
            return Err(Error::user(
                format!("{} is damaged: its SHA-256 is not the one in {SUMS}", path.display()),
                format!("copy the folder again; if the change is yours, remove {}", sums.display()),
            ));
        }
    }
    Ok(())
}

/// A hash and the name of a file beside the list.
fn entry(line: &str) -> Option<(&str, &str)> {
    let (hash, name) = line.split_at_checked(64)?;
    let name = name.strip_prefix("  ").or_else(|| name.strip_prefix(" *"))?;
    let beside = matches!(Path::new(name).components().collect::<Vec<_>>()[..], [Component::Normal(_)]);
    (hash.bytes().all(|b| b.is_ascii_hexdigit()) && beside).then_some((hash, name))
}

fn hash(path: &Path) -> io::Result<String> {
    let mut hasher = Sha256::new();
    io::copy(&mut File::open(path)?, &mut hasher)?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_compared_where_there_are_hashes_and_lists_of_others_are_passed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        std::fs::write(&path, "abc").unwrap();
        check(dir.path()).unwrap();
        write(dir.path(), &["a.txt"]).unwrap();
        let list = std::fs::read_to_string(dir.path().join(SUMS)).unwrap();
        assert_eq!(list, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad  a.txt\n");
        check(dir.path()).unwrap();
        std::fs::write(&path, "abd").unwrap();
        let error = check(dir.path()).unwrap_err();
        assert!(error.to_string().contains("a.txt is damaged"), "{error}");
        assert!(error.remedy().unwrap().contains(SUMS));
        // Of another form, of files elsewhere or that are gone.
        let other = format!("MD5 (a) = 3\n{list}{}", list.replace("a.txt", "../a.txt"));
        std::fs::write(dir.path().join(SUMS), other.replacen(&list, "", 1).replace("ba78", "0000")).unwrap();
        check(dir.path()).unwrap();
        std::fs::write(dir.path().join(SUMS), list.replace("a.txt", "b.txt")).unwrap();
        check(dir.path()).unwrap();
    }
}
