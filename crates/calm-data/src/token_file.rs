//! Tokens on disk: unpadded documents without BOS or EOS, independent of the chunk size, memory-mapped.
//!
//! ```text
//! header   magic, format version, bytes an id, counts, hashes of data and tokenizer, hash of the payload,
//!          hash of the header
//! offsets  (documents + 1) x u64, in tokens
//! lengths  documents x u64, bytes of text (for bits per byte)
//! ids      tokens x u16 (V <= 65,536) or u32
//! ```
//!
//! Everything is little-endian. A file is written under a temporary name, flushed to the disk and renamed,
//! so that a name that exists is a whole file.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::Mmap;

use crate::error::{Error, Result};

#[cfg(target_endian = "big")]
compile_error!("token files are read in place and are little-endian");

const MAGIC: [u8; 8] = *b"CALMTOK\n";
const VERSION: u32 = 1;

/// The first bytes of a file; every field is at a multiple of its size, so that it is read in place.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: u32,
    id_bytes: u32,
    documents: u64,
    tokens: u64,
    text_bytes: u64,
    data: [u8; 32],
    tokenizer: [u8; 32],
    payload: [u8; 32],
    header: [u8; 32],
}

const HEADER: usize = size_of::<Header>();

impl Header {
    fn own_hash(&self) -> [u8; 32] {
        *blake3::hash(&bytemuck::bytes_of(self)[..HEADER - 32]).as_bytes()
    }

    /// Length of the whole file, if it fits in 64 bits.
    fn file_len(&self) -> Option<u64> {
        let index = self.documents.checked_mul(2)?.checked_add(1)?.checked_mul(8)?;
        self.tokens.checked_mul(self.id_bytes as u64)?.checked_add(index)?.checked_add(HEADER as u64)
    }
}

enum Storage {
    Mapped(Mmap),
    /// u64 for the alignment.
    Memory(Vec<u64>),
}

impl Storage {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Mapped(map) => map,
            Self::Memory(words) => bytemuck::cast_slice(words),
        }
    }
}

/// The tokens of many documents, on disk or in memory. Cloning shares the mapping.
#[derive(Clone)]
pub struct TokenFile {
    storage: Arc<Storage>,
    header: Header,
    path: Option<PathBuf>,
}

impl std::fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("TokenFile")
            .field("path", &self.path)
            .field("documents", &self.header.documents)
            .field("tokens", &self.header.tokens)
            .finish_non_exhaustive()
    }
}

