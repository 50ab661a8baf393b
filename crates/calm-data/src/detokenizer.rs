//! Text of ids.
//!
//! A byte-level vocabulary and characters: the bytes of the tokens joined. Any other: what the tokenizer's own
//! decoder makes of all of them together, since spaces and joints depend on the neighbours. One thing is done
//! otherwise than in the library, as the original sentence pieces do it: of a row of byte tokens that is no UTF-8
//! only the wrong bytes become U+FFFD, so that no whole character is lost beside half a one.

use tokenizers::{Decoder, DecoderWrapper};

use crate::caught::caught;
use crate::guard::byte_of;

/// What the ids of a tokenizer say.
pub(crate) struct Detokenizer {
    /// Text of each id, as the vocabulary writes it unless `own` is none; empty for the silent ones.
    tokens: Vec<Box<[u8]>>,
    /// Which ids are text: not special, and a token has them.
    is_text: Vec<bool>,
    own: Option<Own>,
}

/// How tokens that are not bytes become text.
pub(crate) struct Own {
    /// None: with spaces between them.
    pub(crate) decoder: Option<DecoderWrapper>,
    /// Whether `<0x0A>` is a byte.
    pub(crate) byte_tokens: bool,
}

impl Detokenizer {
    pub(crate) fn new(tokens: Vec<Box<[u8]>>, is_text: Vec<bool>, own: Option<Own>) -> Self {
        Self { tokens, is_text, own }
    }

    /// Number of ids.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the text of a sequence is that of its tokens joined.
    pub(crate) fn joins_bytes(&self) -> bool {
        self.own.is_none()
    }

    pub(crate) fn token(&self, id: u32) -> &[u8] {
        self.tokens.get(id as usize).map_or(&[], |bytes| bytes)
    }

    pub(crate) fn is_text(&self, id: u32) -> bool {
        self.is_text.get(id as usize).copied().unwrap_or(false)
    }

    /// Bytes of text of these ids; special and unknown ids have none.
    pub(crate) fn bytes(&self, ids: &[u32]) -> Vec<u8> {
        let text = ids.iter().filter(|id| self.is_text(**id));
        match &self.own {
            None => text.flat_map(|id| self.token(*id)).copied().collect(),
            Some(own) => {
                let tokens: Vec<String> = text.map(|id| self.written(*id)).collect();
                own.decode(tokens).into_bytes()
            }
        }
    }

    /// How many of these ids, from the first on, make whole characters.
    pub(crate) fn settled(&self, ids: &[u32]) -> usize {
        if !self.own.as_ref().is_some_and(|own| own.byte_tokens) {
            return ids.len();
        }
        // A character has at most four bytes.
        let row: Vec<u8> = ids.iter().rev().take(3).map_while(|id| byte_of(&self.written(*id))).collect();
        let unfinished = (1..=row.len()).filter(|&n| {
            let bytes: Vec<u8> = row[..n].iter().rev().copied().collect();
            std::str::from_utf8(&bytes).is_err_and(|e| e.valid_up_to() == 0 && e.error_len().is_none())
        });
        ids.len() - unfinished.max().unwrap_or(0)
    }

    /// A token that is a word by itself, if there is one.
    pub(crate) fn a_word(&self) -> Option<u32> {
        let is_word = |id: &u32| {
            let text = self.bytes(&[*id]);
            let letters = std::str::from_utf8(&text).is_ok_and(|text| text.chars().all(char::is_alphabetic));
            letters && !text.is_empty() && byte_of(&self.written(*id)).is_none()
        };
        (0..self.len()).map(|id| id as u32).find(is_word)
    }

    fn written(&self, id: u32) -> String {
        String::from_utf8_lossy(self.token(id)).into_owned()
    }

