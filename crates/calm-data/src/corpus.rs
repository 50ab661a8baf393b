//! From a configuration to token files: read, train or load the tokenizer, tokenise; each cached by content.
//!
//! ```text
//! CACHE/tokenizers/<hash of training text and tokenizer config>.json
//! CACHE/tokens/<hash of text and tokenizer>/train.tokens, validation.tokens
//! ```
//!
//! The text is read and hashed every time (tens of MB in well under a second), so that a changed file can never be
//! answered from the cache.

use std::path::{Path, PathBuf};

use calm_config::Problems;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::bpe;
use crate::config::{DataConfig, TokenizerConfig};
use crate::document::Document;
use crate::error::{Error, Result};
use crate::llama3;
use crate::source::{self, Skipped};
use crate::token_file::{TokenFile, TokenWriter};
use crate::tokenizer::Tokenizer;

/// What a long job is doing. Units: bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Hash of all text and its division.
    pub hash: String,
    /// Hash of the tokenizer.
    pub tokenizer_hash: String,
    /// V.
    pub vocab_size: usize,
    /// To train on.
    pub train: SplitSummary,
    /// Held out.
    pub validation: SplitSummary,
    /// Files that were left out.
    pub skipped: Skipped,
}

/// Tokens to train on and to measure with.
#[derive(Clone, Debug)]
pub struct Corpus {
    /// To train on.
    pub train: TokenFile,
    /// Held out.
    pub validation: TokenFile,
    /// The tokenizer of both.
    pub tokenizer: Tokenizer,
    /// Hash of all text and its division (hexadecimal BLAKE3).
    pub hash: String,
    /// Hash of the tokenizer (hexadecimal BLAKE3).
    pub tokenizer_hash: String,
    /// Sizes, sources and hashes for a record.
    pub summary: CorpusSummary,
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
    let mut problems = Problems::new();
    tokenizer.validate(&mut problems);
    if let Some(error) = Error::first_of("tokenizer", &problems) {
        return Err(error);
    }
    let loaded = source::load(data, &mut |done, total| progress(Progress::Reading { done, total }))?;
    let train_hash = hash_documents(&loaded.train);
    let validation_hash = hash_documents(&loaded.validation);
    let hash = blake3::hash(&[train_hash, validation_hash].concat());
    let tokenizer = make_tokenizer(tokenizer, &loaded.train, train_hash, cache, progress)?;
    let folder = tokens_folder(cache, hash.as_bytes(), &tokenizer);
    let total = bytes(&loaded.train) + bytes(&loaded.validation);
    let mut before = 0;
    let mut file = |name: &str, documents: &[Document], hash| {
        let mut report = |done| progress(Progress::Tokenizing { done: before + done, total });
        let file = token_file(&folder.join(name), documents, hash, &tokenizer, &mut report)
            .map_err(|e| e.of_cache(cache))?;
        before += bytes(documents);
        Ok(file)
    };
    let train = file("train.tokens", &loaded.train, train_hash)?;
    let validation = file("validation.tokens", &loaded.validation, validation_hash)?;
    let (hash, tokenizer_hash) = (hash.to_hex().to_string(), tokenizer.hash());
    let summary = CorpusSummary {
        description: loaded.description,
        hash: hash.clone(),
        tokenizer_hash: tokenizer_hash.clone(),
        vocab_size: tokenizer.vocab_size(),
        train: SplitSummary::of(&train),
        validation: SplitSummary::of(&validation),
        skipped: loaded.skipped,
    };
    Ok(Corpus { train, validation, tokenizer, hash, tokenizer_hash, summary })
}

