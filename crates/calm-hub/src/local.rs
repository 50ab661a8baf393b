//! Files here that are to lie in a repository: their sizes, and the hashes by which a hub knows them.

use std::fs::File;
use std::io::Read;
use std::path::PathBuf;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::http::still;
use crate::listing::{Listing, Remote};
use crate::watch::Watch;

/// Bytes of a file by which the hub tells what it is.
const SAMPLE: usize = 512;
/// A file here, and its name there.
#[derive(Clone, Debug)]
pub struct Local {
    /// Its path in the repository.
    pub path: String,
    /// Where it lies.
    pub from: PathBuf,
}

/// A file whose size and hashes are known.
pub(crate) struct Known<'a> {
    pub(crate) local: &'a Local,
    pub(crate) size: u64,
    pub(crate) sha256: String,
    sha1: String,
    pub(crate) sample: Vec<u8>,
}

impl<'a> Known<'a> {
    pub(crate) fn read(local: &'a Local, watch: &mut Watch) -> Result<Self> {
        let failed = |source| Error::Local { path: local.from.clone(), source };
        let mut file = File::open(&local.from).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        let (mut large, mut small) = (Sha256::new(), Sha1::new());
        small.update(format!("blob {size}\0"));
        let (mut sample, mut piece, mut read) = (Vec::new(), vec![0; 1 << 20], 0);
        loop {
            still(watch)?;
            let n = file.read(&mut piece).map_err(failed)?;
            if n == 0 {
                break;
            }
            large.update(&piece[..n]);
            small.update(&piece[..n]);
            read += n as u64;
            let lacks = SAMPLE - sample.len();
            sample.extend_from_slice(&piece[..n.min(lacks)]);
        }
        if read != size {
            return Err(failed(std::io::Error::other("it changes while it is read")));
        }
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Self { local, size, sha256: hex(&large.finalize()), sha1: hex(&small.finalize()), sample })
    }

    pub(crate) fn path(&self) -> &str {
        &self.local.path
    }

    /// Whether this is what lies there.
    fn is(&self, there: &Remote) -> bool {
        there.path == self.path()
            && there.size == self.size
            && [&self.sha256, &self.sha1].contains(&&there.etag)
    }

    pub(crate) fn lies_in(&self, listing: &Listing) -> bool {
        listing.files.iter().any(|there| self.is(there))
    }
}
