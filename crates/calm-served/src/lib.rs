#![doc = include_str!("../README.md")]
// A test that cannot serve has failed.
#![allow(clippy::unwrap_used)]

mod model;
mod repository;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

pub use model::Model;
pub use repository::Repository;

/// What was asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `GET`, `POST` or `PUT`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// By lower-case names.
    pub headers: BTreeMap<String, String>,
    /// What came with it, as far as it came.
    pub body: Vec<u8>,
    /// Whether the second address was asked.
    pub elsewhere: bool,
    /// How often this path was asked before.
    pub before: usize,
    /// `http://127.0.0.1:PORT` of the second address.
    pub other: String,
}

impl Asked {
    /// The first byte that is wanted.
    pub fn from(&self) -> usize {
        let range = self.headers.get("range").and_then(|range| range.strip_prefix("bytes="));
        range.and_then(|range| range.trim_end_matches('-').parse().ok()).unwrap_or(0)
    }
}

/// What is answered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// The number.
    pub status: u16,
    /// Besides the length, which is added if it is not among them.
    pub headers: Vec<(String, String)>,
    /// The content.
    pub body: Vec<u8>,
    /// The connection is closed after so many bytes of the content.
    pub cut: Option<usize>,
    /// A pause before each piece of the content.
    pub slow: Option<Duration>,
}

impl Answer {
    /// A content, and that all is well.
    pub fn of(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    /// A number and no content.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// With a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    /// Cut off after so many bytes.
    #[must_use]
    pub fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }
}

type Answers = dyn Fn(&Asked) -> Answer + Send + Sync;

/// A hub that answers until it is dropped.
pub struct Served {
    ports: [SocketAddr; 2],
    asked: Arc<Mutex<Vec<Asked>>>,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Served {
    /// Answers by `answers`, on two ports of 127.0.0.1.
    pub fn start(answers: impl Fn(&Asked) -> Answer + Send + Sync + 'static) -> Self {
        let answers: Arc<Answers> = Arc::new(answers);
        let listeners = [0, 1].map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        let ports = [0, 1].map(|n: usize| listeners[n].local_addr().unwrap());
        let (asked, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let threads = listeners.into_iter().enumerate().map(|(n, listener)| {
            let (answers, asked, ends) = (answers.clone(), asked.clone(), ends.clone());
            let other = format!("http://{}", ports[1]);
            std::thread::spawn(move || {
                while let Ok((stream, _)) = listener.accept() {
                    if ends.load(Ordering::SeqCst) {
                        break;
                    }
                    let (answers, asked, other) = (answers.clone(), asked.clone(), other.clone());
                    std::thread::spawn(move || serve(stream, n == 1, other, &*answers, &asked));
                }
            })
        });
        let threads = threads.collect();
        Self { ports, asked, ends, threads }
    }

    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("http://{}", self.ports[0])
    }

    /// All that was asked, in order.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for port in self.ports {
            let _ = TcpStream::connect(port);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// One request, one answer, the end. A client that goes away is no failure.
fn serve(stream: TcpStream, elsewhere: bool, other: String, answers: &Answers, log: &Mutex<Vec<Asked>>) {
    let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
    let mut reader = BufReader::new(&stream);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).ok().map(|_| line.trim_end().to_owned())
    };
    let Some(first) = line().filter(|first| !first.is_empty()) else { return };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut asked = Asked { method, path, elsewhere, other, ..Asked::default() };
    while let Some(line) = line().filter(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':') {
            asked.headers.insert(name.to_lowercase(), value.trim().to_owned());
        }
    }
    let length = asked.headers.get("content-length").and_then(|n| n.parse().ok()).unwrap_or(0);
    let _ = reader.take(length).read_to_end(&mut asked.body);
    {
        let mut log = log.lock().unwrap();
        asked.before = log.iter().filter(|a| a.path == asked.path && a.elsewhere == elsewhere).count();
        log.push(asked.clone());
    }
    let answer = answers(&asked);
    let _ = write(stream, &answer);
}

fn write(mut stream: TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} -\r\nconnection: close\r\n", answer.status);
    if !answer.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-length")) {
        head.push_str(&format!("content-length: {}\r\n", answer.body.len()));
    }
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let body = &answer.body[..answer.cut.unwrap_or(usize::MAX).min(answer.body.len())];
    for piece in body.chunks(if answer.slow.is_some() { 64 } else { 1 << 16 }) {
        if let Some(pause) = answer.slow {
            std::thread::sleep(pause);
        }
        stream.write_all(piece)?;
    }
    stream.flush()
}
