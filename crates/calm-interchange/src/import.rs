//! A published folder becomes a run.

use std::fs;
use std::path::{Path, PathBuf};

use calm_autoencoder::{Autoencoder, AutoencoderConfig};
use calm_data::{DataConfig, Llama3Config, Source, Tokenizer, TokenizerConfig, Vocabulary, llama3};
use calm_lm::{BackboneConfig, BaselineConfig, CalmConfig, HeadConfig, TextFormat};
use calm_nn::{AdamWConfig, ParamStore, Precision};
use candle_core::{DType, Device};
use serde_json::{Map, Value};

use super::config::{self, Common, Ids, Keys, Kind};
use super::merge::{Place, fill};
use super::read::{Weights, has_weights, read_config, read_weights_folder};
use super::{AE_PREFIX, Findings, Origin, OriginPart, require_empty};
use calm_config::{ConfigText, Resolved, load};
use calm_eval::EvalConfig;
use calm_run::checkpoint::file_hash;
use calm_run::config::{ModelConfig, RunConfig, Schedule, StageConfig, TrainConfig};
use calm_run::{Begin, Error, Provenance, Result, Run, RunRecord, Stage};
use calm_train::models::special_ids;

/// Where an imported model's tokenizer comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenizerFrom {
    /// A `tokenizer.json`.
    File(PathBuf),
    /// Llama-3 BPE ranks.
    Llama3(Llama3Config),
}

/// What to import, and where to.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The published folder.
    pub folder: PathBuf,
    /// The run's folder, empty or new.
    pub out: PathBuf,
    /// The tokenizer; none: `tokenizer.json` in the folder.
    pub tokenizer: Option<TokenizerFrom>,
    /// A CALM's autoencoder; none: the folder that `ae_path` names, and `ae_model.*` of the weights.
    pub autoencoder: Option<PathBuf>,
    /// Text for evaluation and further training; none: the default corpus.
    pub data: Option<PathBuf>,
    /// Who does it.
    pub provenance: Provenance,
}

/// What an import did.
#[derive(Clone, Debug)]
pub struct ImportReport {
    /// What the folder held.
    pub kind: Kind,
    /// Stages with their numbers of parameters.
    pub stages: Vec<(Stage, usize)>,
    /// Files the weights came from.
    pub files: Vec<PathBuf>,
    /// What a user should know.
    pub notes: Vec<String>,
}

/// A folder's configuration and weights.
struct Part {
    label: String,
    config: Map<String, Value>,
    weights: Weights,
}

impl Part {
    fn read(folder: &Path) -> Result<Self> {
        let config = read_config(folder)?;
        let weights = read_weights_folder(folder)?;
        Ok(Self { label: folder.join("config.json").display().to_string(), config, weights })
    }
}

/// Imports a published folder as a run.
///
/// # Errors
/// Everything that does not fit, together: configuration, tokenizer, names, shapes and number formats of all
/// tensors, aliases that disagree. Nothing is written then.
pub fn import(options: &ImportOptions) -> Result<ImportReport> {
    require_empty(&options.out)?;
    let mut findings = Findings::default();
    let part = Part::read(&options.folder)?;
    let kind = Kind::of_config(&part.label, &part.config, &mut findings);
    let Some(kind) = kind else {
        return Err(refuse(&options.folder, findings));
    };
    findings.problems.extend(part.weights.problems.iter().cloned());
    let plan = match kind {
        Kind::Autoencoder => ImportPlan::autoencoder(part, &mut findings),
        Kind::Llama => ImportPlan::baseline(part, &mut findings),
        Kind::Energy | Kind::Flow | Kind::Diffusion => ImportPlan::calm(part, kind, options, &mut findings)?,
    };
    // Without sound sizes there is no model to compare the tensors with.
    let comparable = findings.problems.is_empty();
    plan.agree(&mut findings);
    let tokenizer = find_tokenizer(options, &mut findings);
    let vocabulary = plan.vocabulary(tokenizer.as_ref(), &mut findings);
    let config = plan.run_config(vocabulary, tokenizer.as_ref(), options);
    let resolved = resolve(&config, &mut findings)?;
    let built = match &resolved {
        Some(_) if comparable => Some(plan.build(&config, vocabulary, &mut findings)?),
        _ => None,
    };
    match (resolved, built, tokenizer) {
        (Some(resolved), Some(built), Some(tokenizer)) if findings.problems.is_empty() => {
            write(&plan, &resolved, &built, &tokenizer, options)?;
            Ok(ImportReport {
                kind,
                stages: built.iter().map(|(stage, store)| (*stage, store.element_count())).collect(),
                files: plan.files(),
                notes: findings.notes,
            })
        }
        _ => Err(refuse(&options.folder, findings)),
    }
}

