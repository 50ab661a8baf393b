//! What goes with matrix products: a bias in every row, and sums of two buffers.

use crate::common::*;
use calm_twins::Element;
use half::bf16;
use std::fmt::Debug;

fn rows_are_repeated_and_buffers_added<T: Element + PartialEq + Debug>() {
    for (rows, columns) in [(0usize, 3usize), (1, 1), (7, 33), (300, 260)] {
        let row: Vec<T> = randn(columns, "row", 1.0);
        let x: Vec<T> = randn(rows * columns, "x", 1.0);
        let (repeated, sum) = same_for(&launches(), |launch| {
            let mut out = vec![T::of(f32::NAN); rows * columns];
            let to = out.as_mut_ptr();
            // SAFETY: out is [rows, columns], row [columns].
            unsafe { (T::KERNELS.repeat_row)(launch, row.as_ptr(), to, rows as u64, columns as u32) };
            let mut sum = out.clone();
            // SAFETY: both have the same number of elements.
            unsafe { (T::KERNELS.add)(launch, x.as_ptr(), sum.as_mut_ptr(), x.len() as u64) };
            (out, sum)
        });
        for (i, (out, sum)) in repeated.iter().zip(&sum).enumerate() {
            let bias = row[i % columns];
            assert_eq!(*out, bias);
            assert_eq!(*sum, T::of(bias.as_f32() + x[i].as_f32()));
        }
    }
}

#[test]
fn rows_of_a_bias_and_sums_are_the_numbers_rounded_once() {
    rows_are_repeated_and_buffers_added::<f32>();
    rows_are_repeated_and_buffers_added::<bf16>();
}
