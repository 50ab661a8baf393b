//! Whole parts of layers against the single operators that they are made of.

use crate::common::*;
use calm_kernels as ops;
use calm_kernels::{AttentionShape, EnergyBlockWeights, Operand, Sight, Span, Spans, gradcheck};
use candle_core::{DType, Device, Result, Tensor, Var};

const EPS: f64 = 1e-5;
const THETA: f64 = 500.0;

/// Inputs of these shapes, one after the other in the seed.
fn inputs(shapes: &[&[usize]]) -> Vec<Tensor> {
    (1..).zip(shapes).map(|(seed, shape)| random(shape, seed)).collect()
}

fn mlp_plain(v: &[Var]) -> Result<Tensor> {
    let h = ops::rms_norm(&v[0], &v[1], EPS)?;
    let a = ops::swiglu(&ops::linear(&h, &v[2], None)?, &ops::linear(&h, &v[3], None)?)?;
    v[0].as_tensor() + ops::linear(&a, &v[4], None)?
}

fn mlp(v: &[Var]) -> Result<Tensor> {
    ops::mlp_block(&v[0], &v[1], [&v[2], &v[3], &v[4]], EPS)
}

fn mlp_inputs(rows: &[usize], d: usize, i: usize) -> Vec<Tensor> {
    let x = [rows, &[d]].concat();
    inputs(&[&x, &[d], &[i, d], &[i, d], &[d, i]])
}

#[test]
fn the_mlp_equals_its_operators() {
    for (rows, d, i) in [(&[1][..], 2, 3), (&[2, 5], 8, 20), (&[300], 64, 96)] {
        compare(&mlp_inputs(rows, d, i), mlp, mlp_plain, 1e-5);
    }
}

struct Places {
    positions: Tensor,
    segments: Tensor,
    /// What is seen in the place of segments.
    spans: Option<Spans>,
}

fn places(b: usize, s: usize) -> Places {
    // Two segments a row, the second from the middle on.
    let at = |f: &dyn Fn(usize) -> usize| {
        let v: Vec<u32> = (0..b * s).map(|i| f(i % s) as u32).collect();
        Tensor::from_vec(v, (b, s), &Device::Cpu).unwrap()
    };
    Places { positions: at(&|t| t % s.div_ceil(2)), segments: at(&|t| t / s.div_ceil(2)), spans: None }
}

/// The same, where the first half of the heads sees the past and the second half what comes.
fn both_ways(b: usize, s: usize) -> Places {
    let set = |span: &dyn Fn(u32) -> Span| {
        let list = (0..b).flat_map(|_| (0..s as u32).map(span)).collect();
        Spans::new([b, s, s], list).unwrap()
    };
    let sets = [set(&|t| (0, t + 1)), set(&|t| (t, s as u32))];
    Places { spans: Some(Spans::of_heads(&sets).unwrap()), ..places(b, s) }
}

fn attention_plain(v: &[Var], heads: usize, kv: usize, p: &Places) -> Result<Tensor> {
    let (b, s, d) = v[0].dims3()?;
    let h = ops::rms_norm(&v[0], &v[1], EPS)?;
    let head = |w: &Tensor, n: usize| ops::linear(&h, w, None)?.reshape((b, s, n, d / heads));
    let q = ops::rotary(&head(&v[2], heads)?, &p.positions, THETA)?;
    let k = ops::rotary(&head(&v[3], kv)?, &p.positions, THETA)?;
    let v_heads = head(&v[4], kv)?;
    let mixed = match &p.spans {
        Some(spans) => ops::span_attention(&q, &k, &v_heads, spans),
        None => ops::causal_attention(&q, &k, &v_heads, &p.segments),
    };
    let mixed = mixed?.reshape((b, s, d))?;
    v[0].as_tensor() + ops::linear(&mixed, &v[5], None)?
}

fn attention(v: &[Var], heads: usize, kv_heads: usize, p: &Places) -> Result<Tensor> {
    attention_of(&v[0], &v[1], [&v[2], &v[3], &v[4], &v[5]], heads, kv_heads, p)
}

fn attention_of(
    x: &Tensor,
    norm: &dyn Operand,
    matrices: [&dyn Operand; 4],
    heads: usize,
    kv_heads: usize,
    p: &Places,
) -> Result<Tensor> {
    let there = |t: &Tensor| t.to_device(x.device());
    let segments = there(&p.segments)?;
    let shape = AttentionShape {
        heads,
        kv_heads,
        theta: THETA,
        eps: EPS,
        positions: &there(&p.positions)?,
        sees: p.spans.as_ref().map_or(Sight::Segments(&segments), Sight::Spans),
    };
    ops::attention_block(x, norm, matrices, shape)
}

