//! A published folder becomes a run.

use std::path::PathBuf;

use calm_autoencoder::Autoencoder;
use calm_data::{DataConfig, Llama3Config, Source, Tokenizer, TokenizerConfig, Vocabulary, llama3};
use calm_lm::family::PublishedFamily;
use calm_lm::published::autoencoder;
use calm_lm::published::{Findings, Keys, Names, PublishedText};
use calm_lm::{ModelConfig, TextFormat};
use calm_nn::{AdamWConfig, ParamStore, Precision};
use candle_core::{DType, Device};

use super::find::{Found, families};
use super::merge::fill;
use super::parts::{AutoencoderPlan, Folders, Part, find_autoencoder, place};
use super::{AE_PREFIX, Origin, OriginPart, require_empty, sizes};
use calm_config::{ConfigText, Resolved, load};
use calm_eval::EvalConfig;
use calm_run::config::{Reduction, RunConfig, Schedule, Shard, StageConfig, TrainConfig};
use calm_run::divergence::DivergenceConfig;
use calm_run::{Begin, Error, Lock, Provenance, Result, Run, RunRecord, Stage};
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
    /// A language model's autoencoder; none: the folder that `ae_path` names, and `ae_model.*` of the weights.
    pub autoencoder: Option<PathBuf>,
    /// Text for evaluation and further training; none: the default corpus.
    pub data: Option<PathBuf>,
    /// Where the folder is from, for people; none: its path.
    pub from: Option<String>,
    /// Who does it.
    pub provenance: Provenance,
}

impl ImportOptions {
    fn from(&self) -> String {
        self.from.clone().unwrap_or_else(|| self.folder.display().to_string())
    }
}

/// What an import did.
#[derive(Clone, Debug)]
pub struct ImportReport {
    /// What the folder held: `architectures` of its `config.json`.
    pub architecture: &'static str,
    /// Stages with their numbers of parameters.
    pub stages: Vec<(Stage, usize)>,
    /// Files the weights came from.
    pub files: Vec<PathBuf>,
    /// What a user should know.
    pub notes: Vec<String>,
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
    let found = Found::in_config(&part.label, &part.config, &mut findings);
    let Some(found) = found else {
        return Err(refuse(&options.from(), findings));
    };
    part.report(&mut findings);
    let plan = match found {
        Found::Autoencoder => ImportPlan::autoencoder(part, &mut findings)?,
        Found::Model(names, family) => ImportPlan::model(part, names, family, options, &mut findings)?,
    };
    // Without sound sizes there is no model to compare the tensors with.
    let comparable = findings.problems.is_empty() && plan.of_the_weights_size(&mut findings);
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
                architecture: plan.architecture,
                stages: built.iter().map(|(stage, store)| (*stage, store.element_count())).collect(),
                files: plan.files(),
                notes: findings.notes,
            })
        }
        _ => Err(refuse(&options.from(), findings)),
    }
}

fn refuse(from: &str, findings: Findings) -> Error {
    let n = findings.problems.len();
    Error::user(
        format!(
            "{from} cannot be imported, {n} {}:\n  {}",
            if n == 1 { "problem" } else { "problems" },
            findings.problems.join("\n  ")
        ),
        "config.json, weights and tokenizer must belong to one model of a supported kind",
    )
}

/// Everything that was read, before it is checked against a model.
struct ImportPlan {
    architecture: &'static str,
    /// The language model's text, or that of an autoencoder alone.
    text: PublishedText,
    /// The language model's settings, on the autoencoder that was found.
    settings: ModelConfig,
    model: Option<LmPlan>,
    autoencoder: Option<AutoencoderPlan>,
}

