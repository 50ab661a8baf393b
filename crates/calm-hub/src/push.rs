//! Files on their way to a repository: compared with what is there, large ones brought first, all named in one commit.
//!
//! Before the commit nothing that was sent has a name, so that a push that ends early changes nothing that anybody sees
//! (a repository that was made for it is there, and empty). The commit names the one it follows: if somebody else was
//! faster, the hub refuses it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::http::{Client, Failure, still};
use crate::listing::{Listing, Remote, all};
use crate::local::{Known, Local};
use crate::names::{Repository, encode, is_below, is_commit};
use crate::send::json as of_json;
use crate::upload::Upload;
use crate::watch::Watch;

/// The branch that is written to.
const BRANCH: &str = "main";
/// Bytes that a commit itself may carry.
const INLINE: u64 = 32 << 20;

/// What is sent.
pub struct Push<'a> {
    /// Where to.
    pub repository: &'a Repository,
    /// The files.
    pub files: &'a [Local],
    /// First line of the commit.
    pub message: &'a str,
    /// A repository that is made can be seen by its owner alone.
    pub private: bool,
    /// Files of these names there go, and so do those that [`Push::stale`] names.
    pub replace: bool,
    /// Whether a file that is there, and not among those that are sent, would contradict them.
    pub stale: &'a dyn Fn(&str) -> bool,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    /// The commit; the one that was there if it holds the same already.
    pub commit: String,
    /// The page, for people.
    pub page: String,
    /// Whether the repository was made.
    pub created: bool,
    /// Bytes of large files that went over the network.
    pub sent: u64,
    /// Whether all was there already.
    pub unchanged: bool,
}

#[derive(Deserialize)]
struct Modes {
    files: Vec<Mode>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mode {
    path: String,
    upload_mode: String,
    #[serde(default)]
    should_ignore: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Committed {
    commit_oid: String,
}

/// Sends all of it.
pub(crate) fn all_of(client: &Client, push: &Push<'_>, watch: &mut Watch) -> Result<Pushed> {
    let repository = push.repository;
    if let Some(file) = push.files.iter().find(|file| !is_below(&file.path)) {
        return Err(Error::Name {
            what: format!("`{}` is no name of a file in a repository", file.path),
            remedy: "rename the file",
        });
    }
    let files = push.files.iter().map(|file| Known::read(file, watch)).collect::<Result<Vec<_>>>()?;
    let (before, created) = open(client, push, watch)?;
    let page = client.address(&format!("{}{}", repository.files(), repository.name()));
    let goes = goes(push, &before);
    let changed: Vec<&Known> = files.iter().filter(|file| !file.lies_in(&before)).collect();
    consent(push, &before, &changed, &goes)?;
    if changed.is_empty() && goes.is_empty() {
        return Ok(Pushed { commit: before.commit, page, created, sent: 0, unchanged: true });
    }
    let large = modes(client, repository, &changed, watch)?;
    let (mut sent, upload) = (0, Upload { client, repository, branch: BRANCH });
    for file in changed.iter().zip(&large).filter_map(|(file, large)| large.then_some(file)) {
        sent += upload.file(file, watch)?;
    }
    let body = lines(push, &before, &changed, &large, &goes)?;
    still(watch)?;
    let commit = commit(client, repository, &before, &files, &body, watch)?;
    Ok(Pushed { commit, page, created, sent, unchanged: false })
}

/// What the repository holds; it is made if it is not there.
fn open(client: &Client, push: &Push<'_>, watch: &mut Watch) -> Result<(Listing, bool)> {
    let repository = push.repository;
    match all(client, repository, BRANCH, watch) {
        Err(Error::NotFound { .. }) => {}
        found => return Ok((found?, false)),
    }
    still(watch)?;
    let what = format!("a new repository, {}", repository.name());
    let (owner, name) = repository.name().split_once('/').unwrap_or(("", repository.name()));
    let wanted = json!({
        "type": "model", "organization": owner, "name": name, "private": push.private,
    });
    let body = wanted.to_string().into_bytes();
    let created = client.patiently(watch, |_, _| {
        let answer = client.post(&client.address("api/repos/create"), &of_json(), &body, &what)?;
        // An answer that was lost may have made it; so may somebody else.
        Ok(answer.status != 409)
    })?;
    let there = all(client, repository, BRANCH, watch)?;
    Ok((there, created))
}

/// Files that are there, and go.
fn goes<'l>(push: &Push<'_>, before: &'l Listing) -> Vec<&'l Remote> {
    let sent = |path: &str| push.files.iter().any(|file| file.path == path);
    before.files.iter().filter(|there| !sent(&there.path) && (push.stale)(&there.path)).collect()
}

/// What is there goes only if somebody said so.
fn consent(push: &Push<'_>, before: &Listing, changed: &[&Known<'_>], goes: &[&Remote]) -> Result<()> {
    let there = |path: &str| before.files.iter().any(|file| file.path == path);
    let replaced = changed.iter().map(|file| file.path()).filter(|path| there(path));
    let lost: Vec<&str> = replaced.chain(goes.iter().map(|file| file.path.as_str())).collect();
    if push.replace || lost.is_empty() {
        return Ok(());
    }
    let more = lost.len().saturating_sub(4);
    let files = lost[..lost.len() - more].join(", ");
    let files = if more > 0 { format!("{files} and {more} more") } else { files };
    Err(Error::Exists { repository: push.repository.to_string(), files })
}

/// Which files go as large ones: the hub says so, by their names, sizes and first bytes.
fn modes(
    client: &Client,
    repository: &Repository,
    files: &[&Known<'_>],
    watch: &mut Watch,
) -> Result<Vec<bool>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    let what = format!("files of {repository}");
    let described = |file: &&Known<'_>| json!({ "path": file.path(), "size": file.size, "sample": STANDARD.encode(&file.sample) });
    let wanted = json!({ "files": files.iter().map(described).collect::<Vec<Value>>() });
    let address = format!("{}/{}/preupload/{BRANCH}", repository.api(), repository.name());
    let modes: Modes = client.ask_with(&client.address(&address), &of_json(), &wanted, &what, watch)?;
    let large = |file: &&Known<'_>| {
        let wrong = |problem: &str| Err(client.wrong(&format!("{} of {repository}", file.path()), problem));
        match modes.files.iter().find(|mode| mode.path == file.path()) {
            None => wrong("it does not say how it is to be sent"),
            Some(mode) if mode.should_ignore => {
                wrong("its .gitignore leaves this file out, and a part of a model is none")
            }
            Some(mode) => match mode.upload_mode.as_str() {
                "lfs" => Ok(file.size > 0),
                "regular" if file.size <= INLINE => Ok(false),
                "regular" => wrong("such a large file cannot go into a commit"),
                _ => wrong("it is to be sent in a way that is not known here"),
            },
        }
    };
    files.iter().map(large).collect()
}

