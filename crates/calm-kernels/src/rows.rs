//! Parallel loops over fixed blocks of rows that fill new buffers, and the sums over rows that go
//! with them. The block size is a function of the shape alone and blocks are combined in order, so
//! results do not depend on the number of threads.
//!
//! A new buffer is touched for the first time inside the task that fills it: no pass that clears it
//! beforehand on one thread.

use crate::products::Products;
use crate::simd::{self, Mat, Real, dispatch};
use rayon::prelude::*;
use std::mem::MaybeUninit;

/// Clears a part of a buffer's spare capacity and hands it out as initialised.
fn clear<T: Real>(part: &mut [MaybeUninit<T>]) -> &mut [T] {
    for slot in part.iter_mut() {
        slot.write(T::ZERO);
    }
    // SAFETY: every element has just been written, and `MaybeUninit<T>` has the layout of `T`.
    unsafe { &mut *(std::ptr::from_mut(part) as *mut [T]) }
}

/// A `[rows, cols]` buffer whose blocks of `block` rows are filled by `f(first row, block)` in
/// parallel; a block comes cleared to zero.
pub(crate) fn fill<T: Real>(
    rows: usize,
    cols: usize,
    block: usize,
    f: impl Fn(usize, &mut [T]) + Sync,
) -> Vec<T> {
    let len = rows * cols;
    let mut out = Vec::with_capacity(len);
    let spare = &mut out.spare_capacity_mut()[..len];
    if len > 0 && rows <= block {
        f(0, clear(spare));
    } else if len > 0 {
        spare.par_chunks_mut(block * cols).enumerate().for_each(|(i, part)| f(i * block, clear(part)));
    }
    // SAFETY: the capacity is at least `len`, and the chunks that `clear` initialised cover `0..len`.
    unsafe { out.set_len(len) };
    out
}

/// Two buffers filled together by `f(block number, block of the first, block of the second)`: each is
/// given as (elements in all, elements in a block) and both have the same number of blocks, or the
/// second is empty (then `f` gets an empty slice for it).
pub(crate) fn fill_two<T: Real>(
    (len, block): (usize, usize),
    (len2, block2): (usize, usize),
    f: impl Fn(usize, &mut [T], &mut [T]) + Sync,
) -> (Vec<T>, Vec<T>) {
    let (block, block2) = (block.max(1), block2.max(1));
    let blocks = len.div_ceil(block);
    assert!(len2 == 0 || len2.div_ceil(block2) == blocks, "two buffers with different numbers of blocks");
    let mut first: Vec<T> = Vec::with_capacity(len);
    let mut second: Vec<T> = Vec::with_capacity(len2);
    let a = &mut first.spare_capacity_mut()[..len];
    let b = &mut second.spare_capacity_mut()[..len2];
    if len2 == 0 {
        a.par_chunks_mut(block).enumerate().for_each(|(i, a)| f(i, clear(a), &mut []));
    } else if blocks == 1 {
        f(0, clear(a), clear(b));
    } else {
        a.par_chunks_mut(block)
            .zip(b.par_chunks_mut(block2))
            .enumerate()
            .for_each(|(i, (a, b))| f(i, clear(a), clear(b)));
    }
    // SAFETY: the capacities are at least `len` and `len2`; `clear` has initialised every chunk, and as
    // both buffers have the same number of chunks (or none in the second) that is every element.
    unsafe {
        first.set_len(len);
        second.set_len(len2);
    }
    (first, second)
}

/// The product `a b` as a new row-major buffer of `len` = a.rows * b.cols elements.
pub(crate) fn product<T: Real>(products: Products, len: usize, a: Mat<'_, T>, b: Mat<'_, T>) -> Vec<T> {
    let mut out: Vec<T> = Vec::with_capacity(len);
    let spare = &mut out.spare_capacity_mut()[..len];
    // SAFETY: the memory is exclusively ours and aligned; `matmul` checks that it has a.rows * b.cols
    // elements and, not accumulating, writes each of them before it reads any (f32 and f64 have no
    // invalid bit patterns and no drop).
    let dst = unsafe { &mut *(std::ptr::from_mut(spare) as *mut [T]) };
    products.matmul(dst, a, b, false, gemm::Parallelism::Rayon(0));
    // SAFETY: `matmul` has written all `len` elements.
    unsafe { out.set_len(len) };
    out
}

/// A copy of `x`.
pub(crate) fn copy<T: Real>(x: &[T]) -> Vec<T> {
    fill(x.len(), 1, simd::rows_per_block(1), |first, out| out.copy_from_slice(&x[first..first + out.len()]))
}

