//! SiLU, the gated units and the rotary embedding against plain compositions.

use crate::common::*;
use calm_kernels::{add_silu, gradcheck, rotary, silu, swiglu, swiglu_packed};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use std::slice::from_ref;

const SHAPES: [&[usize]; 4] = [&[2], &[3, 10], &[2, 5, 66], &[300, 256]];

fn swiglu_plain(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    gate.silu()?.mul(up)
}

fn add_silu_plain(x: &Tensor, row: &Tensor) -> Result<Tensor> {
    x.broadcast_add(&row.unsqueeze(1)?)?.silu()
}

fn spread(shape: &[usize], seed: u64) -> Tensor {
    (random(shape, seed) * 8.0).unwrap()
}

#[test]
fn silu_and_swiglu_equal_the_plain_compositions() {
    for shape in SHAPES {
        let inputs = [spread(shape, 1), spread(shape, 2)];
        compare(&inputs[..1], |v| silu(&v[0]), |v| v[0].silu(), 1e-6);
        compare(&inputs, |v| swiglu(&v[0], &v[1]), |v| swiglu_plain(&v[0], &v[1]), 1e-6);
        let halves = |x: &Tensor| x.chunk(2, D::Minus1);
        let plain = |x: &Tensor| swiglu_plain(&halves(x)?[0], &halves(x)?[1]);
        compare(&inputs[..1], |v| swiglu_packed(&v[0]), |v| plain(&v[0]), 1e-6);
    }
}

#[test]
fn add_silu_equals_the_plain_composition() {
    for [r, n, d] in [[1, 1, 1], [4, 3, 5], [130, 8, 64], [2, 300, 90]] {
        let inputs = [spread(&[r, n, d], 1), spread(&[r, d], 2)];
        compare(&inputs, |v| add_silu(&v[0], &v[1]), |v| add_silu_plain(&v[0], &v[1]), 2e-6);
    }
}

#[test]
fn far_inputs_give_the_limits_and_finite_gradients() {
    for dtype in [DType::F32, DType::F64] {
        let x = Tensor::new(&[-1e4f64, -200.0, 0.0, 200.0, 1e4], &Device::Cpu).unwrap();
        let x = Var::from_tensor(&x.to_dtype(dtype).unwrap()).unwrap();
        let y = silu(&x).unwrap();
        for (got, want) in flat(&y).iter().zip([0.0, 0.0, 0.0, 200.0, 1e4]) {
            assert!((got - want).abs() < 1e-30, "{got} {want}");
        }
        let grads = y.sum_all().unwrap().backward().unwrap();
        for (got, want) in flat(grads.get(&x).unwrap()).iter().zip([0.0, 0.0, 0.5, 1.0, 1.0]) {
            assert!((got - want).abs() < 1e-30, "{got} {want}");
        }
    }
}

#[test]
fn gradients_pass_the_check_by_differences() {
    let x = spread(&[2, 3, 4], 1);
    gradcheck::check(from_ref(&x), |v| silu(&v[0])?.sqr()?.sum_all(), 1e-7).unwrap();
    gradcheck::check(from_ref(&x), |v| swiglu_packed(&v[0])?.sqr()?.sum_all(), 1e-7).unwrap();
    gradcheck::check(&[x.clone(), spread(&[2, 3, 4], 2)], |v| swiglu(&v[0], &v[1])?.sqr()?.sum_all(), 1e-7)
        .unwrap();
    gradcheck::check(&[x, spread(&[2, 4], 2)], |v| add_silu(&v[0], &v[1])?.sqr()?.sum_all(), 1e-7).unwrap();
    let positions = positions(&[[0, 3, 9]]);
    let x = random(&[1, 3, 2, 6], 3);
    gradcheck::check(&[x], |v| rotary(&v[0], &positions, 1e4)?.powf(3.0)?.sum_all(), 1e-6).unwrap();
}

fn positions<const B: usize, const S: usize>(p: &[[u32; S]; B]) -> Tensor {
    Tensor::new(p, &Device::Cpu).unwrap()
}

