//! The tensor cores' product of bf16 matrices, as the host emulates it, against a plain product.

use crate::common::*;
use calm_twins::{Launch, matrix_product_columns, matrix_product_rows};
use half::bf16;

#[test]
fn a_product_of_fragments_is_a_product_of_matrices() {
    for k in [16usize, 48, 160] {
        let (a, b): (Vec<bf16>, Vec<bf16>) = (randn(16 * k, "a", 1.0), randn(16 * k, "b", 1.0));
        // b as [16, K] and as [K, 16].
        let turned: Vec<bf16> = (0..16 * k).map(|i| b[i % 16 * k + i / 16]).collect();
        for reversed in [0, 1] {
            let launch = Launch { grid: 1, threads: 32, shared_bytes: 1536, reversed };
            let (mut by_columns, mut by_rows) = (vec![f32::NAN; 256], vec![f32::NAN; 256]);
            let (a_, b_, turned_) = (a.as_ptr(), b.as_ptr(), turned.as_ptr());
            // SAFETY: a, b and turned have 16 K elements, the results 16 x 16.
            unsafe {
                matrix_product_columns(launch, a_, b_, by_columns.as_mut_ptr(), k as u32);
                matrix_product_rows(launch, a_, turned_, by_rows.as_mut_ptr(), k as u32);
            }
            for (i, (x, y)) in by_columns.iter().zip(&by_rows).enumerate() {
                let (row, column) = (&a[i / 16 * k..][..k], &b[i % 16 * k..][..k]);
                let terms =
                    || row.iter().zip(column).map(|(a, b)| f64::from(a.to_f32()) * f64::from(b.to_f32()));
                let (want, size) = (terms().sum::<f64>(), terms().map(f64::abs).sum::<f64>());
                assert!((f64::from(*x) - want).abs() <= 1e-6 * size, "element {i}, K {k}: {x} for {want}");
                assert_eq!(x, y, "element {i}, K {k}: columns and rows of b");
            }
        }
    }
}
