//! Token files that are larger than memory: sections in shards, and the index that names them.
//!
//! ```text
//! NAME.index          magic, format version (that of its sections), counts, hashes of data and tokenizer, hash of the list; then a record for
//!                     each section: counts, shard, place, hash of its payload
//! NAME-00000.tokens   sections, each beginning at a multiple of eight bytes; about 256 MiB
//! NAME-00001.tokens
//! ```
//!
//! The hashes are a tree: bytes by the hash of their section, sections by that of the list, the list by the index's own.
//! Where sections and shards end follows from the documents alone, so that the same text gives the same bytes on any
//! number of threads, and a preparation that was stopped is continued after its last whole shard.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use calm_files::Pending;

use crate::error::{Error, Result};
use crate::section::{Form, Header, Record, TokenWriter};
use crate::token_file::{Common, Shard, TokenFile, write_atomically};

const MAGIC: [u8; 8] = *b"CALMSET\n";

#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Index {
    magic: [u8; 8],
    version: u32,
    id_bytes: u32,
    sections: u64,
    shards: u64,
    data: [u8; 32],
    tokenizer: [u8; 32],
    /// Hash of the records.
    list: [u8; 32],
    /// Hash of all before it.
    own: [u8; 32],
}

const INDEX: usize = size_of::<Index>();

impl Index {
    fn own_hash(&self) -> [u8; 32] {
        *blake3::hash(&bytemuck::bytes_of(self)[..INDEX - 32]).as_bytes()
    }
}

/// Where sections and shards end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Text of at most so many bytes is one section in one file.
    pub whole_bytes: u64,
    /// A section ends with the document that reaches so many tokens,
    pub section_tokens: u64,
    /// or with so many documents.
    pub section_documents: u64,
    /// A shard ends with the section that reaches so many bytes.
    pub shard_bytes: u64,
}

impl Default for Cut {
    fn default() -> Self {
        Self {
            whole_bytes: 256 << 20,
            section_tokens: 2 << 20,
            section_documents: 16 << 10,
            shard_bytes: 256 << 20,
        }
    }
}

impl Cut {
    /// What a key of token files holds of it: nothing for the usual one.
    pub(crate) fn key(&self) -> Vec<u8> {
        if *self == Self::default() { Vec::new() } else { format!("{self:?}").into_bytes() }
    }
}

/// The name of a set's index, for that of a file of one section.
pub(crate) fn index_path(file: &Path) -> PathBuf {
    file.with_extension("index")
}

fn shard_path(file: &Path, number: u64) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!("{stem}-{number:05}.tokens"))
}

/// Opens a set by the name that its file of one section would have: the index is read and compared with its hash, the
/// shards are looked at for their length.
///
/// # Errors
/// When a file is missing, damaged or of another format.
pub(crate) fn open(file: &Path) -> Result<TokenFile> {
    let path = index_path(file);
    let bytes = fs::read(&path).map_err(|e| Error::io("read", &path, e))?;
    let damaged = |what: &str| Error::token_file(&path, what);
    let (Some(head), Some(list)) = (bytes.get(..INDEX), bytes.get(INDEX..)) else {
        return Err(damaged("it is shorter than its header"));
    };
    let index: Index = bytemuck::pod_read_unaligned(head);
    if index.magic != MAGIC {
        return Err(damaged("it does not begin like one"));
    }
    if !Form::knows(index.version) {
        let message = format!("it has format version {}, which this program does not read", index.version);
        return Err(damaged(&message));
    }
    let Some(form) = Form::of(index.version, index.id_bytes).filter(|_| index.own == index.own_hash()) else {
        return Err(damaged("its header is damaged"));
    };
    if *blake3::hash(list).as_bytes() != index.list {
        return Err(damaged("its list of sections is damaged"));
    }
    let records: Vec<Record> =
        list.chunks_exact(size_of::<Record>()).map(bytemuck::pod_read_unaligned).collect();
    let shards = (0..index.shards)
        .map(|number| Shard::open(&shard_path(file, number)).map(Arc::new))
        .collect::<Result<Vec<_>>>()?;
    let fits = |record: &Record| {
        let shard = shards.get(record.shard as usize)?;
        let end = record.end(form)?;
        (record.at.is_multiple_of(8) && end <= shard.storage.bytes().len() as u64).then_some(())
    };
    if let Some(record) = records.iter().find(|record| fits(record).is_none()) {
        return Err(Error::token_file(&shard_path(file, record.shard), "it is cut short"));
    }
    let Index { data, tokenizer, list, .. } = index;
    Ok(TokenFile::of_sections(shards, records, Common { form, data, tokenizer, hash: list }, Some(path)))
}

