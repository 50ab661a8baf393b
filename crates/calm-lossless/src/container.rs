//! The file: a header that says everything that reading needs, a table of blocks, and their codes.
//!
//! ```text
//! magic 6 | version u16 | model 16 | windows u32 | overlap u32 | draws u32 | length u64 | blocks u32
//! for each block: kind u8 | bytes u32 | tokens u32 | code u32 | sum of the code 8 | sum of the bytes 8
//! sum of all that 8
//! the blocks' codes, one after the other
//! ```
//! Numbers are little-endian; sums are the first bytes of BLAKE3. A block's window follows from where it begins. A damaged
//! code is known before a model reads it; the sum of the bytes then proves what came out.

use std::ops::Range;

use crate::error::{Error, Result};

/// How a file begins.
pub const MAGIC: [u8; 6] = *b"calm\0z";
/// Raised when the same bytes become another file, or a file other bytes.
pub const VERSION: u16 = 1;

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
/// Something else than a file of ours; another version; a damaged header; codes that are longer or shorter than it says.
pub fn read_header(file: &[u8]) -> Result<(Header, &[u8])> {
    let Some(rest) = file.strip_prefix(&MAGIC) else { return Err(Error::Foreign) };
    let mut cursor = Cursor(rest);
    let version = u16::from_le_bytes(cursor.take()?);
    if version != VERSION {
        return Err(Error::Version { file: version, own: VERSION });
    }
    let model = cursor.take()?;
    let (windows, overlap, draws) = (cursor.number()?, cursor.number()?, cursor.number()?);
    let length = u64::from_le_bytes(cursor.take()?);
    let count = cursor.number()? as usize;
    let size = count.checked_mul(ENTRY).and_then(|n| n.checked_add(FIXED)).ok_or(Error::Header)?;
    let own = file.get(..size).ok_or(Error::Header)?;
    if file.get(size..size + SUM) != Some(&sum(own)) {
        return Err(Error::Header);
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
    if windows == 0 || all(|b| b.bytes) != length {
        return Err(Error::Header);
    }
    let expected = size + SUM + all(|b| b.code) as usize;
    if file.len() != expected {
        return Err(Error::Length { found: file.len(), expected });
    }
    Ok((header, codes))
}
