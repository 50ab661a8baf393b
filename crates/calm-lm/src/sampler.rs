//! What generation and scoring know of a model: draws of the next chunk.

use candle_core::{Result, bail};

/// Which draw: numbers depend on the seed and on how many draws were asked for before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrawKey {
    /// Seed of the generation.
    pub seed: u64,
    /// Count of earlier calls.
    pub call: u32,
}

/// Which draw of which text, where several are continued side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextKey {
    /// Seed of the generation.
    pub seed: u64,
    /// The text's number; it says nothing of its place.
    pub text: u32,
    /// Count of earlier calls for this text.
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

    /// So many places for texts that are continued side by side. Unless a family says otherwise, one after the other.
    ///
    /// # Errors
    /// What a GPU answers.
    fn side_by_side(&self, places: usize) -> Result<Box<dyn SideBySide + '_>> {
        Ok(Box::new(OneByOne { sampler: self, texts: (0..places).map(|_| None).collect() }))
    }
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

/// Texts that a sampler continues side by side, each in a place of its own. What becomes of one follows from its tokens
/// and its keys: not from its place, nor from how many others there are or what they say (on a GPU but for rounding).
pub trait SideBySide {
    /// Begins a text in a place; what was there goes.
    ///
    /// # Errors
    /// No such place; what a GPU answers.
    fn begin(&mut self, place: usize) -> Result<()>;

    /// Appends whole chunks (a multiple of K tokens) to texts by their places, each named once.
    ///
    /// # Errors
    /// A place without a text; as [`Continuation::push`].
    fn push(&mut self, chunks: &[(usize, &[u32])]) -> Result<()>;

    /// One draw of the next chunk for each of these places, everything after an EOS already PAD.
    ///
    /// # Errors
    /// A place without a text; as [`Continuation::draw`].
    fn draw(&self, wanted: &[(usize, TextKey)]) -> Result<Vec<Vec<u32>>>;

    /// N draws of the next chunk for one place.
    ///
    /// # Errors
    /// As [`Self::draw`].
    fn pool(&self, place: usize, samples: usize, key: TextKey) -> Result<Vec<Vec<u32>>>;
}

/// Texts that know nothing of each other.
struct OneByOne<'a, S: ?Sized> {
    sampler: &'a S,
    texts: Vec<Option<Box<dyn Continuation + 'a>>>,
}

impl<S: Sampler + ?Sized> SideBySide for OneByOne<'_, S> {
    fn begin(&mut self, place: usize) -> Result<()> {
        let text = self.sampler.start()?;
        let Some(slot) = self.texts.get_mut(place) else { bail!("there is no place {place}") };
        *slot = Some(text);
        Ok(())
    }

    fn push(&mut self, chunks: &[(usize, &[u32])]) -> Result<()> {
        for (place, tokens) in chunks {
            let Some(Some(text)) = self.texts.get_mut(*place) else { bail!("no text was begun at {place}") };
            text.push(tokens)?;
        }
        Ok(())
    }

    fn draw(&self, wanted: &[(usize, TextKey)]) -> Result<Vec<Vec<u32>>> {
        let mut drawn = Vec::with_capacity(wanted.len());
        for (place, key) in wanted {
            drawn.append(&mut self.pool(*place, 1, *key)?);
        }
        Ok(drawn)
    }

    fn pool(&self, place: usize, samples: usize, key: TextKey) -> Result<Vec<Vec<u32>>> {
        let Some(Some(text)) = self.texts.get(place) else { bail!("no text was begun at {place}") };
        // A seed for each text, far from those that people choose.
        let seed = key.seed ^ u64::from(key.text).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        text.draw(samples, DrawKey { seed, call: key.call })
    }
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
