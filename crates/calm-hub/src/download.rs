//! One file from a hub: continued where it broke off, and taken only if it is what the hub said that it is.

use std::io::Read;
use std::path::PathBuf;

use calm_files::Partial;

use crate::cache::Cache;
use crate::check::Hash;
use crate::error::{Error, Result};
use crate::http::{Answer, Client, Failure};
use crate::listing::{Listing, Remote};
use crate::names::encode;
use crate::watch::{Event, Watch};

/// Bytes between two looks at who watches.
const PIECE: usize = 1 << 17;

/// What is there of a file, with its hash so far.
struct Arriving<'a> {
    file: &'a Remote,
    partial: Partial,
    hash: Hash,
}

impl Arriving<'_> {
    fn restart(&mut self) -> Result<()> {
        self.hash = Hash::of(self.file);
        self.partial.restart().map_err(|e| Error::cache(self.partial.path(), e))
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.partial.append(bytes).map_err(|e| Error::cache(self.partial.path(), e))
    }
}

/// Fetches a file into the cache and says where it lies.
pub(crate) fn file(
    client: &Client,
    cache: &Cache,
    listing: &Listing,
    file: &Remote,
    watch: &mut Watch,
) -> Result<PathBuf> {
    let lock = cache.lock(&listing.repository, &file.etag);
    let mut waits = || {
        watch(&Event::Locked { file: file.path.clone() });
    };
    let _held = calm_files::hold(&lock, &mut waits).map_err(|e| Error::cache(&lock, e))?;
    // Whoever had the lock may have brought it.
    if let Some(path) = cache.find(listing, file)? {
        return Ok(path);
    }
    let blob = cache.blob(&listing.repository, &file.etag);
    let name = blob.with_file_name(format!("{}.incomplete", file.etag));
    let partial = Partial::open(&name).map_err(|e| Error::cache(&name, e))?;
    let mut arriving = Arriving { file, partial, hash: Hash::of(file) };
    if arriving.partial.len() > file.size {
        arriving.restart()?;
    }
    arriving.hash.update_from(&name).map_err(|e| Error::cache(&name, e))?;
    // What was there before may be of something else: then all of it comes once more.
    let mut again = true;
    loop {
        let continued = !arriving.partial.is_empty();
        arrive(client, listing, &mut arriving, watch)?;
        let kind = arriving.hash.kind();
        let found = std::mem::replace(&mut arriving.hash, Hash::of(file)).finish();
        if found == file.etag {
            break;
        }
        arriving.restart()?;
        if !(again && continued) {
            return Err(Error::Content {
                file: file.path.clone(),
                repository: listing.repository.to_string(),
                what: kind,
                found,
                expected: file.etag.clone(),
            });
        }
        again = false;
    }
    arriving.partial.finish(&blob).map_err(|e| Error::cache(&blob, e))?;
    let place = cache.place(listing, &file.path);
    calm_files::link(&blob, &place).map_err(|e| Error::cache(&place, e))?;
    Ok(place)
}

/// Fetches until all bytes are there.
fn arrive(client: &Client, listing: &Listing, arriving: &mut Arriving, watch: &mut Watch) -> Result<()> {
    let repository = &listing.repository;
    let (commit, path) = (&listing.commit, encode(&arriving.file.path, true));
    let address =
        client.address(&format!("{}{}/resolve/{commit}/{path}", repository.files(), repository.name()));
    let what = format!("{} of {repository}", arriving.file.path);
    client.patiently(watch, |watch, reached| {
        let done = if arriving.partial.len() < arriving.file.size {
            part(client, &address, &what, arriving, watch)
        } else {
            Ok(())
        };
        *reached = arriving.partial.len();
        done
    })
}

/// One answer, as far as it goes.
fn part(
    client: &Client,
    address: &str,
    what: &str,
    arriving: &mut Arriving,
    watch: &mut Watch,
) -> Result<(), Failure> {
    let (from, size) = (arriving.partial.len(), arriving.file.size);
    let answer = client.get(address, from, what)?;
    let host = answer.host.clone();
    let wrong = |problem: String| Error::Answer {
        host: host.clone(),
        what: what.to_owned(),
        problem: client.said(&problem),
    };
    if let Some(linked) = &answer.linked {
        let etag = Answer::header(linked, "x-linked-etag").map(|etag| etag.trim_matches('"'));
        if etag != Some(&arriving.file.etag) {
            return Err(Failure::Final(wrong(format!(
                "its hash is {} there and {} in the list",
                etag.unwrap_or("missing"),
                arriving.file.etag
            ))));
        }
    }
    match answer.status {
        206 => {
            let range = Answer::header(&answer.headers, "content-range").unwrap_or_default();
            let begins = range.strip_prefix("bytes ").and_then(|r| r.split('-').next()?.trim().parse().ok());
            if begins != Some(from) {
                return Err(Failure::Final(wrong(format!(
                    "bytes from {from} were asked for, not `{range}`"
                ))));
            }
            let total = range.rsplit_once('/').and_then(|(_, total)| total.trim().parse::<u64>().ok());
            if total.is_some_and(|total| total != size) {
                return Err(Failure::Final(wrong(format!("it has {range} bytes, and {size} in the list"))));
            }
        }
        // It is shorter there than what is here.
        416 => {
            arriving.restart().map_err(Failure::Final)?;
            return Err(Failure::again(wrong(format!("it does not reach to byte {from}")), None));
        }
        _ => {
            if from > 0 {
                arriving.restart().map_err(Failure::Final)?;
            }
            let length =
                Answer::header(&answer.headers, "content-length").and_then(|n| n.parse::<u64>().ok());
            if length.is_some_and(|length| length != size) {
                let length = length.unwrap_or_default();
                return Err(Failure::Final(wrong(format!("it has {length} bytes, and {size} in the list"))));
            }
        }
    }
    let mut body = answer.body.into_with_config().limit(u64::MAX).reader();
    let mut piece = vec![0; PIECE];
    loop {
        let read = match body.read(&mut piece) {
            Ok(read) => read,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(Failure::again(Error::Unreachable { host, reason: e.to_string() }, None)),
        };
        if read == 0 {
            break;
        }
        let done = arriving.partial.len() + read as u64;
        if done > size {
            arriving.restart().map_err(Failure::Final)?;
            return Err(Failure::Final(wrong(format!("more than the {size} bytes of the list"))));
        }
        arriving.append(&piece[..read]).map_err(Failure::Final)?;
        let file = arriving.file.path.clone();
        if !watch(&Event::Bytes { file, done, total: size }) {
            return Err(Failure::Final(Error::Stopped));
        }
    }
    let there = arriving.partial.len();
    if there < size {
        let reason = format!("it broke off after {there} of {size} bytes");
        return Err(Failure::again(Error::Unreachable { host, reason }, None));
    }
    Ok(())
}
