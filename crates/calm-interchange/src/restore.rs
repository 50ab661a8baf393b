//! A folder that [`crate::publish`] wrote becomes the run that it was, in every family: same settings, same weights, same
//! tokenizer. Its optimiser stays where it was trained.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use calm_lm::published::Findings;
use calm_nn::ParamStore;
use calm_run::checked::{read_json, write_json};
use calm_run::run::{CONFIG, RECORD, RESULTS};
use calm_run::{Begin, Error, Lock, Provenance, Result, Run, RunConfig, RunRecord, Stage};
use calm_train::models;
use candle_core::Device;
use serde_json::{Map, Value};

use super::import::ImportReport;
use super::merge::fill;
use super::parts::{Part, below, place};
use super::read::{has_weights, is_weights};
use super::{AE_FOLDER, AE_PREFIX, OURS_FOLDER, Origin, OriginPart, require_empty, sizes, sums};

/// Whether a folder is one that `calm push` wrote.
pub fn is_ours(folder: &Path) -> bool {
    folder.join(OURS_FOLDER).join(CONFIG).is_file()
}

/// Of the files of a repository those that make a run, where its `config.json` says that the autoencoder lies in
/// `ae_path`. Weights that come in several forms are taken in one.
pub fn wanted<'a>(paths: &[&'a str], ae_path: Option<&str>) -> Vec<&'a str> {
    let folders: BTreeSet<String> =
        [Some(String::new()), Some(AE_FOLDER.to_owned()), ae_path.and_then(below)]
            .into_iter()
            .flatten()
            .collect();
    let split = |path: &'a str| path.rsplit_once('/').unwrap_or(("", path));
    let safe = |folder: &str| {
        paths
            .iter()
            .map(|path| split(path))
            .any(|(f, name)| f == folder && name.starts_with("model") && is_weights(name))
    };
    let take = |path: &&'a str| {
        let (folder, name) = split(path);
        if folder == OURS_FOLDER {
            return [CONFIG, RECORD, RESULTS, sums::SUMS].contains(&name);
        }
        folders.contains(folder)
            && (["config.json", "tokenizer.json", sums::SUMS].contains(&name)
                || (is_weights(name) && (name.starts_with("model") || !safe(folder))))
    };
    paths.iter().copied().filter(take).collect()
}

/// Makes the run again. `from` says where the folder is from, for people.
///
/// # Errors
/// The folder is not what was written; its weights do not fit its configuration; `out` holds something. Nothing is
/// written then.
pub fn restore(folder: &Path, out: &Path, from: &str, by: Provenance) -> Result<ImportReport> {
    require_empty(out)?;
    let ours = folder.join(OURS_FOLDER);
    sums::check(&ours)?;
    let resolved = Run::resolved(&ours)?;
    let remedy = "fetch the model again";
    let mut record: RunRecord = read_json(&ours.join(RECORD), remedy)?.unwrap_or_default();
    let results: Option<Map<String, Value>> = read_json(&ours.join(RESULTS), remedy)?;
    record.history.push(by);
    let parts = Parts::read(folder, &resolved.value)?;
    let _lock = Lock::take(out, &mut |_| {})?;
    let run = Run::create(out, &resolved, Begin::New)?;
    let attempt = || -> Result<ImportReport> {
        let (text, copy) = (folder.join("tokenizer.json"), run.folder.join("tokenizer.json"));
        calm_files::copy(&text, &copy).map_err(|e| Error::io("copy", &text, e))?;
        // A tokenizer that is not the model's own is refused by its hash.
        run.write_record(&record)?;
        let stages = parts.put(&run, &record, from)?;
        if let Some(results) = results {
            write_json(&run.folder.join(RESULTS), &results)?;
        }
        Ok(ImportReport {
            architecture: run.config.model.title(),
            stages,
            files: parts.files(),
            notes: Vec::new(),
        })
    };
    // Half of a run is none: the folder was empty before.
    attempt().inspect_err(|_| {
        let _ = calm_files::remove(&run.folder);
    })
}

/// The folders of weights.
struct Parts {
    model: Option<Part>,
    autoencoder: Option<Part>,
}

impl Parts {
    fn read(folder: &Path, config: &RunConfig) -> Result<Self> {
        let root = Part::read(folder)?;
        let own = folder.join(AE_FOLDER);
        match config.model.autoencoder() {
            None => Ok(Self { model: Some(root), autoencoder: None }),
            Some(_) if has_weights(&own) => {
                Ok(Self { model: Some(root), autoencoder: Some(Part::read(&own)?) })
            }
            // The first stage alone.
            Some(_) => Ok(Self { model: None, autoencoder: Some(root) }),
        }
    }

