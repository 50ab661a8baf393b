//! The argmax of products with a table, screened in 8 bits and decided in single precision.
//!
//! Rows h `[D]` and table rows e_v are rounded to 8 bits, h ≈ s·q, e_v ≈ s_v·q_v with s = max|h|/127. The
//! integer products q·q_v cost a quarter of a matrix product in `f32` (AVX-512 VNNI), and
//!
//! ```text
//! |h·e_v − s·s_v·(q·q_v)| ≤ s/2·‖e_v‖₁ + s_v/2·‖s q‖₁
//! ```
//!
//! so that only ids whose upper bound reaches the largest lower bound can win: a handful, whose products
//! are computed in `f32`. The result is the argmax of these, not an approximation. Integer sums do not
//! depend on their order: the same result for any number of threads.

use crate::simd::{LANES, dispatch, dot, fold_max};
use rayon::prelude::*;

/// Ids side by side in one block of the table: four AVX-512 registers of sums.
const IDS: usize = 64;
/// Rows whose sums stand in registers together.
const ROWS: usize = 6;
/// Rows that one task takes through the whole table.
const TASK: usize = 48;
/// Rows from which on [`crate::tied_argmax`] screens on the CPU, where the processor can: fewer do not pay for rounding
/// the table.
pub const SCREENED_ROWS: usize = 64;
/// Magnitudes outside are left to the plain product, so that no scale over- or underflows.
const MAGNITUDES: std::ops::Range<f32> = 1e-15..1e15;

/// Whether this processor has the instructions.
fn supported() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Whether this processor has the instructions, and `rows` are enough.
pub(crate) fn pays(rows: usize) -> bool {
    rows >= SCREENED_ROWS && supported()
}

/// The table `[V, D]` in 8 bits, in blocks of 64 ids: `[V/64, D/4, 64, 4]`.
struct Table<'a> {
    exact: &'a [f32],
    d: usize,
    v: usize,
    /// q_v + 128.
    blocks: Vec<u8>,
    /// s_v and ‖e_v‖₁; beyond V the norm is infinite, so that no bound comes from there.
    scale: Vec<f32>,
    sum: Vec<f32>,
}

/// A rounded row of hidden states.
struct Row {
    /// q, four to a word.
    q: Vec<i32>,
    /// s; None if the row is not within [`MAGNITUDES`].
    scale: Option<f32>,
    /// Σ q
    total: i32,
    /// Factors of ‖e_v‖₁ and of s_v in the bound.
    bound: [f32; 2],
}

/// Largest magnitude; NaN if an element is.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    let numbers = x.iter().fold(true, |all, v| all & !v.is_nan());
    let most = x.iter().fold(0.0, |m: f32, v| if v.abs() > m { v.abs() } else { m });
    if numbers { most } else { f32::NAN }
}

/// Groups of four numbers in D, the last filled up.
fn groups(d: usize) -> usize {
    d.div_ceil(4)
}

impl<'a> Table<'a> {
    /// None if an element is no number, or a row is too large or too small for its scale.
    fn new(exact: &'a [f32], v: usize, d: usize) -> Option<Self> {
        let (padded, width) = (v.next_multiple_of(IDS), groups(d) * 4);
        let (mut blocks, mut scale) = (vec![0; padded * width], vec![0.0; padded]);
        let mut sum = vec![f32::INFINITY; padded];
        let parts = blocks.par_chunks_mut(IDS * width);
        let numbers = scale.par_chunks_mut(IDS).zip(sum.par_chunks_mut(IDS));
        let rows = exact.par_chunks(IDS * d);
        let fits = parts.zip(numbers).zip(rows).map(|((block, (scale, sum)), rows)| {
            dispatch(
                #[inline(always)]
                || {
                    let mut fits = true;
                    for (i, row) in rows.chunks_exact(d).enumerate() {
                        let most = largest(row);
                        fits &= most == 0.0 || MAGNITUDES.contains(&most);
                        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
                        (scale[i], sum[i]) = (most / 127.0, row.iter().map(|x| x.abs()).sum());
                        for (j, x) in row.iter().enumerate() {
                            let q = (x * inverse).round_ties_even() as i32;
                            block[(j / 4 * IDS + i) * 4 + j % 4] = (q + 128) as u8;
                        }
                    }
                    fits
                },
            )
        });
        let fits = fits.reduce(|| true, |a, b| a && b);
        fits.then_some(Self { exact, d, v, blocks, scale, sum })
    }

