//! Scores over training seeds: how far a score or a difference may be off because of the documents it was
//! measured on, and because of the seeds that the models were trained from.
//!
//! A bootstrap over documents (see [`crate::bootstrap`]) tells how the scored models would do on other
//! documents. It does not know that the same recipe with another seed gives another model. Here S runs of
//! one recipe are scored on the same positions of the same documents, and the statistic is that of sums
//! averaged over the runs: Brier-1..4, and the geometric mean of the *averaged* Brier-1..4.
//!
//! ```text
//! documents:   bootstrap over documents of the averaged sums
//! seeds:       se² = (S−1)/S · Σ_i (θ_(i) − θ̄)²,   θ_(i) without run i,  θ̄ the mean of the θ_(i)
//! together:    se² = documents² + seeds²
//! ```
//!
//! For a mean (Brier-n) the second line is the sample variance of the runs divided by S.
//!
//! Variation that belongs to one run on one document only (the noise of sampling, for one) spreads over
//! documents *and* over runs, so it is counted in both parts. Where there is nothing else, the standard
//! error is √2 too large; it is never too small for that reason. Subtracting an estimate of it would need
//! more than a few seeds: it leaves next to nothing, or less, wherever two runs happen to agree.

mod student;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bootstrap::{
    Bootstrap, PairError, Statistic, deviation, paired_difference, report, same_documents,
};
use crate::brier::{BrierSums, NGRAM, brierlm};

/// Confidence of the intervals: 95 %, two-sided.
const CONFIDENCE: f64 = 0.975;
/// Power at the detectable effect.
const POWER: f64 = 0.8;

/// A number in percent, with the two parts of its standard error.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The number.
    pub value: f64,
    /// Standard error for other documents, same models; null with fewer than two documents.
    pub documents: Option<f64>,
    /// Standard error for other seeds, same documents; null if a model has one seed only, or if BrierLM is
    /// undefined without one of the seeds.
    pub seeds: Option<f64>,
}

impl Estimate {
    /// √(documents² + seeds²), the standard error for other documents and other seeds. None unless both
    /// parts are known: one run cannot tell how another one would do. Use `documents` for a statement on
    /// the scored models alone.
    pub fn se(&self) -> Option<f64> {
        Some(self.documents?.hypot(self.seeds?))
    }
}

/// Scores of one recipe over its seeds, in percent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeededReport {
    /// Geometric mean of `brier`; null where one of them is not positive.
    pub brierlm: Option<Estimate>,
    /// Brier-1..4; null without positions.
    pub brier: Option<[Estimate; NGRAM]>,
    /// Share of replicates (0..1) in which BrierLM is undefined; null with fewer than two documents.
    pub undefined_replicates: Option<f64>,
    /// Runs averaged.
    pub seeds: usize,
    /// Documents scored.
    pub documents: usize,
    /// Positions scored, of one run.
    pub positions: u64,
}

/// What a standard error allows to say.
///
/// ```text
/// se² = Σ se_i²,   ν = se⁴ / Σ (se_i⁴ / ν_i)        (Welch, Satterthwaite)
/// half-width = t_{0.975,ν} · se
/// detectable = (t_{0.975,ν} + t_{0.8,ν}) · se
/// ```
///
/// ν is estimated along with the se_i. Where a part with one degree of freedom (two seeds) is small by
/// chance, ν comes out large: with two seeds a model that make up most of the variance (two thirds and
/// more), intervals cover 86 to 91 % instead of 95, with three about 92, with four about 94 (simulated, 40
/// documents). Prefer three seeds and more.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// ν. Lies between the smallest ν_i and their sum.
    pub degrees_of_freedom: f64,
    /// Half of the 95 % interval, in the unit of the standard errors.
    pub half_width: f64,
    /// True effect whose interval leaves out 0 in 80 % of the studies like this one. A formula for
    /// planning: it is close from about 4 degrees of freedom on; with 1 its power is nearer to 73 %.
    pub detectable: f64,
}

impl Interval {
    /// From independent parts, each a standard error and its degrees of freedom (documents − 1,
    /// seeds − 1). None without spread, or without a degree of freedom in every part.
    pub fn new(parts: &[(f64, f64)]) -> Option<Self> {
        let variance: f64 = parts.iter().map(|(se, _)| se * se).sum();
        let usable = variance > 0.0 && variance.is_finite() && parts.iter().all(|&(_, df)| df >= 1.0);
        usable.then(|| {
            let shares = parts.iter().map(|(se, df)| (se * se / variance).powi(2) / df);
            let degrees_of_freedom = 1.0 / shares.sum::<f64>();
            let (se, t) = (variance.sqrt(), student::quantile(CONFIDENCE, degrees_of_freedom));
            let detectable = (t + student::quantile(POWER, degrees_of_freedom)) * se;
            Self { degrees_of_freedom, half_width: t * se, detectable }
        })
    }
}

