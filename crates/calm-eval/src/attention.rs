//! How many directions the attention matrices of a model have: the rank of `softmax(QKᵀ)` by layer, in windows of held-out
//! text that fill a row.
//!
//! A causal matrix is triangular with a positive diagonal and of full rank, and one that looks backwards is triangular in
//! blocks, of full rank too; one that looks both ways may be of low rank, the claimed reason why decoders do well
//! (<https://kexue.fm/archives/9529>).

use calm_data::Batch;
use calm_lm::LanguageModel;
use calm_stats::spectrum::Rank;
use candle_core::{DType, IndexOp, Result, Tensor};
use serde::{Deserialize, Serialize};

use crate::score::to_tensors;

/// Ranks of attention matrices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AttentionRanks {
    /// Windows that were looked at.
    pub windows: usize,
    /// n, positions of each.
    pub positions: usize,
    /// Positions of its input, on average over the windows.
    pub input: f64,
    /// By layer.
    pub layers: Vec<LayerRanks>,
}

/// Of a layer, means over heads and windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LayerRanks {
    /// As in the model, its queries and keys turned by their positions.
    pub turned: Ranks,
    /// Without that.
    pub unturned: Ranks,
}

/// Of one kind of matrix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Ranks {
    /// Of all positions.
    pub whole: Rank,
    /// Of the rows and columns of the input; None where no window has two positions of it.
    pub input: Option<Rank>,
}

/// Sums over windows.
#[derive(Clone, Copy, Default)]
struct Sum {
    rank: Rank,
    windows: usize,
}

impl Sum {
    fn add(&mut self, rank: Rank) {
        self.rank.effective += rank.effective;
        self.rank.above += rank.above;
        self.windows += 1;
    }

    fn mean(self) -> Option<Rank> {
        let n = self.windows as f64;
        let Rank { effective, above } = self.rank;
        (self.windows > 0).then(|| Rank { effective: effective / n, above: above / n })
    }
}

/// Whether the first row of a batch is one window and nothing else.
fn is_whole(batch: &Batch) -> bool {
    let row = &batch.segments[..batch.context];
    batch.filled[..batch.context].iter().all(|filled| *filled) && row.iter().all(|id| *id == row[0])
}

/// Ranks in the first `windows` of these batches of one row that are filled by one window, at most one of a document; `done`
/// hears of each. None of a model without such matrices, or if no window fills a row.
///
/// # Errors
/// Weights that are no numbers, as of a model that diverged; singular values that do not converge; what a GPU answers.
pub fn attention_ranks(
    model: &dyn LanguageModel,
    batches: impl Iterator<Item = Batch>,
    windows: usize,
    mut done: impl FnMut(usize),
) -> Result<Option<AttentionRanks>> {
    let mut sums: Vec<[[Sum; 2]; 2]> = Vec::new();
    let (mut seen, mut positions, mut inputs) = (0, 0, 0);
    // A long document fills many windows, which are alike.
    let mut last = None;
    let mut is_another = |batch: &Batch| last.replace(batch.documents[0]) != Some(batch.documents[0]);
    let whole = batches.filter(is_whole).filter(|batch| is_another(batch));
    for batch in whole.take(windows) {
        let n = batch.context;
        let input = batch.inputs().map_or(0, |inputs| inputs[..n].iter().filter(|x| **x).count());
        let tensors = to_tensors(&batch, model.store().context())?;
        for (kind, turned) in [true, false].into_iter().enumerate() {
            let Some(layers) = model.attention_weights(&tensors, turned)? else { return Ok(None) };
            sums.resize(layers.len(), Default::default());
            for (layer, (sums, weights)) in sums.iter_mut().zip(&layers).enumerate() {
                let [whole, of_input] = &mut sums[kind];
                whole.add(mean_rank(weights, n, layer)?);
                if input > 1 {
                    of_input.add(mean_rank(weights, input, layer)?);
                }
            }
        }
        (seen, positions, inputs) = (seen + 1, n, inputs + input);
        done(seen);
    }
    let ranks = |[whole, input]: [Sum; 2]| Some(Ranks { whole: whole.mean()?, input: input.mean() });
    let layer = |[turned, unturned]: [[Sum; 2]; 2]| {
        Some(LayerRanks { turned: ranks(turned)?, unturned: ranks(unturned)? })
    };
    let Some(layers) = sums.into_iter().map(layer).collect::<Option<Vec<_>>>() else { return Ok(None) };
    let input = inputs as f64 / f64::from(seen.max(1) as u32);
    Ok((seen > 0).then_some(AttentionRanks { windows: seen, positions, input, layers }))
}

/// The mean over heads of the ranks of a layer's first n rows and columns.
fn mean_rank(weights: &Tensor, n: usize, layer: usize) -> Result<Rank> {
    let Some(rank) = Rank::mean(&corners(weights, n)?, n) else {
        candle_core::bail!(
            "attention of layer {layer} has no rank: its weights are no numbers, or their singular values do not converge"
        );
    };
    Ok(rank)
}

/// The first n rows and columns of each head's matrix in the first row of weights `[1, H, S, S]`.
fn corners(weights: &Tensor, n: usize) -> Result<Vec<Vec<f64>>> {
    let heads = weights.i((0, .., ..n, ..n))?.to_dtype(DType::F64)?;
    (0..heads.dim(0)?).map(|head| heads.i(head)?.flatten_all()?.to_vec1()).collect()
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn a_matrix_without_a_rank_is_an_error_and_not_left_out() {
        let weights = |last: f64| {
            let values = vec![1.0, 0.0, 0.5, 0.5, 1.0, 0.0, 0.5, last];
            Tensor::from_vec(values, (1, 2, 2, 2), &Device::Cpu).unwrap()
        };
        assert!(mean_rank(&weights(0.5), 2, 3).unwrap().effective > 0.5);
        let error = mean_rank(&weights(f64::NAN), 2, 3).unwrap_err().to_string();
        assert!(error.contains("layer 3") && error.contains("no numbers"), "{error}");
    }
}