    fn round(&self, h: &[f32]) -> Row {
        let (mut q, mut total, mut magnitude) = (vec![0i32; groups(self.d)], 0, 0);
        let most = dispatch(
            #[inline(always)]
            || {
                let most = largest(h);
                let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
                for (j, x) in h.iter().enumerate() {
                    let value = (x * inverse).round_ties_even() as i32;
                    total += value;
                    magnitude += value.abs();
                    q[j / 4] |= ((value as u8 as u32) << (8 * (j % 4))) as i32;
                }
                most
            },
        );
        let scale = most / 127.0;
        // Room for the roundings of the scales, of the bound itself, and of the products in `f32`, whose
        // error is at most D·2⁻²⁴ of Σ|h||e|.
        let products = self.d as f32 * most * f32::EPSILON;
        let bound = [0.501 * scale + products, 0.501 * scale * magnitude as f32];
        Row { q, scale: MAGNITUDES.contains(&most).then_some(scale), total, bound }
    }

    /// The winner among `ids`: the lowest of equals; NaN never wins.
    fn decide(&self, h: &[f32], ids: impl Iterator<Item = usize>) -> u32 {
        let mut best = (0, f32::NEG_INFINITY);
        dispatch(
            #[inline(always)]
            || {
                for id in ids {
                    let product = dot(h, &self.exact[id * self.d..][..self.d]);
                    if product > best.1 {
                        best = (id, product);
                    }
                }
            },
        );
        best.0 as u32
    }
}

/// What is known of a row while the blocks go by.
#[derive(Clone, Default)]
struct Search {
    /// Largest lower bound so far.
    floor: f32,
    /// Ids that could win when they came, with their upper bounds.
    candidates: Vec<(u32, f32)>,
}

impl Search {
    /// Looks at the integer sums of a block.
    #[inline(always)]
    fn block(&mut self, sums: &[i32; IDS], row: &Row, first: usize, table: &Table<'_>) {
        let Some(scale) = row.scale else { return };
        let scales: &[f32; IDS] = table.scale[first..first + IDS].try_into().unwrap_or(&[0.0; IDS]);
        let norms: &[f32; IDS] = table.sum[first..first + IDS].try_into().unwrap_or(&[0.0; IDS]);
        let mut upper = [0.0f32; IDS];
        let (mut floors, mut tops) = ([self.floor; LANES], [f32::NEG_INFINITY; LANES]);
        for at in (0..IDS).step_by(LANES) {
            for lane in 0..LANES {
                let i = at + lane;
                let about = (sums[i] - 128 * row.total) as f32 * (scale * scales[i]);
                let bound = norms[i] * row.bound[0] + scales[i] * row.bound[1];
                let lower = about - bound;
                upper[i] = about + bound;
                floors[lane] = if lower > floors[lane] { lower } else { floors[lane] };
                tops[lane] = if upper[i] > tops[lane] { upper[i] } else { tops[lane] };
            }
        }
        let (floor, top) = (fold_max(floors), fold_max(tops));
        self.floor = floor;
        if top >= floor {
            let ids = (first..table.v.min(first + IDS)).zip(upper);
            self.candidates.extend(ids.filter(|(_, u)| *u >= floor).map(|(id, u)| (id as u32, u)));
        }
    }
}

