//! The rules of contexts, the same on the CPU and on a GPU.

use crate::common::*;
use calm_kernels as ops;
use calm_kernels::{Context, FlatGradients, Operand, Parameter};
use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Result, Tensor, Var};
use std::slice::from_ref;

const EPS: f64 = 1e-5;
const D: usize = 32;

/// The CPU, and a GPU if there is one.
fn devices() -> Vec<Device> {
    std::iter::once(Device::Cpu).chain(gpu()).collect()
}

/// An operator of x `[2, 5, 32]` and parameters of these shapes, all of which get a gradient.
struct Case {
    name: &'static str,
    shapes: Vec<Vec<usize>>,
    run: fn(&Tensor, &[&dyn Operand]) -> Result<Tensor>,
}

fn case(
    name: &'static str,
    shapes: &[&[usize]],
    run: fn(&Tensor, &[&dyn Operand]) -> Result<Tensor>,
) -> Case {
    Case { name, shapes: shapes.iter().map(|s| s.to_vec()).collect(), run }
}

fn ids(count: u32, shape: (usize, usize), device: &Device) -> Result<Tensor> {
    let ids: Vec<u32> = (0..(shape.0 * shape.1) as u32).map(|i| i * 7 % count).collect();
    Tensor::from_vec(ids, shape, device)
}

/// Every operator that has parameters.
fn cases() -> Vec<Case> {
    const M: &[usize] = &[D, D];
    const V: &[usize] = &[D];
    vec![
        case("linear", &[M], |x, p| ops::linear(x, p[0], None)),
        case("linear with a bias", &[M, V], |x, p| ops::linear(x, p[0], Some(p[1]))),
        case("rms_norm", &[V], |x, p| ops::rms_norm(x, p[0], EPS)),
        case("layer_norm", &[V, V], |x, p| ops::layer_norm(x, Some(p[0]), Some(p[1]), EPS)),
        case("layer_norm with a weight", &[V], |x, p| ops::layer_norm(x, Some(p[0]), None, EPS)),
        case("layer_norm with a bias", &[V], |x, p| ops::layer_norm(x, None, Some(p[0]), EPS)),
        case("embedding", &[&[9, D]], |x, p| {
            let ids = ids(9, (2, 5), x.device())?;
            x + ops::embedding(&ids, p[0], None)?
        }),
        case("tied_cross_entropy", &[&[9, D]], |x, p| {
            let targets = ids(9, (2, 5), x.device())?.flatten_all()?;
            ops::tied_cross_entropy(&x.reshape((10, D))?, p[0], &targets, None)
        }),
        case("mlp_block", &[V, &[48, D], &[48, D], &[D, 48]], |x, p| {
            ops::mlp_block(x, p[0], [p[1], p[2], p[3]], EPS)
        }),
        case("attention_block", &[V, M, M, M, M], |x, p| {
            let places = ids(3, (2, 5), x.device())?;
            let segments = places.zeros_like()?;
            let shape = ops::AttentionShape {
                heads: 1,
                kv_heads: 1,
                theta: 1e4,
                eps: EPS,
                positions: &places,
                sees: (&segments).into(),
            };
            ops::attention_block(x, p[0], [p[1], p[2], p[3], p[4]], shape)
        }),
        case("energy_block", &[V, V, &[D, 2 * D], V, M, V, &[2 * D, D], &[2 * D], M, V], |x, p| {
            let weights = ops::EnergyBlockWeights {
                norm: [p[0], p[1]],
                first: [p[2], p[3]],
                second: [p[4], p[5]],
                third: [p[6], p[7]],
                down: [p[8], p[9]],
            };
            let c = x.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?;
            ops::energy_block(x, &c, weights, EPS)
        }),
    ]
}

fn var(device: &Device, shape: &[usize], seed: u64) -> Tensor {
    let values = (random(shape, seed) * 0.5).unwrap().to_dtype(DType::F32).unwrap();
    Var::from_tensor(&values.to_device(device).unwrap()).unwrap().into_inner()
}

/// A case with its parameters in a context.
struct Set {
    case: Case,
    context: Context,
    x: Tensor,
    parameters: Vec<Parameter>,
}

impl Set {
    fn all(device: &Device) -> Vec<Self> {
        cases().into_iter().map(|case| Self::new(case, device)).collect()
    }

    fn new(case: Case, device: &Device) -> Self {
        let context = Context::new(device);
        let of =
            |(i, shape): (usize, &Vec<usize>)| context.parameter(var(device, shape, i as u64 + 2)).unwrap();
        let parameters = case.shapes.iter().enumerate().map(of).collect();
        Self { case, x: var(device, &[2, 5, D], 1), parameters, context }
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        self.parameters.iter().map(|p| &**p)
    }

    fn loss(&self) -> Tensor {
        let operands: Vec<&dyn Operand> = self.parameters.iter().map(|p| p as &dyn Operand).collect();
        (self.case.run)(&self.x, &operands).unwrap().sqr().unwrap().sum_all().unwrap()
    }

