//! RMSNorm, LayerNorm and sums over rows against the CPU operators.

use crate::common::*;
use calm_twins::{Element, Launch, part_rows, sum_parts};
use candle_core::Var;
use half::bf16;
use std::fmt::Debug;

const EPS: f64 = 1e-6;
/// (rows, D): one row, one element, sizes that are no multiple of anything, several parts, rows wider than what a
/// warp keeps, in runs of 16 bytes and without.
const SHAPES: [(usize, usize); 9] =
    [(1, 1), (1, 17), (3, 7), (50, 64), (37, 1000), (5000, 3), (2000, 8), (5, 2824), (5, 2827)];
/// Of norms, whose sums over a row have another order than the CPU's: relative to the largest value.
const OF_NORMS: f32 = 2e-6;

/// The sums of `parts(launch, partial, part_rows)` `[parts, columns]` over the parts.
fn over_parts(rows: usize, columns: usize, parts: impl Fn(Launch, *mut f32, u32)) -> Vec<f32> {
    same_for(&launches(), |launch| {
        let part_rows = part_rows(rows as u32);
        let count = (rows as u32).div_ceil(part_rows);
        let mut partial = vec![f32::NAN; count as usize * columns];
        let mut out = vec![f32::NAN; columns];
        parts(launch, partial.as_mut_ptr(), part_rows);
        // SAFETY: partial is [count, columns], out [columns].
        unsafe { sum_parts(launch, partial.as_ptr(), out.as_mut_ptr(), count, columns as u32) };
        out
    })
}

#[test]
fn column_sums_add_every_row_once() {
    for (rows, d) in SHAPES {
        let x: Vec<bf16> = randn(rows * d, "x", 1.0);
        let got = over_parts(rows, d, |launch, partial, part_rows| {
            // SAFETY: x is [rows, d], partial [parts, d].
            unsafe {
                (bf16::KERNELS.column_parts)(launch, x.as_ptr(), partial, rows as u32, d as u32, part_rows);
            }
        });
        let column = |c: usize| x.iter().skip(c).step_by(d).map(|v| f64::from(v.to_f32())).sum::<f64>();
        let want: Vec<f32> = (0..d).map(|c| column(c) as f32).collect();
        assert_close(&got, &want, 2e-6, &format!("{rows}x{d}"));
    }
}

fn rms_norm_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (rows, d) in SHAPES {
        let what = format!("rms_norm of {rows}x{d}");
        let (x, w): (Vec<T>, Vec<T>) = (randn(rows * d, "x", 3.0), randn(d, "w", 1.0));
        let dy: Vec<T> = randn(rows * d, "dy", 1.0);
        let (r, n) = (rows as u32, d as u32);
        let (y, dx, scale) = same_for(&launches(), |launch| {
            let mut y = vec![T::of(f32::NAN); rows * d];
            let mut dx = y.clone();
            let mut scale = vec![0.0f32; rows];
            let (x, w, dy) = (x.as_ptr(), w.as_ptr(), dy.as_ptr());
            // SAFETY: x, y, dy, dx are [rows, d], w [d], scale [rows].
            unsafe {
                (T::KERNELS.rms_norm)(launch, x, w, y.as_mut_ptr(), r, n, EPS as f32);
                let (dx, scale) = (dx.as_mut_ptr(), scale.as_mut_ptr());
                (T::KERNELS.rms_norm_backward)(launch, x, w, dy, dx, scale, r, n, EPS as f32);
            }
            (y, dx, scale)
        });
        let dw = over_parts(rows, d, |launch, partial, part_rows| {
            let (x, dy, scale) = (x.as_ptr(), dy.as_ptr(), scale.as_ptr());
            // SAFETY: x, dy are [rows, d], scale [rows], partial [parts, d].
            unsafe { (T::KERNELS.rms_norm_weight_parts)(launch, x, dy, scale, partial, r, n, part_rows) }
        });
        let (x, w) = (var(&x, (rows, d)), var(&w, d));
        let want = calm_kernels::rms_norm(&x, &w, EPS).unwrap();
        assert_close(&y, &flat(&want), OF_NORMS, &what);
        let grads = gradients(&want, &dy, &[&x, &w]);
        assert_close(&dx, &grads[0], OF_NORMS, &format!("dx of {what}"));
        assert_close(&dw, &grads[1], 3e-6, &format!("dw of {what}"));
    }
}

