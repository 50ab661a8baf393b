//! Brier-1..4 and BrierLM from drawn tokens and targets; no model is known here.
//!
//! The paper (arXiv 2510.27688, section 4) scores a sampler that shows no probabilities by
//!
//! ```text
//! Brier-n = E[ 1{a = y} + 1{b = y} - 1{a = b} ],   a, b independent sampled n-grams, y the true n-gram
//! BrierLM = (Brier-1 * Brier-2 * Brier-3 * Brier-4)^(1/4)
//! ```
//!
//! over whole n-grams, n = 1..4. Every estimator of this module gives one *contribution* per position:
//! four numbers, the unbiased estimates of Brier-1..4 there, as fractions. [`BrierSums`] adds them up by
//! document, so that standard errors come from resampling documents; its results are in percent.
//!
//! End of text is absorbing: everything after EOS is PAD *by definition*, in targets and in samples.

use std::collections::BTreeMap;
use std::ops::Range;

use thiserror::Error;

/// The longest n-gram that is scored: Brier-1 to Brier-4.
pub const NGRAM: usize = 4;

/// What is wrong with the tokens handed to an estimator.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BrierError {
    /// The collision term compares two independent samples.
    #[error("a Brier score needs at least 2 samples a position, {0} given")]
    TooFewSamples(usize),
    /// The accuracy term has nothing to average.
    #[error("no sample to compare with the target")]
    NoAccuracySample,
    /// The target is shorter than the n-gram and does not end in EOS.
    #[error("the target n-gram has {0} tokens, {NGRAM} are needed")]
    ShortTarget(usize),
    /// A sample stops while it still agrees with what it is compared with.
    #[error(
        "a sample of {0} tokens still agrees where it stops: only samples that have parted may stop before {NGRAM} tokens"
    )]
    ShortSample(usize),
    /// A probability or a sum of squares is missing or outside [0, 1].
    #[error("{what} at n = {n} is {value}, expected a number in [0, 1]")]
    Probability {
        /// Which number.
        what: &'static str,
        /// 1-based length of the n-gram it belongs to.
        n: usize,
        /// The number, printed.
        value: String,
    },
    /// A sampled path has no Σp² although it still agrees with another one.
    #[error("a sampled path lacks the sum of squared probabilities after {0} tokens, where it still agrees")]
    MissingSquares(usize),
    /// Lengths of a document's predictions and targets differ or are no multiple of the chunk size.
    #[error("{what}: {found} tokens where {expected} are expected (chunk size {chunk_size})")]
    Shape {
        /// Which tokens.
        what: &'static str,
        /// Tokens given.
        found: usize,
        /// Tokens expected.
        expected: usize,
        /// K.
        chunk_size: usize,
    },
}

impl BrierError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::TooFewSamples(_) => Some("draw more samples"),
            Self::NoAccuracySample => Some("draw at least one"),
            Self::ShortTarget(_) => Some("leave this position out, or end the text in EOS"),
            Self::ShortSample(_)
            | Self::Probability { .. }
            | Self::MissingSquares(_)
            | Self::Shape { .. } => None,
        }
    }
}

/// Ids that make the end of a text absorbing: after `eos` everything is `pad`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndOfText {
    /// End-of-text id.
    pub eos: u32,
    /// Padding id, the only token that can follow.
    pub pad: u32,
}

impl EndOfText {
    /// Writes PAD over everything after the first EOS.
    pub fn absorb(self, tokens: &mut [u32]) {
        if let Some(at) = tokens.iter().position(|&t| t == self.eos) {
            tokens[at + 1..].fill(self.pad);
        }
    }
}

/// Up to four tokens, complete (four) as soon as the text has ended inside.
#[derive(Clone, Copy)]
struct Gram {
    tokens: [u32; NGRAM],
    len: usize,
}

impl Gram {
    fn new(tokens: &[u32], end: Option<EndOfText>) -> Self {
        let mut gram = Gram { tokens: [0; NGRAM], len: 0 };
        for &token in tokens.iter().take(NGRAM) {
            gram.tokens[gram.len] = token;
            gram.len += 1;
            if let Some(end) = end.filter(|end| end.eos == token) {
                gram.tokens[gram.len..].fill(end.pad);
                gram.len = NGRAM;
                break;
            }
        }
        gram
    }

    fn slice(&self) -> &[u32] {
        &self.tokens[..self.len]
    }

    /// Number of leading tokens in which both agree.
    fn common(&self, other: &Gram) -> usize {
        self.slice().iter().zip(other.slice()).take_while(|(a, b)| a == b).count()
    }

    fn target(tokens: &[u32], end: Option<EndOfText>) -> Result<Self, BrierError> {
        let gram = Gram::new(tokens, end);
        if gram.len < NGRAM { Err(BrierError::ShortTarget(gram.len)) } else { Ok(gram) }
    }
}