impl TokenFile {
    /// Opens a token file. Checks length, magic number, version, the header's hash and the offsets; not the
    /// hash of all tokens, for that see [`TokenFile::verify`].
    ///
    /// # Errors
    /// When the file is missing, cut short, of another format or damaged.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let len = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        if len < HEADER as u64 {
            return Err(Error::token_file(path, format!("it is {len} bytes long, shorter than its header")));
        }
        // SAFETY: token files are never changed in place: they are written under another name and renamed,
        // and a deleted file stays mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("read", path, e))?;
        let header: Header = bytemuck::pod_read_unaligned(&map[..HEADER]);
        if header.magic != MAGIC {
            return Err(Error::token_file(path, "it does not begin like one"));
        }
        if header.version != VERSION {
            let message = format!("it has format version {}, this program reads {VERSION}", header.version);
            return Err(Error::token_file(path, message));
        }
        if header.header != header.own_hash() || !matches!(header.id_bytes, 2 | 4) {
            return Err(Error::token_file(path, "its header is damaged"));
        }
        if header.file_len() != Some(len) {
            let expected = header.file_len().unwrap_or(u64::MAX);
            return Err(Error::token_file(path, format!("it is cut short: {len} of {expected} bytes")));
        }
        let file = Self { storage: Arc::new(Storage::Mapped(map)), header, path: Some(path.to_path_buf()) };
        let offsets = file.offsets();
        let ascending = offsets.windows(2).all(|w| w[0] <= w[1]);
        if offsets.first() != Some(&0) || offsets.last() != Some(&header.tokens) || !ascending {
            return Err(Error::token_file(path, "its table of documents is damaged"));
        }
        Ok(file)
    }

    /// Documents in memory, for tests and small texts. `documents` holds tokens and bytes of text of each.
    pub fn in_memory(documents: &[(Vec<u32>, u64)], data_hash: [u8; 32], tokenizer_hash: [u8; 32]) -> Self {
        let mut writer = TokenWriter::new(u32::MAX as usize, data_hash, tokenizer_hash);
        for (ids, bytes) in documents {
            writer.push(ids, *bytes);
        }
        let (header, payload) = writer.into_parts();
        let mut words = vec![0u64; (HEADER + payload.len()).div_ceil(8)];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
        bytes[..HEADER].copy_from_slice(bytemuck::bytes_of(&header));
        bytes[HEADER..HEADER + payload.len()].copy_from_slice(&payload);
        Self { storage: Arc::new(Storage::Memory(words)), header, path: None }
    }

    fn index(&self) -> &[u64] {
        let end = HEADER + (2 * self.header.documents as usize + 1) * 8;
        bytemuck::cast_slice(&self.storage.bytes()[HEADER..end])
    }

    fn offsets(&self) -> &[u64] {
        &self.index()[..self.header.documents as usize + 1]
    }

    fn id_bytes(&self) -> &[u8] {
        let start = HEADER + (2 * self.header.documents as usize + 1) * 8;
        &self.storage.bytes()[start..start + self.header.tokens as usize * self.header.id_bytes as usize]
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.header.documents as usize
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of all documents, without BOS, EOS and PAD.
    pub fn tokens(&self) -> u64 {
        self.header.tokens
    }

    /// Bytes of text of all documents.
    pub fn text_bytes(&self) -> u64 {
        self.header.text_bytes
    }

    /// Number of tokens of document `i`.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn document_len(&self, i: usize) -> usize {
        let offsets = self.offsets();
        (offsets[i + 1] - offsets[i]) as usize
    }

    /// Tokens of document `i`.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn document(&self, i: usize) -> Cow<'_, [u32]> {
        self.slice(i, 0, usize::MAX)
    }

    /// At most `count` tokens of document `i`, from its token `start` on (fewer at its end).
    ///
    /// # Panics
    /// If there is no such document.
    pub fn slice(&self, i: usize, start: usize, count: usize) -> Cow<'_, [u32]> {
        let offsets = self.offsets();
        let (from, end) = (offsets[i] as usize, offsets[i + 1] as usize);
        let from = from.saturating_add(start).min(end);
        let end = from.saturating_add(count).min(end);
        if self.header.id_bytes == 4 {
            Cow::Borrowed(&bytemuck::cast_slice(self.id_bytes())[from..end])
        } else {
            let ids: &[u16] = &bytemuck::cast_slice(self.id_bytes())[from..end];
            Cow::Owned(ids.iter().map(|&id| id as u32).collect())
        }
    }

    /// Bytes of text of document `i`, for bits per byte.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn byte_len(&self, i: usize) -> u64 {
        assert!(i < self.len(), "document {i} of {}", self.len());
        self.index()[self.len() + 1 + i]
    }

    /// Hash of all tokens and offsets (hexadecimal BLAKE3).
    pub fn hash(&self) -> String {
        blake3::Hash::from_bytes(self.header.payload).to_hex().to_string()
    }

    /// Hash of the text that the tokens come from.
    pub fn data_hash(&self) -> String {
        blake3::Hash::from_bytes(self.header.data).to_hex().to_string()
    }

    /// Hash of the tokenizer that made the tokens.
    pub fn tokenizer_hash(&self) -> String {
        blake3::Hash::from_bytes(self.header.tokenizer).to_hex().to_string()
    }

    /// Where the file lies; none for one in memory.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Reads everything and compares it with the hash in the header: bytes that changed on the disk, which
    /// [`TokenFile::open`] cannot know of.
    ///
    /// # Errors
    /// When a byte differs.
    pub fn verify(&self) -> Result<()> {
        let end = HEADER + self.index().len() * 8 + self.id_bytes().len();
        if *blake3::hash(&self.storage.bytes()[HEADER..end]).as_bytes() == self.header.payload {
            return Ok(());
        }
        let path = self.path.clone().unwrap_or_else(|| PathBuf::from("(in memory)"));
        Err(Error::token_file(&path, "its tokens differ from the hash in its header"))
    }
}

/// Collects documents and writes a token file.
pub struct TokenWriter {
    wide: bool,
    data: [u8; 32],
    tokenizer: [u8; 32],
    offsets: Vec<u64>,
    lengths: Vec<u64>,
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
            ids: Vec::new(),
        }
    }

    /// Adds a document: its tokens (all below the vocabulary's size) and its bytes of text.
    pub fn push(&mut self, ids: &[u32], text_bytes: u64) {
        if self.wide {
            self.ids.extend(ids.iter().flat_map(|id| id.to_le_bytes()));
        } else {
            self.ids.extend(ids.iter().flat_map(|&id| {
                debug_assert!(id < 1 << 16);
                (id as u16).to_le_bytes()
            }));
        }
        self.offsets.push(self.offsets.last().copied().unwrap_or(0) + ids.len() as u64);
        self.lengths.push(text_bytes);
    }

    fn into_parts(self) -> (Header, Vec<u8>) {
        let mut payload = Vec::with_capacity((self.offsets.len() + self.lengths.len()) * 8 + self.ids.len());
        payload.extend_from_slice(bytemuck::cast_slice(&self.offsets));
        payload.extend_from_slice(bytemuck::cast_slice(&self.lengths));
        payload.extend_from_slice(&self.ids);
        let mut header = Header {
            magic: MAGIC,
            version: VERSION,
            id_bytes: if self.wide { 4 } else { 2 },
            documents: self.lengths.len() as u64,
            tokens: self.offsets.last().copied().unwrap_or(0),
            text_bytes: self.lengths.iter().sum(),
            data: self.data,
            tokenizer: self.tokenizer,
            payload: *blake3::hash(&payload).as_bytes(),
            header: [0; 32],
        };
        header.header = header.own_hash();
        (header, payload)
    }

    /// Writes the file and opens it.
    ///
    /// # Errors
    /// When it cannot be written; nothing is left under its name then.
    pub fn write(self, path: &Path) -> Result<TokenFile> {
        let (header, payload) = self.into_parts();
        write_atomically(path, &[bytemuck::bytes_of(&header), &payload])?;
        TokenFile::open(path)
    }
}

