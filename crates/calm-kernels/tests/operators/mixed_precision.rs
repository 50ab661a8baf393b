//! Parameters in f32 with activations in bf16 on a GPU: read as they are or as kept copies, their gradients
//! collected in f32.

use crate::common::*;
use calm_kernels as ops;
use calm_kernels::{Context, FlatGradients, Operand, Parameter};
use candle_core::{D, DType, Device, Result, Tensor, Var};

const EPS: f64 = 1e-5;

/// An operator of x and parameters, in this order, and the plain composition.
type Of<'a> = &'a dyn Fn(&[Parameter]) -> Result<Tensor>;
type Plain<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

/// `f` of x and parameters, where x is of each type that a GPU takes and the parameters are f32, with and without
/// copies: value, gradient of x, and twice the gradients of the parameters after two passes into one buffer,
/// against `plain` in double precision.
fn check(what: &str, inputs: &[Tensor], f: Of<'_>, plain: Plain<'_>) {
    let Some(gpu) = gpu() else { return };
    for (dtype, tol) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
        let round = |t: &Tensor, to| t.to_dtype(to).unwrap().to_dtype(DType::F64).unwrap();
        let types: Vec<DType> = (0..inputs.len()).map(|i| if i == 0 { dtype } else { DType::F32 }).collect();
        let rounded: Vec<Tensor> = inputs.iter().zip(&types).map(|(t, &to)| round(t, to)).collect();
        let want = value_and_gradients(&rounded, DType::F64, &|v| {
            plain(&v.iter().map(|v| v.as_tensor().clone()).collect::<Vec<_>>())
        });
        for with_copies in [false, true] {
            let there = |(t, &to): (&Tensor, &DType)| t.to_dtype(to)?.to_device(&gpu);
            let context = Context::new(&gpu);
            let vars: Vec<Parameter> = rounded
                .iter()
                .zip(&types)
                .map(|pair| Var::from_tensor(&there(pair).unwrap()).unwrap().into_inner())
                .map(|var| context.parameter(var).unwrap())
                .collect();
            let parameters = || vars[1..].iter().map(|p| &**p);
            let mut flat = FlatGradients::new(&context, parameters()).unwrap();
            if with_copies {
                context.keep_copies(parameters(), dtype).unwrap();
            }
            for pass in 1..3 {
                let value = f(&vars).unwrap();
                assert_eq!(value.dtype(), dtype);
                let weights = random(value.dims(), 99).to_dtype(dtype).unwrap().to_device(&gpu).unwrap();
                let loss = (&value * weights).unwrap().sum_all().unwrap();
                let grads = flat.collect(|| loss.backward()).unwrap();
                let near = |name: &str, got: &Tensor, want: &Tensor| {
                    let off = worst(&got.to_device(&Device::Cpu).unwrap(), want);
                    assert!(
                        off <= tol,
                        "{what}: {name} in {dtype:?} is off by {off:.1e} (copies: {with_copies})"
                    );
                };
                near("value", &value, &want[0]);
                near("gradient of x", grads.get(&vars[0]).unwrap(), &want[1]);
                for (i, want) in want[2..].iter().enumerate() {
                    assert!(grads.get(&vars[i + 1]).is_none() && flat.reached(i));
                    let got = Tensor::from_vec(flat.get(i).unwrap().unwrap(), want.dims(), &Device::Cpu);
                    let want = (want * f64::from(pass)).unwrap();
                    near(&format!("gradient of parameter {i} after pass {pass}"), &got.unwrap(), &want);
                }
            }
        }
    }
}

fn rms_norm_plain(x: &Tensor, w: &Tensor) -> Result<Tensor> {
    let s = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    x.broadcast_div(&s)?.broadcast_mul(w)
}

fn layer_norm_plain(x: &Tensor, w: &Tensor, b: &Tensor) -> Result<Tensor> {
    let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let s = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
    x.broadcast_div(&s)?.broadcast_mul(w)?.broadcast_add(b)
}

#[test]
fn linear_layers_take_f32_parameters() {
    let (r, i, o) = (70, 33, 20);
    let inputs = [random(&[2, r, i], 1), random(&[o, i], 2), random(&[o], 3)];
    let plain = |v: &[Tensor]| v[0].broadcast_matmul(&v[1].t()?);
    check("linear", &inputs[..2], &|v| ops::linear(&v[0], &v[1], None), &plain);
    check("linear with a bias", &inputs, &|v| ops::linear(&v[0], &v[1], Some(&v[2])), &|v| {
        plain(v)?.broadcast_add(&v[2])
    });
}

#[test]
fn norms_take_f32_parameters() {
    let inputs = [random(&[300, 48], 1), random(&[48], 2), random(&[48], 3)];
    check("rms_norm", &inputs[..2], &|v| ops::rms_norm(&v[0], &v[1], EPS), &|v| rms_norm_plain(&v[0], &v[1]));
    check("layer_norm", &inputs, &|v| ops::layer_norm(&v[0], Some(&v[1]), Some(&v[2]), EPS), &|v| {
        layer_norm_plain(&v[0], &v[1], &v[2])
    });
}

