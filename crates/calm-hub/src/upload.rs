//! Large files on their way to a hub: by git's protocol for them (LFS), whole or in the parts that the hub names. What
//! was sent has no name there before the commit.
//!
//! ```text
//! batch   hub:      which of these do you lack, and where shall they go?
//! PUT     storage:  the bytes, or each part of them        -> an ETag a part
//! POST    hub:      the parts are there, with these ETags  (in parts only)
//! POST    hub:      it is there, look                      (if the hub asks for it)
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::http::{Answer, Client, Failure};
use crate::local::Known;
use crate::names::Repository;
use crate::send::{Method, Sent};
use crate::watch::{Event, Watch};

/// Most parts of one file.
const PARTS: u64 = 10_000;
/// How often a file is begun anew because its addresses ran out.
const ANEW: u32 = 3;

#[derive(Deserialize)]
struct Batch {
    objects: Vec<Object>,
}

#[derive(Deserialize)]
struct Object {
    oid: String,
    size: u64,
    #[serde(default)]
    actions: Option<Actions>,
    #[serde(default)]
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

#[derive(Default, Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Deserialize)]
struct Action {
    href: String,
    #[serde(default)]
    header: BTreeMap<String, Value>,
}

fn lfs() -> Vec<(String, String)> {
    let kind = "application/vnd.git-lfs+json";
    vec![("accept".into(), kind.into()), ("content-type".into(), kind.into())]
}

/// Where and what for.
pub(crate) struct Upload<'a> {
    pub(crate) client: &'a Client,
    pub(crate) repository: &'a Repository,
    pub(crate) branch: &'a str,
}

