//! From latent vectors to tokens: the decoder's most probable ones, or drawn from its softmax.

use calm_autoencoder::Decoder;
use calm_nn::Noise;
use candle_core::{DType, Result, Tensor};
use rayon::prelude::*;

use crate::family::TokenDecoding;
use crate::family::softmax::{distribution, invert};
use crate::side_by_side::even_parts;

/// Logits that are computed at a time.
const LOGITS: usize = 1 << 23;

/// The decoder's last hidden states `[R·N·K, D]` -> tokens, row-major `[R, N, K]`, drawn from the softmax. Noise stream:
/// `decode` uniform `[R, N, K]`.
pub(super) fn sample(
    decoder: &Decoder,
    hidden: &Tensor,
    samples: usize,
    noise: &Noise<'_>,
    decoding: TokenDecoding,
) -> Result<Vec<u32>> {
    let (table, tokens) = (decoder.table(), hidden.dim(0)?);
    let vocab = table.dim(0)?;
    let u: Vec<f32> =
        noise.uniform("decode", samples, decoder.chunk_size(), table)?.flatten_all()?.to_vec1()?;
    let block = (LOGITS / vocab).max(1);
    let mut out = Vec::with_capacity(tokens);
    for (at, n) in even_parts(tokens, block) {
        let some = hidden.narrow(0, at, n)?.contiguous()?;
        let logits = decoder.logits(&some)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let u = &u[at..];
        out.par_extend(
            logits
                .par_chunks_exact(vocab)
                .zip(u)
                .map(|(logits, u)| invert(&distribution(logits, decoding), f64::from(*u))),
        );
    }
    Ok(out)
}
