//! Where documents come from.
//!
//! | module | reads |
//! |---|---|
//! | [`documents`] | what a source gives: its inputs, and its documents as a stream |
//! | [`settings`] | what a configuration says of a source besides where it lies |
//! | [`path`] | a file, or all files of a folder |
//! | `hub` | a data set of a Hugging Face hub |
//! | [`dataset`] | published data sets by their manifests |
//! | `select` | which files of a data set: patterns, splits |
//! | `files` | the documents of files, one file after the other |
//! | `bytes` | a file's bytes, unpacked as they are read |
//! | `pieces` | a text without documents in pieces |
//! | [`records`] | the records of a JSON file, whatever stands beside their text |
//! | `table` | the rows of a Parquet table |
//! | [`crates`] | the sources of pinned crates, by a manifest |
//! | [`locate`] | where crates lie on this machine |
//! | [`curate`] | which files of a crate are text worth learning (used when a manifest is written) |

mod bytes;
pub mod crates;
pub mod curate;
pub mod dataset;
pub mod documents;
mod files;
#[cfg(feature = "hub")]
mod hub;
mod loaded;
pub mod locate;
mod own;
pub mod path;
mod pieces;
pub mod records;
mod row;
#[cfg(feature = "hub")]
mod select;
pub mod settings;
mod table;

pub use documents::{Documents, Fetching, Found, HeldOut, Input, Opened, Part, Text, Watch};
pub use loaded::{Loaded, Skipped};

use std::path::{Path, PathBuf};
use std::sync::Arc;

use calm_config::Problems;

use crate::config::{DataConfig, Source, Validation};
use crate::document::Document;
use crate::error::{Error, Result};
use dataset::DatasetManifest;
use files::Reading;
use settings::{Filter, HubSource};

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
        _ => collect(open(config)?, &named(&config.source), reading)?,
    };
    if let Some(most) = config.max_bytes {
        loaded.train = limit(loaded.train, most);
    }
    Ok(loaded)
}

/// All documents of opened texts.
fn collect(opened: Opened, source: &Path, reading: &mut dyn FnMut(u64, u64)) -> Result<Loaded> {
    if opened.parts.iter().any(|part| part.weight != opened.parts[0].weight) {
        return Err(Error::Config {
            key: "data.source.mix".to_owned(),
            what: "sources of different weights cannot be read at once".to_owned(),
            remedy: Some("give them the same weight".to_owned()),
        });
    }
    let held_out = match &opened.held_out {
        HeldOut::Text(text) => Some(text),
        HeldOut::Share(_) => None,
    };
    let length = |text: &dyn Text| text.inputs().iter().map(|input| input.length).sum::<u64>();
    let texts = opened.parts.iter().map(|part| &part.text).chain(held_out);
    let total = texts.map(|text| length(&**text)).sum();
    let mut before = 0;
    let mut all = |text: &dyn Text| {
        let mut stream = text.read()?;
        let (mut documents, mut told) = (Vec::new(), 0);
        while let Some(document) = stream.next() {
            documents.push(document?);
            if stream.read_bytes() != told {
                told = stream.read_bytes();
                reading(before + told, total);
            }
        }
        before += length(text);
        reading(before, total);
        Ok((documents, stream.found()))
    };
    let mut loaded = Loaded::default();
    let mut descriptions = Vec::new();
    for part in &opened.parts {
        let (documents, found) = all(&*part.text)?;
        loaded.train.extend(documents);
        loaded.bad.extend(found.bad);
        loaded.skipped += found.skipped;
        descriptions.push(found.description);
    }
    loaded.description = descriptions.join("; ");
    match &opened.held_out {
        HeldOut::Share(share) => divide(loaded, *share, source),
        HeldOut::Text(text) => {
            let (documents, found) = all(&**text)?;
            loaded.validation = documents;
            loaded.bad.extend(found.bad);
            loaded.description = format!("{}; held out: {}", loaded.description, found.description);
            Ok(loaded)
        }
    }
}

/// What a source is called in messages.
fn named(source: &Source) -> PathBuf {
    match source {
        Source::Crates(path) | Source::Path(path) | Source::Dataset(path) => path.clone(),
        Source::Hub(hub) => PathBuf::from(&hub.dataset),
        Source::Mix(parts) => parts.first().map_or_else(PathBuf::new, |part| named(&part.source)),
    }
}

/// Looks at the texts of a configuration, and reads none of them.
///
/// # Errors
/// When the configuration cannot be, a source is missing, or a hub does not answer.
pub fn open(config: &DataConfig) -> Result<Opened> {
    open_watched(config, &(Arc::new(|_: &Fetching| ()) as Watch))
}

/// The same, with somebody who hears what is fetched, now and when the texts are read.
///
/// # Errors
/// As [`open`].
pub fn open_watched(config: &DataConfig, watch: &Watch) -> Result<Opened> {
    let mut problems = Problems::new();
    config.validate(&mut problems);
    if let Some(error) = Error::first_of("data", &problems) {
        return Err(error);
    }
    let of = OfConfig { config, watch };
    let (parts, own) = match &config.source {
        Source::Crates(manifest) => return crates::open(manifest),
        Source::Mix(mixed) => {
            let mut parts = Vec::new();
            for part in mixed {
                let column = part.column.as_deref().or(config.column.as_deref());
                let filter = part.filter.as_ref().unwrap_or(&config.filter);
                let text = of.text(&part.source, column, filter)?.0;
                parts.push(Part { text, weight: part.weight });
            }
            (parts, None)
        }
        source => {
            let (text, held_out) = of.text(source, config.column.as_deref(), &config.filter)?;
            (vec![Part { text, weight: 1.0 }], held_out)
        }
    };
    let held_out = match (&config.validation, own) {
        (Validation::Path(validation), _) => HeldOut::Text(path::open_for(
            &validation.path,
            of.reading(config.column.as_deref(), &config.filter),
        )?),
        (_, Some(text)) => HeldOut::Text(text),
        (Validation::Share(share), None) => HeldOut::Share(*share),
        // Only a hub has one, and gave it.
        (Validation::Split(_), None) => HeldOut::Share(0.0),
    };
    Ok(Opened { parts, held_out })
}