fn attention_inputs(b: usize, s: usize, d: usize, kv: usize) -> Vec<Tensor> {
    inputs(&[&[b, s, d], &[d], &[d, d], &[kv, d], &[kv, d], &[d, d]])
}

/// The same with matrices that keep the size of numbers, as a model's do: with larger ones the scores are so far
/// apart that a query rounded to bf16 sees another key.
fn scaled_attention_inputs(b: usize, s: usize, d: usize, kv: usize) -> Vec<Tensor> {
    let scale = (3.0 / d as f64).sqrt();
    let matrix = |t: Tensor| if t.rank() == 2 { (t * scale).unwrap() } else { t };
    attention_inputs(b, s, d, kv).into_iter().map(matrix).collect()
}

#[test]
fn attention_equals_its_operators_with_segments_and_shared_keys() {
    for (b, s, heads, kv, size) in [(1, 1, 1, 1, 2), (2, 7, 4, 2, 6), (3, 70, 4, 1, 16), (1, 130, 2, 2, 24)] {
        let p = places(b, s);
        compare_on_cpu(
            &attention_inputs(b, s, heads * size, kv * size),
            |v| attention(v, heads, kv, &p),
            |v| attention_plain(v, heads, kv, &p),
            2e-5,
        );
    }
    // Heads that have kernels on a GPU.
    for (b, s, heads, kv, size) in [(1, 1, 1, 1, 32), (2, 7, 4, 2, 32), (2, 70, 2, 1, 48)] {
        let p = places(b, s);
        compare(
            &scaled_attention_inputs(b, s, heads * size, kv * size),
            |v| attention(v, heads, kv, &p),
            |v| attention_plain(v, heads, kv, &p),
            2e-5,
        );
    }
}

#[test]
fn attention_equals_its_operators_where_heads_see_both_ways() {
    for (b, s, heads, kv, size) in [(2, 7, 4, 2, 6), (1, 130, 2, 2, 24)] {
        let p = both_ways(b, s);
        compare_on_cpu(
            &attention_inputs(b, s, heads * size, kv * size),
            |v| attention(v, heads, kv, &p),
            |v| attention_plain(v, heads, kv, &p),
            2e-5,
        );
    }
    for (b, s, heads, kv, size) in [(2, 7, 4, 2, 32), (2, 70, 2, 2, 48)] {
        let p = both_ways(b, s);
        compare(
            &scaled_attention_inputs(b, s, heads * size, kv * size),
            |v| attention(v, heads, kv, &p),
            |v| attention_plain(v, heads, kv, &p),
            2e-5,
        );
    }
    // One key head cannot see two things.
    let v: Vec<Var> = attention_inputs(1, 4, 8, 4).iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let e = attention(&v, 2, 1, &both_ways(1, 4)).unwrap_err().to_string();
    assert!(e.contains("attention_block") && e.contains("[1, 4, 4, 2]"), "{e}");
}

