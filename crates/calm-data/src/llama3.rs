//! The Llama-3 tokenizer from its BPE ranks, without a download.
//!
//! A rank file holds a base64 token and its rank on each line. Such a tokenizer divides text by a pattern and, in
//! each piece, joins again and again the neighbouring pair whose *joined bytes* have the lowest rank. The
//! `tokenizers` library merges pairs from a list instead. The two agree when the list holds, for every token, all
//! splits in two halves that are tokens themselves, sorted by (rank, left, right), and when a piece that is a token
//! as a whole is taken at once (`ignore_merges`).

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rayon::prelude::*;
use rustc_hash::FxHashMap;
use tokenizers::AddedToken;
use tokenizers::models::bpe::{BPE, Vocab};

use crate::byte_level::{byte_chars, byte_pipeline, bytes_to_chars};
use crate::config::Llama3Config;
use crate::error::{Error, Result};
use crate::tokenizer::Tokenizer;

/// Special tokens after the ranks.
const SPECIAL_TOKENS: usize = 256;

/// Reads a rank file: token `i` is the one of rank `i`.
///
/// # Errors
/// When a line is not `base64 rank`, a rank is missing or given twice, or a byte has no token.
pub fn read_ranks(path: &Path) -> Result<Vec<Vec<u8>>> {
    let text = std::fs::read_to_string(path).map_err(|e| match e.kind() {
        std::io::ErrorKind::InvalidData => {
            Error::tokenizer_file(path, "a rank file is text: `base64 rank` on each line", "")
        }
        _ => Error::io("read", path, e),
    })?;
    let mut tokens: Vec<Option<Vec<u8>>> = Vec::new();
    for (number, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |what: &str| Error::tokenizer_file(path, format!("line {}: {what}", number + 1), "");
        let (token, rank) = line.split_once(' ').ok_or_else(|| wrong("expected `base64 rank`"))?;
        let token = STANDARD.decode(token).map_err(|_| wrong("the token is not base64"))?;
        let rank: usize = rank.trim().parse().map_err(|_| wrong("the rank is not a number"))?;
        // Every rank up to the highest has a line: one beyond the file's bytes only fills the memory.
        if token.is_empty() || rank > (1 << 24).min(text.len()) {
            return Err(wrong("an empty token, or a rank beyond the file's tokens"));
        }
        if tokens.len() <= rank {
            tokens.resize(rank + 1, None);
        }
        if tokens[rank].replace(token).is_some() {
            return Err(wrong("this rank was given before"));
        }
    }
    let count = tokens.len();
    let tokens: Vec<Vec<u8>> = tokens.into_iter().flatten().collect();
    if tokens.len() != count || count == 0 {
        let message = format!("{} of {count} ranks are missing", count - tokens.len());
        return Err(Error::tokenizer_file(path, message, "copy the file again"));
    }
    let mut bytes = [false; 256];
    tokens.iter().filter(|t| t.len() == 1).for_each(|t| bytes[t[0] as usize] = true);
    if let Some(missing) = bytes.iter().position(|b| !b) {
        let message = format!("byte {missing} has no token: this is not a byte-level rank file");
        return Err(Error::tokenizer_file(path, message, ""));
    }
    Ok(tokens)
}

/// The names after the ranks: BOS, EOS and reserved ones, if no file names them.
fn published_names() -> Vec<String> {
    let mut names = vec!["<|begin_of_text|>".to_string(), "<|end_of_text|>".to_string()];
    names.extend((0..SPECIAL_TOKENS - 2).map(|i| format!("<|reserved_special_token_{i}|>")));
    names
}

/// The names of a `tokenizer_config.json`, which must take the ids right after the ranks.
fn read_names(path: &Path, ranks: usize) -> Result<Vec<String>> {
    #[derive(serde::Deserialize)]
    struct Token {
        content: String,
    }
    #[derive(serde::Deserialize)]
    struct Config {
        added_tokens_decoder: std::collections::BTreeMap<String, Token>,
    }
    let json = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let config: Config = serde_json::from_slice(&json).map_err(|e| {
        Error::tokenizer_file(
            path,
            e.to_string(),
            "give the `tokenizer_config.json` with `added_tokens_decoder`",
        )
    })?;
    let mut names = std::collections::BTreeMap::new();
    for (id, token) in config.added_tokens_decoder {
        let id: usize = id.parse().map_err(|_| {
            Error::tokenizer_file(path, format!("`{id}` in `added_tokens_decoder` is not a token id"), "")
        })?;
        names.insert(id, token.content);
    }
    if names.keys().copied().ne(ranks..ranks + names.len()) {
        let message = format!(
            "its special tokens do not follow the {ranks} ranks: the two files do not belong together"
        );
        return Err(Error::tokenizer_file(path, message, ""));
    }
    Ok(names.into_values().collect())
}

