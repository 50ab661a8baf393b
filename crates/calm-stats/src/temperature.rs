//! Sampling at a temperature from a black box that only gives samples.
//!
//! The target is P(x)^{1/T} / Z over whole chunks. Two algorithms of the paper (arXiv 2510.27688,
//! section 5):
//!
//! *Exact*, any T in (0, 1], with n = ⌊1/T⌋ and a = 1/T − n:
//! ```text
//! 1. draw n samples; unless all are equal, start again; call the common value x
//! 2. a = 0: return x
//! 3. i = 1; repeat: draw y; y = x: return x; else with probability a/i go to 1, else i += 1
//! ```
//! Step 3 is a Bernoulli factory: it accepts with probability P(x)^a. It may reject for ever, so it has a
//! budget of draws.
//!
//! *Batch approximation*, T = 1/n: draw N samples and count; for m = n, n−1, …, 1 the candidates are those
//! with count ≥ m, with weights C(count, m); stop at the first m that has any and draw one. Biased at finite
//! N, exact as N grows.
//!
//! Both take a predicate: only draws that satisfy it (the ones that reproduce the remainder of a prompt)
//! count, and the target is then P(x | predicate)^{1/T} / Z. Chunks are compared as they come: a sampler
//! whose text ends inside a chunk should fill it with PAD after EOS.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;
use thiserror::Error;

use crate::rng::Uniforms;

/// Tokens of one chunk.
pub type Chunk = Vec<u32>;

/// Why no chunk was sampled. `E` is the error of the black box.
#[derive(Debug, Error, PartialEq)]
pub enum TemperatureError<E> {
    /// Not in (0, 1].
    #[error("temperature {0} is outside (0, 1]: a black-box sampler can only be sharpened")]
    Range(f64),
    /// The batch approximation exists for T = 1/n alone.
    #[error("the batch approximation needs a temperature 1/n, {temperature} is none")]
    NotReciprocal {
        /// The temperature asked for.
        temperature: f64,
        /// The next lower 1/n.
        below: f64,
        /// The next higher 1/n.
        above: f64,
    },
    /// The budget of the exact sampler is spent.
    #[error("no sample was accepted within {draws} draws ({matched} of them usable)")]
    Budget {
        /// Draws made.
        draws: usize,
        /// Draws that satisfied the predicate.
        matched: usize,
    },
    /// No draw satisfied the predicate.
    #[error("none of {draws} draws reproduces the remainder of the prompt")]
    NoMatch {
        /// Draws made.
        draws: usize,
    },
    /// The black box gave nothing when asked for samples.
    #[error("the sampler gave no chunk when asked for {0}")]
    Empty(usize),
    /// The black box failed.
    #[error("drawing a chunk failed: {0}")]
    Draw(E),
}

impl<E> TemperatureError<E> {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::NotReciprocal { below, above, .. } => {
                Some(format!("take {below:.4} or {above:.4}, or the exact sampler"))
            }
            Self::Budget { .. } => {
                Some("raise the budget or the temperature, or allow the biased fallback".into())
            }
            Self::NoMatch { .. } => Some("draw more, or give a prompt of whole chunks".into()),
            Self::Range(_) | Self::Empty(_) | Self::Draw(_) => None,
        }
    }
}

/// A temperature in (0, 1], split as the algorithms need it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Temperature {
    value: f64,
    whole: u32,
    rest: f64,
}

/// 1/T this close to an integer is that integer.
const RECIPROCAL: f64 = 1e-9;

impl Temperature {
    /// # Errors
    /// Outside (0, 1], not a number, or so small that 1/T passes 2³¹.
    pub fn new<E>(value: f64) -> Result<Self, TemperatureError<E>> {
        let inverse = 1.0 / value;
        if !(value > 0.0 && value <= 1.0 && inverse < f64::from(i32::MAX)) {
            return Err(TemperatureError::Range(value));
        }
        let (whole, rest) = if (inverse - inverse.round()).abs() <= RECIPROCAL {
            (inverse.round(), 0.0)
        } else {
            (inverse.floor(), inverse - inverse.floor())
        };
        Ok(Self { value, whole: whole as u32, rest })
    }

    /// T.
    pub fn value(self) -> f64 {
        self.value
    }

    /// n = ⌊1/T⌋ (or the integer next to 1/T).
    pub fn whole(self) -> u32 {
        self.whole
    }

    /// a = 1/T − n in [0, 1).
    pub fn rest(self) -> f64 {
        self.rest
    }

    /// n where T = 1/n.
    ///
    /// # Errors
    /// For any other temperature.
    pub fn reciprocal<E>(self) -> Result<u32, TemperatureError<E>> {
        if self.rest == 0.0 {
            return Ok(self.whole);
        }
        let whole = f64::from(self.whole);
        Err(TemperatureError::NotReciprocal {
            temperature: self.value,
            below: 1.0 / (whole + 1.0),
            above: 1.0 / whole,
        })
    }
}

