//! Ids of a document's text: never those of special tokens.
//!
//! The library leaves special tokens alone where it looks for added tokens, but a model may hold their names as
//! pieces of its own vocabulary: a word `</s>` of a word list, a piece `</s>` of sentence pieces. Text that spells
//! such a name is divided again until it is text: by characters for BPE and sentence pieces; a word of a word list
//! becomes the unknown token. The same holds for the names of bytes (`<0x0A>`) and of the unknown token, which a
//! text may spell as well.

use rustc_hash::FxHashSet;
use tokenizers::{Model, ModelWrapper, Token};

use crate::special::Known;

/// What a model may not make of text.
pub(crate) struct Guard {
    special: FxHashSet<u32>,
    unknown: Option<(u32, String)>,
    byte_tokens: bool,
}

impl Guard {
    /// `unknown`: the name of the token that stands for what is not in the vocabulary; `special`: its special tokens.
    pub(crate) fn new(
        pipeline: &tokenizers::Tokenizer,
        unknown: Option<String>,
        special: impl Iterator<Item = u32>,
    ) -> Self {
        let model = pipeline.get_model();
        let unknown = unknown.and_then(|name| Some((model.token_to_id(&name)?, name)));
        let byte_tokens = match model {
            ModelWrapper::BPE(bpe) => bpe.byte_fallback,
            ModelWrapper::Unigram(unigram) => unigram.byte_fallback(),
            ModelWrapper::WordLevel(_) | ModelWrapper::WordPiece(_) => false,
        };
        let special = special.filter(|id| unknown.as_ref().is_none_or(|(unknown, _)| unknown != id));
        Self { special: special.collect(), unknown, byte_tokens }
    }

    /// Forbids ids that the vocabulary's unknown token would otherwise be free to have.
    pub(crate) fn forbid(&mut self, ids: impl IntoIterator<Item = u32>) {
        self.special.extend(ids);
        if self.unknown.as_ref().is_some_and(|(id, _)| self.special.contains(id)) {
            self.unknown = None;
        }
    }

    /// Whether an id is one that no text may have.
    pub(crate) fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id) || self.unknown.as_ref().is_some_and(|(unknown, _)| *unknown == id)
    }

    /// What an id of a text says of it; `token` is what its vocabulary writes.
    pub(crate) fn knows(&self, id: u32, token: &[u8]) -> Known {
        match &self.unknown {
            Some((unknown, _)) if *unknown == id => Known::Nothing,
            _ if self.byte_tokens && std::str::from_utf8(token).is_ok_and(|t| byte_of(t).is_some()) => {
                Known::Byte
            }
            _ => Known::Text,
        }
    }

    /// Whether this token is not what this text means.
    fn refuses(&self, token: &Token, text: &str) -> bool {
        if self.special.contains(&token.id) {
            return true;
        }
        let spelled = || text.get(token.offsets.0..token.offsets.1);
        match &self.unknown {
            Some((id, name)) if *id == token.id => spelled() == Some(name),
            _ => self.byte_tokens && byte_of(&token.value).is_some() && spelled() == Some(&token.value),
        }
    }

    /// Adds the ids of one piece of normalised text.
    pub(crate) fn tokenize(
        &self,
        model: &ModelWrapper,
        piece: &str,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        // What is still to be divided, the next part last.
        let mut parts = vec![piece];
        while let Some(part) = parts.pop() {
            let tokens = model.tokenize(part).map_err(|e| e.to_string())?;
            let refused: Vec<&Token> = tokens.iter().filter(|t| self.refuses(t, part)).collect();
            if refused.is_empty() {
                covers(model, part, &tokens)?;
                ids.extend(tokens.iter().map(|t| t.id));
                continue;
            }
            let words = matches!(model, ModelWrapper::WordLevel(_) | ModelWrapper::WordPiece(_));
            let mut cuts: Vec<usize> =
                if words { Vec::new() } else { refused.iter().flat_map(|t| around(t, part)).collect() };
            cuts.dedup();
            if cuts.is_empty() {
                match &self.unknown {
                    Some((unknown, _)) => ids.push(*unknown),
                    None => {
                        return Err(format!(
                            "the text has {part:?}, which is the name of a special token, and the vocabulary has no \
                             unknown token to write in its place"
                        ));
                    }
                }
                continue;
            }
            let ends = [&[0], &cuts[..], &[part.len()]].concat();
            parts.extend(ends.windows(2).rev().map(|ends| &part[ends[0]..ends[1]]));
        }
        Ok(())
    }
}

/// Where a token's text is cut in two: after its first character; around it if it is a single one.
fn around(token: &Token, text: &str) -> Vec<usize> {
    let (start, end) = token.offsets;
    let first = text.get(start..end).and_then(|spelled| spelled.chars().next()).map(char::len_utf8);
    let cuts = match first {
        Some(first) if start + first < end => vec![start + first],
        Some(_) => vec![start, end],
        None => Vec::new(),
    };
    cuts.into_iter().filter(|&cut| cut > 0 && cut < text.len()).collect()
}

