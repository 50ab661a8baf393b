//! Cross-entropy over chunks of the vocabulary against the CPU operator that is fused with the product.

use crate::common::*;
use calm_twins::{Element, Launch, ROW_THREADS, argmax_chunk, cross_entropy_chunk, cross_entropy_loss};
use candle_core::{Device, Tensor};
use half::bf16;
use std::fmt::Debug;

struct Case<T> {
    r: usize,
    d: usize,
    v: usize,
    hidden: Vec<T>,
    table: Vec<T>,
    targets: Vec<u32>,
    weights: Vec<f32>,
}

fn case<T: Element>(r: usize, d: usize, v: usize) -> Case<T> {
    Case {
        r,
        d,
        v,
        hidden: randn(r * d, "hidden", 1.0),
        table: randn(v * d, "table", 0.7),
        targets: (0..r).map(|i| (i * i * 31 + 7 * i) as u32 % v as u32).collect(),
        weights: (0..r).map(|i| [1.0, 0.0, 0.5, 2.0][i % 4]).collect(),
    }
}

impl<T: Element> Case<T> {
    /// The product of the forward and backward pass for a chunk of the vocabulary.
    fn logits(&self, first: usize, columns: usize) -> Vec<f32> {
        let mut out = Vec::with_capacity(self.r * columns);
        for h in self.hidden.chunks_exact(self.d) {
            for e in self.table[first * self.d..(first + columns) * self.d].chunks_exact(self.d) {
                let dot: f64 =
                    h.iter().zip(e).map(|(a, b)| f64::from(a.as_f32()) * f64::from(b.as_f32())).sum();
                out.push(dot as f32);
            }
        }
        out
    }

    fn chunks(&self, width: usize) -> impl Iterator<Item = (usize, usize)> {
        let v = self.v;
        (0..v).step_by(width).map(move |first| (first, width.min(v - first)))
    }
}

/// What the forward pass leaves.
#[derive(Clone, Debug, PartialEq)]
struct Forward {
    largest: Vec<f32>,
    best: Vec<u32>,
    sums: Vec<f64>,
    losses: Vec<f32>,
    total: f32,
}

/// The forward pass over chunks whose logits `logits(first, columns)` gives.
fn forward(
    launch: Launch,
    c: (usize, &[u32], &[f32]),
    chunks: impl Iterator<Item = (usize, usize)>,
    logits: impl Fn(usize, usize) -> Vec<f32>,
) -> Forward {
    let (r, targets, weights) = c;
    let (mut largest, mut best) = (vec![f32::NAN; r], vec![u32::MAX; r]);
    let (mut sums, mut at_target, mut losses) = (vec![f64::NAN; r], vec![f32::NAN; r], vec![f32::NAN; r]);
    let (mut argmax_largest, mut argmax) = (largest.clone(), best.clone());
    let mut total = f32::NAN;
    let rows = r as u32;
    for (first, columns) in chunks {
        let logits = logits(first, columns);
        let (logits, first, columns) = (logits.as_ptr(), first as u32, columns as u32);
        let (sums, at_target) = (sums.as_mut_ptr(), at_target.as_mut_ptr());
        let (largest, best) = (largest.as_mut_ptr(), best.as_mut_ptr());
        // SAFETY: logits are [r, columns], everything else [r].
        unsafe {
            let targets = targets.as_ptr();
            cross_entropy_chunk(
                launch, logits, targets, rows, columns, first, largest, best, sums, at_target,
            );
            let largest = argmax_largest.as_mut_ptr();
            argmax_chunk(launch, logits, rows, columns, first, largest, argmax.as_mut_ptr());
        }
    }
    assert_eq!(best, argmax);
    let one_block = Launch { grid: 1, ..launch };
    let (losses_, at_target, weights) = (losses.as_mut_ptr(), at_target.as_ptr(), weights.as_ptr());
    // SAFETY: all are [r], total is one number.
    unsafe {
        let (largest, sums) = (largest.as_ptr(), sums.as_ptr());
        cross_entropy_loss(one_block, largest, sums, at_target, weights, losses_, &mut total, rows);
    }
    Forward { largest, best, sums, losses, total }
}

