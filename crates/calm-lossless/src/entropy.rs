//! From weights to code: whole frequencies with a total of 2³², and a range coder (`constriction`) over them.
//!
//! ```text
//! f_i = 1 + ⌊w_i m / 2³⁰⌋,   m = ⌊(2³² − V) 2³⁰ / Σ w⌋       what is left goes to the most likely token
//! ```
//! Every token has a frequency, also what the model holds impossible. Words are 32 bits and the coder's state 128: a state of
//! 64 would leave totals of 32 bits too little room between two words and lose some hundredths of a bit a symbol.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::num::NonZeroU32;

use constriction::backends::Cursor;
use constriction::stream::model::{DecoderModel, EncoderModel, EntropyModel};
use constriction::stream::queue::{RangeDecoder, RangeEncoder};
use constriction::stream::{Decode, Encode};

/// Bits of the total.
const BITS: usize = 32;
/// Bits of a weight's multiplier.
const SHIFT: u32 = 30;

/// Where a symbol lies among 2³²: what comes before it, and how often it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    left: u32,
    frequency: NonZeroU32,
}

impl Interval {
    /// −log₂ of its share.
    #[cfg(test)]
    pub fn bits(self) -> f64 {
        BITS as f64 - f64::from(self.frequency.get()).log2()
    }
}

/// How often each symbol is among 2³².
#[derive(Debug)]
pub struct Frequencies(Vec<u32>);

impl Frequencies {
    /// Of at least two and at most 2³¹ symbols, whose weights sum to at most 2⁶⁰.
    pub fn new(weights: &[u64]) -> Self {
        let room = (1u64 << BITS) - weights.len() as u64;
        let sum = weights.iter().sum::<u64>().max(1);
        // Σ w m ≤ room · 2³⁰ < 2⁶²
        let m = (room << SHIFT) / sum;
        let mut each: Vec<u32> = weights.iter().map(|w| 1 + ((w * m) >> SHIFT) as u32).collect();
        let given: u64 = each.iter().map(|f| u64::from(*f)).sum();
        let best = (1..weights.len()).fold(0, |best, i| if weights[i] > weights[best] { i } else { best });
        if let Some(best) = each.get_mut(best) {
            *best += ((1u64 << BITS) - given) as u32;
        }
        Self(each)
    }

    /// Where a symbol lies; None of one that is none.
    pub fn interval(&self, symbol: usize) -> Option<Interval> {
        let frequency = NonZeroU32::new(*self.0.get(symbol)?)?;
        // The frequencies before a symbol sum to less than 2³².
        Some(Interval { left: self.0[..symbol].iter().sum(), frequency })
    }
}

impl EntropyModel<BITS> for Interval {
    type Symbol = ();
    type Probability = u32;
}

impl EncoderModel<BITS> for Interval {
    fn left_cumulative_and_probability(&self, _: impl Borrow<()>) -> Option<(u32, NonZeroU32)> {
        Some((self.left, self.frequency))
    }
}

impl EntropyModel<BITS> for Frequencies {
    type Symbol = u32;
    type Probability = u32;
}

impl DecoderModel<BITS> for Frequencies {
    fn quantile_function(&self, quantile: u32) -> (u32, u32, NonZeroU32) {
        let mut left = 0u32;
        for (symbol, frequency) in self.0.iter().enumerate() {
            if quantile.wrapping_sub(left) < *frequency
                && let Some(frequency) = NonZeroU32::new(*frequency)
            {
                return (symbol as u32, left, frequency);
            }
            // Only the last symbol's end is 2³², and every quantile lies before that.
            left = left.wrapping_add(*frequency);
        }
        // The frequencies fill all 2³² places, so that a symbol was found.
        (0, 0, NonZeroU32::MIN)
    }
}

/// A block that is being written.
pub struct Writer(RangeEncoder<u32, u128>);

impl Writer {
    /// Empty.
    pub fn new() -> Self {
        Self(RangeEncoder::new())
    }

