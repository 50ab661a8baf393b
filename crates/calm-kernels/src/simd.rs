//! Number kernels shared by all operators: dispatch to the widest vector unit, elementary functions
//! as polynomials, sums over fixed lanes, and a bounds-checked front to the matrix product.
//!
//! (A little longer than other files: one dispatch serves all of it.)
//!
//! Nothing here uses fused multiply-add or the C mathematics library: every function is a fixed
//! sequence of IEEE additions and multiplications, so that scalar code, any vector width and a GPU
//! twin give the same bits. The loops are written for the compiler to vectorise: wrap them in
//! [`dispatch`] with an `#[inline(always)]` closure that calls `#[inline(always)]` functions.

use candle_core::WithDType;
use std::ops::Neg;
use std::sync::OnceLock;

/// Lanes of a fixed-order sum; two AVX2 or one AVX-512 register of `f32`.
pub const LANES: usize = 16;

/// Runs `f` compiled for the widest instruction set of this processor (AVX-512, AVX2, NEON, plain).
///
/// Only code that is inlined into `f` profits: mark the closure and what it calls `#[inline(always)]`,
/// and dispatch inside a parallel loop's body, not around the loop.
#[inline(always)]
pub fn dispatch<R>(f: impl FnOnce() -> R) -> R {
    widest().dispatch(f)
}

/// Of this processor, or less: `CALM_VECTORS=avx2` or `plain`, to show that nothing depends on it.
#[inline(always)]
fn widest() -> pulp::Arch {
    static WIDEST: OnceLock<pulp::Arch> = OnceLock::new();
    *WIDEST.get_or_init(|| match std::env::var("CALM_VECTORS").as_deref() {
        Ok("plain") => pulp::Arch::Scalar,
        #[cfg(target_arch = "x86_64")]
        Ok("avx2") => pulp::x86::V3::try_new().map_or(pulp::Arch::Scalar, pulp::Arch::V3),
        _ => pulp::Arch::new(),
    })
}

/// `f32` or `f64`: what the operators compute in (`f32` to be fast, `f64` for gradient checks).
pub trait Real: WithDType + Neg<Output = Self> + Default {
    /// 0
    const ZERO: Self;
    /// 1
    const ONE: Self;
    /// Smallest positive normal number.
    const TINY: Self;
    /// -∞
    const NEG_INFINITY: Self;
    /// Square root, correctly rounded.
    fn sqrt(self) -> Self;
    /// e^self ([`exp_f32`] for `f32`).
    fn exp(self) -> Self;
    /// Natural logarithm ([`ln_f32`] for `f32`, so positive normal numbers only).
    fn ln(self) -> Self;
    /// self^exponent by the standard library.
    fn powf(self, exponent: Self) -> Self;
    /// |self|
    fn abs(self) -> Self;
    /// Conversion that the compiler can vectorise.
    fn of_f32(v: f32) -> Self;
    /// Conversion that the compiler can vectorise.
    fn of_f64(v: f64) -> Self;
    /// Conversion that the compiler can vectorise.
    fn as_f64(self) -> f64;
    /// The same slice where this type is `f32`.
    fn from_f32s(values: &mut [f32]) -> Option<&mut [Self]>;
}

macro_rules! real {
    ($t:ty, $exp:expr, $ln:expr, $f32s:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const TINY: Self = <$t>::MIN_POSITIVE;
            const NEG_INFINITY: Self = <$t>::NEG_INFINITY;
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn ln(self) -> Self {
                $ln(self)
            }
            #[inline(always)]
            fn powf(self, exponent: Self) -> Self {
                <$t>::powf(self, exponent)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                <$t>::abs(self)
            }
            #[inline(always)]
            fn of_f32(v: f32) -> Self {
                v as $t
            }
            #[inline(always)]
            fn of_f64(v: f64) -> Self {
                v as $t
            }
            #[inline(always)]
            fn as_f64(self) -> f64 {
                self as f64
            }
            fn from_f32s(values: &mut [f32]) -> Option<&mut [Self]> {
                $f32s(values)
            }
        }
    };
}
real!(f32, exp_f32, ln_f32, Some);
real!(f64, f64::exp, f64::ln, |_| None);

