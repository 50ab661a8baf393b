//! Unigram and bigram models of the training split, with their expected Brier-1..4 in closed form: the
//! marks that a language model has to pass.
//!
//! ```text
//! unigram   p1(y)   = c(y) / C,                                  EOS counted once a document
//! bigram    p(y|x)  = (c(xy) + λ·p1(y)) / (c(x) + λ),            λ = 1 unless said otherwise
//! Brier-n           = 2·Π_{i<=n} p(y_i|y_{i-1})  -  c_n(y_0)
//! collision c_n(x)  = Σ_y p(y|x)² c_{n-1}(y),                    c_0 = 1
//! ```
//!
//! No sampling: the expectation over the model's samples is exact. A document begins after BOS and ends in
//! EOS; after EOS everything is PAD with probability 1, so c_n(EOS) = 1. For the unigram model all contexts
//! but EOS are alike, and without EOS its collision is (Σp²)ⁿ. Contexts that were never seen get p1.
//!
//! p(y|x)² is a sparse part (the bigrams seen after x) plus λ²·p1(y)²/(c(x)+λ)², which is the same vector
//! for all x: one application of the squared matrix costs a pass over the bigrams seen, at any vocabulary.

use rustc_hash::FxHashMap;
use serde::Serialize;
use thiserror::Error;

use crate::bootstrap::{Bootstrap, BrierReport, report};
use crate::brier::{BrierSums, NGRAM};

/// Why no n-gram model could be built or asked.
#[derive(Debug, Error, PartialEq)]
pub enum NgramError {
    /// A token or special id is outside the vocabulary.
    #[error("token {token} in {place} is outside the vocabulary of {vocab}")]
    Token {
        /// The id.
        token: u32,
        /// Where it stands.
        place: String,
        /// V.
        vocab: usize,
    },
    /// There is nothing to count.
    #[error("no documents to count n-grams in")]
    Empty,
    /// λ must be finite and not negative.
    #[error("the smoothing weight is {0}, expected a finite number >= 0")]
    Lambda(f64),
    /// The target n-gram is too short.
    #[error("the target n-gram has {0} tokens, {NGRAM} are needed unless the text ends inside")]
    ShortTarget(usize),
}

impl NgramError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Token { .. } => Some("was the text encoded by another tokenizer?"),
            Self::Empty | Self::Lambda(_) | Self::ShortTarget(_) => None,
        }
    }
}

/// Ids that the n-gram models need, all below the vocabulary size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpecialIds {
    /// Context of a document's first token.
    pub bos: u32,
    /// End of text, counted once a document.
    pub eos: u32,
}

/// Weight of the unigram model in the bigram probabilities, in counts.
pub const DEFAULT_LAMBDA: f64 = 1.0;

/// Bigram counts (rows of contexts, compressed), unigram probabilities, and the collision of every context.
#[derive(Clone, Debug)]
pub struct NgramModels {
    special: SpecialIds,
    lambda: f64,
    /// p1, `[V]`.
    unigram: Vec<f64>,
    /// Row x is `start[x]..start[x+1]`, `[V+1]`.
    start: Vec<usize>,
    /// Next tokens of all rows, rising within a row, `[nnz]`.
    next: Vec<u32>,
    /// Their counts, `[nnz]`.
    count: Vec<u32>,
    /// c(x), `[V]`.
    total: Vec<f64>,
    /// Unigram c_1..c_4 (of any context but EOS).
    unigram_collision: [f64; NGRAM],
    /// Bigram c_1..c_4 of every context, `[V][4]`.
    collision: Vec<[f64; NGRAM]>,
}

/// Expected scores of both models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NgramReport {
    /// Unigram model.
    pub unigram: BrierReport,
    /// Bigram model.
    pub bigram: BrierReport,
}

/// One scored position: the document it belongs to, the token before the n-gram (BOS at a document's
/// start), and the n-gram: four tokens, or fewer that end in EOS.
#[derive(Clone, Copy, Debug)]
pub struct NgramPosition<'a> {
    /// Number of the document.
    pub document: u64,
    /// Token before the n-gram.
    pub context: u32,
    /// The n-gram.
    pub target: &'a [u32],
}

