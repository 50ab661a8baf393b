//! Uniform numbers for sampling and resampling: a stream read from the counter-based generator.

use calm_kernels::philox::{NoiseKey, philox4x32};

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
    key: NoiseKey,
    substream: u32,
    block: u64,
    spare: Option<u64>,
}

impl Stream {
    /// Substream `substream` (a replicate, a position) of the stream `name` of a seed.
    pub fn new(seed: u64, name: &str, substream: u32) -> Self {
        Self { key: NoiseKey::new(seed, name, 0), substream, block: 0, spare: None }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        if let Some(bits) = self.spare.take() {
            return bits;
        }
        let counter = [self.block as u32, (self.block >> 32) as u32, self.substream, self.key.step];
        self.block += 1;
        let [a, b, c, d] = philox4x32(counter, self.key.key).map(u64::from);
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
