//! Stateless random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as
//! easy as 1, 2, 3", 2011), uniform and normal.
//!
//! A number is a function of (seed, stream, step, example, position, sample, dimension) and of nothing
//! else, so noise does not depend on batch split, threads, ranks or recomputation.
//!
//! - key = 64 bits of a hash of seed and stream name ([`NoiseKey::new`]);
//! - counter = (sample·2¹⁶ + block, position, example, step); a block of four words serves the
//!   dimensions 4·block .. 4·block+3;
//! - sample numbers and blocks beyond 16 bits go, exclusive-or, into the key words 1 and 0;
//! - uniform: (w >> 8)·2⁻²⁴, in [0, 1);
//! - normal: Box-Muller on the word pairs (0, 1) and (2, 3): u = ((w₀ >> 8) + 1)·2⁻²⁴ in (0, 1],
//!   v = (w₁ >> 8)·2⁻²⁴, (√(−2 ln u)·cos 2πv, √(−2 ln u)·sin 2πv), hence never beyond 5.77 (a true
//!   normal is with probability 8e-9).
//!
//! Logarithm, sine and cosine are the polynomials of [`crate::simd`], in plain multiplications and
//! additions: a GPU twin of this file gives the same bits.

#![allow(clippy::needless_range_loop, reason = "loops over lanes index several arrays by the same lane")]

use crate::simd::{LANES, dispatch, ln_f32, sin_cos_turns_f32};
use rayon::prelude::*;

const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
/// Added to the key words after every round: the golden ratio and √3 − 1, in units of 2⁻³².
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;
const ROUNDS: usize = 10;
const UNIT: f32 = 1.0 / 16_777_216.0;

/// Which stream of random numbers, at which training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NoiseKey {
    /// Philox key words.
    pub key: [u32; 2],
    /// Training step, the last counter word.
    pub step: u32,
}

