//! The energy block on a GPU with f32 parameters beside activations of either type.

use crate::common;
use crate::common::{gpu, random, worst};
use calm_kernels::{Context, EnergyBlockWeights, FlatGradients, Operand, Parameter, energy_block};
use candle_core::{DType, Device, Result, Tensor, Var};

const EPS: f64 = 1e-5;

fn inputs(r: usize, n: usize, d: usize) -> Vec<Tensor> {
    let shapes: [&[usize]; 12] = [
        &[r, n, d],
        &[r, d],
        &[d],
        &[d],
        &[d, 2 * d],
        &[d],
        &[d, d],
        &[d],
        &[2 * d, d],
        &[2 * d],
        &[d, d],
        &[d],
    ];
    // Matrices of a size that keeps activations at about 1.
    let scale = |shape: &[usize]| if shape.len() == 2 { (3.0 / d as f64).sqrt() } else { 1.0 };
    let input = |(seed, (i, shape)): (u64, (usize, &[usize]))| {
        if i < 2 { random(shape, seed) } else { (random(shape, seed) * scale(shape)).unwrap() }
    };
    (1..).zip(shapes.into_iter().enumerate()).map(input).collect()
}

fn block<T: Operand>(v: &[T]) -> Result<Tensor> {
    let weights = EnergyBlockWeights {
        norm: [&v[2], &v[3]],
        first: [&v[4], &v[5]],
        second: [&v[6], &v[7]],
        third: [&v[8], &v[9]],
        down: [&v[10], &v[11]],
    };
    energy_block(v[0].tensor(), v[1].tensor(), weights, EPS)
}

fn vars(inputs: &[Tensor]) -> Vec<Var> {
    inputs.iter().map(|t| Var::from_tensor(t).unwrap()).collect()
}

/// Σ weight·y, times a factor, on the device of y.
fn weighted(y: &Tensor, factor: f64) -> Tensor {
    let weights = (random(y.dims(), 99) * factor).unwrap().to_dtype(y.dtype()).unwrap();
    (y * weights.to_device(y.device()).unwrap()).unwrap().sum_all().unwrap()
}

/// Value and gradients in double precision of the inputs as they are rounded.
fn wanted(inputs: &[Tensor], dtype: DType, factor: f64) -> (Tensor, Vec<Tensor>) {
    let round = |t: &Tensor| t.to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap();
    let vars = vars(&inputs.iter().map(round).collect::<Vec<_>>());
    let y = block(&vars).unwrap();
    let grads = weighted(&y, factor).backward().unwrap();
    (y, vars.iter().map(|v| grads.get(v).unwrap().clone()).collect())
}

/// Activations x and c in `dtype`, parameters in f32, on the GPU.
fn on_gpu(inputs: &[Tensor], dtype: DType, gpu: &Device) -> Vec<Var> {
    let dtype = |i| if i < 2 { dtype } else { DType::F32 };
    let there = |(i, t): (usize, &Tensor)| t.to_dtype(dtype(i)).unwrap().to_device(gpu).unwrap();
    vars(&inputs.iter().enumerate().map(there).collect::<Vec<_>>())
}

fn here(t: &Tensor) -> Tensor {
    t.to_device(&Device::Cpu).unwrap()
}

#[test]
fn parameters_in_f32_go_with_activations_of_either_type_with_and_without_copies_and_buffer() {
    let Some(gpu) = gpu() else { return };
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
        for (r, n, d) in [(1, 1, 2), (3, 4, 10), (40, 8, 32)] {
            let given = inputs(r, n, d);
            let (value, gradients) = wanted(&given, dtype, 0.5);
            for (with_copies, with_buffer) in [(false, false), (true, false), (false, true), (true, true)] {
                let context = Context::new(&gpu);
                let parameter = |v: Var| context.parameter(v.into_inner()).unwrap();
                let vars: Vec<Parameter> = on_gpu(&given, dtype, &gpu).into_iter().map(parameter).collect();
                let parameters = || vars[2..].iter().map(|p| &**p);
                if with_copies {
                    context.keep_copies(parameters(), DType::BF16).unwrap();
                }
                let mut flat = with_buffer.then(|| FlatGradients::new(&context, parameters()).unwrap());
                // A second pass adds to the buffer.
                for round in 1..=2 {
                    let y = block(&vars).unwrap();
                    assert_eq!(y.dtype(), dtype);
                    assert!(worst(&here(&y), &value) < tolerance);
                    let loss = weighted(&y, 0.5);
                    let grads = match &mut flat {
                        Some(flat) => flat.collect(|| loss.backward()),
                        None => loss.backward(),
                    };
                    let grads = grads.unwrap();
                    for (i, (var, want)) in vars.iter().zip(&gradients).enumerate() {
                        let got = match &flat {
                            Some(flat) if i >= 2 => {
                                assert!(grads.get(var).is_none());
                                let sum = flat.get(i - 2).unwrap().unwrap();
                                let sum = Tensor::from_vec(sum, want.shape(), &Device::Cpu).unwrap();
                                (sum / f64::from(round)).unwrap()
                            }
                            _ => here(grads.get(var).unwrap()),
                        };
                        assert_eq!(got.dtype(), if i < 2 { dtype } else { DType::F32 });
                        let off = worst(&got, want);
                        assert!(off < tolerance, "gradient {i} in {dtype:?} at {r} {n} {d}: {off:.1e}");
                    }
                }
            }
        }
    }
}

#[test]
fn only_what_is_asked_for_gets_a_gradient_and_empty_batches_are_empty() {
    let Some(gpu) = gpu() else { return };
    let all = on_gpu(&inputs(5, 3, 8), DType::F32, &gpu);
    let full = weighted(&block(&all).unwrap(), 1.0).backward().unwrap();
    for kept in 0..all.len() {
        let constant =
            |i: usize| if i == kept { all[i].as_tensor().clone() } else { all[i].as_detached_tensor() };
        let t: Vec<Tensor> = (0..all.len()).map(constant).collect();
        let weights = EnergyBlockWeights {
            norm: [&t[2], &t[3]],
            first: [&t[4], &t[5]],
            second: [&t[6], &t[7]],
            third: [&t[8], &t[9]],
            down: [&t[10], &t[11]],
        };
        let grads = weighted(&energy_block(&t[0], &t[1], weights, EPS).unwrap(), 1.0).backward().unwrap();
        let (one, other) = (here(grads.get(&all[kept]).unwrap()), here(full.get(&all[kept]).unwrap()));
        assert_eq!(common::flat(&one), common::flat(&other), "input {kept}");
        assert_eq!(all.iter().filter(|v| grads.get(v).is_some()).count(), 1);
    }
    // Forward only: candle's own sums fail for empty tensors on a GPU.
    for (r, n) in [(0, 3), (2, 0)] {
        assert_eq!(block(&on_gpu(&inputs(r, n, 8), DType::F32, &gpu)).unwrap().dims(), [r, n, 8]);
    }
}