/// The two terms of Brier-1..4 at one position, as fractions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Terms {
    /// Estimate of P(n-gram = y).
    pub accuracy: [f64; NGRAM],
    /// Estimate of P(a = b), the sum of squared n-gram probabilities.
    pub collision: [f64; NGRAM],
}

impl Terms {
    /// The contribution 2·accuracy − collision.
    pub fn brier(&self) -> [f64; NGRAM] {
        std::array::from_fn(|n| 2.0 * self.accuracy[n] - self.collision[n])
    }
}

/// Terms of one position from samples of the whole n-gram.
///
/// `target` y, at least 4 tokens (or ended by EOS). `accuracy`: samples compared with the target, their
/// mean is the accuracy term. `chains`: independent samples compared with one another, the share of
/// agreeing pairs is the collision term (a U-statistic over all samples and all pairs; two samples give
/// the paper's estimator). Usually both are the same samples, see [`sample_terms`]; with chunks shorter
/// than the n-gram they are not, see [`RolloutDocument`].
///
/// A chain may stop before 4 tokens once no other chain agrees with it.
///
/// # Errors
/// Fewer than two chains, no accuracy sample, a short target, or a sample that stops while it agrees.
pub fn terms<A: AsRef<[u32]>, C: AsRef<[u32]>>(
    target: &[u32],
    accuracy: &[A],
    chains: &[C],
    end: Option<EndOfText>,
) -> Result<Terms, BrierError> {
    let target = Gram::target(target, end)?;
    if accuracy.is_empty() {
        return Err(BrierError::NoAccuracySample);
    }
    let mut hits = [0usize; NGRAM];
    for sample in accuracy {
        let sample = Gram::new(sample.as_ref(), end);
        let common = sample.common(&target);
        if common == sample.len && sample.len < NGRAM {
            return Err(BrierError::ShortSample(sample.len));
        }
        hits[..common].iter_mut().for_each(|h| *h += 1);
    }
    let groups = agreeing_groups(chains, end)?;
    let pairs = pairs(chains.len());
    Ok(Terms {
        accuracy: hits.map(|h| h as f64 / accuracy.len() as f64),
        collision: groups.map(|sizes| sizes.iter().map(|&size| self::pairs(size)).sum::<f64>() / pairs),
    })
}

/// [`terms`] where the same samples serve both terms: chunks of at least 4 tokens, or any other sampler of
/// whole n-grams. `samples`: two or more, each at least 4 tokens.
///
/// # Errors
/// As [`terms`].
pub fn sample_terms<A: AsRef<[u32]>>(
    target: &[u32],
    samples: &[A],
    end: Option<EndOfText>,
) -> Result<Terms, BrierError> {
    terms(target, samples, samples, end)
}

/// Number of unordered pairs among `n`.
fn pairs(n: usize) -> f64 {
    (n * n.saturating_sub(1)) as f64 / 2.0
}

/// For n = 1..4: sizes (of two and more) of the groups of chains that agree in their first n tokens.
fn agreeing_groups<C: AsRef<[u32]>>(
    chains: &[C],
    end: Option<EndOfText>,
) -> Result<[Vec<usize>; NGRAM], BrierError> {
    if chains.len() < 2 {
        return Err(BrierError::TooFewSamples(chains.len()));
    }
    let mut grams: Vec<Gram> = chains.iter().map(|c| Gram::new(c.as_ref(), end)).collect();
    // In lexicographic order chains with a common prefix are neighbours, and one that is itself the prefix
    // of another stands directly before such a one.
    grams.sort_unstable_by(|a, b| a.slice().cmp(b.slice()));
    let mut groups: [Vec<usize>; NGRAM] = Default::default();
    let mut run = [1usize; NGRAM];
    for pair in grams.windows(2) {
        let common = pair[0].common(&pair[1]);
        if common == pair[0].len && common < NGRAM {
            return Err(BrierError::ShortSample(common));
        }
        for n in 0..NGRAM {
            if n < common {
                run[n] += 1;
            } else if run[n] > 1 {
                groups[n].push(std::mem::replace(&mut run[n], 1));
            }
        }
    }
    for n in 0..NGRAM {
        if run[n] > 1 {
            groups[n].push(run[n]);
        }
    }
    Ok(groups)
}

/// Chunks that an n-gram of four spans when it begins at a chunk start: ⌈4/K⌉.
pub fn chunks_per_gram(chunk_size: usize) -> usize {
    NGRAM.div_ceil(chunk_size.max(1))
}