/// Predicate that keeps chunks beginning with `prefix`: the remainder of a prompt inside its last chunk.
pub fn begins_with(prefix: &[u32]) -> impl Fn(&[u32]) -> bool + '_ {
    move |chunk| chunk.starts_with(prefix)
}

/// Predicate that keeps every chunk.
pub fn any(_: &[u32]) -> bool {
    true
}

/// Settings of [`exact`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExactOptions {
    /// Most samples drawn for one chunk.
    pub budget: usize,
    /// Samples asked for at once after the first n (black boxes are cheaper in batches; what is left over
    /// is thrown away with the chunk, never used again).
    pub batch: usize,
    /// When the budget is spent: instead of an error, one batch-approximate draw from everything drawn,
    /// with n the integer next to 1/T. Biased; the outcome says so.
    pub fallback: bool,
}

impl Default for ExactOptions {
    fn default() -> Self {
        Self { budget: 10_000, batch: 32, fallback: false }
    }
}

/// A sampled chunk and what it cost.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// The chunk.
    pub chunk: Chunk,
    /// Samples drawn from the black box.
    pub draws: usize,
    /// How many of them satisfied the predicate.
    pub matched: usize,
    /// Exact: times the algorithm went back to step 1. Batch: 0.
    pub restarts: usize,
    /// Batch (and fallback): the m at which the cascade stopped. Exact: None.
    pub level: Option<u32>,
    /// The budget was spent and the biased fallback chose the chunk.
    pub fell_back: bool,
}

impl Outcome {
    /// Share of draws that satisfied the predicate.
    pub fn match_rate(&self) -> f64 {
        self.matched as f64 / self.draws.max(1) as f64
    }
}

/// The black box behind a buffer, a predicate and a budget.
struct Source<D, M> {
    draw: D,
    matches: M,
    buffer: VecDeque<Chunk>,
    ask: usize,
    batch: usize,
    budget: usize,
    draws: usize,
    matched: usize,
    /// Every usable draw, kept only for the fallback.
    pool: Option<Vec<Chunk>>,
}

impl<E, D: FnMut(usize) -> Result<Vec<Chunk>, E>, M: Fn(&[u32]) -> bool> Source<D, M> {
    /// The next usable sample; None when the budget is spent.
    fn next(&mut self) -> Result<Option<Chunk>, TemperatureError<E>> {
        loop {
            if let Some(chunk) = self.buffer.pop_front() {
                return Ok(Some(chunk));
            }
            let ask = self.ask.min(self.budget - self.draws.min(self.budget));
            if ask == 0 {
                return Ok(None);
            }
            self.ask = self.batch;
            let chunks = (self.draw)(ask).map_err(TemperatureError::Draw)?;
            if chunks.is_empty() {
                return Err(TemperatureError::Empty(ask));
            }
            self.draws += chunks.len();
            self.buffer.extend(chunks.into_iter().filter(|c| (self.matches)(c)));
            self.matched += self.buffer.len();
            if let Some(pool) = &mut self.pool {
                pool.extend(self.buffer.iter().cloned());
            }
        }
    }
}

/// One exact sample at temperature T. `draw(n)` gives n fresh independent samples of the black box in one
/// state, `matches` the samples that may be used.
///
/// # Errors
/// When the budget is spent (and no fallback is allowed), or the black box fails.
pub fn exact<E>(
    temperature: Temperature,
    options: &ExactOptions,
    matches: impl Fn(&[u32]) -> bool,
    draw: impl FnMut(usize) -> Result<Vec<Chunk>, E>,
    uniforms: &mut impl Uniforms,
) -> Result<Outcome, TemperatureError<E>> {
    let batch = options.batch.max(1);
    let mut source = Source {
        draw,
        matches,
        buffer: VecDeque::new(),
        ask: (temperature.whole as usize).min(batch),
        batch,
        budget: options.budget,
        draws: 0,
        matched: 0,
        pool: options.fallback.then(Vec::new),
    };
    let mut restarts = 0;
    while let Some(accepted) = attempt(temperature, &mut source, uniforms)? {
        if let Some(chunk) = accepted {
            let (draws, matched) = (source.draws, source.matched);
            return Ok(Outcome { chunk, draws, matched, restarts, level: None, fell_back: false });
        }
        restarts += 1;
    }
    let (draws, matched) = (source.draws, source.matched);
    if matched == 0 {
        return Err(TemperatureError::NoMatch { draws });
    }
    let nearest = (1.0 / temperature.value).round() as u32;
    match source.pool.and_then(|pool| batch_weights(&pool, nearest)) {
        Some(weights) => {
            let (chunk, level) = (weights.choose(uniforms.uniform()), Some(weights.level));
            Ok(Outcome { chunk, draws, matched, restarts, level, fell_back: true })
        }
        None => Err(TemperatureError::Budget { draws, matched }),
    }
}

