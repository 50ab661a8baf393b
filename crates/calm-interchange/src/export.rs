//! A run becomes a folder that the reference implementation reads.

use calm_train::models;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use calm_lm::published::{ConfigJson, autoencoder, object};
use calm_lm::{ModelConfig, SpecialIds};
use calm_nn::{ParamStore, write_tensors};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value, json};

use super::{AE_FOLDER, AE_PREFIX, Origin, OriginPart, dtype_of, require_empty, sums};
use calm_run::checkpoint::{Which, write_plain_json};
use calm_run::{Error, Result, Run, Stage};

/// How to export.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// The folder to write, empty or new.
    pub out: PathBuf,
    /// Which checkpoint of the language model.
    pub which: Which,
    /// Number format of all tensors; none: as each was imported, and 32 bits otherwise.
    pub dtype: Option<DType>,
}

/// What an export wrote.
#[derive(Clone, Debug)]
pub struct ExportReport {
    /// What the folder holds: `architectures` of its `config.json`.
    pub architecture: &'static str,
    /// The files.
    pub files: Vec<PathBuf>,
    /// Tensors, aliases counted.
    pub tensors: usize,
    /// Stages with their numbers of parameters and the steps of their checkpoints.
    pub stages: Vec<(Stage, usize, u64)>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// What is done about a model that the reference implementation does not have.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unpublished {
    /// It is an error.
    Refused,
    /// Its weights are written under our names, with a `config.json` of ours.
    Ours,
}

/// What `architectures` would say of a model that has no published form.
pub(super) const OURS: &str = "ours";

/// Writes `config.json` and `model.safetensors` with all aliases; the autoencoder of a model that has one goes to
/// `ae/`.
///
/// # Errors
/// When the run has no checkpoint, or the folder is not empty or cannot be written.
pub fn export(run: &Run, options: &ExportOptions) -> Result<ExportReport> {
    require_empty(&options.out)?;
    // Half an export is none. An empty folder that is there already (and may be the working folder) is filled.
    let mut report = if options.out.is_dir() {
        write(run, options, &options.out, Unpublished::Refused)?
    } else {
        let refused = |e| Error::io("write", &options.out, e);
        calm_files::write_folder(&options.out, refused, |partial| {
            write(run, options, partial, Unpublished::Refused)
        })?
    };
    for file in &mut report.files {
        *file = options.out.join(&*file);
    }
    Ok(report)
}

/// Writes into a folder; the files of the report are named from there.
pub(super) fn write(
    run: &Run,
    options: &ExportOptions,
    out: &Path,
    unpublished: Unpublished,
) -> Result<ExportReport> {
    let mut export = Export {
        out: out.to_owned(),
        origin: Origin::read(run)?,
        dtype: options.dtype,
        files: Vec::new(),
        tensors: 0,
        rounded: 0,
        notes: Vec::new(),
    };
    let tokenizer = run.tokenizer()?;
    let (vocab, ids) = (tokenizer.vocab_size(), models::special_ids(tokenizer.special()));
    let here = run.on(&Device::Cpu);
    let model = &run.config.model;
    let trained = run.checkpoints(Stage::Lm).latest()?.is_some();
    let autoencoder = match model.autoencoder() {
        Some(settings) => {
            let json = autoencoder::write(settings, model.chunk_size(), ids.bos);
            Some((json, models::load_autoencoder(&here, Which::Best, &tokenizer, &Device::Cpu)?.0))
        }
        None => None,
    };
    let mut stages = Vec::new();
    if let Some((_, ae)) = &autoencoder {
        let step = run.checkpoints(Stage::Autoencoder).step(Which::Best)?;
        stages.push((Stage::Autoencoder, ae.store.element_count(), step));
    }
    let architecture = match autoencoder {
        Some((json, ae)) if !trained => {
            let own = export.origin.autoencoder.clone().unwrap_or_default();
            let architecture = export.say(&json);
            let tensors = export.named(&ae.store, "", &[&own])?;
            export.write("", json.over(&own.config, vocab, ids, None), tensors)?;
            architecture
        }
        autoencoder => {
            let published = model.published();
            if published.is_none() && unpublished == Unpublished::Refused {
                return Err(no_published_form(model));
            }
            let (lm, step) = models::load_lm_with_step(&here, options.which, &tokenizer, &Device::Cpu)?;
            stages.push((Stage::Lm, lm.store().element_count(), step));
            let part = export.origin.model.clone().unwrap_or_default();
            let mut tensors = export.named(lm.store(), "", &[&part])?;
            let has_autoencoder = autoencoder.is_some();
            if let Some((inside, ae)) = autoencoder {
                let own = export.origin.autoencoder.clone().unwrap_or_default();
                // A language model that came without its autoencoder's folder recorded the formats itself.
                let inner = within(&part);
                export.say(&inside);
                let all = export.named(&ae.store, "", &[&own, &inner])?;
                export.write(AE_FOLDER, inside.over(&own.config, vocab, ids, None), all)?;
                // The reference's file holds its autoencoder once more.
                if published.is_some() {
                    tensors.extend(export.named(&ae.store, AE_PREFIX, &[&inner, &own])?);
                }
            }
            let context = run.config.train.lm.context;
            match published {
                Some(mut json) => {
                    if has_autoencoder {
                        json.keys.insert("ae_path".into(), AE_FOLDER.into());
                        json.notes.push(format!(
                            "ae_path is {AE_FOLDER}: the reference looks for it from its working folder"
                        ));
                    }
                    let architecture = export.say(&json);
                    export.write("", json.over(&part.config, vocab, ids, Some(context)), tensors)?;
                    architecture
                }
                None => {
                    export.write("", ours(model, vocab, ids, context)?, tensors)?;
                    OURS
                }
            }
        }
    };
    let text = run.folder.join("tokenizer.json");
    let copy = out.join("tokenizer.json");
    calm_files::copy(&text, &copy).map_err(|e| Error::io("write", &copy, e))?;
    export.files.push("tokenizer.json".into());
    export.sums()?;
    if run.config.bos_chunk && trained {
        let k = run.config.chunk_size();
        export.notes.push(format!(
            "trained with a start of document: prompts must begin with {k} times BOS {}",
            ids.bos
        ));
    }
    if export.rounded > 0 {
        export.notes.push(format!(
            "{} tensors were trained further and are rounded to their recorded number format; --dtype f32 keeps them",
            export.rounded
        ));
    }
    Ok(ExportReport {
        architecture,
        files: export.files,
        tensors: export.tensors,
        stages,
        notes: export.notes,
    })
}