/// 1.5·2²³: adding it to a float of magnitude below 2²² rounds to the nearest integer, which then
/// stands in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;

/// e^x within one unit in the last place (measured 0.94) where the result is a normal number; gradual
/// underflow to 0, overflow to ∞, NaN stays NaN.
///
/// x = n·ln 2 + r, |r| ≤ ½ ln 2; e^r = 1 + r + r²·P(r), P a degree-5 fit at Chebyshev nodes; 2ⁿ is
/// applied as two factors so that neither leaves the exponent range.
#[inline(always)]
pub fn exp_f32(x: f32) -> f32 {
    // ln 2 in two parts: the first has 9 trailing zero bits, so that n times it is exact.
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    let x = if x > 90.0 { 90.0 } else { x };
    let x = if x < -105.0 { -105.0 } else { x };
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let nf = shifted - ROUND;
    let r = (x - nf * LN2_HI) - nf * LN2_LO;
    let mut p = 1.989_098_1e-4;
    p = p * r + 1.393_364e-3;
    p = p * r + 8.333_311e-3;
    p = p * r + 4.166_646_5e-2;
    p = p * r + 1.666_666_7e-1;
    p = p * r + 0.5;
    let y = (p * (r * r) + r) + 1.0;
    let half = n >> 1;
    let a = f32::from_bits((half.wrapping_add(127) as u32) << 23);
    let b = f32::from_bits((n.wrapping_sub(half).wrapping_add(127) as u32) << 23);
    (y * a) * b
}

/// ln x of a positive normal number, within one unit in the last place (measured 0.83).
///
/// x = 2^e·m with m in [√½, √2), f = m − 1; ln m = f − f²/2 + f³·P(f), P a degree-8 fit at Chebyshev
/// nodes.
#[inline(always)]
pub fn ln_f32(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4;
    const LN2_LO: f32 = -2.121_944_4e-4;
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let bits = x.to_bits();
    let e = (bits.wrapping_sub(SQRT_HALF) as i32) >> 23;
    let f = f32::from_bits(bits.wrapping_sub((e as u32) << 23)) - 1.0;
    let e = e as f32;
    let mut p = 6.971_612e-2;
    p = p * f - 1.147_973_4e-1;
    p = p * f + 1.168_542e-1;
    p = p * f - 1.242_568_7e-1;
    p = p * f + 1.424_905_8e-1;
    p = p * f - 1.666_780_2e-1;
    p = p * f + 2.000_071_6e-1;
    p = p * f - 2.499_999_7e-1;
    p = p * f + 3.333_333e-1;
    let f2 = f * f;
    let tail = (p * f) * f2 + e * LN2_LO;
    ((tail - 0.5 * f2) + f) + e * LN2_HI
}

/// (sin 2πu, cos 2πu) for u in [0, 1], absolute error at most 1e-7 (measured 8.7e-8).
///
/// u is a quarter turn q plus r, |r| ≤ ⅛ (exact in floating point); sin 2πr = r·S(r²) and
/// cos 2πr = 1 + r²·C(r²) with fits at Chebyshev nodes; q then swaps and negates.
#[inline(always)]
pub fn sin_cos_turns_f32(u: f32) -> (f32, f32) {
    let shifted = u * 4.0 + ROUND;
    let q = shifted.to_bits().wrapping_sub(ROUND.to_bits());
    let r = u - (shifted - ROUND) * 0.25;
    let r2 = r * r;
    let mut s = 4.147_283e1;
    s = s * r2 - 7.669_787e1;
    s = s * r2 + 8.160_52e1;
    s = s * r2 - 4.134_17e1;
    s = s * r2 + std::f32::consts::TAU;
    let s = s * r;
    let mut c = 5.942_410_6e1;
    c = c * r2 - 8.544_882e1;
    c = c * r2 + 6.493_937e1;
    c = c * r2 - 1.973_920_9e1;
    let c = c * r2 + 1.0;
    let swap = q & 1 == 1;
    let (sin, cos) = (if swap { c } else { s }, if swap { s } else { c });
    // Quarter 2 and 3 negate the sine, 1 and 2 the cosine.
    let sin_sign = (q & 2) << 30;
    let cos_sign = (q.wrapping_add(1) & 2) << 30;
    (f32::from_bits(sin.to_bits() ^ sin_sign), f32::from_bits(cos.to_bits() ^ cos_sign))
}

