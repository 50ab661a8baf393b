//! Counts of bytes after their last few: what takes over where a tokenizer cannot express a block, and what a model is
//! compared with (an order-5 model of this kind is close to PPM).
//!
//! ```text
//! p_0(x) = 1/256        p_{n+1}(x) = (c_n(x) + d_n p_n(x)) / (N_n + d_n)
//! ```
//! with the counts c_n after the last n bytes, their sum N_n, and d_n different bytes seen there (Witten and Bell's weight of
//! the shorter context). All in whole numbers: the same everywhere.

use rustc_hash::FxHashMap;

use crate::entropy::{Frequencies, Reader, Writer};

/// Probabilities are in units of 2⁻⁴⁰.
const ONE: u64 = 1 << 40;
/// Where a context has been seen so often, its counts are halved.
const MOST: u64 = 1 << 16;

/// The order of what takes over in a file.
pub const FALLBACK: usize = 2;

/// What was seen after one context.
#[derive(Default)]
struct Seen {
    total: u64,
    each: Vec<(u8, u64)>,
}

impl Seen {
    fn add(&mut self, byte: u8) {
        match self.each.iter_mut().find(|(x, _)| *x == byte) {
            Some((_, count)) => *count += 1,
            None => self.each.push((byte, 1)),
        }
        self.total += 1;
        if self.total >= MOST {
            self.each.iter_mut().for_each(|(_, count)| *count = count.div_ceil(2));
            self.total = self.each.iter().map(|(_, count)| count).sum();
        }
    }
}

/// A model that learns the bytes that it is given.
struct Counts {
    /// By length of the context; its bytes are the key.
    contexts: Vec<FxHashMap<u64, Seen>>,
    before: u64,
}

impl Counts {
    /// `order` below 8.
    fn new(order: usize) -> Self {
        Self { contexts: (0..=order.min(7)).map(|_| FxHashMap::default()).collect(), before: 0 }
    }

    fn key(&self, length: usize) -> u64 {
        self.before & ((1 << (8 * length)) - 1)
    }

    fn frequencies(&self) -> Frequencies {
        let mut p = [ONE / 256; 256];
        for (length, seen) in self.contexts.iter().enumerate() {
            let Some(seen) = seen.get(&self.key(length)) else { break };
            let different = seen.each.len() as u64;
            p.iter_mut().for_each(|p| *p *= different);
            seen.each.iter().for_each(|(x, count)| p[usize::from(*x)] += count * ONE);
            p.iter_mut().for_each(|p| *p /= seen.total + different);
        }
        Frequencies::new(&p)
    }

    fn learn(&mut self, byte: u8) {
        for length in 0..self.contexts.len() {
            let key = self.key(length);
            self.contexts[length].entry(key).or_default().add(byte);
        }
        self.before = self.before << 8 | u64::from(byte);
    }
}

/// The code of these bytes under counts of this order.
pub fn encode(bytes: &[u8], order: usize) -> Vec<u8> {
    let (mut counts, mut writer) = (Counts::new(order), Writer::new());
    for byte in bytes {
        counts.frequencies().interval(usize::from(*byte)).into_iter().for_each(|i| writer.push(i));
        counts.learn(*byte);
    }
    writer.finish()
}

/// So many bytes of a code; None where it says something impossible.
pub fn decode(code: &[u8], length: usize, order: usize) -> Option<Vec<u8>> {
    let (mut counts, mut reader) = (Counts::new(order), Reader::new(code)?);
    let mut bytes = Vec::with_capacity(length);
    for _ in 0..length {
        let byte = reader.symbol(&counts.frequencies())? as u8;
        counts.learn(byte);
        bytes.push(byte);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn bytes_come_back(bytes in prop::collection::vec(any::<u8>(), 0..600), order in 0usize..8) {
            let code = encode(&bytes, order);
            prop_assert_eq!(decode(&code, bytes.len(), order), Some(bytes));
        }
    }

    #[test]
    fn what_repeats_becomes_short_and_the_more_so_with_a_longer_context() {
        let text = b"the cat sat on the mat, the rat on the cat. ".repeat(100);
        let lengths = [0, 2, 5].map(|order| encode(&text, order).len());
        assert!(
            lengths[0] < text.len() / 2 && lengths[1] < lengths[0] / 2 && lengths[2] < lengths[1],
            "{lengths:?}"
        );
        // Noise does not become much longer.
        let noise: Vec<u8> = (0..4000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        assert!(encode(&noise, 2).len() < noise.len() * 5 / 4);
    }
}
