//! Requests: redirects followed by hand, so that the token stays with the hub; pauses as the hub asks for them.

use std::io::Read;
use std::time::{Duration, Instant, SystemTime};

use ureq::Agent;
use ureq::http::{HeaderMap, Uri};
use ureq::tls::{RootCerts, TlsConfig};

use crate::error::{Error, Result};
use crate::settings::{Patience, Settings, Token};
use crate::watch::{Event, Watch};

/// Redirects of one request.
const REDIRECTS: usize = 8;
/// Between two looks at who watches, in a pause.
const LOOK: Duration = Duration::from_millis(100);
/// Bytes of a page of JSON.
const PAGE: u64 = 64 << 20;

/// Who asks the hub.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) agent: Agent,
    endpoint: String,
    pub(crate) origin: Origin,
    token: Option<Token>,
    pub(crate) patience: Patience,
}

/// Scheme, host and port: whom a secret is shown to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) scheme: String,
    pub(crate) host: String,
    port: u16,
}

impl Origin {
    pub(crate) fn of(address: &str) -> Option<Self> {
        let uri: Uri = address.parse().ok()?;
        let scheme = uri.scheme_str()?.to_lowercase();
        let port = match scheme.as_str() {
            "https" => 443,
            "http" => 80,
            _ => return None,
        };
        // A name and a password in front of a host make one host look like another.
        let plain = uri.authority().is_some_and(|a| !a.as_str().contains('@'));
        let host = uri.host().filter(|host| plain && !host.is_empty())?.to_lowercase();
        Some(Self { port: uri.port_u16().unwrap_or(port), scheme, host })
    }
}

/// An answer whose content is still to be read.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    /// Those of a redirect by the hub itself, which say what the file is.
    pub(crate) linked: Option<HeaderMap>,
    pub(crate) body: ureq::Body,
    /// Who gave it.
    pub(crate) host: String,
}

impl Answer {
    pub(crate) fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
        headers.get(name)?.to_str().ok()
    }
}

/// Why a try failed, and whether another one may do better.
pub(crate) enum Failure {
    Final(Error),
    /// After a pause, that the hub may have said the length of.
    Again(Box<Error>, Option<Duration>),
}