/// Sum of the lanes in a fixed tree: halves added to halves.
#[inline(always)]
pub fn fold<T: Real>(mut acc: [T; LANES]) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            acc[i] += acc[i + width];
        }
        width /= 2;
    }
    acc[0]
}

/// Largest of the lanes (NaN lanes are passed over).
#[inline(always)]
pub fn fold_max<T: Real>(acc: [T; LANES]) -> T {
    let mut best = T::NEG_INFINITY;
    for v in acc {
        best = if v > best { v } else { best };
    }
    best
}

/// Σ f(x_i) over fixed lanes: element i is added to lane i mod 16, the lanes are folded as a tree.
#[inline(always)]
pub fn sum_map<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let mut acc = [T::ZERO; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            acc[i] += f(chunk[i]);
        }
    }
    for (a, &v) in acc.iter_mut().zip(rest) {
        *a += f(v);
    }
    fold(acc)
}

/// Σ x_i over fixed lanes.
#[inline(always)]
pub fn sum<T: Real>(x: &[T]) -> T {
    sum_map(x, |v| v)
}

/// Σ x_i² over fixed lanes.
#[inline(always)]
pub fn sum_squares<T: Real>(x: &[T]) -> T {
    sum_map(x, |v| v * v)
}

/// Σ x_i y_i over fixed lanes; the shorter length counts.
#[inline(always)]
pub fn dot<T: Real>(x: &[T], y: &[T]) -> T {
    let n = x.len().min(y.len());
    let (xs, x_rest) = x[..n].as_chunks::<LANES>();
    let (ys, y_rest) = y[..n].as_chunks::<LANES>();
    let mut acc = [T::ZERO; LANES];
    for (a, b) in xs.iter().zip(ys) {
        for i in 0..LANES {
            acc[i] += a[i] * b[i];
        }
    }
    for i in 0..x_rest.len() {
        acc[i] += x_rest[i] * y_rest[i];
    }
    fold(acc)
}

/// Largest element; NaN elements are passed over, -∞ for an empty slice.
#[inline(always)]
pub fn max<T: Real>(x: &[T]) -> T {
    let mut acc = [T::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for i in 0..LANES {
            acc[i] = if chunk[i] > acc[i] { chunk[i] } else { acc[i] };
        }
    }
    for (a, &v) in acc.iter_mut().zip(rest) {
        *a = if v > *a { v } else { *a };
    }
    fold_max(acc)
}

/// Rows of `row_len` elements that one parallel task takes: about 16 k elements, at least one row.
/// A function of the shape alone, so that results cannot depend on the number of threads.
pub fn rows_per_block(row_len: usize) -> usize {
    (16_384 / row_len.max(1)).max(1)
}

/// A read-only matrix over a slice with strides in elements.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Mat<'a, T> {
    /// A row-major matrix that fills `data`.
    ///
    /// # Panics
    /// If `data` does not hold `rows * cols` elements.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Self {
        assert_eq!(data.len(), rows * cols, "a {rows}x{cols} matrix over {} elements", data.len());
        Self { data, rows, cols, row_stride: cols, col_stride: 1 }
    }

    /// A matrix with any strides.
    ///
    /// # Panics
    /// If its last element lies outside `data`.
    pub fn strided(data: &'a [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            let last = (rows - 1) * row_stride + (cols - 1) * col_stride;
            assert!(last < data.len(), "a matrix reaches element {last} of {}", data.len());
        }
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.cols
    }

    /// Its numbers, and the distances between rows and between columns.
    pub(crate) fn strides(&self) -> (&'a [T], usize, usize) {
        (self.data, self.row_stride, self.col_stride)
    }

    /// The transpose: strides swapped, nothing copied.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// `dst = a b`, or `dst += a b` when `accumulate`; `dst` is row-major `[a.rows, b.cols]`.
