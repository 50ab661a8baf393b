//! The file: a header that says everything that reading needs, a table of blocks, and their codes.
//!
//! ```text
//! magic 6 | version u16 | model 16 | windows u32 | overlap u32 | draws u32 | length u64 | blocks u32
//! for each block: kind u8 | bytes u32 | tokens u32 | code u32 | sum of the code 8 | sum of the bytes 8
//! sum of all that 8
//! the blocks' codes, one after the other
//! ```
//! Every version keeps these places, so that a damaged version is told from another one. Numbers are little-endian; sums are the first bytes of BLAKE3. A block's window follows from where it begins. A damaged
//! code is known before a model reads it; the sum of the bytes then proves what came out.

use std::ops::Range;

use crate::error::{Error, Result};

/// How a file begins.
pub const MAGIC: [u8; 6] = *b"calm\0z";
/// Raised when the same bytes become another file, or a file other bytes.
pub const VERSION: u16 = 1;

/// Most bytes of a block.
pub(crate) const BLOCK: usize = 1 << 16;
/// Most windows of a file.
pub(crate) const WINDOWS: u32 = 1 << 16;
/// Most latent vectors a chunk.
pub(crate) const DRAWS: u32 = 1 << 12;

const FIXED: usize = 6 + 2 + 16 + 4 + 4 + 4 + 8 + 4;
const ENTRY: usize = 1 + 4 + 4 + 4 + 8 + 8;
const SUM: usize = 8;

pub(crate) type Model = [u8; 16];
type Sum = [u8; SUM];

pub(crate) fn sum(bytes: &[u8]) -> Sum {
    *blake3::hash(bytes).as_bytes().first_chunk().unwrap_or(&[0; SUM])
}

pub(crate) fn hex(model: &Model) -> String {
    model.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How a block is coded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// As it is.
    Stored,
    /// By counts of its bytes.
    Bytes,
    /// By the model.
    Tokens,
}

/// What the table says of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// How it is coded.
    pub kind: Kind,
    /// Of the original.
    pub bytes: u32,
    /// Coded by the model.
    pub tokens: u32,
    /// Bytes of the code.
    pub code: u32,
    pub(crate) code_sum: Sum,
    pub(crate) plain_sum: Sum,
}

impl Entry {
    /// Whether something that was written here could say this.
    fn is_possible(&self) -> bool {
        let words = self.code.is_multiple_of(4);
        let fits = match self.kind {
            Kind::Stored => self.tokens == 0 && self.code == self.bytes,
            Kind::Bytes => self.tokens == 0 && self.code < self.bytes && words,
            Kind::Tokens => (1..=self.bytes).contains(&self.tokens) && self.code <= self.bytes && words,
        };
        fits && (1..=BLOCK as u32).contains(&self.bytes)
    }
}

/// Everything but the codes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub(crate) model: Model,
    /// Pieces that know nothing of each other.
    pub windows: u32,
    /// Tokens that are read again when the context is full.
    pub overlap: u32,
    /// Latent vectors a chunk.
    pub draws: u32,
    /// Of the original, bytes.
    pub length: u64,
    /// The blocks in order.
    pub blocks: Vec<Entry>,
}

