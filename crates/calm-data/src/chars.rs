//! A token for each character of the training text, and one for each byte for all other characters.
//!
//! Ids: characters in the order of their code points, 256 bytes, BOS, EOS, PAD.

use std::collections::BTreeSet;

use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

use crate::detokenizer::Detokenizer;
use crate::special::SpecialTokens;

const FORMAT: &str = "calm characters 1";

/// How a character tokenizer is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: String,
    characters: String,
}

/// A character vocabulary.
#[derive(Clone, Debug)]
pub struct Chars {
    chars: Vec<char>,
    ids: FxHashMap<char, u32>,
}

impl Chars {
    /// The characters of these texts.
    pub fn of<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let set: BTreeSet<char> = texts.into_iter().flat_map(str::chars).collect();
        Self::from_sorted(set.into_iter().collect())
    }

    fn from_sorted(chars: Vec<char>) -> Self {
        let ids = chars.iter().zip(0..).map(|(&c, id)| (c, id)).collect();
        Self { chars, ids }
    }

    fn first_byte(&self) -> u32 {
        self.chars.len() as u32
    }

    /// Whether an id stands for a byte of a character that is not in the vocabulary.
    pub fn is_byte(&self, id: u32) -> bool {
        (self.first_byte()..self.first_byte() + 256).contains(&id)
    }

    /// BOS, EOS and PAD, the last three ids.
    pub fn special(&self) -> SpecialTokens {
        let bos = self.first_byte() + 256;
        SpecialTokens { bos, eos: bos + 1, pad: bos + 2 }
    }

    /// Ids of a text: a character of the vocabulary, or the bytes of any other.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len());
        for c in text.chars() {
            match self.ids.get(&c) {
                Some(&id) => ids.push(id),
                None => {
                    let mut buffer = [0; 4];
                    ids.extend(c.encode_utf8(&mut buffer).bytes().map(|b| self.first_byte() + b as u32));
                }
            }
        }
        ids
    }

    /// Text of each id.
    pub(crate) fn token_table(&self) -> Detokenizer {
        let chars = self.chars.iter().map(|c| c.to_string().into_bytes().into_boxed_slice());
        let bytes = (0..=255u8).map(|b| Box::from([b]));
        let special = (0..3).map(|_| Box::from([]));
        let table: Vec<Box<[u8]>> = chars.chain(bytes).chain(special).collect();
        let is_text = (0..table.len()).map(|id| id + 3 < table.len()).collect();
        Detokenizer::new(table, is_text, None)
    }

    pub(crate) fn to_json(&self) -> String {
        let file = File { format: FORMAT.into(), characters: self.chars.iter().collect() };
        serde_json::to_string(&file).unwrap_or_default()
    }

    /// None: not a character tokenizer. An error: one that cannot be used.
    pub(crate) fn from_json(json: &[u8]) -> Option<Result<Self, String>> {
        let file: File = serde_json::from_slice(json).ok()?;
        let chars: Vec<char> = file.characters.chars().collect();
        Some(if file.format != FORMAT {
            Err(format!("its format is `{}`, this program reads `{FORMAT}`", file.format))
        } else if chars.windows(2).any(|w| w[0] >= w[1]) {
            Err("its characters are not in order: it was changed by hand; train it again".into())
        } else {
            Ok(Self::from_sorted(chars))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_have_one_id_and_others_their_bytes() {
        let c = Chars::of(["ba", "é"]);
        assert_eq!(c.encode("abé"), [0, 1, 2]);
        assert_eq!(c.encode("ß"), [3 + 0xc3, 3 + 0x9f]);
        assert_eq!(c.special(), SpecialTokens { bos: 259, eos: 260, pad: 261 });
        assert_eq!(c.token_table().len(), 262);
        assert!(c.token_table().is_text(258) && !c.token_table().is_text(259));
    }

    #[test]
    fn the_file_comes_back_and_a_changed_one_is_refused() {
        let c = Chars::of(["\0\n\"héllo"]);
        let json = c.to_json();
        assert_eq!(Chars::from_json(json.as_bytes()).unwrap().unwrap().chars, c.chars);
        let unordered = r#"{"format":"calm characters 1","characters":"ba"}"#;
        assert!(Chars::from_json(unordered.as_bytes()).unwrap().is_err());
        assert!(Chars::from_json(json.replace("1\"", "9\"").as_bytes()).unwrap().is_err());
        assert!(Chars::from_json(b"{}").is_none());
    }
}
