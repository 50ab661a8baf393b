//! Dropout against the CPU operator, to the bit.

use crate::common::*;
use calm_kernels::DropoutMask;
use calm_twins::Element;
use half::bf16;
use std::fmt::Debug;

fn dropout_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (r, d, p) in [(1usize, 1usize, 0.5), (7, 30, 0.15), (3, 513, 0.9), (20, 64, 0.0)] {
        let (x, dy): (Vec<T>, Vec<T>) = (randn(r * d, "x", 1.0), randn(r * d, "dy", 1.0));
        let (cpu_rows, twin_rows) = rows(r);
        let key = key("dropout");
        let (y, dx) = same_for(&launches(), |launch| {
            let run = |x: &[T]| {
                let mut y = vec![T::of(f32::NAN); x.len()];
                let (rows, key, keep) = (twin_rows.as_ptr(), twin_key(key), (1.0 / (1.0 - p)) as f32);
                let (x, y_) = (x.as_ptr(), y.as_mut_ptr());
                // SAFETY: x and y are [r, d], rows [r].
                unsafe { (T::KERNELS.dropout)(launch, x, key, rows, y_, r as u32, d as u32, p as f32, keep) };
                y
            };
            (run(&x), run(&dy))
        });
        let x = var(&x, (r, d));
        let want = calm_kernels::dropout(&x, p, DropoutMask::Draw { key, rows: &cpu_rows }).unwrap();
        assert_bits(&y, &flat(&want), "dropout");
        assert_bits(&dx, &gradients(&want, &dy, &[&x])[0], "dx of dropout");
    }
}

#[test]
fn dropout_agrees() {
    dropout_is_the_cpus::<f32>();
    dropout_is_the_cpus::<bf16>();
}