impl Failure {
    pub(crate) fn again(error: Error, wait: Option<Duration>) -> Self {
        Self::Again(Box::new(error), wait)
    }
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Result<Self> {
        let endpoint = settings.endpoint.trim().trim_end_matches('/').to_owned();
        let origin = Origin::of(&endpoint).ok_or_else(|| Error::Setting {
            variable: "HF_ENDPOINT",
            what: "it is no address such as https://huggingface.co".to_owned(),
        })?;
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("calm/", env!("CARGO_PKG_VERSION")))
            // A file is wanted as it lies there: pieces of it must fit.
            .accept_encoding("identity")
            .timeout_resolve(Some(settings.patience.silence))
            .timeout_connect(Some(settings.patience.silence))
            .timeout_recv_response(Some(settings.patience.silence))
            .timeout_per_read(Some(settings.patience.silence))
            .timeout_per_write(Some(settings.patience.silence))
            .tls_config(tls);
        if !settings.proxy {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            endpoint,
            origin,
            token: settings.token,
            patience: settings.patience,
        })
    }

    pub(crate) fn host(&self) -> &str {
        &self.origin.host
    }

    /// The secret, for the hub itself and nobody else.
    pub(crate) fn token_for(&self, origin: &Origin) -> Option<&Token> {
        self.token.as_ref().filter(|_| *origin == self.origin)
    }

    pub(crate) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// What a server says of itself, for a message: without the secret, should it repeat what it was shown.
    pub(crate) fn said(&self, text: &str) -> String {
        match &self.token {
            Some(token) => shortened(&token.hidden_in(text)),
            None => shortened(text),
        }
    }

    /// An address of the hub.
    pub(crate) fn address(&self, path: &str) -> String {
        format!("{}/{path}", self.endpoint)
    }

    pub(crate) fn is_hub(&self, address: &str) -> bool {
        Origin::of(address).is_some_and(|origin| origin == self.origin)
    }

    /// Asks once, from byte `from` on; `what` is for people.
    pub(crate) fn get(&self, address: &str, from: u64, what: &str) -> Result<Answer, Failure> {
        let mut address = address.to_owned();
        let mut linked = None;
        for _ in 0..REDIRECTS {
            let Some(origin) = Origin::of(&address) else {
                return Err(Failure::Final(self.wrong(what, "it leads to something that is no address")));
            };
            // What came through the hub safely must not go on in the open.
            if self.origin.scheme == "https" && origin.scheme != "https" {
                return Err(Failure::Final(self.wrong(what, "it leads away from https")));
            }
            let mut request = self.agent.get(&address);
            if let Some(token) = self.token_for(&origin) {
                request = request.header("authorization", token.header());
            }
            if from > 0 {
                request = request.header("range", format!("bytes={from}-"));
            }
            let host = origin.host.clone();
            let answer = request.call().map_err(|e| failure(&host, &e))?;
            let (parts, body) = answer.into_parts();
            let status = parts.status.as_u16();
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                let answer = Answer { status, headers: parts.headers, linked, body, host };
                return self.judged(answer, what);
            }
            let Some(next) = Answer::header(&parts.headers, "location") else {
                return Err(Failure::Final(self.wrong(what, "a redirect that leads nowhere")));
            };
            address = joined(&address, next);
            if origin == self.origin && linked.is_none() && parts.headers.contains_key("x-linked-etag") {
                linked = Some(parts.headers);
            }
        }
        Err(Failure::Final(self.wrong(what, "it leads in a circle")))
    }

    /// An answer that cannot be right. What is said of it may quote the answer, and that what it was shown.
    pub(crate) fn wrong(&self, what: &str, problem: &str) -> Error {
        Error::Answer { host: self.origin.host.clone(), what: what.to_owned(), problem: self.said(problem) }
    }

    /// Errors among the answers, each with what can be done about it.
    fn judged(&self, answer: Answer, what: &str) -> Result<Answer, Failure> {
        let of_hub = answer.host == self.origin.host;
        let said = |name| Answer::header(&answer.headers, name).map(|text| self.said(text));
        if let Some(later) = self.later(answer.status, &answer.headers, &answer.host, what) {
            return Err(later);
        }
        let (host, what) = (answer.host.clone(), what.to_owned());
        let with_token = self.token.is_some();
        let code = said("x-error-code").unwrap_or_default();
        match answer.status {
            200 | 206 | 416 => Ok(answer),
            401 | 403 if of_hub && code != "RepoNotFound" => {
                let otherwise = if answer.status == 401 {
                    "it is private, gated, or not there"
                } else {
                    "it is gated or private"
                };
                let reason = said("x-error-message").unwrap_or_else(|| otherwise.to_owned());
                Err(Failure::Final(Error::Denied { host, what, reason, with_token }))
            }
            401 | 404 if of_hub => Err(Failure::Final(Error::NotFound { host, what, with_token })),
            // The address that the hub gave has run out: it gives a new one.
            401 | 403 => Err(Failure::again(Error::Status { host, status: answer.status, what }, None)),
            status => Err(Failure::Final(Error::Status { host, status, what })),
        }
    }

    /// Answers that ask for another try, after the pause that they name.
    pub(crate) fn later(&self, status: u16, headers: &HeaderMap, host: &str, what: &str) -> Option<Failure> {
        let said = |name| Answer::header(headers, name);
        let asked = said("retry-after").and_then(|text| pause(text, SystemTime::now()));
        let error = || Error::Status { host: host.to_owned(), status, what: what.to_owned() };
        match status {
            429 => {
                let asked = asked.or_else(|| said("ratelimit").and_then(reset));
                match asked {
                    Some(wait) if wait > self.patience.longest => {
                        Some(Failure::Final(Error::Busy { host: host.to_owned(), wait }))
                    }
                    _ => Some(Failure::again(error(), asked)),
                }
            }
            408 | 425 | 500 | 502 | 503 | 504 => {
                Some(Failure::again(error(), asked.map(|wait| wait.min(self.patience.longest))))
            }
            _ => None,
        }
    }

    /// Tries until it works, no try may do better, or too many in a row brought nothing new. A try says how far it
    /// came.
    pub(crate) fn patiently<T>(
        &self,
        watch: &mut Watch,
        mut attempt: impl FnMut(&mut Watch, &mut u64) -> Result<T, Failure>,
    ) -> Result<T> {
        let (mut idle, mut best) = (0, 0);
        loop {
            let mut reached = 0;
            match attempt(watch, &mut reached) {
                Ok(done) => return Ok(done),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error, asked)) => {
                    idle = if reached > best { 1 } else { idle + 1 };
                    best = best.max(reached);
                    if idle >= self.patience.tries {
                        return Err(*error);
                    }
                    let own = self.patience.pause.saturating_mul(1 << (idle - 1).min(16));
                    let wait = asked.unwrap_or(own).min(self.patience.longest);
                    if !watch(&Event::Waiting { reason: error.to_string(), wait }) {
                        return Err(Error::Stopped);
                    }
                    let until = Instant::now() + wait;
                    while let Some(left) = until.checked_duration_since(Instant::now()) {
                        std::thread::sleep(left.min(LOOK));
                        still(watch)?;
                    }
                }
            }
        }
    }

    /// A page of JSON, with where the next one is.
    pub(crate) fn json<T: serde::de::DeserializeOwned>(
        &self,
        address: &str,
        what: &str,
        watch: &mut Watch,
    ) -> Result<(T, Option<String>)> {
        self.patiently(watch, |_, _| {
            let answer = self.get(address, 0, what)?;
            if answer.status != 200 {
                return Err(Failure::Final(self.wrong(what, &format!("status {}", answer.status))));
            }
            let next = Answer::header(&answer.headers, "link").and_then(next_page).map(str::to_owned);
            let (host, mut bytes) = (answer.host, Vec::new());
            let read = answer.body.into_with_config().limit(PAGE).reader().read_to_end(&mut bytes);
            read.map_err(|e| Failure::again(unreachable(&host, &e.to_string()), None))?;
            match serde_json::from_slice(&bytes) {
                Ok(page) => Ok((page, next)),
                Err(e) => Err(Failure::Final(self.wrong(what, &format!("no such JSON as expected ({e})")))),
            }
        })
    }
}

