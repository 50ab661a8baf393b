//! Which tokens count in loss and scores, where not all do: what the marks of a [section](crate::section) say of a
//! document.
//!
//! EOS is in no token file. It belongs to what stands before it, and counts if the last token of its document does.

use std::ops::Range;

use crate::token_file::TokenFile;

/// The tokens of a document that count.
#[derive(Clone, Copy, Debug)]
pub struct Counting<'a> {
    /// Marks of its section.
    words: &'a [u64],
    /// Its tokens there.
    from: usize,
    end: usize,
}

impl Counting<'_> {
    fn marked(&self, token: usize) -> bool {
        self.words[token / 64] >> (token % 64) & 1 == 1
    }

    /// Whether token `token` of the document counts; after the last one comes EOS, and nothing behind it counts.
    pub fn token(&self, token: usize) -> bool {
        let at = self.from + token.min(self.end - self.from);
        match at < self.end {
            true => self.marked(at),
            false => token == self.end - self.from && self.from < self.end && self.marked(self.end - 1),
        }
    }

    /// Whether any of these tokens does.
    pub fn any(&self, tokens: Range<usize>) -> bool {
        let last = self.end - self.from + 1;
        (tokens.start..tokens.end.min(last)).any(|token| self.token(token))
    }

    /// How many tokens count, EOS not among them.
    pub fn count(&self) -> u64 {
        (self.from..self.end).filter(|at| self.marked(*at)).count() as u64
    }
}

impl TokenFile {
    /// Whether every token counts, wherever it stands.
    pub(crate) fn counts_all(&self) -> bool {
        !self.is_marked() && self.input_share() <= 0.0
    }

    /// Chunks at the beginning of a window of `chunks` that are input alone: its share of them, rounded down; one at least
    /// is left.
    pub(crate) fn input_of(&self, chunks: usize) -> usize {
        // 0.29 of 100 is 29, though the product of the nearest numbers is a little less.
        let share = (chunks as f64 * self.input_share() + 1e-9).floor();
        (share as usize).min(chunks.saturating_sub(1))
    }

    /// The tokens of document `i` that count; none where all do.
    ///
    /// # Panics
    /// If there is no such document.
    pub fn counting(&self, i: usize) -> Option<Counting<'_>> {
        let (section, i) = self.place(i);
        let (from, end) = section.range(i);
        section.marks().map(|words| Counting { words, from, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::token_file::TokenWriter;

    fn writer(vocab: usize) -> TokenWriter {
        TokenWriter::new(vocab, [1; 32], [2; 32]).marked()
    }

    #[test]
    fn marks_come_back_from_a_file_and_eos_counts_with_the_token_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tokens");
        for vocab in [300, 70_000] {
            let mut writer = writer(vocab);
            writer.push_marked(&[1; 70], 9, &[2..5, 63..66]);
            writer.push_marked(&[], 0, &[]);
            writer.push_marked(&[2, 3], 2, std::slice::from_ref(&(1..9)));
            let file = writer.write(&path).unwrap();
            file.verify().unwrap();
            assert!(file.is_marked());
            let counting = |i: usize| -> Vec<usize> {
                let found = file.counting(i).unwrap();
                (0..80).filter(|token| found.token(*token)).collect()
            };
            assert_eq!(counting(0), [2, 3, 4, 63, 64, 65]);
            assert!(counting(1).is_empty());
            assert_eq!(counting(2), [1, 2], "EOS too");
            let first = file.counting(0).unwrap();
            assert_eq!(
                (first.count(), first.any(5..63), first.any(4..6), first.any(65..99)),
                (6, false, true, true)
            );
            assert!(!file.counting(2).unwrap().any(3..9));
            assert_eq!(file.document(2).to_vec(), [2, 3]);
        }
    }

    #[test]
    fn a_share_is_rounded_down_and_leaves_a_chunk() {
        let file = TokenFile::in_memory(&[(vec![1; 9], 9)], [1; 32], [2; 32]);
        for (share, chunks, input) in [
            (0.29, 100, 29),
            (0.57, 100, 57),
            (0.5, 7, 3),
            (0.25, 3, 0),
            (1.0 - f64::EPSILON, 8, 7),
            (0.5, 1, 0),
            (0.5, 0, 0),
            (0.0, 8, 0),
        ] {
            assert_eq!(file.clone().after_share(share).input_of(chunks), input, "{share} of {chunks}");
        }
    }

    #[test]
    fn a_changed_mark_is_noticed_and_files_without_marks_have_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.tokens");
        let mut marked = writer(300);
        marked.push_marked(&[1, 2, 3], 3, std::slice::from_ref(&(0..2)));
        let hash = marked.write(&path).unwrap().hash();
        let mut bytes = std::fs::read(&path).unwrap();
        // The word of marks stands before three ids of two bytes.
        let at = bytes.len() - 6 - 8;
        assert_eq!(bytes[at], 0b11);
        bytes[at] = 0b111;
        std::fs::write(&path, &bytes).unwrap();
        let error = TokenFile::open(&path).unwrap().verify().unwrap_err().to_string();
        assert!(error.contains("differ"), "{error}");
        let mut plain = TokenWriter::new(300, [1; 32], [2; 32]);
        plain.push(&[1, 2, 3], 3);
        let plain = plain.write(&path).unwrap();
        assert!(!plain.is_marked() && plain.counting(0).is_none() && plain.hash() != hash);
    }
}