impl NoiseKey {
    /// The key of a named stream: FNV-1a (64 bit) over the eight little-endian bytes of the seed and the
    /// bytes of the name, then the finaliser of SplitMix64.
    pub fn new(seed: u64, stream: &str, step: u32) -> Self {
        let mut h = 0xcbf2_9ce4_8422_2325u64;
        for &byte in seed.to_le_bytes().iter().chain(stream.as_bytes()) {
            h = (h ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        h = (h ^ (h >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        h = (h ^ (h >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        h ^= h >> 31;
        Self { key: [h as u32, (h >> 32) as u32], step }
    }
}

/// One row of noise: which example of the step and which position in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct RowId {
    /// Index of the example in the global batch.
    pub example: u32,
    /// Chunk position in the example.
    pub position: u32,
}

/// One block of Philox4x32-10.
#[inline]
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let lanes = blocks([[counter[0]; 1], [counter[1]; 1], [counter[2]; 1], [counter[3]; 1]], key);
    lanes.map(|word| word[0])
}

/// W blocks of Philox4x32-10 side by side: `counter[word][lane]` -> `result[word][lane]`.
///
/// Words live in the low halves of 64-bit lanes, where the 32×32→64 bit product leaves its high word one
/// shift away; the high halves hold rests that nothing reads.
#[inline(always)]
fn blocks<const W: usize>(counter: [[u32; W]; 4], key: [u32; 2]) -> [[u32; W]; 4] {
    const LOW: u64 = 0xffff_ffff;
    // Plain loops all through: `array::map` is not always inlined, and then not vectorised.
    let [mut c0, mut c1, mut c2, mut c3] = [[0u64; W]; 4];
    for i in 0..W {
        c0[i] = u64::from(counter[0][i]);
        c1[i] = u64::from(counter[1][i]);
        c2[i] = u64::from(counter[2][i]);
        c3[i] = u64::from(counter[3][i]);
    }
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        for i in 0..W {
            let p0 = (c0[i] & LOW) * u64::from(MULTIPLIER_0);
            let p1 = (c2[i] & LOW) * u64::from(MULTIPLIER_1);
            c0[i] = (p1 >> 32) ^ c1[i] ^ u64::from(k0);
            c1[i] = p1;
            c2[i] = (p0 >> 32) ^ c3[i] ^ u64::from(k1);
            c3[i] = p0;
        }
        k0 = k0.wrapping_add(WEYL_0);
        k1 = k1.wrapping_add(WEYL_1);
    }
    let mut words = [[0u32; W]; 4];
    for i in 0..W {
        words[0][i] = c0[i] as u32;
        words[1][i] = c1[i] as u32;
        words[2][i] = c2[i] as u32;
        words[3][i] = c3[i] as u32;
    }
    words
}

/// Words of four to uniforms in [0, 1).
#[inline(always)]
fn to_uniform<const W: usize>(words: [[u32; W]; 4]) -> [[f32; W]; 4] {
    let [w0, w1, w2, w3] = &words;
    [unit(w0), unit(w1), unit(w2), unit(w3)]
}

/// (w >> 8)·2⁻²⁴
#[inline(always)]
fn unit<const W: usize>(words: &[u32; W]) -> [f32; W] {
    let mut out = [0.0; W];
    for i in 0..W {
        out[i] = (words[i] >> 8) as i32 as f32 * UNIT;
    }
    out
}

/// Words of four to two pairs of standard normals.
#[inline(always)]
fn to_normal<const W: usize>(words: [[u32; W]; 4]) -> [[f32; W]; 4] {
    let mut out = [[0.0; W]; 4];
    for j in [0, 2] {
        for i in 0..W {
            let u = ((words[j][i] >> 8) + 1) as i32 as f32 * UNIT;
            let v = (words[j + 1][i] >> 8) as i32 as f32 * UNIT;
            let radius = (-2.0 * ln_f32(u)).sqrt();
            let (sin, cos) = sin_cos_turns_f32(v);
            out[j][i] = radius * cos;
            out[j + 1][i] = radius * sin;
        }
    }
    out
}

/// Kind of numbers that [`fill`] draws.
#[derive(Clone, Copy)]
enum Kind {
    Uniform,
    Normal,
}

#[inline(always)]
fn convert<const W: usize>(kind: Kind, words: [[u32; W]; 4]) -> [[f32; W]; 4] {
    match kind {
        Kind::Uniform => to_uniform(words),
        Kind::Normal => to_normal(words),
    }
}

/// `out[4 i + j] = values[j][i]`: four 4×4 transposes.
#[inline(always)]
fn interleave(values: &[[f32; LANES]; 4], out: &mut [f32; 4 * LANES]) {
    let (tiles, _) = out.as_chunks_mut::<16>();
    for (q, tile) in tiles.iter_mut().enumerate() {
        let mut rows = [[0.0; 4]; 4];
        for j in 0..4 {
            rows[j].copy_from_slice(&values[j][4 * q..4 * q + 4]);
        }
        transpose(rows, tile);
    }
}

/// `out[4 i + j] = rows[j][i]`. The compiler makes gathers of the plain loop; this says it in shuffles.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn transpose(rows: [[f32; 4]; 4], out: &mut [f32; 16]) {
    use std::arch::x86_64::{
        _mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_storeu_ps, _mm_unpackhi_ps, _mm_unpacklo_ps,
    };
    // SAFETY: SSE is part of every x86-64 processor; the loads read four floats from arrays of four, the
    // stores write sixteen floats to an array of sixteen, none of which need alignment.
    unsafe {
        let (r0, r1) = (_mm_loadu_ps(rows[0].as_ptr()), _mm_loadu_ps(rows[1].as_ptr()));
        let (r2, r3) = (_mm_loadu_ps(rows[2].as_ptr()), _mm_loadu_ps(rows[3].as_ptr()));
        let (a, b) = (_mm_unpacklo_ps(r0, r1), _mm_unpacklo_ps(r2, r3));
        let (c, d) = (_mm_unpackhi_ps(r0, r1), _mm_unpackhi_ps(r2, r3));
        let out = out.as_mut_ptr();
        _mm_storeu_ps(out, _mm_movelh_ps(a, b));
        _mm_storeu_ps(out.add(4), _mm_movehl_ps(b, a));
        _mm_storeu_ps(out.add(8), _mm_movelh_ps(c, d));
        _mm_storeu_ps(out.add(12), _mm_movehl_ps(d, c));
    }
}

/// `out[4 i + j] = rows[j][i]`.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn transpose(rows: [[f32; 4]; 4], out: &mut [f32; 16]) {
    for i in 0..4 {
        for j in 0..4 {
            out[4 * i + j] = rows[j][i];
        }
    }
}

/// Sixteen consecutive blocks at once over the flattened (sample, block) pairs of one row.
#[inline(always)]
fn fill(kind: Kind, key: NoiseKey, row: RowId, first_sample: usize, dims: usize, out: &mut [f32]) {
    if dims == 0 {
        return;
    }
    let blocks_per_sample = dims.div_ceil(4);
    let samples = out.len() / dims;
    if first_sample + samples > 1 << 16 || blocks_per_sample > 1 << 16 {
        return fill_far(kind, key, row, first_sample, dims, out);
    }
    let (mut sample, mut block) = (0, 0);
    while sample < samples {
        let mut word = [0u32; LANES];
        let start = (sample, block);
        let mut used = 0;
        if block + LANES <= blocks_per_sample {
            let base = (((first_sample + sample) << 16) | block) as u32;
            for (i, w) in word.iter_mut().enumerate() {
                *w = base + i as u32;
            }
            used = LANES;
            block += LANES;
        } else {
            for w in word.iter_mut() {
                if block == blocks_per_sample {
                    (sample, block) = (sample + 1, 0);
                }
                if sample == samples {
                    break;
                }
                *w = (((first_sample + sample) << 16) | block) as u32;
                used += 1;
                block += 1;
            }
        }
        if block == blocks_per_sample {
            (sample, block) = (sample + 1, 0);
        }
        let values = convert(
            kind,
            blocks([word, [row.position; LANES], [row.example; LANES], [key.step; LANES]], key.key),
        );
        let place = start.0 * dims + 4 * start.1;
        let whole = dims.is_multiple_of(4) || 4 * (start.1 + LANES) <= dims;
        if used == LANES
            && whole
            && let Some((out, _)) = out[place..].split_first_chunk_mut()
        {
            interleave(&values, out);
        } else {
            let (mut s, mut b) = start;
            for i in 0..used {
                let width = (dims - 4 * b).min(4);
                for j in 0..width {
                    out[s * dims + 4 * b + j] = values[j][i];
                }
                b += 1;
                if b == blocks_per_sample {
                    (s, b) = (s + 1, 0);
                }
            }
        }
    }
}

/// The same, one block at a time, for sample or block numbers that need the key as well.
#[cold]
fn fill_far(kind: Kind, key: NoiseKey, row: RowId, first_sample: usize, dims: usize, out: &mut [f32]) {
    for (s, values) in out.chunks_exact_mut(dims).enumerate() {
        let sample = first_sample + s;
        for (block, four) in values.chunks_mut(4).enumerate() {
            let low = (((sample & 0xffff) << 16) | (block & 0xffff)) as u32;
            let far = [key.key[0] ^ (block >> 16) as u32, key.key[1] ^ (sample >> 16) as u32];
            let lanes = blocks([[low], [row.position], [row.example], [key.step]], far);
            for (v, lane) in four.iter_mut().zip(convert(kind, lanes)) {
                *v = lane[0];
            }
        }
    }
}

/// Uniforms of the samples `first_sample ..` of one row into `out` `[samples, dims]`; an incomplete last
/// sample of `out` is left as it is.
#[inline]
pub fn uniform_into(key: NoiseKey, row: RowId, first_sample: usize, dims: usize, out: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || fill(Kind::Uniform, key, row, first_sample, dims, out),
    );
}

