//! Tables that lie about their size: read or refused in 64 MiB and 64 times their length.

// Helpers outside of test functions may panic too.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use calm_data::source::path::open;

/// Counts what is held and the most that was. Nothing is given that is not there.
struct Counting;

static HELD: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
/// What is held is counted in the whole process: one table at a time.
static ONE: Mutex<()> = Mutex::new(());

// SAFETY: every call goes on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(held, Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Values of Thrift's compact protocol.
#[derive(Clone)]
enum Value {
    I32(i64),
    I64(i64),
    Text(&'static str),
    Structs(Vec<Vec<(i16, Value)>>),
    /// Kind 5 or 8.
    Numbers(Vec<i64>),
    Texts(Vec<&'static str>),
    Struct(Vec<(i16, Value)>),
}
use Value::*;

type Fields = Vec<(i16, Value)>;

fn varint(out: &mut Vec<u8>, mut n: u64) {
    while n > 0x7f {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn signed(out: &mut Vec<u8>, n: i64) {
    varint(out, ((n << 1) ^ (n >> 63)) as u64);
}

fn list(out: &mut Vec<u8>, count: usize, kind: u8) {
    out.push(0xf0 | kind);
    varint(out, count as u64);
}

fn text(out: &mut Vec<u8>, text: &str) {
    varint(out, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

/// A struct.
fn thrift(out: &mut Vec<u8>, fields: &Fields) {
    for (id, value) in fields {
        let kind = match value {
            I32(_) => 5,
            I64(_) => 6,
            Text(_) => 8,
            Structs(_) | Numbers(_) | Texts(_) => 9,
            Struct(_) => 12,
        };
        out.push(kind);
        signed(out, i64::from(*id));
        match value {
            I32(n) | I64(n) => signed(out, *n),
            Text(t) => text(out, t),
            Structs(all) => {
                list(out, all.len(), 12);
                all.iter().for_each(|fields| thrift(out, fields));
            }
            Numbers(all) => {
                list(out, all.len(), 5);
                all.iter().for_each(|n| signed(out, *n));
            }
            Texts(all) => {
                list(out, all.len(), 8);
                all.iter().for_each(|t| text(out, t));
            }
            Struct(fields) => thrift(out, fields),
        }
    }
    out.push(0);
}

const PLAIN: i64 = 0;
const RLE: i64 = 3;
const DELTA_LENGTH: i64 = 6;
const DELTA: i64 = 7;
const DICTIONARY: i64 = 8;
const NONE: i64 = 0;
const SNAPPY: i64 = 1;
const GZIP: i64 = 2;
const BROTLI: i64 = 4;
const ZSTD: i64 = 6;
const IMMENSE: i64 = i32::MAX as i64;

/// A page of so many values that says that it unpacks to `unpacked` bytes.
fn page(values: i64, encoding: i64, unpacked: i64, bytes: &[u8]) -> Vec<u8> {
    let of = Struct(vec![(1, I32(values)), (2, I32(encoding)), (3, I32(RLE)), (4, I32(RLE))]);
    with_header(vec![(1, I32(0)), (2, I32(unpacked)), (3, I32(bytes.len() as i64)), (5, of)], bytes)
}

fn dictionary(values: i64, bytes: &[u8]) -> Vec<u8> {
    let of = Struct(vec![(1, I32(values)), (2, I32(PLAIN))]);
    let size = bytes.len() as i64;
    with_header(vec![(1, I32(2)), (2, I32(size)), (3, I32(size)), (7, of)], bytes)
}

fn with_header(header: Fields, bytes: &[u8]) -> Vec<u8> {
    let mut page = Vec::new();
    thrift(&mut page, &header);
    page.extend_from_slice(bytes);
    page
}

/// A table with one column of text that is required, of so many rows.
struct Table {
    schema: Vec<Fields>,
    path: Vec<&'static str>,
    codec: i64,
    rows: i64,
    pages: Vec<u8>,
    /// Said of the pages' length.
    length: Option<i64>,
}

fn leaf(repetition: i64) -> Fields {
    vec![(1, I32(6)), (3, I32(repetition)), (4, Text("text")), (6, I32(0))]
}

fn group(name: &'static str, children: i64) -> Fields {
    vec![(3, I32(0)), (4, Text(name)), (5, I32(children))]
}

impl Table {
    fn of(codec: i64, rows: i64, pages: &[Vec<u8>]) -> Self {
        let schema = vec![group("schema", 1), leaf(0)];
        Self { schema, path: vec!["text"], codec, rows, pages: pages.concat(), length: None }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut file = b"PAR1".to_vec();
        file.extend_from_slice(&self.pages);
        let size = self.length.unwrap_or(self.pages.len() as i64);
        let column = vec![
            (1, I32(6)),
            (2, Numbers(vec![PLAIN, RLE])),
            (3, Texts(self.path.clone())),
            (4, I32(self.codec)),
            (5, I64(self.rows)),
            (6, I64(size)),
            (7, I64(size)),
            (9, I64(4)),
        ];
        let chunk = vec![(2, I64(4)), (3, Struct(column))];
        let group = vec![(1, Structs(vec![chunk])), (2, I64(size)), (3, I64(self.rows))];
        let begin = file.len();
        let footer = vec![
            (1, I32(1)),
            (2, Structs(self.schema.clone())),
            (3, I64(self.rows)),
            (4, Structs(vec![group])),
        ];
        thrift(&mut file, &footer);
        let length = (file.len() - begin) as u32;
        file.extend_from_slice(&length.to_le_bytes());
        file.extend_from_slice(b"PAR1");
        file
    }
}

/// Makes what is large while no other test counts.
fn alone<T>(make: impl FnOnce() -> T) -> T {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    make()
}

/// What is told of a table, or how many texts it has.
fn taken(table: &Table) -> Result<usize, String> {
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.parquet");
    let bytes = table.bytes();
    std::fs::write(&path, &bytes).unwrap();
    let before = HELD.load(Relaxed);
    MOST.store(before, Relaxed);
    let read = count(&path);
    let held = MOST.load(Relaxed) - before;
    let allowed = 64 * bytes.len() + (64 << 20);
    assert!(held <= allowed, "{held} bytes held for {}; {read:?}", bytes.len());
    read
}

/// Reads one text after the other and lets go of each.
fn count(path: &Path) -> Result<usize, String> {
    let opened = open(path).map_err(|e| e.to_string())?;
    let documents = opened.read().map_err(|e| e.to_string())?;
    documents.map(|document| document.map(|_| 1).map_err(|e| e.to_string())).sum()
}

fn refused(table: &Table, why: &str) {
    let told = taken(table).unwrap_err();
    assert!(told.contains("t.parquet") && told.contains(why), "{told}");
}

const TOO_MUCH: &str = "more memory than a file of its size explains";

/// `PLAIN` texts.
fn plain(texts: &[&[u8]]) -> Vec<u8> {
    texts.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes(), *text].concat()).collect()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    packed.write_all(bytes).unwrap();
    packed.finish().unwrap()
}

/// The head of numbers in deltas: blocks of 128 in four parts.
fn deltas(count: u64, first: i64, rest: &[u8]) -> Vec<u8> {
    let mut packed = Vec::new();
    [128, 4, count].iter().for_each(|n| varint(&mut packed, *n));
    signed(&mut packed, first);
    packed.extend_from_slice(rest);
    packed
}

#[test]
fn tables_made_here_are_read() {
    let two = plain(&[b"one", b"two"]);
    let size = two.len() as i64;
    assert_eq!(taken(&Table::of(NONE, 2, &[page(2, PLAIN, size, &two)])), Ok(2));
    assert_eq!(taken(&Table::of(GZIP, 2, &[page(2, PLAIN, size, &gz(&two))])), Ok(2));
    let packed = zstd::encode_all(&two[..], 3).unwrap();
    assert_eq!(taken(&Table::of(ZSTD, 2, &[page(2, PLAIN, size, &packed)])), Ok(2));
    // Two bits of index a text, two texts.
    let by_index = page(2, DICTIONARY, 3, &[1, 0b11, 0b10]);
    assert_eq!(taken(&Table::of(NONE, 2, &[dictionary(2, &two), by_index])), Ok(2));
    let lengths = deltas(2, 3, &[0, 0, 0, 0, 0, b'o', b'n', b'e', b't', b'w', b'o']);
    assert_eq!(taken(&Table::of(NONE, 2, &[page(2, DELTA_LENGTH, 16, &lengths)])), Ok(2));
    let prefixes = [deltas(2, 0, &[0; 5]), lengths].concat();
    assert_eq!(taken(&Table::of(NONE, 2, &[page(2, DELTA, 16, &prefixes)])), Ok(2));
}

#[test]
fn a_page_that_promises_gigabytes_is_refused_before_they_are_reserved() {
    let two = plain(&[b"one", b"two"]);
    let zstd = zstd::encode_all(&two[..], 3).unwrap();
    for (codec, bytes) in [(SNAPPY, vec![14, 0]), (GZIP, gz(&two)), (ZSTD, zstd), (BROTLI, vec![0x06])] {
        refused(&Table::of(codec, 2, &[page(2, PLAIN, IMMENSE, &bytes)]), TOO_MUCH);
    }
}

#[test]
fn a_page_that_holds_more_than_it_promises_is_refused_before_it_is_unpacked() {
    let bomb = alone(|| gz(&vec![b'x'; 100 << 20]));
    refused(&Table::of(GZIP, 2, &[page(2, PLAIN, 1000, &bomb)]), "more than it says");
}

#[test]
fn a_dictionary_and_deltas_that_promise_more_than_they_hold_are_refused() {
    let two = plain(&[b"one", b"two"]);
    refused(&Table::of(NONE, 2, &[dictionary(IMMENSE, &two), page(2, DICTIONARY, 1, &[0])]), TOO_MUCH);
    for encoding in [DELTA_LENGTH, DELTA] {
        for count in [3, 1 << 31, 1 << 60] {
            let lengths = deltas(count, 0, &[0; 5]);
            refused(&Table::of(NONE, 2, &[page(2, encoding, 20, &lengths)]), "texts, of 2");
        }
        // Texts of no bytes need no bits.
        let lengths = deltas(IMMENSE as u64, 0, &[0; 5]);
        refused(&Table::of(NONE, IMMENSE, &[page(IMMENSE, encoding, 20, &lengths)]), "texts, of");
    }
}

#[test]
fn texts_that_begin_with_all_of_the_one_before_are_counted_whole() {
    // A text of 30,000 letters, and 20,000 that repeat it: 600 MB in a page of 30 KB.
    let (letters, count) = (30_000i64, 20_001u64);
    let blocks = |first: i64, then: i64| {
        // The second differs from the first, all others are as the second.
        let mut rest = Vec::new();
        signed(&mut rest, then.min(0));
        if then == 0 {
            rest.extend([0; 4]);
        } else {
            // 32 bits each, so that the first difference is `then` and the others are none.
            rest.extend([32, 32, 32, 32]);
            for n in 0..128 {
                let delta = if n == 0 { then.max(0) } else { -then.min(0) };
                rest.extend((delta as u32).to_le_bytes());
            }
        }
        for _ in 1..(count - 1).div_ceil(128) {
            rest.extend([0; 5]);
        }
        deltas(count, first, &rest)
    };
    let page_bytes = [blocks(0, letters), blocks(letters, -letters), vec![b'x'; letters as usize]].concat();
    let size = page_bytes.len() as i64;
    let table = Table::of(NONE, count as i64, &[page(count as i64, DELTA, size, &page_bytes)]);
    refused(&table, TOO_MUCH);
}

#[test]
fn one_text_of_a_dictionary_in_many_rows_is_made_when_it_is_asked_for() {
    let long = alone(|| plain(&[&vec![b'x'; 8 << 20]]));
    let packed = zstd::encode_all(&long[..], 3).unwrap();
    let of = Struct(vec![(1, I32(1)), (2, I32(PLAIN))]);
    let header = vec![(1, I32(2)), (2, I32(long.len() as i64)), (3, I32(packed.len() as i64)), (7, of)];
    let index = zstd::encode_all(&[1u8, 0x80, 1, 0][..], 3).unwrap();
    let pages = [with_header(header, &packed), page(64, DICTIONARY, 4, &index)];
    assert_eq!(taken(&Table::of(ZSTD, 64, &pages)), Ok(64));
}

#[test]
fn a_list_of_more_elements_than_a_file_explains_is_refused() {
    let schema = vec![
        group("schema", 1),
        vec![(3, I32(0)), (4, Text("text")), (5, I32(2))],
        vec![(1, I32(6)), (3, I32(2)), (4, Text("role")), (6, I32(0))],
        vec![(1, I32(6)), (3, I32(2)), (4, Text("content")), (6, I32(0))],
    ];
    let levels = |value: u8| {
        let mut run = Vec::new();
        varint(&mut run, (IMMENSE as u64) << 1);
        run.push(value);
        [&(run.len() as u32).to_le_bytes(), &run[..]].concat()
    };
    let rle = [levels(1), levels(1), vec![0]].concat();
    let pages = [dictionary(1, &plain(&[b"user"])), page(IMMENSE, DICTIONARY, 20, &rle)];
    let mut table = Table::of(NONE, 1, &pages);
    (table.schema, table.path) = (schema, vec!["text", "role"]);
    let told = taken(&table).unwrap_err();
    assert!(told.contains("t.parquet"), "{told}");
}

#[test]
fn a_schema_that_is_no_tree_is_refused() {
    let two = plain(&[b"one", b"two"]);
    let table = || Table::of(NONE, 2, &[page(2, PLAIN, 14, &two)]);
    for children in [IMMENSE, 2, -1] {
        let mut table = table();
        table.schema[0] = group("schema", children);
        refused(&table, "schema is no tree");
    }
    // Deeper than a stack.
    let mut deep = table();
    deep.schema = vec![group("g", 1); 300_000];
    deep.schema.push(leaf(0));
    refused(&deep, "schema is no tree");
    let mut wide = table();
    wide.schema = vec![group("schema", 0); 200_000];
    refused(&wide, "schema is no tree");
}

#[test]
fn a_column_longer_than_its_file_is_refused() {
    let two = plain(&[b"one", b"two"]);
    for length in [1 << 40, i64::MAX, -1] {
        let mut table = Table::of(NONE, 2, &[page(2, PLAIN, 14, &two)]);
        table.length = Some(length);
        let told = taken(&table).unwrap_err();
        assert!(told.contains("a column"), "{told}");
    }
}

/// The library knows a field by its number, whatever kind stands there, and passes some lists without their elements: it
/// would go on somewhere else than who looked before it.
#[test]
fn a_field_that_is_not_what_it_must_be_is_refused() {
    let two = plain(&[b"one", b"two"]);
    let size = two.len() as i64;
    let of = || Struct(vec![(1, I32(2)), (2, I32(PLAIN)), (3, I32(RLE)), (4, I32(RLE))]);
    let header = || vec![(1, I32(0)), (2, I32(size)), (3, I32(size)), (5, of())];
    let with = |fields: Fields| Table::of(NONE, 2, &[with_header(fields, &two)]);
    assert_eq!(taken(&with(header())), Ok(2));
    for field in [(9, Numbers(vec![1])), (4, Text("x")), (5, Text("x"))] {
        refused(&with([header(), vec![field]].concat()), "header of a page cannot be read");
    }
    let mut table = with(header());
    for field in [(5, Text("x")), (10, Struct(vec![(5, Text("x"))]))] {
        table.schema[1] = [leaf(0), vec![field]].concat();
        refused(&table, "footer cannot be read");
    }
}
