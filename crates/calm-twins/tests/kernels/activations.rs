//! SiLU, the gated units and the rotary embedding against the CPU operators, to the bit.

use crate::common::*;
use calm_twins::{Element, rotary_turns};
use candle_core::{Device, Tensor};
use half::bf16;
use std::fmt::Debug;

/// Numbers far out as well, where the exponential reaches 0 and infinity.
fn spread<T: Element>(count: usize, stream: &str) -> Vec<T> {
    let mut x: Vec<T> = randn(count, stream, 4.0);
    for (x, far) in x.iter_mut().rev().zip([0.0, -1e4, 1e4, -95.0, 88.7]) {
        *x = T::of(far);
    }
    x
}

fn blank<T: Element>(count: usize) -> Vec<T> {
    vec![T::of(f32::NAN); count]
}

fn silu_is_the_cpus<T: Element + PartialEq + Debug>() {
    for count in [1usize, 5, 1000, 20_001] {
        let (x, dy): (Vec<T>, Vec<T>) = (spread(count, "x"), randn(count, "dy", 1.0));
        let (y, dx) = same_for(&launches(), |launch| {
            let (mut y, mut dx) = (blank::<T>(count), blank::<T>(count));
            // SAFETY: all buffers have `count` elements.
            unsafe {
                (T::KERNELS.silu)(launch, x.as_ptr(), y.as_mut_ptr(), count as u64);
                let dx = dx.as_mut_ptr();
                (T::KERNELS.silu_backward)(launch, x.as_ptr(), dy.as_ptr(), dx, count as u64);
            }
            (y, dx)
        });
        let x = var(&x, count);
        let want = calm_kernels::silu(&x).unwrap();
        assert_bits(&y, &flat(&want), "silu");
        assert_bits(&dx, &gradients(&want, &dy, &[&x])[0], "dx of silu");
    }
}

fn add_silu_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (r, n, d) in [(1usize, 1usize, 1usize), (4, 3, 5), (30, 8, 64), (2, 50, 90)] {
        let (x, shared): (Vec<T>, Vec<T>) = (spread(r * n * d, "x"), randn(r * d, "shared", 1.0));
        let dy: Vec<T> = randn(r * n * d, "dy", 1.0);
        let sizes = (r as u32, n as u32, d as u32);
        let (y, dx, dshared) = same_for(&launches(), |launch| {
            let (mut y, mut dx, mut dshared) = (blank::<T>(x.len()), blank::<T>(x.len()), blank::<T>(r * d));
            let (x, shared, dy, (r, n, d)) = (x.as_ptr(), shared.as_ptr(), dy.as_ptr(), sizes);
            // SAFETY: x, y, dy, dx are [r, n, d], shared and dshared [r, d].
            unsafe {
                (T::KERNELS.add_silu)(launch, x, shared, y.as_mut_ptr(), r, n, d);
                let (dx, dshared) = (dx.as_mut_ptr(), dshared.as_mut_ptr());
                (T::KERNELS.add_silu_backward)(launch, x, shared, dy, dx, dshared, r, n, d);
            }
            (y, dx, dshared)
        });
        let (x, shared) = (var(&x, (r, n, d)), var(&shared, (r, d)));
        let want = calm_kernels::add_silu(&x, &shared).unwrap();
        assert_bits(&y, &flat(&want), "add_silu");
        let grads = gradients(&want, &dy, &[&x, &shared]);
        assert_bits(&dx, &grads[0], "dx of add_silu");
        assert_bits(&dshared, &grads[1], "dshared of add_silu");
    }
}

