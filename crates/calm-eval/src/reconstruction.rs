//! How well the autoencoder rebuilds held-out text, and how much noise its latents stand.

use calm_autoencoder::Autoencoder;
use calm_data::Batch;
use calm_nn::{Noise, RowId};
use candle_core::{DType, Device, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::workers::{Exact, Workers};

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

#[derive(Clone, Copy, Default, Serialize, Deserialize)]
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

/// What is counted and added up, of a batch and of all of them.
#[derive(Default, Serialize, Deserialize)]
struct Sums {
    sampled: Hits,
    noisy: [Hits; SIGMAS.len()],
    tokens: u64,
    chunks: u64,
    positions: u64,
    nats: Exact,
    kl: Exact,
    std: Exact,
    /// Of the posterior's mean, and of its square, by dimension; empty of a batch without text.
    first: Vec<Exact>,
    second: Vec<Exact>,
}

impl Sums {
    /// Of the text chunks of a batch.
    fn of(model: &Autoencoder, batch: &Batch, pad: u32, seed: u64, device: &Device) -> Result<Self> {
        let mut sums = Self::default();
        let (flat, rows) = text_chunks(batch);
        if rows.is_empty() {
            return Ok(sums);
        }
        let exact = |numbers: Vec<f64>| numbers.into_iter().map(Exact).collect();
        let ids = Tensor::from_vec(flat, (rows.len(), model.chunk_size()), device)?;
        let want = ids.to_vec2::<u32>()?;
        let noise = Noise::Keyed { seed, purpose: "reconstruct", step: 0, rows: &rows };
        let posterior = model.encode(&ids)?.detach();
        let eps = noise.normal("latent", 1, model.latent_size(), device)?.squeeze(1)?;
        let (ce, best) = model.score(&posterior.sample(&eps)?.detach(), &ids)?;
        sums.sampled.add(&want, &best.to_vec2()?, pad);
        sums.nats = Exact(ce.to_dtype(DType::F64)?.sum_all()?.to_scalar()?);
        for (hits, sigma) in sums.noisy.iter_mut().zip(SIGMAS) {
            let z = (&posterior.mean + (&eps * sigma)?)?;
            hits.add(&want, &model.decode(&z)?.to_vec2()?, pad);
        }
        sums.kl = Exact(posterior.kl()?.to_dtype(DType::F64)?.sum_all()?.to_scalar()?);
        let std: f64 = posterior.log_std.exp()?.to_dtype(DType::F64)?.mean_all()?.to_scalar()?;
        sums.std = Exact(std * rows.len() as f64);
        let means = posterior.mean.to_dtype(DType::F64)?;
        sums.first = exact(means.sum(0)?.to_vec1()?);
        sums.second = exact(means.sqr()?.sum(0)?.to_vec1()?);
        sums.tokens = want.iter().flatten().filter(|t| **t != pad).count() as u64;
        sums.chunks = rows.len() as u64;
        sums.positions = (rows.len() * model.chunk_size()) as u64;
        Ok(sums)
    }

    fn add(&mut self, batch: &Self) {
        let hits = |sum: &mut Hits, batch: &Hits| {
            sum.tokens += batch.tokens;
            sum.chunks += batch.chunks;
        };
        let numbers = |sums: &mut Vec<Exact>, batch: &Vec<Exact>| {
            sums.resize(sums.len().max(batch.len()), Exact(0.0));
            sums.iter_mut().zip(batch).for_each(|(sum, number)| sum.0 += number.0);
        };
        hits(&mut self.sampled, &batch.sampled);
        self.noisy.iter_mut().zip(&batch.noisy).for_each(|(sum, batch)| hits(sum, batch));
        self.tokens += batch.tokens;
        self.chunks += batch.chunks;
        self.positions += batch.positions;
        self.nats.0 += batch.nats.0;
        self.kl.0 += batch.kl.0;
        self.std.0 += batch.std.0;
        numbers(&mut self.first, &batch.first);
        numbers(&mut self.second, &batch.second);
    }

    fn report(&self, latent_size: usize) -> ReconstructionReport {
        let n = self.chunks.max(1) as f64;
        let share = |hits: Hits| (hits.tokens as f64 / self.tokens.max(1) as f64, hits.chunks as f64 / n);
        // The posterior's mean is its sample without noise.
        let (sampled, mean) = (share(self.sampled), share(self.noisy[0]));
        let collapsed = |(a, b): (&Exact, &Exact)| b.0 / n - (a.0 / n).powi(2) < ACTIVE_VARIANCE;
        let active = self.first.iter().zip(&self.second).filter(|sums| !collapsed(*sums)).count();
        let level = |(sigma, hits): (f64, Hits)| {
            let (token_accuracy, chunk_accuracy) = share(hits);
            NoiseLevel { sigma, token_accuracy, chunk_accuracy }
        };
        ReconstructionReport {
            token_accuracy: sampled.0,
            chunk_accuracy: sampled.1,
            token_accuracy_mean: mean.0,
            chunk_accuracy_mean: mean.1,
            cross_entropy: self.nats.0 / self.positions.max(1) as f64,
            kl: self.kl.0 / n,
            collapsed_dimensions: latent_size - active,
            latent_size,
            posterior_std: self.std.0 / n,
            noise: SIGMAS.into_iter().zip(self.noisy).map(level).collect(),
            tokens: self.tokens,
            chunks: self.chunks,
        }
    }
}

/// Measures reconstruction on the text chunks of `batches`.
///
/// # Errors
/// Chunks of another size than the model's; on the CPU an id outside its vocabulary; what a GPU answers; those of the workers.
pub fn reconstruct<W: Workers>(
    model: &Autoencoder,
    batches: impl Iterator<Item = Batch>,
    pad: u32,
    seed: u64,
    device: &Device,
    workers: W,
) -> std::result::Result<ReconstructionReport, W::Error> {
    let mut sums = Sums::default();
    workers.each(batches, |batch| Sums::of(model, &batch, pad, seed, device), |batch| sums.add(&batch))?;
    Ok(sums.report(model.latent_size()))
}
