//! The linear layer against the plain composition of candle's operators.

use crate::common::*;
use calm_kernels::{gradcheck, linear, steady_rows};
use candle_core::{DType, Result, Tensor, Var};

fn linear_plain(x: &Tensor, w: &Tensor, b: Option<&Tensor>) -> Result<Tensor> {
    let y = x.broadcast_matmul(&w.t()?)?;
    match b {
        Some(b) => y.broadcast_add(b),
        None => Ok(y),
    }
}

#[test]
fn values_and_gradients_equal_the_plain_composition() {
    for (dims, i, o) in [(vec![7], 5, 3), (vec![2, 9], 33, 17), (vec![3, 4, 5], 64, 48), (vec![130], 1, 260)]
    {
        let mut shape = dims.clone();
        shape.push(i);
        let inputs = [random(&shape, 1), random(&[o, i], 2), random(&[o], 3)];
        let mut out_shape = dims.clone();
        out_shape.push(o);
        compare(
            &inputs,
            |v| linear(&v[0], &v[1], Some(&v[2])),
            |v| linear_plain(&v[0], &v[1], Some(&v[2])),
            1e-6,
        );
        compare(&inputs[..2], |v| linear(&v[0], &v[1], None), |v| linear_plain(&v[0], &v[1], None), 1e-6);
        let got = linear(&inputs[0], &inputs[1], Some(&inputs[2])).unwrap();
        assert_eq!(got.dims(), out_shape);
        let want = linear_plain(&inputs[0], &inputs[1], Some(&inputs[2])).unwrap();
        assert!(worst(&got, &want) < 1e-12);
    }
}

#[test]
fn gradients_pass_the_check_by_differences() {
    let inputs = [random(&[2, 3, 4], 1), random(&[5, 4], 2), random(&[5], 3)];
    gradcheck::check(&inputs, |v| linear(&v[0], &v[1], Some(&v[2]))?.sqr()?.sum_all(), 1e-7).unwrap();
    gradcheck::check(&inputs[..2], |v| linear(&v[0], &v[1], None)?.sqr()?.sum_all(), 1e-7).unwrap();
}

#[test]
fn any_strides_give_the_same_result() {
    let (x, w) = (random(&[6, 4], 1), random(&[6, 5], 2));
    let got = linear(&x.t().unwrap(), &w.t().unwrap(), None).unwrap();
    let want = x.t().unwrap().matmul(&w).unwrap();
    assert!(worst(&got, &want) < 1e-12);
    let inputs = [x, w];
    gradcheck::check(&inputs, |v| linear(&v[0].t()?, &v[1].t()?, None)?.sqr()?.sum_all(), 1e-7).unwrap();
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for (r, i, o) in [(600, 96, 200), (33, 700, 130), (1, 300, 500)] {
        let inputs = [random(&[r, i], 1), random(&[o, i], 2), random(&[o], 3)];
        same_bits_for_any_thread_count(&inputs, |v| linear(&v[0], &v[1], Some(&v[2])));
    }
}

#[test]
fn constants_get_no_gradient() {
    let x = random(&[3, 4], 1);
    let w = Var::from_tensor(&random(&[2, 4], 2)).unwrap();
    let grads = linear(&x, &w, None).unwrap().sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&x).is_none());
    assert!(grads.get(&w).is_some());
}

#[test]
fn empty_inputs_give_empty_outputs() {
    let y = linear(&random(&[0, 4], 1), &random(&[2, 4], 2), Some(&random(&[2], 3))).unwrap();
    assert_eq!(y.dims(), [0, 2]);
}

#[test]
fn wrong_shapes_and_types_are_errors_that_name_them() {
    let t = |dims: &[usize]| random(dims, 1);
    let scalar = t(&[1]).reshape(()).unwrap();
    for (x, w, b) in [
        (t(&[3, 4]), t(&[2, 5]), None),
        (t(&[3, 4]), t(&[4]), None),
        (t(&[3, 4]), t(&[2, 4]), Some(t(&[3]))),
        (scalar, t(&[2, 4]), None),
    ] {
        let err = linear(&x, &w, b.as_ref().map(|b| b as _)).unwrap_err().to_string();
        assert!(err.contains("linear") && err.contains(&format!("{:?}", w.dims())), "{err}");
    }
    let err = linear(&t(&[3, 4]), &t(&[2, 4]).to_dtype(DType::F32).unwrap(), None).unwrap_err().to_string();
    assert!(err.contains("linear") && err.contains("F32"), "{err}");
}

#[test]
fn from_so_many_rows_on_a_row_does_not_depend_on_the_others() {
    for (o, i) in [(128, 128), (352, 128), (256, 512), (64, 768), (16, 16), (5, 700), (40, 1200), (300, 1100)]
    {
        let (x, w, b) = (random(&[80, i], 1), random(&[o, i], 2), random(&[o], 3));
        let f32s = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
        let (x, w, b) = (f32s(&x), f32s(&w), f32s(&b));
        let all = linear(&x, &w, Some(&b)).unwrap().to_vec2::<f32>().unwrap();
        let least = steady_rows(o, i);
        for rows in [least, least + 1, least + 2, 11, 33, 64, 65, 79] {
            if !(least..=79).contains(&rows) {
                continue;
            }
            for first in [0, 1] {
                let some = x.narrow(0, first, rows).unwrap();
                let some = linear(&some, &w, Some(&b)).unwrap().to_vec2::<f32>().unwrap();
                for (row, (got, want)) in some.iter().zip(&all[first..]).enumerate() {
                    let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                    assert_eq!(bits(got), bits(want), "[{o}, {i}]: row {row} of {rows} from {first}");
                }
            }
        }
    }
}
