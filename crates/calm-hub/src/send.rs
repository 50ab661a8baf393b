//! Requests that bring something: no redirect is followed with what is sent, and the token goes to the hub alone.

use std::io::Read;

use serde::de::DeserializeOwned;
use serde_json::Value;
use ureq::SendBody;

use crate::error::{Error, Result};
use crate::http::{Answer, Client, Failure, Origin, failure, unreachable};
use crate::watch::Watch;

/// Bytes of an answer that are read.
const ANSWER: u64 = 16 << 20;
/// Bytes of an error that are read.
const REASON: u64 = 1 << 14;

/// How something is sent.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Post,
    Put,
}

/// Something that is sent.
pub(crate) struct Sent<'a> {
    pub(crate) method: Method,
    pub(crate) address: &'a str,
    /// `Content-Type` and whatever else the address wants.
    pub(crate) headers: &'a [(String, String)],
    pub(crate) length: u64,
    pub(crate) body: &'a mut dyn Read,
    /// What it is, for people.
    pub(crate) what: &'a str,
}

/// The header of JSON.
pub(crate) fn json() -> Vec<(String, String)> {
    vec![("content-type".into(), "application/json".into())]
}

impl Client {
    /// Sends once. Answers are those of success, and 409 and 412, which say that things are not as they were thought
    /// to be.
    pub(crate) fn send(&self, sent: Sent<'_>) -> Result<Answer, Failure> {
        let what = sent.what;
        let Some(origin) = Origin::of(sent.address) else {
            return Err(Failure::Final(self.wrong(what, "it leads to something that is no address")));
        };
        if self.origin.scheme == "https" && origin.scheme != "https" {
            return Err(Failure::Final(self.wrong(what, "it leads away from https")));
        }
        let mut request = match sent.method {
            Method::Post => self.agent.post(sent.address),
            Method::Put => self.agent.put(sent.address),
        };
        for (name, value) in sent.headers {
            request = request.header(name, value);
        }
        if let Some(token) = self.token_for(&origin) {
            request = request.header("authorization", token.header());
        }
        request = request.header("content-length", sent.length.to_string());
        let host = origin.host.clone();
        let answer = request.send(SendBody::from_reader(sent.body)).map_err(|e| failure(&host, &e))?;
        let (parts, body) = answer.into_parts();
        let status = parts.status.as_u16();
        let mut answer = Answer { status, headers: parts.headers, linked: None, body, host };
        if let Some(later) = self.later(status, &answer.headers, &answer.host, what) {
            return Err(later);
        }
        let (of_hub, what) = (origin == self.origin, what.to_owned());
        let host = answer.host.clone();
        match status {
            200..=299 | 409 | 412 => Ok(answer),
            300..=399 => Err(Failure::Final(self.wrong(&what, "it has another name now"))),
            401 | 403 if of_hub => {
                let reason = self.reason(&mut answer).unwrap_or_else(|| "the token may not write".into());
                Err(Failure::Final(Error::Refused { host, what, reason, of_token: true }))
            }
            404 if of_hub => {
                Err(Failure::Final(Error::NotFound { host, what, with_token: self.has_token() }))
            }
            // The address that the hub gave has run out: it gives a new one.
            400 | 401 | 403 | 404 if !of_hub => {
                Err(Failure::again(Error::Status { host, status, what }, None))
            }
            status => Err(Failure::Final(match self.reason(&mut answer) {
                Some(reason) => Error::Refused { host, what, reason, of_token: false },
                None => Error::Status { host, status, what },
            })),
        }
    }

    /// What an answer says about why.
    fn reason(&self, answer: &mut Answer) -> Option<String> {
        if let Some(text) = Answer::header(&answer.headers, "x-error-message") {
            return Some(self.said(text));
        }
        let mut text = String::new();
        let body = answer.body.with_config().limit(REASON).reader();
        body.take(REASON).read_to_string(&mut text).ok()?;
        let value: Value = serde_json::from_str(&text).ok()?;
        let said = value.get("error").or_else(|| value.get("message"))?.as_str()?;
        Some(self.said(said)).filter(|said| !said.is_empty())
    }

    /// Sends JSON until it is answered with some.
    pub(crate) fn ask_with<T: DeserializeOwned>(
        &self,
        address: &str,
        headers: &[(String, String)],
        value: &Value,
        what: &str,
        watch: &mut Watch,
    ) -> Result<T> {
        let body = value.to_string().into_bytes();
        self.patiently(watch, |_, _| {
            let answer = self.post(address, headers, &body, what)?;
            if answer.status >= 300 {
                return Err(Failure::Final(self.wrong(what, &format!("status {}", answer.status))));
            }
            self.read(answer, what)
        })
    }

    /// Sends bytes that are at hand.
    pub(crate) fn post(
        &self,
        address: &str,
        headers: &[(String, String)],
        mut body: &[u8],
        what: &str,
    ) -> Result<Answer, Failure> {
        let length = body.len() as u64;
        self.send(Sent { method: Method::Post, address, headers, length, body: &mut body, what })
    }

    /// The JSON of an answer.
    pub(crate) fn read<T: DeserializeOwned>(&self, answer: Answer, what: &str) -> Result<T, Failure> {
        let (host, mut bytes) = (answer.host, Vec::new());
        let read = answer.body.into_with_config().limit(ANSWER).reader().read_to_end(&mut bytes);
        read.map_err(|e| Failure::again(unreachable(&host, &e.to_string()), None))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Failure::Final(self.wrong(what, &format!("no such JSON as expected ({e})"))))
    }
}
