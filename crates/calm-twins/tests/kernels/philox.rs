//! Random numbers: the bits of the CPU.

use crate::common::*;
use calm_kernels::philox;

#[test]
fn uniforms_and_normals_are_the_cpus_to_the_bit() {
    let (cpu_rows, twin_rows) = rows(4);
    let key = key("noise");
    // The last two reach samples and blocks beyond 16 bits, which the key takes up.
    for (samples, dims) in [(1, 1), (3, 7), (5, 64), (2, 130), (65_540, 1), (1, 262_150)] {
        let (r, n, d) = (cpu_rows.len() as u32, samples as u32, dims as u32);
        let run = |normal: bool| {
            same_for(&launches(), |launch| {
                let mut out = vec![0.0f32; cpu_rows.len() * samples * dims];
                let (rows, out_) = (twin_rows.as_ptr(), out.as_mut_ptr());
                // SAFETY: rows has r entries and out r·n·d elements, as the kernel expects.
                unsafe {
                    if normal {
                        calm_twins::noise_normal(launch, twin_key(key), rows, out_, r, n, d);
                    } else {
                        calm_twins::noise_uniform(launch, twin_key(key), rows, out_, r, n, d);
                    }
                }
                out.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            })
        };
        let bits = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert!(
            run(false) == bits(philox::uniform(key, &cpu_rows, samples, dims)),
            "uniform {samples} {dims}"
        );
        assert!(run(true) == bits(philox::normal(key, &cpu_rows, samples, dims)), "normal {samples} {dims}");
    }
}
