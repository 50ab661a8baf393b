//! The state of a text that is being continued: tokens so far, the backbone's cache, and the last hidden state.

use candle_core::{Result, Tensor, bail};

use crate::Cache;
use crate::family::TextFormat;
use crate::sampler::SpecialIds;

/// What a family keeps of a text that it has read.
pub trait Kept: Clone + Default {
    /// Positions read.
    fn positions(&self) -> usize;
}

impl Kept for Cache {
    fn positions(&self) -> usize {
        self.len()
    }
}

/// A text so far; cloning shares the cached tensors.
#[derive(Clone, Debug, Default)]
pub struct TextState<C = Cache> {
    tokens: Vec<u32>,
    /// What is read together with the first tokens that are pushed: the start of the document, where these are the input.
    before: Vec<u32>,
    cache: C,
    hidden: Option<Tensor>,
    ended: bool,
}

impl<C: Kept> TextState<C> {
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

    /// A text with nothing in it but the start of its document, if it has one. With `input_whole` what is pushed first, if
    /// only nothing, is the input, and read together with that start.
    pub(crate) fn begin(
        start: Option<Vec<u32>>,
        input_whole: bool,
        forward: impl Fn(&[u32], &mut C) -> Result<Tensor>,
    ) -> Result<Self> {
        let mut text = Self::default();
        if let Some(start) = start {
            text.extend(&start, forward)?;
            if input_whole {
                (text.cache, text.before) = (C::default(), start);
            }
        }
        Ok(text)
    }

    /// Runs `forward` (chunks, cache) -> hidden `[1, T, D]` on `tokens` without recording them as text.
    fn extend(&mut self, tokens: &[u32], forward: impl Fn(&[u32], &mut C) -> Result<Tensor>) -> Result<()> {
        let x = forward(tokens, &mut self.cache)?;
        self.hidden = Some(x.narrow(1, x.dim(1)? - 1, 1)?.squeeze(1)?.detach());
        Ok(())
    }

    /// Appends whole chunks of `chunk_size`. Past the trained context of `limit` chunks the cache is rebuilt
    /// from its younger half, since rotary angles beyond it were never seen; that half is then the input.
    pub(crate) fn push(
        &mut self,
        tokens: &[u32],
        chunk_size: usize,
        limit: usize,
        special: SpecialIds,
        forward: impl Fn(&[u32], &mut C) -> Result<Tensor>,
    ) -> Result<()> {
        let Some(unread) = self.take(tokens, chunk_size, limit, special)? else { return Ok(()) };
        self.extend(&unread, forward)
    }

    /// Records whole chunks as text; what is to be read then, after the cache as it is.
    fn take(
        &mut self,
        tokens: &[u32],
        chunk_size: usize,
        limit: usize,
        special: SpecialIds,
    ) -> Result<Option<Vec<u32>>> {
        if tokens.is_empty() {
            let start = std::mem::take(&mut self.before);
            return Ok((!start.is_empty()).then_some(start));
        }
        if !tokens.len().is_multiple_of(chunk_size) {
            bail!("{} tokens are not whole chunks of {chunk_size}", tokens.len())
        }
        self.tokens.extend_from_slice(tokens);
        self.ended |= tokens.contains(&special.eos);
        let mut unread = std::mem::take(&mut self.before);
        unread.extend_from_slice(tokens);
        if self.cache.positions() + unread.len() / chunk_size <= limit {
            return Ok(Some(unread));
        }
        let keep = (limit / 2).max(1) * chunk_size;
        self.cache = C::default();
        Ok(Some(self.tokens[self.tokens.len().saturating_sub(keep)..].to_vec()))
    }
}

/// Chunks that are read at a time, so that memory stays bounded for many long texts.
const READ: usize = 4096;

/// [`TextState::push`] for several texts at once. `forward` gets the chunks of all of them one after the other, the
/// number of chunks of each, and their caches -> hidden `[1, chunks of all, D]`. It is never given fewer chunks than
/// `least`: chunks of PAD, as a text of their own, make up for those that are missing.
pub(crate) fn push_all<C: Kept>(
    texts: Vec<(&mut TextState<C>, &[u32])>,
    format: &TextFormat,
    chunk_size: usize,
    least: usize,
    forward: impl Fn(&[u32], &[usize], &mut [&mut C]) -> Result<Tensor>,
) -> Result<()> {
    let mut unread: Vec<(&mut TextState<C>, Vec<u32>)> = Vec::with_capacity(texts.len());
    for (text, tokens) in texts {
        if let Some(tokens) = text.take(tokens, chunk_size, format.context, format.special)? {
            unread.push((text, tokens));
        }
    }
    let mut unread = unread.into_iter().peekable();
    while unread.peek().is_some() {
        let (mut group, mut tokens, mut lengths, mut chunks) = (Vec::new(), Vec::new(), Vec::new(), 0);
        while let Some((text, more)) =
            unread.next_if(|(_, t)| chunks == 0 || chunks + t.len() / chunk_size <= READ)
        {
            chunks += more.len() / chunk_size;
            lengths.push(more.len() / chunk_size);
            tokens.extend(more);
            group.push(text);
        }
        let mut nobody = C::default();
        let (mut caches, mut hiddens): (Vec<&mut C>, Vec<&mut Option<Tensor>>) =
            group.into_iter().map(|text| (&mut text.cache, &mut text.hidden)).unzip();
        if chunks < least {
            lengths.push(least - chunks);
            tokens.resize(least * chunk_size, format.special.pad);
            caches.push(&mut nobody);
        }
        let x = forward(&tokens, &lengths, &mut caches)?;
        let mut end = 0;
        for (hidden, length) in hiddens.iter_mut().zip(&lengths) {
            end += length;
            **hidden = Some(x.narrow(1, end - 1, 1)?.squeeze(1)?.detach());
        }
    }
    Ok(())
}
