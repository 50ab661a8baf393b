//! Exact draws at every predicting position of a batch: probabilities of the true tokens, and two sampled paths with
//! Σ p² along the first. Where four tokens are more than a chunk, the backbone is rolled forward along the first path,
//! from every position at once.

use calm_nn::device::upload;
use calm_nn::{NoiseKey, philox};
use candle_core::Result;

use super::ChunkSoftmax;
use crate::ChunkBatch;
use crate::backbone::Branch;
use crate::family::softmax::{each_distribution, invert};
use crate::family::{ExactDraws, GRAM, TokenDecoding};
use crate::sampler::SpecialIds;

/// Noise stream `token` of the purpose, the n-th token ahead as its step.
pub(super) fn exact(
    model: &ChunkSoftmax,
    batch: &ChunkBatch,
    seed: u64,
    purpose: &str,
) -> Result<ExactDraws> {
    let (b, s, k) = batch.ids.dims3()?;
    let rows = batch.sources.len();
    let SpecialIds { pad, eos, .. } = model.text.special;
    let inputs = model.embed(&batch.ids)?.detach();
    let (x, trunk) = model.backbone.forward_trunk(&inputs, &model.backbone.rows(batch)?)?;
    let mut hidden = batch.pick(&x)?.detach();
    let log_p = model.log_p(&hidden, &batch.targets()?)?;
    // The next tokens of a text are the targets of the positions after it (where a text ends, those of the next).
    let after = |row: usize| std::array::from_fn(|n| log_p.get(row * k + n).copied().unwrap_or(0.0));
    let mut out = ExactDraws {
        gram_log_p: (0..rows).map(after).collect(),
        log_p,
        paths: vec![[[pad; GRAM - 1]; 2]; rows],
        squares: vec![[1.0; GRAM]; rows],
    };
    let mut branch = Branch::default();
    let mut ended = vec![false; rows];
    for from in (0..GRAM).step_by(k) {
        // Chunks of the first path, `[R, K]`.
        let mut first = vec![pad; rows * k];
        let mut tokens = model.decoder.start(&hidden)?;
        let mut before: Option<Vec<u32>> = None;
        for n in from..GRAM.min(from + k) {
            let states = tokens.next(before.as_deref())?;
            let key = NoiseKey::new(seed, &format!("{purpose}/token"), n as u32);
            let u = philox::uniform(key, &batch.rows, 2, 1);
            let found = each_distribution(&states, &model.output, TokenDecoding::default(), |row, p| {
                let draws = [0, 1].map(|path| invert(p, f64::from(u[2 * row + path])));
                (p.iter().map(|p| p * p).sum::<f64>(), draws)
            })?;
            // After EOS the next token is PAD with certainty: squares stay 1, paths PAD.
            for (row, (squares, draws)) in found.into_iter().enumerate().filter(|(row, _)| !ended[*row]) {
                out.squares[row][n] = squares;
                if n + 1 < GRAM {
                    (out.paths[row][0][n], out.paths[row][1][n]) = (draws[0], draws[1]);
                    first[row * k + n - from] = draws[0];
                }
            }
            for row in 0..rows {
                ended[row] |= first[row * k + n - from] == eos;
            }
            before = Some(first.iter().skip(n - from).step_by(k).copied().collect());
        }
        if from + k < GRAM {
            let mut next = vec![pad; b * s * k];
            for (chunk, at) in first.chunks_exact(k).zip(&batch.sources) {
                next[*at as usize * k..][..k].copy_from_slice(chunk);
            }
            let ids = upload(&next, (b, s, k), batch.destination())?;
            let x = model.backbone.forward_branch(&model.embed(&ids)?.detach(), &trunk, &mut branch)?;
            hidden = batch.pick(&x)?.detach();
        }
    }
    Ok(out)
}
