//! Draws at every predicting position.
//!
//! Each document is read once; what a text held after each of its positions is a part of what it holds at the end. So
//! every position is a text of its own, which goes on for three tokens beside the others. (Branches of one trunk, as
//! the baseline has them, would have to open concepts of their own in each branch.) A few positions at a time: each
//! has keys and values of its own while it goes on.

use candle_core::{Result, Tensor};

use super::model::Dlcm;
use super::text::{DlcmCache, Trail};
use crate::ChunkBatch;
use crate::family::token_draws::TokenDraws;
use crate::family::{Draws, ExactDraws};

/// Positions that go on at the same time.
const TOGETHER: usize = 64;

/// A document that was read: its first position b·S + s, what it holds, what was met, its hidden states `[1, n, D]`.
struct Document {
    begin: usize,
    cache: DlcmCache,
    trail: Trail,
    hidden: Tensor,
}

impl Dlcm {
    /// Reads the documents of a batch that have something to predict.
    fn documents(&self, batch: &ChunkBatch) -> Result<Vec<Document>> {
        let (_, s, _) = batch.ids.dims3()?;
        let ids: Vec<u32> = batch.ids.flatten_all()?.to_vec1()?;
        let segments = &batch.on_host.segments;
        let mut documents: Vec<Document> = Vec::new();
        for &source in &batch.sources {
            let at = source as usize;
            if documents.last().is_some_and(|d| at < d.begin + d.trail.len()) {
                continue;
            }
            let same = |other: &usize| other / s == at / s && segments[*other] == segments[at];
            let begin = (0..=at).rev().take_while(same).last().unwrap_or(at);
            let end = (at..segments.len()).take_while(same).last().unwrap_or(at) + 1;
            let mut cache = DlcmCache::default();
            let (hidden, mut trails) = self.read_on(&ids[begin..end], &[end - begin], &mut [&mut cache])?;
            documents.extend(trails.pop().map(|trail| Document { begin, cache, trail, hidden }));
        }
        Ok(documents)
    }

    /// Probabilities of the targets, two sampled paths and Σ p² along the first, at all predicting positions.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn draw_positions(&self, batch: &ChunkBatch, seed: u64, purpose: &str) -> Result<Draws> {
        let targets: Vec<u32> = batch.targets()?.flatten_all()?.to_vec1()?;
        let documents = self.documents(batch)?;
        let draws = TokenDraws { output: &self.output, special: self.text.special, seed, purpose };
        let mut out = ExactDraws::default();
        for from in (0..targets.len()).step_by(TOGETHER) {
            let rows = from..(from + TOGETHER).min(targets.len());
            let (mut caches, mut hidden) = (Vec::new(), Vec::new());
            for &source in &batch.sources[rows.clone()] {
                let of = documents.partition_point(|d| d.begin <= source as usize) - 1;
                let (document, tokens) = (&documents[of], source as usize - documents[of].begin + 1);
                caches.push(document.cache.until(tokens, &document.trail, self.cross.sees())?);
                hidden.push(document.hidden.narrow(1, tokens - 1, 1)?.squeeze(0)?);
            }
            let lengths = vec![1; caches.len()];
            let some =
                draws.along(Tensor::cat(&hidden, 0)?, &targets[rows.clone()], &batch.rows[rows], |next| {
                    let mut caches: Vec<&mut DlcmCache> = caches.iter_mut().collect();
                    self.read_on(next, &lengths, &mut caches)?.0.squeeze(0)
                })?;
            out.log_p.extend(some.log_p);
            out.paths.extend(some.paths);
            out.squares.extend(some.squares);
        }
        out.follow_targets();
        Ok(Draws::Exact(out))
    }
}