    fn all(&self) -> impl Iterator<Item = &Part> {
        self.model.iter().chain(&self.autoencoder)
    }

    fn files(&self) -> Vec<PathBuf> {
        self.all().flat_map(|part| part.weights.files.clone()).collect()
    }

    /// Puts the weights into the run.
    fn put(&self, run: &Run, record: &RunRecord, from: &str) -> Result<Vec<(Stage, usize)>> {
        let mut findings = Findings::default();
        self.all().for_each(|part| part.report(&mut findings));
        let tokenizer = run.tokenizer()?;
        let model = &run.config.model;
        let settings = model.autoencoder().map(|settings| (settings, run.config.chunk_size()));
        let tensors = self.all().flat_map(|part| part.weights.tensors.values());
        let described = self.model.is_some().then_some(model);
        sizes::fit(described, settings, tokenizer.vocab_size(), tensors, &mut findings);
        if !findings.problems.is_empty() {
            return Err(refuse(from, &findings));
        }
        let here = run.on(&Device::Cpu);
        let mut stores: Vec<(Stage, ParamStore)> = Vec::new();
        let mut inner = None;
        if let Some(part) = &self.autoencoder {
            let made = models::new_autoencoder(&here, &tokenizer, &Device::Cpu)?;
            fill(&made.store, &[place(part, "")], &mut findings)?;
            stores.push((Stage::Autoencoder, made.store));
            inner = Some(made.model);
        }
        let mut lm = None;
        if let Some(part) = &self.model {
            let made = models::new_lm(&here, inner, &tokenizer, &Device::Cpu)?;
            let (label, mut tensors) = place(part, "");
            tensors.retain(|name, _| !name.starts_with(AE_PREFIX) || model.autoencoder().is_none());
            fill(made.store(), &[(label, tensors)], &mut findings)?;
            lm = Some(made);
        }
        if !findings.problems.is_empty() {
            return Err(refuse(from, &findings));
        }
        let mut stages = Vec::new();
        for (stage, store) in stores
            .iter()
            .map(|(stage, store)| (*stage, store))
            .chain(lm.as_ref().map(|lm| (Stage::Lm, lm.store())))
        {
            let mut metadata = run.metadata(stage, record);
            if stage == Stage::Lm && !stores.is_empty() {
                metadata.insert("autoencoder".to_owned(), run.autoencoder_hash()?);
            }
            run.checkpoints(stage).save_imported(store, &metadata)?;
            stages.push((stage, store.element_count()));
        }
        if model.published().is_some() {
            let origin = |part: &Part| OriginPart::new(part.config.clone(), Some(&part.weights));
            let (model, autoencoder) =
                (self.model.as_ref().map(origin), self.autoencoder.as_ref().map(origin));
            Origin { model, autoencoder }.write(&run.folder)?;
        }
        Ok(stages)
    }
}

fn refuse(from: &str, findings: &Findings) -> Error {
    let n = findings.problems.len();
    Error::user(
        format!(
            "{from} cannot be taken over, {n} {}:\n  {}",
            if n == 1 { "problem" } else { "problems" },
            findings.problems.join("\n  ")
        ),
        "its weights do not fit its configuration: ask whoever pushed it, or take an earlier --revision",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_a_run_is_fetched_and_nothing_else() {
        let ours = [
            "README.md",
            "ae/config.json",
            "ae/model.safetensors",
            "calm-run/config.yaml",
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "runs/x.bin",
            "optimizer.bin",
            "calm-run/notes.txt",
        ];
        assert_eq!(
            wanted(&ours, None),
            [
                "ae/config.json",
                "ae/model.safetensors",
                "calm-run/config.yaml",
                "config.json",
                "model.safetensors",
                "tokenizer.json"
            ]
        );
        let both = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
        assert_eq!(wanted(&both, None), both[..2]);
        assert_eq!(wanted(&["pytorch_model.bin"], None), ["pytorch_model.bin"]);
        let elsewhere = ["first/config.json", "first/pytorch_model-00001-of-00002.bin", "second/config.json"];
        assert_eq!(wanted(&elsewhere, Some("./first")), elsewhere[..2]);
        for path in ["/first", "../first", "first/../.."] {
            assert!(wanted(&elsewhere, Some(path)).is_empty(), "{path}");
        }
    }
}