/// All documents of a file or folder, tokenised with a given tokenizer: other text to measure a model on.
///
/// # Errors
/// When the text or the cache cannot be used; see [`Error`].
pub fn prepare_file(
    path: &Path,
    tokenizer: &Tokenizer,
    cache: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<TokenFile> {
    let read = source::path::read(path, &mut |done, total| progress(Progress::Reading { done, total }))?;
    let hash = hash_documents(&read.documents);
    let total = bytes(&read.documents);
    let file = tokens_folder(cache, &hash, tokenizer).join("all.tokens");
    let mut report = |done| progress(Progress::Tokenizing { done, total });
    token_file(&file, &read.documents, hash, tokenizer, &mut report).map_err(|e| e.of_cache(cache))
}

fn bytes(documents: &[Document]) -> u64 {
    documents.iter().map(|d| d.text.len() as u64).sum()
}

/// BLAKE3 of the length and the text of each document, in order.
fn hash_documents(documents: &[Document]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for document in documents {
        hasher.update(&(document.text.len() as u64).to_le_bytes());
        hasher.update(document.text.as_bytes());
    }
    *hasher.finalize().as_bytes()
}

fn tokens_folder(cache: &Path, data: &[u8; 32], tokenizer: &Tokenizer) -> PathBuf {
    let key = blake3::hash(&[*data, tokenizer.encoding_key()].concat());
    cache.join("tokens").join(&key.to_hex()[..32])
}

fn make_tokenizer(
    config: &TokenizerConfig,
    train: &[Document],
    train_hash: [u8; 32],
    cache: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<Tokenizer> {
    match config {
        TokenizerConfig::File(path) => return Tokenizer::load(path),
        TokenizerConfig::Llama3(files) => return llama3::load(files),
        TokenizerConfig::Bpe(_) | TokenizerConfig::Chars(_) => {}
    }
    // The version stands for the way tokenizers are trained: raise it when that changes.
    let mut key = blake3::Hasher::new();
    key.update(b"calm tokenizer 1").update(&train_hash);
    key.update(serde_json::to_string(config).map_err(|e| Error::Tokenizer(e.to_string()))?.as_bytes());
    let path = cache.join("tokenizers").join(format!("{}.json", &key.finalize().to_hex()[..32]));
    if let Ok(tokenizer) = Tokenizer::load(&path) {
        return Ok(tokenizer);
    }
    let texts: Vec<&str> = train.iter().map(|d| d.text.as_str()).collect();
    let tokenizer = match config {
        TokenizerConfig::Bpe(bpe) => {
            let total = bytes(train);
            let mut report = |training| match training {
                bpe::Training::Counting(done) => progress(Progress::TrainingTokenizer { done, total }),
                bpe::Training::Learning => progress(Progress::LearningMerges),
            };
            bpe::train(&texts, bpe.vocab_size, &mut report)?
        }
        _ => Tokenizer::characters(texts),
    };
    tokenizer.save(&path).map_err(|e| e.of_cache(cache))?;
    Ok(tokenizer)
}

/// Text in a piece of parallel work, and pieces between two reports. Fixed, so that nothing depends on the number
/// of threads.
const PIECE_BYTES: usize = 256 << 10;
const PIECES: usize = 16;

fn token_file(
    path: &Path,
    documents: &[Document],
    hash: [u8; 32],
    tokenizer: &Tokenizer,
    progress: &mut dyn FnMut(u64),
) -> Result<TokenFile> {
    // A damaged file in the cache is made anew; so is one of other text (two keys with one short name).
    if let Ok(file) = TokenFile::open(path) {
        let same_data = file.data_hash() == blake3::Hash::from_bytes(hash).to_hex().as_str();
        if same_data && file.tokenizer_hash() == tokenizer.hash() && file.len() == documents.len() {
            return Ok(file);
        }
    }
    let mut writer = TokenWriter::new(tokenizer.vocab_size(), hash, tokenizer.hash_bytes());
    let mut done = 0;
    progress(0);
    for pieces in pieces(documents).chunks(PIECES) {
        let encoded: Vec<Vec<Vec<u32>>> = pieces
            .par_iter()
            .map(|piece| tokenizer.encode_all(&piece.iter().map(|d| d.text.as_str()).collect::<Vec<_>>()))
            .collect::<Result<_>>()?;
        for (piece, ids) in pieces.iter().zip(encoded) {
            for (document, ids) in piece.iter().zip(ids) {
                writer.push(&ids, document.text.len() as u64);
                done += document.text.len() as u64;
            }
        }
        progress(done);
    }
    writer.write(path)
}

/// Documents in groups of about [`PIECE_BYTES`].
fn pieces(documents: &[Document]) -> Vec<&[Document]> {
    let mut pieces = Vec::new();
    let (mut start, mut size) = (0, 0);
    for (i, document) in documents.iter().enumerate() {
        size += document.text.len();
        if size >= PIECE_BYTES || i + 1 == documents.len() {
            pieces.push(&documents[start..=i]);
            (start, size) = (i + 1, 0);
        }
    }
    pieces
}
