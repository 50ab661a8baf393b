//! The exact sampler follows P^{1/T} / Z, the batch sampler its listed probabilities, its bias shrinks with
//! N, and broken samplers fail the same checks.

#![allow(clippy::unwrap_used)] // helpers of tests

mod support;

use calm_stats::rng::Stream;
use calm_stats::temperature::{
    Chunk, ExactOptions, Temperature, any, batch, batch_weights, begins_with, exact,
};
use support::{check_chi_squared, pick, sharpened};

const P: [f64; 4] = [0.45, 0.3, 0.15, 0.1];

fn at(t: f64) -> Temperature {
    Temperature::new::<String>(t).unwrap()
}

/// Samples of the black box: chunk [i mod 2, i] with probability P[i].
fn draw(stream: &mut Stream, n: usize) -> Vec<Chunk> {
    (0..n).map(|_| pick(&P, stream) as u32).map(|i| vec![i % 2, i]).collect()
}

fn chi_squared(probabilities: &[f64], mut sampler: impl FnMut() -> usize) -> Result<(), String> {
    let mut observed = vec![0; probabilities.len()];
    (0..40_000).for_each(|_| observed[sampler()] += 1);
    check_chi_squared(&observed, probabilities)
}

#[test]
fn the_exact_sampler_follows_the_sharpened_distribution() {
    for t in [1.0, 0.9, 0.7, 0.5, 0.4, 1.0 / 3.0, 0.23] {
        for batch in [1, 16] {
            let mut box_stream = Stream::new(1, "box", 0);
            let mut stream = Stream::new(1, "accept", 0);
            let options = ExactOptions { batch, ..Default::default() };
            let sampler = || {
                let draw = |n| Ok::<_, String>(draw(&mut box_stream, n));
                exact(at(t), &options, any, draw, &mut stream).unwrap().chunk[1] as usize
            };
            let result = chi_squared(&sharpened(&P, 1.0 / t), sampler);
            result.unwrap_or_else(|e| panic!("T = {t}, batches of {batch}: {e}"));
        }
    }
}

#[test]
fn the_exact_sampler_conditions_on_a_prompts_remainder() {
    for t in [1.0, 0.7, 0.5] {
        let mut box_stream = Stream::new(2, "box", 0);
        let mut stream = Stream::new(2, "accept", 0);
        let (mut draws, mut matched) = (0, 0);
        let sampler = || {
            let draw = |n| Ok::<_, String>(draw(&mut box_stream, n));
            let out = exact(at(t), &ExactOptions::default(), begins_with(&[1]), draw, &mut stream).unwrap();
            draws += out.draws;
            matched += out.matched;
            out.chunk[1] as usize
        };
        let kept = sharpened(&[0.0, P[1], 0.0, P[3]], 1.0 / t);
        chi_squared(&kept, sampler).unwrap_or_else(|e| panic!("T = {t}: {e}"));
        // 40 % of the samples begin with 1.
        assert!((matched as f64 / draws as f64 - 0.4).abs() < 0.01);
    }
}

/// How the exact algorithm may be broken.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    /// Step 3 rejects with probability a instead of a/i.
    ConstantRate,
    /// Step 3 counts i from 2.
    LateCount,
    /// The n samples need not be equal.
    NoAgreement,
    /// The sample that differed becomes the first of the next n.
    Reused,
}

/// The algorithm again, written down independently of the library, with a fault.
fn faulty(t: f64, fault: Fault, black_box: &mut Stream, stream: &mut Stream) -> usize {
    let (n, a) = ((1.0 / t + 1e-9).floor(), (1.0 / t).fract());
    let a = if !(1e-9..=1.0 - 1e-9).contains(&a) { 0.0 } else { a };
    let mut left = None;
    'again: loop {
        let x = left.take().unwrap_or_else(|| pick(&P, black_box));
        for _ in 1..n as usize {
            let y = pick(&P, black_box);
            if y != x && fault != Fault::NoAgreement {
                left = (fault == Fault::Reused).then_some(y);
                continue 'again;
            }
        }
        let mut i = if fault == Fault::LateCount { 2.0 } else { 1.0 };
        while a > 0.0 && pick(&P, black_box) != x {
            if stream.uniform() < if fault == Fault::ConstantRate { a } else { a / i } {
                continue 'again;
            }
            i += 1.0;
        }
        return x;
    }
}

#[test]
fn broken_exact_samplers_fail_the_chi_squared_test() {
    let run = |t: f64, fault| {
        let (mut black_box, mut stream) = (Stream::new(3, "box", 0), Stream::new(3, "accept", 0));
        chi_squared(&sharpened(&P, 1.0 / t), || faulty(t, fault, &mut black_box, &mut stream))
    };
    for t in [1.0, 0.7, 0.5, 0.4, 1.0 / 3.0] {
        run(t, Fault::None).unwrap_or_else(|e| panic!("T = {t}: {e}"));
    }
    for (t, fault) in [
        (0.7, Fault::ConstantRate),
        (0.4, Fault::ConstantRate),
        (0.7, Fault::LateCount),
        (0.5, Fault::NoAgreement),
        (0.5, Fault::Reused),
    ] {
        println!("{fault:?} at T = {t}: refused, {}", run(t, fault).unwrap_err());
    }
}

