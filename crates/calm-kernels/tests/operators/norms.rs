//! RMSNorm and LayerNorm against plain compositions of candle's operators.

use crate::common::*;
use calm_kernels::{Operand, gradcheck, layer_norm, rms_norm};
use candle_core::{D, DType, Result, Tensor, Var};

const EPS: f64 = 1e-6;

fn rms_norm_plain(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let s = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    x.broadcast_div(&s)?.broadcast_mul(w)
}

fn layer_norm_plain(x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let s = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    let y = x.broadcast_div(&s)?;
    let y = w.map_or(Ok(y.clone()), |w| y.broadcast_mul(w))?;
    b.map_or(Ok(y.clone()), |b| y.broadcast_add(b))
}

/// Weight and bias as the trailing one or two variables.
fn layer(
    v: &[Var],
    w: bool,
    b: bool,
    f: fn(&Tensor, Option<&Tensor>, Option<&Tensor>) -> Result<Tensor>,
) -> Result<Tensor> {
    let weight = w.then(|| v[1].as_tensor());
    let bias = b.then(|| v[v.len() - 1].as_tensor());
    f(&v[0], weight, bias)
}

fn ours(x: &Tensor, w: Option<&Tensor>, b: Option<&Tensor>) -> Result<Tensor> {
    fn operand(p: Option<&Tensor>) -> Option<&dyn Operand> {
        p.map(|p| p as _)
    }
    layer_norm(x, operand(w), operand(b), EPS)
}

const SHAPES: [&[usize]; 5] = [&[1], &[3, 7], &[2, 5, 33], &[300, 256], &[70_000, 2]];

fn inputs(shape: &[usize]) -> [Tensor; 3] {
    let d = &shape[shape.len() - 1..];
    [(random(shape, 1) * 3.0).unwrap(), random(d, 2), random(d, 3)]
}

#[test]
fn rms_norm_equals_the_plain_composition() {
    for shape in SHAPES {
        let inputs = inputs(shape);
        compare(&inputs[..2], |v| rms_norm(&v[0], &v[1], EPS), |v| rms_norm_plain(&v[0], &v[1]), 2e-6);
    }
}

#[test]
fn layer_norm_equals_the_plain_composition_with_and_without_parameters() {
    // (Over one or two elements the normalised values are ±1 and every gradient nearly cancels.)
    for shape in &SHAPES[1..4] {
        let [x, w, b] = inputs(shape);
        for (has_w, has_b, inputs) in [
            (true, true, vec![x.clone(), w.clone(), b.clone()]),
            (true, false, vec![x.clone(), w]),
            (false, true, vec![x.clone(), b]),
            (false, false, vec![x]),
        ] {
            compare(
                &inputs,
                |v| layer(v, has_w, has_b, ours),
                |v| layer(v, has_w, has_b, layer_norm_plain),
                2e-6,
            );
        }
    }
}

#[test]
fn a_large_mean_does_not_cost_layer_norm_its_precision() {
    let x = (random(&[4, 512], 1) + 300.0).unwrap();
    let want = layer_norm_plain(&x, None, None).unwrap();
    let x = x.to_dtype(DType::F32).unwrap();
    let want32 = layer_norm_plain(&x.to_dtype(DType::F64).unwrap(), None, None).unwrap();
    assert!(worst(&layer_norm(&x, None, None, EPS).unwrap(), &want32) < 1e-4);
    assert!(worst(&want32, &want) < 1e-3);
}

#[test]
fn gradients_pass_the_check_by_differences() {
    let [x, w, b] = inputs(&[2, 3, 5]);
    let check = |inputs: &[Tensor], f: &dyn Fn(&[Var]) -> Result<Tensor>| {
        gradcheck::check(inputs, |v| (f(v)? + 0.5)?.powf(3.0)?.sum_all(), 1e-6).unwrap();
    };
    check(&[x.clone(), w.clone()], &|v| rms_norm(&v[0], &v[1], EPS));
    check(&[x.clone(), w.clone(), b.clone()], &|v| layer(v, true, true, ours));
    check(&[x.clone(), w], &|v| layer(v, true, false, ours));
    check(&[x.clone(), b], &|v| layer(v, false, true, ours));
    check(&[x], &|v| layer(v, false, false, ours));
}

#[test]
fn rows_of_zeros_stay_finite() {
    let x = Tensor::zeros((2, 8), DType::F32, &candle_core::Device::Cpu).unwrap();
    let one = x.get(0).unwrap().ones_like().unwrap();
    for y in [rms_norm(&x, &one, EPS).unwrap(), layer_norm(&x, Some(&one), None, EPS).unwrap()] {
        assert_eq!(flat(&y), vec![0.0; 16]);
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let inputs = inputs(&[1003, 96]);
    same_bits_for_any_thread_count(&inputs[..2], |v| rms_norm(&v[0], &v[1], EPS));
    same_bits_for_any_thread_count(&inputs, |v| layer(v, true, true, ours));
}

#[test]
fn any_strides_give_the_same_result() {
    let x = random(&[6, 9], 1);
    let wide = random(&[6, 2], 2);
    let (xt, w, b) = (x.t().unwrap(), wide.narrow(1, 0, 1).unwrap(), wide.narrow(1, 1, 1).unwrap());
    let (w, b) = (w.squeeze(1).unwrap(), b.squeeze(1).unwrap());
    assert!(worst(&rms_norm(&xt, &w, EPS).unwrap(), &rms_norm_plain(&xt, &w).unwrap()) < 1e-12);
    let want = layer_norm_plain(&xt, Some(&w), Some(&b)).unwrap();
    assert!(worst(&layer_norm(&xt, Some(&w), Some(&b), EPS).unwrap(), &want) < 1e-12);
}

#[test]
fn wrong_shapes_and_types_are_errors_that_name_them() {
    let (x, w) = (random(&[3, 4], 1), random(&[5], 2));
    let err = rms_norm(&x, &w, EPS).unwrap_err().to_string();
    assert!(err.contains("rms_norm") && err.contains("[3, 4]") && err.contains("[5]"), "{err}");
    let err = layer_norm(&x, None, Some(&w), EPS).unwrap_err().to_string();
    assert!(err.contains("layer_norm") && err.contains("[3, 4]") && err.contains("[5]"), "{err}");
    let scalar = w.get(0).unwrap();
    assert!(rms_norm(&scalar, &w, EPS).is_err() && layer_norm(&scalar, None, None, EPS).is_err());
    let half = x.to_dtype(DType::BF16).unwrap();
    let err = layer_norm(&half, None, None, EPS).unwrap_err().to_string();
    assert!(err.contains("layer_norm") && err.contains("BF16"), "{err}");
    let w32 = random(&[4], 1).to_dtype(DType::F32).unwrap();
    assert!(rms_norm(&x, &w32, EPS).is_err());
}

#[test]
fn empty_inputs_give_empty_outputs_and_zero_gradients() {
    let x = Var::from_tensor(&random(&[0, 4], 1)).unwrap();
    let w = Var::from_tensor(&random(&[4], 2)).unwrap();
    for y in [rms_norm(&x, &w, EPS).unwrap(), layer_norm(&x, Some(&w), Some(&w), EPS).unwrap()] {
        assert_eq!(y.dims(), [0, 4]);
        assert_eq!(flat(y.sum_all().unwrap().backward().unwrap().get(&w).unwrap()), vec![0.0; 4]);
    }
}
