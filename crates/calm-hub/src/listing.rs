//! What a repository holds: its commit, and each file with the size and hash that the hub knows.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::http::Client;
use crate::names::{Repository, encode, is_below, is_commit, is_hex};
use crate::watch::Watch;

/// A file of a repository.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Remote {
    /// Its path in the repository.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Its name in a cache: the SHA-256 of a large file, git's SHA-1 of a small one, in hexadecimal.
    pub etag: String,
}

impl Remote {
    /// Its hash with the kind of it.
    pub fn hash(&self) -> String {
        let kind = if self.etag.len() == 64 { "sha256" } else { "git-sha1" };
        format!("{kind}:{}", self.etag)
    }

    /// Whether its names can be names here.
    pub(crate) fn is_sound(&self) -> bool {
        is_below(&self.path) && (is_hex(&self.etag, 64) || is_hex(&self.etag, 40))
    }
}

/// What a repository holds at a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// Which.
    pub repository: Repository,
    /// The commit, which says what all of it is.
    pub commit: String,
    /// Its files by path.
    pub files: Vec<Remote>,
}

impl Listing {
    /// The address of a file, for people and records.
    pub fn address(&self, file: &Remote) -> String {
        format!("hf://{}{}@{}/{}", self.repository.files(), self.repository.name(), self.commit, file.path)
    }
}

#[derive(Deserialize)]
struct Info {
    sha: String,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    path: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    oid: String,
    lfs: Option<Large>,
}

#[derive(Deserialize)]
struct Large {
    oid: String,
    size: u64,
}

/// Pages of a listing; the hub gives a thousand files each.
const PAGES: usize = 2_000;

/// Asks the hub, which must have something.
pub(crate) fn ask(
    client: &Client,
    repository: &Repository,
    revision: &str,
    watch: &mut Watch,
) -> Result<Listing> {
    let listing = all(client, repository, revision, watch)?;
    if listing.files.is_empty() {
        return Err(Error::NotFound {
            host: client.host().to_owned(),
            what: format!("any file in {repository} at `{revision}`"),
            with_token: false,
        });
    }
    Ok(listing)
}

/// Asks the hub for all that a repository holds, if only nothing.
pub(crate) fn all(
    client: &Client,
    repository: &Repository,
    revision: &str,
    watch: &mut Watch,
) -> Result<Listing> {
    let what = format!("{repository} at `{revision}`");
    let base = client.address(&format!("{}/{}", repository.api(), repository.name()));
    let commit = if is_commit(revision) {
        revision.to_owned()
    } else {
        let address = format!("{base}/revision/{}", encode(revision, false));
        client.json::<Info>(&address, &what, watch)?.0.sha
    };
    if !is_commit(&commit) {
        return Err(client.wrong(&what, "its commit is none"));
    }
    let mut files = Vec::new();
    let mut next = Some(format!("{base}/tree/{commit}?recursive=true"));
    for page in 0.. {
        let Some(address) = next.take() else { break };
        if page == PAGES || !client.is_hub(&address) {
            return Err(client.wrong(&what, "its list of files does not end"));
        }
        let (entries, after) = client.json::<Vec<Entry>>(&address, &what, watch)?;
        for entry in entries.into_iter().filter(|entry| entry.kind == "file") {
            let (etag, size) = entry.lfs.map_or((entry.oid, entry.size), |large| (large.oid, large.size));
            let file = Remote { path: entry.path, size, etag: etag.trim_start_matches("sha256:").to_owned() };
            if !file.is_sound() {
                let path: String = file.path.chars().take(200).collect();
                return Err(client.wrong(&what, &format!("{path:?} cannot be a file with a hash")));
            }
            files.push(file);
        }
        next = after;
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    if files.windows(2).any(|pair| pair[0].path == pair[1].path) {
        return Err(client.wrong(&what, "it names a file twice"));
    }
    Ok(Listing { repository: repository.clone(), commit, files })
}
