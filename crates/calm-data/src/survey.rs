//! What a text is, found by reading it once: hashes, sizes, and on which side each document stands.
//!
//! A document is held out if the hash of its content falls in the lowest share of all hashes: it is always on the same
//! side, whatever else the source holds, and no list of documents is kept. With `max_bytes` the documents with the
//! highest hashes are taken, which spreads them over the corpus; one bit a document says which.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::document::Document;
use crate::error::{Error, Result};
use crate::reading::{Batch, Reading};
use crate::source::{HeldOut, Skipped};

/// Documents that `max_bytes` chooses from in memory: 24 bytes each. Beyond that the lowest are forgotten early.
const CANDIDATES: usize = 16 << 20;

/// One side of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Side {
    /// BLAKE3 of the length and the text of each document, and of where its answers stand if they alone count, in order.
    pub(crate) hash: [u8; 32],
    pub(crate) documents: u64,
    /// Of text.
    pub(crate) bytes: u64,
}

/// What a text is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Survey {
    /// To train on, by part.
    pub(crate) train: Vec<Side>,
    pub(crate) held_out: Side,
    pub(crate) description: String,
    pub(crate) skipped: Skipped,
    /// Documents that cannot be read: where each is, and why.
    #[serde(default)]
    pub(crate) bad: Vec<String>,
    /// Hashes below it are held out.
    edge: Option<u64>,
    /// Which training documents are taken, one bit each; all where there are none.
    taken: Option<Vec<u64>>,
}

/// Hashes a side while its documents pass.
#[derive(Default)]
pub(crate) struct Summing {
    hasher: blake3::Hasher,
    side: Side,
}

impl Summing {
    pub(crate) fn add(&mut self, document: &Document) {
        self.hasher.update(&(document.text.len() as u64).to_le_bytes());
        self.hasher.update(document.text.as_bytes());
        for answer in document.answers.iter().flatten() {
            self.hasher.update(&[answer.start as u64, answer.end as u64].map(u64::to_le_bytes).concat());
        }
        self.side.documents += 1;
        self.side.bytes += document.text.len() as u64;
    }

    pub(crate) fn finish(&self) -> Side {
        Side { hash: *self.hasher.finalize().as_bytes(), ..self.side }
    }
}

/// The first 64 bits of a document's hash.
fn hash64(document: &Document) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&document.content_hash().as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// Goes through documents in their order and says where each stands.
pub(crate) struct Divider<'a> {
    survey: &'a Survey,
    parts: usize,
    /// Number of the next training document.
    next: usize,
}

impl Divider<'_> {
    /// The side of each document of the next batch: a part's number, that after the last for what is held out, none for
    /// what is left out.
    pub(crate) fn sides(&mut self, batch: &Batch) -> Vec<Option<usize>> {
        let held_out = |document: &Document| match self.survey.edge {
            Some(edge) => hash64(document) < edge,
            None => batch.text == self.parts,
        };
        let held_out: Vec<bool> = batch.documents.par_iter().with_min_len(64).map(held_out).collect();
        let side = |held_out| {
            if held_out {
                return Some(self.parts);
            }
            let number = self.next;
            self.next += 1;
            let word = |taken: &Vec<u64>| taken.get(number / 64).is_some_and(|w| w >> (number % 64) & 1 == 1);
            self.survey.taken.as_ref().is_none_or(word).then_some(batch.text)
        };
        held_out.into_iter().map(side).collect()
    }
}

impl Survey {
    /// Reads a text. `progress` is called with bytes read.
    ///
    /// # Errors
    /// What the source says; a text that cannot be divided.
    pub(crate) fn of(
        reading: &mut Reading,
        max_bytes: Option<u64>,
        progress: &mut dyn FnMut(u64),
    ) -> Result<Self> {
        let parts = reading.opened().parts.len();
        let mut survey = Self { train: vec![Side::default(); parts], ..Self::default() };
        if let HeldOut::Share(share) = reading.opened().held_out {
            survey.edge = Some((share * 2f64.powi(64)) as u64);
        }
        survey.pass(reading, progress)?;
        let trained: u64 = survey.train.iter().map(|side| side.documents).sum();
        if let Some(edge) = survey.edge
            && (trained == 0 || survey.held_out.documents == 0)
        {
            // An empty side gets the document with the lowest (or highest) hash.
            let (low, high) = extremes(reading)?;
            if low >= high {
                let documents = usize::try_from(trained + survey.held_out.documents).unwrap_or(usize::MAX);
                return Err(Error::TooSmall { path: reading.name().to_owned(), documents });
            }
            survey.edge = Some(edge.clamp(low + 1, high));
            survey.pass(reading, progress)?;
        }
        if let Some(most) = max_bytes {
            survey.taken = Some(survey.limit(reading, most)?);
            survey.pass(reading, progress)?;
        }
        survey.describe(reading);
        Ok(survey)
    }

