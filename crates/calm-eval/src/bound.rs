//! The bound on the cross-entropy of a model whose draws a softmax decodes ([`calm_stats::bound`]), on held-out
//! documents.

use std::collections::BTreeMap;

use calm_data::Batch;
use calm_lm::{DecodedDraws, DrawRequest, LanguageModel};
use calm_stats::bound::{Bound, Floor};
use candle_core::Result;

use crate::score::to_tensors;

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

/// The bound at every predicted chunk of these batches; None of a model without such draws, or without any. Noise is keyed by row and
/// position: it does not depend on the batches. `progress` hears the batches that are done.
///
/// # Errors
/// What a GPU answers.
pub fn bound(
    model: &dyn LanguageModel,
    batches: impl Iterator<Item = Batch>,
    options: BoundOptions,
    mut progress: impl FnMut(usize),
) -> Result<Option<BoundScores>> {
    let BoundOptions { samples, floor, seed } = options;
    if samples == 0 {
        return Ok(None);
    }
    let request = DrawRequest { samples, steps: 1, seed, purpose: "bound" };
    let mut out = BoundScores { bound: Bound::new(samples, floor), predicted: BTreeMap::new() };
    for (i, batch) in batches.enumerate() {
        if batch.predict_count() > 0 {
            let tensors = to_tensors(&batch, model.store().context())?;
            let Some(draws) = model.decoded_log_probabilities(&tensors, &request)? else { return Ok(None) };
            add(&mut out, &batch, &draws);
        }
        progress(i + 1);
    }
    Ok(Some(out))
}

fn add(out: &mut BoundScores, batch: &Batch, draws: &DecodedDraws) {
    let rows = (0..batch.predicts.len()).filter(|at| batch.predicts[*at]);
    for ((at, log_p), &tokens) in rows.zip(draws.log_p.chunks(draws.samples)).zip(&draws.tokens) {
        out.bound.add(u64::from(batch.documents[at]), log_p, tokens);
        let (b, s) = (at / batch.context, at % batch.context);
        for token in &batch.chunk(b, s + 1)[..tokens] {
            *out.predicted.entry(*token).or_default() += 1;
        }
    }
}
