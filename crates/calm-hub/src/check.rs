//! The hashes by which a hub knows its files.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::listing::Remote;

/// A hash that is being made, of the kind that a file has.
pub(crate) enum Hash {
    Large(Box<Sha256>),
    Small(Box<Sha1>),
}

impl Hash {
    pub(crate) fn of(file: &Remote) -> Self {
        if file.etag.len() == 64 {
            return Self::Large(Box::default());
        }
        // As git names an object: its kind and size stand before its content.
        let mut hash = Sha1::new();
        hash.update(format!("blob {}\0", file.size));
        Self::Small(Box::new(hash))
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Large(_) => "SHA-256",
            Self::Small(_) => "git hash",
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Large(hash) => hash.update(bytes),
            Self::Small(hash) => hash.update(bytes),
        }
    }

    /// Adds the content of a file.
    pub(crate) fn update_from(&mut self, path: &Path) -> io::Result<()> {
        let mut file = File::open(path)?;
        let mut piece = vec![0; 1 << 20];
        loop {
            match file.read(&mut piece)? {
                0 => return Ok(()),
                n => self.update(&piece[..n]),
            }
        }
    }

    pub(crate) fn finish(self) -> String {
        let bytes: Vec<u8> = match self {
            Self::Large(hash) => hash.finalize().to_vec(),
            Self::Small(hash) => hash.finalize().to_vec(),
        };
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_those_of_git_and_of_large_files() {
        let hash = |etag: &str, bytes: &[u8]| {
            let file = Remote { path: "a".into(), size: bytes.len() as u64, etag: etag.into() };
            let mut hash = Hash::of(&file);
            hash.update(bytes);
            hash.finish()
        };
        // `printf 'hello\n' | git hash-object --stdin` and `sha256sum`.
        assert_eq!(hash(&"0".repeat(40), b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
        assert_eq!(
            hash(&"0".repeat(64), b"hello\n"),
            "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
        );
    }
}