fn refuse(folder: &Path, findings: Findings) -> Error {
    let n = findings.problems.len();
    Error::user(
        format!(
            "{} cannot be imported, {n} {}:\n  {}",
            folder.display(),
            if n == 1 { "problem" } else { "problems" },
            findings.problems.join("\n  ")
        ),
        "config.json, weights and tokenizer must belong to one model of a supported kind",
    )
}

/// Everything that was read, before it is checked against a model.
struct ImportPlan {
    kind: Kind,
    /// The language model.
    model: Option<(Part, LmPlan)>,
    /// The autoencoder with its own sizes.
    autoencoder: Option<AutoencoderPlan>,
}

struct LmPlan {
    vocab_size: usize,
    ids: Ids,
    backbone: BackboneConfig,
    /// Sizes that must be those of the autoencoder, and the head.
    calm: Option<(Common, HeadConfig)>,
    context: usize,
}

struct AutoencoderPlan {
    /// Its own folder; none: `ae_model.*` of the language model alone.
    part: Option<Part>,
    common: Common,
    config: AutoencoderConfig,
}

impl ImportPlan {
    fn autoencoder(part: Part, findings: &mut Findings) -> Self {
        let mut keys = Keys::new(&part.label, &part.config, findings);
        let (common, config) = config::autoencoder(&mut keys);
        keys.finish();
        let autoencoder = Some(AutoencoderPlan { part: Some(part), common, config });
        findings.note(
            "an autoencoder alone: the language model of this run is a default that is not trained yet",
        );
        Self { kind: Kind::Autoencoder, model: None, autoencoder }
    }

    fn baseline(part: Part, findings: &mut Findings) -> Self {
        let mut keys = Keys::new(&part.label, &part.config, findings);
        let (vocab_size, ids, backbone, context) = config::llama(&mut keys);
        keys.finish();
        let lm = LmPlan { vocab_size, ids, backbone, calm: None, context };
        Self { kind: Kind::Llama, model: Some((part, lm)), autoencoder: None }
    }

    fn calm(part: Part, kind: Kind, options: &ImportOptions, findings: &mut Findings) -> Result<Self> {
        let mut keys = Keys::new(&part.label, &part.config, findings);
        let (common, backbone, head, context) = config::calm(&mut keys, kind);
        keys.finish();
        let autoencoder = match autoencoder_folder(options, &part.config, findings) {
            Some(folder) => {
                let own = Part::read(&folder)?;
                findings.problems.extend(own.weights.problems.iter().cloned());
                if Kind::of_config(&own.label, &own.config, findings).is_some_and(|k| k != Kind::Autoencoder)
                {
                    findings.problem(format!("{}: this is not an autoencoder", own.label));
                }
                let mut keys = Keys::new(&own.label, &own.config, findings);
                let (common, config) = config::autoencoder(&mut keys);
                keys.finish();
                Some(AutoencoderPlan { part: Some(own), common, config })
            }
            None => infer_autoencoder(&part.weights, common, findings).map(|config| AutoencoderPlan {
                part: None,
                common,
                config,
            }),
        };
        let lm = LmPlan {
            vocab_size: common.vocab_size,
            ids: common.ids,
            backbone,
            calm: Some((common, head)),
            context,
        };
        Ok(Self { kind, model: Some((part, lm)), autoencoder })
    }

