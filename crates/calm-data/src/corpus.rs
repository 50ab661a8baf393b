//! From a configuration to token files: read, train or load the tokenizer, tokenise; each cached by content.
//!
//! ```text
//! CACHE/tokenizers/<hash of training text and tokenizer config>.json
//! CACHE/tokens/<hash of text and tokenizer>/train.tokens, validation.tokens (or their shards)
//! CACHE/sources/<hash of the data settings>.json   what was read, and what was found
//! ```
//!
//! Text streams: nothing here holds all of it. It is read once to be hashed and divided, once more where a tokenizer is
//! trained, and once to be tokenised on all cores; a small text is kept from the first reading. A small text is read and
//! hashed at every start, so that a changed file can never be answered from the cache; of a large one the inputs are
//! compared with those that were read ([`crate::remembered`]).

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use calm_config::Problems;
use calm_files::Sum;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::batch::RowPlan;
use crate::bpe;
use crate::chat::LossOn;
use crate::chunks::Layout;
use crate::config::{DataConfig, Source, TokenizerConfig};
use crate::document::Document;
use crate::encode::{Encoded, encode, groups};
use crate::error::{Error, Result};
use crate::llama3;
use crate::mixture::Portion;
use crate::reading::{Reading, behind};
use crate::remembered::{LARGE, Remembered};
use crate::shards::{self, Cut, SplitWriter};
use crate::source::{self, Fetching, First, HeldOut, Opened, Skipped, Watch};
use crate::survey::{Side, Summing, Survey, sample};
use crate::token_file::{TokenFile, TokenWriter, write_atomically};
use crate::tokenizer::Tokenizer;

/// What a long job is doing. Units: bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Reading the text.
    Reading {
        /// Bytes read.
        done: u64,
        /// All bytes.
        total: u64,
    },
    /// Counting words to train the tokenizer.
    TrainingTokenizer {
        /// Bytes counted.
        done: u64,
        /// All bytes.
        total: u64,
    },
    /// Learning the tokenizer's merges from the words; nobody knows how far that is.
    LearningMerges,
    /// Encoding the text.
    Tokenizing {
        /// Bytes encoded.
        done: u64,
        /// All bytes.
        total: u64,
    },
    /// Fetching a file of a hub, while nothing else is to do.
    Fetching {
        /// Which.
        file: String,
        /// Bytes that are there.
        done: u64,
        /// All bytes.
        total: u64,
    },
    /// Waiting for a hub.
    Waiting {
        /// Why.
        what: String,
    },
    /// An input is not what it was when the text was prepared: it is read again.
    Changed {
        /// Which.
        what: String,
    },
    /// A file of the cache was damaged and is made anew.
    Remade {
        /// Which and why.
        what: String,
    },
}

/// Size of a split.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SplitSummary {
    /// Number of documents.
    pub documents: u64,
    /// Bytes of text.
    pub bytes: u64,
    /// Tokens, without BOS, EOS and PAD.
    pub tokens: u64,
}

impl SplitSummary {
    fn of(file: &TokenFile) -> Self {
        Self { documents: file.len() as u64, bytes: file.text_bytes(), tokens: file.tokens() }
    }
}

/// What a record of a run says about its data.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CorpusSummary {
    /// One line for people.
    pub description: String,
    /// Hash of all text and its division, and of the share of every window that is input.
    pub hash: String,
    /// Hash of the tokenizer.
    pub tokenizer_hash: String,
    /// V.
    pub vocab_size: usize,
    /// To train on.
    pub train: SplitSummary,
    /// Held out.
    pub validation: SplitSummary,
    /// What was left out.
    pub skipped: Skipped,
    /// Documents that cannot be read and were left out: where each is, and why. At most a hundred of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bad: Vec<String>,
}

/// Tokens to train on and to measure with.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// To train on; of several sources one behind the other.
    pub train: TokenFile,
    /// Which of its sections are which source, and how often their rows come in proportion to each other.
    pub portions: Vec<Portion>,
    /// Held out.
    pub validation: TokenFile,
    /// The tokenizer of both.
    pub tokenizer: Tokenizer,
    /// Hash of all text and its division, and of the share of every window that is input (hexadecimal BLAKE3).
    pub hash: String,
    /// Hash of the tokenizer (hexadecimal BLAKE3).
    pub tokenizer_hash: String,
    /// Sizes, sources and hashes for a record.
    pub summary: CorpusSummary,
}

