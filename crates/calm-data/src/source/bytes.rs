//! The text of a file: read, unpacked, and named for what it is where it is no text.
//!
//! `.gz` and `.zst` are unpacked; a file that is packed in another way, or is no text at all, is told from its first
//! bytes, so that the remedy fits it.

use std::fs;
use std::io::{self, Read as _};
use std::path::Path;

use crate::error::{Error, Result};

/// The text of a file, unpacked, without a byte order mark.
pub(super) fn read_text(path: &Path) -> Result<String> {
    let bytes = read_bytes(path)?;
    if let Some((what, remedy)) = kind(&bytes) {
        return Err(Error::Foreign { path: path.into(), what, remedy });
    }
    let mut text = text(path, bytes)?;
    if text.starts_with(BOM) {
        text.drain(..BOM.len_utf8());
    }
    Ok(text)
}

/// The mark that some editors put in front of UTF-8 text. It is no part of the text.
const BOM: char = '\u{feff}';

/// Bytes as text. A zero byte is valid UTF-8 but no text.
pub(crate) fn text(path: &Path, bytes: Vec<u8>) -> Result<String> {
    let binary = |what, at| Error::Binary { path: path.into(), what, at };
    if let Some(at) = bytes.iter().position(|b| *b == 0) {
        return Err(binary("a zero byte", at));
    }
    String::from_utf8(bytes).map_err(|e| binary("invalid UTF-8", e.utf8_error().valid_up_to()))
}

const GZIP: &[u8] = &[0x1f, 0x8b];
const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
/// Windows of up to 2 GiB, the most that the format has (`--long=31`).
const ZSTD_WINDOW_LOG: u32 = 31;

/// The bytes of a file, unpacked.
fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    let bytes = fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    let gzip_part = |rest: &[u8]| rest.starts_with(GZIP);
    // A frame, or one that is to be skipped.
    let zstd_part =
        |rest: &[u8]| rest.starts_with(ZSTD) || matches!(rest, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..]);
    match extension.as_str() {
        "gz" => unpack(path, "gzip", GZIP, &bytes, gzip_part, |part, out| {
            let mut decoder = flate2::bufread::GzDecoder::new(part);
            decoder.read_to_end(out)?;
            Ok(decoder.into_inner())
        }),
        "zst" => unpack(path, "zstd", ZSTD, &bytes, zstd_part, |part, out| {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(part)?.single_frame();
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            decoder.read_to_end(out)?;
            Ok(decoder.finish())
        }),
        _ => Ok(bytes),
    }
}

/// Unpacks one part after the other: several of them are one file. Zeros behind the last are left out, as `gzip` does
/// (tapes and disks fill their blocks up).
fn unpack<'a>(
    path: &Path,
    format: &'static str,
    magic: &[u8],
    bytes: &'a [u8],
    begins_part: impl Fn(&[u8]) -> bool,
    decode: impl Fn(&'a [u8], &mut Vec<u8>) -> io::Result<&'a [u8]>,
) -> Result<Vec<u8>> {
    let packed = |what, remedy: &str| Error::Packed { path: path.into(), what, remedy: remedy.to_owned() };
    if !begins_part(bytes) && !magic.starts_with(bytes) {
        return Err(match kind(bytes) {
            Some((what, remedy)) => packed(format!("named as {format}, but it is {what}"), remedy),
            None => packed(
                format!("named as {format}, but it is not compressed"),
                "give it its name without the last ending",
            ),
        });
    }
    let mut out = Vec::new();
    let mut rest = bytes;
    loop {
        rest = decode(rest, &mut out).map_err(|source| Error::Compressed {
            path: path.into(),
            format,
            source,
        })?;
        if rest.iter().all(|b| *b == 0) {
            return Ok(out);
        }
        if !begins_part(rest) {
            return Err(packed(
                format!("{} bytes that are no {format} data follow the compressed text", rest.len()),
                "download or copy it again; or unpack it, and give the text itself",
            ));
        }
    }
}

const TABLE: &str = "write its text as .jsonl, one {\"text\": ...} a line (with pandas: \
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
    (0, b"PAR1", "a Parquet table", TABLE),
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
fn kind(bytes: &[u8]) -> Option<(&'static str, &'static str)> {
    KINDS
        .iter()
        .find(|(at, magic, ..)| bytes.get(*at..).is_some_and(|rest| rest.starts_with(magic)))
        .map(|(.., what, remedy)| (*what, *remedy))
}
