//! The random numbers of scores and those of models come from one generator.

use calm_kernels::philox::{NoiseKey, philox4x32};
use calm_stats::rng::Stream;

#[test]
fn a_stream_of_scores_is_read_from_the_generator_of_the_models() {
    for (seed, name, substream) in [(0, "", 0), (7, "bootstrap", 3), (u64::MAX, "é", u32::MAX)] {
        let key = NoiseKey::new(seed, name, 0);
        let mut stream = Stream::new(seed, name, substream);
        for block in 0..5 {
            let [a, b, c, d] = philox4x32([block, 0, substream, key.step], key.key).map(u64::from);
            assert_eq!((stream.bits(), stream.bits()), (a << 32 | b, c << 32 | d));
        }
    }
}
