//! Length and hash of a file.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Length and BLAKE3 of some bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    /// Length.
    pub bytes: u64,
    /// BLAKE3, hexadecimal.
    pub blake3: String,
}

impl Sum {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, blake3: blake3::hash(bytes).to_hex().to_string() }
    }

    /// Of a file.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of_file(path: &Path) -> io::Result<Self> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(Self::finish(&hasher))
    }

    pub(crate) fn finish(hasher: &blake3::Hasher) -> Self {
        Self { bytes: hasher.count(), blake3: hasher.finalize().to_hex().to_string() }
    }

    /// How these bytes differ from the sum; None if they do not.
    pub fn differs(&self, bytes: &[u8]) -> Option<String> {
        let now = bytes.len() as u64;
        if now != self.bytes {
            return Some(format!("it has {now} bytes and must have {}", self.bytes));
        }
        (blake3::hash(bytes).to_hex().as_str() != self.blake3)
            .then(|| "its bytes differ from what was written".to_owned())
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, BLAKE3 {}", self.bytes, self.blake3)
    }
}
