//! The documents of files, one file after the other, as their names say that they are to be read.
//!
//! - `.parquet`: the rows of a table.
//! - `.jsonl`, `.json`: one object a line, or one array of objects, or one object.
//! - Any other file is text: one document, or pieces of it where it stands for a corpus of its own.
//! - `.gz` and `.zst` after any but the first of these names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::apart;
use super::bytes::{self, Count};
use super::documents::{Documents, Found};
use super::loaded::Skipped;
use super::pieces::Pieces;
use super::records::{Records, says_lines};
use super::row::{Row, Wanted};
use super::settings::{Filter, OnBadDocument};
use super::table::{self, Table};
use crate::chat::{Conversations, LossOn, Rendered};
use crate::document::Document;
use crate::error::{Error, Result};

/// What is read of each file, and which documents are taken.
#[derive(Clone, Debug)]
pub(super) struct Reading {
    pub(super) wanted: Arc<Wanted>,
    pub(super) filter: Filter,
    pub(super) on_bad: OnBadDocument,
}

impl Reading {
    pub(super) fn new(
        column: Option<&str>,
        filter: &Filter,
        on_bad: OnBadDocument,
        conversations: Conversations,
    ) -> Self {
        Self { wanted: Arc::new(Wanted::new(column, filter, conversations)), filter: filter.clone(), on_bad }
    }
}

impl Default for Reading {
    fn default() -> Self {
        Self::new(None, &Filter::default(), OnBadDocument::Stop, Conversations::default())
    }
}

/// What somebody who gives a file means by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Given {
    /// It is a corpus.
    Alone,
    /// It lies in a folder, where other things lie too: text is a document, and what is none is left out.
    InFolder,
}

/// A file that is to be read.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Its name in documents.
    pub(super) id: String,
    /// Bytes, as it lies on the disk.
    pub(super) length: u64,
}

/// Where the file of an entry lies; one that lies elsewhere is fetched.
pub(super) type Get<'a> = Box<dyn FnMut(usize) -> Result<PathBuf> + Send + 'a>;
/// One line for people, of the number of documents and what was left out.
pub(super) type Describe<'a> = Box<dyn Fn(usize, &str) -> String + Send + 'a>;

/// Bad documents that are listed; all are counted.
const LISTED: usize = 100;
/// Bytes of a `.json` in a folder that is read as a whole before it counts as records.
const LOOKED_AT: u64 = 64 << 20;

/// The documents of files.
pub(super) struct Files<'a> {
    entries: &'a [Entry],
    get: Get<'a>,
    given: Given,
    reading: Reading,
    /// Where all of them lie, for errors.
    source: PathBuf,
    describe: Describe<'a>,
    count: Count,
    /// Bytes of the files that were read to their end.
    before: u64,
    next: usize,
    open: Option<Open>,
    documents: usize,
    skipped: Skipped,
    /// Files that are held out, and were left out for that.
    held_out: usize,
    foreign: BTreeMap<&'static str, usize>,
    bad: Vec<String>,
    ended: bool,
}

/// A file that is read.
struct Open {
    rows: Rows,
    length: u64,
}

enum Rows {
    Records(Box<Records>),
    Pieces(Box<Pieces>),
    Table(Box<Table>),
    /// What was read as a whole.
    Ready(std::vec::IntoIter<Row>),
}

impl Rows {
    fn next(&mut self) -> Option<Result<Row>> {
        match self {
            Self::Records(records) => records.next(),
            Self::Pieces(pieces) => pieces.next(),
            Self::Table(table) => table.next(),
            Self::Ready(rows) => rows.next().map(Ok),
        }
    }
}

impl<'a> Files<'a> {
    pub(super) fn new(
        entries: &'a [Entry],
        given: Given,
        reading: Reading,
        source: &Path,
        get: Get<'a>,
        describe: Describe<'a>,
    ) -> Self {
        Self {
            entries,
            get,
            given,
            reading,
            source: source.to_owned(),
            describe,
            count: Count::default(),
            before: 0,
            next: 0,
            open: None,
            documents: 0,
            skipped: Skipped::default(),
            held_out: 0,
            foreign: BTreeMap::new(),
            bad: Vec::new(),
            ended: false,
        }
    }