impl NgramModels {
    /// Counts documents (tokens without BOS and EOS). `vocab` V includes the special ids; `lambda` is the
    /// weight of the unigram model.
    ///
    /// # Errors
    /// Without documents, for ids of V or more, and for a negative or infinite λ.
    pub fn from_documents<D: AsRef<[u32]>>(
        vocab: usize,
        special: SpecialIds,
        documents: impl IntoIterator<Item = D>,
        lambda: f64,
    ) -> Result<Self, NgramError> {
        if !(lambda.is_finite() && lambda >= 0.0) {
            return Err(NgramError::Lambda(lambda));
        }
        let known = |token: u32, place: &dyn Fn() -> String| {
            if (token as usize) < vocab {
                Ok(())
            } else {
                Err(NgramError::Token { token, place: place(), vocab })
            }
        };
        known(special.bos, &|| "the special ids (BOS)".into())?;
        known(special.eos, &|| "the special ids (EOS)".into())?;
        let mut counts = vec![0u64; vocab];
        let mut bigrams: FxHashMap<u64, u32> = FxHashMap::default();
        for (number, document) in documents.into_iter().enumerate() {
            let mut before = special.bos;
            for &token in document.as_ref().iter().chain([&special.eos]) {
                known(token, &|| format!("document {number}"))?;
                counts[token as usize] += 1;
                *bigrams.entry(u64::from(before) << 32 | u64::from(token)).or_insert(0) += 1;
                before = token;
            }
        }
        let all: u64 = counts.iter().sum();
        if all == 0 {
            return Err(NgramError::Empty);
        }
        let mut sorted: Vec<(u64, u32)> = bigrams.into_iter().collect();
        sorted.sort_unstable();
        let mut start = vec![0usize; vocab + 1];
        let mut total = vec![0.0; vocab];
        for &(key, count) in &sorted {
            let x = (key >> 32) as usize;
            start[x + 1] += 1;
            total[x] += f64::from(count);
        }
        for x in 0..vocab {
            start[x + 1] += start[x];
        }
        let mut models = Self {
            special,
            lambda,
            unigram: counts.iter().map(|&c| c as f64 / all as f64).collect(),
            start,
            next: sorted.iter().map(|&(key, _)| key as u32).collect(),
            count: sorted.iter().map(|&(_, count)| count).collect(),
            total,
            unigram_collision: [0.0; NGRAM],
            collision: vec![[0.0; NGRAM]; vocab],
        };
        models.collide();
        Ok(models)
    }

    /// Number of different bigrams counted.
    pub fn bigrams(&self) -> usize {
        self.next.len()
    }

    /// λ.
    pub fn lambda(&self) -> f64 {
        self.lambda
    }

    /// p1(y); 0 outside the vocabulary.
    pub fn unigram_probability(&self, token: u32) -> f64 {
        self.unigram.get(token as usize).copied().unwrap_or(0.0)
    }

    /// p(y|x); p1(y) after a context that was never seen.
    pub fn bigram_probability(&self, context: u32, token: u32) -> f64 {
        let p1 = self.unigram_probability(token);
        let x = context as usize;
        let Some(&total) = self.total.get(x).filter(|&&total| total > 0.0) else {
            return p1;
        };
        let row = self.start[x]..self.start[x + 1];
        let seen = self.next[row.clone()].binary_search(&token).map_or(0, |at| self.count[row.start + at]);
        (f64::from(seen) + self.lambda * p1) / (total + self.lambda)
    }

    /// Fills in c_1..c_4 of both models.
    fn collide(&mut self) {
        let eos = self.special.eos as usize;
        let vocab = self.unigram.len();
        let end = self.unigram[eos] * self.unigram[eos];
        let others: f64 = self.unigram.iter().map(|p| p * p).sum::<f64>() - end;
        let mut before = 1.0;
        for c in &mut self.unigram_collision {
            before = others * before + end;
            *c = before;
        }
        let mut last = vec![1.0; vocab];
        for n in 0..NGRAM {
            // Σ_y p1(y)² c_{n-1}(y), shared by all contexts.
            let shared: f64 = self.unigram.iter().zip(&last).map(|(p, c)| p * p * c).sum();
            for x in 0..vocab {
                self.collision[x][n] = if x == eos {
                    1.0
                } else if self.total[x] == 0.0 {
                    shared
                } else {
                    let row = self.start[x]..self.start[x + 1];
                    let sparse: f64 = self.next[row.clone()]
                        .iter()
                        .zip(&self.count[row])
                        .map(|(&y, &count)| {
                            let (y, count) = (y as usize, f64::from(count));
                            count * (count + 2.0 * self.lambda * self.unigram[y]) * last[y]
                        })
                        .sum();
                    let scale = self.total[x] + self.lambda;
                    (sparse + self.lambda * self.lambda * shared) / (scale * scale)
                };
            }
            last.iter_mut().zip(&self.collision).for_each(|(l, c)| *l = c[n]);
        }
    }

    /// Contribution of a position under the unigram model: expected Brier-1..4, as fractions.
    ///
    /// # Errors
    /// A short target or an id outside the vocabulary.
    pub fn unigram(&self, target: &[u32]) -> Result<[f64; NGRAM], NgramError> {
        self.contribution(self.special.bos, target, &self.unigram_collision, |_, y| {
            self.unigram_probability(y)
        })
    }

