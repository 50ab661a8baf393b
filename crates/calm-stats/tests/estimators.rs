//! Every Brier estimator is unbiased within its standard error on a small known distribution, the reported
//! standard errors have the right coverage, and broken estimators fail the same checks.

#![allow(clippy::unwrap_used)] // helpers of tests

mod support;

use calm_stats::bootstrap::{Bootstrap, paired_difference, report};
use calm_stats::brier::{
    BrierSums, EndOfText, RolloutDocument, SampledPath, Terms, brierlm, chunks_per_gram, exact_terms,
    sample_terms,
};
use calm_stats::rng::Stream;
use support::{check_coverage, check_unbiased, pick};

/// Tokens 0, 1, and 2 = EOS; 3 = PAD, which only follows EOS.
const EOS: u32 = 2;
const PAD: u32 = 3;
const END: Option<EndOfText> = Some(EndOfText { eos: EOS, pad: PAD });

/// A Markov chain on 0, 1, EOS: row 2 is the start of an n-gram. What it draws *after* EOS (from the same
/// row) is junk that the estimators must take for PAD.
#[derive(Clone, Copy)]
struct Chain([[f64; 3]; 3]);

const MODEL: Chain = Chain([[0.8, 0.12, 0.08], [0.4, 0.5, 0.1], [0.5, 0.4, 0.1]]);
/// Two kinds of documents: one that the model knows well and one that it does not.
const TEXTS: [Chain; 2] = [
    Chain([[0.9, 0.07, 0.03], [0.05, 0.9, 0.05], [0.75, 0.2, 0.05]]),
    Chain([[0.55, 0.35, 0.1], [0.4, 0.5, 0.1], [0.4, 0.5, 0.1]]),
];

impl Chain {
    /// Continues `prefix` by `count` tokens.
    fn extend(&self, prefix: &mut Vec<u32>, count: usize, stream: &mut Stream) {
        for _ in 0..count {
            let before = prefix.last().copied().unwrap_or(EOS).min(EOS);
            prefix.push(pick(&self.0[before as usize], stream) as u32);
        }
    }

    fn sample(&self, count: usize, stream: &mut Stream) -> Vec<u32> {
        let mut tokens = Vec::new();
        self.extend(&mut tokens, count, stream);
        tokens
    }

    /// A text: like a sample, with PAD after EOS.
    fn text(&self, count: usize, stream: &mut Stream) -> Vec<u32> {
        let mut tokens = self.sample(count, stream);
        END.unwrap().absorb(&mut tokens);
        tokens
    }

    /// Probability of an n-gram under the rule for EOS.
    fn probability(&self, gram: &[u32]) -> f64 {
        let mut before = None;
        gram.iter().fold(1.0, |p, &token| {
            let step = match before {
                Some(EOS | PAD) => f64::from(token == PAD),
                _ if token == PAD => 0.0,
                _ => self.0[before.unwrap_or(EOS) as usize][token as usize],
            };
            before = Some(token);
            p * step
        })
    }
}

/// All n-grams over 0, 1, EOS, PAD.
fn grams(n: usize) -> impl Iterator<Item = Vec<u32>> {
    (0..4usize.pow(n as u32)).map(move |code| (0..n).map(|i| (code >> (2 * i) & 3) as u32).collect())
}

/// Expected Brier-1..4 of a model on texts of a chain, by enumeration.
fn truth(model: &Chain, text: &Chain) -> [f64; 4] {
    std::array::from_fn(|n| {
        grams(n + 1)
            .map(|g| {
                let p = model.probability(&g);
                2.0 * p * text.probability(&g) - p * p
            })
            .sum()
    })
}

/// A position of a model's score: target in, terms out.
type Estimator = fn(&Chain, &[u32], &mut Stream) -> Terms;

fn two_samples(model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    all_pairs(2, model, target, stream)
}

fn five_samples(model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    all_pairs(5, model, target, stream)
}

fn all_pairs(samples: usize, model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    let samples: Vec<_> = (0..samples).map(|_| model.sample(5, stream)).collect();
    sample_terms(target, &samples, END).unwrap()
}

/// Teacher-forced predictions: each chunk drawn after the true text before it.
fn predict(k: usize, model: &Chain, target: &[u32], stream: &mut Stream) -> Vec<u32> {
    let mut tokens = Vec::new();
    for chunk in 0..target.len() / k {
        let mut path = target[..chunk * k].to_vec();
        model.extend(&mut path, k, stream);
        tokens.extend_from_slice(&path[chunk * k..]);
    }
    tokens
}