/// One document of a model whose chunks are shorter than the n-gram (K < 4).
///
/// The accuracy term of a start position is read off the teacher-forced predictions of chunks
/// i .. i+⌈4/K⌉−1 (each was drawn after the true text, and a match of one means that its context was what
/// the next one was drawn after). The collision term needs samples that were rolled forward: chains whose
/// later chunks are drawn after their own earlier ones. Only chains that still agree with another one need
/// go on.
#[derive(Clone, Copy, Debug)]
pub struct RolloutDocument<'a> {
    /// K.
    pub chunk_size: usize,
    /// Target tokens of the predicted chunks, `[P·K]`.
    pub targets: &'a [u32],
    /// Teacher-forced predictions: for each sample `[P·K]`.
    pub predictions: &'a [&'a [u32]],
    /// Ids of the absorbing end, None if the text has none.
    pub end: Option<EndOfText>,
}

impl RolloutDocument<'_> {
    /// Start positions (in chunks) with a complete target n-gram: 0 ..= P−⌈4/K⌉, and the later ones whose
    /// n-gram is complete because the text ends in it. The reference implementation leaves out the last
    /// start P−⌈4/K⌉; `reference_drop_last_start` repeats that (and adds none after the end).
    pub fn starts(&self, reference_drop_last_start: bool) -> Range<usize> {
        let k = self.chunk_size.max(1);
        let chunks = self.targets.len() / k;
        let whole = (chunks + 1).saturating_sub(chunks_per_gram(k));
        if reference_drop_last_start {
            return 0..whole.saturating_sub(1);
        }
        let complete = |&start: &usize| Gram::new(&self.targets[start * k..], self.end).len == NGRAM;
        0..(whole..chunks).take_while(complete).last().map_or(whole, |last| last + 1)
    }

    /// Terms at chunk `start`, with the rolled-forward `chains` of that start: two or more, each the
    /// tokens of chunk `start` and the ones drawn after it.
    ///
    /// # Errors
    /// As [`terms`], and when predictions and targets have different lengths.
    pub fn terms<C: AsRef<[u32]>>(&self, start: usize, chains: &[C]) -> Result<Terms, BrierError> {
        let k = self.chunk_size.max(1);
        let length = self.targets.len();
        let shape =
            |what, found, expected| BrierError::Shape { what, found, expected, chunk_size: self.chunk_size };
        if self.chunk_size == 0 || !length.is_multiple_of(k) {
            return Err(shape("targets", length, length.next_multiple_of(k)));
        }
        if start * k >= length {
            return Err(shape("targets at the start position", length, (start + 1) * k));
        }
        if let Some(found) = self.predictions.iter().map(|p| p.len()).find(|&l| l != length) {
            return Err(shape("predictions", found, length));
        }
        let accuracy: Vec<&[u32]> = self.predictions.iter().map(|p| &p[start * k..]).collect();
        terms(&self.targets[start * k..], &accuracy, chains, self.end)
    }
}

/// A path sampled from a model with known probabilities.
#[derive(Clone, Copy, Debug)]
pub struct SampledPath<'a> {
    /// Sampled tokens, up to 3 (more are not looked at).
    pub tokens: &'a [u32],
    /// Σ_x p(x | path)² after 0, 1, 2, 3 of the tokens; may stop where the path no longer agrees with
    /// another one.
    pub squares: &'a [f64],
}

