//! From an ablation's file to the runs it asks for.

use std::path::{Path, PathBuf};

use calm_config::{ConfigErrors, ConfigText, Resolved, load};
use calm_eval::protocol::Protocol;
use calm_run::Run;
use calm_run::checked::{read_config, read_json, write_config, write_json};
use calm_run::config::RunConfig;
use calm_run::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::alignment;
use crate::config::{AblationConfig, Budget, Sharing};
use crate::settings::{autoencoder_key, differing_settings};

/// Warm-up takes at most a fifth of a run: a short budget must not end inside it.
const WARMUP_SHARE: u64 = 5;

/// Finds a configuration by name or path.
pub type Find<'a> = &'a dyn Fn(&str) -> std::result::Result<ConfigText, ConfigErrors>;

/// File of an ablation's folder with what was asked for.
pub const ABLATION: &str = "ablation.yaml";
/// File of an ablation's folder with the runs it has.
pub(crate) const PLAN: &str = "plan.json";
/// Folder of the autoencoders in an ablation's folder.
const AUTOENCODERS: &str = "autoencoders";

/// What [`PLAN`] holds; configurations lie in the runs' own folders.
#[derive(Serialize, Deserialize)]
struct Saved {
    variants: Vec<Variant>,
    /// Name, variants served.
    autoencoders: Vec<(String, Vec<String>)>,
    /// Name, variant, autoencoder.
    runs: Vec<(String, usize, Option<usize>)>,
}

/// Everything that an ablation trains.
#[derive(Clone, Debug)]
pub struct Ablation {
    /// Where it lies.
    pub folder: PathBuf,
    /// What was asked for.
    pub config: AblationConfig,
    /// The variants, grid combinations included, in the order of the file.
    pub variants: Vec<Variant>,
    /// The autoencoders that they need.
    pub autoencoders: Vec<SharedAutoencoder>,
    /// The runs: all variants from the first seed, then from the second, ...
    pub runs: Vec<PlannedRun>,
}

/// A configuration that is trained from every seed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Variant {
    /// Its name.
    pub name: String,
    /// Settings that are not the same for all variants.
    pub settings: Vec<(String, String)>,
}

/// An autoencoder that one or more runs need.
#[derive(Clone, Debug)]
pub struct SharedAutoencoder {
    /// Its name; its folder is `autoencoders/NAME`.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Configuration of the run that trains it.
    pub config: Resolved<RunConfig>,
    /// Variants that it serves.
    pub variants: Vec<String>,
}

/// One run.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// Which variant.
    pub variant: usize,
    /// Which autoencoder; none for a baseline.
    pub autoencoder: Option<usize>,
    /// Its name, which is that of its folder.
    pub name: String,
    /// Its folder.
    pub folder: PathBuf,
    /// Its configuration.
    pub config: Resolved<RunConfig>,
}

/// What a budget has to know of a variant.
pub trait BudgetFacts {
    /// V of a configuration's tokenizer.
    ///
    /// # Errors
    /// The tokenizer cannot be had, or does not fit the configuration.
    fn vocab_size(&mut self, config: &RunConfig) -> Result<usize>;

    /// Training tokens a second that these variants reach on this machine.
    ///
    /// # Errors
    /// They can be neither measured nor estimated; the user stopped the measurement.
    fn rates(&mut self, variants: &[(String, RunConfig)]) -> Result<Vec<f64>>;
}