/// A difference of two recipes with what can be said about it; see [`Interval`] for the three numbers, which
/// are null unless both parts of the standard error are known and one is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Contrast {
    /// The difference, first minus second, in percent.
    pub estimate: Estimate,
    /// Degrees of freedom of the total standard error.
    pub degrees_of_freedom: Option<f64>,
    /// Half of the 95 % interval.
    pub half_width: Option<f64>,
    /// True difference that a study like this one finds in 80 % of the cases.
    pub detectable: Option<f64>,
}

impl Contrast {
    /// `seeds`: independent parts of the variation by seed, None if it is not known.
    fn new(value: f64, documents: Option<(f64, f64)>, seeds: Option<Vec<(f64, f64)>>) -> Self {
        let total = |parts: &Vec<(f64, f64)>| parts.iter().map(|(se, _)| se * se).sum::<f64>().sqrt();
        let estimate =
            Estimate { value, documents: documents.map(|(se, _)| se), seeds: seeds.as_ref().map(total) };
        let interval = documents
            .zip(seeds)
            .and_then(|(documents, seeds)| Interval::new(&[&[documents], seeds.as_slice()].concat()));
        Self {
            estimate,
            degrees_of_freedom: interval.map(|i| i.degrees_of_freedom),
            half_width: interval.map(|i| i.half_width),
            detectable: interval.map(|i| i.detectable),
        }
    }
}

/// A difference of two recipes on the same documents, first minus second, in percent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SeededDifference {
    /// Difference of BrierLM; null unless both are defined.
    pub brierlm: Option<Contrast>,
    /// Differences of Brier-1..4.
    pub brier: [Contrast; NGRAM],
    /// Share of replicates (0..1) in which one of both BrierLMs is undefined; null with fewer than two
    /// documents.
    pub undefined_replicates: Option<f64>,
    /// Runs of the first and of the second; equally many are paired by order.
    pub seeds: [usize; 2],
    /// Documents compared.
    pub documents: usize,
    /// Positions of one run of the first and of the second.
    pub positions: [u64; 2],
}

/// Runs that cannot be averaged or compared.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SeedError {
    /// No run at all.
    #[error("no scores to average")]
    NoSeeds,
    /// A document is scored in one of two runs only.
    #[error("document {document} is not scored in both of run 1 and run {run} of a model")]
    Document {
        /// The document.
        document: u64,
        /// The run that differs from the first, counted from 1.
        run: usize,
    },
    /// A document is scored at more positions in one run than in another.
    #[error("document {document} has {found} positions in run {run} of a model and {expected} in run 1")]
    Positions {
        /// The document.
        document: u64,
        /// The run that differs from the first, counted from 1.
        run: usize,
        /// Its positions.
        found: u64,
        /// Those of run 1.
        expected: u64,
    },
    /// The two models were not scored on the same documents.
    #[error(transparent)]
    Pair(#[from] PairError),
}

impl SeedError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::NoSeeds => Some("give those of at least one seed"),
            Self::Document { .. } => Some("score all its seeds on the same documents"),
            Self::Positions { .. } => Some("score all its seeds on the same positions"),
            Self::Pair(e) => e.remedy(),
        }
    }
}

/// Brier-1..4 and BrierLM of one recipe, one element of `sums` a seed.
///
/// # Errors
/// Without seeds, or if they were not scored on the same documents and positions.
pub fn over_seeds(sums: &[BrierSums], bootstrap: &Bootstrap) -> Result<SeededReport, SeedError> {
    let all = pooled(sums)?;
    let whole = report(&all, bootstrap);
    let left_out = left_out(sums);
    Ok(SeededReport {
        brierlm: whole.brierlm.map(|value| Estimate {
            value,
            documents: whole.brierlm_se,
            seeds: jackknife(left_out.iter().map(|s| s.1)),
        }),
        brier: whole.brier.map(|brier| {
            std::array::from_fn(|n| Estimate {
                value: brier[n],
                documents: whole.brier_se.map(|se| se[n]),
                seeds: jackknife(left_out.iter().map(|s| Some(s.0[n]))),
            })
        }),
        undefined_replicates: whole.undefined_replicates,
        seeds: sums.len(),
        documents: whole.documents,
        positions: sums[0].positions(),
    })
}

