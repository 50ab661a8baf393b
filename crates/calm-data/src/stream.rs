//! Text as its tokens come: the same in the end as that of all of them at once.

use crate::detokenizer::Detokenizer;

/// Tokens that are decoded together; older ones no longer change what follows.
const LONGEST: usize = 256;
/// Tokens after which older ones go in any case: a text of nothing but spaces gives no other sign.
const MOST: usize = 16 * LONGEST;
/// Tokens that are kept of them.
const KEPT: usize = 64;

/// The text that follows a text, token by token. What is handed out is never taken back: an unfinished character
/// waits for its remaining bytes.
pub struct TextStream<'a> {
    of: &'a Detokenizer,
    /// Bytes that are no whole character yet, of a vocabulary of bytes.
    pending: Vec<u8>,
    /// The latest ids, of any other vocabulary, and the text of those that were settled.
    ids: Vec<u32>,
    shown: String,
    /// Whether the text before ended with white space that its ids do not have.
    trim: bool,
}

impl std::fmt::Debug for TextStream<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.debug_struct("TextStream").field("shown", &self.shown).finish_non_exhaustive()
    }
}

impl<'a> TextStream<'a> {
    /// After a text and its ids.
    pub(crate) fn after(of: &'a Detokenizer, text: &str, ids: &[u32]) -> Self {
        let mut stream = Self { of, pending: Vec::new(), ids: Vec::new(), shown: String::new(), trim: false };
        if !of.joins_bytes() {
            let mut before: Vec<u32> = ids.iter().copied().filter(|id| of.is_text(*id)).collect();
            if before.is_empty() && !text.trim().is_empty() {
                // Nothing but unknown words: what follows joins them as it would join any other.
                before.extend(of.a_word());
            }
            stream.ids = before[before.len().saturating_sub(KEPT)..].to_vec();
            stream.shown = stream.text_of(stream.ids.len());
            let blank = |text: &str| text.ends_with(char::is_whitespace);
            stream.trim = blank(text) && !blank(&stream.shown);
        }
        stream
    }

    fn text_of(&self, count: usize) -> String {
        let bytes = self.of.bytes(&self.ids[..count]);
        String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned())
    }

    /// Adds ids; returns the text that is complete.
    pub fn push(&mut self, ids: &[u32]) -> String {
        if self.of.joins_bytes() {
            self.pending.extend(self.of.bytes(ids));
            return self.whole_characters();
        }
        self.ids.extend(ids.iter().filter(|id| self.of.is_text(**id)));
        let fresh = self.fresh(self.of.settled(&self.ids));
        if self.ids.len() > LONGEST {
            self.forget();
        }
        fresh
    }

    /// What was left unfinished.
    pub fn finish(&mut self) -> String {
        if self.of.joins_bytes() {
            let rest = if self.pending.is_empty() { "" } else { "\u{fffd}" };
            self.pending.clear();
            return rest.to_owned();
        }
        self.fresh(self.ids.len())
    }

    /// The text of the first `count` ids that was not shown.
    fn fresh(&mut self, count: usize) -> String {
        let text = self.text_of(count);
        let same = text.chars().zip(self.shown.chars()).take_while(|(a, b)| a == b);
        let mut fresh = &text[same.map(|(c, _)| c.len_utf8()).sum()..];
        if self.trim {
            fresh = fresh.trim_start();
            self.trim = fresh.is_empty();
        }
        let fresh = fresh.to_owned();
        self.shown = text;
        fresh
    }

    /// Drops old ids, if the text of the younger ones is the end of the text of all.
    fn forget(&mut self) {
        let settled = self.of.settled(&self.ids);
        let old = std::mem::take(&mut self.ids);
        self.ids = old[settled.saturating_sub(KEPT)..].to_vec();
        let text = self.text_of(self.of.settled(&self.ids));
        // The first token of a text may have lost its space.
        let end = text.trim_start();
        let sure = !end.is_empty() && self.shown.ends_with(end);
        if sure || old.len() > MOST {
            self.shown = text;
        } else {
            self.ids = old;
        }
    }

    /// The characters of the bytes so far; what can never become one is U+FFFD.
    fn whole_characters(&mut self) -> String {
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(rest) => {
                    text.push_str(rest);
                    self.pending.clear();
                    return text;
                }
                Err(e) => {
                    let good = e.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.pending[..good]));
                    match e.error_len() {
                        // An unfinished character waits for its remaining bytes.
                        None => {
                            self.pending.drain(..good);
                            return text;
                        }
                        Some(bad) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            self.pending.drain(..good + bad);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detokenizer::Own;

    fn of_bytes() -> Detokenizer {
        Detokenizer::new((0..=255u8).map(|b| Box::from([b])).collect(), vec![true; 256], None)
    }

    fn push(stream: &mut TextStream<'_>, bytes: &[u8]) -> String {
        stream.push(&bytes.iter().map(|b| u32::from(*b)).collect::<Vec<_>>())
    }

    #[test]
    fn characters_cut_in_two_wait_for_their_other_half() {
        let of = of_bytes();
        let mut stream = TextStream::after(&of, "", &[]);
        let text: String = "aé€".as_bytes().iter().map(|b| push(&mut stream, &[*b])).collect();
        assert_eq!(text, "aé€");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn what_follows_unknown_words_does_not_run_into_them() {
        let tokens = ["[UNK]", ",", "loud", "moon"].map(|token| Box::from(token.as_bytes())).to_vec();
        let own = Own { decoder: None, byte_tokens: false };
        let of = Detokenizer::new(tokens, vec![false, true, true, true], Some(own));
        for (text, ids, wanted) in
            [("zzz", &[0][..], " loud moon"), ("zzz ", &[0], "loud moon"), ("", &[], "loud moon")]
        {
            let mut stream = TextStream::after(&of, text, ids);
            assert_eq!(stream.push(&[2]) + &stream.push(&[3]) + &stream.finish(), wanted, "{text:?}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_become_replacement_characters() {
        let of = of_bytes();
        let mut stream = TextStream::after(&of, "", &[]);
        assert_eq!(push(&mut stream, &[b'a', 0xff, b'b', 0xc3]), "a\u{fffd}b");
        assert_eq!(stream.finish(), "\u{fffd}");
    }
}
