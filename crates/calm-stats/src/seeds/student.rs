//! Quantiles of Student's t.
//!
//! Written out here because it is short, and the inverse of the library at hand is not safe for every
//! number of degrees of freedom: statrs 0.19 loses digits from 10⁵ on, is 7 % off at 10⁷, and does not
//! return for 0.5. Its values at ordinary ones are among the tests.

use std::f64::consts::PI;

/// The t with P(T ≤ t) = `probability`, for 1/2 ≤ `probability` < 1 and `freedom` of about 1 and more.
///
/// P(|T| ≤ t) is concave in t ≥ 0, so Newton's steps from 0 approach the solution from below and cannot
/// overshoot.
pub(super) fn quantile(probability: f64, freedom: f64) -> f64 {
    // Relative distance to the normal quantile: about 1/ν.
    let freedom = freedom.min(1e9);
    let central = 2.0 * probability - 1.0;
    let gamma = gamma_ratio(freedom / 2.0);
    let mut t = 0.0;
    for _ in 0..100 {
        let density =
            2.0 * gamma / (freedom * PI).sqrt() * (-0.5 * (freedom + 1.0) * (t * t / freedom).ln_1p()).exp();
        let step = (central - within(t, freedom, gamma)) / density;
        t += step;
        // Also at a negative step, which is rounding.
        if step <= 1e-15 * t {
            break;
        }
    }
    t
}

/// P(|T| ≤ t): the regularised incomplete beta function I_y(1/2, a), a = ν/2, y = t²/(ν + t²), by its
/// series (Abramowitz and Stegun 26.5.4), whose terms are all positive:
///
/// ```text
/// I_y(1/2, a) = 2/√π · Γ(a+1/2)/Γ(a) · √y (1−y)^a · Σ_n Π_{k<n} y (a+1/2+k)/(3/2+k)
/// ```
fn within(t: f64, freedom: f64, gamma: f64) -> f64 {
    let a = 0.5 * freedom;
    let y = t * t / (freedom + t * t);
    let (mut sum, mut term, mut k) = (0.0, 1.0, 0.0);
    while term > 1e-17 * sum {
        sum += term;
        term *= y * (a + 0.5 + k) / (1.5 + k);
        k += 1.0;
    }
    2.0 / PI.sqrt() * gamma * y.sqrt() * (-a * (t * t / freedom).ln_1p()).exp() * sum
}

/// Γ(a+1/2)/Γ(a): the asymptotic series at a + m ≥ 100, where the first term left out is below 10⁻¹⁴, and
/// Γ(x+1) = xΓ(x) back from there.
fn gamma_ratio(a: f64) -> f64 {
    let (mut x, mut product) = (a, 1.0);
    while x < 100.0 {
        product *= x / (x + 0.5);
        x += 1.0;
    }
    let series = [-1.0 / 8.0, 1.0 / 128.0, 5.0 / 1024.0, -21.0 / 32768.0, -399.0 / 262_144.0];
    let series = series.iter().rev().fold(0.0, |sum, c| (sum + c) / x);
    product * x.sqrt() * (1.0 + series)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(freedom: f64, probability: f64, expected: f64, tolerance: f64) {
        let t = quantile(probability, freedom);
        let off = t / expected - 1.0;
        assert!(off.abs() < tolerance, "ν = {freedom}, p = {probability}: {t} for {expected}, {off:e}");
    }

    #[test]
    fn quantiles_with_a_closed_form_are_met() {
        // Far out in the tail of few degrees of freedom the rounding of 1 − p counts: 2e-11 at 0.995.
        for p in [0.6, 0.75, 0.8, 0.9, 0.975, 0.995] {
            let alpha = 4.0 * p * (1.0 - p);
            close(1.0, p, (PI * (p - 0.5)).tan(), 1e-10);
            close(2.0, p, (2.0 * p - 1.0) / (2.0 * p * (1.0 - p)).sqrt(), 1e-10);
            close(4.0, p, 2.0 * ((alpha.sqrt().acos() / 3.0).cos() / alpha.sqrt() - 1.0).sqrt(), 1e-10);
        }
        assert_eq!(quantile(0.5, 3.0), 0.0);
    }

    #[test]
    fn quantiles_are_those_of_another_library() {
        // statrs 0.19, checked there by its own distribution function.
        for (freedom, two_sided, power) in [
            (1.3, 7.500529325562017, 1.216250263113108),
            (2.5, 3.574654842003685, 1.010163874722236),
            (7.7, 2.32173675283086, 0.890827082496603),
            (39.0, 2.022690920036388, 0.85093501992026),
            (42.5, 2.017378546921456, 0.850160626209099),
        ] {
            close(freedom, 0.975, two_sided, 1e-12);
            close(freedom, 0.8, power, 1e-12);
        }
    }

    #[test]
    fn many_degrees_of_freedom_give_the_normal_quantile() {
        // z + (z³+z)/4ν + (5z⁵+16z³+3z)/96ν² (Abramowitz and Stegun 26.7.5).
        for (p, z) in [(0.975, 1.959963984540054f64), (0.8, 0.8416212335729143)] {
            for freedom in [1e3, 1e4, 1e6, 1e9] {
                let second = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * freedom * freedom);
                close(freedom, p, z + (z.powi(3) + z) / (4.0 * freedom) + second, 2e-9);
            }
            close(f64::INFINITY, p, z, 2e-9);
        }
    }
}
