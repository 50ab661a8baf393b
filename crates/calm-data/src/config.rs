//! What the `data` and `tokenizer` parts of a run's configuration say.
//!
//! Choices are written as a map with one key (`source: { path: text.txt }`), in YAML and in JSON;
//! unknown keys are errors. What a type cannot express is checked by `validate`.

use std::path::{Path, PathBuf};

use calm_config::Problems;
use schemars::JsonSchema;
use serde::de::value::MapAccessDeserializer;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_yaml::with::singleton_map;

use crate::chat::{Conversations, LossOn, Template};
use crate::source::settings::{Filter, HubSource, OnBadDocument};

/// Where the manifest of the default corpus lies, from the project folder.
pub const DEFAULT_MANIFEST: &str = "datasets/crates.yaml";

/// The smallest BPE vocabulary: 256 bytes and three special tokens.
pub const SMALLEST_BPE: usize = 259;

/// The text to train on and how it is divided.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Where the text comes from.
    pub source: Source,
    /// Which text is held out. Only for `path` sources: a crates manifest lists its held-out crates.
    pub validation: Validation,
    /// Train on at most so many bytes of text: whole documents, spread over the corpus. `null`: all.
    pub max_bytes: Option<u64>,
    /// The field of records, or the column of tables, that holds the text; a dot leads into a field. `null`: `text`, or
    /// what a dataset's manifest says.
    pub column: Option<String>,
    /// How a conversation becomes text, where `column` holds a list of messages (`role` and `content`, or `from` and
    /// `value`).
    pub template: Template,
    /// What the loss and the scores are taken on. With `answers` every document must be a conversation. What comes before it
    /// in a document is input, which `attention` of a model may read in both directions.
    pub loss_on: LossOn,
    /// Which documents are taken.
    pub filter: Filter,
    /// What to do about a document that cannot be read.
    pub on_bad_document: OnBadDocument,
}

/// Where the text comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", remote = "Self")]
pub enum Source {
    /// A manifest of crates whose sources are the text (see `datasets/README.md`).
    Crates(#[serde(deserialize_with = "path")] PathBuf),
    /// A text file, a folder of text files, or `.json`/`.jsonl` with a `text` field, each also `.gz`, `.zst`; or
    /// `.parquet` with a `text` column.
    Path(#[serde(deserialize_with = "path")] PathBuf),
    /// A data set of a Hugging Face hub, fetched when it is needed.
    Hub(HubSource),
    /// A published data set by its manifest: the name of one in `datasets/`, or a path.
    Dataset(#[serde(deserialize_with = "path")] PathBuf),
    /// Several sources, each with its weight.
    Mix(Vec<MixedSource>),
}

impl Source {
    /// What it is called in messages.
    pub fn name(&self) -> PathBuf {
        match self {
            Self::Crates(path) | Self::Path(path) | Self::Dataset(path) => path.clone(),
            Self::Hub(hub) => PathBuf::from(&hub.dataset),
            Self::Mix(parts) => parts.first().map_or_else(PathBuf::new, |part| part.source.name()),
        }
    }
}

/// One of several sources.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MixedSource {
    /// Where its text comes from; no mix itself.
    pub source: Source,
    /// How often its rows come, in proportion to the weights of the others.
    #[serde(default = "one")]
    pub weight: f64,
    /// Its field or column. `null`: that of `data.column`.
    #[serde(default)]
    pub column: Option<String>,
    /// Which of its documents are taken. `null`: as `data.filter` says.
    #[serde(default)]
    pub filter: Option<Filter>,
}

fn one() -> f64 {
    1.0
}

impl Default for Source {
    fn default() -> Self {
        Self::Crates(PathBuf::from(DEFAULT_MANIFEST))
    }
}

/// Which text is held out.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Validation {
    /// This share of the documents, chosen by a hash of their content: the same document is on the same
    /// side in every run, and equal documents are on the same side.
    Share(f64),
    /// Another file or folder: `{ path: held-out.txt }`; one that lies in the folder of `source` is not trained on.
    Path(ValidationPath),
    /// Another split of the same data set of a hub than `source.hub.split`: `{ split: validation }`.
    Split(ValidationSplit),
}

impl Default for Validation {
    fn default() -> Self {
        Self::Share(0.05)
    }
}

/// Held-out text that lies in a file or folder of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidationPath {
    /// The same kinds of files as the `path` source.
    #[serde(deserialize_with = "path")]
    pub path: PathBuf,
}

