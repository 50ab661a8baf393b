//! Random tensors: the same bits on every device.

use crate::common;
use calm_kernels::philox::{NoiseKey, RowId, normal, uniform};
use calm_kernels::{noise_normal, noise_uniform};
use candle_core::{Device, Tensor};

#[test]
fn tensors_hold_the_numbers_of_philox_on_every_device() {
    let bits = |t: Tensor| {
        let t = t.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        t.into_iter().map(f32::to_bits).collect::<Vec<_>>()
    };
    let of = |x: Vec<f32>| x.into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let devices: Vec<Device> = [Device::Cpu].into_iter().chain(common::gpu()).collect();
    let key = NoiseKey::new(7, "tensors", 11);
    for (r, samples, dims) in [(1, 1, 1), (5, 3, 7), (64, 8, 128), (3, 2, 262_150), (0, 2, 3), (2, 0, 3)] {
        let rows: Vec<RowId> = (0..r).map(|i| RowId { example: i / 4, position: 9 * (i % 4) }).collect();
        for device in &devices {
            let u = noise_uniform(key, &rows, samples, dims, device).unwrap();
            let n = noise_normal(key, &rows, samples, dims, device).unwrap();
            assert_eq!(
                (u.dims(), n.dims()),
                (&[r as usize, samples, dims][..], &[r as usize, samples, dims][..])
            );
            assert!(bits(u) == of(uniform(key, &rows, samples, dims)), "uniform {r} {samples} {dims}");
            assert!(bits(n) == of(normal(key, &rows, samples, dims)), "normal {r} {samples} {dims}");
        }
    }
}