/// The same of tensors.
fn rotary_plain(x: &Tensor, positions: &Tensor, theta: f64) -> Result<Tensor> {
    let (b, s, _, dh) = x.dims4()?;
    let half = dh / 2;
    let frequency: Vec<f64> = (0..half).map(|i| theta.powf(-2.0 * i as f64 / dh as f64)).collect();
    let frequency = Tensor::from_vec(frequency, (1, 1, 1, half), x.device())?;
    let angles = positions.to_dtype(DType::F64)?.reshape((b, s, 1, 1))?.broadcast_mul(&frequency)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let (x1, x2) = (x.narrow(3, 0, half)?, x.narrow(3, half, half)?);
    let y1 = (x1.broadcast_mul(&cos)? - x2.broadcast_mul(&sin)?)?;
    let y2 = (x2.broadcast_mul(&cos)? + x1.broadcast_mul(&sin)?)?;
    Tensor::cat(&[y1, y2], 3)
}

/// Naive loop over (b, s, h, i).
fn rotary_naive(x: &Tensor, positions: &Tensor, theta: f64) -> Tensor {
    let (_, s, h, dh) = x.dims4().unwrap();
    let half = dh / 2;
    let (xs, ps) = (flat(x), positions.to_vec2::<u32>().unwrap());
    let mut out = vec![0.0; xs.len()];
    for (bi, ps) in ps.iter().enumerate() {
        for (si, &p) in ps.iter().enumerate() {
            for hi in 0..h {
                let at = ((bi * s + si) * h + hi) * dh;
                for i in 0..half {
                    let phi = p as f64 * theta.powf(-2.0 * i as f64 / dh as f64);
                    let (x1, x2) = (xs[at + i], xs[at + half + i]);
                    out[at + i] = x1 * phi.cos() - x2 * phi.sin();
                    out[at + half + i] = x2 * phi.cos() + x1 * phi.sin();
                }
            }
        }
    }
    Tensor::from_vec(out, x.dims(), &Device::Cpu).unwrap()
}

#[test]
fn rotary_turns_pairs_by_their_angles() {
    for (dims, p) in [
        ([2, 3, 2, 8], positions(&[[0, 1, 2], [7, 500, 0]])),
        ([1, 3, 5, 48], positions(&[[2047, 3, 8191]])),
        ([1, 2, 1, 2], positions(&[[1, 4_000_000_000]])),
    ] {
        let x = random(&dims, 1);
        compare(
            from_ref(&x),
            |v| rotary(&v[0], &p.to_device(v[0].device())?, 1e4),
            |v| rotary_plain(&v[0], &p, 1e4),
            1e-6,
        );
        let want = rotary_naive(&x, &p, 1e4);
        assert!(worst(&rotary(&x, &p, 1e4).unwrap(), &want) < 1e-12);
        let single = rotary(&x.to_dtype(DType::F32).unwrap(), &p, 1e4).unwrap();
        let off = worst(&single, &want);
        println!("rotary f32 off by {off:.1e}");
        assert!(off < 3e-7);
    }
}

#[test]
fn rotary_backward_turns_back() {
    let p = positions(&[[5, 9, 1], [0, 77, 3]]);
    let x = Var::from_tensor(&random(&[2, 3, 2, 16], 1)).unwrap();
    let w = random(&[2, 3, 2, 16], 2);
    let y = rotary(&x, &p, 1e4).unwrap();
    let turned = rotary(&w, &p, 1e4).unwrap();
    let grads = (y * &turned).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(worst(grads.get(&x).unwrap(), &w) < 1e-12);
}