    /// One more symbol.
    pub fn push(&mut self, interval: Interval) {
        // It is written to a vector, and an interval is never empty: neither can fail.
        let done = self.0.encode_symbol((), interval);
        debug_assert!(done.is_ok());
    }

    /// The code.
    pub fn finish(self) -> Vec<u8> {
        let words = self.0.into_compressed().unwrap_or_else(|never: Infallible| match never {});
        words.into_iter().flat_map(u32::to_le_bytes).collect()
    }
}

/// A block that is being read.
pub struct Reader(RangeDecoder<u32, u128, Cursor<u32, Vec<u32>>>);

impl Reader {
    /// From its code; None where that is not whole words.
    pub fn new(code: &[u8]) -> Option<Self> {
        let (words, []) = code.as_chunks::<4>() else { return None };
        let words: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        RangeDecoder::from_compressed(words).ok().map(Self)
    }

    /// The next symbol; None where the code says something impossible.
    pub fn symbol(&mut self, frequencies: &Frequencies) -> Option<u32> {
        self.0.decode_symbol(frequencies).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn round(weights: &[Vec<u64>], symbols: &[usize]) -> (usize, f64) {
        let each: Vec<Frequencies> = weights.iter().map(|w| Frequencies::new(w)).collect();
        let mut writer = Writer::new();
        let mut bits = 0.0;
        for (f, symbol) in each.iter().cycle().zip(symbols) {
            assert_eq!(f.0.iter().map(|f| u64::from(*f)).sum::<u64>(), 1 << 32);
            let interval = f.interval(*symbol).unwrap();
            bits += interval.bits();
            writer.push(interval);
        }
        let code = writer.finish();
        let mut reader = Reader::new(&code).unwrap();
        for (f, symbol) in each.iter().cycle().zip(symbols) {
            assert_eq!(reader.symbol(f), Some(*symbol as u32));
        }
        (code.len(), bits)
    }

    proptest! {
        #[test]
        fn what_goes_in_comes_out_for_any_weights(
            weights in prop::collection::vec(prop::collection::vec(0u64..1 << 50, 2..40), 1..8),
            picks in prop::collection::vec(any::<prop::sample::Index>(), 0..300),
        ) {
            let symbols: Vec<usize> =
                picks.iter().zip(weights.iter().cycle()).map(|(pick, w)| pick.index(w.len())).collect();
            let (bytes, bits) = round(&weights, &symbols);
            prop_assert!(bytes as f64 * 8.0 <= bits + 64.0, "{bytes} bytes for {bits} bits");
        }
    }

    #[test]
    fn a_symbol_costs_what_its_probability_says() {
        // Fair, skewed and nearly certain; in all 40,000 symbols.
        let weights = vec![vec![1u64; 1000], vec![7, 1 << 20, 3 << 28, 0, 9], vec![1 << 30, 1]];
        let symbols: Vec<usize> = (0..40_000).map(|i| [i * 7 % 1000, 1 + i % 2, 0][i % 3]).collect();
        let (bytes, bits) = round(&weights, &symbols);
        let exact: f64 = symbols
            .iter()
            .zip(weights.iter().cycle())
            .map(|(s, w)| (w.iter().sum::<u64>() as f64 / w[*s] as f64).log2())
            .sum();
        assert!((bits / exact - 1.0).abs() < 1e-6, "{bits} bits, exactly {exact}");
        assert!(bytes as f64 * 8.0 < bits + 64.0, "{bytes} bytes for {bits} bits");
    }

    #[test]
    fn the_impossible_and_nothing_at_all_have_frequencies() {
        let f = Frequencies::new(&[0, 5, 0]);
        assert_eq!(f.0, [1, u32::MAX - 1, 1]);
        let f = Frequencies::new(&[0, 0]);
        assert_eq!(f.0.iter().map(|f| u64::from(*f)).sum::<u64>(), 1 << 32);
        assert_eq!(f.interval(2), None);
    }
}