    /// The same of tensors without a context.
    fn plain_loss(&self) -> Tensor {
        let operands: Vec<&dyn Operand> = self.tensors().map(|p| p as &dyn Operand).collect();
        (self.case.run)(&self.x, &operands).unwrap().sqr().unwrap().sum_all().unwrap()
    }

    fn bucket(&self) -> FlatGradients {
        FlatGradients::new(&self.context, self.tensors()).unwrap()
    }

    /// Gradients of all parameters that a plain pass gave.
    fn of(&self, grads: &GradStore) -> Vec<Vec<f64>> {
        let one = |(i, p): (usize, &Tensor)| match grads.get(p) {
            Some(gradient) => flat(&gradient.to_device(&Device::Cpu).unwrap()),
            None => panic!("{}: no gradient of parameter {i}", self.case.name),
        };
        self.tensors().enumerate().map(one).collect()
    }

    fn fails(&self, pass: Result<GradStore>) {
        let e = pass.err().unwrap_or_else(|| panic!("{}: a pass beside the bucket", self.case.name));
        assert!(e.to_string().contains("bucket"), "{}: {e}", self.case.name);
    }
}

#[test]
fn without_a_bucket_a_plain_pass_gives_all_gradients_with_a_context_and_without() {
    for device in devices() {
        for set in Set::all(&device) {
            let want = set.of(&set.plain_loss().backward().unwrap());
            assert_eq!(set.of(&set.loss().backward().unwrap()), want, "{}", set.case.name);
            drop(set.bucket());
            assert_eq!(set.of(&set.loss().backward().unwrap()), want, "{}", set.case.name);
        }
    }
}

#[test]
fn while_a_bucket_lives_gradients_come_only_through_it() {
    for device in devices() {
        for set in Set::all(&device) {
            let name = set.case.name;
            let before = set.loss();
            let want = set.of(&before.backward().unwrap());
            let mut bucket = set.bucket();
            // Whether the loss was computed before or after the bucket was made.
            set.fails(before.backward());
            set.fails(set.loss().backward());
            for loss in [before, set.loss()] {
                bucket.clear();
                let grads = bucket.collect(|| loss.backward()).unwrap();
                assert!(grads.get(&set.x).is_some(), "{name}");
                for (i, (parameter, want)) in set.tensors().zip(&want).enumerate() {
                    assert!(grads.get(parameter).is_none(), "{name}: parameter {i}");
                    let got = bucket.get(i).unwrap().unwrap();
                    let got: Vec<f64> = got.into_iter().map(f64::from).collect();
                    assert_eq!(&got, want, "{name}: parameter {i}");
                }
            }
        }
    }
}

#[test]
fn a_loss_computed_beside_a_bucket_needs_it_in_the_backward_pass() {
    for device in devices() {
        for set in Set::all(&device) {
            let bucket = set.bucket();
            let loss = set.loss();
            drop(bucket);
            set.fails(loss.backward());
            // Any bucket of these parameters does.
            let mut other = set.bucket();
            assert!(other.collect(|| loss.backward()).is_ok(), "{}", set.case.name);
            assert!((0..set.parameters.len()).all(|i| other.reached(i)), "{}", set.case.name);
        }
    }
}

#[test]
fn parameters_outside_of_the_bucket_take_candles_way() {
    for device in devices() {
        for set in Set::all(&device).into_iter().filter(|set| set.parameters.len() > 1) {
            let want = set.of(&set.loss().backward().unwrap());
            let mut bucket = FlatGradients::new(&set.context, [&*set.parameters[0]]).unwrap();
            let loss = set.loss();
            let grads = bucket.collect(|| loss.backward()).unwrap();
            assert!(bucket.reached(0) && grads.get(&set.parameters[0]).is_none());
            for (parameter, want) in set.tensors().zip(&want).skip(1) {
                let got = grads.get(parameter).unwrap().to_device(&Device::Cpu).unwrap();
                assert_eq!(&flat(&got), want, "{}", set.case.name);
            }
        }
    }
}

#[test]
fn a_bucket_of_one_store_leaves_others_alone() {
    for device in devices() {
        for (one, other) in Set::all(&device).into_iter().zip(Set::all(&device)) {
            let want = other.of(&other.loss().backward().unwrap());
            let mut bucket = one.bucket();
            let grads = bucket.collect(|| other.loss().backward()).unwrap();
            assert_eq!(other.of(&grads), want, "{}", one.case.name);
            assert_eq!(other.of(&other.loss().backward().unwrap()), want, "{}", one.case.name);
            assert!((0..one.parameters.len()).all(|i| !bucket.reached(i)));
        }
    }
}