/// Standard normals of the samples `first_sample ..` of one row into `out` `[samples, dims]`; an
/// incomplete last sample of `out` is left as it is.
#[inline]
pub fn normal_into(key: NoiseKey, row: RowId, first_sample: usize, dims: usize, out: &mut [f32]) {
    dispatch(
        #[inline(always)]
        || fill(Kind::Normal, key, row, first_sample, dims, out),
    );
}

fn all_rows(rows: &[RowId], samples: usize, dims: usize, one: impl Fn(RowId, &mut [f32]) + Sync) -> Vec<f32> {
    let row_len = samples * dims;
    let mut out = vec![0.0; rows.len() * row_len];
    if row_len > 0 {
        let tasks = crate::simd::rows_per_block(row_len);
        out.par_chunks_mut(row_len * tasks).zip(rows.par_chunks(tasks)).for_each(|(out, rows)| {
            for (out, &row) in out.chunks_exact_mut(row_len).zip(rows) {
                one(row, out);
            }
        });
    }
    out
}

/// Uniforms in [0, 1), `[rows, samples, dims]`.
pub fn uniform(key: NoiseKey, rows: &[RowId], samples: usize, dims: usize) -> Vec<f32> {
    all_rows(rows, samples, dims, |row, out| uniform_into(key, row, 0, dims, out))
}

