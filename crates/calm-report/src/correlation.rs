//! How closely two numbers move together: Pearson (along a line) and Spearman (in the same order).

/// Pearson's correlation of the pairs,
///
/// ```text
/// r = Σ (x − mean x)(y − mean y) / sqrt(Σ (x − mean x)² · Σ (y − mean y)²)
/// ```
///
/// between -1 and 1. `None` where it is undefined: fewer than two pairs, one side constant, or a number that
/// is not finite.
pub fn pearson(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.len() < 2 || pairs.iter().any(|(x, y)| !x.is_finite() || !y.is_finite()) {
        return None;
    }
    let n = pairs.len() as f64;
    let mean_x = pairs.iter().map(|p| p.0).sum::<f64>() / n;
    let mean_y = pairs.iter().map(|p| p.1).sum::<f64>() / n;
    let (mut xx, mut yy, mut xy) = (0.0, 0.0, 0.0);
    for (x, y) in pairs {
        let (dx, dy) = (x - mean_x, y - mean_y);
        xx += dx * dx;
        yy += dy * dy;
        xy += dx * dy;
    }
    // A constant side may leave rounding noise around its mean; anything below it is not variation.
    let noise = |sum: f64, mean: f64| sum <= n * (mean * f64::EPSILON).powi(2) * 4.0;
    if noise(xx, mean_x) || noise(yy, mean_y) {
        return None;
    }
    Some((xy / (xx.sqrt() * yy.sqrt())).clamp(-1.0, 1.0))
}

/// Spearman's rank correlation: Pearson's correlation of the ranks, equal numbers sharing the mean of their
/// ranks. `None` where it is undefined, as for [`pearson`].
pub fn spearman(pairs: &[(f64, f64)]) -> Option<f64> {
    if pairs.iter().any(|(x, y)| !x.is_finite() || !y.is_finite()) {
        return None;
    }
    let x = ranks(pairs.iter().map(|p| p.0));
    let y = ranks(pairs.iter().map(|p| p.1));
    pearson(&x.into_iter().zip(y).collect::<Vec<_>>())
}

/// Rank of each number, from 1; equal numbers get the mean of the ranks they occupy together.
fn ranks(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let values: Vec<f64> = values.collect();
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut start = 0;
    while start < order.len() {
        let tied = order[start..].iter().take_while(|&&i| values[i] == values[order[start]]).count();
        // Ranks start + 1 ..= start + tied, so their mean is start + (tied + 1) / 2.
        for &i in &order[start..start + tied] {
            ranks[i] = start as f64 + (tied as f64 + 1.0) / 2.0;
        }
        start += tied;
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(value: Option<f64>, expected: f64) {
        let value = value.expect("defined");
        assert!((value - expected).abs() < 1e-12, "{value} instead of {expected}");
    }

    fn pairs(x: &[f64], y: &[f64]) -> Vec<(f64, f64)> {
        x.iter().copied().zip(y.iter().copied()).collect()
    }

    #[test]
    fn first_of_anscombes_quartet_has_its_published_correlation() {
        let x = [10.0, 8.0, 13.0, 9.0, 11.0, 14.0, 6.0, 4.0, 12.0, 7.0, 5.0];
        let y = [8.04, 6.95, 7.58, 8.81, 8.33, 9.96, 7.24, 4.26, 10.84, 4.82, 5.68];
        let r = pearson(&pairs(&x, &y)).expect("defined");
        assert!((r - 0.81642).abs() < 5e-6, "{r}");
        // Without ties Spearman is 1 - 6 Σd² / (n (n² - 1)), here with Σd² = 40.
        close(spearman(&pairs(&x, &y)), 1.0 - 6.0 * 40.0 / (11.0 * 120.0));
    }

    #[test]
    fn lines_correlate_perfectly_and_monotone_curves_only_in_rank() {
        let x = [1.0, 2.0, 3.0, 4.0, 5.0];
        close(pearson(&pairs(&x, &[3.0, 5.0, 7.0, 9.0, 11.0])), 1.0);
        close(pearson(&pairs(&x, &[-3.0, -5.0, -7.0, -9.0, -11.0])), -1.0);
        let cubes = pairs(&x, &x.map(|x| -x.powi(3)));
        close(spearman(&cubes), -1.0);
        assert!(pearson(&cubes).expect("defined") > -0.95);
    }

    #[test]
    fn ties_share_the_mean_of_their_ranks() {
        assert_eq!(ranks([30.0, 10.0, 20.0, 20.0, 20.0].into_iter()), [5.0, 1.0, 3.0, 3.0, 3.0]);
        // Ranks (1, 2.5, 2.5, 4) against (1, 3, 2, 4): 4.5 / sqrt(4.5 · 5).
        close(spearman(&pairs(&[1.0, 2.0, 2.0, 3.0], &[1.0, 3.0, 2.0, 4.0])), 4.5 / 22.5_f64.sqrt());
        // 0 and -0 are the same number.
        assert_eq!(ranks([0.0, -0.0].into_iter()), [1.5, 1.5]);
    }

    #[test]
    fn undefined_correlations_are_none() {
        for correlation in [pearson, spearman] {
            assert_eq!(correlation(&[]), None);
            assert_eq!(correlation(&[(1.0, 2.0)]), None);
            assert_eq!(correlation(&[(0.1, 1.0), (0.1, 2.0), (0.1, 3.0)]), None);
            assert_eq!(correlation(&[(1.0, 0.1), (2.0, 0.1), (3.0, 0.1)]), None);
            assert_eq!(correlation(&[(1.0, f64::NAN), (2.0, 2.0)]), None);
        }
    }

    #[test]
    fn small_differences_of_large_numbers_still_correlate() {
        close(pearson(&[(1e9 + 1.0, 1.0), (1e9 + 2.0, 2.0), (1e9 + 3.0, 3.0)]), 1.0);
    }
}