struct LmPlan {
    part: Part,
    context: usize,
    /// Sizes that must be those of the autoencoder, as its own folder names them.
    sizes: [(&'static str, usize); 3],
}

/// The sizes that a language model and its autoencoder share.
fn sizes(text: PublishedText, chunk_size: usize, latent_size: usize) -> [(&'static str, usize); 3] {
    [("vocab_size", text.vocab_size), ("patch_size", chunk_size), ("latent_size", latent_size)]
}

impl ImportPlan {
    fn autoencoder(part: Part, findings: &mut Findings) -> Result<Self> {
        let mut keys = Keys::new(&part.label, &part.config, findings);
        let published = autoencoder::read(&mut keys);
        keys.finish();
        let Some(around) = families().into_iter().find_map(|family| family.around) else {
            return Err(Error::user(
                "no family of models here is built on an autoencoder",
                "add one to the registry, or import a whole model",
            ));
        };
        findings.note(
            "an autoencoder alone: the language model of this run is a default that is not trained yet",
        );
        Ok(Self {
            architecture: autoencoder::NAMES.architecture,
            text: published.text,
            settings: around(published.chunk_size, &published.config),
            model: None,
            autoencoder: Some(AutoencoderPlan { part: Some(part), published }),
        })
    }

    fn model(
        part: Part,
        names: Names,
        family: PublishedFamily,
        options: &ImportOptions,
        findings: &mut Findings,
    ) -> Result<Self> {
        let mut keys = Keys::new(&part.label, &part.config, findings);
        let text = keys.text();
        let mut settings = (family.read)(names, &mut keys);
        let context = keys.context();
        keys.finish();
        let chunk_size = settings.chunk_size();
        let latent_size = settings.autoencoder().map(|a| a.latent_size(chunk_size));
        let autoencoder = match latent_size {
            Some(latent_size) => {
                let folders = Folders {
                    model: &options.folder,
                    fetched: options.from.is_some(),
                    asked: options.autoencoder.as_deref(),
                };
                find_autoencoder(&part, text, chunk_size, latent_size, folders, findings)?
            }
            None => None,
        };
        if let Some(found) = autoencoder.as_ref().map(|a| &a.published) {
            settings = settings.on_autoencoder(found.chunk_size, &found.config).unwrap_or(settings);
        }
        let sizes = sizes(text, chunk_size, latent_size.unwrap_or_default());
        let model = Some(LmPlan { part, context, sizes });
        Ok(Self { architecture: names.architecture, text, settings, model, autoencoder })
    }

    /// The folders that were read.
    fn parts(&self) -> impl Iterator<Item = &Part> {
        let own = self.autoencoder.iter().filter_map(|a| a.part.as_ref());
        self.model.iter().map(|m| &m.part).chain(own)
    }

    /// Whether a model of these settings may be made in memory, to be compared with the tensors.
    fn of_the_weights_size(&self, findings: &mut Findings) -> bool {
        let read = self.parts().flat_map(|part| part.weights.tensors.values());
        let autoencoder = self
            .autoencoder
            .as_ref()
            .and_then(|a| Some((self.settings.autoencoder()?, a.published.chunk_size)));
        sizes::fit(
            self.model.is_some().then_some(&self.settings),
            autoencoder,
            self.text.vocab_size,
            read,
            findings,
        )
    }

    fn files(&self) -> Vec<PathBuf> {
        self.parts().flat_map(|p| p.weights.files.clone()).collect()
    }

    /// A language model and its autoencoder share three sizes.
    fn agree(&self, findings: &mut Findings) {
        let (Some(lm), Some(a)) = (&self.model, &self.autoencoder) else { return };
        let Some(own) = &a.part else { return };
        let of_autoencoder = a.published.config.latent_size(a.published.chunk_size);
        let theirs = sizes(a.published.text, a.published.chunk_size, of_autoencoder);
        for ((key, ours), (_, theirs)) in lm.sizes.into_iter().zip(theirs) {
            if ours != theirs {
                let (here, there) = (&lm.part.label, &own.label);
                findings.problem(format!("{key} is {ours} in {here} and {theirs} in {there}"));
            }
        }
    }

    /// The model's ids, checked against the tokenizer.
    fn vocabulary(&self, tokenizer: Option<&(Tokenizer, String)>, findings: &mut Findings) -> Vocabulary {
        let PublishedText { vocab_size: size, ids } = self.text;
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
        // Models of single tokens are often published with PAD = EOS. Theirs never is a target, since no chunk is
        // filled up with it: any other id serves.
        let tokens = self.settings.chunk_size() == 1 && self.settings.autoencoder().is_none();
        let shared = tokens && ids.pad == Some(eos);
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
            reduction: Reduction::default(),
            pieces: 8,
            shard: Shard::default(),
            overlap: true,
            recompute: false,
            learning_rate: 3e-4,
            warmup_steps: 100,
            schedule: Schedule::default(),
            adamw: AdamWConfig::default(),
            clip_norm: 1.0,
            eval_every: 0,
            checkpoint_every: 0,
            log_every: 10,
            divergence: DivergenceConfig::default(),
        };
        let context = self.model.as_ref().map_or(512, |lm| lm.context);
        let autoencoder = self.settings.autoencoder().map(|_| stage(context.min(512)));
        let own = tokenizer.map(|t| {
            let s = t.0.special();
            Vocabulary { size: t.0.vocab_size(), bos: s.bos, eos: s.eos, pad: s.pad }
        });
        RunConfig {
            version: 1,
            description: format!(
                "{} imported from {}; train and data are placeholders",
                self.architecture,
                options.from()
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
            model: self.settings.clone(),
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
            let (k, v) = (config.chunk_size(), a.published.text.vocab_size);
            autoencoder = Some(Autoencoder::with_store(&store, settings, k, v, special.bos)?);
            let mut places = Vec::new();
            let inside = self.model.iter().map(|lm| place(&lm.part, AE_PREFIX));
            places.extend(inside.filter(|p| !p.1.is_empty()));
            places.extend(a.part.iter().map(|part| place(part, "")));
            fill(&store, &places, findings)?;
            built.push((Stage::Autoencoder, store));
        }
        let complete = autoencoder.is_some() || config.model.autoencoder().is_none();
        if let Some(lm) = self.model.as_ref().filter(|_| complete) {
            let store = new_store();
            let text = TextFormat {
                vocab_size: self.text.vocab_size,
                special: special_ids(special),
                context: lm.context,
                bos_chunk: false,
            };
            config.model.build(&store, &text, autoencoder)?;
            let (label, mut tensors) = place(&lm.part, "");
            if config.model.autoencoder().is_some() {
                tensors.retain(|name, _| !name.starts_with(AE_PREFIX));
            }
            fill(&store, &[(label, tensors)], findings)?;
            built.push((Stage::Lm, store));
        }
        Ok(built)
    }
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
    let _lock = Lock::take(&options.out, &mut |_| {})?;
    let run = Run::create(&options.out, resolved, Begin::New)?;
    let attempt = || -> Result<()> {
        tokenizer.0.save(&run.folder.join("tokenizer.json"))?;
        let record = RunRecord {
            history: vec![options.provenance.clone()],
            tokenizer_hash: tokenizer.0.hash(),
            vocab_size: plan.text.vocab_size,
            corpus: format!("none yet: imported from {}", options.from()),
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
            autoencoder = Some(checkpoints.model_hash(0)?);
        }
        let own = plan.autoencoder.as_ref().and_then(|a| a.part.as_ref());
        let origin = |part: &Part| OriginPart::new(part.config.clone(), Some(&part.weights));
        Origin { model: plan.model.as_ref().map(|m| origin(&m.part)), autoencoder: own.map(origin) }
            .write(&run.folder)?;
        run.write_record(&record)
    };
    // Half an import is none: the folder was empty before.
    attempt().inspect_err(|_| {
        let _ = calm_files::remove(&run.folder);
    })
}
