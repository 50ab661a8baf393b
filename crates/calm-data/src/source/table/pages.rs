//! The pages of a column, looked at before the library reserves memory by what they say of themselves.
//!
//! The library (parquet 60) reserves what a page's header promises, before it unpacks, and lets gzip and Brotli give more
//! than that; it keeps a value for each one that a dictionary promises, and a length for each text that a page of
//! deltas promises, before it reads any. Each may be two thousand million, for a file of a few bytes. So a header is
//! read here first, and what it promises is held against what is [`allowed`].

use std::fs::File;
use std::io::{Read, copy, sink};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use parquet::basic::{Compression, Encoding};
use parquet::column::page::{Page, PageMetadata, PageReader};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::ColumnChunkMetaData;
use parquet::file::reader::ChunkReader;
use parquet::file::serialized_reader::SerializedPageReader;
use parquet::schema::types::ColumnDescPtr;

use super::delta;
use super::thrift::{Compact, Layout, Shape};

/// How the library is told; see [`Problem`].
pub(super) const TOO_MUCH: &str = "it needs more memory than a file of its size explains";

/// Bytes that may be held of a table of so many, for its pages and again for a text of them: enough for pages of any
/// program, and for text that repeats itself.
pub(super) fn allowed(length: u64) -> u64 {
    (24 << 20) + 24 * length
}

/// What is wrong with a table, in the words after "damaged".
pub(super) struct Problem(pub String);

impl From<Problem> for ParquetError {
    fn from(problem: Problem) -> Self {
        Self::General(problem.0)
    }
}

fn wrong<T>(what: impl Into<String>) -> Result<T> {
    Err(Problem(what.into()).into())
}

/// What the pages of a table hold together.
pub(super) struct Held {
    bytes: AtomicU64,
    /// Of these, pages that were passed, of which values may still be there.
    passed: AtomicU64,
    allowed: u64,
}

impl Held {
    pub fn of(length: u64) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicU64::new(0), passed: AtomicU64::new(0), allowed: allowed(length) })
    }

    /// No value is there any more that was read before.
    pub fn let_go(&self) {
        self.bytes.fetch_sub(self.passed.swap(0, Relaxed), Relaxed);
    }

    /// Whether so many bytes more may be held.
    fn fits(&self, bytes: u64, what: &str) -> Result<()> {
        if self.bytes.load(Relaxed).saturating_add(bytes) > self.allowed {
            return wrong(format!("{TOO_MUCH}: {bytes} bytes for {what}"));
        }
        Ok(())
    }
}

/// The pages of a column of a row group.
pub(super) struct Pages {
    inner: SerializedPageReader<File>,
    file: Arc<File>,
    /// Where the next page begins, and the last one ends.
    at: u64,
    end: u64,
    compression: Compression,
    column: ColumnDescPtr,
    held: Arc<Held>,
    /// What is held of this column until its end (a dictionary, the elements of lists), and of the page that is read.
    kept: u64,
    page: u64,
}

/// What a page says of itself.
#[derive(Default)]
struct Header {
    kind: i64,
    unpacked: u64,
    packed: u64,
    /// Bytes of levels in front that are not packed, and whether the rest is.
    levels: u64,
    plain: bool,
    /// Of the header itself.
    length: u64,
}

/// Kinds of pages: an index, which the library passes, and one of the second version.
const INDEX: i64 = 1;
const SECOND: i64 = 3;

impl Pages {
    pub fn new(
        file: &Arc<File>,
        chunk: &ColumnChunkMetaData,
        rows: i64,
        length: u64,
        held: &Arc<Held>,
    ) -> Result<Self> {
        let begin = chunk.dictionary_page_offset().unwrap_or_else(|| chunk.data_page_offset());
        let (Ok(at), Ok(size)) = (u64::try_from(begin), u64::try_from(chunk.compressed_size())) else {
            return wrong("a column begins or ends before the file does");
        };
        let Some(end) = at.checked_add(size).filter(|end| *end <= length) else {
            return wrong("a column ends behind the file");
        };
        let inner = SerializedPageReader::new(file.clone(), chunk, usize::try_from(rows)?, None)?;
        Ok(Self {
            inner,
            file: file.clone(),
            at,
            end,
            compression: chunk.compression(),
            column: chunk.column_descr_ptr(),
            held: held.clone(),
            kept: 0,
            page: 0,
        })
    }

    /// The header of the page at `at`.
    fn header(&self) -> Result<Header> {
        let left = self.end - self.at;
        // Statistics of long texts make a header long.
        let mut look = 4096.min(left);
        loop {
            let bytes = self.file.get_bytes(self.at, look as usize)?;
            match Header::read(&mut Compact::new(&bytes)) {
                Some(header) => return Ok(header),
                None if look < left => look = (16 * look).min(left),
                None => return wrong("the header of a page cannot be read"),
            }
        }
    }

    /// The header of the next page that is no index, if there is one; `at` is where it begins.
    fn next_header(&mut self) -> Result<Option<Header>> {
        while self.at < self.end {
            let header = self.header()?;
            let size = header.length.saturating_add(header.packed);
            if size > self.end - self.at {
                return wrong("a page ends behind its column");
            }
            if header.kind != INDEX {
                return Ok(Some(header));
            }
            self.at += size;
        }
        Ok(None)
    }

