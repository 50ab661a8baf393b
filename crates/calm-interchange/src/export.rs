//! A run becomes a folder that the reference implementation reads.

use calm_train::models;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use calm_lm::{BaselineConfig, CalmConfig, EnergyConfig, FlowConfig, FlowTime, HeadConfig};
use calm_nn::{ParamStore, write_tensors};
use candle_core::{DType, Device, Tensor};
use serde_json::{Map, Value};

use super::config::{REFERENCE_TARGETS, write_autoencoder, write_calm, write_llama};
use super::{AE_FOLDER, AE_PREFIX, Kind, Origin, OriginPart, dtype_of, require_empty};
use calm_run::checkpoint::{Which, write_json};
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
    /// What the folder holds.
    pub kind: Kind,
    /// The files.
    pub files: Vec<PathBuf>,
    /// Tensors, aliases counted.
    pub tensors: usize,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// Writes `config.json` and `model.safetensors` with all aliases, and for a CALM its autoencoder in `ae/`.
///
/// # Errors
/// When the run has no checkpoint, or the folder is not empty or cannot be written.
pub fn export(run: &Run, options: &ExportOptions) -> Result<ExportReport> {
    require_empty(&options.out)?;
    let mut export = Export {
        origin: Origin::read(run)?,
        dtype: options.dtype,
        files: Vec::new(),
        tensors: 0,
        rounded: 0,
        notes: Vec::new(),
    };
    let tokenizer = run.tokenizer()?;
    let (vocab, ids) = (tokenizer.vocab_size(), tokenizer.special());
    let (cpu, context) = (&Device::Cpu, run.config.train.lm.context);
    let here = run.on(cpu);
    let model = &run.config.model;
    let kind = if let Some(c) = model.get::<BaselineConfig>() {
        let lm = models::load_lm(&here, options.which, &tokenizer, cpu)?;
        let part = export.origin.model.clone().unwrap_or_default();
        let tensors = export.named(lm.store(), "", &[&part])?;
        export.write(&options.out, write_llama(&part.config, &c.backbone, vocab, ids, context), tensors)?;
        Kind::Llama
    } else if let Some(c) = model.get::<CalmConfig>() {
        let (ae, _) = models::load_autoencoder(&here, Which::Best, &tokenizer, cpu)?;
        let own = export.origin.autoencoder.clone().unwrap_or_default();
        let config = write_autoencoder(&own.config, &c.autoencoder, c.chunk_size, vocab, ids);
        export.check_autoencoder(c, ids.bos);
        if run.checkpoints(Stage::Lm).latest()?.is_none() {
            let tensors = export.named(&ae.store, "", &[&own])?;
            export.write(&options.out, config, tensors)?;
            Kind::Autoencoder
        } else {
            export.check_head(&c.head);
            let lm = models::load_lm(&here, options.which, &tokenizer, cpu)?;
            let part = export.origin.model.clone().unwrap_or_default();
            // A language model that came without its autoencoder's folder recorded the formats itself.
            let inner = within(&part);
            let tensors = export.named(&ae.store, "", &[&own, &inner])?;
            export.write(&options.out.join(AE_FOLDER), config, tensors)?;
            let mut tensors = export.named(lm.store(), "", &[&part])?;
            tensors.extend(export.named(&ae.store, AE_PREFIX, &[&inner, &own])?);
            export.write(&options.out, write_calm(&part.config, c, vocab, ids, context), tensors)?;
            export
                .notes
                .push(format!("ae_path is {AE_FOLDER}: the reference looks for it from its working folder"));
            Kind::of_head(&c.head)
        }
    } else {
        return Err(Error::user(
            format!("{} has no published form", model.title()),
            "its checkpoints are safetensors already: RUN/lm/step-N/model.safetensors",
        ));
    };
    let text = run.folder.join("tokenizer.json");
    let copy = options.out.join("tokenizer.json");
    fs::copy(&text, &copy).map_err(|e| Error::io("write", &copy, e))?;
    export.files.push(copy);
    if run.config.bos_chunk && kind != Kind::Autoencoder {
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
    Ok(ExportReport { kind, files: export.files, tensors: export.tensors, notes: export.notes })
}

/// The record of the autoencoder's tensors in a language model's file.
fn within(part: &OriginPart) -> OriginPart {
    let strip = |(n, d): (&String, &String)| Some((n.strip_prefix(AE_PREFIX)?.to_owned(), d.clone()));
    OriginPart { config: Map::new(), dtypes: part.dtypes.iter().filter_map(strip).collect() }
}

struct Export {
    origin: Origin,
    dtype: Option<DType>,
    files: Vec<PathBuf>,
    tensors: usize,
    rounded: usize,
    notes: Vec<String>,
}

impl Export {
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

    fn write(
        &mut self,
        folder: &Path,
        mut config: Map<String, Value>,
        tensors: BTreeMap<String, Tensor>,
    ) -> Result<()> {
        fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
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
        write_json(&settings, &config)?;
        self.tensors += tensors.len();
        self.files.extend([settings, weights]);
        Ok(())
    }

    /// Settings of a head that the reference has as constants.
    fn check_head(&mut self, head: &HeadConfig) {
        if let Some(e) = head.get::<EnergyConfig>().filter(|e| e.targets != REFERENCE_TARGETS) {
            let targets = e.targets;
            self.notes
                .push(format!("targets {targets} is not exported: the reference draws {REFERENCE_TARGETS}"));
        }
        if head.get::<FlowConfig>().is_some_and(|f| f.time != FlowTime::Floor) {
            self.notes.push(
                "the reference tells a flow's net floor(1000 t), not 1000 t: its samples differ".into(),
            );
        }
    }

    /// Settings of the autoencoder that the reference has as constants; they matter to further training only.
    fn check_autoencoder(&mut self, c: &CalmConfig, bos: u32) {
        let a = &c.autoencoder;
        if a.token_dropout != a.latent_dropout {
            self.notes.push(format!(
                "latent_dropout {} is not exported: the reference has one ae_dropout, {}",
                a.latent_dropout, a.token_dropout
            ));
        }
        let dropped = a.dropped_token_id.unwrap_or(bos);
        if dropped != 0 {
            self.notes.push(format!("dropped_token_id {dropped} is not exported: the reference uses 0"));
        }
    }
}

/// Whether a narrower copy holds the same values.
fn same(narrow: &Tensor, wide: &Tensor) -> Result<bool> {
    let back = narrow.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let wide = wide.flatten_all()?.to_vec1::<f32>()?;
    Ok(back.iter().zip(&wide).all(|(a, b)| a.to_bits() == b.to_bits()))
}
