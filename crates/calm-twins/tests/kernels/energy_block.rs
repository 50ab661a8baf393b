//! The kernels between the products of an energy block against the CPU operators: to the bit, but for the norm.

use crate::common::*;
use calm_twins::{Element, Launch, part_rows, sum_parts};
use candle_core::Tensor;
use half::bf16;
use std::fmt::Debug;

const EPS: f64 = 1e-6;
/// Of the norm, whose sums over a row have another order than the CPU's: relative to the largest value.
const OF_NORMS: f32 = 2e-6;
/// R, N, D.
const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 1), (4, 3, 5), (30, 8, 64), (2, 50, 90), (9, 70, 300)];

fn blank<T: Element>(count: usize) -> Vec<T> {
    vec![T::of(f32::NAN); count]
}

/// x `[.., D]` and bias `[D]` as tensors in f32, added.
fn plus<T: Element>(x: &Tensor, bias: &[T]) -> Tensor {
    x.broadcast_add(&tensor(bias, bias.len())).unwrap()
}

/// The sums `[columns]` over the parts that `run(partial, rows of a part)` leaves.
fn with_sums(launch: Launch, rows: usize, columns: usize, run: impl Fn(*mut f32, u32)) -> Vec<f32> {
    let part_rows = part_rows(rows as u32);
    let count = (rows as u32).div_ceil(part_rows);
    let (mut partial, mut out) = (blank::<f32>(count as usize * columns), blank::<f32>(columns));
    run(partial.as_mut_ptr(), part_rows);
    // SAFETY: partial is [count, columns], out [columns].
    unsafe { sum_parts(launch, partial.as_ptr(), out.as_mut_ptr(), count, columns as u32) };
    out
}

/// Σ over rows of x `[rows, D]`.
fn column_sums(x: &[f32], d: usize) -> Vec<f32> {
    let column = |c: usize| x.iter().skip(c).step_by(d).map(|&v| f64::from(v)).sum::<f64>() as f32;
    (0..d).map(column).collect()
}

fn shared_bias_silu_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (r, n, d) in SHAPES {
        let (x, shared): (Vec<T>, Vec<T>) = (randn(r * n * d, "x", 2.0), randn(r * d, "shared", 1.0));
        let (bias, dy): (Vec<T>, Vec<T>) = (randn(d, "bias", 1.0), randn(r * n * d, "dy", 1.0));
        let sizes = (r as u32, n as u32, d as u32);
        let (y, again, dx, dshared) = same_for(&launches(), |launch| {
            let (mut y, mut again, mut dx) = (blank::<T>(x.len()), blank::<T>(x.len()), blank::<T>(x.len()));
            let (mut dshared, mut other) = (blank::<T>(r * d), dx.clone());
            let (x, shared, bias, dy) = (x.as_ptr(), shared.as_ptr(), bias.as_ptr(), dy.as_ptr());
            let (r, n, d) = sizes;
            // SAFETY: x, y, dy, dx are [r, n, d], shared and dshared [r, d], bias [d].
            unsafe {
                (T::KERNELS.bias_silu)(launch, x, shared, bias, y.as_mut_ptr(), r, n, d);
                let backward = T::KERNELS.shared_bias_silu_backward;
                let (to_shared, none) = (dshared.as_mut_ptr(), std::ptr::null_mut());
                backward(launch, x, shared, bias, dy, other.as_mut_ptr(), to_shared, none, r, n, d);
                let (dx, again) = (dx.as_mut_ptr(), again.as_mut_ptr());
                backward(launch, x, shared, bias, dy, dx, to_shared, again, r, n, d);
            }
            assert_eq!(dx, other, "without the activation");
            (y, again, dx, dshared)
        });
        let x = var(&x, (r, n, d));
        let shared = candle_core::Var::from_tensor(&plus(&tensor(&shared, (r, d)), &bias)).unwrap();
        let want = calm_kernels::add_silu(&x, &shared).unwrap();
        assert_bits(&y, &flat(&want), "value");
        assert_eq!(y, again);
        let grads = gradients(&want, &dy, &[&x, &shared]);
        assert_bits(&dx, &grads[0], "dx");
        assert_bits(&dshared, &grads[1], "dshared");
    }
}

fn bias_silu_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (r, n, d) in SHAPES {
        let rows = r * n;
        let (x, bias): (Vec<T>, Vec<T>) = (randn(rows * d, "x", 2.0), randn(d, "bias", 1.0));
        let dy: Vec<T> = randn(rows * d, "dy", 1.0);
        let (y, again, dx, dbias) = same_for(&launches(), |launch| {
            let (mut y, mut again, mut dx) = (blank::<T>(x.len()), blank::<T>(x.len()), blank::<T>(x.len()));
            let (x, bias, dy) = (x.as_ptr(), bias.as_ptr(), dy.as_ptr());
            let (rows32, d32, none) = (rows as u32, d as u32, std::ptr::null());
            let (to_dx, to_again) = (dx.as_mut_ptr(), again.as_mut_ptr());
            let dbias = with_sums(launch, rows, d, |partial, part_rows| {
                // SAFETY: x, y, dy, dx are [rows, d], bias [d], partial [parts, d].
                unsafe {
                    let backward = T::KERNELS.bias_silu_backward;
                    backward(launch, x, bias, dy, to_dx, to_again, partial, rows32, d32, part_rows);
                }
            });
            // SAFETY: as above.
            unsafe { (T::KERNELS.bias_silu)(launch, x, none, bias, y.as_mut_ptr(), 1, rows32, d32) };
            (y, again, dx, dbias)
        });
        let x = candle_core::Var::from_tensor(&plus(&tensor(&x, (rows, d)), &bias)).unwrap();
        let want = calm_kernels::silu(&x).unwrap();
        assert_bits(&y, &flat(&want), "value");
        assert_eq!(y, again);
        let grads = gradients(&want, &dy, &[&x]);
        assert_bits(&dx, &grads[0], "dx");
        assert_near(&dbias, &column_sums(&grads[0], d), 1e-5 * rows as f32, "dbias");
    }
}