fn cross_entropy_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (r, d, v, width) in
        [(1usize, 1usize, 1usize, 1usize), (9, 8, 1000, 300), (30, 16, 77, 7), (5, 4, 3000, 3000)]
    {
        let c = case::<T>(r, d, v);
        let what = format!("{r} rows, vocabulary {v}, chunks of {width}");
        let (out, slopes) = same_for(&grids(ROW_THREADS, 0), |launch| {
            let input = (r, &c.targets[..], &c.weights[..]);
            let out = forward(launch, input, c.chunks(width), |first, n| c.logits(first, n));
            let mut slopes = Vec::new();
            for (first, columns) in c.chunks(width) {
                let logits = c.logits(first, columns);
                let mut slope = vec![T::of(f32::NAN); r * columns];
                let (targets, weights, to) = (c.targets.as_ptr(), c.weights.as_ptr(), slope.as_mut_ptr());
                // SAFETY: logits and slope are [r, columns], the others [r], upstream is one number.
                unsafe {
                    (T::KERNELS.cross_entropy_slope)(
                        launch,
                        logits.as_ptr(),
                        targets,
                        weights,
                        out.largest.as_ptr(),
                        out.sums.as_ptr(),
                        to,
                        r as u32,
                        columns as u32,
                        first as u32,
                    );
                }
                slopes.push(slope);
            }
            (out, slopes)
        });

        let (hidden, table) = (var(&c.hidden, (r, d)), var(&c.table, (v, d)));
        let targets = Tensor::from_vec(c.targets.clone(), r, &Device::Cpu).unwrap();
        let weights = tensor(&c.weights, r);
        let (losses, best) = calm_kernels::tied_cross_entropy_rows(&hidden, &table, &targets).unwrap();
        assert_close(&out.losses, &flat(&losses), 2e-6, &format!("losses of {what}"));
        assert_eq!(out.best, best.to_vec1::<u32>().unwrap(), "{what}");
        let loss = calm_kernels::tied_cross_entropy(&hidden, &table, &targets, Some(&weights)).unwrap();
        assert_close(&[out.total], &flat(&loss), 2e-6, &format!("total of {what}"));

        // The products of the backward pass.
        let (mut d_hidden, mut d_table) = (vec![0.0f64; r * d], vec![0.0f64; v * d]);
        for ((first, columns), slope) in c.chunks(width).zip(&slopes) {
            for (i, slope) in slope.chunks_exact(columns).enumerate() {
                for (j, slope) in slope.iter().enumerate() {
                    for k in 0..d {
                        let (h, e) = (i * d + k, (first + j) * d + k);
                        d_hidden[h] += f64::from(slope.as_f32()) * f64::from(c.table[e].as_f32());
                        d_table[e] += f64::from(slope.as_f32()) * f64::from(c.hidden[h].as_f32());
                    }
                }
                if c.weights[i] == 0.0 {
                    assert!(slope.iter().all(|s| s.as_f32() == 0.0));
                }
            }
        }
        let want = gradients(&loss, &[1.0f32], &[&hidden, &table]);
        // bf16 slopes carry a relative error of 2^-9 each.
        let tolerance = if size_of::<T>() == 2 { 4e-3 } else { 2e-6 };
        for (got, want) in [(d_hidden, &want[0]), (d_table, &want[1])] {
            let got: Vec<f32> = got.into_iter().map(|x| x as f32).collect();
            assert_close(&got, want, tolerance, &format!("gradient of {what}"));
        }
    }
}

#[test]
fn cross_entropy_agrees() {
    cross_entropy_is_the_cpus::<f32>();
    cross_entropy_is_the_cpus::<bf16>();
}

