//! Where documents come from.
//!
//! | module | reads |
//! |---|---|
//! | [`path`] | a text file, a folder, `.json`/`.jsonl` records; each also `.gz` and `.zst` |
//! | [`records`] | the records of a JSON file, whatever stands beside their text |
//! | [`documents`] | what a source gives: its inputs, and its documents as a stream |
//! | [`crates`] | the sources of pinned crates, by a manifest |
//! | [`locate`] | where crates lie on this machine |
//! | [`curate`] | which files of a crate are text worth learning (used when a manifest is written) |

mod bytes;
pub mod crates;
pub mod curate;
pub mod documents;
mod loaded;
pub mod locate;
mod own;
pub mod path;
pub mod records;

pub use documents::{Documents, Found, HeldOut, Input, Opened, Part, Text};
pub use loaded::{Loaded, Skipped};

use std::path::Path;

use calm_config::Problems;

use crate::config::{DataConfig, Source, Validation};
use crate::document::Document;
use crate::error::{Error, Result};

/// Loads and divides the documents of a configuration. `reading` is called with bytes read and all bytes.
///
/// # Errors
/// When the source is missing, damaged or without text, or cannot be divided.
pub fn load(config: &DataConfig, reading: &mut dyn FnMut(u64, u64)) -> Result<Loaded> {
    let mut problems = Problems::new();
    config.validate(&mut problems);
    if let Some(error) = Error::first_of("data", &problems) {
        return Err(error);
    }
    let mut loaded = match &config.source {
        Source::Crates(manifest) => crates::load(manifest, reading)?,
        Source::Path(source) => {
            let all = path::read(source, reading)?;
            match &config.validation {
                Validation::Share(share) => divide(all, *share, source)?,
                Validation::Path(validation) => {
                    let held_out = path::read(&validation.path, reading)?;
                    Loaded {
                        description: format!("{}; held out: {}", all.description, held_out.description),
                        validation: held_out.documents,
                        train: all.documents,
                        skipped: all.skipped,
                    }
                }
            }
        }
    };
    if let Some(most) = config.max_bytes {
        loaded.train = limit(loaded.train, most);
    }
    Ok(loaded)
}

/// Looks at the texts of a configuration, and reads none of them.
///
/// # Errors
/// When the configuration cannot be, or a source is missing.
pub fn open(config: &DataConfig) -> Result<Opened> {
    let mut problems = Problems::new();
    config.validate(&mut problems);
    if let Some(error) = Error::first_of("data", &problems) {
        return Err(error);
    }
    Ok(match &config.source {
        Source::Crates(manifest) => crates::open(manifest)?,
        Source::Path(source) => Opened {
            parts: vec![Part { text: path::open(source)?, weight: 1.0 }],
            held_out: match &config.validation {
                Validation::Share(share) => HeldOut::Share(*share),
                Validation::Path(validation) => HeldOut::Text(path::open(&validation.path)?),
            },
        },
    })
}

/// Holds out the documents whose content hash falls in the lowest `share` of all hashes: the same document is
/// always on the same side, whatever else the source holds. If that gives an empty side, the document with the
/// lowest (or highest) hash fills it.
fn divide(all: path::Read, share: f64, source: &Path) -> Result<Loaded> {
    let count = all.documents.len();
    let hashes: Vec<u64> = all.documents.iter().map(hash64).collect();
    let (Some(&low), Some(&high)) = (hashes.iter().min(), hashes.iter().max()) else {
        return Err(Error::TooSmall { path: source.into(), documents: 0 });
    };
    if low == high {
        return Err(Error::TooSmall { path: source.into(), documents: count });
    }
    let edge = ((share * 2f64.powi(64)) as u64).clamp(low + 1, high);
    let mut loaded = Loaded { description: all.description, skipped: all.skipped, ..Loaded::default() };
    for (document, hash) in all.documents.into_iter().zip(hashes) {
        if hash < edge { &mut loaded.validation } else { &mut loaded.train }.push(document);
    }
    Ok(loaded)
}

fn hash64(document: &Document) -> u64 {
    let mut first = [0; 8];
    first.copy_from_slice(&document.content_hash().as_bytes()[..8]);
    u64::from_be_bytes(first)
}

/// Whole documents of at most `most` bytes together, chosen by content hash (so spread over the corpus) and left
/// in their order; at least one.
fn limit(documents: Vec<Document>, most: u64) -> Vec<Document> {
    let mut order: Vec<usize> = (0..documents.len()).collect();
    // Turned around, so that it does not follow the order by which documents are held out.
    order.sort_by_cached_key(|&i| (std::cmp::Reverse(hash64(&documents[i])), i));
    let mut keep = vec![false; documents.len()];
    let mut bytes = 0;
    for (n, &i) in order.iter().enumerate() {
        let len = documents[i].text.len() as u64;
        if n == 0 || bytes + len <= most {
            bytes += len;
            keep[i] = true;
        }
    }
    documents.into_iter().zip(keep).filter_map(|(document, keep)| keep.then_some(document)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(n: usize) -> path::Read {
        let documents = (0..n).map(|i| Document::new(i.to_string(), format!("text {i}"))).collect();
        path::Read { documents, ..path::Read::default() }
    }

    fn texts(documents: &[Document]) -> Vec<&str> {
        documents.iter().map(|d| d.text.as_str()).collect()
    }

    #[test]
    fn a_document_stays_on_its_side_when_others_come() {
        let small = divide(read(500), 0.1, Path::new("x")).unwrap();
        let large = divide(read(1000), 0.1, Path::new("x")).unwrap();
        assert!((30..80).contains(&small.validation.len()), "{}", small.validation.len());
        for text in texts(&small.validation) {
            assert!(texts(&large.validation).contains(&text));
        }
        assert_eq!(small.train.len() + small.validation.len(), 500);
    }

    #[test]
    fn both_sides_hold_a_document_even_of_two() {
        for share in [1e-9, 0.5, 0.999_999] {
            let divided = divide(read(2), share, Path::new("x")).unwrap();
            assert_eq!((divided.train.len(), divided.validation.len()), (1, 1));
        }
    }

    #[test]
    fn one_document_or_copies_of_one_cannot_be_divided() {
        let error = divide(read(1), 0.5, Path::new("small.txt")).unwrap_err().told();
        assert!(error.contains("small.txt") && error.contains("validation: { path"), "{error}");
        let mut copies = read(3);
        copies.documents.iter_mut().for_each(|d| d.text = "same".into());
        assert!(matches!(divide(copies, 0.5, Path::new("x")), Err(Error::TooSmall { documents: 3, .. })));
    }

    #[test]
    fn a_limit_keeps_whole_documents_spread_over_the_corpus_in_order() {
        let all = read(1000).documents;
        let bytes: usize = all.iter().map(|d| d.text.len()).sum();
        let kept = limit(all.clone(), bytes as u64 / 2);
        let kept_bytes: usize = kept.iter().map(|d| d.text.len()).sum();
        assert!(kept_bytes <= bytes / 2 && kept_bytes > bytes / 2 - 10);
        let first_half = kept.iter().filter(|d| d.id.parse::<usize>().unwrap() < 500).count();
        assert!((180..320).contains(&first_half), "{first_half} of {} from the first half", kept.len());
        let ids: Vec<usize> = kept.iter().map(|d| d.id.parse().unwrap()).collect();
        assert!(ids.is_sorted());
        assert_eq!(limit(all.clone(), 1).len(), 1);
        assert_eq!(limit(all.clone(), u64::MAX), all);
    }
}