    /// Tries the decoder on single tokens, spread over the vocabulary.
    ///
    /// # Errors
    /// What the decoder answers.
    pub(crate) fn check(&self) -> Result<(), String> {
        const TRIED: usize = 1000;
        let Some(Own { decoder: Some(decoder), .. }) = &self.own else { return Ok(()) };
        for id in (0..self.len()).step_by(self.len().div_ceil(TRIED).max(1)).map(|id| id as u32) {
            if self.is_text(id) {
                let token = self.written(id);
                let decoded = caught(|| decoder.decode(vec![token.clone()]));
                decoded
                    .and_then(|text| text.map_err(|e| e.to_string()))
                    .map_err(|e| format!("its decoder fails on the token {token:?}: {e}"))?;
            }
        }
        Ok(())
    }
}

impl Own {
    fn decode(&self, mut tokens: Vec<String>) -> String {
        if tokens.is_empty() {
            return String::new();
        }
        if self.byte_tokens {
            tokens = without_broken_characters(tokens);
        }
        let Some(decoder) = &self.decoder else { return tokens.join(" ") };
        let decoded = caught(|| decoder.decode(tokens.clone()).ok()).ok().flatten();
        // A decoder that was tried when it was read and fails now: the tokens as they are written.
        decoded.unwrap_or_else(|| tokens.concat())
    }
}

/// Byte tokens that belong to no character become U+FFFD.
fn without_broken_characters(tokens: Vec<String>) -> Vec<String> {
    let mut clean = Vec::with_capacity(tokens.len());
    let mut row: Vec<u8> = Vec::new();
    let mut first = 0;
    let flush = |row: &mut Vec<u8>, first: usize, clean: &mut Vec<String>| {
        let mut from = 0;
        while let Err(e) = std::str::from_utf8(&row[from..]) {
            let good = from + e.valid_up_to();
            let bad = e.error_len().unwrap_or(row.len() - good);
            clean.extend_from_slice(&tokens[first + from..first + good]);
            clean.extend((0..bad).map(|_| char::REPLACEMENT_CHARACTER.to_string()));
            from = good + bad;
        }
        clean.extend_from_slice(&tokens[first + from..first + row.len()]);
        row.clear();
    };
    for (i, token) in tokens.iter().enumerate() {
        match byte_of(token) {
            Some(byte) => {
                if row.is_empty() {
                    first = i;
                }
                row.push(byte);
            }
            None => {
                flush(&mut row, first, &mut clean);
                clean.push(token.clone());
            }
        }
    }
    flush(&mut row, first, &mut clean);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokenizers::decoders::byte_fallback::ByteFallback;

    fn of_bytes() -> Detokenizer {
        let mut tokens: Vec<Box<[u8]>> =
            (0..=255u8).map(|b| format!("<0x{b:02X}>").into_bytes().into_boxed_slice()).collect();
        tokens.push(Box::from(*b"a"));
        let own = Own { decoder: Some(ByteFallback::new().into()), byte_tokens: true };
        Detokenizer::new(tokens, vec![true; 257], Some(own))
    }

    fn text(ids: &[u32]) -> String {
        String::from_utf8(of_bytes().bytes(ids)).unwrap()
    }

    #[test]
    fn of_bytes_that_are_no_text_only_the_wrong_ones_are_lost() {
        let ids: Vec<u32> = "é😀".bytes().map(u32::from).collect();
        assert_eq!(text(&ids), "é😀");
        assert_eq!(text(&[&ids[..], &[0xff], &ids].concat()), "é😀\u{fffd}é😀");
        assert_eq!(text(&ids[..5]), "é\u{fffd}\u{fffd}\u{fffd}");
        assert_eq!(text(&[256, 0xc3, 256, 0xa9, 256]), "a\u{fffd}a\u{fffd}a");
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn an_unfinished_character_is_not_settled() {
        let of = of_bytes();
        let ids: Vec<u32> = "a😀".bytes().map(u32::from).collect();
        assert_eq!((1..=5).map(|n| of.settled(&ids[..n])).collect::<Vec<_>>(), [1, 1, 1, 1, 5]);
        assert_eq!(of.settled(&[0xc3, 256]), 2);
        assert_eq!(of.settled(&[0xff]), 1, "that will never be one");
        assert_eq!(of.settled(&[]), 0);
    }
}