/// Selection probabilities by enumeration: at the first m that has any, every set of m equal samples of the
/// pool is equally likely.
fn enumerate(pool: &[u32], n: u32) -> Vec<f64> {
    for m in (1..=n).rev() {
        let mut sets = [0.0; 4];
        for mask in 0u32..1 << pool.len() {
            let chosen: Vec<u32> = (0..pool.len()).filter(|i| mask >> i & 1 == 1).map(|i| pool[i]).collect();
            if mask.count_ones() == m && chosen.iter().all(|c| *c == chosen[0]) {
                sets[chosen[0] as usize] += 1.0;
            }
        }
        let total: f64 = sets.iter().sum();
        if total > 0.0 {
            return sets.iter().map(|s| s / total).collect();
        }
    }
    vec![0.0; 4]
}

/// Ok if the probabilities equal the enumerated ones.
fn check_equal(found: &[f64], expected: &[f64]) -> Result<(), String> {
    let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    if off < 1e-12 { Ok(()) } else { Err(format!("off by {off}: {found:?} is not {expected:?}")) }
}

fn weights(pool: &[u32], n: u32) -> Vec<f64> {
    let chunks: Vec<Chunk> = pool.iter().map(|&t| vec![t]).collect();
    let mut found = vec![0.0; 4];
    for c in batch_weights(&chunks, n).unwrap().candidates {
        found[c.chunk[0] as usize] = c.probability;
    }
    found
}

/// A broken selection: weight count instead of C(count, m).
fn count_weights(pool: &[u32], n: u32) -> Vec<f64> {
    let mut counts = [0u32; 4];
    pool.iter().for_each(|&t| counts[t as usize] += 1);
    let level = (1..=n).rev().find(|&m| counts.iter().any(|&c| c >= m)).unwrap();
    let kept: Vec<f64> = counts.iter().map(|&c| if c >= level { f64::from(c) } else { 0.0 }).collect();
    let total: f64 = kept.iter().sum();
    kept.iter().map(|c| c / total).collect()
}

#[test]
fn batch_selection_probabilities_are_the_enumerated_ones() {
    let mut stream = Stream::new(4, "pools", 0);
    let mut refused = 0;
    for _ in 0..60 {
        let pool: Vec<u32> = (0..1 + stream.below(10)).map(|_| pick(&P, &mut stream) as u32).collect();
        for n in 1..=5 {
            let expected = enumerate(&pool, n);
            check_equal(&weights(&pool, n), &expected).unwrap();
            refused += usize::from(check_equal(&count_weights(&pool, n), &expected).is_err());
        }
    }
    // Small pools do not tell the two apart: one candidate, or equal counts.
    assert!(refused > 20, "weights by count passed all but {refused} pools");
}

/// Distribution of the batch sampler's result at N samples of three chunks, by enumeration of all counts.
fn selected(p: &[f64; 3], n: u32, samples: usize, weights: fn(&[u32], u32) -> Vec<f64>) -> Vec<f64> {
    let ln_factorial: Vec<f64> = (0..=samples)
        .scan(0.0, |sum, i| {
            *sum += if i > 0 { (i as f64).ln() } else { 0.0 };
            Some(*sum)
        })
        .collect();
    let mut result = vec![0.0; 3];
    for a in 0..=samples {
        for b in 0..=samples - a {
            let counts = [a, b, samples - a - b];
            let mut ln = ln_factorial[samples];
            for (count, p) in counts.iter().zip(p) {
                ln += *count as f64 * p.ln() - ln_factorial[*count];
            }
            if ln < -40.0 {
                continue;
            }
            let pool: Vec<u32> = (0..3).flat_map(|t| vec![t as u32; counts[t]]).collect();
            let w = weights(&pool, n);
            (0..3).for_each(|i| result[i] += ln.exp() * w[i]);
        }
    }
    result
}

/// Total variation distance to P^n / Z at rising N; Ok if every fourfold N at least halves it.
fn check_shrinks(n: u32, weights: fn(&[u32], u32) -> Vec<f64>) -> Result<Vec<f64>, String> {
    let p = [0.5, 0.3, 0.2];
    let target = sharpened(&p, f64::from(n));
    let distances: Vec<f64> = [8, 32, 128]
        .map(|samples| {
            let found = selected(&p, n, samples, weights);
            found.iter().zip(&target).map(|(a, b)| (a - b).abs()).sum::<f64>() / 2.0
        })
        .to_vec();
    if distances.windows(2).all(|d| d[1] < 0.5 * d[0]) {
        Ok(distances)
    } else {
        Err(format!("{distances:?}"))
    }
}

#[test]
fn the_bias_of_the_batch_sampler_shrinks_with_the_number_of_samples() {
    for n in [2, 3] {
        println!("1/{n}: total variation {:?}", check_shrinks(n, weights).unwrap());
        println!("1/{n}, weights by count: refused, {}", check_shrinks(n, count_weights).unwrap_err());
    }
}

#[test]
fn the_batch_sampler_draws_with_the_listed_probabilities() {
    let p = [0.5, 0.3, 0.2];
    for (n, samples) in [(1, 3), (2, 6), (3, 10)] {
        let run = |weights| {
            let (mut black_box, mut stream) = (Stream::new(5, "box", 0), Stream::new(5, "choose", 0));
            chi_squared(&selected(&p, n, samples, weights), || {
                let draw = |count| {
                    Ok::<_, String>((0..count).map(|_| vec![pick(&p, &mut black_box) as u32]).collect())
                };
                let out = batch(at(1.0 / f64::from(n)), samples, any, draw, &mut stream).unwrap();
                out.chunk[0] as usize
            })
        };
        run(weights).unwrap_or_else(|e| panic!("T = 1/{n}: {e}"));
        if n > 1 {
            run(count_weights).unwrap_err();
        }
    }
}
