//! Byte-level BPE of short pieces.
//!
//! Text repeats its words: nearly all pieces are known ([`crate::known_pieces`]). The rest is merged here where it is short, by
//! the model's ranks on ids and not on strings. Whatever is long or touches a special token goes the library's way ([`Guard`]), which is also the test of this one.

use rustc_hash::FxHashMap;
use tokenizers::models::bpe::BPE;
use tokenizers::{Model, ModelWrapper};

use crate::byte_level::{byte_chars, push_chars};
use crate::guard::Guard;
use crate::known_pieces::Tables;

/// Longer pieces are merged by the library: the search for the next merge takes the square of the length here.
const SHORT: usize = 64;
/// No rank.
const NONE: u32 = u32::MAX;

/// The merges of a model on ids.
struct Merges {
    bytes: [u32; 256],
    /// Two ids: the rank of their merge, and what it gives.
    pairs: FxHashMap<u64, (u32, u32)>,
    /// Pieces that are tokens as they are, of a model that looks for these first.
    whole: Option<FxHashMap<Vec<u8>, u32>>,
}

fn pair(a: u32, b: u32) -> u64 {
    u64::from(a) << 32 | u64::from(b)
}

impl Merges {
    /// Of a model that merges bytes and does nothing else; none of any other.
    fn of(model: &BPE) -> Option<Self> {
        let written = serde_json::to_value(model).ok()?;
        let absent = |name: &str| written.get(name).is_none_or(|v| v.is_null() || v == "");
        if !absent("continuing_subword_prefix") || !absent("end_of_word_suffix") || !absent("dropout") {
            return None;
        }
        let chars = byte_chars();
        let mut bytes = [0; 256];
        for (id, c) in bytes.iter_mut().zip(chars) {
            *id = model.token_to_id(c.encode_utf8(&mut [0; 4]))?;
        }
        let mut pairs = FxHashMap::default();
        for (rank, merge) in written.get("merges")?.as_array()?.iter().enumerate() {
            let (a, b) = match merge {
                serde_json::Value::String(both) => both.split_once(' ')?,
                both => (both.get(0)?.as_str()?, both.get(1)?.as_str()?),
            };
            let id = |token: &str| model.token_to_id(token);
            let merged = id(&format!("{a}{b}"))?;
            pairs.insert(pair(id(a)?, id(b)?), (u32::try_from(rank).ok()?, merged));
        }
        let values: FxHashMap<char, u8> = chars.into_iter().zip(0..=255).collect();
        let ignores = written.get("ignore_merges").and_then(serde_json::Value::as_bool).unwrap_or(false);
        let whole = ignores.then(|| {
            let text =
                |token: String| token.chars().map(|c| values.get(&c).copied()).collect::<Option<Vec<u8>>>();
            model.get_vocab().into_iter().filter_map(|(token, id)| Some((text(token)?, id))).collect()
        });
        Some(Self { bytes, pairs, whole })
    }

    /// Adds the ids of a short piece: again and again the leftmost of the pairs with the lowest rank is merged.
    fn encode(&self, piece: &[u8], ids: &mut Vec<u32>) {
        if let Some(id) = self.whole.as_ref().and_then(|whole| whole.get(piece)) {
            ids.push(*id);
            return;
        }
        let mut parts = [0u32; SHORT];
        let mut ranks = [(NONE, 0u32); SHORT];
        let mut n = piece.len();
        for (part, byte) in parts.iter_mut().zip(piece) {
            *part = self.bytes[*byte as usize];
        }
        let rank = |a, b| self.pairs.get(&pair(a, b)).copied().unwrap_or((NONE, 0));
        for i in 1..n {
            ranks[i - 1] = rank(parts[i - 1], parts[i]);
        }
        loop {
            let mut best = (NONE, 0);
            for (i, (rank, _)) in ranks[..n.saturating_sub(1)].iter().enumerate() {
                if *rank < best.0 {
                    best = (*rank, i);
                }
            }
            let (found, at) = best;
            if found == NONE {
                break;
            }
            parts[at] = ranks[at].1;
            parts.copy_within(at + 2..n, at + 1);
            ranks.copy_within(at + 1..n, at);
            n -= 1;
            ranks[at] = if at + 1 < n { rank(parts[at], parts[at + 1]) } else { (NONE, 0) };
            if at > 0 {
                ranks[at - 1] = rank(parts[at - 1], parts[at]);
            }
        }
        ids.extend_from_slice(&parts[..n]);
    }
}

