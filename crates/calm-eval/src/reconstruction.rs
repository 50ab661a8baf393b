//! How well the autoencoder rebuilds held-out text, and how much noise its latents stand.

use calm_autoencoder::Autoencoder;
use calm_data::Batch;
use calm_nn::{Noise, RowId};
use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

/// Noise levels at which accuracy is reported.
pub const SIGMAS: [f64; 6] = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5];

/// A latent dimension is called collapsed if the variance of its posterior mean over the text is below this
/// (it then carries nothing about the chunk).
pub const ACTIVE_VARIANCE: f64 = 0.01;

/// Accuracies as fractions. Tokens are all but PAD (EOS included); a chunk counts if all of those are right.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReconstructionReport {
    /// From a posterior sample.
    pub token_accuracy: f64,
    /// From a posterior sample.
    pub chunk_accuracy: f64,
    /// From the posterior mean.
    pub token_accuracy_mean: f64,
    /// From the posterior mean.
    pub chunk_accuracy_mean: f64,
    /// Mean over all positions (PAD included), nats, from a posterior sample.
    pub cross_entropy: f64,
    /// KL to the standard normal per chunk, nats.
    pub kl: f64,
    /// Dimensions whose posterior mean does not vary over the text.
    pub collapsed_dimensions: usize,
    /// L.
    pub latent_size: usize,
    /// Mean standard deviation of the posterior.
    pub posterior_std: f64,
    /// Accuracy from mean + σ·ε.
    pub noise: Vec<NoiseLevel>,
    /// Tokens counted.
    pub tokens: u64,
    /// Chunks counted.
    pub chunks: u64,
}

/// Accuracy at one noise level.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NoiseLevel {
    /// σ.
    pub sigma: f64,
    /// Fraction.
    pub token_accuracy: f64,
    /// Fraction.
    pub chunk_accuracy: f64,
}

/// The chunks of a batch that hold text, `[R, K]` row-major, and their noise identity.
pub fn text_chunks(batch: &Batch) -> (Vec<u32>, Vec<RowId>) {
    let mut ids = Vec::new();
    let mut rows = Vec::new();
    for b in 0..batch.rows {
        for s in 0..batch.context {
            if batch.target[b * batch.context + s] {
                ids.extend_from_slice(batch.chunk(b, s));
                rows.push(RowId { example: batch.examples[b], position: s as u32 });
            }
        }
    }
    (ids, rows)
}

#[derive(Clone, Copy, Default)]
struct Hits {
    tokens: u64,
    chunks: u64,
}

impl Hits {
    fn add(&mut self, ids: &[Vec<u32>], rebuilt: &[Vec<u32>], pad: u32) {
        for (want, got) in ids.iter().zip(rebuilt) {
            let right = want.iter().zip(got).filter(|(w, g)| **w != pad && w == g).count();
            self.tokens += right as u64;
            self.chunks += u64::from(right == want.iter().filter(|w| **w != pad).count());
        }
    }
}

/// Measures reconstruction on the text chunks of `batches`.
///
/// # Errors
/// Chunks of another size than the model's; on the CPU an id outside its vocabulary; what a GPU answers.
pub fn reconstruct(
    model: &Autoencoder,
    batches: impl Iterator<Item = Batch>,
    pad: u32,
    seed: u64,
    device: &Device,
    mut progress: impl FnMut(usize),
) -> Result<ReconstructionReport> {
    let l = model.latent_size();
    let (mut sampled, mut mean, mut noisy) =
        (Hits::default(), Hits::default(), [Hits::default(); SIGMAS.len()]);
    let (mut tokens, mut chunks, mut positions) = (0u64, 0u64, 0u64);
    let (mut nats, mut kl, mut std) = (0.0, 0.0, 0.0);
    let (mut first, mut second) = (vec![0.0f64; l], vec![0.0f64; l]);
    for (i, batch) in batches.enumerate() {
        let (flat, rows) = text_chunks(&batch);
        if rows.is_empty() {
            continue;
        }
        let ids = Tensor::from_vec(flat, (rows.len(), model.chunk_size()), device)?;
        let want = ids.to_vec2::<u32>()?;
        let noise = Noise::Keyed { seed, purpose: "reconstruct", step: 0, rows: &rows };
        let posterior = model.encode(&ids)?.detach();
        let eps = noise.normal("latent", 1, l, device)?.squeeze(1)?;
        let (ce, best) = model.score(&posterior.sample(&eps)?.detach(), &ids)?;
        sampled.add(&want, &best.to_vec2()?, pad);
        nats += ce.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        for (hits, sigma) in noisy.iter_mut().zip(SIGMAS) {
            let z = (&posterior.mean + (&eps * sigma)?)?;
            hits.add(&want, &model.decode(&z)?.to_vec2()?, pad);
        }
        mean.tokens = noisy[0].tokens;
        mean.chunks = noisy[0].chunks;
        kl += posterior.kl()?.to_dtype(DType::F64)?.sum_all()?.to_scalar::<f64>()?;
        std += posterior.log_std.exp()?.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>()?
            * rows.len() as f64;
        let means = posterior.mean.to_dtype(DType::F64)?;
        add(&mut first, &means.sum(0)?.to_vec1()?);
        add(&mut second, &means.sqr()?.sum(0)?.to_vec1()?);
        tokens += want.iter().flatten().filter(|t| **t != pad).count() as u64;
        chunks += rows.len() as u64;
        positions += (rows.len() * model.chunk_size()) as u64;
        progress(i + 1);
    }
    let n = chunks.max(1) as f64;
    let share = |hits: Hits| (hits.tokens as f64 / tokens.max(1) as f64, hits.chunks as f64 / n);
    let collapsed =
        first.iter().zip(&second).filter(|(a, b)| **b / n - (**a / n).powi(2) < ACTIVE_VARIANCE).count();
    Ok(ReconstructionReport {
        token_accuracy: share(sampled).0,
        chunk_accuracy: share(sampled).1,
        token_accuracy_mean: share(mean).0,
        chunk_accuracy_mean: share(mean).1,
        cross_entropy: nats / positions.max(1) as f64,
        kl: kl / n,
        collapsed_dimensions: collapsed,
        latent_size: l,
        posterior_std: std / n,
        noise: SIGMAS
            .iter()
            .zip(noisy)
            .map(|(sigma, hits)| NoiseLevel {
                sigma: *sigma,
                token_accuracy: share(hits).0,
                chunk_accuracy: share(hits).1,
            })
            .collect(),
        tokens,
        chunks,
    })
}

fn add(into: &mut [f64], values: &[f64]) {
    for (a, b) in into.iter_mut().zip(values) {
        *a += b;
    }
}
