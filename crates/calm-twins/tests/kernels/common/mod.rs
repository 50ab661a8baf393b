//! What the tests of the twins share: launches, reproducible inputs, comparisons.

#![allow(dead_code, clippy::unwrap_used, reason = "every test file uses a part; helpers may panic")]

use calm_kernels::philox;
use calm_twins::{Element, Launch, NoiseKey, RowId};
use candle_core::{Device, Shape, Tensor, Var};

/// Launches that must all give the same bits: few and many blocks and threads, forwards and backwards.
pub fn launches() -> Vec<Launch> {
    let shapes = [(1, 32, 0), (3, 96, 1), (7, 256, 0), (64, 128, 1)];
    shapes.map(|(grid, threads, reversed)| Launch { grid, threads, shared_bytes: 0, reversed }).to_vec()
}

/// Launches of a kernel whose number of threads and shared memory are fixed.
pub fn grids(threads: u32, shared_bytes: u32) -> Vec<Launch> {
    let shapes = [(1, 0), (3, 1), (40, 0)];
    shapes.map(|(grid, reversed)| Launch { grid, threads, shared_bytes, reversed }).to_vec()
}

/// Runs `f` with every launch and returns its result, the same for all of them.
pub fn same_for<R: PartialEq + std::fmt::Debug>(launches: &[Launch], f: impl Fn(Launch) -> R) -> R {
    let first = f(launches[0]);
    for &launch in &launches[1..] {
        let other = f(launch);
        assert!(other == first, "{launch:?} differs from {:?}", launches[0]);
    }
    first
}

pub fn key(stream: &str) -> philox::NoiseKey {
    philox::NoiseKey::new(17, stream, 3)
}

/// The key in the kernels' layout.
pub fn twin_key(key: philox::NoiseKey) -> NoiseKey {
    NoiseKey { key: key.key, step: key.step }
}

/// Row addresses in both layouts.
pub fn rows(count: usize) -> (Vec<philox::RowId>, Vec<RowId>) {
    let ids = |i: usize| (i as u32 / 3 + 5, i as u32 % 3 * 7);
    let of_cpu = |i| philox::RowId { example: ids(i).0, position: ids(i).1 };
    let of_twin = |i| RowId { example: ids(i).0, position: ids(i).1 };
    ((0..count).map(of_cpu).collect(), (0..count).map(of_twin).collect())
}

/// Standard normals, times `scale`, rounded to `T`.
pub fn randn<T: Element>(count: usize, stream: &str, scale: f32) -> Vec<T> {
    let row = [philox::RowId { example: 0, position: 0 }];
    philox::normal(key(stream), &row, 1, count).into_iter().map(|x| T::of(x * scale)).collect()
}

pub fn to_f32<T: Element>(x: &[T]) -> Vec<f32> {
    x.iter().map(|x| x.as_f32()).collect()
}

/// Values as a tensor that asks for a gradient.
pub fn var<T: Element>(x: &[T], shape: impl Into<Shape>) -> Var {
    Var::from_tensor(&tensor(x, shape)).unwrap()
}

pub fn tensor<T: Element>(x: &[T], shape: impl Into<Shape>) -> Tensor {
    Tensor::from_vec(to_f32(x), shape, &Device::Cpu).unwrap()
}

pub fn flat(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

/// The gradient of Σ `value`·`dy` with respect to each of `inputs`.
pub fn gradients<T: Element>(value: &Tensor, dy: &[T], inputs: &[&Var]) -> Vec<Vec<f32>> {
    let dy = tensor(dy, value.shape().clone());
    let grads = (value * dy).unwrap().sum_all().unwrap().backward().unwrap();
    inputs.iter().map(|v| flat(grads.get(v.as_tensor()).unwrap())).collect()
}

/// `got` is `want` rounded to `T`, to the bit (0 and -0 are the same).
pub fn assert_bits<T: Element>(got: &[T], want: &[f32], what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    for (i, (g, &w)) in got.iter().zip(want).enumerate() {
        let (g, w) = (g.as_f32(), T::of(w).as_f32());
        assert!(g == w || (g.is_nan() && w.is_nan()), "{what}: element {i} is {g:e}, the CPU has {w:e}");
    }
}

/// |got − want| ≤ `tolerance`·largest |want|, plus half a unit in the last place of `T`.
pub fn assert_close<T: Element>(got: &[T], want: &[f32], tolerance: f32, what: &str) {
    assert_near(got, want, tolerance * largest(want), what);
}

/// |got − want| ≤ `tolerance`, plus half a unit in the last place of `T`.
pub fn assert_near<T: Element>(got: &[T], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let rounding = if size_of::<T>() == 2 { 1.0 / 256.0 } else { 0.0 };
    for (i, (g, &w)) in got.iter().zip(want).enumerate() {
        let (g, allowed) = (g.as_f32(), tolerance + rounding * w.abs());
        assert!(
            (g - w).abs() <= allowed,
            "{what}: element {i} is {g:e}, the CPU has {w:e}, {allowed:.1e} off allowed"
        );
    }
}

pub fn largest(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |a, b| a.max(b.abs()))
}
