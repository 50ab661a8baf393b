//! A pipeline of the `tokenizers` library, used so that text stays text.
//!
//! The library's own `encode` would also look for special tokens, truncate, pad and process. What is needed of it is
//! called one by one: added tokens that are not special, the normaliser, the division in pieces, the model.

use tokenizers::tokenizer::{OffsetReferential, OffsetType};
use tokenizers::{ModelWrapper, NormalizedString, Normalizer, PreTokenizer};

use crate::byte_level;
use crate::caught::caught;
use crate::detokenizer::Detokenizer;
use crate::guard::{Guard, unknown_token};
use crate::known_pieces::{Table, Tables};
use crate::merges::PieceEncoder;
use crate::seams::Seams;
use crate::spaces::Spaces;
use crate::special::{Known, SpecialTokens};
use crate::split;

/// A pipeline with what was found out about it.
pub(crate) struct Pipeline {
    library: tokenizers::Tokenizer,
    guard: Guard,
    /// Where the pipeline divides text by the pattern and merges bytes, what does the same.
    plain: Option<PieceEncoder>,
    /// Where it only writes spaces, what does the same.
    spaces: Option<Spaces>,
    /// Pieces of pipelines that are not plain, and where these are divided once more.
    known: Tables,
    seams: Seams,
}

/// A pipeline, how it is decoded, its special tokens, and its file.
pub(crate) struct Opened {
    pub(crate) pipeline: Pipeline,
    pub(crate) texts: Detokenizer,
    pub(crate) special: SpecialTokens,
    pub(crate) json: String,
}

impl Pipeline {
    /// Prepares a pipeline: special tokens are found or added, truncation, padding and dropout switched off.
    pub(crate) fn open(
        mut library: tokenizers::Tokenizer,
        names: [&[&'static str]; 3],
    ) -> Result<Opened, String> {
        let fail = |e: tokenizers::Error| e.to_string();
        library.with_truncation(None).map_err(fail)?;
        library.with_padding(None);
        if let ModelWrapper::BPE(bpe) = library.get_model()
            && bpe.dropout.is_some_and(|share| share != 0.0)
        {
            let mut bpe = bpe.clone();
            bpe.dropout = None;
            library.with_model(bpe);
        }
        let unknown = unknown_token(library.get_model());
        let marked = library
            .get_added_tokens_decoder()
            .values()
            .any(|token| token.special && unknown.as_ref() != Some(&token.content));
        // What stands for unknown text is nothing else as well, unless no text is unknown.
        let taken = unknown.clone().filter(|_| !byte_level::has_all_bytes(library.get_model()));
        let mut found = [0; 3];
        for (id, names) in found.iter_mut().zip(names) {
            *id = find_or_add(&mut library, names, marked, taken.as_deref())?;
        }
        let [bos, eos, pad] = found;
        let json = library.to_string(false).map_err(fail)?;
        library.set_encode_special_tokens(true);
        for token in library.get_added_tokens_decoder().values() {
            // The library would find it everywhere, without an end.
            if token.normalized && normalised(&library, &token.content)?.is_empty() {
                return Err(format!("its normaliser leaves nothing of the added token {:?}", token.content));
            }
        }
        let texts = byte_level::token_table(&library);
        texts.check()?;
        let added = library.get_added_tokens_decoder();
        let special = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id);
        let mut guard = Guard::new(&library, unknown, special);
        guard.forbid(found);
        let plain = split::is_plain(&library).then(|| PieceEncoder::new(library.get_model()));
        let special = SpecialTokens { bos, eos, pad };
        let (seams, spaces) = (Seams::of(library.get_model()), Spaces::of(&library));
        Ok(Opened {
            pipeline: Self { library, guard, plain, spaces, known: Tables::default(), seams },
            texts,
            special,
            json,
        })
    }

    /// Whether text is divided by our own scanner, as the pipeline would.
    pub(crate) fn is_plain(&self) -> bool {
        self.plain.is_some()
    }

    /// What an id of a text says of it; `token` is what its vocabulary writes.
    pub(crate) fn knows(&self, id: u32, token: &[u8]) -> Known {
        self.guard.knows(id, token)
    }

    #[cfg(test)]
    pub(crate) fn library(&self) -> &tokenizers::Tokenizer {
        &self.library
    }

    /// Ids of texts.
    pub(crate) fn encode(&self, texts: &[&str]) -> Result<Vec<Vec<u32>>, String> {
        if let Some(plain) = &self.plain {
            return caught(|| plain.encode(self.library.get_model(), &self.guard, texts, split::pieces))
                .flatten();
        }
        let mut written = String::new();
        self.known.lend(|known| {
            let mut one = |text| match self.spaces {
                Some(spaces) => {
                    spaces.write(text, &mut written);
                    let mut ids = Vec::with_capacity(text.len() / 3);
                    spaces.pieces(&written).try_for_each(|piece| self.add(piece, known, &mut ids))?;
                    Ok(ids)
                }
                None => self.encode_one(text, known),
            };
            texts.iter().map(|text| caught(|| one(text)).flatten()).collect()
        })
    }

    fn encode_one(&self, text: &str, known: &mut Table) -> Result<Vec<u32>, String> {
        let added = self.library.get_added_vocabulary();
        let mut pieces = added.extract_and_normalize(self.library.get_normalizer(), text);
        if let Some(division) = self.library.get_pre_tokenizer() {
            division.pre_tokenize(&mut pieces).map_err(|e| e.to_string())?;
        }
        let mut ids = Vec::with_capacity(text.len() / 3);
        for (piece, _, tokens) in pieces.get_splits(OffsetReferential::Normalized, OffsetType::None) {
            match tokens {
                Some(tokens) => ids.extend(tokens.iter().map(|token| token.id)),
                None => self.add(piece, known, &mut ids)?,
            }
        }
        Ok(ids)
    }

    /// Adds the ids of a piece.
    fn add(&self, piece: &str, known: &mut Table, ids: &mut Vec<u32>) -> Result<(), String> {
        let model = self.library.get_model();
        let mut parts = self.seams.parts(piece);
        parts.try_for_each(|part| known.ids(part, ids, |fresh| self.guard.tokenize(model, part, fresh)))
    }
}

fn normalised(library: &tokenizers::Tokenizer, text: &str) -> Result<String, String> {
    let mut normalised = NormalizedString::from(text);
    if let Some(normalizer) = library.get_normalizer() {
        normalizer.normalize(&mut normalised).map_err(|e| e.to_string())?;
    }
    Ok(normalised.get().to_owned())
}

/// The id of the first of these names that is a special token. Where nothing is marked as special, a token of that
/// name will do; else such a token is text (`<s>` is a tag of HTML in the vocabulary of Gemma). What is not there is
/// added at the end; so is what is there and `taken`.
fn find_or_add(
    library: &mut tokenizers::Tokenizer,
    names: &[&'static str],
    marked: bool,
    taken: Option<&str>,
) -> Result<u32, String> {
    let added = library.get_added_vocabulary();
    let is_there = |name: &&&str| {
        let there = if marked { added.is_special_token(name) } else { library.token_to_id(name).is_some() };
        there && taken != Some(**name)
    };
    let found = names.iter().find(is_there).or(names.first()).copied().unwrap_or_default();
    // Also when it is there: so that it counts as special, and text that looks like it stays text.
    library.add_special_tokens([tokenizers::AddedToken::from(found, true)]).map_err(|e| e.to_string())?;
    library.token_to_id(found).ok_or_else(|| format!("the special token {found} has no id"))
}
