//! The closest pairs among many vectors, without a table of all distances.
//!
//! ```text
//! ‖a − b‖² = ‖a‖² + ‖b‖² − 2 a·b       tiles of products, upper triangle; a tile stays in a core's cache
//! ```
//! **Cancellation.** In f32 the right side is off by up to (D + 8) · 2⁻²⁴ · (‖a‖² + ‖b‖²), which may be more than the distances
//! that are looked for. So it only screens: every pair that might be closer than the best so far is computed again from
//! differences in f64. Vectors are centred first, which makes norms, and so the error, small.

use std::sync::atomic::{AtomicU64, Ordering};

use calm_kernels::simd::{self, Mat, dispatch};
use gemm::Parallelism;
use rayon::prelude::*;
use serde::Serialize;

use super::alternatives::square_distance;

/// Rows and columns of a tile: its products fill 1 MiB.
const TILE: usize = 512;

/// Two vectors.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair {
    /// The one that comes first.
    pub a: usize,
    /// The other.
    pub b: usize,
    /// Between them.
    pub distance: f64,
}

/// A pair with the square of its distance, f64.
type Candidate = (f64, usize, usize);

/// The `count` closest pairs of the vectors `[n, D]`, row-major, the closest first; of equally close ones that which comes first.
pub fn closest(vectors: &[f32], width: usize, count: usize) -> Vec<Pair> {
    let n = vectors.len().checked_div(width).unwrap_or(0);
    if n < 2 || count == 0 {
        return Vec::new();
    }
    let centred = centred(vectors, width);
    let norms: Vec<f64> =
        centred.par_chunks(width).map(|v| v.iter().map(|x| f64::from(*x).powi(2)).sum()).collect();
    let error = (width as f64 + 8.0) * 2f64.powi(-24);
    // The least that ‖b‖² less its part of the error may be.
    let least: Vec<f32> = norms.iter().map(|norm| (norm * (1.0 - error)) as f32).collect();
    let tiles = n.div_ceil(TILE);
    let pairs: Vec<(usize, usize)> = (0..tiles).flat_map(|i| (i..tiles).map(move |j| (i, j))).collect();
    // The square that all of the best so far are below; bits of numbers that are not negative are ordered as they are.
    let bound = AtomicU64::new(f64::INFINITY.to_bits());
    let work = |(products, mut found): (Vec<f32>, Vec<Candidate>), (i, j): &(usize, usize)| {
        let mut products = products;
        let (from, to) = (i * TILE, j * TILE);
        let (rows, columns) = (TILE.min(n - from), TILE.min(n - to));
        let of = |at: usize, n: usize| Mat::new(&centred[at * width..(at + n) * width], n, width);
        products.resize(rows * columns, 0.0);
        simd::matmul(&mut products, of(from, rows), of(to, columns).t(), false, Parallelism::None);
        for (r, products) in products.chunks_exact(columns).enumerate() {
            let a = from + r;
            let skip = if i == j { r + 1 } else { 0 };
            let most = f64::from_bits(bound.load(Ordering::Relaxed)) - norms[a] * (1.0 - error);
            let (products, least) = (&products[skip..], &least[to + skip..to + columns]);
            if f64::from(least_difference(least, products)) > most {
                continue;
            }
            for (c, (product, least)) in products.iter().zip(least).enumerate() {
                if f64::from(least - 2.0 * product) <= most {
                    let b = to + skip + c;
                    let own = |v: usize| &vectors[v * width..(v + 1) * width];
                    insert(&mut found, (square_distance(own(a), own(b)), a, b), count);
                }
            }
            if found.len() == count {
                bound.fetch_min(found[count - 1].0.to_bits(), Ordering::Relaxed);
            }
        }
        (products, found)
    };
    let all = pairs.par_iter().fold(|| (Vec::new(), Vec::new()), work).map(|(_, found)| found).reduce(
        Vec::new,
        |mut a, b| {
            b.into_iter().for_each(|candidate| insert(&mut a, candidate, count));
            a
        },
    );
    all.into_iter().map(|(square, a, b)| Pair { a, b, distance: square.sqrt() }).collect()
}

/// Pairs of `n`.
pub fn pairs_of(n: usize) -> u64 {
    let n = n as u64;
    n * n.saturating_sub(1) / 2
}

/// Keeps the `count` least, in order.
fn insert(found: &mut Vec<Candidate>, candidate: Candidate, count: usize) {
    let order = |a: &Candidate, b: &Candidate| a.0.total_cmp(&b.0).then((a.1, a.2).cmp(&(b.1, b.2)));
    let at = found.partition_point(|other| order(other, &candidate).is_lt());
    if at < count {
        found.insert(at, candidate);
        found.truncate(count);
    }
}

