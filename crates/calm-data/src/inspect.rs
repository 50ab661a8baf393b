//! What a token file holds, counted in one pass over it.
//!
//! Duplicates are documents of the same tokens. Their hashes are kept for a share of all hashes, 1, 1/2, 1/4 and so on,
//! as large as the memory allows: equal documents have equal hashes and are in it together, so that what is found there
//! stands for all, exactly where the share is 1.

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::chunks::Layout;
use crate::error::Result;
use crate::special::Known;
use crate::token_file::TokenFile;
use crate::tokenizer::Tokenizer;

/// Hashes that are kept: at most 32 bytes each.
const KEPT: usize = 4 << 20;

/// What a token file holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Inspection {
    /// Number of documents.
    pub documents: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Tokens, without BOS, EOS and PAD.
    pub tokens: u64,
    /// Mean bytes of a token.
    pub bytes_per_token: f64,
    /// Tokens of the longest document.
    pub longest: u64,
    /// Its number, from 0.
    pub longest_document: u64,
    /// Documents whose tokens an earlier one has as well.
    pub duplicates: u64,
    /// Share of all documents among which they were counted; below 1 `duplicates` is an estimate.
    pub duplicates_share: f64,
    /// Share of the text's bytes that the tokenizer knows no token for: bytes written one by one by a vocabulary of
    /// characters or pieces, and unknown tokens, each as long as a token is on average. 0 of a byte-level vocabulary.
    pub unknown: f64,
    /// Runs of documents that are read together.
    pub sections: u64,
    /// What counts in loss and scores, where not all does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub counting: Option<CountingInspection>,
}

/// What counts in loss and scores: the answers of conversations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CountingInspection {
    /// Tokens, without EOS.
    pub tokens: u64,
    /// Chunks that hold one, or an EOS that counts.
    pub chunks: u64,
    /// All chunks of text.
    pub of_chunks: u64,
}

/// Counts documents that were seen before, in bounded memory.
struct Duplicates {
    seen: FxHashMap<u64, ()>,
    /// Hashes whose lowest bits are zero are kept.
    bits: u32,
    again: u64,
    /// Hashes of documents that were seen again, with how often; thinned out like the others.
    repeated: FxHashMap<u64, u64>,
}

impl Duplicates {
    fn new() -> Self {
        Self { seen: FxHashMap::default(), bits: 0, again: 0, repeated: FxHashMap::default() }
    }

    fn kept(hash: u64, bits: u32) -> bool {
        hash & ((1 << bits) - 1) == 0
    }

    fn add(&mut self, hash: u64, most: usize) {
        if !Self::kept(hash, self.bits) {
            return;
        }
        if self.seen.insert(hash, ()).is_some() {
            self.again += 1;
            *self.repeated.entry(hash).or_default() += 1;
        }
        while self.seen.len() > most {
            self.bits += 1;
            let bits = self.bits;
            self.seen.retain(|hash, ()| Self::kept(*hash, bits));
            self.repeated.retain(|hash, _| Self::kept(*hash, bits));
            self.again = self.repeated.values().sum();
        }
    }

    fn share(&self) -> f64 {
        1.0 / (1u64 << self.bits) as f64
    }
}

/// Counts what a token file holds; `chunk_size` is K of the chunks that are counted. Everything is read and compared with its hash.
///
/// # Errors
/// A file that is damaged.
pub fn inspect(
    file: &TokenFile,
    tokenizer: &Tokenizer,
    chunk_size: usize,
    done: &mut dyn FnMut(u64),
) -> Result<Inspection> {
    inspect_within(file, tokenizer, chunk_size, KEPT, done)
}

fn inspect_within(
    file: &TokenFile,
    tokenizer: &Tokenizer,
    chunk_size: usize,
    most: usize,
    done: &mut dyn FnMut(u64),
) -> Result<Inspection> {
    let mut found = Inspection {
        documents: file.len() as u64,
        bytes: file.text_bytes(),
        tokens: file.tokens(),
        bytes_per_token: file.text_bytes() as f64 / file.tokens().max(1) as f64,
        sections: file.sections() as u64,
        ..Inspection::default()
    };
    let layout = Layout { chunk_size, context: 2, bos_chunk: false };
    let mut duplicates = Duplicates::new();
    let (mut single, mut unknown, mut tokens) = (0u64, 0u64, 0);
    for section in 0..file.sections() {
        file.prove(section)?;
        for document in file.section_documents(section) {
            let ids = file.document(document);
            if ids.len() as u64 > found.longest {
                (found.longest, found.longest_document) = (ids.len() as u64, document as u64);
            }
            let hash = blake3::hash(bytemuck::cast_slice(&ids));
            duplicates.add(bytemuck::pod_read_unaligned(&hash.as_bytes()[..8]), most);
            for id in ids.iter() {
                match tokenizer.knows(*id) {
                    Known::Text => {}
                    Known::Byte => single += 1,
                    Known::Nothing => unknown += 1,
                }
            }
            tokens += ids.len() as u64;
            if let Some(counting) = file.counting(document) {
                let counts = found.counting.get_or_insert_default();
                let chunks = layout.chunks(ids.len());
                counts.tokens += counting.count();
                counts.of_chunks += chunks as u64;
                let of = |chunk: &usize| layout.tokens_of(*chunk).is_some_and(|tokens| counting.any(tokens));
                counts.chunks += (0..chunks).filter(of).count() as u64;
            }
        }
        file.release(section);
        done(tokens);
    }
    found.duplicates = (duplicates.again as f64 / duplicates.share()).round() as u64;
    found.duplicates_share = duplicates.share();
    let bytes = single as f64 + unknown as f64 * found.bytes_per_token;
    found.unknown = (bytes / found.bytes.max(1) as f64).min(1.0);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duplicates_are_counted_exactly_and_estimated_when_memory_is_short() {
        let document = |n: u32| (vec![97 + n % 7, n / 7 % 1000, n], 3);
        // 20,000 documents, every fourth a second time.
        let mut documents: Vec<_> = (0..20_000).map(document).collect();
        documents.extend((0..5_000).map(|n| document(4 * n)));
        let file = TokenFile::in_memory(&documents, [0; 32], [0; 32]);
        let tokenizer = Tokenizer::characters(["abc"]);
        let exact = inspect(&file, &tokenizer, 1, &mut |_| ()).unwrap();
        assert_eq!((exact.duplicates, exact.duplicates_share), (5_000, 1.0));
        let short = inspect_within(&file, &tokenizer, 1, 2_000, &mut |_| ()).unwrap();
        assert!(short.duplicates_share < 0.2, "{}", short.duplicates_share);
        assert!((4_300..5_700).contains(&short.duplicates), "{}", short.duplicates);
    }

    #[test]
    fn bytes_that_no_character_stands_for_are_unknown() {
        let tokenizer = Tokenizer::characters(["ab"]);
        let ids = tokenizer.encode("ab☃ab").unwrap();
        let file = TokenFile::in_memory(&[(ids, 7), (vec![0], 1)], [0; 32], [0; 32]);
        let found = inspect(&file, &tokenizer, 1, &mut |_| ()).unwrap();
        assert_eq!((found.longest, found.longest_document, found.documents), (7, 0, 2));
        assert!((found.unknown - 3.0 / 8.0).abs() < 1e-12, "{}", found.unknown);
    }
}