    /// Contribution of a position under the bigram model: expected Brier-1..4, as fractions. `context` is
    /// the token before the n-gram.
    ///
    /// # Errors
    /// A short target or an id outside the vocabulary.
    pub fn bigram(&self, context: u32, target: &[u32]) -> Result<[f64; NGRAM], NgramError> {
        let collision = self.collision.get(context as usize).ok_or_else(|| self.unknown(context))?;
        self.contribution(context, target, collision, |x, y| self.bigram_probability(x, y))
    }

    fn unknown(&self, token: u32) -> NgramError {
        NgramError::Token { token, place: "the scored text".into(), vocab: self.unigram.len() }
    }

    fn contribution(
        &self,
        context: u32,
        target: &[u32],
        collision: &[f64; NGRAM],
        probability: impl Fn(u32, u32) -> f64,
    ) -> Result<[f64; NGRAM], NgramError> {
        let mut product = 1.0;
        let mut before = context;
        let mut contribution = [0.0; NGRAM];
        for n in 0..NGRAM {
            if before != self.special.eos {
                let token = *target.get(n).ok_or(NgramError::ShortTarget(target.len()))?;
                if token as usize >= self.unigram.len() {
                    return Err(self.unknown(token));
                }
                product *= probability(before, token);
                before = token;
            }
            contribution[n] = 2.0 * product - collision[n];
        }
        Ok(contribution)
    }

