//! Pages of texts in deltas: how many the page says that it has, and how long they are together.
//!
//! `DELTA_LENGTH_BYTE_ARRAY` holds lengths, then bytes. `DELTA_BYTE_ARRAY` holds how much of the text before each text
//! begins with, then the rest in the first form. Both sorts of numbers are `DELTA_BINARY_PACKED`: a first one, and blocks
//! of differences in as many bits as the block needs, which can be none.

use parquet::basic::Encoding;
use parquet::column::page::Page;
use parquet::schema::types::ColumnDescriptor;

use super::thrift::Compact;

/// Bytes that the library makes of such a page beside the page's own: its lengths, and texts where it must put
/// them together.
///
/// # Errors
/// When the page says that it has more texts than values or than `most`, or cannot be read so far.
pub(super) fn cost(page: &Page, column: &ColumnDescriptor, most: u64) -> Result<u64, String> {
    let bytes = values(page, column).ok_or("its levels are longer than a page")?;
    let most = most.min(u64::from(page.num_values()));
    if page.encoding() == Encoding::DELTA_LENGTH_BYTE_ARRAY {
        return Ok(4 * Packed::open(bytes, most)?.count);
    }
    let mut together = 0u64;
    let mut add = |length: i32| together += u64::from(length.unsigned_abs());
    let (prefixes, end) = Packed::open(bytes, most)?.each(&mut add)?;
    let rest = bytes.get(end..).ok_or(SHORT)?;
    let (texts, _) = Packed::open(rest, most)?.each(&mut add)?;
    Ok(together + 4 * (prefixes + texts))
}

const SHORT: &str = "a page of deltas ends too early";

/// What stands behind the levels of a page.
fn values<'a>(page: &'a Page, column: &ColumnDescriptor) -> Option<&'a [u8]> {
    let bytes: &[u8] = page.buffer();
    match page {
        Page::DataPageV2 { def_levels_byte_len, rep_levels_byte_len, .. } => {
            bytes.get((*def_levels_byte_len as usize).checked_add(*rep_levels_byte_len as usize)?..)
        }
        Page::DataPage { num_values, def_level_encoding, rep_level_encoding, .. } => {
            let mut bytes = bytes;
            let levels =
                [(column.max_rep_level(), rep_level_encoding), (column.max_def_level(), def_level_encoding)];
            for (max, encoding) in levels {
                let length = match encoding {
                    _ if max == 0 => 0,
                    Encoding::RLE => {
                        let (length, _) = bytes.split_first_chunk::<4>()?;
                        4 + u64::from(u32::from_le_bytes(*length))
                    }
                    _ => {
                        let bits = u64::from(u16::BITS - max.unsigned_abs().leading_zeros());
                        (u64::from(*num_values) * bits).div_ceil(8)
                    }
                };
                bytes = bytes.get(usize::try_from(length).ok()?..)?;
            }
            Some(bytes)
        }
        Page::DictionaryPage { .. } => Some(bytes),
    }
}

/// Numbers as differences, in blocks.
struct Packed<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Parts of a block, which have a number of bits each, and the numbers of each.
    parts: usize,
    part: usize,
    count: u64,
    first: i32,
}

impl<'a> Packed<'a> {
    fn open(bytes: &'a [u8], most: u64) -> Result<Self, String> {
        let mut head = Compact::new(bytes);
        let mut next = || head.varint().ok_or(SHORT);
        let (block, parts, count) = (next()?, next()?, next()?);
        if count > most {
            return Err(format!("a page says {count} texts, of {most}"));
        }
        let first = head.signed().ok_or(SHORT)? as i32;
        let size =
            |n: u64| usize::try_from(n).ok().filter(|n| *n > 0).ok_or("a page of deltas without blocks");
        let (block, parts) = (size(block)?, size(parts)?);
        Ok(Self { bytes, at: head.at(), parts, part: block / parts, count, first })
    }

    /// Goes through the numbers; how many there are, and where they end.
    fn each(mut self, take: &mut impl FnMut(i32)) -> Result<(u64, usize), String> {
        let (mut value, mut left) = (self.first, self.count);
        if left > 0 {
            take(value);
            left -= 1;
        }
        while left > 0 {
            let mut head = Compact::new(&self.bytes[self.at..]);
            let least = head.signed().ok_or(SHORT)?;
            let widths = self.at + head.at();
            self.at = widths.checked_add(self.parts).ok_or(SHORT)?;
            for &width in self.bytes.get(widths..self.at).ok_or(SHORT)? {
                if left == 0 {
                    break;
                }
                let size = usize::from(width).checked_mul(self.part).ok_or(SHORT)? / 8;
                let end = self.at.checked_add(size).ok_or(SHORT)?;
                let packed = self.bytes.get(self.at..end).ok_or(SHORT)?;
                let here = left.min(self.part as u64);
                for n in 0..here {
                    let more = bits(packed, n as usize * usize::from(width), width).ok_or(SHORT)?;
                    value = value.wrapping_add(least.wrapping_add(more as i64) as i32);
                    take(value);
                }
                (left, self.at) = (left - here, end);
            }
            if self.part == 0 {
                return Err(SHORT.into());
            }
        }
        Ok((self.count, self.at))
    }
}

/// A number of so many bits, of which the first is the lowest of its byte.
fn bits(bytes: &[u8], from: usize, width: u8) -> Option<u64> {
    if width > 64 {
        return None;
    }
    let (first, shift) = (from / 8, from % 8);
    let mut around = 0u128;
    for (n, byte) in bytes.get(first..)?.iter().take(9).enumerate() {
        around |= u128::from(*byte) << (8 * n);
    }
    Some((around >> shift) as u64 & u64::MAX.checked_shr(64 - u32::from(width)).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seven numbers from 7 on, each by 1 or 2 more: a block of 128 in four parts, the first of one bit each.
    const PACKED: [u8; 14] = [0x80, 1, 4, 7, 14, 2, 1, 0, 0, 0, 0b0010_1010, 0, 0, 0];

    fn all(bytes: &[u8], most: u64) -> Result<(Vec<i32>, usize), String> {
        let mut all = Vec::new();
        let (count, end) = Packed::open(bytes, most)?.each(&mut |n| all.push(n))?;
        assert_eq!(count, all.len() as u64);
        Ok((all, end))
    }

    #[test]
    fn numbers_are_those_that_were_packed() {
        assert_eq!(all(&PACKED, 7), Ok((vec![7, 8, 10, 11, 13, 14, 16], 14)));
    }

    #[test]
    fn a_count_that_is_none_and_a_cut_are_errors() {
        assert!(all(&PACKED, 6).unwrap_err().contains("7 texts"));
        for cut in 0..PACKED.len() {
            assert!(all(&PACKED[..cut], 7).is_err(), "{cut}");
        }
        // Two thousand million equal lengths need no bits.
        let same = [0x80, 1, 4, 0xff, 0xff, 0xff, 0xff, 7, 0];
        assert!(all(&same, 1000).is_err());
    }
}
