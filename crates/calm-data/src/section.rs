//! A section: consecutive documents as bytes. One section is a token file; several, one behind the other, are a shard.
//!
//! ```text
//! header   magic, format version, bytes an id, counts, hashes of data and tokenizer, hash of the payload,
//!          hash of the header
//! offsets  (documents + 1) x u64, in tokens
//! lengths  documents x u64, bytes of text (for bits per byte)
//! marks    format version 2 alone: one bit a token, set where it counts, in words of 64
//! ids      tokens x u16 (V <= 65,536) or u32
//! ```
//!
//! Without marks every token counts, and the bytes are those of format version 1. Everything is little-endian. In a shard each section begins at a multiple of eight bytes.

use std::ops::Range;
use std::path::Path;

use memmap2::{Mmap, UncheckedAdvice};

use crate::error::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("token files are read in place and are little-endian");

const MAGIC: [u8; 8] = *b"CALMTOK\n";
/// Of sections without marks, and with them.
const VERSIONS: [u32; 2] = [1, 2];

/// What the bytes of a section are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) id_bytes: u32,
    /// Whether there are marks.
    pub(crate) marked: bool,
}

impl Form {
    /// The form of files that are written in this version, if it is one.
    pub(crate) fn of(version: u32, id_bytes: u32) -> Option<Self> {
        let marked = VERSIONS.iter().position(|known| *known == version)? == 1;
        matches!(id_bytes, 2 | 4).then_some(Self { id_bytes, marked })
    }

    /// The version that says so.
    pub(crate) fn version(self) -> u32 {
        VERSIONS[usize::from(self.marked)]
    }

    /// Whether a version is known.
    pub(crate) fn knows(version: u32) -> bool {
        VERSIONS.contains(&version)
    }

    /// Words of the marks of so many tokens.
    fn mark_words(self, tokens: u64) -> u64 {
        if self.marked { tokens.div_ceil(64) } else { 0 }
    }

    /// Bytes of a section, if they fit in 64 bits.
    fn bytes(self, documents: u64, tokens: u64) -> Option<u64> {
        let words = documents.checked_mul(2)?.checked_add(1)?.checked_add(self.mark_words(tokens))?;
        let ids = tokens.checked_mul(u64::from(self.id_bytes))?;
        ids.checked_add(words.checked_mul(8)?)?.checked_add(HEADER as u64)
    }
}

/// The first bytes of a section; every field is at a multiple of its size, so that it is read in place.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Header {
    magic: [u8; 8],
    version: u32,
    id_bytes: u32,
    pub(crate) documents: u64,
    pub(crate) tokens: u64,
    pub(crate) text_bytes: u64,
    pub(crate) data: [u8; 32],
    pub(crate) tokenizer: [u8; 32],
    pub(crate) payload: [u8; 32],
    header: [u8; 32],
}

pub(crate) const HEADER: usize = size_of::<Header>();

impl Header {
    fn own_hash(&self) -> [u8; 32] {
        *blake3::hash(&bytemuck::bytes_of(self)[..HEADER - 32]).as_bytes()
    }

    /// Length of the whole section, if it fits in 64 bits.
    pub(crate) fn section_len(&self) -> Option<u64> {
        self.form().bytes(self.documents, self.tokens)
    }

    /// What follows.
    pub(crate) fn form(&self) -> Form {
        Form { id_bytes: self.id_bytes, marked: self.version == VERSIONS[1] }
    }

    /// The header at the beginning of these bytes, if they hold one that is whole.
    pub(crate) fn read(bytes: &[u8], path: &Path) -> Result<Self> {
        if bytes.len() < HEADER {
            let message = format!("it is {} bytes long, shorter than its header", bytes.len());
            return Err(Error::token_file(path, message));
        }
        let header: Self = bytemuck::pod_read_unaligned(&bytes[..HEADER]);
        if header.magic != MAGIC {
            return Err(Error::token_file(path, "it does not begin like one"));
        }
        if !Form::knows(header.version) {
            let [first, last] = VERSIONS;
            let message =
                format!("it has format version {}, this program reads {first} and {last}", header.version);
            return Err(Error::token_file(path, message));
        }
        if header.header != header.own_hash() || Form::of(header.version, header.id_bytes).is_none() {
            return Err(Error::token_file(path, "its header is damaged"));
        }
        Ok(header)
    }