/// An encoder of pieces. What one call finds out about them serves the next ones; ids do not depend on it.
pub(crate) struct PieceEncoder {
    merges: Option<Merges>,
    chars: [char; 256],
    known: Tables,
}

impl PieceEncoder {
    pub(crate) fn new(model: &ModelWrapper) -> Self {
        let merges = match model {
            ModelWrapper::BPE(bpe) => Merges::of(bpe),
            _ => None,
        };
        Self { merges, chars: byte_chars(), known: Tables::default() }
    }

    /// Ids of texts, each given as its pieces.
    pub(crate) fn encode<'a, P: Iterator<Item = &'a str>>(
        &self,
        model: &ModelWrapper,
        guard: &Guard,
        texts: &[&'a str],
        pieces: impl Fn(&'a str) -> P,
    ) -> Result<Vec<Vec<u32>>, String> {
        let mut written = String::new();
        self.known.lend(|known| {
            let mut encoded = Vec::with_capacity(texts.len());
            for text in texts {
                let mut ids = Vec::with_capacity(text.len() / 3);
                for piece in pieces(text) {
                    let find =
                        |fresh: &mut Vec<u32>| self.encode_new(model, guard, piece, &mut written, fresh);
                    known.ids(piece, &mut ids, find)?;
                }
                encoded.push(ids);
            }
            Ok(encoded)
        })
    }

    fn encode_new(
        &self,
        model: &ModelWrapper,
        guard: &Guard,
        piece: &str,
        written: &mut String,
        ids: &mut Vec<u32>,
    ) -> Result<(), String> {
        let before = ids.len();
        if let Some(merges) = self.merges.as_ref().filter(|_| piece.len() <= SHORT) {
            merges.encode(piece.as_bytes(), ids);
            if !ids[before..].iter().any(|id| guard.is_special(*id)) {
                return Ok(());
            }
            ids.truncate(before);
        }
        written.clear();
        push_chars(written, piece.as_bytes(), &self.chars);
        guard.tokenize(model, written, ids)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::tokenizer::Tokenizer;

    /// Source text, so that words are long and merges many.
    fn trained(size: usize) -> Tokenizer {
        let text = include_str!("merges.rs").to_owned() + include_str!("byte_level.rs");
        crate::bpe::train(&[&text], size, &mut |_| ()).unwrap()
    }

    /// As the library does it, on every way of its own.
    fn by_library(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
        tokenizer.pipeline().unwrap().encode_fast(text, false).unwrap().get_ids().to_vec()
    }

    #[test]
    fn nasty_text_has_the_ids_of_the_library() {
        let tokenizer = trained(700);
        let source = include_str!("split.rs");
        let long = "abcdefghij".repeat(40) + &"é☃".repeat(30) + &"   \n\t".repeat(50) + &"=".repeat(300);
        let marks: String = ('\u{0}'..'\u{2000}').collect();
        let many: Vec<String> = (0..70_000).map(|n| format!(" w{n}x")).collect();
        let texts = [source, &long, &marks, "", "\u{feff}\u{200b}a\u{301}", "<|bos|><|eos|>", &many.concat()];
        for text in texts {
            let expected = by_library(&tokenizer, text);
            // What was learned from one text must not show in the next.
            for _ in 0..2 {
                assert_eq!(tokenizer.encode(text).unwrap(), expected);
            }
            assert_eq!(tokenizer.decode(&expected), text);
        }
    }

    proptest! {
        #[test]
        fn any_text_has_the_ids_of_the_library(
            texts in prop::collection::vec(prop_oneof!["[a-z_ (){};:.&<>]{0,80}", "\\PC{0,40}", any::<String>()], 1..6),
        ) {
            thread_local! { static TOKENIZER: Tokenizer = trained(600); }
            TOKENIZER.with(|tokenizer| {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let expected: Vec<Vec<u32>> = texts.iter().map(|text| by_library(tokenizer, text)).collect();
                prop_assert_eq!(tokenizer.encode_all(&texts).unwrap(), expected);
                Ok(())
            })?;
        }
    }
}
