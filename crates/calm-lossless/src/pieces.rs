//! Where a file is cut, and what the tokenizer makes of each piece.
//!
//! A piece that does not come back from its tokens (bytes that are no text, a character that a normaliser changes, an unknown
//! word) is halved until what is left is small; only that is coded as bytes.

use calm_data::Tokenizer;

use crate::container::{BLOCK, Kind};

/// Fewest bytes that a block is cut down to for the sake of its tokens, or of many windows.
const SMALL: usize = 1 << 10;
/// Where a piece of text should end, bytes before its limit that are looked through.
const SEEK: usize = 1 << 8;

/// A block to be.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub bytes: &'a [u8],
    /// None where it is coded as bytes.
    pub tokens: Option<Vec<u32>>,
}

impl Piece<'_> {
    pub(crate) fn kind(&self) -> Kind {
        if self.tokens.is_some() { Kind::Tokens } else { Kind::Bytes }
    }
}

/// A file in pieces of at most `most` bytes, as few as can be.
pub(crate) fn cut<'a>(bytes: &'a [u8], most: usize, tokenizer: &Tokenizer) -> Vec<Piece<'a>> {
    let (mut out, mut rest) = (Vec::new(), bytes);
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(end(rest, most.clamp(SMALL, BLOCK)));
        add(piece, tokenizer, &mut out);
        rest = after;
    }
    out
}

fn add<'a>(bytes: &'a [u8], tokenizer: &Tokenizer, out: &mut Vec<Piece<'a>>) {
    if let Some(tokens) = tokens(bytes, tokenizer) {
        return out.push(Piece { bytes, tokens: Some(tokens) });
    }
    if bytes.len() <= SMALL {
        return out.push(Piece { bytes, tokens: None });
    }
    let (first, second) = bytes.split_at(end(bytes, bytes.len() / 2));
    let begins = out.len();
    add(first, tokenizer, out);
    add(second, tokenizer, out);
    // Nothing of it is text: one block, whose counts learn from all of it.
    if out[begins..].iter().all(|piece| piece.tokens.is_none()) {
        out.truncate(begins);
        out.push(Piece { bytes, tokens: None });
    }
}

/// Where a piece of at most `most` bytes ends: after a space or line if one is near, and never within a character.
fn end(bytes: &[u8], most: usize) -> usize {
    if bytes.len() <= most {
        return bytes.len();
    }
    let near = most.saturating_sub(SEEK).max(1);
    let space = |wanted: u8| bytes[near..most].iter().rposition(|x| *x == wanted).map(|at| near + at);
    // Before a space, as tokens of words begin with theirs.
    if let Some(at) = space(b'\n').map(|at| at + 1).or_else(|| space(b' ')) {
        return at;
    }
    let inside = |at: &usize| bytes[*at] & 0xc0 == 0x80;
    (near..=most).rev().find(|at| !inside(at)).unwrap_or(most)
}

/// Tokens that become these bytes again; None where there are none.
fn tokens(bytes: &[u8], tokenizer: &Tokenizer) -> Option<Vec<u32>> {
    let ids = tokenizer.encode(std::str::from_utf8(bytes).ok()?).ok()?;
    let special = tokenizer.special();
    let known = |id: &u32| {
        (*id as usize) < tokenizer.vocab_size() && ![special.bos, special.eos, special.pad].contains(id)
    };
    (ids.len() <= bytes.len() && ids.iter().all(known) && tokenizer.decode_bytes(&ids) == bytes)
        .then_some(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_the_file_and_text_survives_bytes_beside_it() {
        let tokenizer = Tokenizer::characters(["abc déf\n"]);
        let text = "abc déf\n".repeat(600);
        let mut file = text.clone().into_bytes();
        file.extend([0xff, 0xfe, 0x80]);
        file.extend(text.as_bytes());
        for most in [1, 1 << 11, 1 << 20] {
            let pieces = cut(&file, most, &tokenizer);
            let all: Vec<u8> = pieces.iter().flat_map(|p| p.bytes.iter().copied()).collect();
            assert_eq!(all, file);
            let as_bytes: usize = pieces.iter().filter(|p| p.tokens.is_none()).map(|p| p.bytes.len()).sum();
            assert!((3..=SMALL).contains(&as_bytes), "{as_bytes}");
        }
        assert!(cut(b"", 1, &tokenizer).is_empty());
        let noise: Vec<u8> = (0..5000u32).map(|i| 0x80 | i as u8).collect();
        assert_eq!(cut(&noise, 1 << 16, &tokenizer).len(), 1);
    }

    #[test]
    fn no_character_is_cut() {
        let text = "é€😀".repeat(1000);
        for most in 20..60 {
            let at = end(text.as_bytes(), most);
            assert!(text.is_char_boundary(at) && at <= most);
        }
    }
}