#[test]
fn rms_norm_agrees() {
    rms_norm_is_the_cpus::<f32>();
    rms_norm_is_the_cpus::<bf16>();
}

fn layer_norm_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (rows, d) in SHAPES {
        for (with_w, with_b) in [(true, true), (true, false), (false, true), (false, false)] {
            let what = format!("layer_norm of {rows}x{d}, weight {with_w}, bias {with_b}");
            // Far from 0, where a variance from squares alone would be lost.
            let x: Vec<T> = randn::<T>(rows * d, "x", 3.0).iter().map(|v| T::of(v.as_f32() + 20.0)).collect();
            let (w, b): (Vec<T>, Vec<T>) = (randn(d, "w", 1.0), randn(d, "b", 1.0));
            let dy: Vec<T> = randn(rows * d, "dy", 1.0);
            let (r, n) = (rows as u32, d as u32);
            let or_null = |v: &Vec<T>, with| if with { v.as_ptr() } else { std::ptr::null() };
            let (y, dx, statistics) = same_for(&launches(), |launch| {
                let mut y = vec![T::of(f32::NAN); rows * d];
                let mut dx = y.clone();
                let mut statistics = vec![0.0f32; 2 * rows];
                let (x, dy, w, b) = (x.as_ptr(), dy.as_ptr(), or_null(&w, with_w), or_null(&b, with_b));
                // SAFETY: x, y, dy, dx are [rows, d], w and b [d] or null, statistics [rows, 2].
                unsafe {
                    (T::KERNELS.layer_norm)(launch, x, w, b, y.as_mut_ptr(), r, n, EPS as f32);
                    let (dx, statistics) = (dx.as_mut_ptr(), statistics.as_mut_ptr());
                    (T::KERNELS.layer_norm_backward)(launch, x, w, dy, dx, statistics, r, n, EPS as f32);
                }
                (y, dx, statistics)
            });
            let dwb = over_parts(rows, 2 * d, |launch, partial, part_rows| {
                let (x, dy, s) = (x.as_ptr(), dy.as_ptr(), statistics.as_ptr());
                // SAFETY: x, dy are [rows, d], statistics [rows, 2], partial [parts, 2 d].
                unsafe { (T::KERNELS.layer_norm_weight_parts)(launch, x, dy, s, partial, r, n, part_rows) }
            });
            let x = var(&x, (rows, d));
            let w: Option<Var> = with_w.then(|| var(&w, d));
            let b: Option<Var> = with_b.then(|| var(&b, d));
            let operands = (w.as_ref().map(|w| w as _), b.as_ref().map(|b| b as _));
            let want = calm_kernels::layer_norm(&x, operands.0, operands.1, EPS).unwrap();
            assert_close(&y, &flat(&want), OF_NORMS, &what);
            assert_close(&dx, &gradients(&want, &dy, &[&x])[0], OF_NORMS, &format!("dx of {what}"));
            for (parameter, got) in [(w, &dwb[..d]), (b, &dwb[d..])] {
                if let Some(p) = parameter {
                    let want = gradients(&want, &dy, &[&p]).remove(0);
                    assert_close(got, &want, 3e-6, &format!("parameter gradient of {what}"));
                }
            }
        }
    }
}

#[test]
fn layer_norm_agrees() {
    layer_norm_is_the_cpus::<f32>();
    layer_norm_is_the_cpus::<bf16>();
}
