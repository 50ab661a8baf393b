//! Checks that estimators and samplers must pass, and that broken ones must fail. They return an error
//! instead of failing, so that a test can assert either.
#![allow(dead_code)] // each test binary uses a part

use calm_stats::rng::Stream;

/// Ok if the mean of the repetitions lies within 4 standard errors of `truth` in every component. An
/// unbiased estimator is refused once in about 4,000 cases (and never by chance here: seeds are fixed).
pub fn check_unbiased(
    repetitions: usize,
    truth: [f64; 4],
    mut estimator: impl FnMut() -> [f64; 4],
) -> Result<(), String> {
    let (mut sum, mut squares) = ([0.0; 4], [0.0; 4]);
    for _ in 0..repetitions {
        let estimate = estimator();
        for n in 0..4 {
            sum[n] += estimate[n] - truth[n];
            squares[n] += (estimate[n] - truth[n]).powi(2);
        }
    }
    let count = repetitions as f64;
    for n in 0..4 {
        let bias = sum[n] / count;
        let se = ((squares[n] / count - bias * bias) / count).max(0.0).sqrt() + 1e-12;
        if bias.abs() > 4.0 * se {
            return Err(format!("component {}: off by {bias:.5}, {:.1} standard errors", n + 1, bias / se));
        }
    }
    Ok(())
}

/// Ok if the intervals estimate ± 1.96·SE cover the truth in 90 to 98 % of the repetitions, in every
/// component. `experiment` gives (estimate, SE) by component for a repetition.
pub fn check_coverage<const C: usize>(
    repetitions: usize,
    truth: [f64; C],
    mut experiment: impl FnMut(usize) -> [(f64, f64); C],
) -> Result<[f64; C], String> {
    let mut covered = [0.0; C];
    for repetition in 0..repetitions {
        for (n, (estimate, se)) in experiment(repetition).into_iter().enumerate() {
            covered[n] += f64::from((estimate - truth[n]).abs() <= 1.96 * se) / repetitions as f64;
        }
    }
    match covered.iter().position(|c| !(0.90..=0.98).contains(c)) {
        Some(n) => Err(format!("component {}: covers {:.1} %", n + 1, 100.0 * covered[n])),
        None => Ok(covered),
    }
}

/// Pearson's test of counts against probabilities, refused at p < 1e-4 (Wilson and Hilferty's
/// approximation of the quantile).
pub fn check_chi_squared(observed: &[usize], probabilities: &[f64]) -> Result<(), String> {
    let total: usize = observed.iter().sum();
    let mut chi = 0.0;
    let mut cells = 0.0;
    for (&count, &p) in observed.iter().zip(probabilities) {
        let expected = p * total as f64;
        if expected == 0.0 && count > 0 {
            return Err(format!("{count} samples where none are possible"));
        } else if expected > 0.0 {
            chi += (count as f64 - expected).powi(2) / expected;
            cells += 1.0;
        }
    }
    let freedom: f64 = cells - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    let critical = freedom * (1.0 - spread + 3.719 * spread.sqrt()).powi(3);
    if chi <= critical { Ok(()) } else { Err(format!("chi² {chi:.1} > {critical:.1} ({freedom} dof)")) }
}

/// P^{exponent} / Z.
pub fn sharpened(p: &[f64], exponent: f64) -> Vec<f64> {
    let powers: Vec<f64> = p.iter().map(|p| p.powf(exponent)).collect();
    let z: f64 = powers.iter().sum();
    powers.iter().map(|p| p / z).collect()
}

/// Draws an index from a distribution.
pub fn pick(p: &[f64], stream: &mut Stream) -> usize {
    let mut left = stream.uniform();
    for (i, p) in p.iter().enumerate() {
        left -= p;
        if left < 0.0 {
            return i;
        }
    }
    p.len() - 1
}