/// Writes the documents of one split: one section in a file, or a set of shards.
pub(crate) struct SplitWriter {
    file: PathBuf,
    cut: Cut,
    whole: bool,
    section: TokenWriter,
    records: Vec<Record>,
    /// Number of the shard that is being written.
    shard: u64,
    pending: Option<(Pending, u64)>,
    kept: u64,
    common: Common,
}

impl SplitWriter {
    /// Of a text of `text_bytes`, from a writer of its sections that is empty. Whole shards of an earlier attempt are kept: [`SplitWriter::kept`] documents are
    /// there.
    pub(crate) fn new(file: &Path, cut: Cut, text_bytes: u64, section: TokenWriter) -> Self {
        let Header { data, tokenizer, .. } = section.header();
        let form = section.form();
        let mut writer = Self {
            file: file.to_owned(),
            cut,
            whole: text_bytes <= cut.whole_bytes,
            section,
            records: Vec::new(),
            shard: 0,
            pending: None,
            kept: 0,
            common: Common { form, data, tokenizer, hash: [0; 32] },
        };
        while let Some(records) = writer.whole_shard() {
            writer.kept += records.iter().map(|record| record.documents).sum::<u64>();
            writer.records.extend(records);
            writer.shard += 1;
        }
        writer
    }

    /// Documents that need not be written again: the first ones.
    pub(crate) fn kept(&self) -> u64 {
        self.kept
    }

    /// The sections of the next shard, if it was written before and is whole. Its name is a hash of text and tokenizer,
    /// so that it can only hold what would be written again.
    fn whole_shard(&self) -> Option<Vec<Record>> {
        let path = shard_path(&self.file, self.shard);
        if self.whole || !path.exists() {
            return None;
        }
        let shard = Shard::open(&path).ok()?;
        let bytes = shard.storage.bytes();
        let (mut records, mut at) = (Vec::new(), 0);
        while at < bytes.len() {
            let header = Header::read(&bytes[at..], &path).ok()?;
            let same = header.data == self.common.data && header.tokenizer == self.common.tokenizer;
            let record = header.record(self.shard, at as u64);
            let end = record.end(header.form()).filter(|end| *end <= bytes.len() as u64)?;
            let section = crate::section::Section::new(bytes, &record, header.form());
            if !same || header.form() != self.common.form || !section.is(&record.payload) {
                return None;
            }
            shard.storage.release(at, end as usize - at);
            records.push(record);
            at = end.next_multiple_of(8) as usize;
        }
        Some(records)
    }

