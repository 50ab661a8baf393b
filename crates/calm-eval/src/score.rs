//! BrierLM of a model on held-out documents: batches in, contributions by document out.
//!
//! Positions are chunk starts. A position is scored if four tokens of its document (PAD after EOS included)
//! lie ahead of it in its window: a rule that looks at lengths only, never at the target.

use calm_data::Batch;
use calm_lm::{Baseline, Calm, ChunkBatch, Sampler};
use candle_core::{Device, Result};

use crate::brier::{self, BrierSums, EndOfText, NGRAM, SampledPath, Terms, chunks_per_gram};

/// A batch as tensors.
pub fn to_tensors(batch: &Batch, device: &Device) -> Result<ChunkBatch> {
    ChunkBatch::new(
        (batch.rows, batch.context, batch.chunk_size),
        &batch.ids,
        &batch.positions,
        &batch.segments,
        &batch.predicts,
        &batch.examples,
        device,
    )
}

/// Scores of one model, and the closed-form scores of others on the same positions.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Contributions by document.
    pub sums: BrierSums,
    /// Summed cross-entropy of all predicted tokens in nats, and their number (baselines only).
    pub cross_entropy: Option<(f64, u64)>,
    /// The positions that were scored.
    pub positions: Vec<Position>,
}

/// One scored position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Document index.
    pub document: u32,
    /// The token before the n-gram.
    pub previous: u32,
    /// The n-gram, complete.
    pub target: [u32; NGRAM],
}

/// The four tokens after chunk position `(b, s)`, if they lie in the window.
fn target(batch: &Batch, b: usize, s: usize, end: EndOfText) -> Option<[u32; NGRAM]> {
    let mut gram = [end.pad; NGRAM];
    let mut len = 0;
    let segment = batch.segments[b * batch.context + s];
    for t in s + 1..batch.context {
        if !batch.filled[b * batch.context + t] || batch.segments[b * batch.context + t] != segment {
            break;
        }
        for &token in batch.chunk(b, t) {
            gram[len] = token;
            len += 1;
            if token == end.eos {
                gram[len..].fill(end.pad);
                return Some(gram);
            }
            if len == NGRAM {
                return Some(gram);
            }
        }
    }
    None
}

/// The n-gram positions of a batch: (row among the predicting positions, what is scored there).
fn positions(batch: &Batch, end: EndOfText) -> Vec<(usize, Position)> {
    let mut out = Vec::new();
    let predicting = (0..batch.rows * batch.context).filter(|at| batch.predicts[*at]);
    for (row, at) in predicting.enumerate() {
        let (b, s) = (at / batch.context, at % batch.context);
        if let Some(target) = target(batch, b, s, end) {
            let previous = batch.chunk(b, s)[batch.chunk_size - 1];
            out.push((row, Position { document: batch.documents[at], previous, target }));
        }
    }
    out
}

fn shape_error(e: brier::BrierError) -> candle_core::Error {
    candle_core::Error::Msg(format!("scoring: {e}"))
}

/// Scores a CALM with `samples` draws per position (all pairs; for K < 4 two rolled-forward chains).
pub fn score_calm(
    model: &Calm,
    batches: impl Iterator<Item = Batch>,
    samples: usize,
    seed: u64,
    device: &Device,
    mut progress: impl FnMut(usize),
) -> Result<Scores> {
    let special = model.special();
    let end = EndOfText { eos: special.eos, pad: special.pad };
    let steps = chunks_per_gram(model.chunk_size());
    let mut scores = Scores::default();
    for (i, batch) in batches.enumerate() {
        let purpose = format!("score/{i}");
        let draws = model.draw_positions(&to_tensors(&batch, device)?, samples, steps, seed, &purpose)?;
        for (row, position) in positions(&batch, end) {
            let forced = |sample: usize| -> Vec<u32> {
                // Predictions after the document's end are PAD by definition, which the score fills in.
                let ahead = position.target.iter().take_while(|t| **t != end.eos).count() + 1;
                let chunks = ahead.min(NGRAM).div_ceil(model.chunk_size());
                (0..chunks).flat_map(|j| draws.chunk(row + j, 0, sample).iter().copied()).collect()
            };
            let terms: Terms = if steps == 1 {
                let drawn: Vec<&[u32]> = (0..samples).map(|n| draws.chunk(row, 0, n)).collect();
                brier::sample_terms(&position.target, &drawn, Some(end))
            } else {
                let accuracy: Vec<Vec<u32>> = (0..samples).map(forced).collect();
                let chain = |n: usize| -> Vec<u32> {
                    (0..steps).flat_map(|j| draws.chunk(row, j, n).iter().copied()).collect()
                };
                brier::terms(&position.target, &accuracy, &[chain(0), chain(1)], Some(end))
            }
            .map_err(shape_error)?;
            scores.sums.add(u64::from(position.document), &terms.brier());
            scores.positions.push(position);
        }
        progress(i + 1);
    }
    Ok(scores)
}

/// Scores a baseline with exact target probabilities and two sampled paths.
pub fn score_baseline(
    model: &Baseline,
    batches: impl Iterator<Item = Batch>,
    seed: u64,
    device: &Device,
    mut progress: impl FnMut(usize),
) -> Result<Scores> {
    let special = model.special();
    let end = EndOfText { eos: special.eos, pad: special.pad };
    let mut scores = Scores::default();
    let (mut nats, mut tokens) = (0.0, 0);
    for (i, batch) in batches.enumerate() {
        let draws = model.draw_positions(&to_tensors(&batch, device)?, seed, &format!("score/{i}"))?;
        nats -= draws.log_p.iter().sum::<f64>();
        tokens += draws.log_p.len() as u64;
        for (row, position) in positions(&batch, end) {
            let gold: [f64; NGRAM] =
                std::array::from_fn(|n| draws.log_p.get(row + n).map_or(1.0, |l| l.exp()));
            let [a, b] = &draws.paths[row];
            let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
            let parted = &b[..(same + 1).min(b.len())];
            let squares = &draws.squares[row];
            let paths = [
                SampledPath { tokens: a, squares },
                SampledPath { tokens: parted, squares: &squares[..parted.len().min(same) + 1] },
            ];
            let terms =
                brier::baseline_terms(&position.target, &gold, &paths, Some(end)).map_err(shape_error)?;
            scores.sums.add(u64::from(position.document), &terms.brier());
            scores.positions.push(position);
        }
        progress(i + 1);
    }
    scores.cross_entropy = Some((nats, tokens));
    Ok(scores)
}
