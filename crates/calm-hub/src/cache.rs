//! The cache that all tools of the hub share: what one of them fetched, the others find.
//!
//! ```text
//! CACHE/datasets--OWNER--NAME/blobs/<hash>                      the content
//!                             snapshots/<commit>/<path>         a link to it
//!                             refs/<revision>                   the commit that a branch was last seen at
//!                             listings/<commit>.json            ours: all files of the commit, with their hashes
//! CACHE/.locks/datasets--OWNER--NAME/<hash>.lock                who is fetching
//! ```
//!
//! The listing is what makes a commit usable without the network: the links alone do not tell which files are missing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::listing::{Listing, Remote};
use crate::names::{Repository, is_commit, is_hex};

#[derive(Clone, Debug)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    fn folder(&self, repository: &Repository) -> PathBuf {
        self.root.join(repository.folder())
    }

    pub(crate) fn blob(&self, repository: &Repository, etag: &str) -> PathBuf {
        self.folder(repository).join("blobs").join(etag)
    }

    pub(crate) fn lock(&self, repository: &Repository, etag: &str) -> PathBuf {
        self.root.join(".locks").join(repository.folder()).join(format!("{etag}.lock"))
    }

    /// Where a file has its name.
    pub(crate) fn place(&self, listing: &Listing, path: &str) -> PathBuf {
        self.folder(&listing.repository).join("snapshots").join(&listing.commit).join(path)
    }

    /// A file that is there whole, under its name; content that another commit brought gets a name.
    pub(crate) fn find(&self, listing: &Listing, file: &Remote) -> Result<Option<PathBuf>> {
        let place = self.place(listing, &file.path);
        // A tool without links puts the content itself there.
        if length(&place)? == Some(file.size) {
            return Ok(Some(place));
        }
        let blob = self.blob(&listing.repository, &file.etag);
        if length(&blob)? != Some(file.size) {
            return Ok(None);
        }
        calm_files::link(&blob, &place).map_err(|e| Error::cache(&place, e))?;
        Ok(Some(place))
    }

    /// What is known of a revision without asking: all of a commit that was listed before; without the network also what
    /// other tools left.
    pub(crate) fn listing(
        &self,
        repository: &Repository,
        revision: &str,
        offline: bool,
    ) -> Result<Option<Listing>> {
        let folder = self.folder(repository);
        let commit = if is_commit(revision) {
            revision.to_owned()
        } else if offline {
            match fs::read_to_string(folder.join("refs").join(revision)) {
                Ok(commit) if is_commit(commit.trim()) => commit.trim().to_owned(),
                _ => return Ok(None),
            }
        } else {
            return Ok(None);
        };
        let mut listing = Listing { repository: repository.clone(), commit, files: Vec::new() };
        if let Ok(bytes) = fs::read(self.listing_file(&listing))
            && let Ok(files) = serde_json::from_slice::<Vec<Remote>>(&bytes)
            && files.iter().all(Remote::is_sound)
        {
            listing.files = files;
            return Ok(Some(listing));
        }
        if offline {
            let snapshot = folder.join("snapshots").join(&listing.commit);
            walk(&snapshot, "", &mut listing.files).map_err(|e| Error::cache(&snapshot, e))?;
            let missing = missing(&listing.files);
            listing.files.extend(missing);
            listing.files.sort_by(|a, b| a.path.cmp(&b.path));
        }
        Ok(Some(listing).filter(|listing| !listing.files.is_empty()))
    }

    fn listing_file(&self, listing: &Listing) -> PathBuf {
        self.folder(&listing.repository).join("listings").join(format!("{}.json", listing.commit))
    }

    pub(crate) fn keep_listing(&self, listing: &Listing, revision: &str) -> Result<()> {
        let keep = |path: &Path, bytes: &[u8]| {
            // What is there already needs no permission to write.
            if fs::read(path).is_ok_and(|there| there == bytes) {
                return Ok(());
            }
            calm_files::write_bytes(path, bytes).map(|_| ()).map_err(|e| Error::cache(path, e))
        };
        let json = serde_json::to_vec(&listing.files).unwrap_or_default();
        keep(&self.listing_file(listing), &json)?;
        if is_commit(revision) {
            return Ok(());
        }
        let name = self.folder(&listing.repository).join("refs").join(revision);
        keep(&name, listing.commit.as_bytes())
    }
}

fn length(path: &Path) -> Result<Option<u64>> {
    match fs::metadata(path) {
        Ok(metadata) => Ok(metadata.is_file().then_some(metadata.len())),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(e) => Err(Error::cache(path, e)),
    }
}

/// The files of a snapshot, by the hashes that their links name.
fn walk(folder: &Path, prefix: &str, files: &mut Vec<Remote>) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let path = format!("{prefix}{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            walk(&entry.path(), &format!("{path}/"), files)?;
            continue;
        }
        let Ok(metadata) = fs::metadata(entry.path()) else { continue };
        let blob = fs::read_link(entry.path()).ok();
        let etag = blob.and_then(|blob| Some(blob.file_name()?.to_string_lossy().into_owned()));
        let etag = etag.filter(|etag| is_hex(etag, 64) || is_hex(etag, 40)).unwrap_or_else(|| "0".repeat(40));
        files.push(Remote { path, size: metadata.len(), etag });
    }
    Ok(())
}

/// Files of sets such as `train-00000-of-00012.parquet` of which only some are there: a part of a text must not be taken
/// for all of it.
fn missing(files: &[Remote]) -> Vec<Remote> {
    let mut missing: Vec<String> = Vec::new();
    for file in files {
        let Some((begin, number, end)) = numbered(&file.path) else { continue };
        for n in 0..number {
            let path = format!("{begin}-{n:05}-of-{number:05}{end}");
            if !files.iter().any(|file| file.path == path) && !missing.contains(&path) {
                missing.push(path);
            }
        }
    }
    missing.into_iter().map(|path| Remote { path, size: 0, etag: "0".repeat(40) }).collect()
}

/// What stands before the numbers, how many files there are, and what follows.
fn numbered(path: &str) -> Option<(&str, usize, &str)> {
    let at = path.find("-of-")?;
    let begin = path[..at].strip_suffix(|c: char| c.is_ascii_digit())?;
    let begin = begin.trim_end_matches(|c: char| c.is_ascii_digit()).strip_suffix('-')?;
    let rest = &path[at + 4..];
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let number = rest[..digits].parse().ok().filter(|n| (1..=10_000).contains(n))?;
    (digits == 5).then_some((begin, number, &rest[digits..]))
}