/// The `config.json` of a model that the reference implementation does not have.
fn ours(model: &ModelConfig, vocab: usize, ids: SpecialIds, context: usize) -> Result<Map<String, Value>> {
    let settings = serde_json::to_value(model)
        .map_err(|e| Error::user(format!("cannot write the model's settings: {e}"), ""))?;
    Ok(object(json!({
        "model_type": format!("calm-{}", model.name()),
        "vocab_size": vocab,
        "bos_token_id": ids.bos, "eos_token_id": ids.eos, "pad_token_id": ids.pad,
        "max_position_embeddings": context,
        "model": settings,
    })))
}

fn no_published_form(model: &ModelConfig) -> Error {
    let head = model.head().map_or_else(String::new, |head| format!(" with the head {}", head.name()));
    Error::user(
        format!("{}{head} has no published form", model.title()),
        "its checkpoints are safetensors already: RUN/lm/step-N/model.safetensors",
    )
}

/// The record of the autoencoder's tensors in a language model's file.
fn within(part: &OriginPart) -> OriginPart {
    let strip = |(n, d): (&String, &String)| Some((n.strip_prefix(AE_PREFIX)?.to_owned(), d.clone()));
    OriginPart { config: Map::new(), dtypes: part.dtypes.iter().filter_map(strip).collect() }
}

struct Export {
    out: PathBuf,
    origin: Origin,
    dtype: Option<DType>,
    files: Vec<PathBuf>,
    tensors: usize,
    rounded: usize,
    notes: Vec<String>,
}

impl Export {
    /// Takes over the notes of a part, and names it.
    fn say(&mut self, json: &ConfigJson) -> &'static str {
        self.notes.extend(json.notes.iter().cloned());
        json.names.architecture
    }

    /// All names of all parameters, each in its number format.
    fn named(
        &mut self,
        store: &ParamStore,
        prefix: &str,
        records: &[&OriginPart],
    ) -> Result<BTreeMap<String, Tensor>> {
        let mut out = BTreeMap::new();
        let aliases = store.aliases();
        for (name, param) in store.params() {
            let mut all = vec![&name];
            all.extend(aliases.iter().filter(|(_, n)| *n == name).map(|(a, _)| a));
            let recorded = |n: &String| records.iter().find_map(|r| dtype_of(r.dtypes.get(n)?));
            let tensor = param.var.as_tensor().detach();
            for n in &all {
                // A name that was missing gets the format of the other name of the same tensor.
                let found = recorded(n).or_else(|| all.iter().find_map(|n| recorded(n)));
                let dtype = self.dtype.or(found).unwrap_or(DType::F32);
                let cast = tensor.to_dtype(dtype)?;
                if self.dtype.is_none() && dtype != DType::F32 && !same(&cast, &tensor)? {
                    self.rounded += 1;
                }
                out.insert(format!("{prefix}{n}"), cast);
            }
        }
        Ok(out)
    }

    /// Writes the hashes of all files beside them.
    fn sums(&mut self) -> Result<()> {
        let mut folders: BTreeMap<PathBuf, Vec<String>> = BTreeMap::new();
        for file in &self.files {
            let (Some(folder), Some(name)) = (file.parent(), file.file_name()) else { continue };
            folders.entry(folder.to_owned()).or_default().push(name.to_string_lossy().into_owned());
        }
        for (folder, names) in folders {
            sums::write(&self.out.join(&folder), &names.iter().map(String::as_str).collect::<Vec<_>>())?;
            self.files.push(folder.join(sums::SUMS));
        }
        Ok(())
    }

    fn write(
        &mut self,
        folder: &str,
        mut config: Map<String, Value>,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let named = Path::new(folder);
        let folder = self.out.join(folder);
        calm_files::create_folder(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let mut formats: Vec<DType> = tensors.values().map(Tensor::dtype).collect();
        formats.dedup();
        if self.dtype.is_some() || !config.contains_key("torch_dtype") {
            let name = match formats[..] {
                [DType::BF16] => "bfloat16",
                [DType::F16] => "float16",
                _ => "float32",
            };
            config.insert("torch_dtype".into(), name.into());
        }
        let (weights, settings) = (folder.join("model.safetensors"), folder.join("config.json"));
        write_tensors(&weights, &tensors, ("format", "pt"))?;
        write_plain_json(&settings, &config)?;
        self.tensors += tensors.len();
        self.files.extend(["config.json", "model.safetensors"].map(|file| named.join(file)));
        Ok(())
    }
}

/// Whether a narrower copy holds the same values.
fn same(narrow: &Tensor, wide: &Tensor) -> Result<bool> {
    let back = narrow.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let wide = wide.flatten_all()?.to_vec1::<f32>()?;
    Ok(back.iter().zip(&wide).all(|(a, b)| a.to_bits() == b.to_bits()))
}