/// Difference of two recipes scored on the same documents (at the same or other positions of them), one
/// element a seed.
///
/// Documents are paired: each replicate draws the same ones for both. With equally many seeds these are
/// paired too, by order: the jackknife leaves out run i of both, ν = S − 1. Pairing is right whether the
/// runs of a pair have something in common (initial weights, order of the data) or not; if they have, that
/// cancels. With different numbers S₁ and S₂ the runs are taken as independent: a jackknife for each model,
/// variances added, and ν from the three parts with D − 1, S₁ − 1 and S₂ − 1.
///
/// # Errors
/// As [`over_seeds`], and if a document is scored for one model only, or there is none.
pub fn difference_over_seeds(
    first: &[BrierSums],
    second: &[BrierSums],
    bootstrap: &Bootstrap,
) -> Result<SeededDifference, SeedError> {
    let whole = paired_difference(&pooled(first)?, &pooled(second)?, bootstrap)?;
    let left_out = [left_out(first), left_out(second)];
    let freedom = |count: usize| count as f64 - 1.0;
    // Parts of the variation of one number of the statistic.
    let seeds = |number: fn(&Statistic, usize) -> Option<f64>, n: usize| {
        let [a, b] = &left_out;
        if a.len() == b.len() {
            let differences = a.iter().zip(b).map(|(a, b)| Some(number(a, n)? - number(b, n)?));
            Some(vec![(jackknife(differences)?, freedom(a.len()))])
        } else {
            let part = |s: &[Statistic]| Some((jackknife(s.iter().map(|s| number(s, n)))?, freedom(s.len())));
            Some(vec![part(a)?, part(b)?])
        }
    };
    let documents = |se: f64| (se, freedom(whole.documents));
    let brierlm = whole.brierlm.map(|value| {
        Contrast::new(value, whole.brierlm_se.map(documents), seeds(|statistic, _| statistic.1, 0))
    });
    let brier = std::array::from_fn(|n| {
        let part = whole.brier_se.map(|se| documents(se[n]));
        Contrast::new(whole.brier[n], part, seeds(|statistic, n| Some(statistic.0[n]), n))
    });
    Ok(SeededDifference {
        brierlm,
        brier,
        undefined_replicates: whole.undefined_replicates,
        seeds: [first.len(), second.len()],
        documents: whole.documents,
        positions: [first[0].positions(), second[0].positions()],
    })
}

/// Sums of all runs, added up: with the same positions in all of them, the mean over the positions of all
/// is the mean over positions of the average.
fn pooled(runs: &[BrierSums]) -> Result<BrierSums, SeedError> {
    let (first, rest) = runs.split_first().ok_or(SeedError::NoSeeds)?;
    let mut all = first.clone();
    for (other, run) in rest.iter().zip(2..) {
        same_documents(first, other).map_err(|error| match error {
            PairError::Unpaired(document) => SeedError::Document { document, run },
            error @ PairError::Empty => error.into(),
        })?;
        for ((document, a), (_, b)) in first.iter().zip(other.iter()) {
            let (expected, found) = (a.positions, b.positions);
            if expected != found {
                return Err(SeedError::Positions { document, run, found, expected });
            }
        }
        all.merge(other);
    }
    Ok(all)
}

/// The statistic without run i, for every i, or what is left of these: none of fewer than two runs, or of
/// runs without positions. Brier-n is linear in the sums, so the mean of the other runs' Brier-n is that of
/// their average.
fn left_out(runs: &[BrierSums]) -> Vec<Statistic> {
    let brier: Vec<[f64; NGRAM]> = runs.iter().filter_map(BrierSums::brier).collect();
    if brier.len() < 2 {
        return Vec::new();
    }
    let without = |i: usize| {
        let others = || brier.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, b)| b);
        let mean: [f64; NGRAM] =
            std::array::from_fn(|n| others().map(|b| b[n]).sum::<f64>() / (brier.len() as f64 - 1.0));
        (mean, brierlm(&mean))
    };
    (0..brier.len()).map(without).collect()
}

/// √((S−1)/S · Σ (θ_(i) − θ̄)²) of the values θ_(i) without run i. None of fewer than two runs, or if one
/// value is undefined.
fn jackknife(left_out: impl Iterator<Item = Option<f64>>) -> Option<f64> {
    let values = left_out.collect::<Option<Vec<f64>>>()?;
    let runs = values.len() as f64;
    deviation(values.iter().copied()).map(|d| d * (runs - 1.0) / runs.sqrt())
}

#[cfg(test)]
mod tests;