/// Terms of one position for a model whose next-token probabilities are known (the discrete baseline):
///
/// ```text
/// Brier-n = 2·Π_{i<=n} p(y_i | y_<i)  -  1{a_<n = b_<n} · Σ_x p(x | a_<n)²
/// ```
///
/// The accuracy is exact, and the last token of the collision term is summed out: unbiased, with less
/// variance than two samples. More than two paths are averaged over all pairs.
///
/// `gold`: p(y_i | y_<i) for i = 1..4. `paths`: two or more independent samples. After EOS the model has
/// p(PAD) = 1, whatever `gold` and `squares` say there.
///
/// # Errors
/// Fewer than two paths, a short target, numbers outside [0, 1], or a path that stops while it agrees.
pub fn exact_terms(
    target: &[u32],
    gold: &[f64; NGRAM],
    paths: &[SampledPath<'_>],
    end: Option<EndOfText>,
) -> Result<Terms, BrierError> {
    if paths.len() < 2 {
        return Err(BrierError::TooFewSamples(paths.len()));
    }
    let target = Gram::target(target, end)?;
    let ended = |tokens: &[u32]| end.is_some_and(|end| tokens.contains(&end.eos));
    let mut accuracy = [0.0; NGRAM];
    let mut product = 1.0;
    for n in 0..NGRAM {
        if !ended(&target.tokens[..n]) {
            product *= probability("the target's probability", n, gold[n])?;
        }
        accuracy[n] = product;
    }
    let mut order: Vec<(Gram, &SampledPath<'_>)> =
        paths.iter().map(|p| (Gram::new(&p.tokens[..p.tokens.len().min(NGRAM - 1)], end), p)).collect();
    order.sort_by(|a, b| a.0.slice().cmp(b.0.slice()));
    let mut collision = [0.0; NGRAM];
    for (n, total) in collision.iter_mut().enumerate() {
        let mut at = 0;
        while at < order.len() {
            let (first, path) = &order[at];
            let group = order[at..].iter().take_while(|(g, _)| g.common(first).min(n) == first.len.min(n));
            let size = group.count().max(1);
            at += size;
            if size < 2 {
                continue;
            }
            if first.len < n {
                return Err(BrierError::ShortSample(first.len));
            }
            let squares = if ended(&first.tokens[..n]) {
                1.0
            } else {
                let value = *path.squares.get(n).ok_or(BrierError::MissingSquares(n))?;
                probability("the sum of squared probabilities", n, value)?
            };
            *total += pairs(size) * squares;
        }
        *total /= pairs(paths.len());
    }
    Ok(Terms { accuracy, collision })
}

fn probability(what: &'static str, n: usize, value: f64) -> Result<f64, BrierError> {
    // Sums of rounded probabilities may pass 1 by a little.
    if (0.0..=1.0 + 1e-3).contains(&value) {
        Ok(value)
    } else {
        Err(BrierError::Probability { what, n: n + 1, value: value.to_string() })
    }
}

/// BrierLM, the geometric mean of Brier-1..4 (in their unit). Undefined (None) unless all four are
/// positive: the product is never clamped.
pub fn brierlm(brier: &[f64; NGRAM]) -> Option<f64> {
    let product: f64 = brier.iter().product();
    let defined = brier.iter().all(|&b| b > 0.0);
    // The product of four small numbers may underflow, that of their roots does not.
    let roots = || brier.iter().map(|b| b.sqrt().sqrt()).product();
    defined.then(|| if product.is_normal() { product.sqrt().sqrt() } else { roots() })
}

/// The reference implementation's BrierLM, which clamps the product: max(b1·b2·b3·b4, 0)^(1/4). Two or
/// four negative Briers give a positive number there; for comparison with it only.
pub fn reference_brierlm(brier: &[f64; NGRAM]) -> f64 {
    brier.iter().product::<f64>().max(0.0).sqrt().sqrt()
}

/// Sums of the contributions of one document. In JSON `[positions, s1, s2, s3, s4]`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct DocumentSum {
    /// Sum of the contributions, as fractions.
    pub sum: [f64; NGRAM],
    /// Positions added.
    pub positions: u64,
}

/// Contributions added up by document. In JSON a list of `[document, positions, s1, s2, s3, s4]` by rising
/// document: what a run keeps so that it can be paired with others later. Reading gives back every digit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BrierSums {
    documents: BTreeMap<u64, DocumentSum>,
}

impl BrierSums {
    /// No documents yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the contribution of one position (fractions, see [`Terms::brier`]) of a document.
    pub fn add(&mut self, document: u64, contribution: &[f64; NGRAM]) {
        let entry = self.documents.entry(document).or_default();
        entry.sum.iter_mut().zip(contribution).for_each(|(s, c)| *s += c);
        entry.positions += 1;
    }

    /// Adds all of `other`.
    pub fn merge(&mut self, other: &BrierSums) {
        for (&document, sum) in &other.documents {
            let entry = self.documents.entry(document).or_default();
            entry.sum.iter_mut().zip(sum.sum).for_each(|(s, c)| *s += c);
            entry.positions += sum.positions;
        }
    }

    /// Documents with at least one position, by rising number.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &DocumentSum)> {
        self.documents.iter().map(|(&document, sum)| (document, sum))
    }

    /// Number of documents.
    pub fn documents(&self) -> usize {
        self.documents.len()
    }

    /// Number of positions.
    pub fn positions(&self) -> u64 {
        self.documents.values().map(|d| d.positions).sum()
    }

    /// Brier-1..4 in percent: the mean over all positions of all documents. None without positions.
    pub fn brier(&self) -> Option<[f64; NGRAM]> {
        mean_percent(self.documents.values())
    }
}

/// Mean over positions, in percent, of the given documents (a document may be given several times).
pub(crate) fn mean_percent<'a>(documents: impl IntoIterator<Item = &'a DocumentSum>) -> Option<[f64; NGRAM]> {
    let mut sum = [0.0; NGRAM];
    let mut positions = 0u64;
    for document in documents {
        sum.iter_mut().zip(document.sum).for_each(|(s, d)| *s += d);
        positions += document.positions;
    }
    (positions > 0).then(|| sum.map(|s| 100.0 * s / positions as f64))
}

mod json;
#[cfg(test)]
mod tests;
