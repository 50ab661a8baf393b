//! The state of a text that is being continued: tokens so far, the backbone's cache, and the last hidden state.

use candle_core::{Result, Tensor, bail};

use crate::Cache;
use crate::sampler::SpecialIds;

/// A text so far; cloning shares the cached tensors.
#[derive(Clone, Debug, Default)]
pub struct TextState {
    tokens: Vec<u32>,
    cache: Cache,
    hidden: Option<Tensor>,
    ended: bool,
}

impl TextState {
    /// The tokens pushed so far (without BOS).
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Whether EOS has been pushed.
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// The hidden state `[1, D]` that predicts the next chunk; an error before anything was pushed to a
    /// model without a start of document.
    ///
    /// # Errors
    /// Nothing was pushed yet, to a model without a start of document.
    pub fn hidden(&self) -> Result<&Tensor> {
        match &self.hidden {
            Some(h) => Ok(h),
            None => bail!(
                "this model was trained without a start of document: generation needs a prompt of at least one chunk"
            ),
        }
    }

    /// Runs `forward` (chunks, cache) -> hidden `[1, T, D]` on `tokens` without recording them as text.
    pub(crate) fn extend(
        &mut self,
        tokens: &[u32],
        forward: impl Fn(&[u32], &mut Cache) -> Result<Tensor>,
    ) -> Result<()> {
        let x = forward(tokens, &mut self.cache)?;
        self.hidden = Some(x.narrow(1, x.dim(1)? - 1, 1)?.squeeze(1)?.detach());
        Ok(())
    }

    /// Appends whole chunks of `chunk_size`. Past the trained context of `limit` chunks the cache is rebuilt
    /// from its younger half, since rotary angles beyond it were never seen.
    pub(crate) fn push(
        &mut self,
        tokens: &[u32],
        chunk_size: usize,
        limit: usize,
        special: SpecialIds,
        forward: impl Fn(&[u32], &mut Cache) -> Result<Tensor>,
    ) -> Result<()> {
        if tokens.is_empty() {
            return Ok(());
        }
        if !tokens.len().is_multiple_of(chunk_size) {
            bail!("{} tokens are not whole chunks of {chunk_size}", tokens.len())
        }
        self.tokens.extend_from_slice(tokens);
        self.ended |= tokens.contains(&special.eos);
        if self.cache.len() + tokens.len() / chunk_size <= limit {
            return self.extend(tokens, forward);
        }
        let keep = (limit / 2).max(1) * chunk_size;
        let recent = self.tokens[self.tokens.len().saturating_sub(keep)..].to_vec();
        self.cache = Cache::default();
        self.extend(&recent, forward)
    }
}