/// The least of ‖b‖² − 2 a·b.
fn least_difference(least: &[f32], products: &[f32]) -> f32 {
    const LANES: usize = 16;
    dispatch(
        #[inline(always)]
        || {
            let mut lanes = [f32::INFINITY; LANES];
            let (l, l_rest) = least.as_chunks::<LANES>();
            let (p, p_rest) = products.as_chunks::<LANES>();
            for (l, p) in l.iter().zip(p) {
                for i in 0..LANES {
                    let difference = l[i] - 2.0 * p[i];
                    lanes[i] = if difference < lanes[i] { difference } else { lanes[i] };
                }
            }
            let rest = l_rest.iter().zip(p_rest).map(|(l, p)| l - 2.0 * p);
            lanes.into_iter().chain(rest).fold(f32::INFINITY, f32::min)
        },
    )
}

/// All less their mean, which changes no distance by more than rounding to f32 does.
fn centred(vectors: &[f32], width: usize) -> Vec<f32> {
    let mut mean = vec![0f64; width];
    for vector in vectors.chunks_exact(width) {
        mean.iter_mut().zip(vector).for_each(|(mean, x)| *mean += f64::from(*x));
    }
    let n = (vectors.len() / width) as f64;
    let mean: Vec<f32> = mean.iter().map(|x| (x / n) as f32).collect();
    let mut out = vectors.to_vec();
    out.par_chunks_mut(width).for_each(|vector| {
        vector.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
    });
    out
}

#[cfg(test)]
mod tests {
    use super::super::alternatives::distance;
    use super::*;
    use calm_nn::{NoiseKey, RowId, philox};

    fn vectors(n: usize, width: usize, size: f32) -> Vec<f32> {
        let rows: Vec<RowId> = (0..n as u32).map(|example| RowId { example, position: 0 }).collect();
        let mut all = philox::normal(NoiseKey::new(4, "test", 0), &rows, 1, width);
        all.iter_mut().for_each(|x| *x *= size);
        all
    }

    /// Every pair, in f64.
    fn plain(vectors: &[f32], width: usize, count: usize) -> Vec<Pair> {
        let n = vectors.len() / width;
        let of = |v: usize| &vectors[v * width..(v + 1) * width];
        let mut all: Vec<Pair> = (0..n)
            .flat_map(|a| (a + 1..n).map(move |b| (a, b)))
            .map(|(a, b)| Pair { a, b, distance: distance(of(a), of(b)) })
            .collect();
        all.sort_by(|x, y| x.distance.total_cmp(&y.distance).then((x.a, x.b).cmp(&(y.a, y.b))));
        all.truncate(count);
        all
    }

    #[test]
    fn blocked_distances_are_the_plain_ones() {
        for (n, width, count) in [(2, 3, 10), (700, 5, 10), (1100, 17, 25), (513, 64, 1)] {
            let all = vectors(n, width, 1.0);
            assert_eq!(closest(&all, width, count), plain(&all, width, count), "{n} of {width}");
        }
        assert!(closest(&[1.0, 2.0], 2, 3).is_empty() && closest(&[], 4, 3).is_empty());
    }

    #[test]
    fn two_that_nearly_meet_are_found_among_large_ones() {
        // Norms around 50, and off the origin: squares of 2,500 and more, whose last bit is 2e-4.
        let (n, width) = (1500, 100);
        let mut all = vectors(n, width, 5.0);
        all.iter_mut().for_each(|x| *x += 20.0);
        for (a, b, off) in [(3, 1400, 1e-5f32), (900, 77, 3e-5)] {
            let copy = all[a * width..(a + 1) * width].to_vec();
            all[b * width..(b + 1) * width].copy_from_slice(&copy);
            all[b * width] += off;
        }
        let found = closest(&all, width, 3);
        assert_eq!(found, plain(&all, width, 3));
        assert!(found[0].distance < 2e-5 && found[1].distance < 5e-5 && found[2].distance > 1.0, "{found:?}");
        assert_eq!([(found[0].a, found[0].b), (found[1].a, found[1].b)], [(3, 1400), (77, 900)]);
    }

    #[test]
    fn many_that_nearly_meet_are_told_apart_however_few_are_asked_for() {
        // Distances far below what products in 32 bits can tell: without a margin pairs are lost once some are known.
        let (n, width) = (1500, 100);
        let mut all = vectors(n, width, 5.0);
        all.iter_mut().for_each(|x| *x += 20.0);
        for pair in 0..12 {
            let (a, b) = (pair * 120, pair * 120 + 61);
            all.copy_within(a * width..(a + 1) * width, b * width);
            all[b * width] += 1e-5 * (1 + pair) as f32;
        }
        for count in [1, 2, 5] {
            let found = closest(&all, width, count);
            assert_eq!(found, plain(&all, width, count), "{count}");
            assert!(found.iter().all(|pair| pair.distance < 1e-3), "{found:?}");
        }
    }
}
