//! Standard errors by resampling documents.
//!
//! A replicate draws as many documents as there are, with replacement, and computes the whole statistic
//! (Brier-1..4, their geometric mean) from the drawn ones; the standard error is the spread over the
//! replicates, times √(D/(D−1)) because the spread of a mean of D resampled documents is that much too
//! small. Positions of one document are not independent: resampling them instead would report errors that
//! are too small. Works on sums by document, so that a thousand replicates cost next to nothing, and draws
//! from a counter-based generator, one stream a replicate: the same seed gives the same digits on any
//! number of threads.

use rayon::prelude::*;
use serde::Serialize;
use thiserror::Error;

use crate::brier::{BrierSums, DocumentSum, NGRAM, brierlm, mean_percent};
use crate::rng::Stream;

/// How many replicates, and from which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// Resampled data sets; 1000 by default.
    pub replicates: usize,
    /// Seed of the resampling.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Self {
        Self { replicates: 1000, seed: 0 }
    }
}

/// A score with its uncertainty. Numbers are in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BrierReport {
    /// Geometric mean of `brier`; null where one of them is not positive.
    pub brierlm: Option<f64>,
    /// Standard error of `brierlm` over the replicates where it is defined; null if `brierlm` is.
    pub brierlm_se: Option<f64>,
    /// Brier-1..4; null without positions.
    pub brier: Option<[f64; NGRAM]>,
    /// Standard errors of `brier`; null with fewer than two documents.
    pub brier_se: Option<[f64; NGRAM]>,
    /// Share of replicates (0..1) in which BrierLM is undefined; null with fewer than two documents.
    pub undefined_replicates: Option<f64>,
    /// Positions scored.
    pub positions: u64,
    /// Documents scored.
    pub documents: usize,
}

/// A difference of two models on the same documents, first minus second, in percent.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BrierDifference {
    /// Difference of BrierLM; null unless both are defined.
    pub brierlm: Option<f64>,
    /// Standard error of it, over the replicates where both are defined.
    pub brierlm_se: Option<f64>,
    /// Differences of Brier-1..4.
    pub brier: [f64; NGRAM],
    /// Standard errors of them; null with fewer than two documents.
    pub brier_se: Option<[f64; NGRAM]>,
    /// Share of replicates in which one of both BrierLMs is undefined.
    pub undefined_replicates: Option<f64>,
    /// Documents compared.
    pub documents: usize,
}

/// Two sets of sums that cannot be paired.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PairError {
    /// A document is scored in one set only.
    #[error("document {0} is scored for one model only")]
    Unpaired(u64),
    /// Nothing to compare.
    #[error("no documents to compare")]
    Empty,
}

impl PairError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            Self::Unpaired(_) => Some("compare models on the same documents"),
            Self::Empty => None,
        }
    }
}

/// Brier-1..4 and BrierLM with standard errors.
pub fn report(sums: &BrierSums, bootstrap: &Bootstrap) -> BrierReport {
    let documents: Vec<DocumentSum> = sums.iter().map(|(_, d)| *d).collect();
    let brier = sums.brier();
    let lm = brier.as_ref().and_then(brierlm);
    let spread = resample(documents.len(), bootstrap, |drawn| {
        let brier = mean_percent(drawn.iter().map(|&i| &documents[i]))?;
        Some((brier, brierlm(&brier)))
    });
    BrierReport {
        brierlm: lm,
        brierlm_se: lm.and(spread.as_ref().and_then(|s| s.brierlm)),
        brier,
        brier_se: spread.as_ref().map(|s| s.brier),
        undefined_replicates: spread.map(|s| s.undefined),
        positions: sums.positions(),
        documents: documents.len(),
    }
}

/// Difference of two models scored on the same documents: each replicate draws the same documents for
/// both, so that what the documents have in common cancels.
///
/// # Errors
/// If a document is scored for one of them only, or there is none.
pub fn paired_difference(
    first: &BrierSums,
    second: &BrierSums,
    bootstrap: &Bootstrap,
) -> Result<BrierDifference, PairError> {
    same_documents(first, second)?;
    let pairs: Vec<(DocumentSum, DocumentSum)> =
        first.iter().zip(second.iter()).map(|((_, a), (_, b))| (*a, *b)).collect();
    let difference = |drawn: &[usize]| {
        let a = mean_percent(drawn.iter().map(|&i| &pairs[i].0))?;
        let b = mean_percent(drawn.iter().map(|&i| &pairs[i].1))?;
        let lm = brierlm(&a).zip(brierlm(&b)).map(|(a, b)| a - b);
        Some((std::array::from_fn(|n| a[n] - b[n]), lm))
    };
    let all: Vec<usize> = (0..pairs.len()).collect();
    let (brier, lm) = difference(&all).ok_or(PairError::Empty)?;
    let spread = resample(pairs.len(), bootstrap, difference);
    Ok(BrierDifference {
        brierlm: lm,
        brierlm_se: lm.and(spread.as_ref().and_then(|s| s.brierlm)),
        brier,
        brier_se: spread.as_ref().map(|s| s.brier),
        undefined_replicates: spread.map(|s| s.undefined),
        documents: pairs.len(),
    })
}