    fn vocab_size(&self) -> usize {
        match (&self.model, &self.autoencoder) {
            (Some((_, lm)), _) => lm.vocab_size,
            (None, Some(a)) => a.common.vocab_size,
            (None, None) => 1,
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        let own = self.autoencoder.iter().filter_map(|a| a.part.as_ref());
        let parts = self.model.iter().map(|m| &m.0).chain(own);
        parts.flat_map(|p| p.weights.files.clone()).collect()
    }

    /// A language model and its autoencoder share three sizes.
    fn agree(&self, findings: &mut Findings) {
        let (Some((part, lm)), Some(a)) = (&self.model, &self.autoencoder) else { return };
        let (Some((c, _)), Some(own)) = (&lm.calm, &a.part) else { return };
        for (key, ours, theirs) in [
            ("vocab_size", c.vocab_size, a.common.vocab_size),
            ("patch_size", c.chunk_size, a.common.chunk_size),
            ("latent_size", c.latent_size, a.common.latent_size),
        ] {
            if ours != theirs {
                findings.problem(format!("{key} is {ours} in {} and {theirs} in {}", part.label, own.label));
            }
        }
    }

    /// The model's ids, checked against the tokenizer.
    fn vocabulary(&self, tokenizer: Option<&(Tokenizer, String)>, findings: &mut Findings) -> Vocabulary {
        let size = self.vocab_size();
        let ids = match (&self.model, &self.autoencoder) {
            (Some((_, lm)), _) => lm.ids,
            (None, Some(a)) => a.common.ids,
            (None, None) => Ids::default(),
        };
        let own = tokenizer.map(|t| t.0.special());
        let mut choose = |name: &str, id: Option<u32>, own: Option<u32>, fallback: u32| match (id, own) {
            (Some(id), _) => id,
            (None, Some(own)) if (own as usize) < size => {
                findings.note(format!("config.json names no {name}: the tokenizer's, {own}, is used"));
                own
            }
            _ => fallback,
        };
        let bos = choose("bos_token_id", ids.bos, own.map(|s| s.bos), 0);
        let eos = choose("eos_token_id", ids.eos, own.map(|s| s.eos), 0);
        // Llama models are often published with PAD = EOS. Theirs never is a target: any other id serves.
        let shared = self.kind == Kind::Llama && ids.pad == Some(eos);
        let pad = choose("pad_token_id", ids.pad.filter(|_| !shared), own.map(|s| s.pad), bos);
        if ids.pad.is_none_or(|p| p != pad) && pad == bos {
            findings.note(format!("there is no PAD in the vocabulary: BOS, {bos}, fills up rows"));
        }
        let vocabulary = Vocabulary { size, bos, eos, pad };
        if let Some((tokenizer, label)) = tokenizer {
            for problem in tokenizer.vocabulary_problems(vocabulary) {
                findings.problem(format!("{label}: {problem}"));
            }
        }
        vocabulary
    }

    fn run_config(
        &self,
        vocabulary: Vocabulary,
        tokenizer: Option<&(Tokenizer, String)>,
        options: &ImportOptions,
    ) -> RunConfig {
        let stage = |context: usize| StageConfig {
            steps: 1000,
            batch_rows: 8,
            context,
            accumulation: 1,
            recompute: false,
            learning_rate: 3e-4,
            warmup_steps: 100,
            schedule: Schedule::default(),
            adamw: AdamWConfig::default(),
            clip_norm: 1.0,
            eval_every: 0,
            checkpoint_every: 0,
            log_every: 10,
        };
        let context = self.model.as_ref().map_or(512, |(_, lm)| lm.context);
        let (model, autoencoder): (ModelConfig, _) = match (&self.model, &self.autoencoder) {
            (Some((_, LmPlan { backbone, calm: None, .. })), _) => {
                (BaselineConfig { backbone: backbone.clone() }.into(), None)
            }
            (model, autoencoder) => {
                let lm = model.as_ref().map(|m| &m.1);
                let sizes = autoencoder.as_ref().map(|a| a.common.chunk_size);
                let calm = CalmConfig {
                    chunk_size: sizes
                        .or(lm.and_then(|l| l.calm.as_ref()).map(|c| c.0.chunk_size))
                        .unwrap_or(1),
                    autoencoder: autoencoder.as_ref().map(|a| a.config.clone()).unwrap_or_default(),
                    backbone: lm.map(|l| l.backbone.clone()).unwrap_or_default(),
                    head: lm.and_then(|l| l.calm.as_ref()).map(|c| c.1.clone()).unwrap_or_default(),
                };
                (calm.into(), Some(stage(context.min(512))))
            }
        };
        let own = tokenizer.map(|t| {
            let s = t.0.special();
            Vocabulary { size: t.0.vocab_size(), bos: s.bos, eos: s.eos, pad: s.pad }
        });
        RunConfig {
            version: 1,
            description: format!(
                "{} imported from {}; train and data are placeholders",
                self.kind.architecture(),
                options.folder.display()
            ),
            seed: 1,
            precision: Precision::F32,
            data: DataConfig {
                source: options.data.clone().map_or_else(Source::default, Source::Path),
                ..DataConfig::default()
            },
            tokenizer: TokenizerConfig::File(options.out.join("tokenizer.json")),
            vocabulary: (own != Some(vocabulary)).then_some(vocabulary),
            // The reference predicts nothing from a start of document.
            bos_chunk: false,
            model,
            train: TrainConfig { autoencoder, lm: stage(context) },
            eval: EvalConfig::default(),
        }
    }

    /// Models with the tensors in their stores; every mismatch becomes a problem.
    fn build(
        &self,
        config: &RunConfig,
        vocabulary: Vocabulary,
        findings: &mut Findings,
    ) -> Result<Vec<(Stage, ParamStore)>> {
        let new_store = || ParamStore::new(&Device::Cpu, DType::F32, config.seed);
        // Impossible ids are reported already; sizes can still be compared.
        let valid = |id: u32| if (id as usize) < vocabulary.size { id } else { 0 };
        let special = calm_data::SpecialTokens {
            bos: valid(vocabulary.bos),
            eos: valid(vocabulary.eos),
            pad: valid(vocabulary.pad),
        };
        let mut built = Vec::new();
        let mut autoencoder = None;
        if let (Some(a), Some(settings)) = (&self.autoencoder, config.model.autoencoder()) {
            let store = new_store();
            let (k, v) = (config.chunk_size(), a.common.vocab_size);
            autoencoder = Some(Autoencoder::with_store(&store, settings, k, v, special.bos)?);
            let mut places = Vec::new();
            places.extend(
                self.model.iter().map(|(part, _)| place(part, AE_PREFIX)).filter(|p| !p.1.is_empty()),
            );
            places.extend(a.part.iter().map(|part| place(part, "")));
            fill(&store, &places, findings)?;
            built.push((Stage::Autoencoder, store));
        }
        let complete = autoencoder.is_some() || config.model.autoencoder().is_none();
        if let Some((part, lm)) = self.model.as_ref().filter(|_| complete) {
            let store = new_store();
            let text = TextFormat {
                vocab_size: lm.vocab_size,
                special: special_ids(special),
                context: lm.context,
                bos_chunk: false,
            };
            config.model.build(&store, &text, autoencoder)?;
            let (label, mut tensors) = place(part, "");
            if config.model.autoencoder().is_some() {
                tensors.retain(|name, _| !name.starts_with(AE_PREFIX));
            }
            fill(&store, &[(label, tensors)], findings)?;
            built.push((Stage::Lm, store));
        }
        Ok(built)
    }
}

/// The tensors of a folder whose names start with `prefix`, without it.
fn place<'a>(part: &'a Part, prefix: &str) -> Place<'a> {
    let tensors =
        part.weights.tensors.iter().filter_map(|(n, t)| Some((n.strip_prefix(prefix)?, t))).collect();
    let file = part.weights.files.first().map(|f| f.display().to_string()).unwrap_or_default();
    (format!("{file}: {prefix}"), tensors)
}

