//! The bytes of a file: unpacked as they are read, and named for what they are where they are no text.
//!
//! `.gz` and `.zst` are unpacked; a file that is packed in another way, or is no text at all, is told from its first
//! bytes, so that the remedy fits it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// Bytes of one read from the disk.
const READ: usize = 256 << 10;
/// Bytes that tell what a file is.
const TELLING: usize = 300;
/// Most bytes of one document: what is larger is no document, and would not fit into memory several times.
pub(super) const LONGEST: u64 = 1 << 30;

/// The mark that some editors put in front of UTF-8 text. It is no part of the text.
const BOM: &[u8] = "\u{feff}".as_bytes();

/// Bytes with some put back in front.
pub(super) struct Pushed<R> {
    front: Vec<u8>,
    at: usize,
    inner: R,
}

impl<R: BufRead> Pushed<R> {
    fn new(inner: R) -> Self {
        Self { front: Vec::new(), at: 0, inner }
    }

    /// The next bytes, as many as there are up to `most`, which stay where they are.
    pub(super) fn peek(&mut self, most: usize) -> io::Result<&[u8]> {
        while self.front.len() - self.at < most {
            let more = self.inner.fill_buf()?;
            let n = more.len().min(most - (self.front.len() - self.at));
            if n == 0 {
                break;
            }
            self.front.extend_from_slice(&more[..n]);
            self.inner.consume(n);
        }
        let there = &self.front[self.at..];
        Ok(&there[..there.len().min(most)])
    }
}

impl<R: BufRead> Read for Pushed<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let n = there.len().min(out.len());
        out[..n].copy_from_slice(&there[..n]);
        self.consume(n);
        Ok(n)
    }
}

impl<R: BufRead> BufRead for Pushed<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.at < self.front.len() { Ok(&self.front[self.at..]) } else { self.inner.fill_buf() }
    }

    fn consume(&mut self, n: usize) {
        if self.at < self.front.len() {
            self.at += n;
            if self.at == self.front.len() {
                self.front.clear();
                self.at = 0;
            }
        } else {
            self.inner.consume(n);
        }
    }
}

/// Bytes of a file that were read so far, as it lies on the disk; it is looked at while somebody reads.
#[derive(Clone, Debug, Default)]
pub(super) struct Count(Arc<AtomicU64>);

impl Count {
    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}

struct Counted {
    file: File,
    count: Count,
}

impl Read for Counted {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(out)?;
        self.count.add(n as u64);
        Ok(n)
    }
}

type OnDisk = Pushed<BufReader<Counted>>;
/// The unpacked bytes of a file.
pub(super) type Unpacked = Pushed<Box<dyn BufRead + Send>>;

/// The text of a file while it is read: its bytes, and where the next one stands.
pub(super) struct Text {
    pub(super) path: PathBuf,
    bytes: Unpacked,
    /// Offset of the next byte in the unpacked file.
    pub(super) offset: u64,
}

/// Opens a file whose unpacked bytes are text, as far as its beginning tells.
pub(super) fn open(path: &Path, count: &Count) -> Result<Text> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    // Elsewhere than on Unix a folder cannot be opened.
    if file.metadata().is_ok_and(|there| there.is_dir()) {
        return Err(Error::io("read", path, io::ErrorKind::IsADirectory.into()));
    }
    let on_disk = Pushed::new(BufReader::with_capacity(READ, Counted { file, count: count.clone() }));
    let unpacked: Box<dyn BufRead + Send> = match Packing::of(path) {
        None => Box::new(on_disk),
        Some(packing) => Box::new(BufReader::with_capacity(READ, Parts::new(path, packing, on_disk)?)),
    };
    begun(path, unpacked)
}

/// The text that standard input gives, as it comes.
pub(super) fn open_stdin() -> Result<Text> {
    begun(Path::new("standard input"), Box::new(BufReader::with_capacity(READ, io::stdin())))
}

fn begun(path: &Path, unpacked: Box<dyn BufRead + Send>) -> Result<Text> {
    let mut bytes = Pushed::new(unpacked);
    let begin = bytes.peek(TELLING).map_err(|e| told(path, e))?;
    if let Some((what, remedy)) = kind(begin) {
        return Err(Error::Foreign { path: path.into(), what, remedy });
    }
    let marked = begin.starts_with(BOM);
    let mut text = Text { path: path.to_owned(), bytes, offset: 0 };
    if marked {
        text.bytes.consume(BOM.len());
        text.offset = BOM.len() as u64;
    }
    Ok(text)
}

