//! How byte-level vocabularies write text: the pattern that divides it, and a character for each byte.

use std::collections::HashMap;

use tokenizers::SplitDelimiterBehavior;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use crate::error::{Error, Result};

/// How Llama-3 divides text before merging (published with its tokenizer).
pub const PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

fn fail(e: tokenizers::Error) -> Error {
    Error::Tokenizer(e.to_string())
}

/// The character by which byte-level vocabularies write a byte: itself if it is printable in Latin-1, else the
/// next free one from U+0100 on (so a space is `Ġ`).
pub(crate) fn byte_chars() -> [char; 256] {
    let mut next = 0x100;
    std::array::from_fn(|b| {
        let printable = matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if printable {
            b as u32
        } else {
            next += 1;
            next - 1
        };
        char::from_u32(code).unwrap_or('\0')
    })
}

/// The 256 bytes as a vocabulary, in the order of the bytes.
#[cfg(test)]
pub(crate) fn byte_vocab() -> tokenizers::models::bpe::Vocab {
    byte_chars().iter().zip(0..).map(|(c, id)| (c.to_string(), id)).collect()
}

/// The bytes as a vocabulary writes them.
pub(crate) fn bytes_to_chars(bytes: &[u8], chars: &[char; 256]) -> String {
    let mut written = String::with_capacity(bytes.len());
    push_chars(&mut written, bytes, chars);
    written
}

/// Adds bytes as a vocabulary writes them.
pub(crate) fn push_chars(written: &mut String, bytes: &[u8], chars: &[char; 256]) {
    written.extend(bytes.iter().map(|&b| chars[b as usize]));
}

fn pre_tokenizer() -> Result<PreTokenizerWrapper> {
    let pattern = SplitPattern::Regex(PATTERN.to_string());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(fail)?;
    let bytes = ByteLevel::new(false, false, false);
    Ok(Sequence::new(vec![split.into(), bytes.into()]).into())
}

/// A pipeline around a byte-level model: the Llama-3 pattern, then bytes.
pub(crate) fn byte_pipeline(model: BPE) -> Result<tokenizers::Tokenizer> {
    let mut pipeline = tokenizers::Tokenizer::new(model);
    pipeline.with_pre_tokenizer(Some(pre_tokenizer()?));
    pipeline.with_decoder(Some(ByteLevel::new(false, false, false)));
    Ok(pipeline)
}

/// Bytes of every id of a pipeline, and whether joining them is exact (byte-level pipelines). Special tokens
/// and ids without a token have none.
pub(crate) fn token_table(pipeline: &tokenizers::Tokenizer) -> Result<(Vec<Box<[u8]>>, bool)> {
    let decoder = pipeline.get_decoder().map(serde_json::to_string).transpose();
    let decoder = decoder.map_err(|e| Error::Tokenizer(e.to_string()))?.unwrap_or_default();
    let byte_level = decoder.contains("\"ByteLevel\"");
    let values: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
    let added = pipeline.get_added_tokens_decoder();
    let vocab = pipeline.get_vocab(true);
    let size = vocab.values().max().map_or(0, |id| *id as usize + 1);
    let mut table: Vec<Box<[u8]>> = vec![Box::default(); size];
    for (token, id) in vocab {
        let bytes = match added.get(&id) {
            Some(added) if added.special => Vec::new(),
            Some(added) => added.content.clone().into_bytes(),
            None if byte_level => {
                let bytes: Option<Vec<u8>> = token.chars().map(|c| values.get(&c).copied()).collect();
                bytes.unwrap_or_else(|| token.into_bytes())
            }
            None => pipeline.decode(&[id], false).map_err(fail)?.into_bytes(),
        };
        table[id as usize] = bytes.into_boxed_slice();
    }
    Ok((table, byte_level))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_characters_are_those_of_the_library() {
        let ours: std::collections::BTreeSet<char> = byte_chars().into_iter().collect();
        let theirs: std::collections::BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
        assert_eq!(ours, theirs);
        assert_eq!(byte_chars()[b' ' as usize], 'Ġ');
        assert_eq!(byte_chars()[b'\n' as usize], 'Ċ');
    }
}
