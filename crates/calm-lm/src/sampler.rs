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
    /// K.
    fn chunk_size(&self) -> usize;

    /// Ids with a meaning.
    fn special(&self) -> SpecialIds;

    /// A text with nothing in it yet.
    ///
    /// # Errors
    /// What a GPU answers.
    fn start(&self) -> Result<Box<dyn Continuation + '_>>;
}

/// A text that a sampler continues.
pub trait Continuation {
    /// Appends whole chunks (a multiple of K tokens).
    ///
    /// # Errors
    /// Another number of tokens; what a GPU answers.
    fn push(&mut self, tokens: &[u32]) -> Result<()>;

    /// N independent draws of the next chunk, everything after an EOS already PAD. The same key gives the same draws.
    ///
    /// # Errors
    /// A text without a beginning, of a model that knows none; what a GPU answers.
    fn draw(&self, samples: usize, key: DrawKey) -> Result<Vec<Vec<u32>>>;
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
