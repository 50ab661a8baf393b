//! Where documents come from.
//!
//! | module | reads |
//! |---|---|
//! | [`documents`] | what a source gives: its inputs, and its documents as a stream |
//! | [`settings`] | what a configuration says of a source besides where it lies |
//! | [`path`] | a file, or all files of a folder |
//! | `apart` | what is held out is not trained on |
//! | `hub` | a data set of a Hugging Face hub |
//! | [`dataset`] | published data sets by their manifests |
//! | `card` | what the page of a data set says of its files |
//! | `select` | which files of a data set: patterns, splits |
//! | `named` | what a command line means by a text |
//! | `first` | the first documents of a text |
//! | `files` | the documents of files, one file after the other |
//! | `bytes` | a file's bytes, unpacked as they are read |
//! | `pieces` | a text without documents in pieces |
//! | [`records`] | the records of a JSON file, whatever stands beside their text |
//! | [`objects`] | the objects of a JSON-lines file as they are, all fields of them |
//! | `table` | the rows of a Parquet table |
//! | `messages` | a conversation in a record |
//! | [`crates`] | the sources of pinned crates, by a manifest |
//! | [`locate`] | where crates lie on this machine |
//! | [`curate`] | which files of a crate are text worth learning (used when a manifest is written) |

mod apart;
mod bytes;
#[cfg(feature = "hub")]
mod card;
pub mod crates;
pub mod curate;
pub mod dataset;
pub mod documents;
mod files;
mod first;
#[cfg(feature = "hub")]
mod hub;
mod loaded;
pub mod locate;
mod messages;
mod named;
pub mod objects;
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
pub(crate) use first::First;
pub use loaded::{Loaded, Skipped};
pub use named::named;

use std::sync::Arc;

use calm_config::Problems;

use crate::config::{DataConfig, Source, Validation};
use crate::error::{Error, Result};
use dataset::DatasetManifest;
use files::Reading;
use settings::{Filter, HubSource};

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
    let aside = match &config.validation {
        Validation::Path(validation) => {
            let reading =
                OfConfig { config, watch, held_out: &[] }.reading(config.column.as_deref(), &config.filter);
            Some(path::open_for(&validation.path, reading, &[])?)
        }
        _ => None,
    };
    let of = OfConfig { config, watch, held_out: aside.as_ref().map_or(&[], |text| text.inputs()) };
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
    let held_out = match (&config.validation, aside.or(own)) {
        (_, Some(text)) => HeldOut::Text(text),
        (Validation::Share(share), None) => HeldOut::Share(*share),
        // These have one.
        (Validation::Path(_) | Validation::Split(_), None) => HeldOut::Share(0.0),
    };
    let opened = Opened { parts, held_out };
    apart::check(config, &opened)?;
    Ok(opened)
}

/// Looks at one source as a text to measure with: what it holds out if it says so itself, else all of it.
///
/// # Errors
/// As [`open`]; several sources.
pub(crate) fn open_one(config: &DataConfig, watch: &Watch) -> Result<Box<dyn Text>> {
    let of = OfConfig { config, watch, held_out: &[] };
    if let Source::Crates(manifest) = &config.source
        && let HeldOut::Text(text) = crates::open(manifest)?.held_out
    {
        return Ok(text);
    }
    let (text, held_out) = of.text(&config.source, config.column.as_deref(), &config.filter)?;
    Ok(held_out.unwrap_or(text))
}

/// A text to train on, and what is held out of it if it says so itself.
type WithHeldOut = (Box<dyn Text>, Option<Box<dyn Text>>);

struct OfConfig<'a> {
    config: &'a DataConfig,
    watch: &'a Watch,
    /// Files that are held out.
    held_out: &'a [Input],
}

impl OfConfig<'_> {
    fn reading(&self, column: Option<&str>, filter: &Filter) -> Reading {
        Reading::new(column, filter, self.config.on_bad_document, self.config.conversations())
    }

    fn text(&self, source: &Source, column: Option<&str>, filter: &Filter) -> Result<WithHeldOut> {
        Ok(match source {
            Source::Path(path) => (path::open_for(path, self.reading(column, filter), self.held_out)?, None),
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
                    what: "a mix of several sources is not one text".to_owned(),
                    remedy: Some("name one of its sources".to_owned()),
                });
            }
        })
    }

    #[cfg(feature = "hub")]
    fn hub(&self, source: &HubSource, reading: Reading, held_out: Option<&str>) -> Result<WithHeldOut> {
        let set = hub::DataSet::ask(&source.dataset, &source.revision, self.watch)?;
        let chosen = hub::Chosen {
            files: &source.files,
            config: source.config.as_deref(),
            split: source.split.as_deref(),
        };
        let text = set.text(chosen, reading.clone())?;
        let of_split = |split| set.text(hub::Chosen { split: Some(split), ..chosen }, reading);
        let held_out = held_out.map(of_split).transpose()?;
        Ok((text, held_out))
    }

    #[cfg(feature = "hub")]
    fn dataset(&self, manifest: &DatasetManifest, reading: Reading) -> Result<WithHeldOut> {
        let set = hub::DataSet::ask(&manifest.dataset, manifest.revision(), self.watch)?;
        let files = |files| hub::Chosen { files, ..Default::default() };
        let text = set.text(files(&manifest.train), reading.clone())?;
        let held_out = match manifest.validation.is_empty() {
            true => None,
            false => Some(set.text(files(&manifest.validation), reading)?),
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
