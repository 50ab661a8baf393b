//! BrierLM of a model on held-out documents: batches in, contributions by document out.
//!
//! Positions are chunk starts. A position is scored if four tokens of its document (PAD after EOS included)
//! lie ahead of it in its window: a rule that looks at lengths only, never at the target. Which of these
//! count is a matter of the protocol ([`crate::protocol::Rule`]).
//!
//! Where only the answers of conversations count, all four tokens must be of answers: the same positions for every K.
//! A cross-entropy is that of the chunks that are predicted, so that with K > 1 what stands before an answer in its
//! first chunk is among the tokens and the bytes that it is a mean of.
//!
//! The noise of a draw is keyed by its row in the whole evaluation and its position in the row: scores do not depend
//! on how many rows are computed at once (but for the last bits of a probability, where another number of rows makes
//! matrix products round differently).

use std::collections::BTreeMap;

use calm_data::Batch;
use calm_lm::{ChunkBatch, DrawKind, DrawRequest, Draws, ExactDraws, LanguageModel, SampledDraws};
use calm_nn::Destination;
use candle_core::Result;
use serde::{Deserialize, Serialize};

use crate::protocol::Rule;
use crate::workers::{Exact, Workers};
use calm_stats::brier::{self, BrierSums, EndOfText, NGRAM, SampledPath, Terms, chunks_per_gram};

/// Version of everything that decides a score besides its protocol: raised when the same weights give other numbers,
/// so that what was kept under an older one is drawn again.
///
/// 1: noise by the number of the batch (0.1.0). 2: noise by row and position.
pub const VERSION: u32 = 2;

/// A batch as tensors; best made in the context of the model's store.
///
/// # Errors
/// As [`ChunkBatch::new`].
pub fn to_tensors(batch: &Batch, to: &dyn Destination) -> Result<ChunkBatch> {
    ChunkBatch::new(
        (batch.rows, batch.context, batch.chunk_size),
        &batch.ids,
        &batch.positions,
        &batch.segments,
        &batch.predicts,
        &batch.examples,
        to,
    )?
    .with_inputs(batch.inputs())
}

/// Scores of one model, and the positions they were taken at.
#[derive(Clone, Debug, Default)]
pub struct Scores {
    /// Contributions by document (by block in the reference protocol).
    pub sums: BrierSums,
    /// Summed cross-entropy of all predicted tokens in nats, and their number (families with probabilities only).
    pub cross_entropy: Option<(f64, u64)>,
    /// How often each token was predicted there, for bits per byte (families with probabilities only).
    pub predicted: BTreeMap<u32, u64>,
    /// The positions that were scored.
    pub positions: Vec<Position>,
}

/// One scored position. Between processes a list of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "[u32; 4 + NGRAM]", into = "[u32; 4 + NGRAM]")]
pub struct Position {
    /// Document index.
    pub document: u32,
    /// What it is resampled with in standard errors: its document, or its block.
    pub group: u32,
    /// Where the n-gram begins: token of the document, or of the joined text (see [`Rule::token`]).
    pub token: u32,
    /// The token before the n-gram.
    pub previous: u32,
    /// The n-gram, complete.
    pub target: [u32; NGRAM],
}

impl From<Position> for [u32; 4 + NGRAM] {
    fn from(p: Position) -> Self {
        let [a, b, c, d] = p.target;
        [p.document, p.group, p.token, p.previous, a, b, c, d]
    }
}

impl From<[u32; 4 + NGRAM]> for Position {
    fn from([document, group, token, previous, a, b, c, d]: [u32; 4 + NGRAM]) -> Self {
        Self { document, group, token, previous, target: [a, b, c, d] }
    }
}

/// What one batch adds to the scores, in the order in which it is added.
#[derive(Default, Serialize, Deserialize)]
struct BatchScores {
    /// The positions that were scored, with their contributions.
    positions: Vec<(Position, [Exact; NGRAM])>,
    /// Of a family with probabilities: ln p of all predicted tokens together, and the tokens.
    predicted: Option<(Exact, BTreeMap<u32, u64>)>,
}

impl Scores {
    fn add(&mut self, batch: BatchScores) {
        if let Some((log_p, predicted)) = batch.predicted {
            let (mut nats, mut tokens) = self.cross_entropy.unwrap_or_default();
            nats -= log_p.0;
            for (id, count) in predicted {
                *self.predicted.entry(id).or_default() += count;
                tokens += count;
            }
            self.cross_entropy = Some((nats, tokens));
        }
        for (position, contribution) in batch.positions {
            self.sums.add(u64::from(position.group), &contribution.map(|c| c.0));
            self.positions.push(position);
        }
    }
}

