//! The smoothing of concepts against the CPU operator.

use crate::common::*;
use calm_twins::Element;
use candle_core::{Device, Tensor};
use half::bf16;
use std::fmt::Debug;

/// (B, M, D): one concept, widths that are no multiple of a run, several batches of concepts, several warps a row.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (2, 3, 5), (3, 16, 64), (2, 37, 72), (1, 130, 300), (5, 9, 512)];

/// Documents of 1, 2, 3, .. concepts, at other places in every row.
fn documents(b: usize, m: usize) -> Vec<u32> {
    let of = |row: usize, k: usize| ((8 * (k + 7 * row)) as f64).sqrt() as u32;
    (0..b * m).map(|i| of(i / m, i % m)).collect()
}

fn smooth_is_the_cpus<T: Element + PartialEq + Debug>() {
    for (b, m, d) in SHAPES {
        let what = format!("smooth of {b}x{m}x{d}");
        let (z, dy): (Vec<T>, Vec<T>) = (randn(b * m * d, "z", 2.0), randn(b * m * d, "dy", 1.0));
        // Certain ones of both kinds among them.
        let p: Vec<f32> = randn::<f32>(b * m, "p", 0.6).iter().map(|x| (0.5 + x).clamp(0.0, 1.0)).collect();
        let documents = documents(b, m);
        let (y, g, dz, dp) = same_for(&launches(), |launch| {
            let (mut y, mut dz) = (vec![T::of(f32::NAN); z.len()], vec![T::of(f32::NAN); z.len()]);
            let (mut g, mut dp) = (vec![f32::NAN; z.len()], vec![f32::NAN; p.len()]);
            let (b, m, d) = (b as u32, m as u32, d as u32);
            let (z, dy, p, documents) = (z.as_ptr(), dy.as_ptr(), p.as_ptr(), documents.as_ptr());
            // SAFETY: z, y, dy, g, dz are [b, m, d], p, documents, dp [b, m].
            unsafe {
                (T::KERNELS.smooth)(launch, z, p, documents, y.as_mut_ptr(), b, m, d);
                (T::KERNELS.smooth_slopes)(launch, dy, p, documents, g.as_mut_ptr(), b, m, d);
                let (y, g, dz, dp) = (y.as_ptr(), g.as_ptr(), dz.as_mut_ptr(), dp.as_mut_ptr());
                (T::KERNELS.smooth_backward)(launch, z, p, documents, y, g, dz, dp, b, m, d);
            }
            (y, g, dz, dp)
        });
        assert!(g.iter().all(|g| g.is_finite()), "{what}");
        let (z, p) = (var(&z, (b, m, d)), var(&p, (b, m)));
        let documents = Tensor::from_vec(documents, (b, m), &Device::Cpu).unwrap();
        let want = calm_kernels::smooth(&z, &p, &documents).unwrap();
        assert_bits(&y, &flat(&want), &what);
        let grads = gradients(&want, &dy, &[&z, &p]);
        assert_bits(&dz, &grads[0], &format!("dz of {what}"));
        // Averages that the sum takes are rounded in bf16.
        let off = if size_of::<T>() == 2 { 4e-3 } else { 2e-6 };
        assert_close(&dp, &grads[1], off, &format!("dp of {what}"));
    }
}

#[test]
fn smooth_is_the_cpus_in_both_formats() {
    smooth_is_the_cpus::<f32>();
    smooth_is_the_cpus::<bf16>();
}