///
/// `gemm::Parallelism::Rayon(0)` uses the current pool (its results do not depend on the number of
/// threads), `None` is for calls inside a parallel loop.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul<T: Real>(
    dst: &mut [T],
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    accumulate: bool,
    parallelism: gemm::Parallelism,
) {
    let (m, n) = (a.rows, b.cols);
    assert_eq!(dst.len(), m * n, "the destination of a {m}x{n} matrix product has the wrong size");
    matmul_strided(dst, n, a, b, accumulate, parallelism);
}

/// [`matmul`] into a part of a wider matrix: rows of `dst` begin `row_stride` elements apart.
///
/// # Panics
/// If the shapes do not fit.
pub fn matmul_strided<T: Real>(
    dst: &mut [T],
    row_stride: usize,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    accumulate: bool,
    parallelism: gemm::Parallelism,
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "the inner sizes of a matrix product differ");
    if m == 0 || n == 0 {
        return;
    }
    let fits = n <= row_stride && (m - 1) * row_stride + n <= dst.len();
    assert!(fits, "a {m}x{n} matrix product with row stride {row_stride} in {} elements", dst.len());
    if k == 0 {
        if !accumulate {
            dst.chunks_mut(row_stride).take(m).for_each(|row| row[..n].fill(T::ZERO));
        }
        return;
    }
    // SAFETY: `dst` is read and written at row stride `row_stride`, column stride 1, whose last element
    // lies inside by the assertion; `Mat` checked that every (row, column) of `a` and `b` lies inside its slice; `dst`
    // is exclusively borrowed, so it overlaps neither. `Real` is f32 or f64, which gemm supports.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            T::ONE,
            T::ONE,
            false,
            false,
            false,
            parallelism,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Distance in units of the last place of the exact value.
    fn ulps(got: f32, exact: f64) -> f64 {
        let exponent = (exact.abs().log2().floor() as i32).max(-126);
        (got as f64 - exact).abs() / 2f64.powi(exponent - 23)
    }

    #[test]
    fn exp_is_within_one_ulp_and_keeps_the_special_values() {
        let mut worst = 0.0f64;
        for i in 0..2_000_000 {
            let x = -87.3 + 176.0 * (i as f32 / 2e6);
            worst = worst.max(ulps(exp_f32(x), (x as f64).exp()));
        }
        for i in 0..1_000_000 {
            let x = (i as f32 / 5e5) - 1.0;
            worst = worst.max(ulps(exp_f32(x), (x as f64).exp()));
        }
        println!("exp: {worst:.3} ulp");
        assert!(worst <= 1.0, "{worst} ulp");
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(-200.0), 0.0);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(89.0), f32::INFINITY);
        assert!(exp_f32(f32::NAN).is_nan());
        let tiny = exp_f32(-100.0) as f64;
        assert!((tiny / (-100f64).exp() - 1.0).abs() < 0.03, "gradual underflow: {tiny}");
    }

    #[test]
    fn ln_is_within_one_ulp() {
        let mut worst = 0.0f64;
        for bits in (0x0080_0000u32..0x7f80_0000).step_by(997) {
            let x = f32::from_bits(bits);
            if x != 1.0 {
                worst = worst.max(ulps(ln_f32(x), (x as f64).ln()));
            }
        }
        for i in 1..=1 << 20 {
            let x = 0.5 + i as f32 / (1 << 20) as f32;
            if x != 1.0 {
                worst = worst.max(ulps(ln_f32(x), (x as f64).ln()));
            }
        }
        println!("ln: {worst:.3} ulp");
        assert!(worst <= 1.0, "{worst} ulp");
        assert_eq!(ln_f32(1.0), 0.0);
    }

    #[test]
    fn sine_and_cosine_of_turns_are_accurate_and_exact_at_quarters() {
        let mut worst = 0.0f64;
        for i in 0..=1 << 22 {
            let u = i as f32 / (1 << 22) as f32;
            let (s, c) = sin_cos_turns_f32(u);
            let angle = std::f64::consts::TAU * u as f64;
            worst = worst.max((s as f64 - angle.sin()).abs()).max((c as f64 - angle.cos()).abs());
        }
        println!("sin, cos: {worst:.3e}");
        assert!(worst <= 1e-7, "{worst:e}");
        assert_eq!(sin_cos_turns_f32(0.0), (0.0, 1.0));
        assert_eq!(sin_cos_turns_f32(0.25), (1.0, 0.0));
        assert_eq!(sin_cos_turns_f32(0.5), (0.0, -1.0));
        assert_eq!(sin_cos_turns_f32(0.75), (-1.0, 0.0));
    }

    #[test]
    fn functions_give_the_same_bits_scalar_and_vectorised() {
        let x: Vec<f32> = (0..4099).map(|i| (i as f32 - 2000.0) * 0.037).collect();
        let u: Vec<f32> = (0..4099).map(|i| (i as f32 + 1.0) / 4100.0).collect();
        let mut wide = vec![[0f32; 4]; x.len()];
        dispatch(
            #[inline(always)]
            || {
                for ((out, &x), &u) in wide.iter_mut().zip(&x).zip(&u) {
                    let (s, c) = sin_cos_turns_f32(u);
                    *out = [exp_f32(x), ln_f32(u), s, c];
                }
            },
        );
        for (i, wide) in wide.iter().enumerate() {
            let one = std::hint::black_box(i);
            let (s, c) = sin_cos_turns_f32(u[one]);
            let narrow = [exp_f32(x[one]), ln_f32(u[one]), s, c];
            assert_eq!(narrow.map(f32::to_bits), wide.map(f32::to_bits), "at {i}");
        }
    }

    #[test]
    fn sums_over_lanes_match_exact_sums_for_every_length() {
        for n in [0usize, 1, 15, 16, 17, 100, 1000] {
            let x: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let y: Vec<f32> = (0..n).map(|i| (i % 5) as f32).collect();
            assert_eq!(sum(&x), x.iter().sum::<f32>());
            assert_eq!(sum_squares(&x), x.iter().map(|v| v * v).sum::<f32>());
            assert_eq!(dot(&x, &y), x.iter().zip(&y).map(|(a, b)| a * b).sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
        assert_eq!(max(&[f32::NAN, 2.0, 1.0]), 2.0);
    }

    #[test]
    fn matmul_multiplies_transposes_and_accumulates() {
        let a: Vec<f64> = (0..6).map(f64::from).collect();
        let b: Vec<f64> = (0..12).map(|i| f64::from(i) - 5.0).collect();
        let mut dst = vec![1.0; 8];
        let none = gemm::Parallelism::None;
        matmul(&mut dst, Mat::new(&a, 2, 3), Mat::new(&b, 3, 4), true, none);
        for i in 0..2 {
            for j in 0..4 {
                let want = 1.0 + (0..3).map(|k| a[i * 3 + k] * b[k * 4 + j]).sum::<f64>();
                assert_eq!(dst[i * 4 + j], want);
            }
        }
        let mut transposed = vec![9.0; 8];
        matmul(&mut transposed, Mat::new(&b, 3, 4).t(), Mat::new(&a, 2, 3).t(), false, none);
        for i in 0..2 {
            for j in 0..4 {
                assert_eq!(transposed[j * 2 + i], dst[i * 4 + j] - 1.0);
            }
        }
        matmul(&mut dst, Mat::new(&a[..0], 2, 0), Mat::new(&b[..0], 0, 4), false, none);
        assert_eq!(dst, vec![0.0; 8]);
        assert_eq!(Mat::strided(&b, 2, 2, 5, 2).row_stride, 5);
    }

    #[test]
    fn block_size_depends_on_the_shape_only() {
        assert_eq!(rows_per_block(0), 16_384);
        assert_eq!(rows_per_block(128), 128);
        assert_eq!(rows_per_block(1 << 20), 1);
    }
}
