//! The documents of a configuration, as often as they are needed: read from the source on a thread of its own while what
//! was read before is worked on, or kept in memory where they are few.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::document::Document;
use crate::error::{Error, Result};
use crate::source::{Documents, Found, HeldOut, Input, Opened, Text};

/// Text that is handed on together.
const BATCH_BYTES: usize = 4 << 20;
const BATCH_DOCUMENTS: usize = 16 << 10;
/// Batches that wait for the next hand.
const AHEAD: usize = 2;
/// Text of at most so many bytes is kept from the first reading.
const KEPT_BYTES: u64 = 64 << 20;

/// Documents of one text, with what was read of its inputs so far.
pub(crate) struct Batch {
    /// Number of the text: parts in order, then the held-out one.
    pub(crate) text: usize,
    pub(crate) documents: Vec<Document>,
    /// Bytes of all inputs that were read so far.
    pub(crate) done: u64,
}

/// The texts of a configuration, to be read again and again.
pub(crate) struct Reading {
    opened: Opened,
    /// What the source is called in messages.
    name: PathBuf,
    kept: Option<Vec<Batch>>,
    found: Vec<Found>,
    /// Bytes of all inputs.
    total: u64,
}

impl Reading {
    pub(crate) fn new(opened: Opened, name: &Path) -> Self {
        let mut reading = Self { opened, name: name.to_owned(), kept: None, found: Vec::new(), total: 0 };
        reading.total = reading.inputs().map(|input| input.length).sum();
        reading
    }

    fn texts(&self) -> impl Iterator<Item = &dyn Text> {
        let held_out = match &self.opened.held_out {
            HeldOut::Text(text) => Some(&**text),
            HeldOut::Share(_) => None,
        };
        self.opened.parts.iter().map(|part| &*part.text).chain(held_out)
    }

    pub(crate) fn opened(&self) -> &Opened {
        &self.opened
    }

    pub(crate) fn name(&self) -> &Path {
        &self.name
    }

    /// All that is read, in order.
    pub(crate) fn inputs(&self) -> impl Iterator<Item = &Input> {
        self.texts().flat_map(|text| text.inputs())
    }

    /// Bytes of all inputs.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// What was found of each text when it was read.
    pub(crate) fn found(&self) -> &[Found] {
        &self.found
    }

    /// Whether the text is read from its source once more, where it may have changed.
    pub(crate) fn reads_again(&self) -> bool {
        self.kept.is_none()
    }

    /// An input that is not what it was when it was looked at.
    pub(crate) fn changed(&self) -> Option<&Input> {
        self.inputs().find(|input| {
            input.modified.is_some()
                && Input::of_file(Path::new(&input.name)).is_ok_and(|now| {
                    (now.length, now.modified, now.file) != (input.length, input.modified, input.file)
                })
        })
    }

    /// Hands on all documents in their order.
    ///
    /// # Errors
    /// What the source says, or `consume`.
    pub(crate) fn each(&mut self, consume: &mut dyn FnMut(Batch) -> Result<()>) -> Result<()> {
        if let Some(kept) = &self.kept {
            return kept.iter().try_for_each(|batch| {
                let Batch { text, ref documents, done } = *batch;
                consume(Batch { text, documents: documents.clone(), done })
            });
        }
        let first = self.found.is_empty();
        let (mut kept, mut bytes) = (first.then(Vec::new), 0);
        let mut found = Vec::new();
        let mut batches = Batches::new(self.texts().collect(), &mut found);
        let mut done = 0;
        ahead(&mut batches, &mut |batch: Option<Batch>| {
            let Some(batch) = batch else {
                // A file may be fetched from far away the first time: who waits is told so now and then.
                return if first { consume(Batch { text: 0, documents: Vec::new(), done }) } else { Ok(()) };
            };
            done = batch.done;
            bytes += batch.documents.iter().map(|d| d.text.len() as u64).sum::<u64>();
            kept = kept.take().filter(|_| bytes <= KEPT_BYTES);
            if let Some(kept) = &mut kept {
                let Batch { text, ref documents, done } = batch;
                kept.push(Batch { text, documents: documents.clone(), done });
            }
            consume(batch)
        })?;
        drop(batches);
        self.found = found;
        self.kept = kept;
        Ok(())
    }
}

