//! A hub that models are pushed to, and what it has of them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::repository::{LARGE, Repository, hex};
use crate::{Answer, Asked, Served};

/// Larger files go in parts of so many bytes.
const PART: usize = 1000;

#[derive(Default)]
struct State {
    /// Files by path; none: there is no such repository.
    files: Option<BTreeMap<String, Vec<u8>>>,
    private: bool,
    /// Large files without a name, by hash.
    large: BTreeMap<String, Vec<u8>>,
    /// Parts of large files, by hash and number.
    parts: BTreeMap<(String, usize), Vec<u8>>,
    commits: usize,
}

/// One model, `OWNER/NAME`, at a hub that accepts pushes.
#[derive(Clone)]
pub struct Model {
    id: String,
    /// Who may write.
    token: String,
    state: Arc<Mutex<State>>,
}

impl Model {
    /// A hub without that model.
    pub fn new(id: &str, token: &str) -> Self {
        Self { id: id.to_owned(), token: token.to_owned(), state: Arc::default() }
    }

    /// With the model there, and a file in it.
    #[must_use]
    pub fn with(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let insert = |state: &mut State| {
            state.files.get_or_insert_default().insert(path.to_owned(), content.as_ref().to_vec());
        };
        insert(&mut self.state.lock().unwrap());
        self
    }

    /// Serves it.
    pub fn served(&self) -> Served {
        let model = self.clone();
        Served::start(move |asked| model.answer(asked))
    }

    /// What has a name there.
    pub fn files(&self) -> Option<BTreeMap<String, Vec<u8>>> {
        self.state.lock().unwrap().files.clone()
    }

    /// Whether only its owner sees it.
    pub fn is_private(&self) -> bool {
        self.state.lock().unwrap().private
    }

    /// Commits that were made.
    pub fn commits(&self) -> usize {
        self.state.lock().unwrap().commits
    }

    fn repository(&self, state: &State) -> Option<Repository> {
        let files = state.files.as_ref()?;
        let empty = Repository::model(&self.id);
        Some(files.iter().fold(empty, |all, (path, content)| all.with(path, content)))
    }