#[test]
fn the_lowest_of_equal_ids_wins_and_nan_never_does() {
    let n = f32::NAN;
    let low = f32::NEG_INFINITY;
    // Rows of six logits, in chunks of one, two, four and six.
    let rows = [
        ([1.0, 3.0, 3.0, 2.0, 3.0, 0.0], 1),
        ([n, -5.0, n, -4.0, n, -4.0], 3),
        ([n, n, n, n, n, n], 0),
        ([-1e30, -1e30, 1e30, 1e30, 0.0, 1e30], 2),
        ([low, low, low, -7.0, low, -7.0], 3),
    ];
    let targets = vec![0; rows.len()];
    let weights = vec![0.0f32; rows.len()];
    for width in [1, 2, 4, 6] {
        let chunks = || (0..6usize).step_by(width).map(|first| (first, width.min(6 - first)));
        let logits = |first: usize, n: usize| -> Vec<f32> {
            rows.iter().flat_map(|(row, _)| row[first..first + n].to_vec()).collect()
        };
        for launch in grids(ROW_THREADS, 0) {
            let out = forward(launch, (rows.len(), &targets, &weights), chunks(), logits);
            assert_eq!(out.best, rows.map(|(_, best)| best), "chunks of {width}");
            // Weight 0: the rows count nothing, although some losses are NaN.
            assert_eq!(out.total, 0.0);
        }
    }
}

#[test]
fn a_chunk_of_impossible_ids_changes_nothing() {
    let logits = [f32::NEG_INFINITY, f32::NEG_INFINITY, 1.0, 2.0, f32::NEG_INFINITY, f32::NEG_INFINITY];
    let want = (1f64.exp() + 2f64.exp()).ln() - 1.0;
    for width in [1, 2, 3, 6] {
        let chunks = (0..6usize).step_by(width).map(|first| (first, width.min(6 - first)));
        let launch = grids(ROW_THREADS, 0)[0];
        let out = forward(launch, (1, &[2], &[1.0]), chunks, |first, n| logits[first..first + n].to_vec());
        assert!((f64::from(out.total) - want).abs() < 1e-6, "{} {want}", out.total);
    }
}

#[test]
fn a_target_outside_the_vocabulary_gives_nan_unless_its_row_counts_nothing() {
    let targets = [1, 6, 4_000_000_000, 5];
    for width in [2, 6] {
        let chunks = || (0..6usize).step_by(width).map(|first| (first, width.min(6 - first)));
        let launch = grids(ROW_THREADS, 0)[0];
        let run = |weights: &[f32; 4]| {
            let logits = |_, n: usize| vec![0.5; 4 * n];
            forward(launch, (4, &targets, weights), chunks(), logits)
        };
        let out = run(&[1.0, 0.0, 0.0, 2.0]);
        assert!(out.losses[1].is_nan() && out.losses[2].is_nan());
        assert!((out.total - 3.0 * 6f32.ln()).abs() < 1e-5, "{}", out.total);
        assert!(run(&[1.0, 1.0, 0.0, 2.0]).total.is_nan());
    }
}

fn kept_gradients_are_scaled<T: Element + PartialEq + Debug>() {
    let (kept, before): (Vec<T>, Vec<T>) = (randn(5000, "kept", 1.0), randn(5000, "before", 1.0));
    let upstream = 0.3f32;
    for accumulate in [false, true] {
        let out = same_for(&launches(), |launch| {
            let mut out = if accumulate { before.clone() } else { vec![T::of(f32::NAN); 5000] };
            let (kept, to) = (kept.as_ptr(), out.as_mut_ptr());
            // SAFETY: kept and out have 5000 elements, upstream is one number.
            unsafe {
                (T::KERNELS.cross_entropy_backward)(launch, kept, &upstream, to, 5000, accumulate.into())
            };
            out
        });
        let old = |b: &T| if accumulate { b.as_f32() } else { 0.0 };
        let want: Vec<f32> = kept.iter().zip(&before).map(|(k, b)| old(b) + k.as_f32() * upstream).collect();
        assert_bits(&out, &want, "scaled gradient");
    }
}

#[test]
fn kept_gradients_are_scaled_by_the_upstream_gradient() {
    kept_gradients_are_scaled::<f32>();
    kept_gradients_are_scaled::<bf16>();
}