/// `[rows, D]`, each a copy of `row` `[D]`.
pub(crate) fn repeat<T: Real>(row: &[T], rows: usize) -> Vec<T> {
    let d = row.len().max(1);
    fill(rows, row.len(), simd::rows_per_block(d), |_, out| {
        out.chunks_exact_mut(d).for_each(|out| out.copy_from_slice(row));
    })
}

/// x_i += y_i
pub(crate) fn add_to<T: Real>(x: &mut [T], y: &[T]) {
    let block = simd::rows_per_block(1);
    x.par_chunks_mut(block).zip(y.par_chunks(block)).for_each(|(x, y)| {
        dispatch(
            #[inline(always)]
            || add_assign(x, y),
        );
    });
}

/// x_r += row for every row of x `[R, D]`.
pub(crate) fn add_row<T: Real>(x: &mut [T], row: &[T]) {
    let d = row.len().max(1);
    x.par_chunks_mut(simd::rows_per_block(d) * d).for_each(|x| {
        dispatch(
            #[inline(always)]
            || x.chunks_exact_mut(d).for_each(|x| add_assign(x, row)),
        );
    });
}

/// Rows in one block of a sum over rows: few enough that a block's running sums stay accurate.
pub(crate) fn sum_block(cols: usize) -> usize {
    simd::rows_per_block(cols).min(256)
}

/// out_i += x_i
#[inline(always)]
pub(crate) fn add_assign<T: Real>(out: &mut [T], x: &[T]) {
    for (o, &v) in out.iter_mut().zip(x) {
        *o += v;
    }
}

/// Sums of the columns of `[rows, cols]`: each block of rows by itself, then the blocks in order.
pub(crate) fn column_sums<T: Real>(x: &[T], cols: usize) -> Vec<T> {
    if cols == 0 {
        return Vec::new();
    }
    let block = sum_block(cols);
    let blocks = (x.len() / cols).div_ceil(block);
    let partial = fill(blocks, cols, 1, |i, out| {
        let rows = &x[i * block * cols..((i + 1) * block * cols).min(x.len())];
        dispatch(
            #[inline(always)]
            || {
                for row in rows.chunks_exact(cols) {
                    add_assign(out, row);
                }
            },
        );
    });
    sum_blocks(&partial, cols)
}

/// Sums of the columns of a few partial sums `[blocks, cols]`, in order on one thread.
pub(crate) fn sum_blocks<T: Real>(partial: &[T], cols: usize) -> Vec<T> {
    let mut out = vec![T::ZERO; cols];
    dispatch(
        #[inline(always)]
        || {
            for row in partial.chunks_exact(cols.max(1)) {
                add_assign(&mut out, row);
            }
        },
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_cover_every_row_once_also_the_short_last_one() {
        for rows in [0usize, 1, 3, 4, 9] {
            let want: Vec<f64> = (0..rows * 3).map(|i| i as f64).collect();
            let number = |first: usize, part: &mut [f64]| {
                for (i, v) in part.iter_mut().enumerate() {
                    assert_eq!(*v, 0.0);
                    *v = (first * 3 + i) as f64;
                }
            };
            assert_eq!(fill(rows, 3, 4, number), want);
            let (a, b) = fill_two((rows * 3, 12), (rows, 4), |i, part, other| {
                number(i * 4, part);
                other.fill(i as f64);
            });
            assert_eq!(a, want);
            assert_eq!(b, (0..rows).map(|r| (r / 4) as f64).collect::<Vec<_>>());
            let (a, none) = fill_two((rows * 3, 12), (0, 0), |i, part, _| number(i * 4, part));
            assert_eq!((a, none.len()), (want, 0));
        }
    }

    #[test]
    fn column_sums_add_every_row() {
        let x: Vec<f64> = (0..20_001 * 2).map(|i| (i % 10) as f64).collect();
        let want = [0, 1].map(|c| x.iter().skip(c).step_by(2).sum::<f64>());
        assert_eq!(column_sums(&x, 2), want);
        assert_eq!(column_sums::<f64>(&[], 3), vec![0.0; 3]);
        assert!(column_sums::<f64>(&[], 0).is_empty());
    }

    #[test]
    fn a_product_fills_a_new_buffer() {
        let a = [1.0f32, 2.0, 3.0, 4.0];
        for products in [Products::Fast, Products::Fixed] {
            let square = product(products, 4, Mat::new(&a, 2, 2), Mat::new(&a, 2, 2).t());
            assert_eq!(square, [5.0, 11.0, 11.0, 25.0]);
            assert_eq!(product(products, 4, Mat::new(&a[..0], 2, 0), Mat::new(&a[..0], 0, 2)), [0.0; 4]);
        }
    }
}