impl Corpus {
    /// The rows to train on, of all sources in proportion to their weights.
    ///
    /// # Errors
    /// As [`RowPlan::mixed`].
    pub fn plan(&self, layout: Layout, seed: u64) -> Result<RowPlan> {
        RowPlan::mixed(&self.train, &self.portions, layout, self.tokenizer.special(), seed)
    }
}

/// Reads, divides and tokenises the text of a configuration. What was made before is taken from `cache`.
///
/// # Errors
/// When the text, the tokenizer or the cache cannot be used; see [`Error`].
pub fn prepare(
    data: &DataConfig,
    tokenizer: &TokenizerConfig,
    cache: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Corpus> {
    prepare_with(data, tokenizer, cache, Preparation::default(), progress)
}

/// How a corpus is prepared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Preparation {
    /// Where token files are cut.
    pub cut: Cut,
    /// Read the text even if its inputs are those that were read before.
    pub read_again: bool,
}

/// [`prepare`], with a say in how.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_with(
    data: &DataConfig,
    tokenizer: &TokenizerConfig,
    cache: &Path,
    how: Preparation,
    progress: &mut dyn FnMut(Progress),
) -> Result<Corpus> {
    let mut problems = Problems::new();
    tokenizer.validate(&mut problems);
    if let Some(error) = Error::first_of("tokenizer", &problems) {
        return Err(error);
    }
    let news = News::default();
    let opened = source::open_watched(data, &watch(&news))?;
    let mut reading = Reading::new(opened, &data.source.name());
    let remembered = Remembered::of(data, cache);
    let survey = survey(&mut reading, &remembered, data.max_bytes, how, &news, progress)?;
    let hashes: Vec<[u8; 32]> = survey.train.iter().map(|side| side.hash).collect();
    let train_hash = match hashes[..] {
        [one] => one,
        _ => *blake3::hash(&hashes.concat()).as_bytes(),
    };
    let hash = blake3::hash(&[train_hash, survey.held_out.hash].concat());
    let tokenizer = make_tokenizer(tokenizer, &mut reading, &survey, train_hash, cache, progress)?;
    let folder = tokens_folder(cache, hash.as_bytes(), &tokenizer, how.cut);
    let mut names: Vec<PathBuf> = match hashes.len() {
        1 => vec![folder.join("train.tokens")],
        n => (1..=n).map(|part| folder.join(format!("source-{part}.tokens"))).collect(),
    };
    names.push(folder.join("validation.tokens"));
    let form = Written { cut: how.cut, marked: data.loss_on == LossOn::Answers };
    let mut files = token_files(&names, &mut reading, &survey, &tokenizer, form, progress)
        .map_err(|e| e.of_cache(cache))?;
    let validation = files.pop().ok_or_else(|| Error::Layout("there is no held-out text".into()))?;
    let mut portions = Vec::new();
    let mut sections = 0;
    for (file, part) in files.iter().zip(&reading.opened().parts) {
        portions.push(Portion { sections: sections..sections + file.sections(), weight: part.weight });
        sections += file.sections();
    }
    let share = data.loss_on.input_share();
    // Where the output begins is no part of the tokens, but of what is learned of them and scored.
    let hash = match share > 0.0 {
        true => blake3::hash(&[&hash.as_bytes()[..], &share.to_le_bytes()].concat()),
        false => hash,
    };
    let train = TokenFile::joined(files, train_hash).after_share(share);
    let validation = validation.after_share(share);
    let (hash, tokenizer_hash) = (hash.to_hex().to_string(), tokenizer.hash());
    let summary = CorpusSummary {
        description: survey.description,
        hash: hash.clone(),
        tokenizer_hash: tokenizer_hash.clone(),
        vocab_size: tokenizer.vocab_size(),
        train: SplitSummary::of(&train),
        validation: SplitSummary::of(&validation),
        skipped: survey.skipped,
        bad: survey.bad,
    };
    Ok(Corpus { train, portions, validation, tokenizer, hash, tokenizer_hash, summary })
}

