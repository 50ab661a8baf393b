//! A matrix product whose every number is one sum in one order, so that nothing but its own row and column can change a
//! bit of it: no vector width, no number of threads, and no number of other rows.
//!
//! ```text
//! c_ij = ((a_i0 b_0j + a_i1 b_1j) + a_i2 b_2j) + …      begun with 0, or with what stands there
//! ```
//! It is vectorised over j: columns of b are copied to panels of [`WIDTH`], and [`ROWS`] rows go through a panel
//! together. No multiplication is fused with an addition. Zeros behind the end of a sum change nothing either: attention
//! over a longer row of keys, of which the last have no weight, has the same bits.

use crate::simd::{Mat, Real, dispatch, matmul};
use rayon::prelude::*;

/// How matrix products are computed on the CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Products {
    /// As fast as this processor can: sums are cut as its registers and the sizes have it, and multiplications are fused
    /// with additions.
    #[default]
    Fast,
    /// In one order: the same bits on every processor, for any number of threads and of other rows.
    Fixed,
}

impl Products {
    /// [`matmul`] in this way.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn matmul<T: Real>(
        self,
        dst: &mut [T],
        a: Mat<'_, T>,
        b: Mat<'_, T>,
        accumulate: bool,
        parallelism: gemm::Parallelism,
    ) {
        if self == Self::Fast || a.rows() == 0 || b.columns() == 0 || a.columns() == 0 {
            return matmul(dst, a, b, accumulate, parallelism);
        }
        assert_eq!(a.columns(), b.rows(), "the inner sizes of a matrix product differ");
        assert_eq!(
            dst.len(),
            a.rows() * b.columns(),
            "the destination of a matrix product has the wrong size"
        );
        let parallel = !matches!(parallelism, gemm::Parallelism::None);
        product(dst, a, b, accumulate, parallel);
    }
}

/// Columns of a panel; one AVX-512 or two AVX2 registers of `f32`.
const WIDTH: usize = 16;
/// Rows whose sums stand in registers together.
const ROWS: usize = 6;
/// Multiplications from which on a product is worth several threads.
const PARALLEL: usize = 1 << 16;

/// `dst = a b`, or `dst += a b`. The caller has checked the sizes, none of which is 0.
fn product<T: Real>(dst: &mut [T], a: Mat<'_, T>, b: Mat<'_, T>, accumulate: bool, parallel: bool) {
    let panel = a.columns() * WIDTH;
    let mut packed = vec![T::ZERO; b.columns().div_ceil(WIDTH) * panel];
    let block = ROWS * b.columns();
    if parallel && a.rows() * b.columns() * a.columns() >= PARALLEL {
        packed.par_chunks_mut(panel).enumerate().for_each(|(i, into)| pack(b, i * WIDTH, into));
        let each = dst.par_chunks_mut(block).enumerate();
        each.for_each(|(i, dst)| some_rows(dst, a, i * ROWS, b.columns(), &packed, accumulate));
    } else {
        packed.chunks_mut(panel).enumerate().for_each(|(i, into)| pack(b, i * WIDTH, into));
        for (i, dst) in dst.chunks_mut(block).enumerate() {
            some_rows(dst, a, i * ROWS, b.columns(), &packed, accumulate);
        }
    }
}

/// Columns of b from `first` on, `[inner, WIDTH]`; what is beyond the last column stays 0.
fn pack<T: Real>(b: Mat<'_, T>, first: usize, into: &mut [T]) {
    let columns = WIDTH.min(b.columns() - first);
    let (data, row_stride, col_stride) = b.strides();
    if col_stride == 1 {
        for (k, into) in into.chunks_exact_mut(WIDTH).enumerate() {
            into[..columns].copy_from_slice(&data[k * row_stride + first..][..columns]);
        }
    } else {
        for j in 0..columns {
            let column = data[(first + j) * col_stride..].iter().step_by(row_stride);
            into.iter_mut().skip(j).step_by(WIDTH).zip(column).for_each(|(into, x)| *into = *x);
        }
    }
}

/// Up to [`ROWS`] rows from `first` on, through every panel.
fn some_rows<T: Real>(
    dst: &mut [T],
    a: Mat<'_, T>,
    first: usize,
    columns: usize,
    packed: &[T],
    accumulate: bool,
) {
    let rows = ROWS.min(a.rows() - first);
    // The rows side by side, `[inner, ROWS]`; those that are missing are 0.
    let mut left = vec![[T::ZERO; ROWS]; a.columns()];
    let (data, row_stride, col_stride) = a.strides();
    for r in 0..rows {
        let row = data[(first + r) * row_stride..].iter().step_by(col_stride);
        left.iter_mut().zip(row).for_each(|(left, x)| left[r] = *x);
    }
    dispatch(
        #[inline(always)]
        || {
            for (i, panel) in packed.chunks_exact(a.columns() * WIDTH).enumerate() {
                let (at, n) = (i * WIDTH, WIDTH.min(columns - i * WIDTH));
                let mut sums = [[T::ZERO; WIDTH]; ROWS];
                if accumulate {
                    for (r, sums) in sums.iter_mut().enumerate().take(rows) {
                        sums[..n].copy_from_slice(&dst[r * columns + at..][..n]);
                    }
                }
                sums = add_products(sums, &left, panel);
                for (r, sums) in sums.iter().enumerate().take(rows) {
                    dst[r * columns + at..][..n].copy_from_slice(&sums[..n]);
                }
            }
        },
    );
}

