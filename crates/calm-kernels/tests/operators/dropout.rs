//! Dropout: its mask, its gradient, its independence of how the batch is cut.

use crate::common::{compare, random};
use calm_kernels::philox::{NoiseKey, RowId, uniform};
use calm_kernels::{DropoutMask, dropout, gradcheck};
use candle_core::{DType, Device, Tensor, Var};

fn rows(r: usize) -> Vec<RowId> {
    (0..r as u32).map(|i| RowId { example: i / 5, position: i % 5 }).collect()
}

fn key() -> NoiseKey {
    NoiseKey::new(3, "dropout", 8)
}

fn values(t: &Tensor) -> Vec<f64> {
    t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1().unwrap()
}

#[test]
fn elements_are_kept_where_the_uniform_is_at_least_p() {
    let (r, d, p) = (200, 130, 0.15);
    let ids = rows(r);
    for dtype in [DType::F32, DType::F64] {
        let x = (Tensor::ones((r, d), dtype, &Device::Cpu).unwrap() * 3.0).unwrap();
        let x = Var::from_tensor(&x).unwrap();
        let y = dropout(&x, p, DropoutMask::Draw { key: key(), rows: &ids }).unwrap();
        assert_eq!(y.dims(), x.dims());
        let keep = if dtype == DType::F32 { f64::from((1.0 / (1.0 - p)) as f32) } else { 1.0 / (1.0 - p) };
        let grads = y.sum_all().unwrap().backward().unwrap();
        let gradient = values(grads.get(&x).unwrap());
        let u = uniform(key(), &ids, 1, d);
        let mut kept = 0;
        for ((y, g), u) in values(&y).into_iter().zip(gradient).zip(u) {
            let mask = if u >= p as f32 { keep } else { 0.0 };
            assert_eq!(g, mask);
            assert!((y - 3.0 * mask).abs() < 1e-6);
            kept += usize::from(mask > 0.0);
        }
        // Five standard errors.
        let share = kept as f64 / (r * d) as f64;
        assert!((share - 0.85).abs() < 5.0 * (0.85 * 0.15 / (r * d) as f64).sqrt(), "{share}");
    }
}

#[test]
fn values_and_gradients_equal_a_product_with_the_mask() {
    for (r, d, p) in [(1, 1, 0.5), (7, 30, 0.15), (40, 513, 0.9), (20, 64, 0.0)] {
        let ids = rows(r);
        let mask = |u: f32| if u >= p as f32 { 1.0 / (1.0 - p) } else { 0.0 };
        let mask: Vec<f64> = uniform(key(), &ids, 1, d).into_iter().map(mask).collect();
        let mask = Tensor::from_vec(mask, (r, d), &Device::Cpu).unwrap();
        let inputs = [random(&[r, d], 1)];
        let draw = DropoutMask::Draw { key: key(), rows: &ids };
        compare(&inputs, |v| dropout(&v[0], p, draw), |v| v[0].mul(&mask), 1e-6);
        compare(
            &inputs,
            |v| {
                let mask = mask.to_dtype(v[0].dtype())?.to_device(v[0].device())?;
                dropout(&v[0], p, DropoutMask::Given(&mask))
            },
            |v| v[0].mul(&mask),
            1e-6,
        );
    }
}

#[test]
fn the_mask_of_a_row_does_not_depend_on_the_other_rows() {
    let ids = rows(20);
    let x = Tensor::ones((20, 37), DType::F32, &Device::Cpu).unwrap();
    let all = dropout(&x, 0.5, DropoutMask::Draw { key: key(), rows: &ids }).unwrap();
    let part = x.narrow(0, 7, 6).unwrap();
    let part = dropout(&part, 0.5, DropoutMask::Draw { key: key(), rows: &ids[7..13] }).unwrap();
    assert_eq!(values(&all.narrow(0, 7, 6).unwrap()), values(&part));
}

#[test]
fn a_given_mask_multiplies_and_gradients_pass_the_gradient_check() {
    let x = Tensor::new(&[[1.0f64, -2.0, 0.5], [3.0, 0.1, -1.0]], &Device::Cpu).unwrap();
    let mask = Tensor::new(&[[2.0f64, 0.0, 2.0], [0.0, 2.0, 2.0]], &Device::Cpu).unwrap();
    let y = dropout(&x, 0.5, DropoutMask::Given(&mask)).unwrap();
    assert_eq!(values(&y), vec![2.0, 0.0, 1.0, 0.0, 0.2, -2.0]);
    let ids = rows(2);
    for given in [DropoutMask::Given(&mask), DropoutMask::Draw { key: key(), rows: &ids }] {
        gradcheck::check(std::slice::from_ref(&x), |v| dropout(&v[0], 0.5, given)?.sqr()?.sum_all(), 1e-8)
            .unwrap();
    }
}

#[test]
fn probability_zero_keeps_everything_and_more_dimensions_are_rows() {
    let x = Tensor::rand(0f32, 1.0, (4, 5, 6), &Device::Cpu).unwrap();
    let ids = rows(20);
    let draw = DropoutMask::Draw { key: key(), rows: &ids };
    assert_eq!(values(&dropout(&x, 0.0, draw).unwrap()), values(&x));
    let flat = dropout(&x.flatten(0, 1).unwrap(), 0.3, draw).unwrap();
    assert_eq!(values(&dropout(&x, 0.3, draw).unwrap()), values(&flat));
    let swapped = x.transpose(0, 2).unwrap();
    assert_eq!(
        values(&dropout(&swapped, 0.3, DropoutMask::Draw { key: key(), rows: &rows(30) }).unwrap()),
        values(
            &dropout(&swapped.contiguous().unwrap(), 0.3, DropoutMask::Draw { key: key(), rows: &rows(30) })
                .unwrap()
        )
    );
}

#[test]
fn bits_do_not_depend_on_threads() {
    let ids = rows(900);
    let x = Tensor::arange(0f32, 900.0 * 70.0, &Device::Cpu).unwrap().reshape((900, 70)).unwrap();
    let run = || values(&dropout(&x, 0.4, DropoutMask::Draw { key: key(), rows: &ids }).unwrap());
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    assert_eq!(pool(1).install(run), pool(3).install(run));
}

#[test]
fn bad_arguments_are_named() {
    let x = Tensor::ones((4, 6), DType::F32, &Device::Cpu).unwrap();
    let ids = rows(3);
    let fails = |x: &Tensor, p: f64, mask: DropoutMask<'_>, words: &[&str]| {
        let err = dropout(x, p, mask).unwrap_err().to_string();
        assert!(words.iter().all(|w| err.contains(w)) && err.contains("dropout"), "{err}");
    };
    let draw = DropoutMask::Draw { key: key(), rows: &ids };
    fails(&x, 0.1, draw, &["3 row addresses", "[4, 6]"]);
    for p in [1.0, -0.1, f64::NAN] {
        fails(&x, p, draw, &["[0, 1)"]);
    }
    let mask = x.t().unwrap();
    fails(&x, 0.1, DropoutMask::Given(&mask), &["mask", "[4, 6]", "[6, 4]"]);
    fails(&x.sum_all().unwrap(), 0.1, draw, &["scalar"]);
    fails(&x.to_dtype(DType::BF16).unwrap(), 0.1, draw, &["f32 or f64", "BF16"]);
}