    /// Where it lies, as an index keeps it.
    pub(crate) fn record(&self, shard: u64, at: u64) -> Record {
        let Self { documents, tokens, text_bytes, payload, .. } = *self;
        Record { documents, tokens, text_bytes, shard, at, payload }
    }
}

/// A section's place in an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Record {
    pub(crate) documents: u64,
    pub(crate) tokens: u64,
    pub(crate) text_bytes: u64,
    /// Number of the file that holds it.
    pub(crate) shard: u64,
    /// Where its header begins there.
    pub(crate) at: u64,
    pub(crate) payload: [u8; 32],
}

impl Record {
    /// Where its payload ends; none if that does not fit in 64 bits.
    pub(crate) fn end(&self, form: Form) -> Option<u64> {
        form.bytes(self.documents, self.tokens)?.checked_add(self.at)
    }
}

/// The bytes of a file.
pub(crate) enum Storage {
    Mapped(Mmap),
    /// u64 for the alignment.
    Memory(Vec<u64>),
}

impl Storage {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(words) => bytemuck::cast_slice(words),
        }
    }

    /// Gives memory back to the system: these bytes will not be read for some time.
    pub(crate) fn release(&self, at: usize, length: usize) {
        if let Self::Mapped(map) = self {
            // SAFETY: the mapping is read-only and shared with a file that is never changed in place: pages that are
            // dropped come back with the same bytes.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, at, length) };
        }
    }
}

/// A section in its file.
#[derive(Clone, Copy)]
pub(crate) struct Section<'a> {
    /// From the header on.
    bytes: &'a [u8],
    documents: usize,
    tokens: usize,
    form: Form,
}

impl<'a> Section<'a> {
    /// What a record says that these bytes hold, which must reach to its end.
    pub(crate) fn new(bytes: &'a [u8], record: &Record, form: Form) -> Self {
        let (documents, tokens) = (record.documents as usize, record.tokens as usize);
        Self { bytes: &bytes[record.at as usize..], documents, tokens, form }
    }

    fn index(self) -> &'a [u64] {
        bytemuck::cast_slice(&self.bytes[HEADER..HEADER + (2 * self.documents + 1) * 8])
    }

    pub(crate) fn offsets(self) -> &'a [u64] {
        &self.index()[..self.documents + 1]
    }

    /// Bytes of text of each document.
    pub(crate) fn lengths(self) -> &'a [u64] {
        &self.index()[self.documents + 1..]
    }

    /// One bit a token, set where it counts; none where all do.
    pub(crate) fn marks(self) -> Option<&'a [u64]> {
        let start = HEADER + (2 * self.documents + 1) * 8;
        let words = self.form.mark_words(self.tokens as u64) as usize;
        self.form.marked.then(|| bytemuck::cast_slice(&self.bytes[start..start + words * 8]))
    }

    fn ids(self) -> &'a [u8] {
        let words = 2 * self.documents + 1 + self.form.mark_words(self.tokens as u64) as usize;
        let start = HEADER + words * 8;
        &self.bytes[start..start + self.tokens * self.form.id_bytes as usize]
    }

    /// Ids of two bytes.
    pub(crate) fn narrow(self) -> Option<&'a [u16]> {
        (self.form.id_bytes == 2).then(|| bytemuck::cast_slice(self.ids()))
    }

    /// Ids of four bytes.
    pub(crate) fn wide(self) -> Option<&'a [u32]> {
        (self.form.id_bytes == 4).then(|| bytemuck::cast_slice(self.ids()))
    }

    /// The tokens of a document, none of which lie outside even if the table is damaged.
    pub(crate) fn range(self, document: usize) -> (usize, usize) {
        let offsets = self.offsets();
        let from = (offsets[document] as usize).min(self.tokens);
        (from, (offsets[document + 1] as usize).clamp(from, self.tokens))
    }

    /// Whether the table of documents can be one.
    pub(crate) fn has_a_table(self) -> bool {
        let offsets = self.offsets();
        let ascending = offsets.windows(2).all(|w| w[0] <= w[1]);
        offsets.first() == Some(&0) && offsets.last() == Some(&(self.tokens as u64)) && ascending
    }

    /// Whether the payload has this hash.
    pub(crate) fn is(self, hash: &[u8; 32]) -> bool {
        let words = self.index().len() + self.marks().map_or(0, <[u64]>::len);
        let end = HEADER + words * 8 + self.ids().len();
        blake3::hash(&self.bytes[HEADER..end]).as_bytes() == hash
    }
}