/// Held-out text that is a split of the source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidationSplit {
    /// Its name.
    pub split: String,
}

/// How text becomes token ids.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", remote = "Self")]
pub enum TokenizerConfig {
    /// Byte-level BPE, trained on the training split.
    Bpe(BpeConfig),
    /// One token a character of the training split; other characters as bytes.
    Chars(CharsConfig),
    /// A `tokenizer.json` of the Hugging Face tokenizers library.
    File(#[serde(deserialize_with = "path")] PathBuf),
    /// The Llama-3 tokenizer from its BPE ranks.
    Llama3(Llama3Config),
}

impl Default for TokenizerConfig {
    fn default() -> Self {
        Self::Bpe(BpeConfig::default())
    }
}

/// A byte-level BPE to train.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct BpeConfig {
    /// Size V of the vocabulary: 256 bytes, merges and the three special tokens. A small text may give fewer.
    pub vocab_size: usize,
    /// Learn the merges from at most so many bytes of the training text: whole documents, spread over it by their hash.
    /// 64 MiB if it is left away.
    #[serde(default = "sample_bytes", skip_serializing_if = "is_usual_sample")]
    pub sample_bytes: u64,
}

/// Learning takes several times the memory of its text.
fn sample_bytes() -> u64 {
    64 << 20
}

fn is_usual_sample(bytes: &u64) -> bool {
    *bytes == sample_bytes()
}

impl BpeConfig {
    /// A vocabulary of this size, learned from a sample of the usual size.
    pub fn of_size(vocab_size: usize) -> Self {
        Self { vocab_size, sample_bytes: sample_bytes() }
    }
}

impl Default for BpeConfig {
    fn default() -> Self {
        Self::of_size(1024)
    }
}

/// A character tokenizer has no options: write `chars: {}`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CharsConfig {}

/// The files of the Llama-3 tokenizer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Llama3Config {
    /// The BPE ranks (`tokenizer.model`): a base64 token and its rank on each line.
    #[serde(deserialize_with = "path")]
    pub ranks: PathBuf,
    /// `tokenizer_config.json` with the names of the special tokens. `null`: the published layout of 256.
    #[serde(default, deserialize_with = "path_or_none")]
    pub config: Option<PathBuf>,
}

/// A path as a person writes it: no shell has put the home folder in the place of `~/`.
fn path<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    PathBuf::deserialize(deserializer).map(|path| at_home(path, std::env::home_dir().as_deref()))
}

fn path_or_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    let path = Option::<PathBuf>::deserialize(deserializer)?;
    Ok(path.map(|path| at_home(path, std::env::home_dir().as_deref())))
}

fn at_home(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(below), Some(home)) if !home.as_os_str().is_empty() => home.join(below),
        _ => path,
    }
}

// YAML's own form of an enum is a tag (`!path text.txt`); these two give the map form everywhere.
macro_rules! as_map_with_one_key {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                struct Inner<'a>(&'a $type);
                impl Serialize for Inner<'_> {
                    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                        <$type>::serialize(self.0, serializer)
                    }
                }
                singleton_map::serialize(&Inner(self), serializer)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Inner($type);
                impl<'de> Deserialize<'de> for Inner {
                    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                        <$type>::deserialize(deserializer).map(Inner)
                    }
                }
                singleton_map::deserialize::<Inner, D>(deserializer).map(|inner| inner.0)
            }
        }
    };
}
as_map_with_one_key!(LossOn);
as_map_with_one_key!(Source);
as_map_with_one_key!(TokenizerConfig);