/// A commit, one line of JSON each thing.
fn lines(
    push: &Push<'_>,
    before: &Listing,
    changed: &[&Known<'_>],
    large: &[bool],
    goes: &[&Remote],
) -> Result<Vec<u8>> {
    let header = json!({ "summary": push.message, "description": "", "parentCommit": before.commit });
    let mut lines = vec![json!({ "key": "header", "value": header })];
    for (file, large) in changed.iter().zip(large) {
        let path = file.path();
        if *large {
            let value = json!({ "path": path, "algo": "sha256", "oid": file.sha256, "size": file.size });
            lines.push(json!({ "key": "lfsFile", "value": value }));
            continue;
        }
        let from = &file.local.from;
        let content = std::fs::read(from).map_err(|source| Error::Local { path: from.clone(), source })?;
        let value = json!({ "path": path, "encoding": "base64", "content": STANDARD.encode(content) });
        lines.push(json!({ "key": "file", "value": value }));
    }
    lines.extend(goes.iter().map(|file| json!({ "key": "deletedFile", "value": { "path": file.path } })));
    Ok(lines.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect())
}

/// Names what was sent. An answer that is lost leaves open whether it was done: the hub is asked what it has.
fn commit(
    client: &Client,
    repository: &Repository,
    before: &Listing,
    files: &[Known<'_>],
    body: &[u8],
    watch: &mut Watch,
) -> Result<String> {
    let what = format!("a commit to {repository}");
    let address = format!("{}/{}/commit/{}", repository.api(), repository.name(), encode(BRANCH, false));
    let address = client.address(&address);
    let headers = [("content-type".to_owned(), "application/x-ndjson".to_owned())];
    let commit = client.patiently(watch, |watch, _| {
        let lost = match client.post(&address, &headers, body, &what) {
            Ok(answer) if answer.status < 300 => match client.read::<Committed>(answer, &what) {
                Ok(done) if is_commit(&done.commit_oid) => return Ok(done.commit_oid),
                Ok(_) => return Err(Failure::Final(client.wrong(&what, "its commit is none"))),
                Err(lost) => lost,
            },
            Ok(_) => Failure::Final(Error::Changed { repository: repository.to_string() }),
            Err(lost) => lost,
        };
        let open = match &lost {
            Failure::Again(..) => true,
            Failure::Final(error) => matches!(error, Error::Changed { .. } | Error::Answer { .. }),
        };
        if !open {
            return Err(lost);
        }
        let now = all(client, repository, BRANCH, watch).map_err(Failure::Final)?;
        let done = now.commit != before.commit && files.iter().all(|file| file.lies_in(&now));
        if done { Ok(now.commit) } else { Err(lost) }
    })?;
    // What the hub says that it took is compared with what was sent.
    let now = all(client, repository, &commit, watch)?;
    match files.iter().find(|file| !file.lies_in(&now)) {
        None => Ok(commit),
        Some(file) => {
            let found = now.files.iter().find(|there| there.path == file.path());
            Err(Error::Content {
                file: file.path().to_owned(),
                repository: repository.to_string(),
                what: "hash at the hub",
                found: found.map_or("missing", |there| &there.etag).to_owned(),
                expected: file.sha256.clone(),
            })
        }
    }
}