/// The documents of several texts, in batches.
struct Batches<'a> {
    texts: std::iter::Enumerate<std::vec::IntoIter<&'a dyn Text>>,
    open: Option<(usize, Box<dyn Documents + 'a>)>,
    /// Bytes of the inputs of texts that were read.
    before: u64,
    length: u64,
    found: &'a mut Vec<Found>,
}

impl<'a> Batches<'a> {
    fn new(texts: Vec<&'a dyn Text>, found: &'a mut Vec<Found>) -> Self {
        Self { texts: texts.into_iter().enumerate(), open: None, before: 0, length: 0, found }
    }

    fn read(&mut self) -> Result<Option<Batch>> {
        loop {
            if self.open.is_none() {
                let Some((number, text)) = self.texts.next() else { return Ok(None) };
                self.length = text.inputs().iter().map(|input| input.length).sum();
                self.open = Some((number, text.read()?));
            }
            let Some((number, stream)) = &mut self.open else { return Ok(None) };
            let (mut documents, mut bytes) = (Vec::new(), 0);
            while bytes < BATCH_BYTES && documents.len() < BATCH_DOCUMENTS {
                let Some(document) = stream.next() else { break };
                let document = document?;
                bytes += document.text.len();
                documents.push(document);
            }
            let (text, done) = (*number, self.before + stream.read_bytes());
            if documents.is_empty() {
                self.found.push(stream.found());
                self.before += self.length;
                self.open = None;
            } else {
                return Ok(Some(Batch { text, documents, done }));
            }
        }
    }
}

impl Iterator for Batches<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

/// Between two looks at what is not there yet.
const IDLE: Duration = Duration::from_millis(250);

/// Makes items on another thread while earlier ones are consumed on this one; where a system starts no more threads, one
/// after the other here. `consume` is also called with nothing while the next item takes its time.
///
/// # Errors
/// The first one, of either side.
fn ahead<T: Send>(
    items: &mut (dyn Iterator<Item = Result<T>> + Send),
    consume: &mut dyn FnMut(Option<T>) -> Result<()>,
) -> Result<()> {
    let items = Mutex::new(items);
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(AHEAD);
        let next = &next;
        let make = move || {
            while let Some(item) = next() {
                let last = item.is_err();
                if send.send(item).is_err() || last {
                    break;
                }
            }
        };
        let Ok(thread) = std::thread::Builder::new().name("calm-read".into()).spawn_scoped(scope, make)
        else {
            while let Some(item) = next() {
                consume(Some(item?))?;
            }
            return Ok(());
        };
        let done = loop {
            let consumed = match receive.recv_timeout(IDLE) {
                Ok(item) => item.and_then(|item| consume(Some(item))),
                Err(RecvTimeoutError::Timeout) => consume(None),
                Err(RecvTimeoutError::Disconnected) => break Ok(()),
            };
            if consumed.is_err() {
                break consumed;
            }
        };
        drop(receive);
        match thread.join() {
            Ok(()) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// The other way round: what is made on this thread is consumed on another.
///
/// # Errors
/// The first one, of either side.
pub(crate) fn behind<T: Send>(
    make: impl FnOnce(&mut dyn FnMut(T) -> Result<()>) -> Result<()>,
    consume: &mut (dyn FnMut(T) -> Result<()> + Send),
) -> Result<()> {
    let consume = Mutex::new(consume);
    let put = |item| (consume.lock().unwrap_or_else(PoisonError::into_inner))(item);
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel::<T>(AHEAD);
        let put = &put;
        let take = move || receive.iter().try_for_each(put);
        let Ok(thread) = std::thread::Builder::new().name("calm-write".into()).spawn_scoped(scope, take)
        else {
            return make(&mut |item| put(item));
        };
        let gone = || Error::Tokenizer("the writing thread ended".into());
        let made = make(&mut |item| send.send(item).map_err(|_| gone()));
        drop(send);
        match thread.join() {
            // Why it ended says more than that it did.
            Ok(Err(e)) => Err(e),
            Ok(Ok(())) => made,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}
