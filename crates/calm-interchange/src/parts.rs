//! The folders that make up a published model: its own, and that of its autoencoder.

use std::path::{Component, Path, PathBuf};

use calm_lm::published::autoencoder::{self, PublishedAutoencoder};
use calm_lm::published::{Findings, Keys, PublishedText};
use calm_run::Result;
use serde_json::{Map, Value};

use super::AE_PREFIX;
use super::find::Found;
use super::merge::Place;
use super::read::{Weights, has_weights, read_config, read_weights_folder};
use super::sums;

/// A folder's configuration and weights.
pub(super) struct Part {
    pub label: String,
    pub config: Map<String, Value>,
    pub weights: Weights,
}

impl Part {
    pub(super) fn read(folder: &Path) -> Result<Self> {
        sums::check(folder)?;
        let config = read_config(folder)?;
        let weights = read_weights_folder(folder)?;
        Ok(Self { label: folder.join("config.json").display().to_string(), config, weights })
    }

    /// What was found while its weights were read.
    pub(super) fn report(&self, findings: &mut Findings) {
        findings.problems.extend(self.weights.problems.iter().cloned());
        findings.notes.extend(self.weights.notes.iter().cloned());
    }
}

/// An autoencoder as it was found.
pub(super) struct AutoencoderPlan {
    /// Its own folder; none: `ae_model.*` of the language model alone.
    pub part: Option<Part>,
    pub published: PublishedAutoencoder,
}

/// The tensors of a folder whose names start with `prefix`, without it.
pub(super) fn place<'a>(part: &'a Part, prefix: &str) -> Place<'a> {
    let tensors =
        part.weights.tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix(prefix)?, t))).collect();
    let file = part.weights.files.first().map(|f| f.display().to_string()).unwrap_or_default();
    (format!("{file}: {prefix}"), tensors)
}

/// The autoencoder of a language model: its own folder, or `ae_model.*` of the weights.
pub(super) fn find_autoencoder(
    part: &Part,
    text: PublishedText,
    chunk_size: usize,
    latent_size: usize,
    folders: Folders<'_>,
    findings: &mut Findings,
) -> Result<Option<AutoencoderPlan>> {
    if let Some(folder) = autoencoder_folder(folders, &part.config, findings) {
        let own = Part::read(&folder)?;
        own.report(findings);
        if let Some(Found::Model(..)) = Found::in_config(&own.label, &own.config, findings) {
            findings.problem(format!("{}: this is not an autoencoder", own.label));
        }
        let mut keys = Keys::new(&own.label, &own.config, findings);
        let published = autoencoder::read(&mut keys);
        keys.finish();
        return Ok(Some(AutoencoderPlan { part: Some(own), published }));
    }
    let inside = part.weights.tensors.iter();
    let shapes = inside.filter_map(|(n, t)| Some((n.strip_prefix(AE_PREFIX)?, t.dims()))).collect();
    let Some(config) = autoencoder::infer(&shapes, latent_size) else {
        findings.problem(format!(
            "there is no autoencoder: neither its folder (ae_path, --autoencoder) nor {AE_PREFIX}* in the weights"
        ));
        return Ok(None);
    };
    findings.note(format!(
        "the autoencoder's sizes come from {AE_PREFIX}*; dropout and KL settings are the published defaults"
    ));
    Ok(Some(AutoencoderPlan { part: None, published: PublishedAutoencoder { text, chunk_size, config } }))
}

/// Where an autoencoder may lie.
#[derive(Clone, Copy)]
pub(super) struct Folders<'a> {
    /// The language model's folder, which `ae_path` starts from.
    pub model: &'a Path,
    /// Whether the model's folder was written elsewhere: what it names is looked for below it alone.
    pub fetched: bool,
    /// The folder that a user named.
    pub asked: Option<&'a Path>,
}

/// A folder below another one that a path names, and no other place.
pub(super) fn below(path: &str) -> Option<String> {
    let parts = Path::new(path.trim_start_matches("./")).components().map(|part| match part {
        Component::Normal(name) => name.to_str(),
        _ => None,
    });
    Some(parts.collect::<Option<Vec<_>>>()?.join("/"))
}

/// Where the autoencoder's folder lies: as asked, or as `ae_path` says, from the folder or from here.
fn autoencoder_folder(
    folders: Folders<'_>,
    config: &Map<String, Value>,
    findings: &mut Findings,
) -> Option<PathBuf> {
    if let Some(folder) = folders.asked {
        return Some(folder.to_owned());
    }
    let named = config.get("ae_path")?.as_str()?;
    let path = Path::new(named);
    let places = if folders.fetched {
        vec![below(named).map(|path| folders.model.join(path))]
    } else {
        vec![Some(folders.model.join(path)), Some(path.to_owned())]
    };
    let found = places.into_iter().flatten().find(|f| has_weights(f));
    if found.is_none() {
        findings.note(format!(
            "ae_path {} is not there: the autoencoder is read from {AE_PREFIX}*",
            path.display()
        ));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leads_out_of_a_folder_is_none_below_it() {
        let found = ["ae", "./a/e", "/abs", "../x", "a/../../x"].map(below);
        assert_eq!(found, [Some("ae".to_owned()), Some("a/e".to_owned()), None, None, None]);
    }
}