/// Where a CALM's autoencoder lies: as asked, or as `ae_path` says, from the folder or from here.
fn autoencoder_folder(
    options: &ImportOptions,
    config: &Map<String, Value>,
    findings: &mut Findings,
) -> Option<PathBuf> {
    if let Some(folder) = &options.autoencoder {
        return Some(folder.clone());
    }
    let path = Path::new(config.get("ae_path")?.as_str()?);
    let found = [options.folder.join(path), path.to_owned()].into_iter().find(|f| has_weights(f));
    if found.is_none() {
        findings.note(format!(
            "ae_path {} is not there: the autoencoder is read from {AE_PREFIX}*",
            path.display()
        ));
    }
    found
}

/// Sizes of an autoencoder that comes without its configuration, from the shapes of its tensors.
fn infer_autoencoder(
    weights: &Weights,
    common: Common,
    findings: &mut Findings,
) -> Option<AutoencoderConfig> {
    let dims = |name: &str| weights.tensors.get(&format!("{AE_PREFIX}{name}")).map(|t| t.dims().to_vec());
    let layers = |half: &str| {
        let prefix = format!("{AE_PREFIX}{half}.{half}_layers.");
        let index = |n: &String| n.strip_prefix(&prefix)?.split('.').next()?.parse::<usize>().ok();
        weights.tensors.keys().filter_map(index).max().map_or(0, |n| n + 1)
    };
    let table = dims("encoder.embed_tokens.weight").or_else(|| dims("decoder.lm_head_weight"));
    let gate = dims("encoder.encoder_layers.0.mlp.gate_proj.weight");
    let (Some([_, hidden]), Some([wide, _])) = (table.as_deref(), gate.as_deref()) else {
        findings.problem(format!(
            "there is no autoencoder: neither its folder (ae_path, --autoencoder) nor {AE_PREFIX}* in the weights"
        ));
        return None;
    };
    findings.note(format!(
        "the autoencoder's sizes come from {AE_PREFIX}*; dropout and KL settings are the published defaults"
    ));
    Some(AutoencoderConfig {
        latent_size: Some(common.latent_size),
        hidden_size: *hidden,
        intermediate_size: *wide,
        encoder_layers: layers("encoder"),
        decoder_layers: layers("decoder"),
        dropped_token_id: Some(0),
        ..AutoencoderConfig::default()
    })
}