#[test]
fn rotary_scores_depend_on_the_distance_only() {
    let (q, k) = (random(&[1, 1, 1, 64], 1), random(&[1, 1, 1, 64], 2));
    let score = |a: u32, b: u32| {
        let q = rotary(&q, &positions(&[[a]]), 1e4).unwrap();
        let k = rotary(&k, &positions(&[[b]]), 1e4).unwrap();
        (q * k).unwrap().sum_all().unwrap().to_scalar::<f64>().unwrap()
    };
    assert!((score(3, 1) - score(1003, 1001)).abs() < 1e-11);
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let x = spread(&[130, 8, 64], 1);
    same_bits_for_any_thread_count(from_ref(&x), |v| silu(&v[0]));
    same_bits_for_any_thread_count(from_ref(&x), |v| swiglu_packed(&v[0]));
    same_bits_for_any_thread_count(&[x.clone(), x.clone()], |v| swiglu(&v[0], &v[1]));
    same_bits_for_any_thread_count(&[x.clone(), spread(&[130, 64], 2)], |v| add_silu(&v[0], &v[1]));
    let p = Tensor::arange(0u32, 130, &Device::Cpu).unwrap().unsqueeze(0).unwrap();
    let x = x.unsqueeze(0).unwrap();
    same_bits_for_any_thread_count(&[x], |v| rotary(&v[0], &p, 1e4));
}

#[test]
fn any_strides_give_the_same_result() {
    let x = spread(&[6, 4, 10], 1).transpose(0, 1).unwrap();
    let row = spread(&[10, 4], 2).t().unwrap();
    assert!(worst(&silu(&x).unwrap(), &x.silu().unwrap()) < 1e-12);
    assert!(worst(&swiglu(&x, &x).unwrap(), &swiglu_plain(&x, &x).unwrap()) < 1e-12);
    let packed = swiglu_plain(&x.narrow(2, 0, 5).unwrap(), &x.narrow(2, 5, 5).unwrap()).unwrap();
    assert!(worst(&swiglu_packed(&x).unwrap(), &packed) < 1e-12);
    assert!(worst(&add_silu(&x, &row).unwrap(), &add_silu_plain(&x, &row).unwrap()) < 1e-12);
    let x = random(&[3, 2, 2, 4], 3).transpose(0, 1).unwrap();
    let p = positions(&[[1, 2], [3, 4], [5, 6]]).t().unwrap();
    let want = rotary_naive(&x.contiguous().unwrap(), &p.contiguous().unwrap(), 100.0);
    assert!(worst(&rotary(&x, &p, 100.0).unwrap(), &want) < 1e-12);
}

#[test]
fn wrong_shapes_and_types_are_errors_that_name_them() {
    let x = random(&[3, 4, 5], 1);
    let named = |r: Result<Tensor>, op: &str, shape: &str| {
        let err = r.unwrap_err().to_string();
        assert!(err.contains(op) && err.contains(shape), "{err}");
    };
    named(silu(&x.to_dtype(DType::BF16).unwrap()), "silu", "BF16");
    named(swiglu(&x, &random(&[3, 4], 1)), "swiglu", "[3, 4, 5]");
    named(swiglu(&x, &x.to_dtype(DType::F32).unwrap()), "swiglu", "F32");
    named(swiglu_packed(&x), "swiglu_packed", "[3, 4, 5]");
    named(swiglu_packed(&x.get(0).unwrap().get(0).unwrap().get(0).unwrap()), "swiglu_packed", "[]");
    named(add_silu(&x, &random(&[3, 4], 1)), "add_silu", "[3, 4]");
    let p = positions(&[[1, 2, 3]]);
    named(rotary(&random(&[1, 3, 2, 5], 1), &p, 1e4), "rotary", "[1, 3, 2, 5]");
    named(rotary(&random(&[1, 4, 2, 6], 1), &p, 1e4), "rotary", "[1, 4, 2, 6]");
    named(rotary(&random(&[1, 3, 2, 6], 1), &p.to_dtype(DType::I64).unwrap(), 1e4), "rotary", "I64");
}

#[test]
fn empty_inputs_give_empty_outputs() {
    assert_eq!(silu(&random(&[0, 4], 1)).unwrap().dims(), [0, 4]);
    assert_eq!(swiglu_packed(&random(&[0, 4], 1)).unwrap().dims(), [0, 2]);
    let (x, row) =
        (Var::from_tensor(&random(&[2, 0, 4], 1)).unwrap(), Var::from_tensor(&random(&[2, 4], 1)).unwrap());
    let y = add_silu(&x, &row).unwrap();
    assert_eq!(y.dims(), [2, 0, 4]);
    assert_eq!(flat(y.sum_all().unwrap().backward().unwrap().get(&row).unwrap()), vec![0.0; 8]);
}
