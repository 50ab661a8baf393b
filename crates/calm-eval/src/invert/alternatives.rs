//! What is tried at one position, and how far from the state it leads.

use std::collections::HashSet;

use calm_lm::{Cache, Inversion};
use candle_core::{DType, Result, Tensor};

/// Alternatives whose states are computed together.
pub(super) const BLOCK: usize = 4096;

/// A chunk with the distance of its state from the one that is searched.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Tried {
    pub(super) tokens: Vec<u32>,
    pub(super) distance: f64,
}

/// The alternatives of a position that have been tried.
pub(super) struct Alternatives<'a> {
    pub(super) model: &'a dyn Inversion,
    pub(super) known: &'a Cache,
    pub(super) depth: usize,
    /// The state that is searched, `[D]`.
    pub(super) target: &'a [f32],
    seen: HashSet<Vec<u32>>,
    /// The two nearest, the nearest first.
    nearest: Vec<Tried>,
}

impl<'a> Alternatives<'a> {
    pub(super) fn new(model: &'a dyn Inversion, known: &'a Cache, depth: usize, target: &'a [f32]) -> Self {
        Self { model, known, depth, target, seen: HashSet::new(), nearest: Vec::new() }
    }

    /// How many.
    pub(super) fn tried(&self) -> usize {
        self.seen.len()
    }

    pub(super) fn has(&self, chunk: &[u32]) -> bool {
        self.seen.contains(chunk)
    }

    pub(super) fn best(&self) -> Option<&Tried> {
        self.nearest.first()
    }

    pub(super) fn second(&self) -> Option<&Tried> {
        self.nearest.get(1)
    }

    /// Whether one lies within this distance.
    pub(super) fn within(&self, distance: Option<f64>) -> bool {
        distance.is_some_and(|distance| self.best().is_some_and(|best| best.distance <= distance))
    }

    /// Tries these chunks, one after the other in `tokens`, and gives their distances. Chunks that were tried before count
    /// once.
    ///
    /// # Errors
    /// What a GPU answers.
    pub(super) fn test(&mut self, tokens: &[u32]) -> Result<Vec<f64>> {
        let k = self.model.chunk_size();
        let mut all = Vec::with_capacity(tokens.len() / k);
        for block in tokens.chunks(BLOCK * k) {
            let states = self.model.states(&self.model.embed(block)?, self.known, self.depth)?;
            let found = distances(&states, self.target)?;
            for (chunk, distance) in block.chunks_exact(k).zip(&found) {
                self.count(chunk, *distance);
            }
            all.extend(found);
        }
        Ok(all)
    }

    fn count(&mut self, chunk: &[u32], distance: f64) {
        if !self.seen.insert(chunk.to_vec()) {
            return;
        }
        // No number is no match.
        let distance = if distance.is_nan() { f64::INFINITY } else { distance };
        let at = self.nearest.partition_point(|other| other.distance <= distance);
        if at < 2 {
            self.nearest.insert(at, Tried { tokens: chunk.to_vec(), distance });
            self.nearest.truncate(2);
        }
    }
}

/// Of the states `[N, D]` from one.
pub(super) fn distances(states: &Tensor, target: &[f32]) -> Result<Vec<f64>> {
    let states: Vec<f32> = states.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1()?;
    Ok(states.chunks_exact(target.len().max(1)).map(|state| distance(state, target)).collect())
}

/// Between two states.
pub(super) fn distance(a: &[f32], b: &[f32]) -> f64 {
    square_distance(a, b).sqrt()
}

/// Its square.
pub(super) fn square_distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
}