impl Header {
    pub(crate) fn write(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FIXED + self.blocks.len() * ENTRY + SUM);
        out.extend(MAGIC);
        out.extend(VERSION.to_le_bytes());
        out.extend(self.model);
        for number in [self.windows, self.overlap, self.draws] {
            out.extend(number.to_le_bytes());
        }
        out.extend(self.length.to_le_bytes());
        out.extend((self.blocks.len() as u32).to_le_bytes());
        for block in &self.blocks {
            out.push(block.kind as u8);
            for number in [block.bytes, block.tokens, block.code] {
                out.extend(number.to_le_bytes());
            }
            out.extend(block.code_sum);
            out.extend(block.plain_sum);
        }
        let sum = sum(&out);
        out.extend(sum);
        out
    }

    /// Which bytes of the original a block holds.
    pub(crate) fn range(&self, block: usize) -> Range<u64> {
        let from = self.blocks[..block].iter().map(|b| u64::from(b.bytes)).sum();
        from..from + u64::from(self.blocks[block].bytes)
    }

    pub(crate) fn damaged(&self, block: usize) -> Error {
        Error::Block { number: block + 1, blocks: self.blocks.len(), bytes: self.range(block) }
    }

    /// A file of which so many bytes of codes are there, and not all.
    fn cut_off(&self, found: usize, expected: usize, codes: u64) -> Error {
        let mut end = 0;
        let whole = self.blocks.iter().take_while(|block| {
            end += u64::from(block.code);
            end <= codes
        });
        let first = whole.count();
        Error::CutOff {
            found,
            expected,
            number: first + 1,
            blocks: self.blocks.len(),
            bytes: self.range(first),
        }
    }

    pub(crate) fn differs(&self, block: usize) -> Error {
        Error::Differs { number: block + 1, blocks: self.blocks.len(), bytes: self.range(block) }
    }
}

/// Which of so many windows a block that begins at this byte of the original belongs to.
pub(crate) fn window_of(from: u64, length: u64, windows: u32) -> usize {
    (u128::from(from) * u128::from(windows) / u128::from(length.max(1))) as usize
}

struct Cursor<'a>(&'a [u8]);

impl Cursor<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (first, rest) = self.0.split_first_chunk().ok_or(Error::Header)?;
        self.0 = rest;
        Ok(*first)
    }

    fn number(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.take()?))
    }
}