impl Text {
    /// The next bytes, which stay where they are.
    pub(super) fn peek(&mut self, most: usize) -> Result<&[u8]> {
        let Self { path, bytes, .. } = self;
        bytes.peek(most).map_err(|e| told(path, e))
    }

    /// What is at hand, at least one byte unless it is the end.
    pub(super) fn fill(&mut self) -> Result<&[u8]> {
        let Self { path, bytes, .. } = self;
        bytes.fill_buf().map_err(|e| told(path, e))
    }

    pub(super) fn consume(&mut self, n: usize) {
        self.bytes.consume(n);
        self.offset += n as u64;
    }

    /// Adds the bytes up to and with the next `end` (or the end of the file) to `out`; whether there were any.
    pub(super) fn until(&mut self, end: u8, out: &mut Vec<u8>) -> Result<bool> {
        let before = out.len();
        loop {
            let there = self.fill()?;
            let found = there.iter().position(|b| *b == end);
            let n = found.map_or(there.len(), |at| at + 1);
            out.extend_from_slice(&there[..n]);
            self.consume(n);
            if found.is_some() || n == 0 {
                return Ok(out.len() > before);
            }
            if out.len() as u64 > LONGEST {
                return Err(Error::TooLong { path: self.path.clone(), at: self.offset });
            }
        }
    }

    /// All that is left, as text.
    pub(super) fn rest(&mut self) -> Result<String> {
        let at = self.offset;
        let mut bytes = Vec::new();
        loop {
            let there = self.fill()?;
            let n = there.len();
            bytes.extend_from_slice(there);
            self.consume(n);
            if n == 0 {
                return text_at(&self.path, bytes, at);
            }
            if bytes.len() as u64 > LONGEST {
                return Err(Error::TooLong { path: self.path.clone(), at });
            }
        }
    }
}

/// Bytes as text. A zero byte is valid UTF-8 but no text.
pub(crate) fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    text_at(path, bytes, 0)
}

/// Bytes that stand at an offset of a file as text.
pub(super) fn text_at(path: &Path, bytes: Vec<u8>, offset: u64) -> Result<String> {
    let binary = |what, at| Error::Binary { path: path.into(), what, at: offset as usize + at };
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err(binary("a zero byte", at));
    }
    String::from_utf8(bytes).map_err(|e| binary("invalid UTF-8", e.utf8_error().valid_up_to()))
}

/// An error of ours on its way through a reader.
fn carried(error: Error) -> io::Error {
    io::Error::other(error)
}

/// What a reader said: an error of ours as it is, any other one of this file.
fn told(path: &Path, error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::io("read", path, error),
    }
}

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Windows of up to 2 GiB, the most that the format has (`--long=31`).
const ZSTD_WINDOW_LOG: u32 = 31;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Gzip,
    Zstd,
}

