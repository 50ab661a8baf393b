//! A text file without document structure as documents, because a held-out part needs some.
//!
//! It is divided at blank lines in about 256 pieces, each of at least 2 KiB, and of no more than 64 KiB before its end
//! is looked for. Where no blank line follows within as many bytes again, a piece ends at a line's end, or (a file of
//! one line) at a space or between two characters. Joined in order the pieces are the file, byte for byte.

use super::bytes::{Text, text_at};
use super::row::Row;
use crate::error::{Error, Result};

/// Fewest and most bytes after which a piece of a text file ends.
const PIECE: (usize, usize) = (2 << 10, 64 << 10);
/// Pieces of a file that is not so large that they would be too long.
const PIECES: usize = 256;

/// The pieces of a file.
pub(super) struct Pieces {
    text: Text,
    id: String,
    /// What was read, and how much of it was handed out.
    ahead: String,
    at: usize,
    /// Bytes of a character whose end was not read.
    half: Vec<u8>,
    /// Whether all was read.
    all: bool,
    size: Option<usize>,
    number: usize,
}

impl Pieces {
    /// Of an opened file; `id` is its name in documents.
    pub(super) fn new(text: Text, id: String) -> Self {
        Self { text, id, ahead: String::new(), at: 0, half: Vec::new(), all: false, size: None, number: 0 }
    }

    /// Reads until so many bytes are ahead, or all of it.
    fn read_to(&mut self, most: usize) -> Result<()> {
        while !self.all && self.ahead.len() - self.at < most {
            self.ahead.drain(..std::mem::take(&mut self.at));
            let offset = self.text.offset - self.half.len() as u64;
            let there = self.text.fill()?;
            let n = there.len();
            self.all = n == 0;
            let mut bytes = std::mem::take(&mut self.half);
            bytes.extend_from_slice(there);
            self.text.consume(n);
            if !self.all
                && let Err(e) = std::str::from_utf8(&bytes)
                && e.error_len().is_none()
            {
                self.half = bytes.split_off(e.valid_up_to());
            }
            self.ahead.push_str(&text_at(&self.text.path, bytes, offset)?);
        }
        Ok(())
    }

    fn piece(&mut self) -> Result<Option<Row>> {
        let size = match self.size {
            Some(size) => size,
            None => {
                // A file that is longer than this has pieces of the largest size, whatever its length.
                self.read_to(PIECES * PIECE.1)?;
                *self.size.insert((self.ahead.len() / PIECES).clamp(PIECE.0, PIECE.1))
            }
        };
        let mut most = 4 * size;
        let end = loop {
            self.read_to(most)?;
            let ahead = &self.ahead[self.at..];
            if self.all && ahead.len() <= size + size / 2 {
                break ahead.len();
            }
            let end = piece_end(ahead, size);
            // A piece that ends where the reading does might go on.
            if self.all || end < ahead.len() {
                break end;
            }
            most *= 2;
            if most > 1 << 30 {
                return Err(Error::TooLong { path: self.text.path.clone(), at: self.text.offset });
            }
        };
        if end == 0 {
            return Ok(None);
        }
        let text = self.ahead[self.at..self.at + end].to_owned();
        self.at += end;
        let id = format!("{}#{}", self.id, self.number);
        self.number += 1;
        Ok(Some(Row::of_text(id, text)))
    }
}

impl Iterator for Pieces {
    type Item = Result<Row>;

    fn next(&mut self) -> Option<Self::Item> {
        self.piece().transpose()
    }
}

fn piece_end(text: &str, size: usize) -> usize {
    let from = ceil_char(text, size);
    let to = ceil_char(text, 2 * size);
    let window = &text[from..to];
    let blank = ["\n\n", "\n\r\n"].iter().filter_map(|b| window.find(b).map(|at| at + b.len())).min();
    blank
        .map(|at| {
            // Further empty lines belong to the piece that they end.
            let more = text[from + at..].bytes().take_while(|b| matches!(b, b'\n' | b'\r')).count();
            from + at + more
        })
        .or_else(|| window.find('\n').map(|at| from + at + 1))
        .or_else(|| window.find(' ').map(|at| from + at + 1))
        .unwrap_or(to)
}

/// The first character boundary at or after a byte.
fn ceil_char(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::super::bytes;
    use super::*;
    use proptest::prelude::*;

    fn pieces(text: &str) -> Vec<Row> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let text = bytes::open(file.path(), &bytes::Count::default()).unwrap();
        Pieces::new(text, "x".into()).collect::<Result<_>>().unwrap()
    }

    /// The same with all of the text in hand.
    fn plain(text: &str) -> Vec<String> {
        let size = (text.len() / PIECES).clamp(PIECE.0, PIECE.1);
        let mut pieces = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let end = if rest.len() <= size + size / 2 { rest.len() } else { piece_end(rest, size) };
            let (piece, after) = rest.split_at(end);
            pieces.push(piece.to_owned());
            rest = after;
        }
        pieces
    }

    fn texts(rows: Vec<Row>) -> Vec<String> {
        rows.into_iter().map(|row| row.text.text).collect()
    }

    #[test]
    fn a_text_file_is_divided_at_blank_lines() {
        let paragraph = format!("{}\n", "line of words\n".repeat(40));
        let rows = pieces(&paragraph.repeat(40));
        assert!(rows.len() >= 8, "{}", rows.len());
        assert!(rows.iter().all(|d| d.text.text.ends_with("\n\n") && d.text.text.starts_with("line")));
        assert!(rows.iter().all(|d| d.text.text.len() >= PIECE.0));
        assert_eq!(rows[1].id, "x#1");
    }

    #[test]
    fn one_endless_line_is_divided_too() {
        for text in ["é".repeat(20_000), "word ".repeat(20_000), "é".repeat(12 << 20)] {
            let found = texts(pieces(&text));
            assert!(found.len() > 5);
            assert_eq!(found, plain(&text));
        }
    }

    #[test]
    fn a_long_file_is_divided_while_it_is_read() {
        let mut text = String::new();
        for n in 0..40_000 {
            text.push_str(&format!("paragraph {n}\n{}\n", "é words and\nmore ".repeat(n % 97)));
            text.push_str(&"\n".repeat(if n % 1_000 == 0 { 200_000 } else { n % 3 }));
        }
        assert!(text.len() > PIECES * PIECE.1, "{}", text.len());
        assert!(texts(pieces(&text)) == plain(&text));
    }

    proptest! {
        #[test]
        fn the_pieces_joined_are_the_file(text in "([a-zé☃ \n]{0,80}|\r\n\r\n|\n\n\n){0,40}", times in 1usize..200) {
            prop_assume!(!text.starts_with('\u{feff}') && !text.is_empty());
            let text = text.repeat(times);
            let found = texts(pieces(&text));
            prop_assert_eq!(&found.concat(), &text);
            prop_assert!(found.iter().all(|d| d.len() <= 2 * PIECE.1 + 100 && !d.is_empty()));
            prop_assert_eq!(found, plain(&text));
        }
    }
}
