//! Uniform numbers for sampling and resampling: a stream read from a counter-based generator, Philox4x32-10
//! (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", 2011).
//!
//! The noise of the models comes from the same generator; this room keeps its few lines, one block at a time, so that
//! it stands alone. A test of `calm-eval` holds the two together.

/// Multipliers of the two products of a round.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
/// Added to the key words after every round: the golden ratio and √3 − 1, in units of 2⁻³².
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// One block of Philox4x32-10.
fn philox4x32([mut c0, mut c1, mut c2, mut c3]: [u32; 4], [mut k0, mut k1]: [u32; 2]) -> [u32; 4] {
    for _ in 0..ROUNDS {
        let p0 = u64::from(c0) * u64::from(MULTIPLIERS[0]);
        let p1 = u64::from(c2) * u64::from(MULTIPLIERS[1]);
        [c0, c1, c2, c3] = [(p1 >> 32) as u32 ^ c1 ^ k0, p1 as u32, (p0 >> 32) as u32 ^ c3 ^ k1, p0 as u32];
        (k0, k1) = (k0.wrapping_add(WEYL[0]), k1.wrapping_add(WEYL[1]));
    }
    [c0, c1, c2, c3]
}

/// The key of a named stream: FNV-1a (64 bit) over the eight little-endian bytes of the seed and the bytes of
/// the name, then the finaliser of SplitMix64.
fn key(seed: u64, name: &str) -> [u32; 2] {
    let mut h = 0xcbf2_9ce4_8422_2325u64;
    for &byte in seed.to_le_bytes().iter().chain(name.as_bytes()) {
        h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    h ^= h >> 31;
    [h as u32, (h >> 32) as u32]
}

/// A source of independent uniform numbers in [0, 1). Closures are sources.
pub trait Uniforms {
    /// The next number.
    fn uniform(&mut self) -> f64;
}

impl<F: FnMut() -> f64> Uniforms for F {
    fn uniform(&mut self) -> f64 {
        self()
    }
}

/// Numbers in sequence from Philox: the same for the same seed, name and substream, on any machine and any
/// number of threads.
#[derive(Clone, Debug)]
pub struct Stream {
    key: [u32; 2],
    substream: u32,
    block: u64,
    spare: Option<u64>,
}

impl Stream {
    /// Substream `substream` (a replicate, a position) of the stream `name` of a seed.
    pub fn new(seed: u64, name: &str, substream: u32) -> Self {
        Self { key: key(seed, name), substream, block: 0, spare: None }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        if let Some(bits) = self.spare.take() {
            return bits;
        }
        let counter = [self.block as u32, (self.block >> 32) as u32, self.substream, 0];
        self.block += 1;
        let [a, b, c, d] = philox4x32(counter, self.key).map(u64::from);
        self.spare = Some(c << 32 | d);
        a << 32 | b
    }

    /// Uniform in [0, 1), 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A whole number in 0..n, n at least 1 (0 for n = 0). The bias is below n/2⁶⁴.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.bits()) * n as u128) >> 64) as usize
    }
}

impl Uniforms for Stream {
    fn uniform(&mut self) -> f64 {
        Stream::uniform(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers of the authors' library (Random123, `kat_vectors`).
    #[test]
    fn a_block_is_what_the_authors_compute() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = u32::MAX;
        assert_eq!(philox4x32([ones; 4], [ones; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox4x32([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn a_stream_repeats_itself_and_no_other() {
        let take = |seed, name, sub| {
            let mut stream = Stream::new(seed, name, sub);
            (0..5).map(|_| stream.bits()).collect::<Vec<_>>()
        };
        assert_eq!(take(1, "a", 0), take(1, "a", 0));
        for other in [take(2, "a", 0), take(1, "b", 0), take(1, "a", 1)] {
            assert_ne!(take(1, "a", 0), other);
        }
    }

    #[test]
    fn numbers_are_uniform_and_in_range() {
        let mut stream = Stream::new(7, "uniform", 0);
        let mut bins = [0u32; 10];
        let mut mean = 0.0;
        for _ in 0..100_000 {
            let u = stream.uniform();
            assert!((0.0..1.0).contains(&u));
            mean += u / 100_000.0;
            bins[stream.below(10)] += 1;
        }
        // Standard errors: 0.0009 of the mean, 95 of a bin.
        assert!((mean - 0.5).abs() < 0.004, "{mean}");
        assert!(bins.iter().all(|&b| b.abs_diff(10_000) < 400), "{bins:?}");
        assert_eq!(stream.below(1), 0);
    }

    #[test]
    fn a_closure_is_a_source() {
        let mut half = || 0.5;
        assert_eq!(Uniforms::uniform(&mut half), 0.5);
    }
}
