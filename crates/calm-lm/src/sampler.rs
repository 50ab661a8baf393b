//! What generation and scoring know of a model: draws of the next chunk.

use candle_core::Result;

/// Which draw: numbers depend on the seed and on how many draws were asked for before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    /// Seed of the generation.
    pub seed: u64,
    /// Count of earlier calls.
    pub call: u32,
}

/// Ids with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// Start of a document.
    pub bos: u32,
    /// End of a document; absorbing.
    pub eos: u32,
    /// Everything after the end.
    pub pad: u32,
}

impl SpecialIds {
    /// EOS is absorbing: whatever follows it in `tokens` becomes PAD. Returns whether the end was reached;
    /// `ended` says that it was before the first token.
    pub fn close(&self, tokens: &mut [u32], ended: bool) -> bool {
        let mut ended = ended;
        for t in tokens {
            if ended {
                *t = self.pad;
            }
            ended |= *t == self.eos;
        }
        ended
    }
}

/// A black box that draws the next chunk of K tokens given a context.
pub trait Sampler {
    /// A context. Cloning is cheap.
    type State: Clone;

    /// K.
    fn chunk_size(&self) -> usize;

    /// Ids with a meaning.
    fn special(&self) -> SpecialIds;

    /// The empty context.
    fn start(&self) -> Result<Self::State>;

    /// Appends whole chunks (a multiple of K tokens).
    fn push(&self, state: &mut Self::State, tokens: &[u32]) -> Result<()>;

    /// N independent draws of the next chunk, everything after an EOS already PAD.
    fn draw(&self, state: &Self::State, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_after_the_end_is_pad() {
        let s = SpecialIds { bos: 7, eos: 8, pad: 9 };
        let mut t = [1, 8, 3, 4];
        assert!(s.close(&mut t, false));
        assert_eq!(t, [1, 8, 9, 9]);
        let mut t = [1, 2];
        assert!(!s.close(&mut t, false));
        assert!(s.close(&mut t, true));
        assert_eq!(t, [9, 9]);
    }
}