/// A text to train on, and what is held out of it if it says so itself.
type WithHeldOut = (Box<dyn Text>, Option<Box<dyn Text>>);

struct OfConfig<'a> {
    config: &'a DataConfig,
    watch: &'a Watch,
}

impl OfConfig<'_> {
    fn reading(&self, column: Option<&str>, filter: &Filter) -> Reading {
        Reading::new(column, filter, self.config.on_bad_document)
    }

    fn text(&self, source: &Source, column: Option<&str>, filter: &Filter) -> Result<WithHeldOut> {
        Ok(match source {
            Source::Path(path) => (path::open_for(path, self.reading(column, filter))?, None),
            // Held-out crates of a mix are left out.
            Source::Crates(manifest) => match crates::open(manifest)?.parts.pop() {
                Some(part) => (part.text, None),
                None => return Err(Error::Empty { path: manifest.clone(), detail: String::new() }),
            },
            Source::Hub(hub) => {
                let split = match &self.config.validation {
                    Validation::Split(validation) => Some(validation.split.as_str()),
                    _ => None,
                };
                self.hub(hub, self.reading(hub.column.as_deref().or(column), filter), split)?
            }
            Source::Dataset(name) => {
                let manifest = DatasetManifest::find(name)?;
                let reading = self.reading(column.or(Some(&manifest.column)), filter);
                self.dataset(&manifest, reading)?
            }
            Source::Mix(_) => {
                return Err(Error::Config {
                    key: "data.source.mix".to_owned(),
                    what: "a mix within a mix".to_owned(),
                    remedy: None,
                });
            }
        })
    }

    #[cfg(feature = "hub")]
    fn hub(&self, source: &HubSource, reading: Reading, held_out: Option<&str>) -> Result<WithHeldOut> {
        let set = hub::DataSet::ask(&source.dataset, &source.revision, self.watch)?;
        let text = set.text(&source.files, source.split.as_deref(), reading.clone())?;
        let held_out = held_out.map(|split| set.text(&source.files, Some(split), reading)).transpose()?;
        Ok((text, held_out))
    }

    #[cfg(feature = "hub")]
    fn dataset(&self, manifest: &DatasetManifest, reading: Reading) -> Result<WithHeldOut> {
        let set = hub::DataSet::ask(&manifest.dataset, manifest.revision(), self.watch)?;
        let text = set.text(&manifest.train, None, reading.clone())?;
        let held_out = match manifest.validation.is_empty() {
            true => None,
            false => Some(set.text(&manifest.validation, None, reading)?),
        };
        for file in set.files() {
            manifest.check(&file.path, file.size, &file.hash())?;
        }
        Ok((text, held_out))
    }

    #[cfg(not(feature = "hub"))]
    fn hub(&self, source: &HubSource, _: Reading, _: Option<&str>) -> Result<WithHeldOut> {
        let _ = self.watch;
        Err(without_network(&source.dataset))
    }

    #[cfg(not(feature = "hub"))]
    fn dataset(&self, manifest: &DatasetManifest, _: Reading) -> Result<WithHeldOut> {
        Err(without_network(&manifest.dataset))
    }
}

#[cfg(not(feature = "hub"))]
fn without_network(dataset: &str) -> Error {
    Error::Selection {
        source_name: dataset.to_owned(),
        what: "this program was built without the network, so that it cannot ask a hub".to_owned(),
        remedy: "build it with `cargo build --release --features hub`, or download the files and give their folder"
            .to_owned(),
    }
}

/// Holds out the documents whose content hash falls in the lowest `share` of all hashes: the same document is
/// always on the same side, whatever else the source holds. If that gives an empty side, the document with the
/// lowest (or highest) hash fills it.
fn divide(all: Loaded, share: f64, source: &Path) -> Result<Loaded> {
    let count = all.train.len();
    let hashes: Vec<u64> = all.train.iter().map(hash64).collect();
    let (Some(&low), Some(&high)) = (hashes.iter().min(), hashes.iter().max()) else {
        return Err(Error::TooSmall { path: source.into(), documents: 0 });
    };
    if low == high {
        return Err(Error::TooSmall { path: source.into(), documents: count });
    }
    let edge = ((share * 2f64.powi(64)) as u64).clamp(low + 1, high);
    let documents = all.train;
    let mut loaded = Loaded { train: Vec::new(), ..all };
    for (document, hash) in documents.into_iter().zip(hashes) {
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

    fn read(n: usize) -> Loaded {
        let train = (0..n).map(|i| Document::new(i.to_string(), format!("text {i}"))).collect();
        Loaded { train, ..Loaded::default() }
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
        copies.train.iter_mut().for_each(|d| d.text = "same".into());
        assert!(matches!(divide(copies, 0.5, Path::new("x")), Err(Error::TooSmall { documents: 3, .. })));
    }

    #[test]
    fn a_limit_keeps_whole_documents_spread_over_the_corpus_in_order() {
        let all = read(1000).train;
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