    /// Of a folder whose listing left out something too.
    pub(super) fn with_left_out(mut self, skipped: Skipped, held_out: usize) -> Self {
        self.skipped = skipped;
        self.held_out = held_out;
        self
    }

    fn document(&mut self) -> Result<Option<Document>> {
        loop {
            let Some(open) = &mut self.open else {
                let Some(entry) = self.entries.get(self.next) else { return self.end().map(|()| None) };
                let path = (self.get)(self.next)?;
                self.next += 1;
                self.count = Count::default();
                let rows = self.open(&path, &entry.id)?;
                match rows {
                    Some(rows) => self.open = Some(Open { rows, length: entry.length }),
                    None => self.before += entry.length,
                }
                continue;
            };
            match open.rows.next() {
                None => {
                    self.before += open.length;
                    self.open = None;
                }
                Some(Ok(row)) => {
                    let Row { id, text: Rendered { text, answers }, fields } = row;
                    if text.is_empty() {
                        continue;
                    }
                    if !self.reading.filter.takes(&text, &fields) {
                        self.skipped.filtered += 1;
                        continue;
                    }
                    self.documents += 1;
                    return Ok(Some(Document { id, text, answers }));
                }
                Some(Err(error)) => self.bad(error)?,
            }
        }
    }

    /// A document that cannot be read: left out, counted and listed, if that is wanted.
    fn bad(&mut self, error: Error) -> Result<()> {
        if self.reading.on_bad == OnBadDocument::Stop || !error.is_of_a_document() {
            return Err(error);
        }
        self.skipped.bad += 1;
        if self.bad.len() < LISTED {
            self.bad.push(error.to_string());
        }
        Ok(())
    }

    /// Opens a file; none if there is nothing to read in it.
    fn open(&mut self, path: &Path, id: &str) -> Result<Option<Rows>> {
        match self.open_rows(path, id) {
            Err(Error::Binary { .. }) if self.given == Given::InFolder => self.skipped.binary += 1,
            Err(Error::Foreign { what, .. }) if self.given == Given::InFolder => {
                self.skipped.binary += 1;
                *self.foreign.entry(what).or_default() += 1;
            }
            opened => return opened,
        }
        Ok(None)
    }

