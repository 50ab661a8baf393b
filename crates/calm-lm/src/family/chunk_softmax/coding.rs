//! The network's probabilities for a lossless coder.

use calm_nn::{ParamStore, RowId};
use candle_core::{Result, Tensor};

use super::{ChunkSoftmax, ChunkTokens};
use crate::Cache;
use crate::family::coding::Texts;
use crate::family::softmax::{logits, weights};
use crate::family::{CodedChunks, CodedTexts, Coding, TextFormat};

impl Coding for &ChunkSoftmax {
    fn format(&self) -> &TextFormat {
        &self.text
    }

    fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    fn stores(&self) -> Vec<&ParamStore> {
        vec![&self.store]
    }

    fn texts(&self, count: usize) -> Box<dyn CodedTexts + '_> {
        Box::new(Texts::new(count, |tokens: &[u32], lengths: &[usize], caches: &mut [&mut Cache]| {
            self.backbone.forward_side_by_side(&self.inputs(tokens)?, lengths, caches)
        }))
    }

    fn chunks(&self, hidden: &Tensor, _rows: &[RowId], _draws: usize) -> Result<Box<dyn CodedChunks + '_>> {
        Ok(Box::new(Next { model: self, tokens: self.decoder.start(hidden)? }))
    }
}

/// Chunks up to some token.
struct Next<'a> {
    model: &'a ChunkSoftmax,
    tokens: Box<dyn ChunkTokens + 'a>,
}

impl CodedChunks for Next<'_> {
    fn next(&mut self, before: Option<&[u32]>) -> Result<Vec<Vec<u64>>> {
        weights(&logits(&self.tokens.next(before)?, &self.model.output)?)
    }
}