fn find_tokenizer(options: &ImportOptions, findings: &mut Findings) -> Option<(Tokenizer, String)> {
    let beside = options.folder.join("tokenizer.json");
    let (label, loaded) = match &options.tokenizer {
        Some(TokenizerFrom::File(path)) => (path.display().to_string(), Tokenizer::load(path)),
        Some(TokenizerFrom::Llama3(c)) => (c.ranks.display().to_string(), llama3::load(c)),
        None if beside.is_file() => (beside.display().to_string(), Tokenizer::load(&beside)),
        None => {
            findings.problem("there is no tokenizer: give --tokenizer tokenizer.json or --llama3 RANKS");
            return None;
        }
    };
    match loaded {
        Ok(tokenizer) => Some((tokenizer, label)),
        Err(e) => {
            findings.problem(e.to_string());
            None
        }
    }
}

/// The run's configuration as `calm train` would read it; what it refuses becomes problems.
fn resolve(config: &RunConfig, findings: &mut Findings) -> Result<Option<Resolved<RunConfig>>> {
    let text = serde_json::to_value(config)
        .map_err(|e| e.to_string())
        .and_then(|tree| serde_yaml::to_string(&tree).map_err(|e| e.to_string()))
        .map_err(|e| Error::user(format!("cannot write the run's configuration: {e}"), ""))?;
    match load::<RunConfig>(ConfigText::new("the run's configuration", text), &[]) {
        Ok(resolved) => Ok(Some(resolved)),
        Err(e) => {
            findings.problem(e.to_string().trim_end().replace('\n', "\n  "));
            Ok(None)
        }
    }
}

fn write(
    plan: &ImportPlan,
    resolved: &Resolved<RunConfig>,
    built: &[(Stage, ParamStore)],
    tokenizer: &(Tokenizer, String),
    options: &ImportOptions,
) -> Result<()> {
    let run = Run::create(&options.out, resolved, Begin::New)?;
    let attempt = || -> Result<()> {
        tokenizer.0.save(&run.folder.join("tokenizer.json"))?;
        let record = RunRecord {
            history: vec![options.provenance.clone()],
            tokenizer_hash: tokenizer.0.hash(),
            vocab_size: plan.vocab_size(),
            corpus: format!("none yet: imported from {}", options.folder.display()),
            platform: format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH),
            threads: candle_core::utils::get_num_threads(),
            ..RunRecord::default()
        };
        let mut autoencoder = None;
        for (stage, store) in built {
            let mut metadata = run.metadata(*stage, &record);
            if let Some(hash) = autoencoder.take() {
                metadata.insert("autoencoder".into(), hash);
            }
            let checkpoints = run.checkpoints(*stage);
            checkpoints.save_imported(store, &metadata)?;
            autoencoder = Some(file_hash(&checkpoints.model_path(0))?);
        }
        let own = plan.autoencoder.as_ref().and_then(|a| a.part.as_ref());
        let origin = |part: &Part| OriginPart::new(part.config.clone(), Some(&part.weights));
        Origin { model: plan.model.as_ref().map(|m| origin(&m.0)), autoencoder: own.map(origin) }
            .write(&run.folder)?;
        run.write_record(&record)
    };
    // Half an import is none: the folder was empty before.
    attempt().inspect_err(|_| {
        let _ = fs::remove_dir_all(&run.folder);
    })
}