/// K < 4 with any number of chains; the first chunks are those of the predictions, as in the reference.
fn roll_out(k: usize, chains: usize, model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    let predictions: Vec<_> = (0..chains).map(|_| predict(k, model, target, stream)).collect();
    let mut rolled: Vec<Vec<u32>> = predictions.iter().map(|p| p[..k].to_vec()).collect();
    for step in 1..chunks_per_gram(k) {
        // Only chains that still agree with another one go on.
        let before = rolled.clone();
        for (i, chain) in rolled.iter_mut().enumerate() {
            if before
                .iter()
                .enumerate()
                .any(|(j, other)| j != i && *other == *chain && chain.len() == step * k)
            {
                model.extend(chain, k, stream);
            }
        }
    }
    let predictions: Vec<&[u32]> = predictions.iter().map(Vec::as_slice).collect();
    let document = RolloutDocument { chunk_size: k, targets: target, predictions: &predictions, end: END };
    // A pair that agreed up to an EOS may have parted in junk after it, and stopped: that is a match.
    document.terms(0, &rolled).unwrap()
}

fn roll_out_1(model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    roll_out(1, 2, model, &target[..4], stream)
}

fn roll_out_2(model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    roll_out(2, 2, model, &target[..4], stream)
}

fn roll_out_3(model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    roll_out(3, 4, model, &target[..6], stream)
}

fn baseline(paths: usize, model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    let row = |before: Option<&u32>| model.0[before.copied().unwrap_or(EOS).min(EOS) as usize];
    let gold = std::array::from_fn(|n| {
        let before = n.checked_sub(1).map(|i| &target[i]);
        row(before).get(target[n] as usize).copied().unwrap_or(0.0)
    });
    let paths: Vec<Vec<u32>> = (0..paths).map(|_| model.sample(3, stream)).collect();
    let squares: Vec<Vec<f64>> = paths
        .iter()
        .map(|p| (0..4).map(|n| row(p[..n].last()).iter().map(|p| p * p).sum()).collect())
        .collect();
    let paths: Vec<_> =
        paths.iter().zip(&squares).map(|(tokens, squares)| SampledPath { tokens, squares }).collect();
    exact_terms(target, &gold, &paths, END).unwrap()
}

fn baseline_2(model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    baseline(2, model, target, stream)
}

fn baseline_4(model: &Chain, target: &[u32], stream: &mut Stream) -> Terms {
    baseline(4, model, target, stream)
}

const ESTIMATORS: [(&str, Estimator); 7] = [
    ("two samples", two_samples),
    ("all pairs of five", five_samples),
    ("roll-out K=1", roll_out_1),
    ("roll-out K=2", roll_out_2),
    ("roll-out K=3, four chains", roll_out_3),
    ("baseline, two paths", baseline_2),
    ("baseline, four paths", baseline_4),
];

fn bias(estimator: impl Fn(&Chain, &[u32], &mut Stream) -> Terms) -> Result<(), String> {
    let mut stream = Stream::new(11, "bias", 0);
    check_unbiased(100_000, truth(&MODEL, &TEXTS[1]), || {
        let target = TEXTS[1].text(6, &mut stream);
        estimator(&MODEL, &target, &mut stream).brier()
    })
}