#[test]
fn the_mlp_takes_f32_parameters() {
    let (d, i) = (32, 80);
    let inputs =
        [random(&[2, 30, d], 1), random(&[d], 2), random(&[i, d], 3), random(&[i, d], 4), random(&[d, i], 5)];
    let plain = |v: &[Tensor]| {
        let h = rms_norm_plain(&v[0], &v[1])?;
        let (gate, up) = (h.broadcast_matmul(&v[2].t()?)?, h.broadcast_matmul(&v[3].t()?)?);
        &v[0] + (gate.silu()? * up)?.broadcast_matmul(&v[4].t()?)?
    };
    check("mlp_block", &inputs, &|v| ops::mlp_block(&v[0], &v[1], [&v[2], &v[3], &v[4]], EPS), &plain);
}

#[test]
fn an_f32_table_gives_rows_of_the_activations() {
    let (v, d, count) = (40u32, 12, 200u32);
    let ids: Vec<u32> = (0..count).map(|i| if i % 3 == 0 { 7 } else { i * i % v }).collect();
    let ids = Tensor::new(ids, &Device::Cpu).unwrap();
    let inputs = [random(&[count as usize, d], 1), random(&[v as usize, d], 2)];
    let rows = |v: &[Parameter]| {
        let ids = ids.to_device(v[0].device())?;
        v[0].tensor() + ops::embedding_as(&ids, &v[1], None, v[0].dtype())?
    };
    check("embedding", &inputs, &rows, &|v| &v[0] + v[1].index_select(&ids, 0)?);
}

// Forward only: candle's own sums and fills fail for empty tensors on a GPU.
#[test]
fn empty_inputs_give_empty_outputs_on_a_gpu() {
    let Some(gpu) = gpu() else { return };
    let var = |shape: &[usize]| Var::from_tensor(&Tensor::zeros(shape, DType::F32, &gpu).unwrap()).unwrap();
    let (x, d, w) = (var(&[0, 4]), var(&[4]), var(&[2, 4]));
    assert_eq!(ops::linear(&x, &w, None).unwrap().dims(), [0, 2]);
    assert_eq!(ops::linear(&x, &w, Some(&var(&[2]))).unwrap().dims(), [0, 2]);
    assert_eq!(ops::silu(&x).unwrap().dims(), [0, 4]);
    assert_eq!(ops::swiglu(&x, &x).unwrap().dims(), [0, 4]);
    assert_eq!(ops::swiglu_packed(&x).unwrap().dims(), [0, 2]);
    assert_eq!(ops::rms_norm(&x, &d, EPS).unwrap().dims(), [0, 4]);
    assert_eq!(ops::layer_norm(&x, Some(&d), Some(&d), EPS).unwrap().dims(), [0, 4]);
    assert_eq!(ops::mlp_block(&x, &d, [&w, &w, &var(&[4, 2])], EPS).unwrap().dims(), [0, 4]);
    assert_eq!(ops::add_silu(&var(&[2, 0, 4]), &w).unwrap().dims(), [2, 0, 4]);
    let none = ops::DropoutMask::Draw { key: ops::NoiseKey::new(1, "none", 0), rows: &[] };
    assert_eq!(ops::dropout(&x, 0.5, none).unwrap().dims(), [0, 4]);
    let ids = Tensor::zeros((0, 3), DType::U32, &gpu).unwrap();
    assert_eq!(ops::embedding(&ids, &w, None).unwrap().dims(), [0, 3, 4]);
    assert_eq!(ops::rotary(&var(&[0, 3, 2, 4]), &ids, 1e4).unwrap().dims(), [0, 3, 2, 4]);
}

/// How often this thread has waited for the device; only the device of `kernels/host-device` counts it.
fn waits() -> Option<u64> {
    use std::ffi::{c_char, c_int, c_void};
    unsafe extern "C" {
        fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
        fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    }
    const LAZY: c_int = 1;
    // SAFETY: both names end with 0; the library stays loaded, and the function is `uint64_t f()`.
    unsafe {
        let driver = dlopen(c"libcuda.so.1".as_ptr(), LAZY);
        let count = dlsym(driver, c"calm_host_device_synchronisations_here".as_ptr());
        if count.is_null() {
            return None;
        }
        let count: extern "C" fn() -> u64 = std::mem::transmute(count);
        Some(count())
    }
}