impl Ablation {
    /// The plan of an ablation that lies in `folder`.
    ///
    /// # Errors
    /// A variant's configuration is wrong, or the variants do not compare.
    pub fn expand(
        config: &AblationConfig,
        folder: &Path,
        find: Find<'_>,
        facts: &mut dyn BudgetFacts,
    ) -> Result<Self> {
        let asked = named_apart(combinations(config))?;
        let mut drafts = Vec::new();
        let mut bases = Vec::new();
        for (name, base, overrides) in &asked {
            bases.push((name.clone(), load::<RunConfig>(find(base)?, overrides)?.value));
        }
        let rates = match config.budget {
            Budget::Seconds(_) => facts.rates(&bases)?,
            _ => vec![0.0; bases.len()],
        };
        for (i, (name, base, overrides)) in asked.iter().enumerate() {
            let budget = budget_overrides(config, name, &bases[i].1, rates[i], facts)?;
            let all: Vec<String> = overrides.iter().cloned().chain(budget).collect();
            drafts.push((name.clone(), base.clone(), all));
        }
        let mut ablation = Self {
            folder: folder.to_owned(),
            config: config.clone(),
            variants: Vec::new(),
            autoencoders: Vec::new(),
            runs: Vec::new(),
        };
        let mut keys: Vec<Value> = Vec::new();
        for (i, seed) in config.seeds.iter().enumerate() {
            for (variant, (name, base, overrides)) in drafts.iter().enumerate() {
                let seeded = |seed: u64| {
                    let mut all = overrides.clone();
                    all.push(format!("seed={seed}"));
                    load::<RunConfig>(find(base)?, &all)
                };
                let resolved = seeded(*seed)?;
                let autoencoder = match (resolved.value.model.autoencoder(), config.autoencoder) {
                    (None, _) => None,
                    (Some(_), Sharing::Own) => Some(resolved.clone()),
                    (Some(_), Sharing::Shared) => Some(seeded(config.seeds[0])?),
                };
                let autoencoder = autoencoder.map(|config| {
                    let key = autoencoder_key(&config.value);
                    let at = keys.iter().position(|k| *k == key).unwrap_or_else(|| {
                        let name = match ablation.config.autoencoder == Sharing::Own {
                            true => format!("{name}-seed{seed}"),
                            false => name.clone(),
                        };
                        let folder = folder.join(AUTOENCODERS).join(&name);
                        keys.push(key);
                        ablation.autoencoders.push(SharedAutoencoder {
                            name,
                            folder,
                            config,
                            variants: Vec::new(),
                        });
                        keys.len() - 1
                    });
                    if i == 0 || !ablation.autoencoders[at].variants.contains(name) {
                        ablation.autoencoders[at].variants.push(name.clone());
                    }
                    at
                });
                let run = format!("{name}-seed{seed}");
                let folder = folder.join(&run);
                ablation.runs.push(PlannedRun { variant, autoencoder, name: run, folder, config: resolved });
            }
        }
        let trees: Vec<&Value> = ablation.runs[..drafts.len()].iter().map(|r| &r.config.tree).collect();
        let settings = differing_settings(&trees);
        ablation.variants = drafts
            .into_iter()
            .zip(settings)
            .map(|((name, ..), settings)| Variant { name, settings })
            .collect();
        ablation
            .comparable("give all variants the same data and tokenizer, with `set` at the top of the file")?;
        alignment::check(&config.score, &ablation.configs())?;
        Ok(ablation)
    }

