//! Which tokens of a chunk are predictions: what follows EOS is filler, certain by definition.

use candle_core::{D, DType, Result, Tensor};

use crate::sampler::SpecialIds;

/// 1 for the tokens of each chunk up to its EOS, 0 after it: U32 `[R, K]` -> f32 `[R, K]`.
pub(super) fn up_to_end(targets: &Tensor, eos: u32) -> Result<Tensor> {
    let end = targets.eq(eos)?.to_dtype(DType::F32)?;
    (end.cumsum(D::Minus1)? - &end)?.eq(0f32)?.to_dtype(DType::F32)
}

/// How many tokens of a chunk these are. A PAD without an EOS before it is where the chunk stops being known: of the rest
/// nothing is asked.
pub(super) fn length(chunk: &[u32], special: SpecialIds) -> usize {
    let end = chunk.iter().position(|t| *t == special.eos || *t == special.pad);
    end.map_or(chunk.len(), |end| end + usize::from(chunk[end] == special.eos))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_ends_with_its_eos_or_where_it_is_not_known_any_more() {
        let special = SpecialIds { bos: 7, eos: 8, pad: 9 };
        let length = |chunk: &[u32]| length(chunk, special);
        assert_eq!([length(&[1, 2, 3]), length(&[1, 8, 9]), length(&[8, 9, 9])], [3, 2, 1]);
        assert_eq!([length(&[1, 9, 9]), length(&[9, 9, 9])], [1, 0]);
    }
}