/// The tokenizer of these files. PAD is appended after the special tokens (Llama-3: id 128,256, V = 128,257).
///
/// # Errors
/// When a file is missing or not what it should be.
pub fn load(config: &Llama3Config) -> Result<Tokenizer> {
    let ranks = read_ranks(&config.ranks)?;
    let names = match &config.config {
        Some(path) => read_names(path, ranks.len())?,
        None => published_names(),
    };
    from_ranks(&ranks, &names)
}

/// The tokenizer of these tokens in the order of their ranks, followed by special tokens.
///
/// # Errors
/// When the library refuses the merges.
pub fn from_ranks(ranks: &[Vec<u8>], special_names: &[String]) -> Result<Tokenizer> {
    let by_bytes: FxHashMap<&[u8], u32> =
        ranks.iter().zip(0..).map(|(t, rank)| (t.as_slice(), rank)).collect();
    let merges: Vec<(u32, u32)> = ranks
        .par_iter()
        .flat_map_iter(|token| {
            let mut splits: Vec<(u32, u32)> = (1..token.len())
                .filter_map(|at| Some((*by_bytes.get(&token[..at])?, *by_bytes.get(&token[at..])?)))
                .collect();
            splits.sort_unstable();
            splits
        })
        .collect();
    let chars = byte_chars();
    let names: Vec<String> = ranks.iter().map(|token| bytes_to_chars(token, &chars)).collect();
    let vocab: Vocab = names.iter().cloned().zip(0..).collect();
    let merges =
        merges.iter().map(|&(l, r)| (names[l as usize].clone(), names[r as usize].clone())).collect();
    let fail = |e: tokenizers::Error| Error::Tokenizer(e.to_string());
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(true).build().map_err(fail)?;
    let mut pipeline = byte_pipeline(model)?;
    pipeline
        .add_special_tokens(special_names.iter().map(|name| AddedToken::from(name, true)))
        .map_err(fail)?;
    Tokenizer::from_pipeline(pipeline)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranks_of(lines: &str) -> Result<Vec<Vec<u8>>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ranks.model");
        std::fs::write(&path, lines).unwrap();
        read_ranks(&path)
    }

    fn all_bytes() -> String {
        (0..=255u8).map(|b| format!("{} {b}\n", STANDARD.encode([b]))).collect()
    }

    #[test]
    fn a_rank_file_is_read_in_any_order() {
        let ranks = ranks_of(&format!(
            "{} 257\n{}\n{} 256\n",
            STANDARD.encode("abc"),
            all_bytes(),
            STANDARD.encode("ab")
        ));
        let ranks = ranks.unwrap();
        assert_eq!(
            (ranks.len(), ranks[256].as_slice(), ranks[257].as_slice()),
            (258, &b"ab"[..], &b"abc"[..])
        );
    }

    #[test]
    fn a_damaged_rank_file_is_named_with_its_line() {
        for (lines, expected) in [
            ("IQ==".to_string(), "line 1: expected"),
            ("IQ== 0\n!!! 1".to_string(), "line 2: the token"),
            ("IQ== zero".to_string(), "the rank is not a number"),
            ("IQ== 0\nIg== 0".to_string(), "given before"),
            ("IQ== 1".to_string(), "1 of 2 ranks are missing"),
            ("IQ== 0".to_string(), "byte 0 has no token"),
            (String::new(), "missing"),
        ] {
            let error = ranks_of(&lines).unwrap_err().told();
            assert!(error.contains(expected) && error.contains("ranks.model"), "{error}");
        }
    }

    #[test]
    fn special_tokens_follow_the_ranks_and_pad_comes_last() {
        let ranks: Vec<Vec<u8>> = (0..=255u8).map(|b| vec![b]).collect();
        let t = from_ranks(&ranks, &published_names()).unwrap();
        let s = t.special();
        assert_eq!((s.bos, s.eos, s.pad, t.vocab_size()), (256, 257, 512, 513));
    }

    #[test]
    fn names_that_do_not_follow_the_ranks_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        std::fs::write(&path, r#"{"added_tokens_decoder": {"256": {"content": "<s>"}}}"#).unwrap();
        assert_eq!(read_names(&path, 256).unwrap(), ["<s>"]);
        assert!(read_names(&path, 300).unwrap_err().to_string().contains("do not belong together"));
        std::fs::write(&path, "{}").unwrap();
        assert!(read_names(&path, 256).unwrap_err().told().contains("added_tokens_decoder"));
    }
}