/// Collects the documents of a section.
pub struct TokenWriter {
    wide: bool,
    data: [u8; 32],
    tokenizer: [u8; 32],
    offsets: Vec<u64>,
    lengths: Vec<u64>,
    /// Where not every token counts.
    marks: Option<Vec<u64>>,
    ids: Vec<u8>,
}

impl TokenWriter {
    /// For ids below `vocab_size`, of this text and this tokenizer.
    pub fn new(vocab_size: usize, data_hash: [u8; 32], tokenizer_hash: [u8; 32]) -> Self {
        Self {
            wide: vocab_size > 1 << 16,
            data: data_hash,
            tokenizer: tokenizer_hash,
            offsets: vec![0],
            lengths: Vec::new(),
            marks: None,
            ids: Vec::new(),
        }
    }

    /// The same, of documents of which not every token counts.
    pub fn marked(self) -> Self {
        Self { marks: Some(Vec::new()), ..self }
    }

    /// Adds a document of which these tokens count, where the writer is [`TokenWriter::marked`].
    pub fn push_marked(&mut self, ids: &[u32], text_bytes: u64, counting: &[Range<usize>]) {
        let start = self.tokens() as usize;
        self.push(ids, text_bytes);
        let Some(marks) = &mut self.marks else { return };
        for range in counting {
            for token in start + range.start..start + range.end.min(ids.len()) {
                marks[token / 64] |= 1 << (token % 64);
            }
        }
    }

    /// Adds a document: its tokens (all below the vocabulary's size) and its bytes of text.
    pub fn push(&mut self, ids: &[u32], text_bytes: u64) {
        if self.wide {
            self.ids.extend_from_slice(bytemuck::cast_slice(ids));
        } else {
            self.ids.extend(ids.iter().flat_map(|&id| {
                debug_assert!(id < 1 << 16);
                (id as u16).to_le_bytes()
            }));
        }
        self.offsets.push(self.tokens() + ids.len() as u64);
        self.lengths.push(text_bytes);
        let words = self.tokens().div_ceil(64) as usize;
        if let Some(marks) = &mut self.marks {
            marks.resize(words, 0);
        }
    }

    /// Documents so far.
    pub(crate) fn documents(&self) -> u64 {
        self.lengths.len() as u64
    }

    /// Tokens so far.
    pub(crate) fn tokens(&self) -> u64 {
        self.offsets.last().copied().unwrap_or(0)
    }

    /// Bytes of a section of what was added.
    pub(crate) fn section_len(&self) -> u64 {
        let payload: usize = self.payload().iter().map(|part| part.len()).sum();
        (HEADER + payload) as u64
    }

    pub(crate) fn header(&self) -> Header {
        let mut payload = blake3::Hasher::new();
        for part in self.payload() {
            payload.update(part);
        }
        let mut header = Header {
            magic: MAGIC,
            version: self.form().version(),
            id_bytes: self.form().id_bytes,
            documents: self.documents(),
            tokens: self.tokens(),
            text_bytes: self.lengths.iter().sum(),
            data: self.data,
            tokenizer: self.tokenizer,
            payload: *payload.finalize().as_bytes(),
            header: [0; 32],
        };
        header.header = header.own_hash();
        header
    }

    /// What follows the header.
    pub(crate) fn payload(&self) -> [&[u8]; 4] {
        let marks = self.marks.as_deref().unwrap_or_default();
        [
            bytemuck::cast_slice(&self.offsets),
            bytemuck::cast_slice(&self.lengths),
            bytemuck::cast_slice(marks),
            &self.ids,
        ]
    }

    pub(crate) fn form(&self) -> Form {
        Form { id_bytes: if self.wide { 4 } else { 2 }, marked: self.marks.is_some() }
    }

    /// Forgets the documents and keeps the memory.
    pub(crate) fn clear(&mut self) {
        self.offsets.truncate(1);
        self.lengths.clear();
        self.marks.iter_mut().for_each(Vec::clear);
        self.ids.clear();
    }
}