/// Each sum goes on over the inner index, from its start to its end.
#[inline(always)]
fn add_products<T: Real>(
    mut sums: [[T; WIDTH]; ROWS],
    left: &[[T; ROWS]],
    panel: &[T],
) -> [[T; WIDTH]; ROWS] {
    let (right, _) = panel.as_chunks::<WIDTH>();
    for (left, right) in left.iter().zip(right) {
        for (sums, &x) in sums.iter_mut().zip(left) {
            for (sum, &y) in sums.iter_mut().zip(right) {
                *sum += x * y;
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::Products;
    use crate::simd::Mat;
    use gemm::Parallelism;

    fn numbers(n: usize, seed: f32) -> Vec<f32> {
        (0..n).map(|i| ((i as f32 + 1.0) * seed).sin()).collect()
    }

    fn product(a: Mat<'_, f32>, b: Mat<'_, f32>, start: Option<&[f32]>) -> Vec<f32> {
        let mut dst = start.map_or_else(|| vec![f32::NAN; a.rows() * b.columns()], <[f32]>::to_vec);
        Products::Fixed.matmul(&mut dst, a, b, start.is_some(), Parallelism::Rayon(0));
        dst
    }

    #[test]
    fn every_number_is_one_sum_in_order() {
        for (m, k, n) in [(1, 1, 1), (5, 7, 3), (6, 16, 16), (13, 40, 35), (70, 90, 65)] {
            let (a, b) = (numbers(m * k, 0.7), numbers(k * n, 0.3));
            let start = numbers(m * n, 0.9);
            let transposed: Vec<f32> = (0..n * k).map(|i| b[i % k * n + i / k]).collect();
            for (accumulate, begun) in [(false, vec![0.0; m * n]), (true, start.clone())] {
                let mut want = begun;
                for i in 0..m {
                    for j in 0..n {
                        for l in 0..k {
                            want[i * n + j] += a[i * k + l] * b[l * n + j];
                        }
                    }
                }
                let start = accumulate.then_some(&start[..]);
                let plain = product(Mat::new(&a, m, k), Mat::new(&b, k, n), start);
                let through = product(Mat::new(&a, m, k), Mat::new(&transposed, n, k).t(), start);
                for got in [plain, through] {
                    let same = got.iter().zip(&want).all(|(x, y)| x.to_bits() == y.to_bits());
                    assert!(same, "{m} x {k} x {n}");
                }
            }
        }
    }

    #[test]
    fn it_is_a_product() {
        let (m, k, n) = (37, 300, 50);
        let (a, b) = (numbers(m * k, 0.71), numbers(k * n, 0.37));
        let got = product(Mat::new(&a, m, k), Mat::new(&b, k, n), None);
        for i in 0..m {
            for j in 0..n {
                let exact: f64 = (0..k).map(|l| f64::from(a[i * k + l]) * f64::from(b[l * n + j])).sum();
                // Half a unit of the largest partial sum, about 300, for each of 300 additions: far above what is seen.
                assert!((f64::from(got[i * n + j]) - exact).abs() < 1e-4, "{i}, {j}");
            }
        }
    }

    #[test]
    fn neither_other_rows_nor_zeros_behind_nor_threads_change_a_bit() {
        let (m, k, n) = (23, 64, 100);
        let (a, b) = (numbers(m * k, 0.71), numbers(k * n, 0.37));
        let whole = product(Mat::new(&a, m, k), Mat::new(&b, k, n), None);
        for i in 0..m {
            let one = product(Mat::new(&a[i * k..(i + 1) * k], 1, k), Mat::new(&b, k, n), None);
            assert_eq!(one, whole[i * n..(i + 1) * n], "row {i}");
            // The same row before more of b, where it has zeros.
            let longer: Vec<f32> = a[i * k..(i + 1) * k].iter().copied().chain(vec![0.0; 9]).collect();
            let more: Vec<f32> = b.iter().copied().chain(numbers(9 * n, 0.5)).collect();
            assert_eq!(product(Mat::new(&longer, 1, k + 9), Mat::new(&more, k + 9, n), None), one);
        }
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let got = pool.install(|| product(Mat::new(&a, m, k), Mat::new(&b, k, n), None));
            assert_eq!(got, whole, "{threads} threads");
        }
    }
}