    /// Looks at the next page, if there is one, and goes behind it.
    fn look(&mut self) -> Result<()> {
        let Some(header) = self.next_header()? else { return Ok(()) };
        let begin = self.at + header.length;
        self.at = begin + header.packed;
        if header.plain || self.compression == Compression::UNCOMPRESSED {
            return self.held.fits(header.packed, "a page");
        }
        // Brotli unpacks through a buffer as large.
        let brotli = matches!(self.compression, Compression::BROTLI(_));
        self.held.fits(header.unpacked.saturating_mul(1 + u64::from(brotli)), "a page")?;
        if brotli || matches!(self.compression, Compression::GZIP(_)) {
            let packed = self.file.get_read(begin + header.levels.min(header.packed))?;
            let packed = packed.take(header.packed.saturating_sub(header.levels));
            let most = header.unpacked.saturating_sub(header.levels);
            let found = if brotli {
                unpacked(brotli_decompressor::Decompressor::new(packed, 4096), most)
            } else {
                unpacked(flate2::read::MultiGzDecoder::new(packed), most)
            };
            if found > most {
                return wrong("a page holds more than it says");
            }
        }
        Ok(())
    }

    /// What the library makes of a page, in bytes: until the next one, and until the column's end.
    fn cost(&self, page: &Page) -> Result<(u64, u64)> {
        let (bytes, values) = (page.buffer().len() as u64, u64::from(page.num_values()));
        Ok(match page.encoding() {
            _ if page.is_dictionary_page() => (0, bytes + values * TEXT),
            // A row's list may go on in the next page.
            _ if self.column.max_rep_level() > 0 => (bytes + self.deltas(page)?, values * ELEMENT),
            _ => (bytes + self.deltas(page)?, 0),
        })
    }

    fn deltas(&self, page: &Page) -> Result<u64> {
        match page.encoding() {
            Encoding::DELTA_LENGTH_BYTE_ARRAY | Encoding::DELTA_BYTE_ARRAY => {
                Ok(delta::cost(page, &self.column, self.held.allowed / 8).map_err(Problem)?)
            }
            _ => Ok(0),
        }
    }
}

/// For an element of a list: its text and levels, and what grows with them.
const ELEMENT: u64 = 4 * TEXT;
/// The library's bytes for a text that lies in a page.
const TEXT: u64 = size_of::<parquet::data_type::ByteArray>() as u64;

/// How much comes out, as far as one more than `most`. An error is the library's to tell.
fn unpacked(packed: impl Read, most: u64) -> u64 {
    copy(&mut packed.take(most.saturating_add(1)), &mut sink()).unwrap_or(0)
}

/// A page's header; of its parts the numbers of values and encodings, statistics left out.
const HEADER: Layout = &[
    (1, Shape::Number),
    (2, Shape::Number),
    (3, Shape::Number),
    (4, Shape::Number),
    (5, Shape::Struct(FIRST)),
    (6, Shape::Struct(&[])),
    (7, Shape::Struct(&[(1, Shape::Number), (2, Shape::Number), (3, Shape::Switch)])),
    (8, Shape::Struct(SECOND_LAYOUT)),
];
const FIRST: Layout = &[(1, Shape::Number), (2, Shape::Number), (3, Shape::Number), (4, Shape::Number)];
const SECOND_LAYOUT: Layout = &[
    (1, Shape::Number),
    (2, Shape::Number),
    (3, Shape::Number),
    (4, Shape::Number),
    (5, Shape::Number),
    (6, Shape::Number),
    (7, Shape::Switch),
];

impl Header {
    fn read(compact: &mut Compact<'_>) -> Option<Self> {
        let mut header = Self::default();
        let mut sound = true;
        compact.follow(HEADER, 0, &mut |within, id, n| {
            let size = u64::try_from(n);
            match (within, id) {
                (0, 1) => header.kind = n,
                (0, 2 | 3) | (8, 5 | 6) if size.is_err() => sound = false,
                (0, 2) => header.unpacked = size.unwrap_or_default(),
                (0, 3) => header.packed = size.unwrap_or_default(),
                // Of a page of the second version.
                (8, 5 | 6) => header.levels = header.levels.saturating_add(size.unwrap_or_default()),
                (8, 7) => header.plain = n == 0,
                _ => {}
            }
        })?;
        header.length = compact.at() as u64;
        // There are no lists in it, and the library passes some in another way.
        (sound && compact.elements == 0).then_some(header)
    }
}

impl Iterator for Pages {
    type Item = Result<Page>;

    fn next(&mut self) -> Option<Self::Item> {
        self.get_next_page().transpose()
    }
}

impl PageReader for Pages {
    fn get_next_page(&mut self) -> Result<Option<Page>> {
        self.look()?;
        let Some(page) = self.inner.get_next_page()? else { return Ok(None) };
        let (page_cost, kept) = self.cost(&page)?;
        self.held.fits(page_cost + kept, "what a page says that it holds")?;
        self.held.bytes.fetch_add(page_cost + kept, Relaxed);
        self.held.passed.fetch_add(self.page, Relaxed);
        (self.page, self.kept) = (page_cost, self.kept + kept);
        Ok(Some(page))
    }

    /// The library asks for it only where rows are left out, which nobody does here.
    fn peek_next_page(&mut self) -> Result<Option<PageMetadata>> {
        wrong("pages are read one after the other")
    }

    fn skip_next_page(&mut self) -> Result<()> {
        self.get_next_page().map(drop)
    }

    /// A page of the second version begins with a row.
    fn at_record_boundary(&mut self) -> Result<bool> {
        Ok(self.next_header()?.is_none_or(|header| header.kind == SECOND))
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.held.passed.fetch_add(self.page + self.kept, Relaxed);
    }
}