    /// Writes down which runs there are, so that the folder explains itself without the files it was made from.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self) -> Result<()> {
        let saved = Saved {
            variants: self.variants.clone(),
            autoencoders: self.autoencoders.iter().map(|a| (a.name.clone(), a.variants.clone())).collect(),
            runs: self.runs.iter().map(|r| (r.name.clone(), r.variant, r.autoencoder)).collect(),
        };
        write_json(&self.folder.join(PLAN), &saved)
    }

    /// Writes down what was asked for.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn save_config(&self, config: &Resolved<AblationConfig>) -> Result<()> {
        write_config(&self.folder.join(ABLATION), &config.to_yaml())
    }

    /// The ablation that lies in a folder, as it was begun: configurations are those of its runs.
    ///
    /// # Errors
    /// There is none, or it is damaged.
    pub fn open(folder: &Path) -> Result<Self> {
        let config = load::<AblationConfig>(read_config(&folder.join(ABLATION))?, &[])?.value;
        let path = folder.join(PLAN);
        let saved: Saved = read_json(&path, "run the ablation again to write it anew")?
            .ok_or_else(|| Error::io("read", &path, std::io::ErrorKind::NotFound.into()))?;
        let of = |folder: &Path| Run::resolved(folder);
        let mut ablation = Self {
            folder: folder.to_owned(),
            config,
            variants: saved.variants,
            autoencoders: Vec::new(),
            runs: Vec::new(),
        };
        for (name, variants) in saved.autoencoders {
            let folder = folder.join(AUTOENCODERS).join(&name);
            let config = of(&folder)?;
            ablation.autoencoders.push(SharedAutoencoder { name, folder, config, variants });
        }
        for (name, variant, autoencoder) in saved.runs {
            let folder = folder.join(&name);
            let config = of(&folder)?;
            ablation.runs.push(PlannedRun { variant, autoencoder, name, folder, config });
        }
        Ok(ablation)
    }

    /// Scores compare on the same text in the same tokens only.
    fn comparable(&self, remedy: &str) -> Result<()> {
        let Some(first) = self.runs.first() else { return Ok(()) };
        for run in &self.runs {
            // What was trained knows its text by its content, wherever it lies.
            let same_text = || {
                let hash = |run: &PlannedRun| {
                    let run = Run { folder: run.folder.clone(), config: run.config.value.clone() };
                    run.record().ok().flatten().map(|r| r.corpus_hash).filter(|hash| !hash.is_empty())
                };
                hash(first).is_some_and(|own| hash(run) == Some(own))
            };
            for (what, same) in [
                ("text", first.config.value.data == run.config.value.data || same_text()),
                ("tokenizer", first.config.value.tokenizer == run.config.value.tokenizer),
                ("vocabulary", first.config.value.vocabulary == run.config.value.vocabulary),
            ] {
                if !same {
                    return Err(Error::user(
                        format!(
                            "{} and {} have another {what}: their scores do not compare",
                            first.name, run.name
                        ),
                        remedy,
                    ));
                }
            }
        }
        Ok(())
    }

    /// Finished runs beside each other, as if one ablation had trained them: runs that differ in their seed alone
    /// are one variant. `folder` is where their comparison goes.
    ///
    /// # Errors
    /// They do not compare.
    pub fn of_runs(runs: &[Run], folder: &Path) -> Result<Self> {
        let mut ablation = Self {
            folder: folder.to_owned(),
            config: AblationConfig {
                version: 1,
                description: String::new(),
                budget: Budget::AsConfigured {},
                seeds: Vec::new(),
                autoencoder: Sharing::Own,
                validation: Default::default(),
                context_tokens: None,
                set: Map::new(),
                variants: Vec::new(),
                grid: Map::new(),
                score: Default::default(),
            },
            variants: Vec::new(),
            autoencoders: Vec::new(),
            runs: Vec::new(),
        };
        let mut trees: Vec<Value> = Vec::new();
        for run in runs {
            let config = Run::resolved(&run.folder)?;
            let name = run.folder.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            let mut tree = config.tree.clone();
            for key in ["seed", "eval", "description"] {
                tree[key] = Value::Null;
            }
            let variant = trees.iter().position(|t| *t == tree).unwrap_or_else(|| {
                trees.push(tree);
                let seed = format!("-seed{}", config.value.seed);
                let name = name.strip_suffix(&seed).unwrap_or(&name).to_owned();
                ablation.variants.push(Variant { name, settings: Vec::new() });
                trees.len() - 1
            });
            let seed = config.value.seed;
            if ablation.runs_of(variant).any(|r| r.config.value.seed == seed) {
                return Err(Error::user(
                    format!("{} is the same run as another one that was named", run.folder.display()),
                    "name each run once",
                ));
            }
            let autoencoder = config.value.model.autoencoder().is_some().then(|| {
                ablation.autoencoders.push(SharedAutoencoder {
                    name: name.clone(),
                    folder: run.folder.clone(),
                    config: config.clone(),
                    variants: vec![ablation.variants[variant].name.clone()],
                });
                ablation.autoencoders.len() - 1
            });
            let folder = run.folder.clone();
            ablation.runs.push(PlannedRun { variant, autoencoder, name, folder, config });
        }
        ablation.runs.sort_by_key(|r| r.config.value.seed);
        ablation.config.seeds = ablation.runs_of(0).map(|r| r.config.value.seed).collect();
        let trees: Vec<Value> = (0..ablation.variants.len())
            .filter_map(|i| ablation.runs_of(i).next())
            .map(|r| r.config.tree.clone())
            .collect();
        let settings = differing_settings(&trees.iter().collect::<Vec<_>>());
        ablation.variants.iter_mut().zip(settings).for_each(|(v, s)| v.settings = s);
        ablation.comparable(
            "name runs of one text and one tokenizer, or train one of them anew on the other's",
        )?;
        Ok(ablation)
    }

    /// The runs of a variant.
    pub fn runs_of(&self, variant: usize) -> impl Iterator<Item = &PlannedRun> {
        self.runs.iter().filter(move |r| r.variant == variant)
    }

    /// Where all runs are scored alike.
    ///
    /// # Errors
    /// The window holds no two positions.
    pub fn protocol(&self) -> Result<Protocol> {
        alignment::protocol(&self.config.score, &self.configs())
    }

    fn configs(&self) -> Vec<&RunConfig> {
        self.runs.iter().map(|r| &r.config.value).collect()
    }
}

/// Name, configuration, overrides.
type Combination = (String, String, Vec<String>);