    /// What a hub that is well answers.
    pub fn answer(&self, asked: &Asked) -> Answer {
        let mut state = self.state.lock().unwrap();
        if asked.method == "PUT" {
            return if asked.elsewhere { put(&mut state, asked) } else { Answer::status(405) };
        }
        if asked.method == "GET" {
            return match self.repository(&state) {
                Some(repository) => repository.answer(asked),
                None => Answer::status(404).header("x-error-code", "RepoNotFound"),
            };
        }
        let shown = asked.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        if shown != Some(&self.token) {
            return Answer { status: 403, ..Answer::of(r#"{"error": "You may not write here."}"#) };
        }
        let api = format!("/api/models/{}", self.id);
        let path = asked.path.as_str();
        if path == "/api/repos/create" {
            return self.create(&mut state, &asked.body);
        }
        if path == format!("/{}.git/info/lfs/objects/batch", self.id) {
            return self.batch(&state, asked);
        }
        if path == format!("/{}/complete", self.id) {
            return complete(&mut state, &asked.body);
        }
        if path == format!("/{}/verify", self.id) {
            let wanted: Value = serde_json::from_slice(&asked.body).unwrap();
            let there = state.large.contains_key(wanted["oid"].as_str().unwrap());
            return Answer::status(if there { 200 } else { 404 });
        }
        if path == format!("{api}/preupload/main") {
            let wanted: Value = serde_json::from_slice(&asked.body).unwrap();
            let mode = |file: &Value| {
                let large = file["size"].as_u64().unwrap() >= LARGE as u64;
                json!({ "path": file["path"], "uploadMode": if large { "lfs" } else { "regular" } })
            };
            let modes: Vec<Value> = wanted["files"].as_array().unwrap().iter().map(mode).collect();
            return Answer::of(json!({ "files": modes }).to_string());
        }
        if path == format!("{api}/commit/main") {
            return self.commit(&mut state, &asked.body);
        }
        Answer::status(404)
    }

    fn create(&self, state: &mut State, body: &[u8]) -> Answer {
        let wanted: Value = serde_json::from_slice(body).unwrap();
        let id = format!("{}/{}", wanted["organization"].as_str().unwrap(), wanted["name"].as_str().unwrap());
        if id != self.id {
            return Answer { status: 403, ..Answer::of(r#"{"error": "This is not your name."}"#) };
        }
        if state.files.is_some() {
            return Answer::status(409);
        }
        state.private = wanted["private"] == true;
        state.files = Some([(".gitattributes".to_owned(), b"*.safetensors filter=lfs\n".to_vec())].into());
        Answer::of("{}")
    }

    fn batch(&self, state: &State, asked: &Asked) -> Answer {
        let wanted: Value = serde_json::from_slice(&asked.body).unwrap();
        let object = &wanted["objects"][0];
        let (oid, size) = (object["oid"].as_str().unwrap(), object["size"].as_u64().unwrap() as usize);
        let mut told = json!({ "oid": oid, "size": size });
        let host = format!("http://{}", asked.headers["host"]);
        if !state.large.contains_key(oid) && size > PART {
            let mut header = json!({ "chunk_size": PART.to_string() });
            for n in 1..=size.div_ceil(PART) {
                header[format!("{n:05}")] = format!("{}/put/{oid}/{n}", asked.other).into();
            }
            let href = format!("{host}/{}/complete", self.id);
            told["actions"] = json!({ "upload": { "href": href, "header": header } });
        } else if !state.large.contains_key(oid) {
            told["actions"] = json!({
                "upload": { "href": format!("{}/put/{oid}", asked.other) },
                "verify": { "href": format!("{host}/{}/verify", self.id) },
            });
        }
        Answer::of(json!({ "objects": [told] }).to_string())
    }

    fn commit(&self, state: &mut State, body: &[u8]) -> Answer {
        let before = self.repository(state).unwrap().commit();
        let mut files = state.files.clone().unwrap();
        for line in String::from_utf8_lossy(body).lines() {
            let line: Value = serde_json::from_str(line).unwrap();
            let value = &line["value"];
            let path = value["path"].as_str().unwrap_or_default().to_owned();
            match line["key"].as_str().unwrap() {
                "header" if value["parentCommit"] != before => return Answer::status(412),
                "header" => {}
                "file" => {
                    files.insert(path, STANDARD.decode(value["content"].as_str().unwrap()).unwrap());
                }
                "lfsFile" => match state.large.get(value["oid"].as_str().unwrap()) {
                    Some(content) => drop(files.insert(path, content.clone())),
                    None => return Answer { status: 400, ..Answer::of(r#"{"error": "no such object"}"#) },
                },
                _ => drop(files.remove(&path).unwrap()),
            }
        }
        state.files = Some(files);
        state.commits += 1;
        let commit = self.repository(state).unwrap().commit();
        Answer::of(json!({ "success": true, "commitOid": commit, "commitUrl": "" }).to_string())
    }
}

/// Bytes for storage; a file that came in half is none.
fn put(state: &mut State, asked: &Asked) -> Answer {
    let length = asked.headers.get("content-length").and_then(|n| n.parse().ok());
    if asked.headers.contains_key("authorization") || length != Some(asked.body.len()) {
        return Answer::status(400);
    }
    let mut words = asked.path.trim_start_matches("/put/").split('/');
    let oid = words.next().unwrap().to_owned();
    match words.next() {
        Some(number) => {
            let etag = format!("\"part-{number}\"");
            state.parts.insert((oid, number.parse().unwrap()), asked.body.clone());
            Answer::of("").header("etag", etag)
        }
        None if hex(&Sha256::digest(&asked.body)) == oid => {
            state.large.insert(oid, asked.body.clone());
            Answer::of("")
        }
        None => Answer::status(400),
    }
}

/// Parts become a file.
fn complete(state: &mut State, body: &[u8]) -> Answer {
    let told: Value = serde_json::from_slice(body).unwrap();
    let oid = told["oid"].as_str().unwrap().to_owned();
    let mut whole = Vec::new();
    for (n, part) in told["parts"].as_array().unwrap().iter().enumerate() {
        if part["partNumber"] != n + 1 || part["etag"] != format!("\"part-{}\"", n + 1) {
            return Answer::status(400);
        }
        whole.extend_from_slice(&state.parts[&(oid.clone(), n + 1)]);
    }
    if hex(&Sha256::digest(&whole)) != oid {
        return Answer::status(400);
    }
    state.large.insert(oid, whole);
    Answer::of("{}")
}
