//! From latent vectors to tokens: the decoder's most probable ones, or drawn from its softmax.

use calm_autoencoder::Autoencoder;
use calm_nn::Noise;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

use crate::family::TokenDecoding;
use crate::family::softmax::{distribution, invert};

/// Logits that are computed at a time.
const LOGITS: usize = 1 << 23;

/// Latents `[R, N, L]` -> tokens, row-major `[R, N, K]`, drawn from the softmax. Noise stream: `decode` uniform
/// `[R, N, K]`.
pub(super) fn sample(
    autoencoder: &Autoencoder,
    latents: &Tensor,
    noise: &Noise<'_>,
    decoding: TokenDecoding,
) -> Result<Vec<u32>> {
    let (r, n, l) = latents.dims3()?;
    let table = autoencoder.embedding_table();
    let (k, vocab) = (autoencoder.chunk_size(), table.dim(0)?);
    let u: Vec<f32> = noise.uniform("decode", n, k, table)?.flatten_all()?.to_vec1()?;
    let latents = latents.reshape((r * n, l))?;
    let block = (LOGITS / (vocab * k)).max(1);
    let mut out = Vec::with_capacity(r * n * k);
    for at in (0..r * n).step_by(block) {
        let z = latents.narrow(0, at, block.min(r * n - at))?.contiguous()?;
        let logits =
            autoencoder.logits(&z)?.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let u = &u[at * k..];
        out.par_extend(
            logits
                .par_chunks_exact(vocab)
                .zip(u)
                .map(|(logits, u)| invert(&distribution(logits, decoding), f64::from(*u))),
        );
    }
    Ok(out)
}