impl Upload<'_> {
    /// Brings a file to the hub, unless it is there already; says how many bytes went.
    pub(crate) fn file(&self, file: &Known<'_>, watch: &mut Watch) -> Result<u64> {
        let what = format!("{} of {}", file.path(), self.repository);
        let mut left = ANEW;
        loop {
            let Some(actions) = self.ask(file, &what, watch)? else { return Ok(0) };
            match self.bring(file, actions, &what, watch) {
                Err(Error::Status { status: 400 | 401 | 403 | 404, .. }) if left > 0 => left -= 1,
                Err(error) => return Err(error),
                Ok(()) => return Ok(file.size),
            }
        }
    }

    /// Asks where a file shall go; none if the hub has it.
    fn ask(&self, file: &Known<'_>, what: &str, watch: &mut Watch) -> Result<Option<Actions>> {
        let name =
            format!("{}{}.git/info/lfs/objects/batch", self.repository.files(), self.repository.name());
        let wanted = json!({
            "operation": "upload",
            "transfers": ["basic", "multipart"],
            "hash_algo": "sha256",
            "ref": { "name": self.branch },
            "objects": [{ "oid": file.sha256, "size": file.size }],
        });
        let client = self.client;
        let batch: Batch = client.ask_with(&client.address(&name), &lfs(), &wanted, what, watch)?;
        let [object] = <[Object; 1]>::try_from(batch.objects)
            .map_err(|all| client.wrong(what, &format!("{} answers about one file", all.len())))?;
        if let Some(Refusal { message }) = object.error {
            let (host, reason) = (client.host().to_owned(), client.said(&message));
            return Err(Error::Refused { host, what: what.to_owned(), reason, of_token: false });
        }
        if object.oid != file.sha256 || object.size != file.size {
            return Err(client.wrong(what, "it is about another file"));
        }
        Ok(object.actions.filter(|actions| actions.upload.is_some()))
    }

    fn bring(&self, file: &Known<'_>, actions: Actions, what: &str, watch: &mut Watch) -> Result<()> {
        let Some(upload) = actions.upload else { return Ok(()) };
        let mut headers = upload.header;
        match headers.remove("chunk_size") {
            Some(size) => self.parts(file, &upload.href, &size, &headers, what, watch)?,
            None => {
                let headers = texts(&headers);
                self.part(file, (0, file.size), &upload.href, &headers, what, watch)?;
            }
        }
        let Some(verify) = actions.verify else { return Ok(()) };
        let headers = [lfs(), texts(&verify.header)].concat();
        self.tell(&verify.href, &headers, &json!({ "oid": file.sha256, "size": file.size }), what, watch)
    }

    /// Sends a file in parts of `size` bytes, each to an address of its own: those with a number for a name.
    fn parts(
        &self,
        file: &Known<'_>,
        href: &str,
        size: &Value,
        headers: &BTreeMap<String, Value>,
        what: &str,
        watch: &mut Watch,
    ) -> Result<()> {
        let wrong = |problem: &str| self.client.wrong(what, problem);
        let size = size.as_u64().or_else(|| size.as_str()?.parse().ok()).filter(|size| *size > 0);
        let size = size.ok_or_else(|| wrong("its parts have no size"))?;
        let number = file.size.div_ceil(size);
        let addresses: BTreeMap<u64, &str> =
            headers.iter().filter_map(|(name, value)| Some((name.parse().ok()?, value.as_str()?))).collect();
        if number > PARTS || !addresses.keys().copied().eq(1..=number) {
            let named = addresses.len();
            return Err(wrong(&format!("{named} addresses for {number} parts")));
        }
        let mut done = Vec::new();
        for (n, address) in addresses {
            let from = (n - 1) * size;
            let to = (from + size).min(file.size);
            let etag = self.part(file, (from, to), address, &[], what, watch)?;
            let etag = etag.ok_or_else(|| wrong(&format!("no ETag of part {n}")))?;
            done.push(json!({ "partNumber": n, "etag": etag }));
        }
        self.tell(href, &lfs(), &json!({ "oid": file.sha256, "parts": done }), what, watch)
    }

    fn tell(
        &self,
        address: &str,
        headers: &[(String, String)],
        value: &Value,
        what: &str,
        watch: &mut Watch,
    ) -> Result<()> {
        let body = value.to_string().into_bytes();
        self.client.patiently(watch, |_, _| {
            let answer = self.client.post(address, headers, &body, what)?;
            match answer.status {
                200..=299 => Ok(()),
                status => Err(Failure::Final(self.client.wrong(what, &format!("status {status}")))),
            }
        })
    }

    /// Sends some bytes of a file, and gives back the ETag of the answer.
    fn part(
        &self,
        file: &Known<'_>,
        (from, to): (u64, u64),
        address: &str,
        headers: &[(String, String)],
        what: &str,
        watch: &mut Watch,
    ) -> Result<Option<String>> {
        self.client.patiently(watch, |watch, _| {
            let local = |source| Failure::Final(Error::Local { path: file.local.from.clone(), source });
            let mut content = File::open(&file.local.from).map_err(local)?;
            content.seek(SeekFrom::Start(from)).map_err(local)?;
            let mut watched =
                Watched { content, from, sent: 0, to, file, watch, stopped: false, broken: None };
            let answer = self.client.send(Sent {
                method: Method::Put,
                address,
                headers,
                length: to - from,
                body: &mut watched,
                what,
            });
            if watched.stopped {
                return Err(Failure::Final(Error::Stopped));
            }
            if let Some(source) = watched.broken {
                return Err(local(source));
            }
            let answer = match answer {
                // Addresses that ran out are asked for anew, not tried again.
                Err(Failure::Again(error, _))
                    if matches!(*error, Error::Status { status: 400 | 401 | 403 | 404, .. }) =>
                {
                    return Err(Failure::Final(*error));
                }
                answer => answer?,
            };
            if answer.status >= 300 {
                return Err(Failure::Final(self.client.wrong(what, &format!("status {}", answer.status))));
            }
            Ok(Answer::header(&answer.headers, "etag").filter(|etag| !etag.is_empty()).map(str::to_owned))
        })
    }
}

/// The headers that an address wants; what is no text cannot be one.
fn texts(headers: &BTreeMap<String, Value>) -> Vec<(String, String)> {
    let sound = |text: &str| text.bytes().all(|b| (b' '..=b'~').contains(&b));
    let headers = headers.iter().filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    headers.filter(|(name, value)| sound(name) && !name.contains([' ', ':']) && sound(value)).collect()
}

/// A part of a file that is told of while it goes.
struct Watched<'a, 'w> {
    content: File,
    from: u64,
    sent: u64,
    to: u64,
    file: &'a Known<'a>,
    watch: &'a mut Watch<'w>,
    stopped: bool,
    broken: Option<io::Error>,
}

impl Read for Watched<'_, '_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.to - self.from - self.sent;
        let most = into.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if most == 0 {
            return Ok(0);
        }
        let read = match self.content.read(&mut into[..most]) {
            // It was longer when it was hashed.
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            read => read,
        };
        let read = read.inspect_err(|e| self.broken = Some(e.kind().into()))?;
        self.sent += read as u64;
        let event = Event::Bytes {
            file: self.file.path().to_owned(),
            done: self.from + self.sent,
            total: self.file.size,
        };
        if !(self.watch)(&event) {
            self.stopped = true;
            return Err(io::Error::other("stopped"));
        }
        Ok(read)
    }
}