/// Other text to measure a model on, tokenised with a given tokenizer: what the source of `data` holds out if it says
/// so itself, else all of it; column, filter, what counts and what is to be done about bad documents as they say. If only so
/// many documents are asked for, of a large text no more than the first of them are read.
///
/// # Errors
/// When the text or the cache cannot be used; see [`Error`].
pub fn prepare_text(
    data: &DataConfig,
    documents: Option<usize>,
    tokenizer: &Tokenizer,
    cache: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<TokenFile> {
    if data.loss_on == LossOn::Answers && matches!(data.source, Source::Crates(_)) {
        return Err(Error::Selection {
            source_name: data.source.name().display().to_string(),
            what: "the sources of crates are no conversations, and have no answers to be scored".to_owned(),
            remedy: "name a text of conversations with --data, or score all of it with --loss-on all"
                .to_owned(),
        });
    }
    let news = News::default();
    let mut text = source::open_one(data, &watch(&news))?;
    let bytes: u64 = text.inputs().iter().map(|input| input.length).sum();
    let first = documents.filter(|_| bytes >= LARGE);
    if let Some(documents) = first {
        text = Box::new(First::new(text, documents));
    }
    let opened = Opened { parts: Vec::new(), held_out: HeldOut::Text(text) };
    let mut reading = Reading::new(opened, &data.source.name());
    let remembered = Remembered::of_first(data, first, cache);
    let how = Preparation::default();
    let survey = survey(&mut reading, &remembered, None, how, &news, progress)?;
    let file = tokens_folder(cache, &survey.held_out.hash, tokenizer, how.cut).join("all.tokens");
    let form = Written { cut: how.cut, marked: data.loss_on == LossOn::Answers };
    let mut files = token_files(&[file], &mut reading, &survey, tokenizer, form, progress)
        .map_err(|e| e.of_cache(cache))?;
    let text = files.pop().ok_or_else(|| Error::Layout("there is no text".into()))?;
    Ok(text.after_share(data.loss_on.input_share()))
}

/// All documents of a file or folder, as [`prepare_text`], read like the text that a model was trained on.
///
/// # Errors
/// As [`prepare_text`].
pub fn prepare_file(
    path: &Path,
    like: &DataConfig,
    tokenizer: &Tokenizer,
    cache: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<TokenFile> {
    let data = DataConfig { source: Source::Path(path.to_owned()), ..DataConfig::default() }.read_like(like);
    prepare_text(&data, None, tokenizer, cache, progress)
}

/// The latest news of what is fetched on another thread.
type News = Arc<Mutex<Option<Fetching>>>;

fn watch(news: &News) -> Watch {
    let news = news.clone();
    Arc::new(move |event: &Fetching| {
        *news.lock().unwrap_or_else(PoisonError::into_inner) = Some(event.clone());
    })
}

fn say_remade(damaged: Option<Error>, progress: &mut dyn FnMut(Progress)) {
    if let Some(e) = damaged {
        progress(Progress::Remade { what: format!("{e}; made anew") });
    }
}

/// What the text is: as it was found before where it is large and its inputs are the same, else by reading it.
fn survey(
    reading: &mut Reading,
    remembered: &Remembered,
    max_bytes: Option<u64>,
    how: Preparation,
    news: &News,
    progress: &mut dyn FnMut(Progress),
) -> Result<Survey> {
    if !how.read_again {
        match remembered.survey(reading) {
            Ok(Some(survey)) => return Ok(survey),
            Ok(None) => {}
            Err(what) => progress(Progress::Changed { what }),
        }
    }
    let total = reading.total();
    let mut last = None;
    let survey = Survey::of(reading, max_bytes, &mut |done| {
        let news = news.lock().unwrap_or_else(PoisonError::into_inner).take();
        // While the reading comes on, that is what is told.
        let idle = last.replace(done).unwrap_or(0) == done;
        progress(match news.filter(|_| idle) {
            Some(Fetching::Bytes { file, done, total }) => Progress::Fetching { file, done, total },
            Some(Fetching::Note(what)) => Progress::Waiting { what },
            None => Progress::Reading { done: done.min(total), total },
        });
    })?;
    unchanged(reading)?;
    remembered.keep(reading, &survey)?;
    Ok(survey)
}

/// Whether the inputs are what they were when they were looked at.
fn unchanged(reading: &Reading) -> Result<()> {
    match reading.changed() {
        Some(input) if reading.reads_again() => Err(Error::Changed { path: PathBuf::from(&input.name) }),
        _ => Ok(()),
    }
}

fn tokens_folder(cache: &Path, data: &[u8; 32], tokenizer: &Tokenizer, cut: Cut) -> PathBuf {
    let key = blake3::hash(&[&data[..], &tokenizer.encoding_key(), &cut.key()].concat());
    cache.join("tokens").join(&key.to_hex()[..32])
}

fn make_tokenizer(
    config: &TokenizerConfig,
    reading: &mut Reading,
    survey: &Survey,
    train_hash: [u8; 32],
    cache: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer> {
    let mut settings = config.clone();
    let all: u64 = survey.train.iter().map(|side| side.bytes).sum();
    let most = match &mut settings {
        TokenizerConfig::File(path) => return Tokenizer::load(path),
        TokenizerConfig::Llama3(files) => return llama3::load(files),
        // A sample that is everything is no setting.
        TokenizerConfig::Bpe(bpe) => std::mem::take(&mut bpe.sample_bytes),
        TokenizerConfig::Chars(_) => u64::MAX,
    };
    // The version stands for the way tokenizers are trained: raise it when that changes.
    let mut key = blake3::Hasher::new();
    key.update(b"calm tokenizer 1").update(&train_hash);
    key.update(serde_json::to_string(&settings).map_err(|e| Error::Tokenizer(e.to_string()))?.as_bytes());
    if most < all {
        key.update(&most.to_le_bytes());
    }
    let path = cache.join("tokenizers").join(format!("{}.json", &key.finalize().to_hex()[..32]));
    match kept_tokenizer(&path) {
        Ok(Some(tokenizer)) => return Ok(tokenizer),
        Ok(None) => {}
        Err(e) => say_remade(Some(e), progress),
    }
    let tokenizer = match config {
        TokenizerConfig::Bpe(bpe) => {
            let texts = sample(reading, survey, most, &mut |_| ())?;
            let total = texts.iter().map(|text| text.len() as u64).sum();
            let mut report = |training| match training {
                bpe::Training::Counting(done) => progress(Progress::TrainingTokenizer { done, total }),
                bpe::Training::Learning => progress(Progress::LearningMerges),
            };
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            bpe::train(&texts, bpe.vocab_size, &mut report)?
        }
        _ => Tokenizer::characters([characters(reading, survey, progress)?.as_str()]),
    };
    // Its name is a key of what it was made of; what it holds is known by the hash beside it.
    let keep = || -> Result<()> {
        tokenizer.save(&path)?;
        let sum = Sum::of_file(&path).map_err(|e| Error::io("read", &path, e))?;
        write_atomically(&sum_of(&path), &[sum.blake3.as_bytes()])
    };
    keep().map_err(|e| e.of_cache(cache))?;
    Ok(tokenizer)
}

/// Every character of the training text, once.
fn characters(reading: &mut Reading, survey: &Survey, progress: &mut dyn FnMut(Progress)) -> Result<String> {
    let mut seen = std::collections::BTreeSet::new();
    let mut divider = survey.divider();
    let total = reading.total();
    reading.each(&mut |batch| {
        for (document, side) in batch.documents.iter().zip(divider.sides(&batch)) {
            if side.is_some_and(|side| side < survey.train.len()) {
                seen.extend(document.text.chars());
            }
        }
        progress(Progress::TrainingTokenizer { done: batch.done.min(total), total });
        Ok(())
    })?;
    Ok(seen.into_iter().collect())
}

/// The file beside a kept tokenizer that holds its hash.
fn sum_of(tokenizer: &Path) -> PathBuf {
    tokenizer.with_extension("blake3")
}

/// The tokenizer in the cache, if it is there with its hash; an error if they do not fit.
fn kept_tokenizer(path: &Path) -> Result<Option<Tokenizer>> {
    let (Ok(bytes), Ok(hash)) = (std::fs::read(path), std::fs::read(sum_of(path))) else { return Ok(None) };
    if Sum::of(&bytes).blake3.as_bytes() != hash {
        return Err(Error::tokenizer_file(path, "it differs from the hash beside it", ""));
    }
    Tokenizer::load(path).map(Some)
}

/// How token files are written.
#[derive(Clone, Copy)]
struct Written {
    cut: Cut,
    /// Whether not every token counts.
    marked: bool,
}

/// The token files of the sides of a text: from the cache where they are there, else by reading and tokenising it.
fn token_files(
    names: &[PathBuf],
    reading: &mut Reading,
    survey: &Survey,
    tokenizer: &Tokenizer,
    form: Written,
    progress: &mut dyn FnMut(Progress),
) -> Result<Vec<TokenFile>> {
    let sides: Vec<Side> = survey.train.iter().chain([&survey.held_out]).copied().collect();
    // Without parts all is held out, in the one file there is.
    let mut files = Vec::new();
    for (name, side) in names.iter().zip(&sides) {
        let (file, damaged) = kept_tokens(name, side, tokenizer);
        say_remade(damaged, progress);
        files.push(file);
    }
    if files.iter().any(Option::is_none) {
        let mut writers: Vec<Option<SplitWriter>> = Vec::new();
        for ((name, side), file) in names.iter().zip(&sides).zip(&files) {
            let make = || {
                let section = TokenWriter::new(tokenizer.vocab_size(), side.hash, tokenizer.hash_bytes());
                let section = if form.marked { section.marked() } else { section };
                SplitWriter::new(name, form.cut, side.bytes, section)
            };
            writers.push(file.is_none().then(make));
        }
        tokenise(&mut writers, reading, survey, &sides, tokenizer, progress).inspect_err(|e| {
            if let (Error::Changed { .. }, Some(folder)) = (e, names.first().and_then(|name| name.parent())) {
                let _ = calm_files::remove(folder);
            }
        })?;
        for ((file, writer), name) in files.iter_mut().zip(writers).zip(names) {
            if let Some(folder) = name.parent() {
                // What a killed process left of another attempt.
                let _ = calm_files::sweep(folder, LEFT_ALONE);
            }
            if let Some(writer) = writer {
                *file = Some(writer.finish()?);
            }
        }
    }
    Ok(files.into_iter().flatten().collect())
}

/// Other processes share a cache: half a file is a leftover when nobody wrote to it for so long.
const LEFT_ALONE: Duration = Duration::from_secs(3600);

/// The tokens of a side in the cache, if they are there; and what was wrong with a file that was damaged.
fn kept_tokens(path: &Path, side: &Side, tokenizer: &Tokenizer) -> (Option<TokenFile>, Option<Error>) {
    let opened = match TokenFile::open(path).and_then(|file| file.verify().map(|()| file)) {
        Err(Error::Missing { .. }) => shards::open(path),
        opened => opened,
    };
    match opened {
        // A file of other text (two keys with one short name) is made anew, too.
        Ok(file) => {
            let same = file.is_of(&side.hash, &tokenizer.hash_bytes()) && file.len() as u64 == side.documents;
            (same.then_some(file), None)
        }
        Err(Error::Missing { .. }) => (None, None),
        Err(e) => (None, Some(e)),
    }
}

/// Encodes what the writers do not have yet: read on one thread, encoded on all, written on another, in order.
fn tokenise(
    writers: &mut [Option<SplitWriter>],
    reading: &mut Reading,
    survey: &Survey,
    sides: &[Side],
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(Progress),
) -> Result<()> {
    let mut divider = survey.divider();
    let wanted = |side: usize, writers: &[Option<SplitWriter>]| writers[side].is_some();
    let total = sides.iter().zip(0..).filter(|(_, side)| wanted(*side, writers)).map(|(s, _)| s.bytes).sum();
    // Documents of each side that need not be encoded: all, or those of whole shards.
    let mut known: Vec<u64> =
        writers.iter().map(|writer| writer.as_ref().map_or(u64::MAX, SplitWriter::kept)).collect();
    let asked: Vec<bool> = writers.iter().map(Option::is_some).collect();
    // A file may have changed since it was read for its hash.
    let mut sums: Option<Vec<Summing>> =
        reading.reads_again().then(|| sides.iter().map(|_| Summing::default()).collect());
    let mut done = 0;
    progress(Progress::Tokenizing { done, total });
    let made = behind(
        |put| {
            reading.each(&mut |batch| {
                let of = divider.sides(&batch);
                let mut work: Vec<(usize, &Document)> = Vec::new();
                for (document, side) in batch.documents.iter().zip(of) {
                    let Some(side) = side else { continue };
                    if let Some(sums) = &mut sums {
                        sums[side].add(document);
                    }
                    if asked[side] {
                        done += document.text.len() as u64;
                    }
                    if known[side] > 0 {
                        known[side] = known[side].saturating_sub(1);
                    } else {
                        work.push((side, document));
                    }
                }
                let encoded: Vec<Vec<Encoded>> = groups(&work)
                    .par_iter()
                    .map(|piece| encode(tokenizer, &piece.iter().map(|(_, d)| *d).collect::<Vec<_>>()))
                    .collect::<Result<_>>()?;
                let sides = work.iter().map(|(side, _)| *side);
                put(sides.zip(encoded.into_iter().flatten()).collect::<Vec<_>>())?;
                progress(Progress::Tokenizing { done, total });
                Ok(())
            })
        },
        &mut |documents: Vec<(usize, Encoded)>| {
            for (side, Encoded { ids, bytes, counting }) in documents {
                if let Some(writer) = &mut writers[side] {
                    writer.push(&ids, bytes, &counting)?;
                }
            }
            Ok(())
        },
    );
    made?;
    let same = sums.is_none_or(|sums| sums.iter().zip(sides).all(|(sum, side)| sum.finish() == *side));
    if !same {
        let path = reading.changed().map_or(reading.name().to_owned(), |input| PathBuf::from(&input.name));
        return Err(Error::Changed { path });
    }
    Ok(())
}