/// Standard normals, `[rows, samples, dims]`.
pub fn normal(key: NoiseKey, rows: &[RowId], samples: usize, dims: usize) -> Vec<f32> {
    all_rows(rows, samples, dims, |row, out| normal_into(key, row, 0, dims, out))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: RowId = RowId { example: 7, position: 3 };

    /// The known-answer vectors that Random123 publishes for philox4x32-10.
    #[test]
    fn blocks_match_the_published_known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox4x32([0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344], [0xa4093822, 0x299f31d0]),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn numbers_are_where_the_counter_layout_puts_them_for_every_size() {
        let key = NoiseKey::new(11, "layout", 5);
        for dims in [1, 2, 3, 4, 5, 7, 8, 30, 32, 61, 64, 66, 128, 130] {
            let rows = [RowId { example: 0, position: 9 }, ROW];
            let samples = 5;
            let u = uniform(key, &rows, samples, dims);
            let n = normal(key, &rows, samples, dims);
            for (r, row) in rows.iter().enumerate() {
                for s in 0..samples {
                    for d in 0..dims {
                        let counter = [((s << 16) | (d / 4)) as u32, row.position, row.example, key.step];
                        let words = philox4x32(counter, key.key).map(|w| [w]);
                        let at = (r * samples + s) * dims + d;
                        assert_eq!(u[at].to_bits(), to_uniform(words)[d % 4][0].to_bits());
                        assert_eq!(n[at].to_bits(), to_normal(words)[d % 4][0].to_bits());
                    }
                }
            }
        }
        assert!(normal(key, &[], 3, 4).is_empty() && normal(key, &[ROW], 0, 4).is_empty());
        assert!(normal(key, &[ROW], 3, 0).is_empty());
    }

    #[test]
    fn a_run_of_samples_equals_the_same_samples_of_a_longer_run() {
        let key = NoiseKey::new(1, "targets", 2);
        for dims in [4, 6, 128] {
            let all = normal(key, &[ROW], 20, dims);
            let mut some = vec![0.0; 6 * dims];
            normal_into(key, ROW, 9, dims, &mut some);
            assert_eq!(some, all[9 * dims..15 * dims]);
        }
    }

    #[test]
    fn samples_beyond_sixteen_bits_are_new_numbers() {
        let key = NoiseKey::new(1, "far", 0);
        let mut near = [0.0; 8];
        let mut far = [0.0; 8];
        uniform_into(key, ROW, 65_535, 4, &mut far);
        uniform_into(key, ROW, 65_535, 4, &mut near[..4]);
        assert_eq!(far[..4], near[..4]);
        uniform_into(key, ROW, 0, 4, &mut near[4..]);
        assert_ne!(far[4..], near[4..]);
        let mut wide = vec![0.0; (1 << 18) + 4];
        let dims = wide.len();
        uniform_into(key, ROW, 0, dims, &mut wide);
        assert_ne!(wide[..4], wide[1 << 18..]);
    }

    #[test]
    fn every_part_of_the_address_changes_the_numbers() {
        let draw = |seed, stream, step, example, position| {
            normal(NoiseKey::new(seed, stream, step), &[RowId { example, position }], 1, 4)
        };
        let base = draw(1, "a", 0, 0, 0);
        for other in
            [draw(2, "a", 0, 0, 0), draw(1, "b", 0, 0, 0), draw(1, "a", 1, 0, 0), draw(1, "a", 0, 1, 0)]
        {
            assert_ne!(base, other);
        }
        assert_ne!(draw(1, "a", 0, 1, 0), draw(1, "a", 0, 0, 1));
        assert_eq!(base, draw(1, "a", 0, 0, 0));
        // Recorded: a checkpoint made yesterday must draw the same numbers tomorrow.
        assert_eq!(NoiseKey::new(0, "", 9).key, [0xa2367c13, 0x813f0174]);
        assert_eq!(NoiseKey::new(42, "targets", 0).key, [0x2a9806f2, 0x92435823]);
    }

    /// Largest distance between the empirical and the given distribution function.
    fn kolmogorov(mut x: Vec<f32>, cdf: impl Fn(f64) -> f64) -> f64 {
        x.sort_by(f32::total_cmp);
        let n = x.len() as f64;
        let gap = |(i, &v): (usize, &f32)| {
            let c = cdf(f64::from(v));
            (c - i as f64 / n).abs().max((c - (i + 1) as f64 / n).abs())
        };
        x.iter().enumerate().map(gap).fold(0.0, f64::max)
    }

    /// Φ by the trapezoidal rule on the density, exact to 1e-9 for this test's needs.
    fn normal_cdf(x: f64) -> f64 {
        let steps = 400;
        let h = x / steps as f64;
        let density = |t: f64| (-0.5 * t * t).exp() / std::f64::consts::TAU.sqrt();
        let inner: f64 = (1..steps).map(|i| density(i as f64 * h)).sum();
        0.5 + h * (inner + 0.5 * (density(0.0) + density(x)))
    }

    #[test]
    fn uniforms_and_normals_have_their_distribution() {
        let key = NoiseKey::new(42, "statistics", 0);
        let rows: Vec<RowId> = (0..64).map(|i| RowId { example: i / 8, position: i % 8 }).collect();
        let n = normal(key, &rows, 16, 128);
        let count = n.len() as f64;
        let moment = |k: i32| n.iter().map(|&v| f64::from(v).powi(k)).sum::<f64>() / count;
        // Four standard errors of each moment.
        let se = |variance: f64| 4.0 * (variance / count).sqrt();
        assert!(moment(1).abs() < se(1.0));
        assert!((moment(2) - 1.0).abs() < se(2.0));
        assert!(moment(3).abs() < se(15.0));
        assert!((moment(4) - 3.0).abs() < se(96.0));
        for lag in [1, 2, 4, 128] {
            let cov =
                n.iter().zip(&n[lag..]).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() / count;
            assert!(cov.abs() < se(1.0), "lag {lag}: {cov}");
        }
        // 1.95/sqrt(n) is exceeded with probability 0.001.
        let limit = 1.95 / count.sqrt();
        let ks = kolmogorov(n, normal_cdf);
        assert!(ks < limit, "{ks} > {limit}");
        let u = uniform(key, &rows, 16, 128);
        assert!(u.iter().all(|v| (0.0..1.0).contains(v)));
        let ks = kolmogorov(u, |x| x);
        assert!(ks < limit, "{ks} > {limit}");
    }

    #[test]
    fn the_extreme_words_give_finite_normals() {
        let [a, b, _, _] = to_normal([[0, u32::MAX, 0], [0, 0, u32::MAX], [0; 3], [0; 3]]);
        assert!((a[0] - 5.768_108).abs() < 1e-5, "{}", a[0]);
        assert_eq!((a[1], b[1]), (0.0, 0.0));
        assert!(a.iter().chain(&b).all(|v| v.is_finite()));
        assert_eq!(to_uniform([[u32::MAX]; 4])[0][0], 1.0 - UNIT);
        assert_eq!(to_uniform([[0u32]; 4])[0][0], 0.0);
    }

    #[test]
    fn normals_follow_box_muller_in_double_precision() {
        let key = NoiseKey::new(3, "accuracy", 0);
        let got = normal(key, &[ROW], 4096, 4);
        let mut worst = 0.0f64;
        for (s, four) in got.chunks_exact(4).enumerate() {
            let words = philox4x32([(s << 16) as u32, ROW.position, ROW.example, 0], key.key);
            for j in [0, 2] {
                let u = f64::from((words[j] >> 8) + 1) / f64::from(1 << 24);
                let v = f64::from(words[j + 1] >> 8) / f64::from(1 << 24);
                let radius = (-2.0 * u.ln()).sqrt();
                let angle = std::f64::consts::TAU * v;
                worst = worst.max((f64::from(four[j]) - radius * angle.cos()).abs());
                worst = worst.max((f64::from(four[j + 1]) - radius * angle.sin()).abs());
            }
        }
        println!("normal: {worst:.2e}");
        assert!(worst < 6e-7, "{worst:e}");
    }
}
