//! The bound on the cross-entropy of a model whose draws a softmax decodes ([`calm_stats::bound`]), on held-out
//! documents.

use std::collections::BTreeMap;

use calm_data::Batch;
use calm_lm::{DecodedDraws, DrawRequest, LanguageModel};
use calm_stats::bound::{Bound, Floor};
use serde::{Deserialize, Serialize};

use crate::score::to_tensors;
use crate::workers::{Exact, Workers};

/// The share of uniform tokens in the distribution that is bounded.
pub const FLOOR: f64 = 1e-3;

/// The bound of one model.
#[derive(Clone, Debug)]
pub struct BoundScores {
    /// Sums by document.
    pub bound: Bound,
    /// How often each token was predicted, for bits per byte.
    pub predicted: BTreeMap<u32, u64>,
}

/// How it is taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BoundOptions {
    /// N, draws a position.
    pub samples: usize,
    /// The floor.
    pub floor: Floor,
    /// Seed of the draws.
    pub seed: u64,
}

/// What one batch adds.
#[derive(Serialize, Deserialize)]
struct BatchBound {
    /// Of each predicted chunk: document, tokens, nats at each size.
    chunks: Vec<(u32, usize, Vec<Exact>)>,
    predicted: BTreeMap<u32, u64>,
}

/// The bound at every predicted chunk of these batches; None of a model without such draws, or without any. Noise is keyed by row and
/// position: it does not depend on the batches.
///
/// # Errors
/// What a GPU answers; those of the workers.
pub fn bound<W: Workers>(
    model: &dyn LanguageModel,
    batches: impl Iterator<Item = Batch>,
    options: BoundOptions,
    workers: W,
) -> Result<Option<BoundScores>, W::Error> {
    let BoundOptions { samples, floor, seed } = options;
    if samples == 0 {
        return Ok(None);
    }
    let request = DrawRequest { samples, steps: 1, seed, purpose: "bound" };
    let empty = Bound::new(samples, floor);
    let mut out = BoundScores { bound: empty.clone(), predicted: BTreeMap::new() };
    let measure = |batch: Batch| {
        if batch.predict_count() == 0 {
            return Ok(Some(BatchBound { chunks: Vec::new(), predicted: BTreeMap::new() }));
        }
        let tensors = to_tensors(&batch, model.store().context())?;
        let draws = model.decoded_log_probabilities(&tensors, &request)?;
        Ok(draws.map(|draws| of_batch(&empty, &batch, &draws)))
    };
    let mut without = false;
    workers.each(batches, measure, |batch| match batch {
        Some(batch) => add(&mut out, batch),
        None => without = true,
    })?;
    Ok((!without).then_some(out))
}

fn of_batch(bound: &Bound, batch: &Batch, draws: &DecodedDraws) -> BatchBound {
    let mut out = BatchBound { chunks: Vec::new(), predicted: BTreeMap::new() };
    let rows = (0..batch.predicts.len()).filter(|at| batch.predicts[*at]);
    for ((at, log_p), &tokens) in rows.zip(draws.log_p.chunks(draws.samples)).zip(&draws.tokens) {
        let nats = bound.of_chunk(log_p, tokens).into_iter().map(Exact).collect();
        out.chunks.push((batch.documents[at], tokens, nats));
        let (b, s) = (at / batch.context, at % batch.context);
        for token in &batch.chunk(b, s + 1)[..tokens] {
            *out.predicted.entry(*token).or_default() += 1;
        }
    }
    out
}

fn add(out: &mut BoundScores, batch: BatchBound) {
    for (document, tokens, nats) in batch.chunks {
        let nats: Vec<f64> = nats.iter().map(|nats| nats.0).collect();
        out.bound.add_chunk(u64::from(document), &nats, tokens);
    }
    for (token, count) in batch.predicted {
        *out.predicted.entry(token).or_default() += count;
    }
}