/// f32 parameters with bf16 activations, as training on a GPU has them.
#[cfg(feature = "cuda")]
#[test]
fn attention_on_a_gpu_takes_f32_parameters_with_bf16_activations() {
    use calm_kernels::{Context, FlatGradients, Parameter};
    let Some(gpu) = gpu() else { return };
    let (b, s, heads, kv, size) = (2, 20, 4, 2, 32);
    let p = places(b, s);
    let given = scaled_attention_inputs(b, s, heads * size, kv * size);
    let round = |t: &Tensor, dtype| t.to_dtype(dtype).unwrap();
    let there = |t: &Tensor| Var::from_tensor(&t.to_device(&gpu).unwrap()).unwrap();
    let here = |t: &Tensor| t.to_device(&Device::Cpu).unwrap();

    // On the CPU in double precision, with what the kernels read: everything rounded to bf16.
    let exact: Vec<Var> =
        given.iter().map(|t| Var::from_tensor(&round(&round(t, DType::BF16), DType::F64)).unwrap()).collect();
    let y = attention(&exact, heads, kv, &p).unwrap();
    let weights = round(&round(&random(y.dims(), 77), DType::BF16), DType::F64);
    let want = (&y * &weights).unwrap().sum_all().unwrap().backward().unwrap();

    let context = Context::new(&gpu);
    let x = there(&round(&given[0], DType::BF16));
    let parameter = |t: &Tensor| context.parameter(there(&round(t, DType::F32)).into_inner()).unwrap();
    let parameters: Vec<Parameter> = given[1..].iter().map(parameter).collect();
    let weights = round(&weights, DType::BF16).to_device(&gpu).unwrap();
    let loss = || {
        let w = &parameters;
        let y = attention_of(&x, &w[0], [&w[1], &w[2], &w[3], &w[4]], heads, kv, &p).unwrap();
        assert_eq!(y.dtype(), DType::BF16);
        (&y * &weights).unwrap().sum_all().unwrap()
    };
    let near = |got: &Tensor, i: usize| {
        let off = worst(&here(got), want.get(&exact[i]).unwrap());
        assert!(off <= 2e-2, "gradient of input {i} is off by {off:.1e}");
    };
    let grads = loss().backward().unwrap();
    let tensors = || parameters.iter().map(|p| &**p);
    for (i, tensor) in std::iter::once(x.as_tensor()).chain(tensors()).enumerate() {
        let gradient = grads.get(tensor).unwrap();
        assert_eq!(gradient.dtype(), tensor.dtype());
        near(gradient, i);
    }
    // Into the buffer, with and without copies that stay: the same bits, and twice as much after two passes.
    let mut flat = FlatGradients::new(&context, tensors()).unwrap();
    for kept in [true, false] {
        context.keep_copies(tensors().filter(|_| kept), DType::BF16).unwrap();
        flat.clear();
        for round in 1..3 {
            let loss = loss();
            let collected = flat.collect(|| loss.backward()).unwrap();
            let of_x = [&collected, &grads].map(|g| crate::common::flat(&here(g.get(&x).unwrap())));
            assert_eq!(of_x[0], of_x[1]);
            for (i, var) in tensors().enumerate() {
                assert!(collected.get(var).is_none() && flat.reached(i));
                let want = crate::common::flat(&here(grads.get(var).unwrap()));
                let got = flat.get(i).unwrap().unwrap();
                for (got, want) in got.iter().zip(&want) {
                    let off = (f64::from(*got) - want * f64::from(round)).abs();
                    assert!(if round == 1 { off == 0.0 } else { off <= 1e-5 * want.abs().max(1.0) });
                }
            }
        }
    }
}

fn energy_plain(v: &[Var]) -> Result<Tensor> {
    let d = v[1].dim(1)?;
    let (left, right) = (v[4].narrow(1, 0, d)?.contiguous()?, v[4].narrow(1, d, d)?.contiguous()?);
    let row = ops::linear(&v[1], &right, Some(&v[5]))?;
    let h = ops::layer_norm(&v[0], Some(&v[2]), Some(&v[3]), EPS)?;
    let u = ops::add_silu(&ops::linear(&h, &left, None)?, &row)?;
    let u = ops::silu(&ops::linear(&u, &v[6], Some(&v[7]))?)?;
    let u = ops::swiglu_packed(&ops::linear(&u, &v[8], Some(&v[9]))?)?;
    v[0].as_tensor() + ops::linear(&u, &v[10], Some(&v[11]))?
}

fn energy(v: &[Var]) -> Result<Tensor> {
    let weights = EnergyBlockWeights {
        norm: [&v[2], &v[3]],
        first: [&v[4], &v[5]],
        second: [&v[6], &v[7]],
        third: [&v[8], &v[9]],
        down: [&v[10], &v[11]],
    };
    ops::energy_block(&v[0], &v[1], weights, EPS)
}

/// Activations stay of about size 1 from product to product, as with the initial weights of a model.
fn energy_inputs(r: usize, n: usize, d: usize) -> Vec<Tensor> {
    let (m, two) = ([d, d], 2 * d);
    let mut all =
        inputs(&[&[r, n, d], &[r, d], &[d], &[d], &[d, two], &[d], &m, &[d], &[two, d], &[two], &m, &[d]]);
    for matrix in [4, 6, 8, 10] {
        all[matrix] = (&all[matrix] * (3.0 / d as f64).sqrt()).unwrap();
    }
    all
}

#[test]
fn the_energy_block_equals_its_operators() {
    for (r, n, d) in [(1, 1, 2), (3, 4, 10), (40, 8, 32), (2, 300, 48)] {
        compare(&energy_inputs(r, n, d), energy, energy_plain, 2e-5);
    }
}

#[test]
fn gradients_pass_the_check_by_differences() {
    let cube = |y: Tensor| y.powf(3.0)?.sum_all();
    gradcheck::check(&mlp_inputs(&[3], 4, 5), |v| cube(mlp(v)?), 1e-6).unwrap();
    let p = places(2, 3);
    gradcheck::check(&attention_inputs(2, 3, 8, 4), |v| cube(attention(v, 2, 1, &p)?), 1e-6).unwrap();
    gradcheck::check(&energy_inputs(2, 3, 4), |v| cube(energy(v)?), 1e-5).unwrap();
}