    /// Scores both models on the same positions, with standard errors by document.
    ///
    /// # Errors
    /// As [`NgramModels::unigram`].
    pub fn score<'a>(
        &self,
        positions: impl IntoIterator<Item = NgramPosition<'a>>,
        bootstrap: &Bootstrap,
    ) -> Result<NgramReport, NgramError> {
        let (unigram, bigram) = self.sums(positions)?;
        Ok(NgramReport { unigram: report(&unigram, bootstrap), bigram: report(&bigram, bootstrap) })
    }

    /// Sums by document of (unigram, bigram), for paired differences with other models.
    ///
    /// # Errors
    /// As [`NgramModels::unigram`].
    pub fn sums<'a>(
        &self,
        positions: impl IntoIterator<Item = NgramPosition<'a>>,
    ) -> Result<(BrierSums, BrierSums), NgramError> {
        let (mut unigram, mut bigram) = (BrierSums::new(), BrierSums::new());
        for position in positions {
            unigram.add(position.document, &self.unigram(position.target)?);
            bigram.add(position.document, &self.bigram(position.context, position.target)?);
        }
        Ok((unigram, bigram))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: SpecialIds = SpecialIds { bos: 4, eos: 5 };
    const PAD: usize = 6;
    const VOCAB: usize = 7;

    fn models(lambda: f64) -> NgramModels {
        let documents: [&[u32]; 4] = [&[0, 1, 2, 0, 1], &[1, 1, 0], &[0, 1], &[]];
        NgramModels::from_documents(VOCAB, SPECIAL, documents, lambda).unwrap()
    }

    /// Expected Brier-1..4 by enumeration of all 4-grams; `p(x, y)` without the rule for EOS.
    fn enumerate(context: usize, target: &[usize], p: impl Fn(usize, usize) -> f64) -> [f64; 4] {
        let step = |x: usize, y: usize| match x == SPECIAL.eos as usize || x == PAD {
            true => f64::from(y == PAD),
            false => p(x, y),
        };
        std::array::from_fn(|n| {
            let n = n + 1;
            let (mut accuracy, mut collision) = (0.0, 0.0);
            for code in 0..VOCAB.pow(n as u32) {
                let gram: Vec<usize> = (0..n).map(|i| code / VOCAB.pow(i as u32) % VOCAB).collect();
                let mut before = context;
                let mut q = 1.0;
                for &y in &gram {
                    q *= step(before, y);
                    before = y;
                }
                collision += q * q;
                if gram == target[..n] {
                    accuracy = q;
                }
            }
            2.0 * accuracy - collision
        })
    }

    fn close(a: [f64; 4], b: [f64; 4]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} is not {b:?}");
    }

    #[test]
    fn both_models_equal_enumeration_at_every_context_and_smoothing() {
        let targets = [[0, 1, 2, 0], [1, 1, 1, 1], [3, 0, 0, 0], [0, 5, 6, 6], [5, 6, 6, 6], [0, 1, 0, 5]];
        for lambda in [0.0, 0.3, 1.0, 50.0] {
            let models = models(lambda);
            for target in targets {
                let ids = target.map(|t| t as u32);
                close(
                    models.unigram(&ids).unwrap(),
                    enumerate(4, &target, |_, y| models.unigram_probability(y as u32)),
                );
                for context in 0..5 {
                    let p = |x: usize, y: usize| models.bigram_probability(x as u32, y as u32);
                    close(models.bigram(context as u32, &ids).unwrap(), enumerate(context, &target, p));
                }
            }
        }
    }

    #[test]
    fn probabilities_are_the_counted_ones() {
        let m = models(2.0);
        // 10 tokens and 4 EOS; after 0: 1, 1, EOS, 1; document starts: 0, 1, 0, EOS.
        assert_eq!(m.unigram_probability(1), 5.0 / 14.0);
        assert_eq!(m.bigram_probability(0, 1), (3.0 + 2.0 * 5.0 / 14.0) / 6.0);
        assert_eq!(m.bigram_probability(4, 0), (2.0 + 2.0 * 4.0 / 14.0) / 6.0);
        // Token 3 was never seen: as a context it has p1, as a target 0.
        assert_eq!(m.bigram_probability(3, 1), 5.0 / 14.0);
        assert_eq!((m.unigram_probability(3), m.unigram_probability(99)), (0.0, 0.0));
        for x in 0..5 {
            let sum: f64 = (0..VOCAB as u32).map(|y| m.bigram_probability(x, y)).sum();
            assert!((sum - 1.0).abs() < 1e-12);
        }
        assert_eq!((m.bigrams(), m.lambda()), (10, 2.0));
    }

    #[test]
    fn without_eos_the_unigram_collision_is_a_power() {
        // EOS is one token in 100,001.
        let document: Vec<u32> = (0..100_000).map(|i| i % 4).collect();
        let m = NgramModels::from_documents(VOCAB, SPECIAL, [document], 1.0).unwrap();
        for (n, c) in m.unigram(&[0, 0, 0, 0]).unwrap().into_iter().enumerate() {
            let power = 0.25f64.powi(n as i32 + 1);
            assert!((c - power).abs() < 1e-4 * power, "{c} against {power}");
        }
    }

    #[test]
    fn reports_come_by_document() {
        let m = models(1.0);
        let target = [0, 1, 2, 0];
        let positions = [(0, 4), (0, 1), (1, 2)].map(|(document, context)| NgramPosition {
            document,
            context,
            target: &target,
        });
        let report = m.score(positions, &Bootstrap::default()).unwrap();
        assert_eq!((report.bigram.positions, report.bigram.documents), (3, 2));
        assert!((report.unigram.brier.unwrap()[0] - 100.0 * m.unigram(&target).unwrap()[0]).abs() < 1e-9);
        assert!(report.bigram.brier_se.unwrap()[0] > 0.0);
        let (unigram, bigram) = m.sums(positions).unwrap();
        assert_eq!(unigram.documents(), bigram.documents());
    }

    #[test]
    fn a_large_vocabulary_is_no_burden() {
        // V = 32,768 and 1 million tokens: the dense squared matrix would have 10⁹ entries.
        let vocab = 32_768;
        let special = SpecialIds { bos: 32_766, eos: 32_767 };
        let mut state = 1u32;
        let document: Vec<u32> = (0..1_000_000)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let u = f64::from(state >> 8) / f64::from(1 << 24);
                (u * u * u * 32_000.0) as u32
            })
            .collect();
        let m = NgramModels::from_documents(vocab, special, document.chunks(1000), 1.0).unwrap();
        let b = m.bigram(7, &[1, 2, 3, 4]).unwrap();
        assert!(b.iter().all(|b| b.is_finite()) && m.bigrams() > 100_000);
    }

    #[test]
    fn what_cannot_be_counted_is_refused() {
        let build = |vocab, documents: &[&[u32]], lambda| {
            NgramModels::from_documents(vocab, SPECIAL, documents, lambda).map(|_| ())
        };
        assert_eq!(build(VOCAB, &[], 1.0), Err(NgramError::Empty));
        assert!(matches!(build(VOCAB, &[&[9]], 1.0), Err(NgramError::Token { token: 9, .. })));
        assert!(matches!(build(3, &[&[0]], 1.0), Err(NgramError::Token { token: 4, .. })));
        assert!(matches!(build(VOCAB, &[&[0]], f64::NAN), Err(NgramError::Lambda(_))));
        let m = models(1.0);
        assert_eq!(m.bigram(0, &[1, 2]), Err(NgramError::ShortTarget(2)));
        assert!(m.bigram(0, &[1, 5]).is_ok());
        assert!(matches!(m.bigram(99, &[1, 2, 0, 0]), Err(NgramError::Token { token: 99, .. })));
        assert!(matches!(m.unigram(&[1, 99, 0, 0]), Err(NgramError::Token { .. })));
    }
}