/// Every variant and grid combination.
fn combinations(config: &AblationConfig) -> Vec<Combination> {
    let mut out = Vec::new();
    for variant in &config.variants {
        let mut settings = config.set.clone();
        settings.extend(variant.set.clone());
        let mut expanded: Vec<(String, Map<String, Value>)> = vec![(String::new(), settings)];
        if variant.grid {
            for (key, values) in &config.grid {
                let values = values.as_array().map(Vec::as_slice).unwrap_or_default();
                expanded = expanded
                    .iter()
                    .flat_map(|(suffix, settings)| {
                        values.iter().map(move |value| {
                            let mut settings = settings.clone();
                            settings.insert(key.clone(), value.clone());
                            (format!("{suffix}+{}={}", last_key(key), folder_name(value)), settings)
                        })
                    })
                    .collect();
            }
        }
        for (suffix, settings) in expanded {
            // One variant alone needs no name of its own before its grid's values.
            let name = match (config.variants.len(), suffix.strip_prefix('+')) {
                (1, Some(suffix)) => suffix.to_owned(),
                _ => format!("{}{suffix}", variant.name),
            };
            out.push((name, variant.config.clone(), settings.iter().map(override_text).collect()));
        }
    }
    out
}

/// Makes names of different variants different (values may look alike in a folder's name).
///
/// # Errors
/// The same variant twice.
fn named_apart(variants: Vec<Combination>) -> Result<Vec<Combination>> {
    let mut out: Vec<Combination> = Vec::new();
    for (name, base, overrides) in variants {
        if out.iter().any(|o| o.1 == base && o.2 == overrides) {
            return Err(Error::user(
                format!("{name} is there twice"),
                "list each variant, and each value of the grid, once",
            ));
        }
        let taken = |n: &str| out.iter().any(|o| o.0 == n);
        let free = (2..).map(|i| format!("{name}.{i}")).find(|n| !taken(n));
        let name = if taken(&name) { free.unwrap_or(name) } else { name };
        out.push((name, base, overrides));
    }
    Ok(out)
}

/// `key=value`, the value as JSON, which is YAML too.
fn override_text((key, value): (&String, &Value)) -> String {
    format!("{key}={value}")
}

fn last_key(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}

/// A value in a folder's name; of a choice, its name.
fn folder_name(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Object(map) if map.len() == 1 => map.keys().next().cloned().unwrap_or_default(),
        other => other.to_string(),
    };
    text.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' }).collect()
}

/// Steps, warm-up, validations and context of a variant under the budget.
fn budget_overrides(
    ablation: &AblationConfig,
    name: &str,
    config: &RunConfig,
    rate: f64,
    facts: &mut dyn BudgetFacts,
) -> Result<Vec<String>> {
    let mut config = config.clone();
    let mut out = Vec::new();
    let k = config.chunk_size();
    if let Some(tokens) = ablation.context_tokens {
        if tokens % k > 0 || tokens / k < 2 {
            return Err(Error::user(
                format!("{name}: a context of {tokens} tokens is not two or more whole chunks of {k}"),
                "make context_tokens a multiple of every chunk size",
            ));
        }
        config.train.lm.context = tokens / k;
        out.push(format!("train.lm.context={}", tokens / k));
        if config.train.autoencoder.is_some() {
            out.push(format!("train.autoencoder.context={}", tokens / k));
        }
    }
    let lm = &config.train.lm;
    let v = &ablation.validation;
    out.push(format!("eval.training_documents={}", v.documents));
    out.push(format!("eval.chunks_per_document={}", v.tokens.div_ceil(k)));
    let step = (lm.batch_rows * lm.context * k) as f64;
    let tokens = match ablation.budget {
        Budget::Tokens(tokens) => tokens,
        Budget::Flops(flops) => {
            let vocab = facts.vocab_size(&config)?;
            flops / config.model.training_flops(vocab, lm.context).total()
        }
        Budget::Seconds(seconds) => seconds * rate,
        Budget::AsConfigured {} => lm.steps as f64 * step,
    };
    let steps = (tokens / step).floor();
    if steps < 1.0 {
        return Err(Error::user(
            format!("{name}: the budget does not reach for one step of {step} tokens"),
            "raise the budget, or lower train.lm.batch_rows",
        ));
    }
    let steps = steps as u64;
    let every = steps.div_ceil(v.points).max(1);
    out.push(format!("train.lm.steps={steps}"));
    if ablation.budget != (Budget::AsConfigured {}) {
        out.push(format!("train.lm.warmup_steps={}", lm.warmup_steps.min(steps / WARMUP_SHARE)));
    }
    out.push(format!("train.lm.eval_every={every}"));
    out.push(format!("train.lm.checkpoint_every={every}"));
    Ok(out)
}

#[cfg(test)]
mod tests;
