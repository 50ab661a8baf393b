//! Tokens on disk: unpadded documents without BOS or EOS, independent of the chunk size, memory-mapped.
//!
//! A token file is one [section](crate::section) in a file of its own, or the sections of a set of shards (see
//! [`crate::shards`]); who reads documents sees no difference. A file is written under a temporary name, flushed to the
//! disk and renamed, so that a name that exists is a whole file.
//!
//! Of one section everything is compared with its hash when it is opened by a command. Of many, each is when it is first
//! [proven](TokenFile::prove): before rows are made of it.

use std::borrow::Cow;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use memmap2::Mmap;

use crate::error::{Error, Result};
pub use crate::section::TokenWriter;
use crate::section::{Form, HEADER, Header, Record, Section, Storage};

/// A file of sections.
pub(crate) struct Shard {
    pub(crate) storage: Storage,
    pub(crate) path: Option<PathBuf>,
}

impl Shard {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
        let len = file.metadata().map_err(|e| Error::io("read", path, e))?.len();
        if len < HEADER as u64 {
            return Err(Error::token_file(path, format!("it is {len} bytes long, shorter than its header")));
        }
        // SAFETY: token files are never changed in place: they are written under another name and renamed,
        // and a deleted file stays mapped.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("read", path, e))?;
        Ok(Self { storage: Storage::Mapped(map), path: Some(path.to_owned()) })
    }

    fn error(&self, message: impl Into<String>) -> Error {
        Error::token_file(self.path.as_deref().unwrap_or(Path::new("(in memory)")), message)
    }
}

/// What is the same for all sections of a token file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Common {
    pub(crate) form: Form,
    pub(crate) data: [u8; 32],
    pub(crate) tokenizer: [u8; 32],
    /// Hash of the payload of one section, of the index of many.
    pub(crate) hash: [u8; 32],
}

struct Inner {
    shards: Vec<Arc<Shard>>,
    sections: Vec<Record>,
    /// First document of each section; one more for the end.
    starts: Vec<u64>,
    proven: Vec<AtomicBool>,
    common: Common,
    tokens: u64,
    text_bytes: u64,
    path: Option<PathBuf>,
}

/// The tokens of many documents, on disk or in memory, and the share of each window of them that is input. Cloning shares
/// the mapping.
#[derive(Clone)]
pub struct TokenFile(Arc<Inner>, f64);