fn bias_swiglu_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (r, n, h) in SHAPES {
        let rows = r * n;
        let (x, bias): (Vec<T>, Vec<T>) = (randn(rows * 2 * h, "x", 2.0), randn(2 * h, "bias", 1.0));
        let dy: Vec<T> = randn(rows * h, "dy", 1.0);
        let (y, again, dx, dbias) = same_for(&launches(), |launch| {
            let (mut y, mut again, mut dx) =
                (blank::<T>(dy.len()), blank::<T>(dy.len()), blank::<T>(x.len()));
            let (x, bias, dy) = (x.as_ptr(), bias.as_ptr(), dy.as_ptr());
            let (to_dx, to_again) = (dx.as_mut_ptr(), again.as_mut_ptr());
            let dbias = with_sums(launch, rows, 2 * h, |partial, part_rows| {
                // SAFETY: x and dx are [rows, 2 h], y and dy [rows, h], bias [2 h], partial [parts, 2 h].
                unsafe {
                    let backward = T::KERNELS.bias_swiglu_backward;
                    backward(launch, x, bias, dy, to_dx, to_again, partial, rows as u32, h as u32, part_rows);
                }
            });
            // SAFETY: as above.
            unsafe { (T::KERNELS.bias_swiglu)(launch, x, bias, y.as_mut_ptr(), rows as u64, h as u32) };
            (y, again, dx, dbias)
        });
        let x = candle_core::Var::from_tensor(&plus(&tensor(&x, (rows, 2 * h)), &bias)).unwrap();
        let want = calm_kernels::swiglu_packed(&x).unwrap();
        assert_bits(&y, &flat(&want), "value");
        assert_eq!(y, again);
        let grads = gradients(&want, &dy, &[&x]);
        assert_bits(&dx, &grads[0], "dx");
        assert_near(&dbias, &column_sums(&grads[0], 2 * h), 1e-5 * rows as f32, "dbias");
    }
}

fn the_norm_with_a_residual_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (r, n, d) in SHAPES {
        let rows = r * n;
        let (x, w, b): (Vec<T>, Vec<T>, Vec<T>) =
            (randn(rows * d, "x", 3.0), randn(d, "w", 1.0), randn(d, "b", 1.0));
        let (dy, residual): (Vec<T>, Vec<T>) = (randn(rows * d, "dy", 1.0), randn(rows * d, "residual", 1.0));
        let (y, dx, sum) = same_for(&launches(), |launch| {
            let (mut y, mut dx, mut sum) = (blank::<T>(x.len()), blank::<T>(x.len()), blank::<T>(x.len()));
            let mut statistics = vec![0.0f32; 2 * rows];
            let (rows, d, eps) = (rows as u32, d as u32, EPS as f32);
            // SAFETY: all are [rows, d], w and b [d], statistics [rows, 2].
            unsafe {
                (T::KERNELS.layer_norm_residual_backward)(
                    launch,
                    x.as_ptr(),
                    w.as_ptr(),
                    b.as_ptr(),
                    dy.as_ptr(),
                    residual.as_ptr(),
                    dx.as_mut_ptr(),
                    y.as_mut_ptr(),
                    statistics.as_mut_ptr(),
                    rows,
                    d,
                    eps,
                );
                (T::KERNELS.add_bias)(launch, x.as_ptr(), b.as_ptr(), sum.as_mut_ptr(), rows.into(), d);
            }
            (y, dx, sum)
        });
        let x = var(&x, (rows, d));
        let (w, bias) = (tensor(&w, d), tensor(&b, d));
        let want = calm_kernels::layer_norm(&x, Some(&w), Some(&bias), EPS).unwrap();
        assert_close(&y, &flat(&want), OF_NORMS, "h");
        let grads = gradients(&want, &dy, &[&x]);
        let want: Vec<f32> = grads[0].iter().zip(&residual).map(|(g, r)| g + r.as_f32()).collect();
        assert_close(&dx, &want, OF_NORMS, "dx");
        assert_bits(&sum, &flat(&plus(&x, &b)), "x + b");
    }
}

#[test]
fn silu_with_a_shared_term_and_a_bias_agrees() {
    shared_bias_silu_is_the_cpus::<f32>();
    shared_bias_silu_is_the_cpus::<bf16>();
}

#[test]
fn silu_with_a_bias_agrees() {
    bias_silu_is_the_cpus::<f32>();
    bias_silu_is_the_cpus::<bf16>();
}

#[test]
fn the_packed_gate_with_a_bias_agrees() {
    bias_swiglu_is_the_cpus::<f32>();
    bias_swiglu_is_the_cpus::<bf16>();
}

#[test]
fn layer_norm_in_a_residual_block_agrees() {
    the_norm_with_a_residual_is_the_cpus::<f32>();
    the_norm_with_a_residual_is_the_cpus::<bf16>();
}