impl<'de> Deserialize<'de> for Validation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Validation;
            fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
                f.write_str(
                    "a share of the documents such as 0.05, { path: FILE_OR_FOLDER } or { split: NAME }",
                )
            }
            fn visit_f64<E>(self, share: f64) -> Result<Validation, E> {
                Ok(Validation::Share(share))
            }
            fn visit_u64<E>(self, share: u64) -> Result<Validation, E> {
                Ok(Validation::Share(share as f64))
            }
            fn visit_i64<E>(self, share: i64) -> Result<Validation, E> {
                Ok(Validation::Share(share as f64))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, map: A) -> Result<Validation, A::Error> {
                /// Both, of which one is given.
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Either {
                    #[serde(default, deserialize_with = "path_or_none")]
                    path: Option<PathBuf>,
                    split: Option<String>,
                }
                match Either::deserialize(MapAccessDeserializer::new(map))? {
                    Either { path: Some(path), split: None } => Ok(Validation::Path(ValidationPath { path })),
                    Either { path: None, split: Some(split) } => {
                        Ok(Validation::Split(ValidationSplit { split }))
                    }
                    _ => Err(serde::de::Error::custom("either `path` or `split` must be given")),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl DataConfig {
    /// Adds everything that is impossible here, without touching a file; key paths are relative to this block.
    pub fn validate(&self, problems: &mut Problems) {
        if let Validation::Share(share) = self.validation
            && !(share > 0.0 && share < 1.0)
        {
            problems
                .add("validation", format!("the held-out share is {share}, it must lie between 0 and 1"))
                .remedy("write a share such as 0.05, or { path: FILE } for a held-out file of its own");
        }
        if let (Source::Crates(_), Validation::Path(_)) = (&self.source, &self.validation) {
            problems
                .add("validation", "a crates manifest lists its held-out crates itself")
                .remedy("remove `validation`, or use `source: { path: ... }`");
        }
        self.validate_source(problems);
        self.template.validate(problems);
        self.filter.validate("filter", problems);
        self.loss_on.validate(problems);
        if self.max_bytes == Some(0) {
            problems.add("max_bytes", "0 bytes leave no training text").remedy("write null for all of it");
        }
    }
}

impl DataConfig {
    /// How its conversations are read.
    pub fn conversations(&self) -> Conversations {
        Conversations { template: self.template.clone(), loss_on: self.loss_on }
    }

    /// This text, for a model that was trained on that of `like`: conversations are written as there, the same of them
    /// counts, and bad documents are treated alike. Where answers alone count, the column is that of there if none is named.
    /// What a filter left out there is not left out here.
    #[must_use]
    pub fn read_like(self, like: &Self) -> Self {
        let theirs = || like.column.clone().filter(|_| like.loss_on == LossOn::Answers);
        Self {
            column: self.column.or_else(theirs),
            template: like.template.clone(),
            loss_on: like.loss_on,
            on_bad_document: like.on_bad_document,
            ..self
        }
    }

    fn validate_source(&self, problems: &mut Problems) {
        let share = "write a share such as 0.05, or { path: FILE }";
        if matches!(self.validation, Validation::Split(_)) && !matches!(self.source, Source::Hub(_)) {
            problems.add("validation", "only a source of a hub has splits").remedy(share);
        }
        if matches!(self.source, Source::Crates(_)) && (!self.filter.is_open() || self.column.is_some()) {
            problems
                .add("source", "a crates manifest is filtered when it is written, and has no columns")
                .remedy("remove `filter` and `column`, or use another source");
        }
        if let Source::Hub(hub) = &self.source
            && hub.config.is_some()
            && !hub.files.is_empty()
        {
            problems
                .add("source.hub.config", "a configuration names files, and so does `files`")
                .remedy("remove one of the two");
        }
        let crates = match &self.source {
            Source::Mix(parts) => parts.iter().any(|part| matches!(part.source, Source::Crates(_))),
            source => matches!(source, Source::Crates(_)),
        };
        if crates && self.loss_on == LossOn::Answers {
            problems
                .add("loss_on", "the sources of crates are no conversations, and have no answers")
                .remedy("write `loss_on: all`, or use a source of records with messages");
        }
        let Source::Mix(parts) = &self.source else { return };
        if parts.is_empty() {
            problems.add("source.mix", "a mix of no sources has no text").remedy("name at least one source");
        }
        for (n, part) in parts.iter().enumerate() {
            let at = format!("source.mix[{n}]");
            if !(part.weight > 0.0 && part.weight.is_finite()) {
                problems
                    .add(&format!("{at}.weight"), format!("a weight of {} is none", part.weight))
                    .remedy("write a number above 0, or remove the source");
            }
            if matches!(part.source, Source::Mix(_)) {
                problems
                    .add(&format!("{at}.source"), "is a mix itself: the sources of a mix stand in one list")
                    .remedy(
                        "name its sources in `data.source.mix`, each with its weight times that of the inner mix",
                    );
            }
            if let Some(filter) = &part.filter {
                filter.validate(&format!("{at}.filter"), problems);
            }
        }
    }
}

impl TokenizerConfig {
    /// Adds everything that is impossible here, without touching a file; key paths are relative to this block.
    pub fn validate(&self, problems: &mut Problems) {
        let Self::Bpe(BpeConfig { vocab_size, sample_bytes }) = self else { return };
        if *sample_bytes == 0 {
            problems
                .add("bpe.sample_bytes", "0 bytes leave nothing to learn from")
                .remedy("leave it away for 64 MiB, or write a number of bytes");
        }
        if *vocab_size < SMALLEST_BPE {
            problems
                .add("bpe.vocab_size", format!("a byte-level vocabulary of {vocab_size} is too small"))
                .remedy(format!("{SMALLEST_BPE} or more: 256 bytes and BOS, EOS, PAD"));
        }
        if *vocab_size > 1 << 24 {
            problems
                .add("bpe.vocab_size", format!("a vocabulary of {vocab_size} is too large to train"))
                .remedy("at most 16777216");
        }
    }

    /// The files that this tokenizer is read from (none for one that is trained).
    pub fn files(&self) -> Vec<&Path> {
        match self {
            Self::Bpe(_) | Self::Chars(_) => Vec::new(),
            Self::File(path) => vec![path],
            Self::Llama3(c) => std::iter::once(c.ranks.as_path()).chain(c.config.as_deref()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data(yaml: &str) -> Result<DataConfig, String> {
        serde_yaml::from_str(yaml).map_err(|e| e.to_string())
    }

    fn tokenizer(yaml: &str) -> Result<TokenizerConfig, String> {
        serde_yaml::from_str(yaml).map_err(|e| e.to_string())
    }

    #[test]
    fn every_choice_is_a_map_with_one_key() {
        let d = data("source: { path: a.txt }\nvalidation: { path: b.txt }\nmax_bytes: 1000").unwrap();
        assert_eq!(d.source, Source::Path("a.txt".into()));
        assert_eq!(d.validation, Validation::Path(ValidationPath { path: "b.txt".into() }));
        assert_eq!(data("{}").unwrap(), DataConfig::default());
        assert_eq!(data("validation: 0.1").unwrap().validation, Validation::Share(0.1));
        assert_eq!(
            tokenizer("bpe: { vocab_size: 300 }").unwrap(),
            TokenizerConfig::Bpe(BpeConfig::of_size(300))
        );
        assert_eq!(tokenizer("chars: {}").unwrap(), TokenizerConfig::Chars(CharsConfig {}));
        assert_eq!(tokenizer("file: t.json").unwrap(), TokenizerConfig::File("t.json".into()));
        let llama = tokenizer("llama3: { ranks: r, config: c }").unwrap();
        assert_eq!(llama.files(), [Path::new("r"), Path::new("c")]);
    }

    #[test]
    fn yaml_and_json_give_back_what_was_written() {
        let d = DataConfig {
            source: Source::Path("x".into()),
            validation: Validation::Path(ValidationPath { path: "y".into() }),
            max_bytes: Some(7),
            ..DataConfig::default()
        };
        let yaml = serde_yaml::to_string(&d).unwrap();
        assert!(yaml.contains("path: x"), "{yaml}");
        assert!(!yaml.contains('!'), "{yaml}");
        assert_eq!(data(&yaml).unwrap(), d);
        assert_eq!(serde_json::from_str::<DataConfig>(&serde_json::to_string(&d).unwrap()).unwrap(), d);
        for t in [
            TokenizerConfig::default(),
            TokenizerConfig::Chars(CharsConfig {}),
            TokenizerConfig::Llama3(Llama3Config { ranks: "r".into(), config: None }),
        ] {
            assert_eq!(tokenizer(&serde_yaml::to_string(&t).unwrap()).unwrap(), t);
            assert_eq!(
                serde_json::from_value::<TokenizerConfig>(serde_json::to_value(&t).unwrap()).unwrap(),
                t
            );
            // Also through a dynamic YAML value, as overrides from a command line are merged.
            let value = serde_yaml::to_value(&t).unwrap();
            assert_eq!(serde_yaml::from_value::<TokenizerConfig>(value).unwrap(), t);
        }
    }

    #[test]
    fn unknown_keys_are_errors() {
        assert!(data("sauce: { path: a }").unwrap_err().contains("sauce"));
        assert!(data("source: { pfad: a }").unwrap_err().contains("pfad"));
        assert!(data("validation: { file: a }").unwrap_err().contains("file"));
        assert!(tokenizer("bpe: { vocab: 3 }").unwrap_err().contains("vocab"));
        assert!(tokenizer("bpe: { vocab_size: 300 }\nchars: {}").is_err());
        assert!(data("validation: half").unwrap_err().contains("share of the documents"));
    }

    #[test]
    fn paths_may_begin_at_home() {
        let home = Some(Path::new("/home/me"));
        let at_home = |path: &str| at_home(path.into(), home);
        assert_eq!(at_home("~/a b.txt"), Path::new("/home/me/a b.txt"));
        assert_eq!(at_home("a/~/b"), Path::new("a/~/b"));
        assert_eq!(at_home("~other/b"), Path::new("~other/b"));
        assert_eq!(super::at_home("~/a".into(), None), Path::new("~/a"));
        // Everywhere that a path is read; without a home there is nothing to test.
        if let Some(home) = std::env::home_dir().filter(|home| !home.as_os_str().is_empty()) {
            let d = data("source: { path: ~/a }\nvalidation: { path: ~/b }").unwrap();
            assert_eq!(d.source, Source::Path(home.join("a")));
            assert_eq!(d.validation, Validation::Path(ValidationPath { path: home.join("b") }));
            assert_eq!(data("source: { crates: ~/a }").unwrap().source, Source::Crates(home.join("a")));
            assert_eq!(tokenizer("file: ~/t").unwrap(), TokenizerConfig::File(home.join("t")));
            let llama = tokenizer("llama3: { ranks: ~/r, config: ~/c }").unwrap();
            assert_eq!(llama.files(), [home.join("r"), home.join("c")]);
        }
    }

    #[test]
    fn sources_of_a_hub_and_mixes_come_back_as_they_were_written() {
        let yaml = "source:\n  mix:\n  - source: { hub: { dataset: a/b, split: train, files: ['data/*'] } }\n    weight: 3\n  \
                    - { source: { path: x.jsonl }, column: body, filter: { min_bytes: 9 } }\n  \
                    - source: { dataset: tinystories }\nfilter: { field: { language: en } }\non_bad_document: skip\n";
        let d = data(yaml).unwrap();
        let Source::Mix(parts) = &d.source else { panic!("{d:?}") };
        assert_eq!((parts[0].weight, parts[1].weight), (3.0, 1.0));
        assert!(
            matches!(&parts[0].source, Source::Hub(hub) if hub.revision == "main" && hub.files == ["data/*"])
        );
        assert_eq!(d.on_bad_document, OnBadDocument::Skip);
        assert_eq!(data(&serde_yaml::to_string(&d).unwrap()).unwrap(), d);
        assert_eq!(serde_json::from_str::<DataConfig>(&serde_json::to_string(&d).unwrap()).unwrap(), d);
        let mut problems = Problems::new();
        d.validate(&mut problems);
        assert!(problems.is_empty());
        let split = data("source: { hub: { dataset: a/b } }\nvalidation: { split: test }").unwrap();
        assert_eq!(split.validation, Validation::Split(ValidationSplit { split: "test".into() }));
        assert_eq!(data(&serde_yaml::to_string(&split).unwrap()).unwrap(), split);
        assert!(data("validation: { split: a, path: b }").unwrap_err().contains("either"));
        assert!(data("source: { hub: { name: a/b } }").unwrap_err().contains("name"));
    }

    #[test]
    fn sources_that_cannot_be_are_named() {
        let paths = |yaml: &str| {
            let mut problems = Problems::new();
            data(yaml).unwrap().validate(&mut problems);
            assert!(problems.iter().all(|p| p.remedy.is_some()));
            problems.iter().map(|p| p.path.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(paths("source: { path: a }\nvalidation: { split: test }"), ["validation"]);
        assert_eq!(paths("source: { mix: [] }"), ["source.mix"]);
        assert_eq!(
            paths("source: { mix: [{ source: { path: a }, weight: 0 }, { source: { mix: [] } }] }"),
            ["source.mix[0].weight", "source.mix[1].source"]
        );
        assert_eq!(paths("filter: { min_bytes: 1 }"), ["source"]);
        assert_eq!(
            paths("source: { path: a }\nfilter: { min_bytes: 2, max_bytes: 1 }"),
            ["filter.min_bytes"]
        );
    }

    #[test]
    fn an_error_keeps_its_line() {
        let error = data("max_bytes: 5\nsource:\n  pfad: a\n").unwrap_err();
        assert!(error.contains("line 3"), "{error}");
    }

    #[test]
    fn impossible_values_are_named_with_a_hint() {
        let d = DataConfig { validation: Validation::Share(1.5), max_bytes: Some(0), ..Default::default() };
        let found = |check: &dyn Fn(&mut Problems)| {
            let mut problems = Problems::new();
            check(&mut problems);
            problems
        };
        let data = found(&|p| d.validate(p));
        assert_eq!(data.iter().map(|p| p.path.to_string()).collect::<Vec<_>>(), ["validation", "max_bytes"]);
        assert!(data.iter().all(|p| p.remedy.is_some()));
        let t = TokenizerConfig::Bpe(BpeConfig::of_size(258));
        assert!(found(&|p| t.validate(p)).iter().any(|p| p.remedy.as_ref().unwrap().contains("259")));
        assert!(found(&|p| DataConfig::default().validate(p)).is_empty());
        assert!(found(&|p| TokenizerConfig::default().validate(p)).is_empty());
    }

    #[test]
    fn the_json_schema_knows_both_forms_of_validation() {
        let schema = serde_json::to_string(&schemars::schema_for!(DataConfig)).unwrap();
        assert!(schema.contains("number") && schema.contains("ValidationPath"), "{schema}");
        assert!(schema.contains("crates") && schema.contains("path"), "{schema}");
    }
}