/// The four tokens after chunk position `(b, s)`, if they lie in the window and all count.
fn target(batch: &Batch, b: usize, s: usize, end: EndOfText) -> Option<[u32; NGRAM]> {
    let mut gram = [end.pad; NGRAM];
    let mut len = 0;
    let segment = batch.segments[b * batch.context + s];
    for t in s + 1..batch.context {
        if !batch.filled[b * batch.context + t] || batch.segments[b * batch.context + t] != segment {
            break;
        }
        for (n, &token) in batch.chunk(b, t).iter().enumerate() {
            if !batch.counts(b, t, n) {
                return None;
            }
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

/// The scored positions of a batch, in order: (b, s, what is scored there).
pub fn positions(batch: &Batch, end: EndOfText, rule: Rule) -> Vec<(usize, usize, Position)> {
    let mut out = Vec::new();
    for at in (0..batch.rows * batch.context).filter(|at| batch.predicts[*at]) {
        let (b, s) = (at / batch.context, at % batch.context);
        if !rule.scores(batch, b, s) {
            continue;
        }
        if let Some(target) = target(batch, b, s, end) {
            let previous = batch.chunk(b, s)[batch.chunk_size - 1];
            let (group, token) = (rule.group(batch, b, s), rule.token(batch, b, s) as u32);
            out.push((b, s, Position { document: batch.documents[at], group, token, previous, target }));
        }
    }
    out
}

/// The scored positions with their rows among the predicting positions of the batch.
fn scored_rows(batch: &Batch, end: EndOfText, rule: Rule) -> Vec<(usize, Position)> {
    let mut row_of = vec![0; batch.predicts.len()];
    let mut rows = 0;
    for (at, predicts) in batch.predicts.iter().enumerate() {
        row_of[at] = rows;
        rows += usize::from(*predicts);
    }
    let scored = positions(batch, end, rule).into_iter();
    scored.map(|(b, s, position)| (row_of[b * batch.context + s], position)).collect()
}

/// Leaves out what no scored position needs: each needs the draws of its n-gram's chunks.
fn restrict(batch: &mut Batch, end: EndOfText, rule: Rule) {
    let steps = chunks_per_gram(batch.chunk_size);
    let mut needed = vec![false; batch.predicts.len()];
    for (b, s, _) in positions(batch, end, rule) {
        let at = b * batch.context + s;
        let last = (b + 1) * batch.context;
        needed[at..(at + steps).min(last)].fill(true);
    }
    batch.predicts.iter_mut().zip(needed).for_each(|(predicts, needed)| *predicts &= needed);
}

fn shape_error(e: brier::BrierError) -> candle_core::Error {
    candle_core::Error::Msg(format!("scoring: {e}"))
}

/// How a model is scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScoreOptions {
    /// Which positions.
    pub rule: Rule,
    /// N, draws a position of a black box, at least 2: all pairs are used (for K < 4 all pairs with the chain that is
    /// rolled forward). Families with probabilities draw two paths.
    pub samples: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Scores a model.
///
/// # Errors
/// What a GPU answers; draws that fit no n-gram; those of the workers.
pub fn score<W: Workers>(
    model: &dyn LanguageModel,
    batches: impl Iterator<Item = Batch>,
    options: ScoreOptions,
    workers: W,
) -> std::result::Result<Scores, W::Error> {
    let special = model.special();
    let end = EndOfText { eos: special.eos, pad: special.pad };
    let ScoreOptions { rule, samples, seed } = options;
    let request = DrawRequest { samples, steps: chunks_per_gram(model.chunk_size()), seed, purpose: "score" };
    let mut scores = Scores::default();
    let measure = |mut batch: Batch| {
        // The cross-entropy of a family with probabilities is that of all predicted tokens.
        if rule != Rule::All && model.draws() == DrawKind::Sampled {
            restrict(&mut batch, end, rule);
        }
        if batch.predict_count() == 0 {
            return Ok(BatchScores::default());
        }
        match model.draw(&to_tensors(&batch, model.store().context())?, &request)? {
            Draws::Sampled(draws) => score_sampled(&batch, &draws, end, rule),
            Draws::Exact(draws) => score_exact(&batch, &draws, end, rule),
        }
    };
    workers.each(batches, measure, |batch| scores.add(batch))?;
    Ok(scores)
}

/// The contributions of a batch of black-box draws.
fn score_sampled(batch: &Batch, draws: &SampledDraws, end: EndOfText, rule: Rule) -> Result<BatchScores> {
    let mut scores = BatchScores::default();
    let SampledDraws { steps, samples, chunk_size, .. } = *draws;
    for (row, position) in scored_rows(batch, end, rule) {
        let forced = |sample: usize| -> Vec<u32> {
            // Predictions after the document's end are PAD by definition, which the score fills in.
            let ahead = position.target.iter().take_while(|t| **t != end.eos).count() + 1;
            let chunks = ahead.min(NGRAM).div_ceil(chunk_size);
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
            rolled_terms(&position.target, &accuracy, samples, chain, end)
        }
        .map_err(shape_error)?;
        scores.positions.push((position, terms.brier().map(Exact)));
    }
    Ok(scores)
}

/// Terms from rolled-forward chains. Every later chunk of every chain was drawn after the *first* chain's own
/// chunks, so only pairs with the first chain compare draws of one n-gram: their mean is the collision term.
fn rolled_terms(
    target: &[u32; NGRAM],
    accuracy: &[Vec<u32>],
    samples: usize,
    chain: impl Fn(usize) -> Vec<u32>,
    end: EndOfText,
) -> std::result::Result<Terms, brier::BrierError> {
    let first = chain(0);
    let mut mean = brier::terms(target, accuracy, &[&first, &chain(1)], Some(end))?;
    for n in 2..samples {
        let pair = brier::terms(target, accuracy, &[&first, &chain(n)], Some(end))?;
        mean.collision.iter_mut().zip(pair.collision).for_each(|(sum, c)| *sum += c);
    }
    mean.collision.iter_mut().for_each(|c| *c /= (samples - 1) as f64);
    Ok(mean)
}

/// The contributions of a batch of exact probabilities with two sampled paths.
fn score_exact(batch: &Batch, draws: &ExactDraws, end: EndOfText, rule: Rule) -> Result<BatchScores> {
    let mut counts = BTreeMap::new();
    for at in (0..batch.predicts.len()).filter(|at| batch.predicts[*at]) {
        // PAD follows by definition and is no prediction.
        let predicted = batch.chunk(at / batch.context, at % batch.context + 1);
        for id in predicted.iter().filter(|id| **id != end.pad) {
            *counts.entry(*id).or_default() += 1;
        }
    }
    let log_p = Exact(draws.log_p.iter().sum());
    let mut scores = BatchScores { predicted: Some((log_p, counts)), ..BatchScores::default() };
    for (row, position) in scored_rows(batch, end, rule) {
        let gold: [f64; NGRAM] = draws.gram_log_p[row].map(f64::exp);
        let [a, b] = &draws.paths[row];
        let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
        let parted = &b[..(same + 1).min(b.len())];
        let squares = &draws.squares[row];
        let paths = [
            SampledPath { tokens: a, squares },
            SampledPath { tokens: parted, squares: &squares[..parted.len().min(same) + 1] },
        ];
        let terms = brier::exact_terms(&position.target, &gold, &paths, Some(end)).map_err(shape_error)?;
        scores.positions.push((position, terms.brier().map(Exact)));
    }
    Ok(scores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use calm_stats::rng::Stream;

    /// A token after `previous` in a world of two tokens.
    fn next(previous: usize, stream: &mut Stream) -> usize {
        usize::from(stream.uniform() > P[previous])
    }

    /// Probability of token 0 after each token.
    const P: [f64; 2] = [0.7, 0.4];

    /// P(two chains agree in their first n tokens), both drawn from token 0 on.
    fn agreement(n: usize) -> f64 {
        let mut together = [1.0, 0.0];
        for _ in 0..n {
            let same = |token: usize| -> f64 {
                let p = |from: usize| if token == 0 { P[from] } else { 1.0 - P[from] };
                (0..2).map(|from| together[from] * p(from).powi(2)).sum()
            };
            together = [same(0), same(1)];
        }
        together.iter().sum()
    }

    #[test]
    fn chains_rolled_forward_after_the_first_one_estimate_the_collision_term_without_bias() {
        let end = EndOfText { eos: 8, pad: 9 };
        let (trials, samples) = (20_000, 4);
        let mut stream = Stream::new(5, "rolled", 0);
        let (mut sum, mut squares) = ([0.0; NGRAM], [0.0; NGRAM]);
        for _ in 0..trials {
            // Step j of every chain is drawn after the first chain's own j tokens, as `draw_positions` does.
            let mut chains = vec![Vec::new(); samples];
            let mut previous = 0;
            for _ in 0..NGRAM {
                chains.iter_mut().for_each(|c| c.push(next(previous, &mut stream) as u32));
                previous = chains[0][chains[0].len() - 1] as usize;
            }
            let accuracy = vec![vec![0; NGRAM]];
            let terms = rolled_terms(&[0; NGRAM], &accuracy, samples, |n| chains[n].clone(), end).unwrap();
            for n in 0..NGRAM {
                sum[n] += terms.collision[n];
                squares[n] += terms.collision[n].powi(2);
            }
        }
        for n in 0..NGRAM {
            let mean = sum[n] / f64::from(trials);
            let se = ((squares[n] / f64::from(trials) - mean * mean) / f64::from(trials)).sqrt();
            let truth = agreement(n + 1);
            assert!((mean - truth).abs() < 4.0 * se, "n = {}: {mean} against {truth} ± {se}", n + 1);
            // The test would notice an estimator that is 10 % off.
            assert!(4.0 * se < 0.1 * truth, "n = {}: {se}", n + 1);
        }
    }
}