/// BPE without an unknown token drops characters that it has no token for, without a word.
fn covers(model: &ModelWrapper, text: &str, tokens: &[Token]) -> Result<(), String> {
    if !matches!(model, ModelWrapper::BPE(_)) || tokens.last().map_or(0, |t| t.offsets.1) >= text.len() {
        return Ok(());
    }
    let lost = text.chars().find(|c| model.token_to_id(c.encode_utf8(&mut [0; 4])).is_none());
    let lost = lost.map_or_else(|| format!("{text:?}"), |c| format!("the character {c:?}"));
    Err(format!("the vocabulary has no token for {lost} and no unknown token: the text would lose it"))
}

/// The byte of a token `<0x0A>`, as sentence pieces write bytes.
pub(crate) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// The name of the token that stands for what is not in the vocabulary. For sentence pieces it takes a while.
pub(crate) fn unknown_token(model: &ModelWrapper) -> Option<String> {
    match model {
        ModelWrapper::BPE(bpe) => bpe.get_unk_token().clone(),
        ModelWrapper::WordLevel(words) => Some(words.unk_token.clone()),
        ModelWrapper::WordPiece(pieces) => Some(pieces.unk_token.clone()),
        ModelWrapper::Unigram(unigram) => {
            // Only its written form tells.
            #[derive(serde::Deserialize)]
            struct Written {
                unk_id: Option<u32>,
            }
            let written = serde_json::to_string(unigram).ok()?;
            unigram.id_to_token(serde_json::from_str::<Written>(&written).ok()?.unk_id?)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::models::bpe::BPE;
    use tokenizers::models::unigram::Unigram;
    use tokenizers::models::wordlevel::WordLevel;

    fn ids(model: impl Into<ModelWrapper>, special: &[u32], text: &str) -> Result<Vec<u32>, String> {
        let pipeline = tokenizers::Tokenizer::new(model);
        let mut ids = Vec::new();
        let guard = Guard::new(&pipeline, unknown_token(pipeline.get_model()), special.iter().copied());
        guard.tokenize(pipeline.get_model(), text, &mut ids).map(|()| ids)
    }

    fn pieces(byte_fallback: bool) -> Unigram {
        let mut vocab: Vec<(String, f64)> =
            ["<unk>", "</s>", "<", "/", "s", ">", "a", "u", "n", "k", "0", "x", "A", "as"]
                .map(|piece| (piece.to_owned(), -1.0))
                .to_vec();
        vocab.extend((0..=255).map(|b| (format!("<0x{b:02X}>"), 0.0)));
        Unigram::from(vocab, Some(0), byte_fallback).unwrap()
    }

    #[test]
    fn sentence_pieces_spell_the_names_of_special_tokens() {
        assert_eq!(ids(pieces(false), &[1], "a</s></s>s").unwrap(), [6, 2, 3, 4, 5, 2, 3, 4, 5, 4]);
        assert_eq!(ids(pieces(false), &[1], "a<unk>").unwrap(), [6, 2, 7, 8, 9, 5], "nor the unknown token");
        assert_eq!(ids(pieces(false), &[1], "aé").unwrap(), [6, 0], "that stands for what is unknown");
        assert_eq!(
            ids(pieces(false), &[6], "sasa").unwrap(),
            [4, 13, 0],
            "a single letter cannot be spelled"
        );
    }

    #[test]
    fn the_name_of_a_byte_is_not_the_byte() {
        let byte = |b: u32| 14 + b;
        assert_eq!(ids(pieces(true), &[1], "a\n").unwrap(), [6, byte(10)]);
        assert_eq!(ids(pieces(true), &[1], "<0x0A>").unwrap(), [2, 10, 11, 10, 12, 5]);
        assert_eq!(byte_of("<0x0A>"), Some(10));
        for no in ["<0x0>", "0x0A", "<0x00A>", "<0xé>", "<0xGG>"] {
            assert_eq!(byte_of(no), None);
        }
    }

    #[test]
    fn a_word_that_is_a_special_token_is_an_unknown_word() {
        let vocab = [("[UNK]", 0), ("</s>", 1), ("a", 2)].map(|(word, id)| (word.to_owned(), id));
        let words = |unknown: &str| {
            WordLevel::builder()
                .vocab(vocab.clone().into_iter().collect())
                .unk_token(unknown.to_owned())
                .build()
                .unwrap()
        };
        assert_eq!(ids(words("[UNK]"), &[0, 1], "</s>").unwrap(), [0]);
        assert_eq!(ids(words("[UNK]"), &[0, 1], "a").unwrap(), [2]);
        assert!(ids(words("none"), &[0, 1], "</s>").unwrap_err().contains("no unknown token"));
    }

    #[test]
    fn merges_that_end_in_a_special_token_are_undone() {
        let vocab = [("<", 0), ("s", 1), (">", 2), ("<s", 3), ("<s>", 4)].map(|(t, id)| (t.to_owned(), id));
        let merges = [("<", "s"), ("<s", ">")].map(|(a, b)| (a.to_owned(), b.to_owned())).to_vec();
        let bpe = BPE::builder()
            .vocab_and_merges(vocab.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges);
        let bpe = bpe.build().unwrap();
        assert_eq!(ids(bpe.clone(), &[], "s<s>").unwrap(), [1, 4]);
        assert_eq!(ids(bpe.clone(), &[4], "s<s><s>").unwrap(), [1, 0, 1, 2, 0, 1, 2]);
        let error = ids(bpe, &[4], "sés").unwrap_err();
        assert!(error.contains("'é'") && error.contains("would lose it"), "{error}");
    }
}