/// Whether to go on.
pub(crate) fn still(watch: &mut Watch) -> Result<()> {
    if watch(&Event::Still) { Ok(()) } else { Err(Error::Stopped) }
}

pub(crate) fn unreachable(host: &str, reason: &str) -> Error {
    Error::Unreachable { host: host.to_owned(), reason: reason.to_owned() }
}

pub(crate) fn failure(host: &str, error: &ureq::Error) -> Failure {
    let told = unreachable(host, &error.to_string());
    match error {
        // A certificate that is wrong stays wrong, and so does a proxy's address.
        ureq::Error::Tls(_)
        | ureq::Error::Rustls(_)
        | ureq::Error::InvalidProxyUrl
        | ureq::Error::BadUri(_) => Failure::Final(told),
        _ => Failure::again(told, None),
    }
}

/// What a server says of itself, for a message.
fn shortened(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// `Retry-After`: seconds, or a day and time.
fn pause(text: &str, now: SystemTime) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let then = http_date(text.trim())?;
    Some(then.duration_since(now).unwrap_or_default())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`.
fn http_date(text: &str) -> Option<SystemTime> {
    let parts: Vec<&str> = text.split_whitespace().collect();
    let [_, day, month, year, time, "GMT"] = parts[..] else { return None };
    let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = months.iter().position(|m| *m == month)? as u64 + 1;
    let (day, year): (u64, u64) = (day.parse().ok()?, year.parse().ok()?);
    let clock: Vec<u64> = time.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let [hours, minutes, seconds] = clock[..] else { return None };
    if !(1970..=9999).contains(&year)
        || !(1..=31).contains(&day)
        || hours > 23
        || minutes > 59
        || seconds > 60
    {
        return None;
    }
    // Days since 1970, from years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + day - 1 - 719_468;
    let since = ((days * 24 + hours) * 60 + minutes) * 60 + seconds;
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(since))
}

/// `"api";r=0;t=55`: seconds until more may be asked.
fn reset(text: &str) -> Option<Duration> {
    let seconds = text.split(';').find_map(|part| part.trim().strip_prefix("t="))?;
    Some(Duration::from_secs(seconds.parse().ok()?))
}

/// The address behind `rel="next"`.
fn next_page(header: &str) -> Option<&str> {
    header.split(',').find_map(|link| {
        let (address, rest) = link.trim().strip_prefix('<')?.split_once('>')?;
        rest.contains("rel=\"next\"").then_some(address)
    })
}

/// Where a redirect leads, seen from where it came from.
fn joined(from: &str, to: &str) -> String {
    let Some((scheme, rest)) = from.split_once("://") else { return to.to_owned() };
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if to.contains("://") && !to.starts_with('/') {
        to.to_owned()
    } else if to.starts_with("//") {
        format!("{scheme}:{to}")
    } else if to.starts_with('/') {
        format!("{scheme}://{host}{to}")
    } else {
        let path = rest.split(['?', '#']).next().unwrap_or_default();
        let folder = path.rsplit_once('/').map_or(host, |(folder, _)| folder);
        format!("{scheme}://{folder}/{to}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_is_joined_to_where_it_came_from() {
        let from = "https://hub.co/datasets/a/b/resolve/main/x?y=1";
        for (to, expected) in [
            ("https://cdn.co/z?a=b", "https://cdn.co/z?a=b"),
            ("/api/z", "https://hub.co/api/z"),
            ("//cdn.co/z", "https://cdn.co/z"),
            ("z", "https://hub.co/datasets/a/b/resolve/main/z"),
            ("/r?u=http://x.co", "https://hub.co/r?u=http://x.co"),
        ] {
            assert_eq!(joined(from, to), expected);
        }
        assert_eq!(joined("http://hub.co", "z"), "http://hub.co/z");
    }

    #[test]
    fn only_the_hub_itself_is_the_hub() {
        let origin = |address| Origin::of(address);
        assert_eq!(origin("https://HUB.co"), origin("https://hub.co:443/a"));
        for other in ["http://hub.co", "https://hub.co:8443", "https://hub.co.evil.co", "https://x.hub.co"] {
            assert_ne!(origin("https://hub.co"), origin(other));
        }
        assert_eq!(origin("https://hub.co@evil.co/"), None);
        assert_eq!(origin("ftp://hub.co"), None);
        assert_eq!(origin("/a"), None);
    }

    #[test]
    fn pauses_are_read_in_all_their_forms() {
        let date = http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        assert_eq!(date, SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777));
        assert_eq!(pause("7", date), Some(Duration::from_secs(7)));
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:47 GMT", date), Some(Duration::from_secs(10)));
        assert_eq!(pause("Sun, 06 Nov 1994 08:49:17 GMT", date), Some(Duration::ZERO));
        for none in
            ["soon", "-3", "Sun, 99 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1 08:49:37 GMT", "a b c d e GMT"]
        {
            assert_eq!(pause(none, date), None, "{none}");
        }
        assert_eq!(reset("\"api\";r=0;t=55"), Some(Duration::from_secs(55)));
        assert_eq!(
            next_page("<https://a/1>; rel=\"prev\", <https://a/2>; rel=\"next\""),
            Some("https://a/2")
        );
        assert_eq!(next_page("<https://a/1>; rel=\"prev\""), None);
    }
}