/// Ok if both have the same documents; otherwise names the first that only one of them has.
pub(crate) fn same_documents(first: &BrierSums, second: &BrierSums) -> Result<(), PairError> {
    let numbers = || first.iter().zip(second.iter()).map(|((a, _), (b, _))| (a, b));
    if let Some((a, b)) = numbers().find(|(a, b)| a != b) {
        return Err(PairError::Unpaired(a.min(b)));
    }
    let common = numbers().count();
    match first.iter().nth(common).or_else(|| second.iter().nth(common)) {
        Some((document, _)) => Err(PairError::Unpaired(document)),
        None => Ok(()),
    }
}

/// (estimate − reference) / SE. None without a standard error, or with one of 0.
pub fn z_score(estimate: f64, reference: f64, se: Option<f64>) -> Option<f64> {
    se.filter(|se| *se > 0.0).map(|se| (estimate - reference) / se)
}

/// Spread of a statistic over the replicates.
struct Spread {
    brier: [f64; NGRAM],
    brierlm: Option<f64>,
    undefined: f64,
}

/// Brier-1..4, and BrierLM where it is defined.
pub(crate) type Statistic = ([f64; NGRAM], Option<f64>);

/// None with fewer than two documents or replicates. `statistic` gets the drawn document numbers.
fn resample(
    documents: usize,
    bootstrap: &Bootstrap,
    statistic: impl Fn(&[usize]) -> Option<Statistic> + Sync,
) -> Option<Spread> {
    if documents < 2 || bootstrap.replicates < 2 {
        return None;
    }
    let replicates: Vec<Statistic> = (0..bootstrap.replicates)
        .into_par_iter()
        .map_init(
            || vec![0usize; documents],
            |drawn, replicate| {
                let mut stream = Stream::new(bootstrap.seed, "bootstrap", replicate as u32);
                drawn.iter_mut().for_each(|d| *d = stream.below(documents));
                statistic(drawn)
            },
        )
        .collect::<Option<Vec<_>>>()?;
    let correction = (documents as f64 / (documents as f64 - 1.0)).sqrt();
    let brier =
        std::array::from_fn(|n| correction * deviation(replicates.iter().map(|r| r.0[n])).unwrap_or(0.0));
    let defined: Vec<f64> = replicates.iter().filter_map(|r| r.1).collect();
    Some(Spread {
        brier,
        brierlm: deviation(defined.iter().copied()).map(|d| d * correction),
        undefined: 1.0 - defined.len() as f64 / replicates.len() as f64,
    })
}