impl std::fmt::Debug for TokenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("TokenFile")
            .field("path", &self.0.path)
            .field("sections", &self.0.sections.len())
            .field("documents", &self.len())
            .field("tokens", &self.tokens())
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
        let shard = Shard::open(path)?;
        let header = Header::read(shard.storage.bytes(), path)?;
        let len = shard.storage.bytes().len() as u64;
        if header.section_len() != Some(len) {
            let expected = header.section_len().unwrap_or(u64::MAX);
            return Err(Error::token_file(path, format!("it is cut short: {len} of {expected} bytes")));
        }
        let file = Self::of_one(shard, &header);
        if !file.section(0).has_a_table() {
            return Err(Error::token_file(path, "its table of documents is damaged"));
        }
        Ok(file)
    }

    fn of_one(shard: Shard, header: &Header) -> Self {
        let Header { data, tokenizer, payload, .. } = *header;
        let path = shard.path.clone();
        let common = Common { form: header.form(), data, tokenizer, hash: payload };
        Self::of_sections(vec![Arc::new(shard)], vec![header.record(0, 0)], common, path)
    }

    /// Sections of shards that reach to their ends.
    pub(crate) fn of_sections(
        shards: Vec<Arc<Shard>>,
        sections: Vec<Record>,
        common: Common,
        path: Option<PathBuf>,
    ) -> Self {
        let mut starts = vec![0];
        for section in &sections {
            starts.push(starts.last().copied().unwrap_or(0) + section.documents);
        }
        let inner = Inner {
            shards,
            starts,
            proven: sections.iter().map(|_| AtomicBool::new(false)).collect(),
            tokens: sections.iter().map(|s| s.tokens).sum(),
            text_bytes: sections.iter().map(|s| s.text_bytes).sum(),
            sections,
            common,
            path,
        };
        Self(Arc::new(inner), 0.0)
    }

    /// Documents in memory, for tests and small texts. `documents` holds tokens and bytes of text of each.
    pub fn in_memory(documents: &[(Vec<u32>, u64)], data_hash: [u8; 32], tokenizer_hash: [u8; 32]) -> Self {
        Self::in_memory_sections(&[documents], data_hash, tokenizer_hash)
    }

    /// The same in several sections.
    pub fn in_memory_sections(
        sections: &[&[(Vec<u32>, u64)]],
        data_hash: [u8; 32],
        tokenizer_hash: [u8; 32],
    ) -> Self {
        let (mut shards, mut records) = (Vec::new(), Vec::new());
        let form = Form { id_bytes: 4, marked: false };
        let mut common = Common { form, data: data_hash, tokenizer: tokenizer_hash, hash: [0; 32] };
        for documents in sections {
            let mut writer = TokenWriter::new(u32::MAX as usize, data_hash, tokenizer_hash);
            documents.iter().for_each(|(ids, bytes)| writer.push(ids, *bytes));
            let header = writer.header();
            let parts = [bytemuck::bytes_of(&header)].into_iter().chain(writer.payload());
            let mut bytes: Vec<u8> = parts.flatten().copied().collect();
            bytes.resize(bytes.len().next_multiple_of(8), 0);
            let words = bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect();
            records.push(header.record(shards.len() as u64, 0));
            shards.push(Arc::new(Shard { storage: Storage::Memory(words), path: None }));
            common.hash = header.payload;
        }
        Self::of_sections(shards, records, common, None)
    }

    /// The same section again and again.
    #[cfg(test)]
    pub(crate) fn repeated(&self, sections: usize) -> Self {
        let records = vec![self.0.sections[0]; sections];
        Self::of_sections(self.0.shards.clone(), records, self.0.common, None)
    }

    /// Several files of one tokenizer, one behind the other; `data` is the hash of their text.
    pub(crate) fn joined(files: Vec<Self>, data: [u8; 32]) -> Self {
        let [first, _, ..] = &files[..] else {
            return files.into_iter().next().unwrap_or_else(|| Self::in_memory(&[], data, [0; 32]));
        };
        let common = Common {
            data,
            hash: *blake3::hash(&files.iter().map(|f| f.0.common.hash).collect::<Vec<_>>().concat())
                .as_bytes(),
            ..first.0.common
        };
        let (mut shards, mut records) = (Vec::new(), Vec::new());
        for file in &files {
            let before = shards.len() as u64;
            records.extend(file.0.sections.iter().map(|r| Record { shard: r.shard + before, ..*r }));
            shards.extend(file.0.shards.iter().cloned());
        }
        Self::of_sections(shards, records, common, None)
    }

    /// Number of sections: runs of consecutive documents that are read together.
    pub fn sections(&self) -> usize {
        self.0.sections.len()
    }

    /// The documents of a section.
    ///
    /// # Panics
    /// If there is no such section.
    pub fn section_documents(&self, section: usize) -> std::ops::Range<usize> {
        self.0.starts[section] as usize..self.0.starts[section + 1] as usize
    }

    /// Tokens of a section.
    ///
    /// # Panics
    /// If there is no such section.
    pub fn section_tokens(&self, section: usize) -> u64 {
        self.0.sections[section].tokens
    }

    pub(crate) fn section(&self, section: usize) -> Section<'_> {
        let record = &self.0.sections[section];
        Section::new(self.0.shards[record.shard as usize].storage.bytes(), record, self.0.common.form)
    }

    /// The section that holds a document.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn section_of(&self, document: usize) -> usize {
        assert!(document < self.len(), "document {document} of {}", self.len());
        match self.sections() {
            1 => 0,
            _ => self.0.starts.partition_point(|start| *start <= document as u64) - 1,
        }
    }

    /// The section of a document, and its number there.
    pub(crate) fn place(&self, document: usize) -> (Section<'_>, usize) {
        let section = self.section_of(document);
        (self.section(section), document - self.0.starts[section] as usize)
    }

    /// Whether not every token counts.
    pub fn is_marked(&self) -> bool {
        self.0.common.form.marked
    }

    /// The same tokens, where this share of every window is input alone: at least 0, below 1.
    #[must_use]
    pub fn after_share(self, share: f64) -> Self {
        Self(self.0, share)
    }

    /// The share of every window that is input alone.
    pub(crate) fn input_share(&self) -> f64 {
        self.1
    }

    /// Number of documents.
    pub fn len(&self) -> usize {
        self.0.starts.last().copied().unwrap_or(0) as usize
    }

    /// Whether there is no document.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of tokens of all documents, without BOS, EOS and PAD.
    pub fn tokens(&self) -> u64 {
        self.0.tokens
    }

    /// Bytes of text of all documents.
    pub fn text_bytes(&self) -> u64 {
        self.0.text_bytes
    }

    /// Number of tokens of document `i`.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn document_len(&self, i: usize) -> usize {
        let (section, i) = self.place(i);
        let (from, end) = section.range(i);
        end - from
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
        let (section, i) = self.place(i);
        let (from, end) = section.range(i);
        let from = from.saturating_add(start).min(end);
        let end = from.saturating_add(count).min(end);
        match (section.wide(), section.narrow()) {
            (Some(ids), _) => Cow::Borrowed(&ids[from..end]),
            (_, Some(ids)) => Cow::Owned(ids[from..end].iter().map(|&id| id as u32).collect()),
            _ => Cow::Borrowed(&[]),
        }
    }

    /// Bytes of text of document `i`, for bits per byte.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn byte_len(&self, i: usize) -> u64 {
        let (section, i) = self.place(i);
        section.lengths()[i]
    }

    /// Hash of all tokens and offsets (hexadecimal BLAKE3); of several sections that of their hashes.
    pub fn hash(&self) -> String {
        blake3::Hash::from_bytes(self.0.common.hash).to_hex().to_string()
    }

    /// Hash of the text that the tokens come from.
    pub fn data_hash(&self) -> String {
        blake3::Hash::from_bytes(self.0.common.data).to_hex().to_string()
    }

    /// Hash of the tokenizer that made the tokens.
    pub fn tokenizer_hash(&self) -> String {
        blake3::Hash::from_bytes(self.0.common.tokenizer).to_hex().to_string()
    }

    pub(crate) fn is_of(&self, data: &[u8; 32], tokenizer: &[u8; 32]) -> bool {
        self.0.common.data == *data && self.0.common.tokenizer == *tokenizer
    }

    /// Where the file lies, or the index of a set; none for one in memory.
    pub fn path(&self) -> Option<&Path> {
        self.0.path.as_deref()
    }

    /// Reads everything and compares it with its hashes: bytes that changed on the disk, which
    /// [`TokenFile::open`] cannot know of.
    ///
    /// # Errors
    /// When a byte differs.
    pub fn verify(&self) -> Result<()> {
        (0..self.sections()).try_for_each(|section| {
            self.compare(section)?;
            if self.sections() > 1 {
                self.release(section);
            }
            Ok(())
        })
    }

    /// Compares a section with its hash, once: what was compared before is not read again.
    ///
    /// # Errors
    /// When a byte differs.
    ///
    /// # Panics
    /// If there is no such section.
    pub fn prove(&self, section: usize) -> Result<()> {
        if !self.0.proven[section].load(Ordering::Relaxed) {
            self.compare(section)?;
        }
        Ok(())
    }

    fn compare(&self, number: usize) -> Result<()> {
        let record = &self.0.sections[number];
        let shard = &self.0.shards[record.shard as usize];
        let section = self.section(number);
        if !section.is(&record.payload) {
            let message = match &shard.path {
                Some(path) if Some(path) != self.0.path.as_ref() => {
                    format!("the tokens from byte {} on differ from their hash", record.at)
                }
                _ => "its tokens differ from the hash in its header".to_owned(),
            };
            return Err(shard.error(message));
        }
        if !section.has_a_table() {
            return Err(shard.error("its table of documents is damaged"));
        }
        self.0.proven[number].store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Gives the memory of a section back to the system; it may be read again at any time.
    ///
    /// # Panics
    /// If there is no such section.
    pub fn release(&self, section: usize) {
        let record = &self.0.sections[section];
        if let Some(end) = record.end(self.0.common.form) {
            let length = (end - record.at) as usize;
            self.0.shards[record.shard as usize].storage.release(record.at as usize, length);
        }
    }
}

impl TokenWriter {
    /// Writes a file of one section and opens it.
    ///
    /// # Errors
    /// When it cannot be written; nothing is left under its name then.
    pub fn write(self, path: &Path) -> Result<TokenFile> {
        let header = self.header();
        let [offsets, lengths, marks, ids] = self.payload();
        write_atomically(path, &[bytemuck::bytes_of(&header), offsets, lengths, marks, ids])?;
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
            assert_eq!(file.0.common.form.id_bytes, width);
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