impl Packing {
    fn of(path: &Path) -> Option<Self> {
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        match extension.as_str() {
            "gz" => Some(Self::Gzip),
            "zst" => Some(Self::Zstd),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    fn magic(self) -> &'static [u8] {
        match self {
            Self::Gzip => GZIP,
            Self::Zstd => ZSTD,
        }
    }

    fn begins_part(self, bytes: &[u8]) -> bool {
        // A frame of zstd, or one that is to be skipped.
        let skipped = matches!(bytes, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
        bytes.starts_with(self.magic()) || (self == Self::Zstd && skipped)
    }
}

/// Unpacks one part after the other: several of them are one file. Zeros behind the last are left out, as `gzip` does
/// (tapes and disks fill their blocks up).
struct Parts {
    path: PathBuf,
    packing: Packing,
    state: State,
}

enum State {
    Gzip(Box<flate2::bufread::GzDecoder<OnDisk>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, OnDisk>>),
    Between(OnDisk),
    Done,
}

impl Parts {
    fn new(path: &Path, packing: Packing, mut on_disk: OnDisk) -> Result<Self> {
        let begin = on_disk.peek(TELLING).map_err(|e| Error::io("read", path, e))?;
        let format = packing.name();
        if !packing.begins_part(begin) && !packing.magic().starts_with(begin) {
            let (what, remedy) = match kind(begin) {
                Some((what, remedy)) => (format!("named as {format}, but it is {what}"), remedy),
                None => (
                    format!("named as {format}, but it is not compressed"),
                    "give it its name without the last ending",
                ),
            };
            return Err(Error::Packed { path: path.into(), what, remedy: remedy.to_owned() });
        }
        let mut parts = Self { path: path.to_owned(), packing, state: State::Done };
        parts.begin(on_disk).map_err(|e| told(path, e))?;
        Ok(parts)
    }

    fn begin(&mut self, on_disk: OnDisk) -> io::Result<()> {
        self.state = match self.packing {
            Packing::Gzip => State::Gzip(Box::new(flate2::bufread::GzDecoder::new(on_disk))),
            Packing::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(on_disk)?.single_frame();
                decoder.window_log_max(ZSTD_WINDOW_LOG)?;
                State::Zstd(Box::new(decoder))
            }
        };
        Ok(())
    }

    /// What follows a part: another one, nothing, zeros and nothing, or something else.
    fn go_on(&mut self, mut on_disk: OnDisk) -> io::Result<()> {
        if self.packing.begins_part(on_disk.peek(4)?) {
            return self.begin(on_disk);
        }
        let (mut length, mut zeros) = (0, true);
        loop {
            let there = on_disk.fill_buf()?;
            let n = there.len();
            if n == 0 {
                break;
            }
            zeros = zeros && there.iter().all(|b| *b == 0);
            length += n;
            on_disk.consume(n);
        }
        if zeros {
            return Ok(());
        }
        Err(carried(Error::Packed {
            path: self.path.clone(),
            what: format!(
                "{length} bytes that are no {} data follow the compressed text",
                self.packing.name()
            ),
            remedy: "download or copy it again; or unpack it, and give the text itself".to_owned(),
        }))
    }
}

impl Read for Parts {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            let read = match &mut self.state {
                State::Gzip(decoder) => decoder.read(out),
                State::Zstd(decoder) => decoder.read(out),
                State::Between(_) => Ok(0),
                State::Done => return Ok(0),
            };
            let damaged = |source| {
                let (path, format) = (self.path.clone(), self.packing.name());
                carried(Error::Compressed { path, format, source })
            };
            let n = read.map_err(damaged)?;
            if n > 0 || out.is_empty() {
                return Ok(n);
            }
            self.state = match std::mem::replace(&mut self.state, State::Done) {
                State::Gzip(decoder) => State::Between(decoder.into_inner()),
                State::Zstd(decoder) => State::Between(decoder.finish()),
                State::Between(on_disk) => {
                    self.go_on(on_disk)?;
                    continue;
                }
                State::Done => State::Done,
            };
        }
    }
}

const TABLE: &str = "write its text as .parquet, or as .jsonl, one {\"text\": ...} a line (with pandas: \
     df[[\"text\"]].to_json(\"FILE.jsonl\", orient=\"records\", lines=True))";
const ARCHIVE: &str = "unpack it and give the folder";

/// What a file is whose first bytes tell, and what to do with it. Text is none of these.
const KINDS: &[(usize, &[u8], &str, &str)] = &[
    (0, b"\xfd7zXZ\0", "an xz file", "unpack it (xz -dk), or pack it anew as .zst or .gz"),
    (4, b"1AY&SY", "a bzip2 file", "unpack it (bzip2 -dk), or pack it anew as .zst or .gz"),
    (0, b"\x04\x22\x4d\x18", "an lz4 file", "unpack it (lz4 -dk), or pack it anew as .zst or .gz"),
    (0, GZIP, "gzip data", "give it a name that ends in .gz"),
    (0, ZSTD, "zstd data", "give it a name that ends in .zst"),
    (257, b"ustar", "a tar archive", ARCHIVE),
    (0, b"PK\x03\x04", "a zip archive", ARCHIVE),
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", ARCHIVE),
    (0, b"Rar!\x1a\x07", "a rar archive", ARCHIVE),
    (
        0,
        b"PAR1",
        "a Parquet table",
        "give it a name that ends in .parquet, and do not pack it: it is packed inside",
    ),
    (0, b"PARE", "an encrypted Parquet table", "write it anew without encryption"),
    (0, b"ARROW1\0\0", "an Arrow table", TABLE),
    (0, b"SQLite format 3\0", "an SQLite database", TABLE),
    (0, b"%PDF-", "a PDF", "extract its text (pdftotext) and give that"),
    (0, b"\xff\xfe", "UTF-16 text", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (0, b"\xfe\xff", "UTF-16 text", "convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"),
    (
        0,
        b"version https://git-lfs.github.com/spec/v1",
        "a git-lfs pointer and not the file it stands for",
        "fetch the file itself (git lfs pull)",
    ),
];

/// What the first bytes say that this is, if it is no text, with the remedy.
pub(super) fn kind(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    KINDS
        .iter()
        .find(|(at, magic, ..)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(.., what, remedy)| (*what, *remedy))
}