/// The header of a file, and the codes behind it.
///
/// # Errors
/// Something else than a file of ours; a damaged header, or one that nothing here writes; another version; codes that are
/// longer or shorter than it says.
pub fn read_header(file: &[u8]) -> Result<(Header, &[u8])> {
    let Some(rest) = file.strip_prefix(&MAGIC) else { return Err(Error::Foreign) };
    let mut cursor = Cursor(rest);
    let version = u16::from_le_bytes(cursor.take()?);
    let model = cursor.take()?;
    let (windows, overlap, draws) = (cursor.number()?, cursor.number()?, cursor.number()?);
    let length = u64::from_le_bytes(cursor.take()?);
    let count = cursor.number()? as usize;
    let size = count.checked_mul(ENTRY).and_then(|n| n.checked_add(FIXED)).ok_or(Error::Header)?;
    let own = file.get(..size).ok_or(Error::Header)?;
    if file.get(size..size + SUM) != Some(&sum(own)) {
        return Err(Error::Header);
    }
    if version != VERSION {
        return Err(Error::Version { file: version, own: VERSION });
    }
    let mut blocks = Vec::with_capacity(count);
    for _ in 0..count {
        let kind = match cursor.take()? {
            [0] => Kind::Stored,
            [1] => Kind::Bytes,
            [2] => Kind::Tokens,
            _ => return Err(Error::Header),
        };
        let (bytes, tokens, code) = (cursor.number()?, cursor.number()?, cursor.number()?);
        blocks.push(Entry { kind, bytes, tokens, code, code_sum: cursor.take()?, plain_sum: cursor.take()? });
    }
    let header = Header { model, windows, overlap, draws, length, blocks };
    let codes = &file[size + SUM..];
    let all = |of: fn(&Entry) -> u32| header.blocks.iter().map(|b| u64::from(of(b))).sum::<u64>();
    // A sum proves no good will: what is said here decides how much is held and computed.
    let possible = (1..=WINDOWS).contains(&windows)
        && overlap >= 1
        && draws <= DRAWS
        && header.blocks.iter().all(Entry::is_possible)
        && all(|b| b.bytes) == length;
    if !possible {
        return Err(Error::Header);
    }
    let expected = size + SUM + all(|b| b.code) as usize;
    if file.len() > expected {
        return Err(Error::Length { found: file.len(), expected });
    }
    if file.len() < expected {
        return Err(header.cut_off(file.len(), expected, codes.len() as u64));
    }
    Ok((header, codes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One block of each kind.
    fn honest() -> Header {
        let entry = |kind: Kind, bytes: u32, tokens: u32, code: u32| Entry {
            kind,
            bytes,
            tokens,
            code,
            code_sum: [0; SUM],
            plain_sum: [0; SUM],
        };
        let blocks = vec![
            entry(Kind::Stored, 5, 0, 5),
            entry(Kind::Bytes, 900, 0, 8),
            entry(Kind::Tokens, BLOCK as u32, 9, 12),
        ];
        let length = 905 + BLOCK as u64;
        Header { model: [7; 16], windows: WINDOWS, overlap: 1, draws: DRAWS, length, blocks }
    }

    /// A header whose sum fits, before the codes of the honest one.
    fn file(header: &Header) -> Vec<u8> {
        let mut file = header.write();
        file.extend([0; 5 + 8 + 12]);
        file
    }

    #[test]
    fn a_header_whose_sum_fits_says_nothing_that_is_not_written() {
        let whole = file(&honest());
        assert!(read_header(&whole).is_ok_and(|(header, codes)| header == honest() && codes.len() == 25));
        let forgeries: [fn(&mut Header); 18] = [
            |h: &mut Header| h.windows = 0,
            |h: &mut Header| h.windows = WINDOWS + 1,
            |h: &mut Header| h.windows = u32::MAX,
            |h: &mut Header| h.overlap = 0,
            |h: &mut Header| h.draws = DRAWS + 1,
            |h: &mut Header| h.draws = u32::MAX,
            |h: &mut Header| h.blocks[0].bytes = 0,
            |h: &mut Header| h.blocks[0].tokens = 1,
            |h: &mut Header| h.blocks[0].code = 4,
            |h: &mut Header| h.blocks[1].tokens = 1,
            |h: &mut Header| h.blocks[1].code = 900,
            |h: &mut Header| h.blocks[1].code = 7,
            |h: &mut Header| h.blocks[2].bytes = BLOCK as u32 + 1,
            |h: &mut Header| h.blocks[2].tokens = 0,
            |h: &mut Header| h.blocks[2].tokens = BLOCK as u32 + 1,
            |h: &mut Header| h.blocks[2].tokens = u32::MAX,
            |h: &mut Header| h.blocks[2].code = 13,
            |h: &mut Header| h.blocks[2].code = BLOCK as u32 + 4,
        ];
        for (i, forge) in forgeries.iter().enumerate() {
            let mut header = honest();
            forge(&mut header);
            header.length = header.blocks.iter().map(|block| u64::from(block.bytes)).sum();
            assert!(matches!(read_header(&file(&header)), Err(Error::Header)), "forgery {i}");
        }
        for length in [0, honest().length - 1, u64::MAX] {
            let header = Header { length, ..honest() };
            assert!(matches!(read_header(&file(&header)), Err(Error::Header)), "{length} bytes");
        }
        // More blocks than there are bytes for.
        let mut many = whole;
        many[FIXED - 4..FIXED].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(matches!(read_header(&many), Err(Error::Header)));
    }

    #[test]
    fn a_damaged_version_is_damage_and_a_whole_one_another_version() {
        let mut other = file(&honest());
        other[6] ^= 2;
        assert!(matches!(read_header(&other), Err(Error::Header)));
        let end = FIXED + 3 * ENTRY;
        let own = sum(&other[..end]);
        other[end..end + SUM].copy_from_slice(&own);
        assert!(matches!(read_header(&other), Err(Error::Version { file: 3, own: VERSION })));
    }

    #[test]
    fn a_file_that_is_cut_off_names_the_first_block_that_is_not_all_there() {
        let whole = file(&honest());
        let begin = whole.len() - 25;
        for (codes, block, from) in [(0, 1, 0), (4, 1, 0), (5, 2, 5), (12, 2, 5), (13, 3, 905), (24, 3, 905)]
        {
            match read_header(&whole[..begin + codes]) {
                Err(Error::CutOff { found, expected, number, blocks: 3, bytes }) => {
                    assert_eq!((found, expected), (begin + codes, whole.len()));
                    assert_eq!((number, bytes.start), (block, from));
                }
                other => panic!("{codes} bytes of codes: {:?}", other.map(|(header, _)| header)),
            }
        }
    }
}
