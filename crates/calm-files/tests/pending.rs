//! Files whose content comes over time.

#![allow(clippy::unwrap_used)]

use std::fs;

use calm_files::{Pending, Sum};

#[test]
fn a_pending_file_has_its_name_when_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("deep/file");
    let names = || fs::read_dir(folder.path().join("deep")).unwrap().count();
    let mut file = Pending::begin(&path).unwrap();
    file.append(b"one ").unwrap();
    assert!(!path.exists() && names() == 1);
    file.append(b"two").unwrap();
    let sum = file.finish().unwrap();
    assert_eq!((fs::read(&path).unwrap().as_slice(), names()), (&b"one two"[..], 1));
    assert_eq!(sum, Sum::of_file(&path).unwrap());
    // One that is given up leaves what was there.
    let mut other = Pending::begin(&path).unwrap();
    other.append(b"three").unwrap();
    drop(other);
    assert_eq!((fs::read(&path).unwrap().as_slice(), names()), (&b"one two"[..], 1));
}