/// Sample standard deviation; None of fewer than two values.
pub(crate) fn deviation(values: impl Iterator<Item = f64> + Clone) -> Option<f64> {
    let count = values.clone().count();
    if count < 2 {
        return None;
    }
    let mean = values.clone().sum::<f64>() / count as f64;
    let squares: f64 = values.map(|v| (v - mean) * (v - mean)).sum();
    Some((squares / (count as f64 - 1.0)).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Documents of 4 positions, whose scores lie around `level` with a spread by document.
    fn sums(documents: u64, level: f64, seed: u64) -> BrierSums {
        let mut sums = BrierSums::new();
        let mut stream = Stream::new(seed, "test", 0);
        for document in 0..documents {
            let own = 0.4 * (stream.uniform() - 0.5);
            for _ in 0..4 {
                let c = level + own + 0.1 * (stream.uniform() - 0.5);
                sums.add(document, &[c, c / 2.0, c / 4.0, c / 8.0]);
            }
        }
        sums
    }

    #[test]
    fn the_standard_error_of_a_mean_is_the_textbook_one() {
        let sums = sums(50, 0.5, 1);
        let report = report(&sums, &Bootstrap { replicates: 20_000, seed: 1 });
        let means: Vec<f64> = sums.iter().map(|(_, d)| 100.0 * d.sum[0] / 4.0).collect();
        let textbook = deviation(means.iter().copied()).unwrap() / 50f64.sqrt();
        let se = report.brier_se.unwrap()[0];
        // 20,000 replicates leave 0.5 % of noise.
        assert!((se / textbook - 1.0).abs() < 0.02, "{se} against {textbook}");
        assert_eq!((report.positions, report.documents), (200, 50));
        // BrierLM is a fixed multiple of Brier-1 here, so its standard error is the same multiple.
        let ratio = report.brierlm_se.unwrap() / se;
        assert!((ratio - 64f64.powf(-0.25)).abs() < 1e-9, "{ratio}");
        assert_eq!(report.undefined_replicates, Some(0.0));
    }

    #[test]
    fn the_same_seed_gives_the_same_digits_on_any_number_of_threads() {
        let sums = sums(20, 0.5, 2);
        let pool = |n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap();
        let one = pool(1).install(|| report(&sums, &Bootstrap::default()));
        let three = pool(3).install(|| report(&sums, &Bootstrap::default()));
        assert_eq!(one, three);
        assert_ne!(one, report(&sums, &Bootstrap { seed: 1, ..Default::default() }));
    }

    #[test]
    fn one_document_has_no_standard_error() {
        let report = report(&sums(1, 0.5, 3), &Bootstrap::default());
        assert!(report.brier.is_some() && report.brierlm.is_some());
        assert_eq!((report.brier_se, report.brierlm_se, report.undefined_replicates), (None, None, None));
    }

    #[test]
    fn nothing_scored_is_reported_as_nothing() {
        let report = report(&BrierSums::new(), &Bootstrap::default());
        assert_eq!((report.brier, report.brierlm, report.positions), (None, None, 0));
    }

    #[test]
    fn an_undefined_brierlm_is_null_and_its_share_is_reported() {
        let mut mixed = BrierSums::new();
        for document in 0..10 {
            let c = if document % 2 == 0 { 0.3 } else { -0.28 };
            mixed.add(document, &[0.5, 0.4, 0.3, c]);
        }
        let r = report(&mixed, &Bootstrap::default());
        let share = r.undefined_replicates.unwrap();
        assert!(r.brierlm.is_some() && (0.2..0.8).contains(&share), "{share}");
        let mut negative = BrierSums::new();
        (0..10).for_each(|d| negative.add(d, &[-0.1; 4]));
        let r = report(&negative, &Bootstrap::default());
        assert_eq!((r.brierlm, r.brierlm_se, r.undefined_replicates), (None, None, Some(1.0)));
        let json = serde_json::to_value(&r).unwrap();
        assert!(json["brierlm"].is_null() && json["brier"][0].as_f64().is_some());
    }

    #[test]
    fn a_paired_difference_cancels_what_documents_share() {
        let (first, second) = (sums(40, 0.5, 4), sums(40, 0.4, 4));
        let bootstrap = Bootstrap::default();
        let paired = paired_difference(&first, &second, &bootstrap).unwrap();
        assert!((paired.brier[0] - 10.0).abs() < 1e-9);
        let alone = report(&first, &bootstrap).brier_se.unwrap()[0];
        assert!(paired.brier_se.unwrap()[0] < 0.01 * alone);
        assert!(paired.brierlm.is_some() && paired.brierlm_se.is_some() && paired.documents == 40);
    }

    #[test]
    fn only_the_same_documents_are_paired() {
        let bootstrap = Bootstrap::default();
        let difference = |a: &BrierSums, b: &BrierSums| paired_difference(a, b, &bootstrap);
        let (five, six) = (sums(5, 0.5, 1), sums(6, 0.5, 1));
        assert_eq!(difference(&five, &six), Err(PairError::Unpaired(5)));
        assert_eq!(difference(&six, &five), Err(PairError::Unpaired(5)));
        assert_eq!(difference(&BrierSums::new(), &BrierSums::new()), Err(PairError::Empty));
        let mut other = BrierSums::new();
        [0, 1, 2, 3, 9].iter().for_each(|&d| other.add(d, &[0.0; 4]));
        assert_eq!(difference(&five, &other), Err(PairError::Unpaired(4)));
    }

    #[test]
    fn z_scores_need_a_standard_error() {
        assert_eq!(z_score(3.0, 1.0, Some(0.5)), Some(4.0));
        assert_eq!(z_score(3.0, 1.0, None), None);
        assert_eq!(z_score(3.0, 1.0, Some(0.0)), None);
    }
}
