//! The baseline's probabilities for a lossless coder.

use calm_nn::{ParamStore, RowId};
use candle_core::{Result, Tensor, bail};

use super::Baseline;
use crate::Cache;
use crate::family::softmax::weights;
use crate::family::{CodedChunks, Coding, TextFormat};

impl Coding for &Baseline {
    fn format(&self) -> &TextFormat {
        &self.text
    }

    fn chunk_size(&self) -> usize {
        1
    }

    fn stores(&self) -> Vec<&ParamStore> {
        vec![&self.store]
    }

    fn read(&self, tokens: &[u32], lengths: &[usize], caches: &mut [&mut Cache]) -> Result<Tensor> {
        self.backbone.forward_side_by_side(&self.inputs(tokens)?, lengths, caches)
    }

    fn chunks(&self, hidden: &Tensor, _rows: &[RowId], _draws: usize) -> Result<Box<dyn CodedChunks + '_>> {
        Ok(Box::new(Next { logits: Some(self.logits(hidden)?) }))
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