/// `sums[row][id] += Σ u8·i8` of a block of 64 ids for R rows.
///
/// # Safety
/// The processor must have AVX-512 F and VNNI.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn products<const R: usize>(block: &[u8], rows: &[&[i32]; R], sums: &mut [[i32; IDS]; R]) {
    use std::arch::x86_64::{
        _mm512_dpbusd_epi32, _mm512_loadu_si512, _mm512_set1_epi32, _mm512_setzero_si512, _mm512_storeu_si512,
    };
    let mut acc = [[_mm512_setzero_si512(); 4]; R];
    for (g, group) in block.as_chunks::<{ IDS * 4 }>().0.iter().enumerate() {
        let (registers, _) = group.as_chunks::<64>();
        // SAFETY: each register is 64 bytes of `group`; the load needs no alignment.
        let e = [0, 1, 2, 3].map(|j| unsafe { _mm512_loadu_si512(registers[j].as_ptr().cast()) });
        for r in 0..R {
            let h = _mm512_set1_epi32(rows[r][g]);
            for j in 0..4 {
                acc[r][j] = _mm512_dpbusd_epi32(acc[r][j], e[j], h);
            }
        }
    }
    for r in 0..R {
        for j in 0..4 {
            // SAFETY: 16 sums from 16·j of an array of 64; the store needs no alignment.
            unsafe { _mm512_storeu_si512(sums[r][16 * j..].as_mut_ptr().cast(), acc[r][j]) };
        }
    }
}

/// Goes through a block with R rows; see [`products`] for what the processor must have.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vnni")]
fn screen<const R: usize>(table: &Table<'_>, number: usize, rows: &[Row], searches: &mut [Search]) {
    let size = IDS * groups(table.d) * 4;
    let block = &table.blocks[number * size..(number + 1) * size];
    let mut sums = [[0; IDS]; R];
    let q: [&[i32]; R] = std::array::from_fn(|r| &rows[r].q[..]);
    // SAFETY: this function has the same features.
    unsafe { products::<R>(block, &q, &mut sums) };
    for ((sums, row), search) in sums.iter().zip(rows).zip(searches) {
        search.block(sums, row, number * IDS, table);
    }
}

/// The id with the largest product for each row of `hidden` `[R, D]` with `table` `[V, D]`: the lowest of
/// equals, 0 where no product is a number. None where 8 bits cannot hold the table, or the processor lacks
/// the instructions.
#[cfg(target_arch = "x86_64")]
pub(crate) fn argmax(hidden: &[f32], table: &[f32], v: usize, d: usize) -> Option<Vec<u32>> {
    if d == 0 || !supported() {
        return None;
    }
    let table = Table::new(table, v, d)?;
    let mut best = vec![0; hidden.len() / d];
    best.par_chunks_mut(TASK).zip(hidden.par_chunks(TASK * d)).for_each(|(best, hidden)| {
        let rows: Vec<Row> = hidden.chunks_exact(d).map(|h| table.round(h)).collect();
        let start = Search { floor: f32::NEG_INFINITY, candidates: Vec::new() };
        let mut searches = vec![start; rows.len()];
        for number in 0..table.scale.len() / IDS {
            for (rows, searches) in rows.chunks(ROWS).zip(searches.chunks_mut(ROWS)) {
                // SAFETY: `supported` has looked for these features above.
                unsafe {
                    match rows.len() {
                        ROWS => screen::<ROWS>(&table, number, rows, searches),
                        _ => (0..rows.len())
                            .for_each(|r| screen::<1>(&table, number, &rows[r..], &mut searches[r..])),
                    }
                }
            }
        }
        for (((best, h), row), search) in best.iter_mut().zip(hidden.chunks_exact(d)).zip(&rows).zip(searches)
        {
            let able = search.candidates.iter().filter(|(_, upper)| *upper >= search.floor);
            *best = match row.scale {
                Some(_) => table.decide(h, able.map(|(id, _)| *id as usize)),
                // All products are 0.
                None if h.iter().all(|x| *x == 0.0) => 0,
                None => table.decide(h, 0..v),
            };
        }
    });
    Some(best)
}

