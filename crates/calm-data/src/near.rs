//! Documents of one token file that nearly stand in another: held-out text that was trained on measures memory.
//!
//! A document is the set of its runs of eight tokens. One hash of each falls in one of 64 bins, and each bin keeps its
//! lowest: two documents agree in about as many bins as their sets have in common (one-permutation MinHash). Sixteen
//! groups of four bins find whom to compare. Memory is that of the held-out side alone, of which at most 65,536 documents
//! are taken, at even distances; the training side passes by.

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::batch::spread;
use crate::error::Result;
use crate::permutation::{mix, mix2};
use crate::token_file::TokenFile;

const SHINGLE: usize = 8;
const BINS: usize = 64;
const BAND: usize = 4;
/// Held-out documents that are compared.
const MOST: usize = 1 << 16;
/// Share of common bins from which two documents are near.
const NEAR: f64 = 0.7;
/// Examples that are kept.
const SHOWN: usize = 20;

/// A pair of documents.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// Its number in the training tokens.
    pub train: u64,
    /// Its number in the held-out tokens.
    pub held_out: u64,
    /// Share of their runs of eight tokens that they have in common, estimated.
    pub similarity: f64,
}

/// What two sides have in common.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Overlap {
    /// Held-out documents that were compared.
    pub compared: u64,
    /// Those of which a training document is nearly or wholly the same.
    pub near: u64,
    /// The nearest pairs of some of them.
    pub pairs: Vec<Pair>,
}

type Signature = [u32; BINS];

/// Of a document; none of one without tokens.
fn signature(ids: &[u32]) -> Option<Signature> {
    if ids.is_empty() {
        return None;
    }
    let mut bins = [u32::MAX; BINS];
    for run in ids.windows(SHINGLE.min(ids.len())) {
        let hash = run.iter().fold(0u64, |hash, id| {
            (hash.rotate_left(5) ^ u64::from(*id)).wrapping_mul(0x517c_c1b7_2722_0a95)
        });
        let hash = mix(hash);
        let bin = &mut bins[(hash >> 58) as usize];
        *bin = (*bin).min((hash as u32).min(u32::MAX - 1));
    }
    // Of a short document many bins are empty: each borrows from the next that is not.
    let own = bins;
    for (at, bin) in bins.iter_mut().enumerate().filter(|(_, bin)| **bin == u32::MAX) {
        let (distance, value) =
            (1..=BINS).map(|d| (d, own[(at + d) % BINS])).find(|(_, v)| *v != u32::MAX)?;
        *bin = mix2(u64::from(value), distance as u64) as u32;
    }
    Some(bins)
}

fn bands(signature: &Signature) -> impl Iterator<Item = u64> {
    signature
        .chunks_exact(BAND)
        .zip(0..)
        .map(|(band, number)| band.iter().fold(mix(number + 1), |hash, bin| mix2(hash, u64::from(*bin))))
}

fn similarity(a: &Signature, b: &Signature) -> f64 {
    a.iter().zip(b).filter(|(a, b)| a == b).count() as f64 / BINS as f64
}

/// Which held-out documents nearly stand in the training text.
///
/// # Errors
/// A file that is damaged.
pub fn overlap(train: &TokenFile, held_out: &TokenFile, done: &mut dyn FnMut(u64)) -> Result<Overlap> {
    let chosen = spread(held_out.len(), Some(MOST));
    let mut signatures = Vec::new();
    let mut by_band: FxHashMap<u64, Vec<u32>> = FxHashMap::default();
    for document in chosen {
        held_out.prove(held_out.section_of(document))?;
        let Some(signature) = signature(&held_out.document(document)) else { continue };
        for band in bands(&signature) {
            let there = by_band.entry(band).or_default();
            // Boilerplate that all documents share tells nothing.
            if there.len() < 64 {
                there.push(signatures.len() as u32);
            }
        }
        signatures.push((document, signature));
    }
    let mut nearest: FxHashMap<u32, Pair> = FxHashMap::default();
    let mut tokens = 0;
    for section in 0..train.sections() {
        train.prove(section)?;
        for document in train.section_documents(section) {
            let ids = train.document(document);
            tokens += ids.len() as u64;
            let Some(signature) = signature(&ids) else { continue };
            for candidate in bands(&signature).filter_map(|band| by_band.get(&band)).flatten() {
                let (held_out, other) = &signatures[*candidate as usize];
                let similarity = similarity(&signature, other);
                let best = nearest.get(candidate).map_or(NEAR, |pair| pair.similarity);
                if similarity >= best {
                    let pair = Pair { train: document as u64, held_out: *held_out as u64, similarity };
                    nearest
                        .entry(*candidate)
                        .and_modify(|p| {
                            if similarity > p.similarity {
                                *p = pair
                            }
                        })
                        .or_insert(pair);
                }
            }
        }
        train.release(section);
        done(tokens);
    }
    let mut pairs: Vec<Pair> = nearest.into_values().collect();
    let near = pairs.len() as u64;
    pairs.sort_by(|a, b| b.similarity.total_cmp(&a.similarity).then(a.held_out.cmp(&b.held_out)));
    pairs.truncate(SHOWN);
    Ok(Overlap { compared: signatures.len() as u64, near, pairs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(seed: u64, length: usize) -> Vec<u32> {
        (0..length).map(|i| (mix2(seed, i as u64) % 5000) as u32).collect()
    }

    #[test]
    fn copies_and_near_copies_are_found_and_nothing_else() {
        let mut train: Vec<Vec<u32>> = (0..300).map(|n| text(n, 40 + 3 * n as usize)).collect();
        let mut near = text(120, 40 + 3 * 120);
        // One word in fifty is another.
        near.iter_mut().step_by(50).for_each(|id| *id += 1);
        let half: Vec<u32> = text(200, 300).into_iter().chain(text(999, 340)).collect();
        let held_out = [train[17].clone(), near, half, text(1000, 500), vec![], vec![1, 2, 3]];
        train.push(vec![1, 2, 3]);
        let file = |documents: &[Vec<u32>]| {
            let documents: Vec<_> = documents.iter().map(|d| (d.clone(), d.len() as u64)).collect();
            TokenFile::in_memory(&documents, [0; 32], [0; 32])
        };
        let found = overlap(&file(&train), &file(&held_out), &mut |_| ()).unwrap();
        assert_eq!((found.compared, found.near), (5, 3), "{found:?}");
        let of = |held_out| found.pairs.iter().find(|p| p.held_out == held_out).map(|p| p.train);
        assert_eq!([of(0), of(1), of(5)], [Some(17), Some(120), Some(300)]);
        assert_eq!(found.pairs[0].similarity, 1.0);
    }
}