/// Steps 1 to 3. None: the budget is spent. Some(None): rejected.
fn attempt<E, D: FnMut(usize) -> Result<Vec<Chunk>, E>, M: Fn(&[u32]) -> bool>(
    temperature: Temperature,
    source: &mut Source<D, M>,
    uniforms: &mut impl Uniforms,
) -> Result<Option<Option<Chunk>>, TemperatureError<E>> {
    let Some(x) = source.next()? else { return Ok(None) };
    for _ in 1..temperature.whole {
        match source.next()? {
            None => return Ok(None),
            // The rest of the n need not be drawn. This one is not kept: it is known to differ from x.
            Some(y) if y != x => return Ok(Some(None)),
            Some(_) => {}
        }
    }
    if temperature.rest == 0.0 {
        return Ok(Some(Some(x)));
    }
    let mut i = 1.0;
    loop {
        match source.next()? {
            None => return Ok(None),
            Some(y) if y == x => return Ok(Some(Some(x))),
            Some(_) if uniforms.uniform() < temperature.rest / i => return Ok(Some(None)),
            Some(_) => i += 1.0,
        }
    }
}

/// A candidate of the batch approximation.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// Its tokens.
    pub chunk: Chunk,
    /// Times it was drawn.
    pub count: usize,
    /// C(count, level), infinite where it passes the range of f64.
    pub weight: f64,
    /// Probability of being selected.
    pub probability: f64,
}

/// Selection probabilities of the batch approximation for one pool of samples.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchWeights {
    /// The m at which the cascade stopped.
    pub level: u32,
    /// Candidates with count ≥ level, in the order in which they were first drawn. All others have
    /// probability 0.
    pub candidates: Vec<Candidate>,
}

impl BatchWeights {
    /// The candidate that a uniform number in [0, 1) selects.
    pub fn choose(&self, uniform: f64) -> Chunk {
        let mut left = uniform;
        for candidate in &self.candidates {
            left -= candidate.probability;
            if left < 0.0 {
                return candidate.chunk.clone();
            }
        }
        // Probabilities that add up to a rounding error less than 1.
        self.candidates.last().map(|c| c.chunk.clone()).unwrap_or_default()
    }
}

/// Counts a pool and gives the selection probabilities at T = 1/n. None of an empty pool.
pub fn batch_weights(pool: &[Chunk], n: u32) -> Option<BatchWeights> {
    let mut place: FxHashMap<&[u32], usize> = FxHashMap::default();
    let mut counts: Vec<(&Chunk, usize)> = Vec::new();
    for chunk in pool {
        let at = *place.entry(chunk).or_insert(counts.len());
        if at == counts.len() {
            counts.push((chunk, 0));
        }
        counts[at].1 += 1;
    }
    let most = counts.iter().map(|c| c.1).max()?;
    // The first m = n, n−1, … with a candidate is the largest one that the most frequent chunk reaches.
    let level = (n.max(1) as usize).min(most);
    counts.retain(|c| c.1 >= level);
    let logarithms: Vec<f64> = counts.iter().map(|c| ln_binomial(c.1, level)).collect();
    let top = logarithms.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let direct: Vec<f64> = counts.iter().map(|c| binomial(c.1, level)).collect();
    let weights: Vec<f64> = if direct.iter().sum::<f64>().is_finite() {
        direct.clone()
    } else {
        logarithms.iter().map(|l| (l - top).exp()).collect()
    };
    let total: f64 = weights.iter().sum();
    let candidates = counts
        .iter()
        .zip(direct)
        .zip(weights)
        .map(|((&(chunk, count), weight), share)| Candidate {
            chunk: chunk.clone(),
            count,
            weight,
            probability: share / total,
        })
        .collect();
    Some(BatchWeights { level: level as u32, candidates })
}

/// C(n, k): exact below 2⁵³ (every partial product is a binomial coefficient), infinite past f64.
fn binomial(n: usize, k: usize) -> f64 {
    let k = k.min(n - k);
    (1..=k).fold(1.0, |c, i| c * (n - k + i) as f64 / i as f64)
}

fn ln_binomial(n: usize, k: usize) -> f64 {
    let k = k.min(n - k);
    (1..=k).map(|i| ((n - k + i) as f64 / i as f64).ln()).sum()
}

/// One batch-approximate sample at T = 1/n from `samples` draws.
///
/// # Errors
/// T is not 1/n, no draw satisfies the predicate, or the black box fails.
pub fn batch<E>(
    temperature: Temperature,
    samples: usize,
    matches: impl Fn(&[u32]) -> bool,
    mut draw: impl FnMut(usize) -> Result<Vec<Chunk>, E>,
    uniforms: &mut impl Uniforms,
) -> Result<Outcome, TemperatureError<E>> {
    let n = temperature.reciprocal()?;
    let mut pool = draw(samples.max(1)).map_err(TemperatureError::Draw)?;
    let draws = pool.len();
    if draws == 0 {
        return Err(TemperatureError::Empty(samples));
    }
    pool.retain(|chunk| matches(chunk));
    let weights = batch_weights(&pool, n).ok_or(TemperatureError::NoMatch { draws })?;
    Ok(Outcome {
        chunk: weights.choose(uniforms.uniform()),
        draws,
        matched: pool.len(),
        restarts: 0,
        level: Some(weights.level),
        fell_back: false,
    })
}

#[cfg(test)]
mod tests;