    /// Adds a document, and which of its tokens count where not all do.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub(crate) fn push(&mut self, ids: &[u32], text_bytes: u64, counting: &[Range<usize>]) -> Result<()> {
        self.section.push_marked(ids, text_bytes, counting);
        let full = self.section.tokens() >= self.cut.section_tokens
            || self.section.documents() >= self.cut.section_documents;
        if full && !self.whole { self.end_section() } else { Ok(()) }
    }

    fn end_section(&mut self) -> Result<()> {
        let path = shard_path(&self.file, self.shard);
        let failed = |e| Error::io("write", &path, e);
        let (pending, length) = match &mut self.pending {
            Some(pending) => pending,
            empty => empty.insert((Pending::begin(&path).map_err(failed)?, 0)),
        };
        let header = self.section.header();
        let mut append = |bytes: &[u8]| pending.append(bytes).map_err(failed);
        append(bytemuck::bytes_of(&header))?;
        for part in self.section.payload() {
            append(part)?;
        }
        let end = *length + self.section.section_len();
        append(&[0; 8][..(end.next_multiple_of(8) - end) as usize])?;
        self.records.push(header.record(self.shard, *length));
        *length = end.next_multiple_of(8);
        let full = *length >= self.cut.shard_bytes;
        self.section.clear();
        if full { self.end_shard() } else { Ok(()) }
    }

    fn end_shard(&mut self) -> Result<()> {
        if let Some((pending, _)) = self.pending.take() {
            let path = shard_path(&self.file, self.shard);
            pending.finish().map_err(|e| Error::io("write", &path, e))?;
            self.shard += 1;
        }
        Ok(())
    }

    /// Writes what is left and the index, and opens the whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn finish(mut self) -> Result<TokenFile> {
        if self.whole {
            return self.section.write(&self.file);
        }
        if self.section.documents() > 0 {
            self.end_section()?;
        }
        self.end_shard()?;
        let list = bytemuck::cast_slice(&self.records);
        let mut index = Index {
            magic: MAGIC,
            version: self.common.form.version(),
            id_bytes: self.common.form.id_bytes,
            sections: self.records.len() as u64,
            shards: self.shard,
            data: self.common.data,
            tokenizer: self.common.tokenizer,
            list: *blake3::hash(list).as_bytes(),
            own: [0; 32],
        };
        index.own = index.own_hash();
        write_atomically(&index_path(&self.file), &[bytemuck::bytes_of(&index), list])?;
        open(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUT: Cut = Cut { whole_bytes: 10, section_tokens: 20, section_documents: 4, shard_bytes: 800 };

    fn document(i: u64) -> (Vec<u32>, u64) {
        ((0..(i * 7) % 13).map(|t| (i * 31 + t) as u32).collect(), i)
    }

    fn writer(folder: &Path) -> SplitWriter {
        let section = TokenWriter::new(1 << 20, [1; 32], [2; 32]);
        SplitWriter::new(&folder.join("train.tokens"), CUT, 1000, section)
    }

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn documents_come_back_from_shards() {
        let folder = tempfile::tempdir().unwrap();
        let mut w = writer(folder.path());
        (0..50).for_each(|i| w.push(&document(i).0, document(i).1, &[]).unwrap());
        let file = w.finish().unwrap();
        file.verify().unwrap();
        assert!(file.sections() >= 12, "{}", file.sections());
        assert!(names(folder.path()).len() >= 4, "{:?}", names(folder.path()));
        assert_eq!((file.len() as u64, file.text_bytes()), (50, (0..50).sum()));
        for i in 0..50 {
            assert_eq!((file.document(i as usize).to_vec(), file.byte_len(i as usize)), document(i));
        }
        assert_eq!(open(&folder.path().join("train.tokens")).unwrap().hash(), file.hash());
    }

    #[test]
    fn a_stopped_writer_is_continued_after_its_last_whole_shard_with_the_same_bytes() {
        let (once, twice) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut w = writer(once.path());
        (0..50).for_each(|i| w.push(&document(i).0, document(i).1, &[]).unwrap());
        let whole = w.finish().unwrap();
        for stop in [3, 17, 33, 49] {
            let mut w = writer(twice.path());
            let kept = w.kept();
            (kept..stop).for_each(|i| w.push(&document(i).0, document(i).1, &[]).unwrap());
        }
        let mut w = writer(twice.path());
        assert!(w.kept() >= 30, "{}", w.kept());
        (w.kept()..50).for_each(|i| w.push(&document(i).0, document(i).1, &[]).unwrap());
        assert_eq!(w.finish().unwrap().hash(), whole.hash());
        assert_eq!(names(once.path()), names(twice.path()));
        for name in names(once.path()) {
            assert_eq!(
                fs::read(once.path().join(&name)).unwrap(),
                fs::read(twice.path().join(&name)).unwrap()
            );
        }
    }

    #[test]
    fn a_damaged_shard_is_named_and_written_again() {
        let folder = tempfile::tempdir().unwrap();
        let mut w = writer(folder.path());
        (0..50).for_each(|i| w.push(&document(i).0, document(i).1, &[]).unwrap());
        drop(w.finish().unwrap());
        let path = folder.path().join("train-00001.tokens");
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let last = bytes.len() - 9;
        bytes[last] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let file = open(&folder.path().join("train.tokens")).unwrap();
        file.prove(0).unwrap();
        let error = file.verify().unwrap_err().told();
        assert!(error.contains("train-00001.tokens") && error.contains("delete it"), "{error}");
        let w = writer(folder.path());
        assert!(w.kept() > 0 && w.kept() < 50, "{}", w.kept());
        fs::write(&path, &whole[..whole.len() / 2]).unwrap();
        let error = open(&folder.path().join("train.tokens")).unwrap_err().told();
        assert!(error.contains("train-00001.tokens") && error.contains("cut short"), "{error}");
    }
}