#[test]
fn a_step_does_not_wait_for_the_gpu() {
    let Some(gpu) = gpu() else { return };
    if waits().is_none() {
        return;
    }
    let (b, s, heads, dh, inner) = (2, 9, 2, 8, 24);
    let d = heads * dh;
    let of = |shape: &[usize], dtype| random(shape, 5).to_dtype(dtype).unwrap().to_device(&gpu).unwrap();
    let context = Context::new(&gpu);
    let parameter = |shape: &[usize]| {
        context.parameter(Var::from_tensor(&of(shape, DType::F32)).unwrap().into_inner()).unwrap()
    };
    let (table, norm, bias) = (parameter(&[30, d]), parameter(&[d]), parameter(&[d]));
    let (gate, up, down) = (parameter(&[inner, d]), parameter(&[inner, d]), parameter(&[d, inner]));
    let (square, wide) = (parameter(&[d, d]), parameter(&[2 * d, d]));
    let all = || [&table, &norm, &bias, &gate, &up, &down, &square, &wide].map(|p| p.tensor());
    let ids = Tensor::new(&[[4u32; 9], [29; 9]], &gpu).unwrap();
    let rows: Vec<ops::RowId> = (0..18).map(|i| ops::RowId { example: i / 9, position: i % 9 }).collect();
    let mut flat = FlatGradients::new(&context, all()).unwrap();
    context.keep_copies(all(), DType::BF16).unwrap();
    let mut step = |number: u32| -> Result<()> {
        let key = ops::NoiseKey::new(3, "step", number);
        let x = ops::embedding_as(&ids, &table, Some(0), DType::BF16)?;
        let x = ops::mlp_block(&x, &norm, [&gate, &up, &down], EPS)?;
        let x = ops::dropout(&context.with(&x), 0.2, ops::DropoutMask::Draw { key, rows: &rows })?;
        let x = ops::layer_norm(&x, Some(&norm), Some(&bias), EPS)?;
        let x = x.reshape((b, s, heads, dh))?;
        let x = ops::rotary(&context.with(&x), &ids, 1e4)?.reshape((b, s, d))?;
        let x = ops::add_silu(&x, &ops::silu(&x.narrow(1, 0, 1)?.squeeze(1)?)?)?;
        let x = ops::swiglu_packed(&ops::linear(&ops::rms_norm(&x, &norm, EPS)?, &wide, None)?)?;
        let x = ops::swiglu(&x, &ops::linear(&x, &square, Some(&bias))?)?;
        let noise = ops::noise_normal(key, &rows, 1, d, &context)?.reshape((b, s, d))?;
        let loss = (x * noise.to_dtype(DType::BF16)?)?.sum_all()?;
        flat.collect(|| loss.backward()).map(|_| ())
    };
    // Modules are loaded at their first use.
    step(0).unwrap();
    let before = waits();
    step(1).unwrap();
    assert_eq!(waits(), before);
}

#[test]
fn parts_of_the_moments_update_and_hand_out_what_the_whole_does() {
    let Some(gpu) = gpu() else { return };
    let shapes: [&[usize]; 3] = [&[37, 11], &[5], &[70, 300]];
    let end: usize = 407 + 5 + 21_000;
    let settings = ops::AdamWStep {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.95,
        eps: 1e-8,
        weight_decay: 0.1,
        step: 1,
        grad_scale: 1.0,
    };
    // Each in a context of its own, after one update of its part.
    let updated = |part: std::ops::Range<usize>| {
        let context = Context::new(&gpu);
        let of =
            |i: usize, seed| random(shapes[i], seed).to_dtype(DType::F32).unwrap().to_device(&gpu).unwrap();
        let all = [0, 1, 2].map(|i| Var::from_tensor(&of(i, 5)).unwrap().into_inner());
        context.keep_copies(&all, DType::BF16).unwrap();
        // Matrices decay; the largest parameter has a rate of its own.
        let treatment = |p: &Tensor| ops::Treatment {
            decays: p.rank() > 1,
            rate: if p.elem_count() > 1000 { 0.5 } else { 1.0 },
            eps: 1.0,
        };
        let parameters = all.iter().map(|p| (p.clone(), treatment(p))).collect();
        let mut moments = ops::Moments::of_part(&context, parameters, part).unwrap();
        let mut flat = FlatGradients::new(&context, &all).unwrap();
        (0..3).for_each(|i| flat.add(i, &of(i, 6)).unwrap());
        let clip = flat.clip(1.0).unwrap();
        moments.update(&mut flat, &settings, &clip).unwrap();
        (context, all, moments, flat)
    };
    let numbers = |all: &[Tensor]| all.iter().flat_map(flat).collect::<Vec<_>>();
    // What products read.
    let copy = |context: &Context, all: &[Tensor]| {
        let eye = Tensor::eye(300, DType::BF16, &gpu).unwrap();
        flat(&ops::linear(&eye, &context.parameter(all[2].clone()).unwrap(), None).unwrap())
    };
    let whole = updated(0..end);
    let want = (numbers(&whole.1), copy(&whole.0, &whole.1), whole.2.of_own().unwrap());
    // Borders inside of parameters, a part of nothing, and one of many chunks.
    let parts = [0..3, 3..3, 3..409, 409..end].map(updated);
    let both = parts.each_ref().map(|part| part.2.of_own().unwrap());
    for which in 0..2 {
        assert_eq!(both.each_ref().map(|both| both[which].to_vec()).concat(), want.2[which].to_vec());
    }
    let mut list = updated(0..0).3;
    for part in &parts {
        assert_ne!(numbers(&part.1), want.0);
        part.2.lay_parameters(list.whole().unwrap()).unwrap();
    }
    for part in &parts {
        part.2.take_parameters(list.whole().unwrap()).unwrap();
        assert_eq!(numbers(&part.1), want.0);
        assert_eq!(copy(&part.0, &part.1), want.1);
    }
}
