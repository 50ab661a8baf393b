//! Probabilities for a lossless coder, of the families whose positions are tokens.

use calm_nn::{ParamStore, RowId};
use candle_core::{Result, Tensor, bail};

use super::coding::Texts;
use super::softmax::{logits, weights};
use super::token_sampler::TokenModel;
use super::{CodedChunks, CodedTexts, Coding, TextFormat};

/// A model that is read token by token.
pub(super) struct CodedTokens<'a, M>(pub(super) &'a M);

impl<M: TokenModel> Coding for CodedTokens<'_, M> {
    fn format(&self) -> &TextFormat {
        self.0.text()
    }

    fn chunk_size(&self) -> usize {
        1
    }

    fn stores(&self) -> Vec<&ParamStore> {
        vec![self.0.store()]
    }

    fn texts(&self, count: usize) -> Box<dyn CodedTexts + '_> {
        Box::new(Texts::new(count, |tokens: &[u32], lengths: &[usize], caches: &mut [&mut M::Cache]| {
            self.0.read(tokens, lengths, caches)
        }))
    }

    fn chunks(&self, hidden: &Tensor, _rows: &[RowId], _draws: usize) -> Result<Box<dyn CodedChunks + '_>> {
        Ok(Box::new(Next { logits: Some(logits(hidden, self.0.output())?) }))
    }
}

/// Chunks of one token.
struct Next {
    logits: Option<Tensor>,
}

impl CodedChunks for Next {
    fn next(&mut self, _before: Option<&[u32]>) -> Result<Vec<Vec<u64>>> {
        match self.logits.take() {
            Some(logits) => weights(&logits),
            None => bail!("a chunk of one token has no second"),
        }
    }
}