#[test]
fn every_estimator_is_unbiased() {
    for (name, estimator) in ESTIMATORS {
        bias(estimator).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
}

#[test]
fn the_baseline_has_less_variance_than_two_samples() {
    let mut stream = Stream::new(5, "variance", 0);
    let mut spread = |estimator: Estimator| {
        let target = [0, 0, 1, 1, 0, 0];
        let values: Vec<f64> =
            (0..5000).map(|_| estimator(&MODEL, &target, &mut stream).brier()[3]).collect();
        let mean = values.iter().sum::<f64>() / 5000.0;
        values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / 5000.0
    };
    let (two, five, exact) = (spread(two_samples), spread(five_samples), spread(baseline_2));
    assert!(five < two && exact < 0.5 * two, "{two} {five} {exact}");
}

#[test]
fn broken_estimators_fail_the_check_of_bias() {
    type Broken = fn(&Chain, &[u32], &mut Stream) -> Terms;
    let broken: [(&str, Broken); 6] = [
        ("pairs of a sample with itself are counted", |model, target, stream| {
            let mut t = five_samples(model, target, stream);
            t.collision.iter_mut().for_each(|c| *c = (20.0 * *c + 5.0) / 25.0);
            t
        }),
        ("the second sample is the first", |model, target, stream| {
            let a = model.sample(4, stream);
            sample_terms(target, &[a.clone(), a], END).unwrap()
        }),
        ("tokens after EOS are compared", |model, target, stream| {
            sample_terms(target, &[model.sample(4, stream), model.sample(4, stream)], None).unwrap()
        }),
        ("collisions after the true text instead of rolled forward", |model, target, stream| {
            let predictions = [0; 2].map(|_| predict(1, model, &target[..4], stream));
            sample_terms(target, &predictions, END).unwrap()
        }),
        ("collision of single tokens instead of whole n-grams", |model, target, stream| {
            let (mut a, mut b) = (model.text(4, stream), model.text(4, stream));
            let mut t = sample_terms(target, &[&a, &b], None).unwrap();
            for n in 0..4 {
                a.rotate_left(usize::from(n > 0));
                b.rotate_left(usize::from(n > 0));
                t.collision[n] = f64::from(a[0] == b[0]);
            }
            t
        }),
        ("the baseline's indicator of equal prefixes is forgotten", |model, target, stream| {
            let mut t = baseline_2(model, target, stream);
            t.collision = t.collision.map(|c| if c == 0.0 { 0.46 } else { c });
            t
        }),
    ];
    for (name, estimator) in broken {
        let error = bias(estimator).expect_err(name);
        println!("{name}: refused, {error}");
    }
}

/// Documents of both kinds with 5 to 15 positions, scored by one estimator.
fn experiment(estimator: Estimator, model: &Chain, documents: u64, repetition: usize) -> BrierSums {
    let mut sums = BrierSums::new();
    let mut text = Stream::new(21, "documents", repetition as u32);
    let mut stream = Stream::new(22, "samples", repetition as u32);
    for document in 0..documents {
        let kind = &TEXTS[text.below(2)];
        for _ in 0..5 + text.below(11) {
            let target = kind.text(6, &mut text);
            sums.add(document, &estimator(model, &target, &mut stream).brier());
        }
    }
    sums
}

fn mean_truth(model: &Chain) -> [f64; 4] {
    let (a, b) = (truth(model, &TEXTS[0]), truth(model, &TEXTS[1]));
    std::array::from_fn(|n| 50.0 * (a[n] + b[n]))
}

/// Brier-1..4 and BrierLM of the mixture, in percent.
fn five(model: &Chain) -> [f64; 5] {
    let four = mean_truth(model);
    [four[0], four[1], four[2], four[3], brierlm(&four).unwrap()]
}

const REPETITIONS: usize = 500;
const BOOTSTRAP: Bootstrap = Bootstrap { replicates: 300, seed: 1 };

fn coverage(sums: impl Fn(usize) -> BrierSums, factor: f64) -> Result<[f64; 5], String> {
    check_coverage(REPETITIONS, five(&MODEL), |repetition| {
        let r = report(&sums(repetition), &BOOTSTRAP);
        let (brier, se) = (r.brier.unwrap(), r.brier_se.unwrap());
        std::array::from_fn(|n| match n {
            4 => (r.brierlm.unwrap_or(0.0), factor * r.brierlm_se.unwrap_or(0.0)),
            n => (brier[n], factor * se[n]),
        })
    })
}

#[test]
fn reported_standard_errors_cover_the_truth() {
    for (name, estimator) in ESTIMATORS {
        let rates = coverage(|r| experiment(estimator, &MODEL, 60, r), 1.0);
        let rates = rates.unwrap_or_else(|e| panic!("{name}: {e}"));
        println!("{name}: 95 % intervals cover {rates:.3?}");
    }
}

#[test]
fn standard_errors_of_paired_differences_cover_the_truth() {
    let other = Chain([[0.5, 0.4, 0.1], [0.4, 0.5, 0.1], [0.45, 0.45, 0.1]]);
    let (a, b) = (five(&MODEL), five(&other));
    let rates = check_coverage(REPETITIONS, std::array::from_fn::<_, 5, _>(|n| a[n] - b[n]), |repetition| {
        let first = experiment(baseline_4, &MODEL, 60, repetition);
        let second = experiment(baseline_4, &other, 60, repetition);
        let d = paired_difference(&first, &second, &BOOTSTRAP).unwrap();
        std::array::from_fn(|n| match n {
            4 => (d.brierlm.unwrap_or(0.0), d.brierlm_se.unwrap_or(0.0)),
            n => (d.brier[n], d.brier_se.unwrap()[n]),
        })
    });
    println!("paired: 95 % intervals cover {:.3?}", rates.unwrap());
}

#[test]
fn broken_standard_errors_fail_the_check_of_coverage() {
    // Every position a document of its own: what positions of a text have in common is ignored.
    let alone = |repetition| {
        let mut sums = BrierSums::new();
        let mut text = Stream::new(21, "documents", repetition as u32);
        let mut stream = Stream::new(22, "samples", repetition as u32);
        for document in 0..20 {
            let kind = &TEXTS[text.below(2)];
            for position in 0..30 {
                let target = kind.text(6, &mut text);
                sums.add(document * 30 + position, &baseline_4(&MODEL, &target, &mut stream).brier());
            }
        }
        sums
    };
    println!("resampled positions: refused, {}", coverage(alone, 1.0).unwrap_err());
    let documents = |r| experiment(baseline_4, &MODEL, 60, r);
    println!("too small by √2: refused, {}", coverage(documents, 0.5f64.sqrt()).unwrap_err());
    println!("too large by √2: refused, {}", coverage(documents, 2f64.sqrt()).unwrap_err());
}
