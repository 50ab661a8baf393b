//! Which tokens of a chunk are predictions: what follows EOS is filler, certain by definition.

use candle_core::{D, DType, Result, Tensor};

/// 1 for the tokens of each chunk up to its EOS, 0 after it: U32 `[R, K]` -> f32 `[R, K]`.
pub(super) fn up_to_end(targets: &Tensor, eos: u32) -> Result<Tensor> {
    let end = targets.eq(eos)?.to_dtype(DType::F32)?;
    (end.cumsum(D::Minus1)? - &end)?.eq(0f32)?.to_dtype(DType::F32)
}

/// How many tokens of a chunk these are.
pub(super) fn length(chunk: &[u32], eos: u32) -> usize {
    chunk.iter().position(|t| *t == eos).map_or(chunk.len(), |end| end + 1)
}