    /// Which documents stand where.
    pub(crate) fn divider(&self) -> Divider<'_> {
        Divider { survey: self, parts: self.train.len(), next: 0 }
    }

    fn describe(&mut self, reading: &Reading) {
        let found = reading.found();
        let (parts, held_out) = found.split_at(self.train.len().min(found.len()));
        let mut lines: Vec<&str> = parts.iter().map(|f| f.description.as_str()).collect();
        lines.dedup();
        self.description = lines.join("; ");
        for held_out in held_out.iter().filter(|h| !lines.contains(&h.description.as_str())) {
            self.description += &format!("; held out: {}", held_out.description);
        }
        self.skipped = Skipped::default();
        parts.iter().for_each(|f| self.skipped += f.skipped);
        self.bad = found.iter().flat_map(|f| f.bad.iter().cloned()).take(100).collect();
    }

    /// Hashes both sides as they are divided now.
    fn pass(&mut self, reading: &mut Reading, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let parts = self.train.len();
        let mut sums: Vec<Summing> = (0..=parts).map(|_| Summing::default()).collect();
        let mut divider = self.divider();
        reading.each(&mut |batch| {
            for (document, side) in batch.documents.iter().zip(divider.sides(&batch)) {
                if let Some(side) = side {
                    sums[side].add(document);
                }
            }
            progress(batch.done);
            Ok(())
        })?;
        self.held_out = sums.pop().unwrap_or_default().finish();
        self.train = sums.iter().map(Summing::finish).collect();
        Ok(())
    }

    /// Whole training documents of at most `most` bytes together, chosen by content hash (so spread over the corpus); at
    /// least one.
    fn limit(&self, reading: &mut Reading, most: u64) -> Result<Vec<u64>> {
        let mut divider = self.divider();
        let (mut candidates, mut number) = (Vec::new(), 0);
        reading.each(&mut |batch| {
            for (document, side) in batch.documents.iter().zip(divider.sides(&batch)) {
                if side.is_some_and(|side| side < self.train.len()) {
                    candidates.push((Reverse(hash64(document)), number, document.text.len() as u64));
                    number += 1;
                }
            }
            if candidates.len() >= 2 * CANDIDATES {
                candidates.sort_unstable();
                let mut bytes = 0;
                let enough = candidates.iter().position(|(.., len)| {
                    bytes += len;
                    bytes > most
                });
                candidates.truncate(enough.map_or(candidates.len(), |n| (n + 1).max(CANDIDATES)));
            }
            Ok(())
        })?;
        // Turned around, so that it does not follow the order by which documents are held out.
        candidates.sort_unstable();
        let mut taken = Vec::new();
        let mut bytes = 0;
        for (n, &(_, number, len)) in candidates.iter().enumerate() {
            if n == 0 || bytes + len <= most {
                bytes += len;
                if taken.len() <= number / 64 {
                    taken.resize(number / 64 + 1, 0);
                }
                taken[number / 64] |= 1 << (number % 64);
            }
        }
        Ok(taken)
    }
}

/// The lowest and the highest hash of all documents.
fn extremes(reading: &mut Reading) -> Result<(u64, u64)> {
    let (mut low, mut high) = (u64::MAX, 0);
    reading.each(&mut |batch| {
        for hash in batch.documents.iter().map(hash64) {
            (low, high) = (low.min(hash), high.max(hash));
        }
        Ok(())
    })?;
    Ok((low, high))
}

/// Training texts of at most `most` bytes together for a tokenizer, in their order: all of them, or those with the highest
/// hashes, which are spread over the corpus. At least one.
pub(crate) fn sample(
    reading: &mut Reading,
    survey: &Survey,
    most: u64,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<String>> {
    let mut divider = survey.divider();
    let all = survey.train.iter().map(|side| side.bytes).sum::<u64>() <= most;
    let (mut chosen, mut bytes, mut number) = (BTreeMap::new(), 0, 0u64);
    reading.each(&mut |batch| {
        let sides = divider.sides(&batch);
        progress(batch.done);
        for (document, side) in batch.documents.into_iter().zip(sides) {
            if side.is_some_and(|side| side < survey.train.len()) {
                let order = if all { 0 } else { hash64(&document) };
                bytes += document.text.len() as u64;
                chosen.insert((Reverse(order), number), document.text);
                number += 1;
            }
        }
        while bytes > most && chosen.len() > 1 && !all {
            bytes -= chosen.pop_last().map_or(0, |(_, text)| text.len() as u64);
        }
        Ok(())
    })?;
    let mut chosen: Vec<(u64, String)> = chosen.into_iter().map(|((_, n), text)| (n, text)).collect();
    chosen.sort_unstable_by_key(|(number, _)| *number);
    Ok(chosen.into_iter().map(|(_, text)| text).collect())
}