/// Writes the parts as one file that is there whole or not at all.
pub(crate) fn write_atomically(path: &Path, parts: &[&[u8]]) -> Result<()> {
    calm_files::write(path, |out| parts.iter().try_for_each(|part| out.write_all(part)))
        .map(|_| ())
        .map_err(|e| Error::io("write", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn sample() -> Vec<(Vec<u32>, u64)> {
        vec![(vec![1, 2, 3], 9), (vec![], 0), (vec![65_535, 7], 4)]
    }

    fn write(folder: &Path, vocab: usize) -> TokenFile {
        let mut writer = TokenWriter::new(vocab, [1; 32], [2; 32]);
        for (ids, bytes) in sample() {
            writer.push(&ids, bytes);
        }
        writer.write(&folder.join("deep/er/train.tokens")).unwrap()
    }

    #[test]
    fn documents_come_back_in_both_widths_and_from_memory() {
        let folder = tempfile::tempdir().unwrap();
        for (file, width) in [
            (write(folder.path(), 65_536), 2),
            (write(folder.path(), 65_537), 4),
            (TokenFile::in_memory(&sample(), [1; 32], [2; 32]), 4),
        ] {
            assert_eq!(file.header.id_bytes, width);
            assert_eq!((file.len(), file.tokens(), file.text_bytes()), (3, 5, 13));
            for (i, (ids, bytes)) in sample().into_iter().enumerate() {
                assert_eq!(file.document(i).as_ref(), ids);
                assert_eq!((file.document_len(i), file.byte_len(i)), (ids.len(), bytes));
            }
            assert_eq!(file.slice(0, 1, 1).as_ref(), [2]);
            assert_eq!(file.slice(0, 2, 9).as_ref(), [3]);
            assert!(file.slice(0, 9, 9).is_empty());
            assert_eq!(file.data_hash(), "01".repeat(32));
            assert_eq!(file.tokenizer_hash(), "02".repeat(32));
            file.verify().unwrap();
        }
    }

    #[test]
    fn nothing_but_the_file_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), 300_000);
        let names: Vec<_> = fs::read_dir(folder.path().join("deep/er")).unwrap().collect();
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn a_damaged_or_short_file_is_refused_with_a_remedy() {
        let folder = tempfile::tempdir().unwrap();
        let path = write(folder.path(), 1000).path().unwrap().to_path_buf();
        let whole = fs::read(&path).unwrap();
        let refused = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = TokenFile::open(&path).unwrap_err().told();
            assert!(error.contains("train.tokens") && error.contains("delete it"), "{error}");
            error
        };
        assert!(refused(&whole[..whole.len() - 1]).contains("cut short"));
        assert!(refused(&whole[..20]).contains("shorter than its header"));
        assert!(refused(&[]).contains("0 bytes"));
        let change = |at: usize, by: u8| {
            let mut bytes = whole.clone();
            bytes[at] ^= by;
            bytes
        };
        assert!(refused(&change(0, 1)).contains("begin"));
        assert!(refused(&change(8, 2)).contains("version"));
        assert!(refused(&change(16, 1)).contains("header is damaged"));
        assert!(refused(&change(HEADER + 8, 0x80)).contains("table"));
        fs::write(&path, change(whole.len() - 1, 1)).unwrap();
        assert!(TokenFile::open(&path).unwrap().verify().is_err());
        assert!(matches!(TokenFile::open(&folder.path().join("none")), Err(Error::Missing { .. })));
    }

    #[test]
    fn the_hash_depends_on_tokens_and_document_boundaries() {
        let hash = |d: &[(Vec<u32>, u64)]| TokenFile::in_memory(d, [0; 32], [0; 32]).hash();
        assert_eq!(hash(&sample()), hash(&sample()));
        assert_ne!(hash(&[(vec![1, 2], 2)]), hash(&[(vec![1], 1), (vec![2], 1)]));
        assert_ne!(hash(&[(vec![1], 1)]), hash(&[(vec![2], 1)]));
    }
}