    fn open_rows(&mut self, path: &Path, id: &str) -> Result<Option<Rows>> {
        let wanted = &self.reading.wanted;
        if table::is_table(path) {
            let table = Table::open(path, id.to_owned(), wanted.clone(), &self.count)?;
            return Ok(Some(Rows::Table(Box::new(table))));
        }
        let name = stem(path);
        let mut text = bytes::open(path, &self.count)?;
        if text.fill()?.is_empty() {
            self.skipped.without_text += usize::from(self.given == Given::InFolder);
            return Ok(None);
        }
        if says_lines(&name) || name.ends_with(".json") {
            if self.given == Given::InFolder {
                // What is no text at its beginning is none.
                let begin = text.peek(16 << 10)?;
                let cut = begin.len() - begin.iter().rev().take(3).take_while(|b| !b.is_ascii()).count();
                bytes::text(path, begin[..cut].to_vec())?;
            }
            let records = Records::new(text, id.to_owned(), wanted.clone());
            let small = std::fs::metadata(path).is_ok_and(|file| file.len() <= LOOKED_AT);
            if self.given == Given::InFolder && !says_lines(&name) && small {
                // A folder may well hold a settings.json; a .jsonl is meant as records.
                return Ok(match records.collect::<Result<Vec<Row>>>() {
                    Ok(rows) => Some(Rows::Ready(rows.into_iter())),
                    // These are records, and one of them is bad: said or left out like any other.
                    Err(Error::Conversation { .. }) => {
                        let again = bytes::open(path, &self.count)?;
                        Some(Rows::Records(Box::new(Records::new(again, id.to_owned(), wanted.clone()))))
                    }
                    Err(_) => {
                        self.skipped.without_text += 1;
                        None
                    }
                });
            }
            return Ok(Some(Rows::Records(Box::new(records))));
        }
        if let Some(name) = self.reading.filter.field.keys().next() {
            return Err(Error::Selection {
                source_name: path.display().to_string(),
                what: format!("a text file has no field `{name}`, by which it is to be filtered"),
                remedy: "remove `data.filter.field`, or give .jsonl or .parquet records".to_owned(),
            });
        }
        if wanted.conversations.loss_on == LossOn::Answers {
            return Err(Error::Selection {
                source_name: path.display().to_string(),
                what: "a text file holds no conversations, whose answers alone are to count".to_owned(),
                remedy: "give .jsonl or .parquet records with messages, or let all text count: `data.loss_on: all`, \
                         `--loss-on all` where a run is scored on another text than its own"
                    .to_owned(),
            });
        }
        Ok(Some(match self.given {
            Given::Alone => Rows::Pieces(Box::new(Pieces::new(text, id.to_owned()))),
            Given::InFolder => {
                let row = Row::of_text(id.to_owned(), text.rest()?);
                Rows::Ready(vec![row].into_iter())
            }
        }))
    }

    fn end(&self) -> Result<()> {
        if self.documents > 0 {
            return Ok(());
        }
        let Skipped { binary, hidden, without_text, .. } = self.skipped;
        let detail = match self.given {
            Given::InFolder => {
                let more = self.left_out(", ");
                format!(" (skipped: {binary} binary, {hidden} hidden, {without_text} without text{more})")
            }
            Given::Alone => match self.left_out("") {
                more if more.is_empty() => more,
                more => format!(" (skipped: {more})"),
            },
        };
        if self.held_out > 0 {
            return Err(Error::Selection {
                source_name: self.source.display().to_string(),
                what: format!("there is no text in it once the held-out files were left out{detail}"),
                remedy: apart::REMEDY.to_owned(),
            });
        }
        Err(Error::Empty { path: self.source.clone(), detail })
    }

    /// What a person might have meant to be read, and was not, after `begin`, or nothing.
    fn left_out(&self, begin: &str) -> String {
        let own = (self.skipped.own > 0).then(|| match self.skipped.own {
            1 => "1 output of calm".to_owned(),
            n => format!("{n} outputs of calm"),
        });
        let kinds = self.foreign.iter().map(|(what, n)| format!("{n} × {what}"));
        let filtered = Some(self.skipped.filtered).filter(|n| *n > 0).map(|n| format!("{n} by the filter"));
        let bad = self.bad.first().map(|first| match self.skipped.bad {
            1 => format!("1 that cannot be read ({first})"),
            n => format!("{n} that cannot be read (the first: {first})"),
        });
        let parts: Vec<String> = own.into_iter().chain(kinds).chain(filtered).chain(bad).collect();
        if parts.is_empty() { String::new() } else { format!("{begin}{}", parts.join(", ")) }
    }
}

/// The name of a file in small letters, without the ending of its packing.
fn stem(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.strip_suffix(".gz").or_else(|| name.strip_suffix(".zst")).unwrap_or(&name).to_owned()
}

impl Iterator for Files<'_> {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.document().transpose();
        // After an error nothing more comes.
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

impl Documents for Files<'_> {
    fn read_bytes(&self) -> u64 {
        let now = self.open.as_ref().map_or(0, |open| self.count.get().min(open.length));
        self.before + now
    }

    fn found(&self) -> Found {
        Found {
            description: (self.describe)(self.documents, &self.left_out("; left out: ")),
            skipped: self.skipped,
            bad: self.bad.clone(),
        }
    }
}