fn swiglu_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (rows, h) in [(1usize, 1usize), (7, 5), (40, 172), (3, 1000)] {
        let both: Vec<T> = spread(rows * 2 * h, "both");
        let dy: Vec<T> = randn(rows * h, "dy", 1.0);
        // Two tensors: the first and the second half of `both`.
        let (gate, up) = both.split_at(rows * h);
        let (y, dgate, dup) = same_for(&launches(), |launch| {
            let (mut y, mut dgate, mut dup) =
                (blank::<T>(rows * h), blank::<T>(rows * h), blank::<T>(rows * h));
            let (gate, up, dy, h) = (gate.as_ptr(), up.as_ptr(), dy.as_ptr(), h as u32);
            // SAFETY: all buffers are [rows, h].
            unsafe {
                (T::KERNELS.swiglu)(launch, gate, up, y.as_mut_ptr(), rows as u64, h, h);
                let (dgate, dup) = (dgate.as_mut_ptr(), dup.as_mut_ptr());
                (T::KERNELS.swiglu_backward)(launch, gate, up, dy, dgate, dup, rows as u64, h, h);
            }
            (y, dgate, dup)
        });
        let (gate, up) = (var(gate, (rows, h)), var(up, (rows, h)));
        let want = calm_kernels::swiglu(&gate, &up).unwrap();
        assert_bits(&y, &flat(&want), "swiglu");
        let grads = gradients(&want, &dy, &[&gate, &up]);
        assert_bits(&dgate, &grads[0], "dgate");
        assert_bits(&dup, &grads[1], "dup");

        // One tensor [rows, 2 h].
        let (y, dx) = same_for(&launches(), |launch| {
            let (mut y, mut dx) = (blank::<T>(rows * h), blank::<T>(rows * 2 * h));
            let (gate, dy, width) = (both.as_ptr(), dy.as_ptr(), h as u32);
            // SAFETY: `both` and dx are [rows, 2 h], y and dy [rows, h]; the second half of a row starts
            // h elements after the first.
            unsafe {
                let up = gate.add(h);
                (T::KERNELS.swiglu)(launch, gate, up, y.as_mut_ptr(), rows as u64, width, 2 * width);
                let (dgate, dup) = (dx.as_mut_ptr(), dx.as_mut_ptr().add(h));
                (T::KERNELS.swiglu_backward)(launch, gate, up, dy, dgate, dup, rows as u64, width, 2 * width);
            }
            (y, dx)
        });
        let x = var(&both, (rows, 2 * h));
        let want = calm_kernels::swiglu_packed(&x).unwrap();
        assert_bits(&y, &flat(&want), "swiglu_packed");
        assert_bits(&dx, &gradients(&want, &dy, &[&x])[0], "dx of swiglu_packed");
    }
}

fn rotary_is_the_cpus<T: Element + PartialEq + Debug>() {
    const THETA: f64 = 1e4;
    for (s, heads, dh) in [(1usize, 1usize, 2usize), (7, 3, 48), (20, 2, 96), (9, 2, 160)] {
        let positions: Vec<u32> = (0..s as u32).map(|i| i * i % 50).collect();
        let half = dh / 2;
        let frequency = |i: usize| THETA.powf(-(i as f64) / half as f64);
        let mut table = Vec::new();
        for p in 0..50 {
            table.extend((0..half).map(|i| (f64::from(p) * frequency(i)).cos() as f32));
            table.extend((0..half).map(|i| (f64::from(p) * frequency(i)).sin() as f32));
        }
        let (x, dy): (Vec<T>, Vec<T>) = (randn(s * heads * dh, "x", 1.0), randn(s * heads * dh, "dy", 1.0));
        let (y, dx) = same_for(&launches(), |launch| {
            let run = |x: &[T], sign: f32| {
                let mut y = blank::<T>(x.len());
                let (index, table, to) = (positions.as_ptr(), table.as_ptr(), y.as_mut_ptr());
                let (rows, heads, dh) = (s as u64, heads as u32, dh as u32);
                // SAFETY: x and y are [s, heads, dh], the table has a row for every position below 50.
                unsafe { (T::KERNELS.rotary)(launch, x.as_ptr(), index, table, to, rows, heads, dh, sign) };
                y
            };
            (run(&x, 1.0), run(&dy, -1.0))
        });
        let frequency: Vec<f64> = (0..half).map(frequency).collect();
        let from_positions = same_for(&launches(), |launch| {
            let (mut turns, mut y) = (vec![f32::NAN; s * dh], blank::<T>(x.len()));
            let (positions, turns, index) = (positions.as_ptr(), turns.as_mut_ptr(), std::ptr::null());
            let (x, to, rows, h, dh) = (x.as_ptr(), y.as_mut_ptr(), s as u64, heads as u32, dh as u32);
            // SAFETY: the turns are [s, dh], x and y [s, heads, dh].
            unsafe {
                rotary_turns(launch, positions, frequency.as_ptr(), turns, rows, half as u32);
                (T::KERNELS.rotary)(launch, x, index, turns, to, rows, h, dh, 1.0);
            }
            y
        });
        assert!(from_positions == y, "a table of the positions, in their order");
        let x = var(&x, (1, s, heads, dh));
        let positions = Tensor::from_vec(positions, (1, s), &Device::Cpu).unwrap();
        let want = calm_kernels::rotary(&x, &positions, THETA).unwrap();
        assert_bits(&y, &flat(&want), "rotary");
        assert_bits(&dx, &gradients(&want, &dy, &[&x])[0], "dx of rotary");
    }
}

#[test]
fn silu_agrees() {
    silu_is_the_cpus::<f32>();
    silu_is_the_cpus::<bf16>();
}

#[test]
fn add_silu_agrees() {
    add_silu_is_the_cpus::<f32>();
    add_silu_is_the_cpus::<bf16>();
}

#[test]
fn swiglu_agrees_with_two_tensors_and_with_one() {
    swiglu_is_the_cpus::<f32>();
    swiglu_is_the_cpus::<bf16>();
}

#[test]
fn rotary_agrees() {
    rotary_is_the_cpus::<f32>();
    rotary_is_the_cpus::<bf16>();
}