/// There are no instructions for it.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn argmax(_: &[f32], _: &[f32], _: usize, _: usize) -> Option<Vec<u32>> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::philox::{NoiseKey, RowId, normal};

    fn randn(n: usize, seed: u64) -> Vec<f32> {
        normal(NoiseKey::new(seed, "argmax", 0), &[RowId { example: 0, position: 0 }], 1, n)
    }

    fn plain(hidden: &[f32], table: &[f32], d: usize) -> Vec<u32> {
        let of = |h: &[f32]| {
            let mut best = (0, f64::NEG_INFINITY);
            for (id, e) in table.chunks_exact(d).enumerate() {
                let product: f64 = h.iter().zip(e).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                if product > best.1 {
                    best = (id as u32, product);
                }
            }
            best.0
        };
        hidden.chunks_exact(d).map(of).collect()
    }

    fn check(hidden: &[f32], table: &[f32], v: usize, d: usize) {
        if pays(SCREENED_ROWS) {
            assert_eq!(argmax(hidden, table, v, d).unwrap(), plain(hidden, table, d), "V {v}, D {d}");
        }
    }

    #[test]
    fn the_winner_is_that_of_exact_products_at_any_shape() {
        for (r, v, d) in [(1, 1, 1), (7, 63, 3), (65, 64, 17), (100, 1000, 256), (49, 130, 768)] {
            check(&randn(r * d, 1), &randn(v * d, 2), v, d);
        }
    }

    #[test]
    fn rows_of_very_different_scale_are_bounded_each_by_itself() {
        let (r, v, d) = (70, 500, 64);
        let scaled = |mut x: Vec<f32>| {
            x.chunks_exact_mut(d).enumerate().for_each(|(i, row)| {
                row.iter_mut().for_each(|x| *x *= 10f32.powi(i as i32 % 9 - 4));
            });
            x
        };
        check(&scaled(randn(r * d, 3)), &scaled(randn(v * d, 4)), v, d);
        // One large element makes the others coarse.
        let mut table = randn(v * d, 5);
        table.iter_mut().step_by(d).for_each(|x| *x *= 300.0);
        check(&randn(r * d, 6), &table, v, d);
    }

    #[test]
    fn near_ties_that_8_bits_cannot_tell_apart_are_decided() {
        let (r, v, d) = (64, 300, 32);
        let row = randn(d, 7);
        let nudge = |i: usize| 1.0 + ((i * 37 % v) as f32) * 2e-5;
        let table: Vec<f32> = (0..v).flat_map(|i| row.iter().map(move |x| x * nudge(i))).collect();
        check(&randn(r * d, 8), &table, v, d);
    }

    #[test]
    fn equals_go_to_the_lowest_id_and_what_is_no_number_never_wins() {
        let (v, d) = (200, 8);
        let mut table = randn(v * d, 9);
        let (first, rest) = table.split_at_mut(100 * d);
        rest.copy_from_slice(first);
        let mut hidden = randn(70 * d, 10);
        hidden[..d].fill(0.0);
        hidden[d] = f32::NAN;
        hidden[2 * d..3 * d].iter_mut().for_each(|x| *x *= 1e30);
        hidden[3 * d..4 * d].iter_mut().for_each(|x| *x *= 1e-30);
        check(&hidden, &table, v, d);
        assert!(plain(&hidden, &table, d).iter().all(|id| *id < 100));
        if pays(SCREENED_ROWS) {
            for odd in [f32::NAN, f32::INFINITY, 1e20] {
                table[17] = odd;
                assert!(argmax(&hidden, &table, v, d).is_none());
            }
        }
    }

    #[test]
    fn few_rows_do_not_pay() {
        assert!(!pays(SCREENED_ROWS - 1));
    }
}
