//! A repository in memory, and what a hub that is well says of it.

use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::{Answer, Asked, Served};

/// Files from so many bytes on lie at the second address, as large ones do.
pub(crate) const LARGE: usize = 200;

/// A data set, or a model.
#[derive(Clone, Debug, Default)]
pub struct Repository {
    id: String,
    files: Vec<(String, Vec<u8>)>,
    /// Files on a page of the list.
    pub page: usize,
    /// Without this token it is not there.
    pub token: Option<String>,
    /// Whether it is a model, and no data set.
    pub model: bool,
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Repository {
    /// `OWNER/NAME`, a data set without files.
    pub fn new(id: &str) -> Self {
        Self { id: id.to_owned(), page: 2, ..Self::default() }
    }

    /// A model without files.
    pub fn model(id: &str) -> Self {
        Self { model: true, ..Self::new(id) }
    }

    /// With a file.
    #[must_use]
    pub fn with(mut self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.files.push((path.to_owned(), content.as_ref().to_vec()));
        self
    }

    /// The commit of all its branches: a hash of what is in it.
    pub fn commit(&self) -> String {
        let mut hash = Sha1::new();
        for (path, content) in &self.files {
            hash.update(path);
            hash.update(content);
        }
        hex(&hash.finalize())
    }

    /// By what a file is known: SHA-256 of a large one, git's hash of a small one.
    pub fn etag(content: &[u8]) -> String {
        if content.len() >= LARGE {
            return hex(&Sha256::digest(content));
        }
        let mut hash = Sha1::new();
        hash.update(format!("blob {}\0", content.len()));
        hash.update(content);
        hex(&hash.finalize())
    }

    /// Serves it.
    pub fn served(self) -> Served {
        Served::start(move |asked| self.answer(asked))
    }

    /// What a hub that is well answers.
    pub fn answer(&self, asked: &Asked) -> Answer {
        let path = asked.path.as_str();
        if asked.elsewhere {
            let found =
                self.files.iter().find(|(_, content)| path == format!("/blob/{}", Self::etag(content)));
            return found.map_or_else(|| Answer::status(404), |(_, content)| part(content, asked));
        }
        let shown = asked.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if self.token.is_some() && shown != self.token.as_deref() {
            return Answer::status(401)
                .header("x-error-code", "GatedRepo")
                .header("x-error-message", format!("Access to dataset {} is restricted.", self.id));
        }
        let not_found = |code: &str| Answer::status(404).header("x-error-code", code);
        let (api, folder) = if self.model { ("models", "") } else { ("datasets", "datasets/") };
        if let Some(rest) = path.strip_prefix(&format!("/api/{api}/{}/", self.id)) {
            return match rest.split('/').collect::<Vec<_>>()[..] {
                ["revision", "main" | "v1.0"] => {
                    Answer::of(serde_json::json!({ "id": self.id, "sha": self.commit() }).to_string())
                }
                ["tree", of] if of.starts_with(&self.commit()) => self.tree(asked),
                _ => not_found("RevisionNotFound"),
            };
        }
        let prefix = format!("/{folder}{}/resolve/{}/", self.id, self.commit());
        let Some(name) = path.strip_prefix(&prefix) else { return not_found("RepoNotFound") };
        let name = decoded(name);
        let Some((_, content)) = self.files.iter().find(|(path, _)| *path == name) else {
            return not_found("EntryNotFound");
        };
        let etag = Self::etag(content);
        if content.len() < LARGE {
            return part(content, asked).header("etag", format!("\"{etag}\""));
        }
        Answer::status(302)
            .header("x-repo-commit", self.commit())
            .header("x-linked-etag", format!("\"{etag}\""))
            .header("x-linked-size", content.len().to_string())
            .header("location", format!("{}/blob/{etag}", asked.other))
    }

    /// A page of the list; where the next one begins stands in its address.
    fn tree(&self, asked: &Asked) -> Answer {
        let (base, from) = asked.path.split_once("&cursor=").unwrap_or((&asked.path, "0"));
        let from: usize = from.parse().unwrap_or(0);
        let mut entries =
            vec![serde_json::json!({ "type": "directory", "oid": "x", "size": 0, "path": "data" })];
        for (path, content) in self.files.iter().skip(from).take(self.page) {
            let mut entry = serde_json::json!({
                "type": "file", "oid": Self::etag(&content[..content.len().min(LARGE - 1)]), "size": content.len(), "path": path,
            });
            if content.len() >= LARGE {
                entry["lfs"] = serde_json::json!({
                    "oid": Self::etag(content), "size": content.len(), "pointerSize": 134,
                });
            }
            entries.push(entry);
        }
        let answer = Answer::of(serde_json::Value::from(entries).to_string());
        let next = from + self.page;
        if next >= self.files.len() {
            return answer;
        }
        let host = asked.headers.get("host").cloned().unwrap_or_default();
        answer.header("link", format!("<http://{host}{base}&cursor={next}>; rel=\"next\""))
    }
}

/// An address' path without its `%`.
fn decoded(path: &str) -> String {
    let mut parts = path.split('%');
    let mut bytes = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (code, rest) = part.split_at(2);
        bytes.push(u8::from_str_radix(code, 16).unwrap());
        bytes.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(bytes).unwrap()
}

/// A content, or what was asked of it.
fn part(content: &[u8], asked: &Asked) -> Answer {
    let from = asked.from();
    if from == 0 {
        return Answer::of(content);
    }
    if from >= content.len() {
        return Answer::status(416).header("content-range", format!("bytes */{}", content.len()));
    }
    let range = format!("bytes {from}-{}/{}", content.len() - 1, content.len());
    Answer { status: 206, body: content[from..].to_vec(), ..Answer::default() }.header("content-range", range)
}