#[test]
fn a_lent_context_changes_no_number() {
    for device in devices() {
        let context = Context::new(&device);
        let rows: Vec<ops::RowId> = (0..10).map(|position| ops::RowId { example: 3, position }).collect();
        let key = ops::NoiseKey::new(5, "context", 2);
        let here = |t: Tensor| flat(&t.to_device(&Device::Cpu).unwrap());
        let x = var(&device, &[2, 5, D], 1);
        let heads = x.reshape((2, 5, 1, D)).unwrap();
        let places = ids(3, (2, 5), &device).unwrap();
        let segments = places.zeros_like().unwrap();
        let run =
            |x: &dyn Operand, heads: &dyn Operand, to: &dyn ops::Destination| -> Result<Vec<Vec<f64>>> {
                let plain = heads.tensor();
                let mask = ops::DropoutMask::Draw { key, rows: &rows };
                let samples = x.tensor().reshape((5, 2, D))?;
                let mean = samples.narrow(1, 0, 1)?.squeeze(1)?.contiguous()?.detach();
                let noise = ops::TargetNoise::Draw { key, rows: &rows[..5], samples: 3 };
                let score = match x.context() {
                    Some(c) => ops::energy_score(&c.with(&samples), &mean, &mean, noise, 1.0)?,
                    None => ops::energy_score(&samples, &mean, &mean, noise, 1.0)?,
                };
                let all = [
                    ops::noise_normal(key, &rows, 2, 7, to)?,
                    ops::noise_uniform(key, &rows, 2, 7, to)?,
                    ops::device::upload(&[1f32, 2., 3.], 3, to)?,
                    ops::dropout(x, 0.3, mask)?,
                    score,
                    ops::rotary(heads, &places, 1e4)?,
                    ops::causal_attention(heads, plain, plain, &segments)?,
                    ops::cached_attention(heads, plain, plain)?,
                    ops::branch_attention(heads, plain, plain, &segments, from_ref(plain), from_ref(plain))?,
                ];
                Ok(all.into_iter().map(here).collect())
            };
        let want = run(&x, &heads, &device).unwrap();
        // Twice: the second time tables and uploads are there.
        for _ in 0..2 {
            assert_eq!(run(&context.with(&x), &context.with(&heads), &context).unwrap(), want);
        }
    }
}

#[test]
fn a_parameter_in_an_activations_place_keeps_its_gradient_beside_a_bucket() {
    for device in devices() {
        let context = Context::new(&device);
        let w = context.parameter(var(&device, &[D, D], 5)).unwrap();
        let loss = || ops::linear(&w, &w, None).unwrap().sqr().unwrap().sum_all().unwrap();
        let want = loss().backward().unwrap().get(&w).unwrap().to_device(&Device::Cpu).unwrap();
        let mut bucket = FlatGradients::new(&context, [&*w]).unwrap();
        let grads = bucket.collect(|| loss().backward()).unwrap();
        if let Some(rest) = grads.get(&w) {
            bucket.add(0, rest).unwrap();
        }
        let got = Tensor::from_vec(bucket.get(0).unwrap().unwrap(), (D, D), &Device::Cpu).unwrap();
        assert!(worst(&got, &want) < 1e-5, "{device:?}");
    }
}

#[test]
fn a_parameter_is_on_the_device_of_its_context() {
    let Some(gpu) = gpu() else { return };
    let context = Context::new(&gpu);
    let e = context.parameter(var(&Device::Cpu, &[2], 1)).unwrap_err().to_string();
    assert!(e.contains("Cuda") && e.contains("Cpu"), "{e}");
    // Lent to a tensor of another device, a context is not used.
    let x = var(&Device::Cpu, &[1, 1, 1, 2], 1);
    let places = Tensor::zeros((1, 1), DType::U32, &Device::Cpu).unwrap();
    assert!(ops::rotary(&context.with(&x), &places, 1e4).is_ok());
}

#[test]
fn copies_of_parameters_stay_in_the_context_and_follow_them() {
    let cpu = Context::new(&Device::Cpu);
    let w = var(&Device::Cpu, &[4, 4], 1);
    assert!(cpu.keep_copies([&w], DType::F32).is_ok());
    let e = cpu.keep_copies([&w], DType::BF16).unwrap_err().to_string();
    assert!(e.contains("GPU"), "{e}");

    let Some(gpu) = gpu() else { return };
    let [one, two] = [0, 1].map(|_| Context::new(&gpu));
    let var = Var::from_tensor(&Tensor::ones((4, 4), DType::F32, &gpu).unwrap()).unwrap();
    let [of_one, of_two] = [&one, &two].map(|c| c.parameter(var.as_tensor().clone()).unwrap());
    let x = Tensor::ones((1, 4), DType::BF16, &gpu).unwrap();
    let sum = |w: &Parameter| {
        let y = ops::linear(&x, w, None).unwrap().to_device(&Device::Cpu).unwrap();
        flat(&y)[0]
    };
    one.keep_copies([var.as_tensor()], DType::BF16).unwrap();
    assert_eq!((sum(&of_one), sum(&of_two)), (4.0, 4.0));
    // The copy is what is read, until it is made again; the other context has none.
    var.set(&(var.as_tensor() * 2.0).unwrap()).unwrap();
    assert_eq!((sum(&of_one), sum(&of_two)), (4.0, 8.0));
    one.refresh_copies().unwrap();
    assert_eq!(sum(&of_one), 8.0);
    var.set(&(var.as_tensor() * 2.0).unwrap()).unwrap();
    one.keep_copies([], DType::BF16).unwrap();
    assert_eq!(sum(&of_one), 16.0);
}