#[test]
fn inputs_without_a_gradient_get_none_and_results_stay() {
    let given = energy_inputs(5, 3, 8);
    let all: Vec<Var> = given.iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let constants: Vec<Var> = all.clone();
    let y = energy(&all).unwrap();
    // Only W₂ is trained.
    let detached: Vec<Tensor> = constants.iter().map(|v| v.as_detached_tensor()).collect();
    let weights = EnergyBlockWeights {
        norm: [&detached[2], &detached[3]],
        first: [&detached[4], &detached[5]],
        second: [all[6].as_tensor(), &detached[7]],
        third: [&detached[8], &detached[9]],
        down: [&detached[10], &detached[11]],
    };
    let one = ops::energy_block(&detached[0], &detached[1], weights, EPS).unwrap();
    assert_eq!(flat(&y), flat(&one));
    let (of_all, of_one) = (y.backward().unwrap(), one.backward().unwrap());
    assert_eq!(flat(of_all.get(&all[6]).unwrap()), flat(of_one.get(&all[6]).unwrap()));
    assert!(of_one.get(&all[0]).is_none());
    // A second backward pass of one graph gives the same again.
    assert_eq!(flat(y.backward().unwrap().get(&all[4]).unwrap()), flat(of_all.get(&all[4]).unwrap()));
}

#[test]
fn gradients_do_not_depend_on_how_many_inputs_ask_for_one() {
    let here = |t: &Tensor| flat(&t.to_device(&Device::Cpu).unwrap());
    for device in [Some(Device::Cpu), gpu()].into_iter().flatten() {
        let there = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_device(&device).unwrap();
        let all: Vec<Var> =
            energy_inputs(4, 3, 8).iter().map(|t| Var::from_tensor(&there(t)).unwrap()).collect();
        let y = energy(&all).unwrap();
        let want = y.backward().unwrap();
        // One to three are inputs of one operator of candle's, more are a chain.
        for asking in 0..=all.len() {
            let input = |(i, v): (usize, &Var)| {
                if i < asking { v.as_tensor().clone() } else { v.as_detached_tensor() }
            };
            let t: Vec<Tensor> = all.iter().enumerate().map(input).collect();
            let weights = EnergyBlockWeights {
                norm: [&t[2], &t[3]],
                first: [&t[4], &t[5]],
                second: [&t[6], &t[7]],
                third: [&t[8], &t[9]],
                down: [&t[10], &t[11]],
            };
            let some = ops::energy_block(&t[0], &t[1], weights, EPS).unwrap();
            assert_eq!(here(&some), here(&y));
            assert_eq!(some.track_op(), asking > 0);
            if asking == 0 {
                continue;
            }
            let grads = some.backward().unwrap();
            for (i, v) in all.iter().enumerate() {
                let wanted = (i < asking).then(|| here(want.get(v).unwrap()));
                assert_eq!(grads.get(v).map(here), wanted, "input {i} of {asking}");
            }
        }
    }
}

#[test]
fn activations_of_two_types_are_refused() {
    let v: Vec<Var> = energy_inputs(2, 2, 4).iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let mut mixed = v.clone();
    mixed[1] = Var::from_tensor(&v[1].to_dtype(DType::F32).unwrap()).unwrap();
    let e = energy(&mixed).unwrap_err().to_string();
    assert!(e.contains("energy_block") && e.contains("x and c"), "{e}");
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let v: Vec<Var> = mlp_inputs(&[3], 4, 5).iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let e = ops::mlp_block(&v[0], &v[1], [&v[2], &v[4], &v[3]], EPS).unwrap_err().to_string();
    assert!(e.contains("mlp_block") && e.contains("[D, I]"), "{e}");
    let v: Vec<Var> = energy_inputs(2, 2, 4).iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    let mut swapped = v.clone();
    swapped.swap(4, 6);
    let e = energy(&swapped).unwrap_err().to_string();
    assert!(e.contains("energy_block") && e.contains("[D, 2D]"), "{e}");
    let v: Vec<Var> = attention_inputs(1, 4, 8, 4).iter().map(|t| Var::from_tensor(t).unwrap()).collect();
    for (heads, kv) in [(0, 1), (3, 1), (8, 8), (2, 2)] {
        let e = attention(&v, heads, kv, &places(1, 4)).unwrap_err().to_string();
        assert!(e.contains("attention_block") && e.contains("heads"), "{e}");
    }
    assert!(attention(&v, 2, 1, &places(1, 5)).is_err());
    let half: Vec<Var> =
        v.iter().map(|t| Var::from_tensor(&t.to_dtype(DType::F16).unwrap()).unwrap()).collect();
    assert!(attention(&half, 2, 1, &places(1, 4)).is_err());
}
