//! How byte-level vocabularies write text: the pattern that divides it, and a character for each byte.

use std::collections::HashMap;

use tokenizers::decoders::wordpiece::WordPiece;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{DecoderWrapper, Model, ModelWrapper, SplitDelimiterBehavior};

use crate::detokenizer::{Detokenizer, Own};
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

/// Whether a model has a token for every byte as byte-level vocabularies write them.
pub(crate) fn has_all_bytes(model: &ModelWrapper) -> bool {
    byte_chars().iter().all(|c| model.token_to_id(c.encode_utf8(&mut [0; 4])).is_some())
}

/// Whether a decoder joins bytes and does nothing else.
fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(_) => {
            // Only its written form tells.
            let steps = serde_json::to_value(decoder).ok();
            let steps = steps.as_ref().and_then(|s| s.get("decoders")).and_then(|s| s.as_array());
            let of = |kind: &str| steps.into_iter().flatten().filter(|s| s["type"] == kind).count();
            steps.is_some_and(|steps| of("ByteLevel") == 1 && of("ByteLevel") + of("Fuse") == steps.len())
        }
        _ => false,
    }
}

/// The decoder that undoes how a pipeline without one writes text; none where only the words are known.
fn implied_decoder(pipeline: &tokenizers::Tokenizer) -> Option<DecoderWrapper> {
    if let ModelWrapper::WordPiece(model) = pipeline.get_model() {
        return Some(WordPiece::new(model.continuing_subword_prefix.clone(), false).into());
    }
    let last = |of: &PreTokenizerWrapper| match of {
        PreTokenizerWrapper::Sequence(steps) => steps.as_ref().last().cloned(),
        one => Some(one.clone()),
    };
    match pipeline.get_pre_tokenizer().and_then(last)? {
        PreTokenizerWrapper::ByteLevel(bytes) => Some(bytes.into()),
        PreTokenizerWrapper::Metaspace(space) => Some(space.into()),
        _ => None,
    }
}

/// The text of every id of a pipeline. Special tokens and ids without a token have none.
pub(crate) fn token_table(pipeline: &tokenizers::Tokenizer) -> Detokenizer {
    let decoder = pipeline.get_decoder().cloned().or_else(|| implied_decoder(pipeline));
    let decoder = decoder.as_ref();
    let byte_level = decoder.is_some_and(is_byte_level);
    let values: HashMap<char, u8> = byte_chars().into_iter().zip(0..=255).collect();
    let added = pipeline.get_added_tokens_decoder();
    let vocab = pipeline.get_vocab(true);
    let size = vocab.values().max().map_or(0, |id| *id as usize + 1);
    let mut table: Vec<Box<[u8]>> = vec![Box::default(); size];
    let mut is_text = vec![false; size];
    for (token, id) in vocab {
        let bytes = match added.get(&id) {
            Some(added) if added.special => continue,
            // What the decoder is given for it.
            Some(added) if !byte_level => {
                pipeline.id_to_token(id).unwrap_or(added.content.clone()).into_bytes()
            }
            Some(added) => added.content.clone().into_bytes(),
            None if byte_level => {
                let bytes: Option<Vec<u8>> = token.chars().map(|c| values.get(&c).copied()).collect();
                bytes.unwrap_or_else(|| token.into_bytes())
            }
            None => token.into_bytes(),
        };
        table[id as usize] = bytes.into_boxed_slice();
        is_text[id as usize] = true;
    }
    let own = (!byte_level).then(|| {
        let written = decoder.and_then(|d| serde_json::to_string(d).ok()).unwrap_or_default();
        Own { decoder: decoder.cloned(), byte_tokens: written.contains("\"ByteFallback\"") }
    });
    Detokenizer::new(table, is_text, own)
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
