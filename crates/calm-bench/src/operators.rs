//! Each fused operator beside the plain composition of tensor operations that it replaces, at the shapes
//! of a size's training steps. Longer than other files because it is one list.

use calm_kernels as ops;
use calm_kernels::{AdamWStep, Context, DropoutMask, NoiseKey, RowId, TargetNoise, philox};
use calm_nn::{AdamW, AdamWConfig, GradientBucket};
use candle_core::{D, DType, Device, Result, Tensor, Var};

use crate::place::{Parameter, Parameters, Place};
use crate::size::Size;

/// How far a run goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pass {
    /// The result alone; what the backward pass will need is kept.
    Forward,
    /// The result and the gradients of all inputs that have one.
    Both,
}

/// The least an operator has to do, forward and backward together.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Arithmetic.
    Flops(f64),
    /// Numbers read and written once each, bytes.
    Bytes(f64),
}

/// Does it as far as asked.
pub type Run = Box<dyn FnMut(Pass) -> Result<()>>;

/// An operator under measurement.
pub struct OperatorCase {
    /// Its name in `calm-kernels`.
    pub name: &'static str,
    /// Shapes of its inputs.
    pub shape: String,
    /// Work.
    pub amount: Amount,
    /// Whether it has a backward pass.
    pub differentiable: bool,
    /// The operator.
    pub fused: Run,
    /// The composition; None where there is none to replace.
    pub plain: Option<Run>,
}

/// Runs a composition as far as asked.
fn tensor_run(f: impl Fn() -> Result<Tensor> + 'static) -> Run {
    Box::new(move |pass| {
        let y = f()?;
        if pass == Pass::Both {
            std::hint::black_box(y.backward()?);
        }
        Ok(())
    })
}

fn row_ids(rows: usize) -> Vec<RowId> {
    (0..rows as u32).map(|position| RowId { example: 0, position }).collect()
}

fn normal(stream: &str, shape: &[usize]) -> Result<Tensor> {
    let values = philox::normal(NoiseKey::new(1, stream, 0), &row_ids(1), 1, shape.iter().product());
    Tensor::from_vec(values, shape, &Device::Cpu)
}

/// An activation that asks for a gradient.
fn randn(p: &Place, stream: &str, shape: &[usize]) -> Result<Var> {
    Var::from_tensor(&p.tensor(&normal(stream, shape)?)?)
}

fn parameter(set: &Parameters<'_>, stream: &str, shape: &[usize]) -> Result<Parameter> {
    set.add(&normal(stream, shape)?)
}

/// At least f32, for sums.
fn wide(x: &Tensor) -> Result<Tensor> {
    x.to_dtype(DType::F32)
}

const THETA: f64 = 10_000.0;
const EPS: f64 = 1e-6;

/// All operators at the shapes of `s`: rows are the energy head's (positions times samples) where the head
/// uses the operator, else the backbone's or the decoder's. Compositions of whole parts of layers are made of the
/// single operators, all others of candle's own operations on the same device, with activations and parameters in
/// the place's format and sums in f32.
///
/// # Errors
/// The tensors cannot be made.
pub fn all(s: &Size, p: &Place) -> Result<Vec<OperatorCase>> {
    let optimiser = if p.device.is_cuda() { optimiser_on_gpu(s, p)? } else { optimiser(s)? };
    let lists = [
        rows_of_numbers(s, p)?,
        attention(s, p)?,
        parts_of_layers(s, p)?,
        vocabulary(s, p)?,
        concepts(s, p)?,
        noise(s, p)?,
        optimiser,
    ];
    Ok(lists.into_iter().flatten().collect())
}

fn operator(name: &'static str, shape: String, amount: Amount, fused: Run, plain: Run) -> OperatorCase {
    OperatorCase { name, shape, amount, differentiable: true, fused, plain: Some(plain) }
}

fn without_gradient(
    name: &'static str,
    shape: String,
    amount: Amount,
    fused: Run,
    plain: Option<Run>,
) -> OperatorCase {
    OperatorCase { name, shape, amount, differentiable: false, fused, plain }
}

/// Activations read or written once.
fn bytes(p: &Place, elements: usize) -> Amount {
    Amount::Bytes((elements * p.dtype().size_in_bytes()) as f64)
}

/// Linear layers, norms and activations.
fn rows_of_numbers(s: &Size, p: &Place) -> Result<Vec<OperatorCase>> {
    let set = p.parameters();
    let bytes = |elements: usize| bytes(p, elements);
    let (d, n) = (s.hidden, s.samples);
    let positions = s.batch_rows * s.context_chunks;
    let rows = positions * n;
    let x = randn(p, "x", &[rows, d])?;
    let (w, b) = (parameter(&set, "w", &[d, d])?, parameter(&set, "b", &[d])?);
    let (y, c) = (randn(p, "y", &[positions, d])?, randn(p, "c", &[positions, d])?);
    let gate = randn(p, "gate", &[positions, s.intermediate])?;
    let up = randn(p, "up", &[positions, s.intermediate])?;
    let packed = randn(p, "packed", &[rows, 2 * d])?;
    let x3 = x.reshape((positions, n, d))?;
    let mut list = Vec::new();

    let (x1, w1, b1, x2, w2, b2) = (x.clone(), w.clone(), b.clone(), x.clone(), w.plain, b.plain.clone());
    list.push(operator(
        "linear",
        format!("[{rows}, {d}] x [{d}, {d}]"),
        Amount::Flops(6.0 * (rows * d * d) as f64),
        tensor_run(move || ops::linear(&x1, &w1, Some(&b1))),
        tensor_run(move || x2.matmul(&w2.t()?)?.broadcast_add(&b2)),
    ));
    let (y1, b1, y2, b2) = (y.clone(), b.clone(), y, b.plain.clone());
    list.push(operator(
        "rms_norm",
        format!("[{positions}, {d}]"),
        bytes(5 * positions * d),
        tensor_run(move || ops::rms_norm(&y1, &b1, EPS)),
        tensor_run(move || {
            let y = wide(&y2)?;
            let scale = (y.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
            y.broadcast_div(&scale)?.to_dtype(y2.dtype())?.broadcast_mul(&b2)
        }),
    ));
    let (x1, x2, b2) = (x.clone(), x.clone(), b.plain.clone());
    list.push(operator(
        "layer_norm",
        format!("[{rows}, {d}]"),
        bytes(5 * rows * d),
        tensor_run(move || ops::layer_norm(&x1, Some(&b), Some(&b), EPS)),
        tensor_run(move || {
            let x = wide(&x2)?;
            let x = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
            let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
            x.broadcast_div(&scale)?.to_dtype(x2.dtype())?.broadcast_mul(&b2)?.broadcast_add(&b2)
        }),
    ));
    let (x1, x2) = (x.clone(), x);
    list.push(operator(
        "silu",
        format!("[{rows}, {d}]"),
        bytes(5 * rows * d),
        tensor_run(move || ops::silu(&x1)),
        tensor_run(move || x2.silu()),
    ));
    let (x1, c1, x2, c2) = (x3.clone(), c.clone(), x3, c);
    list.push(operator(
        "add_silu",
        format!("[{positions}, {n}, {d}]"),
        bytes(5 * rows * d + 3 * positions * d),
        tensor_run(move || ops::add_silu(&x1, &c1)),
        tensor_run(move || x2.broadcast_add(&c2.unsqueeze(1)?)?.silu()),
    ));
    let (gate1, up1, gate2, up2) = (gate.clone(), up.clone(), gate, up);
    list.push(operator(
        "swiglu",
        format!("[{positions}, {}]", s.intermediate),
        bytes(8 * positions * s.intermediate),
        tensor_run(move || ops::swiglu(&gate1, &up1)),
        tensor_run(move || gate2.silu()? * up2.as_tensor()),
    ));
    let (x1, x2) = (packed.clone(), packed);
    list.push(operator(
        "swiglu_packed",
        format!("[{rows}, {}]", 2 * d),
        bytes(8 * rows * d),
        tensor_run(move || ops::swiglu_packed(&x1)),
        tensor_run(move || {
            let halves = x2.chunk(2, 1)?;
            halves[0].silu()? * &halves[1]
        }),
    ));
    Ok(list)
}

/// Rotary angles and attention at the baseline's context, K times as long, and over a cache.
fn attention(s: &Size, p: &Place) -> Result<Vec<OperatorCase>> {
    let bytes = |elements: usize| bytes(p, elements);
    let (b, t, h, kv) = (s.batch_rows, s.context_chunks * s.chunk_size, s.heads, s.kv_heads);
    let dh = s.hidden / h;
    let q = randn(p, "q", &[b, t, h, dh])?;
    let (k, v) = (randn(p, "k", &[b, t, kv, dh])?, randn(p, "v", &[b, t, kv, dh])?);
    let places = (0..b * t).map(|i| (i % t) as u32).collect::<Vec<_>>();
    let places = Tensor::from_vec(places, (b, t), &p.device)?;
    let segments = places.zeros_like()?;
    let mut list = Vec::new();

    let half = dh / 2;
    let frequencies: Vec<f32> = (0..half).map(|i| THETA.powf(-2.0 * i as f64 / dh as f64) as f32).collect();
    let frequencies = Tensor::from_vec(frequencies, (1, 1, 1, half), &p.device)?;
    let angles = places.to_dtype(DType::F32)?.reshape((b, t, 1, 1))?.broadcast_mul(&frequencies)?;
    let (cos, sin) = (angles.cos()?.to_dtype(p.dtype())?, angles.sin()?.to_dtype(p.dtype())?);
    let context = Context::new(&p.device);
    let (x1, x2, shared) = (q.clone(), q.clone(), context.clone());
    list.push(operator(
        "rotary",
        format!("[{b}, {t}, {h}, {dh}]"),
        bytes(4 * b * t * h * dh),
        tensor_run(move || ops::rotary(&shared.with(&x1), &places, THETA)),
        tensor_run(move || {
            let (a, b) = (x2.narrow(3, 0, half)?, x2.narrow(3, half, half)?);
            let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
            let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
            Tensor::cat(&[first, second], 3)
        }),
    ));

    let [one, keys, values] = [&q, &k, &v].map(|x| x.as_detached_tensor());
    let mask: Vec<f32> = (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
    let mask = Tensor::from_vec(mask, (1, 1, t, t), &p.device)?;
    let [q2, k2, v2] = [&q, &k, &v].map(Var::clone);
    let plain = move || {
        let spread = |x: &Tensor| {
            let x = x.transpose(1, 2)?.unsqueeze(2)?.expand((b, kv, h / kv, t, dh))?;
            x.contiguous()?.reshape((b, h, t, dh))
        };
        let q = q2.transpose(1, 2)?.contiguous()?;
        let scores = (q.matmul(&spread(&k2)?.t()?)? / (dh as f64).sqrt())?;
        let scores = wide(&scores)?.broadcast_add(&mask)?;
        let e = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
        let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?.to_dtype(q.dtype())?;
        p.matmul(&spread(&v2)?)?.transpose(1, 2)?.contiguous()
    };
    let shared = context.clone();
    list.push(operator(
        "causal_attention",
        format!("[{b}, {t}, {h}, {dh}]"),
        // Two products forward, five backward, over the keys up to each position.
        Amount::Flops(14.0 * (b * h * dh * t * (t + 1) / 2) as f64),
        tensor_run(move || ops::causal_attention(&shared.with(&q), &k, &v, &segments)),
        tensor_run(plain),
    ));

    let one = one.narrow(1, 0, 1)?.contiguous()?;
    list.push(without_gradient(
        "cached_attention",
        format!("1 after {t} positions, {h} heads of {dh}"),
        bytes(2 * b * t * kv * dh),
        tensor_run(move || ops::cached_attention(&context.with(&one), &keys, &values)),
        None,
    ));
    Ok(list)
}

/// Whole parts of layers beside the single operators that they are made of.
fn parts_of_layers(s: &Size, p: &Place) -> Result<Vec<OperatorCase>> {
    let set = p.parameters();
    let (b, t, d, i, n) = (s.batch_rows, s.context_chunks, s.hidden, s.intermediate, s.samples);
    let (positions, kv) = (b * t, s.hidden / s.heads * s.kv_heads);
    let x = randn(p, "x", &[b, t, d])?;
    let norm = parameter(&set, "norm", &[d])?;
    let matrix = |name: &str, o: usize, i: usize| parameter(&set, name, &[o, i]);
    let mut list = Vec::new();

    let mlp = [norm.clone(), matrix("gate", i, d)?, matrix("up", i, d)?, matrix("down", d, i)?];
    let (v, x1, x2) = (mlp.clone(), x.clone(), x.clone());
    list.push(operator(
        "mlp_block",
        format!("[{b}, {t}, {d}], inner {i}"),
        Amount::Flops(18.0 * (positions * d * i) as f64),
        tensor_run(move || ops::mlp_block(&x1, &mlp[0], [&mlp[1], &mlp[2], &mlp[3]], EPS)),
        tensor_run(move || {
            let h = ops::rms_norm(&x2, &v[0], EPS)?;
            let a = ops::swiglu(&ops::linear(&h, &v[1], None)?, &ops::linear(&h, &v[2], None)?)?;
            x2.as_tensor() + ops::linear(&a, &v[3], None)?
        }),
    ));

    let places = (0..positions).map(|i| (i % t) as u32).collect::<Vec<_>>();
    let places = Tensor::from_vec(places, (b, t), &p.device)?;
    let segments = places.zeros_like()?;
    let (heads, kv_heads) = (s.heads, s.kv_heads);
    let w = [norm, matrix("q", d, d)?, matrix("k", kv, d)?, matrix("v", kv, d)?, matrix("o", d, d)?];
    let (v, x1, x2, places2, segments2) = (w.clone(), x.clone(), x, places.clone(), segments.clone());
    let (products, shared) = (12.0 * (positions * d * (d + kv)) as f64, set.context.clone());
    list.push(operator(
        "attention_block",
        format!("[{b}, {t}, {d}], {heads} heads"),
        Amount::Flops(products + 14.0 * (b * d * t * (t + 1) / 2) as f64),
        tensor_run(move || {
            let (positions, sees) = (&places, (&segments).into());
            let shape = ops::AttentionShape { heads, kv_heads, theta: THETA, eps: EPS, positions, sees };
            ops::attention_block(&x1, &w[0], [&w[1], &w[2], &w[3], &w[4]], shape)
        }),
        tensor_run(move || {
            let h = ops::rms_norm(&x2, &v[0], EPS)?;
            let head = |w: &Parameter, n: usize| ops::linear(&h, w, None)?.reshape((b, t, n, d / heads));
            let q = ops::rotary(&shared.with(&head(&v[1], heads)?), &places2, THETA)?;
            let k = ops::rotary(&shared.with(&head(&v[2], kv_heads)?), &places2, THETA)?;
            let v3 = head(&v[3], kv_heads)?;
            let mixed = ops::causal_attention(&shared.with(&q), &k, &v3, &segments2)?;
            x2.as_tensor() + ops::linear(&mixed.reshape((b, t, d))?, &v[4], None)?
        }),
    ));

    let x = randn(p, "x3", &[positions, n, d])?;
    let c = randn(p, "c", &[positions, d])?;
    let [w1, w2, w3, w4] =
        [("1", d, 2 * d), ("2", d, d), ("3", 2 * d, d), ("4", d, d)].map(|(name, o, i)| matrix(name, o, i));
    let (w, b, b3) = ([w1?, w2?, w3?, w4?], parameter(&set, "b", &[d])?, parameter(&set, "b3", &[2 * d])?);
    let (x2, c2, v, b2, b32) = (x.clone(), c.clone(), w.clone(), b.clone(), b3.clone());
    list.push(operator(
        "energy_block",
        format!("[{positions}, {n}, {d}]"),
        Amount::Flops((30 * positions * n * d * d + 6 * positions * d * d) as f64),
        tensor_run(move || {
            let weights = ops::EnergyBlockWeights {
                norm: [&b, &b],
                first: [&w[0], &b],
                second: [&w[1], &b],
                third: [&w[2], &b3],
                down: [&w[3], &b],
            };
            ops::energy_block(&x, &c, weights, EPS)
        }),
        tensor_run(move || {
            let half = |at: usize| v[0].narrow(1, at, d)?.contiguous();
            let row = ops::linear(&c2, &half(d)?, Some(&b2))?;
            let h = ops::layer_norm(&x2, Some(&b2), Some(&b2), EPS)?;
            let u = ops::add_silu(&ops::linear(&h, &half(0)?, None)?, &row)?;
            let u = ops::silu(&ops::linear(&u, &v[1], Some(&b2))?)?;
            let u = ops::swiglu_packed(&ops::linear(&u, &v[2], Some(&b32))?)?;
            x2.as_tensor() + ops::linear(&u, &v[3], Some(&b2))?
        }),
    ));
    Ok(list)
}

/// The moving average of a dynamic concept model, at four tokens a concept.
fn concepts(s: &Size, p: &Place) -> Result<Vec<OperatorCase>> {
    let (b, m, d) = (s.batch_rows, s.context_chunks.div_ceil(4), s.hidden);
    let z = randn(p, "z", &[b, m, d])?;
    let share = philox::uniform(NoiseKey::new(1, "p", 0), &row_ids(1), 1, b * m);
    let share = Var::from_tensor(&Tensor::from_vec(share, (b, m), &Device::Cpu)?.to_device(&p.device)?)?;
    let documents = Tensor::zeros((b, m), DType::U32, &p.device)?;
    let (z2, share2) = (z.clone(), share.clone());
    Ok(vec![operator(
        "smooth",
        format!("[{b}, {m}, {d}]"),
        // Forward: z in, z̃ out. Backward: the gradient of z̃, z̃ and z in, the gradient of z out.
        bytes(p, 6 * b * m * d),
        tensor_run(move || ops::smooth(&z, &share, &documents)),
        tensor_run(move || {
            let one = |t: &Tensor, at: usize| t.narrow(1, at, 1);
            let p = share2.unsqueeze(2)?.to_dtype(z2.dtype())?;
            let mut all = vec![one(&z2, 0)?];
            for at in 1..m {
                let (new, p) = (one(&z2, at)?, one(&p, at)?);
                let before = all.last().unwrap_or(&new);
                all.push((new.broadcast_mul(&p)? + before.broadcast_mul(&(1.0 - p)?)?)?);
            }
            Tensor::cat(&all, 1)
        }),
    )])
}

/// What touches the table of the vocabulary, at the autoencoder's batch.
fn vocabulary(s: &Size, p: &Place) -> Result<Vec<OperatorCase>> {
    let set = p.parameters();
    let bytes = |elements: usize| bytes(p, elements);
    let (tokens, width, v) = (s.ae_rows * s.ae_context * s.chunk_size, s.ae_hidden, s.vocab);
    let (hidden, table) = (randn(p, "hidden", &[tokens, width])?, parameter(&set, "table", &[v, width])?);
    let target: Vec<u32> = (0..tokens).map(|i| (i * 7919 % v) as u32).collect();
    let target = Tensor::from_vec(target, tokens, &p.device)?;
    let (constant, constant_table) = (hidden.as_detached_tensor(), table.plain.as_detached_tensor());
    let shape = format!("[{tokens}, {width}] x [{v}, {width}]");
    let mut list = Vec::new();

    let (x2, e2, y2) = (hidden.clone(), table.plain.clone(), target.clone());
    let (x1, e1, y1) = (hidden, table.clone(), target.clone());
    list.push(operator(
        "tied_cross_entropy",
        shape.clone(),
        Amount::Flops(6.0 * (tokens * width * v) as f64),
        tensor_run(move || ops::tied_cross_entropy(&x1, &e1, &y1, None)),
        tensor_run(move || {
            let logits = wide(&x2.matmul(&e2.t()?)?)?;
            let max = logits.detach().max_keepdim(1)?;
            let sum = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()?;
            let lse = (sum + max)?.squeeze(1)?;
            (lse - logits.gather(&y2.unsqueeze(1)?, 1)?.squeeze(1)?)?.sum_all()
        }),
    ));
    let (x2, e2, e1) = (constant.clone(), constant_table, table.clone());
    list.push(without_gradient(
        "tied_argmax",
        shape,
        Amount::Flops(2.0 * (tokens * width * v) as f64),
        tensor_run(move || ops::tied_argmax(&constant, &e1)),
        Some(tensor_run(move || x2.matmul(&e2.t()?)?.argmax(1))),
    ));
    let (e2, y2) = (table.plain.clone(), target.clone());
    list.push(operator(
        "embedding",
        format!("[{tokens}] of [{v}, {width}]"),
        bytes(4 * tokens * width + v * width),
        tensor_run(move || ops::embedding(&target, &table, None)),
        tensor_run(move || e2.index_select(&y2, 0)),
    ));
    Ok(list)
}

/// What draws its noise inside.
fn noise(s: &Size, p: &Place) -> Result<Vec<OperatorCase>> {
    let bytes = |elements: usize| bytes(p, elements);
    let (positions, n, m, l) = (s.batch_rows * s.context_chunks, s.samples, s.targets, s.latent);
    let chunks = s.ae_rows * s.ae_context;
    let mut list = Vec::new();

    let x = randn(p, "z", &[chunks, l])?;
    let (x2, ids, key) = (x.clone(), row_ids(chunks), NoiseKey::new(1, "dropout", 0));
    let context = Context::new(&p.device);
    let shared = context.clone();
    list.push(operator(
        "dropout",
        format!("[{chunks}, {l}]"),
        bytes(4 * chunks * l),
        tensor_run(move || ops::dropout(&shared.with(&x), 0.15, DropoutMask::Draw { key, rows: &ids })),
        tensor_run(move || {
            let keep = Tensor::rand(0f32, 1f32, x2.dims(), x2.device())?.ge(0.15)?;
            x2.as_tensor() * (keep.to_dtype(DType::F32)? / 0.85)?.to_dtype(x2.dtype())?
        }),
    ));

    let x = randn(p, "predictions", &[positions, n, l])?;
    // The posterior is f32 everywhere.
    let mean = normal("mean", &[positions, l])?.to_device(&p.device)?;
    let log_std = ((normal("log_std", &[positions, l])? * 0.1)? - 1.2)?.to_device(&p.device)?;
    let (x2, mean2, log_std2, alpha) = (x.clone(), mean.clone(), log_std.clone(), s.alpha);
    let (ids, key) = (row_ids(positions), NoiseKey::new(1, "target", 0));
    list.push(operator(
        "energy_score",
        format!("[{positions}, {n}, {l}], M {m}"),
        // Of each pair difference, square and sum, and as much again twice for the gradient.
        Amount::Flops((positions * (n * m + n * (n - 1) / 2) * 6 * l) as f64),
        tensor_run(move || {
            let noise = TargetNoise::Draw { key, rows: &ids, samples: m };
            ops::energy_score(&context.with(&x), &mean, &log_std, noise, alpha)
        }),
        tensor_run(move || {
            let x2 = wide(&x2)?;
            let eps = Tensor::randn(0f32, 1f32, (positions, m, l), x2.device())?;
            let z = eps.broadcast_mul(&log_std2.exp()?.unsqueeze(1)?)?.broadcast_add(&mean2.unsqueeze(1)?)?;
            let power = |a: &Tensor, b: &Tensor| {
                let d = a.unsqueeze(2)?.broadcast_sub(&b.unsqueeze(1)?)?;
                // A point has distance 0 to itself, where the root has no slope.
                (d.sqr()?.sum(3)? + 1e-12)?.powf(alpha / 2.0)?.sum((1, 2))
            };
            let pull = (power(&x2, &z)? * (2.0 / (n * m) as f64))?;
            pull - (power(&x2, &x2)? / (n * (n - 1)) as f64)?
        }),
    ));
    Ok(list)
}

/// AdamW with the norm for clipping, over as many parameters as the backbone's attention has.
fn optimiser(s: &Size) -> Result<Vec<OperatorCase>> {
    let n = 4 * s.hidden * s.hidden * s.layers;
    let (mut p, mut m, mut v) = (vec![0.1f32; n], vec![0.0f32; n], vec![0.0f32; n]);
    let g = vec![1e-3f32; n];
    let g2 = Tensor::from_slice(&g, n, &Device::Cpu)?;
    let (p2, m2, v2) = (g2.ones_like()?, g2.ones_like()?, g2.ones_like()?);
    let mut step = 0;
    let fused = move |_| {
        step += 1;
        let grad_scale = (1.0 / ops::squared_norm(&g).sqrt()).min(1.0);
        let settings =
            AdamWStep { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step, grad_scale };
        ops::adamw(&mut p, &g, &mut m, &mut v, &settings);
        Ok(())
    };
    let plain = move |_| {
        let norm = g2.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
        let g = (&g2 * f64::from((1.0 / norm).min(1.0)))?;
        let m = ((&m2 * 0.9)? + (&g * 0.1)?)?;
        let v = ((&v2 * 0.95)? + (g.sqr()? * 0.05)?)?;
        let update = (m / (v.sqrt()? + 1e-8)?)?;
        std::hint::black_box(((&p2 * 0.99999)? - (update * 1e-4)?)?);
        Ok(())
    };
    // Gradient twice, for the norm; parameter and moments read and written.
    let amount = Amount::Bytes((8 * n * size_of::<f32>()) as f64);
    Ok(vec![without_gradient("adamw", format!("[{n}]"), amount, Box::new(fused), Some(Box::new(plain)))])
}

/// The same as a model's optimiser does it on a GPU, the copies in the format of activations included.
fn optimiser_on_gpu(s: &Size, p: &Place) -> Result<Vec<OperatorCase>> {
    let store = p.store(1)?;
    for layer in 0..s.layers {
        let name = format!("layer{layer}");
        store.builder().weight(&name, &[4 * s.hidden, s.hidden], calm_nn::Init::Ones)?;
    }
    store.prepare()?;
    let mut bucket = GradientBucket::new(&store)?;
    let mut adamw = AdamW::new(&store, AdamWConfig::default())?;
    let zero = Tensor::zeros((), DType::F32, &p.device)?;
    let loss = store.params().iter().try_fold(zero, |sum, (_, p)| sum + p.var.sum_all()?)?;
    bucket.backward(&loss)?;
    let n = store.element_count();
    let fused = move |_| {
        // Its copies live as long as the store.
        let _ = &store;
        let clip = bucket.clip(1.0)?;
        adamw.update(&mut bucket, 1e-4, &clip)
    };
    let state = || Tensor::ones(n, DType::F32, &p.device);
    let (g2, p2, m2, v2) = (state()?, state()?, state()?, state()?);
    let plain = move |_| {
        // The factor stays on the GPU.
        let norm = g2.sqr()?.sum_all()?.sqrt()?;
        let g = g2.broadcast_div(&norm)?;
        let m = ((&m2 * 0.9)? + (&g * 0.1)?)?;
        let v = ((&v2 * 0.95)? + (g.sqr()? * 0.05)?)?;
        let update = (m / (v.sqrt()? + 1e-8)?)?;
        std::hint::black_box(((&p2 * 0.99999)? - (update * 1e-4)?)?);
        Ok(())
    };
    // Gradient twice, parameter and moments read and written, the copy written.
    let copy = if p.dtype() == DType::F32 { 0 } else { p.dtype().size_in_bytes() };
    let amount = Amount::Bytes((n * (8 * size_of::<f32>() + copy)) as f64);
    Ok(vec![without_gradient("adamw", format!("[{n}]"), amount, Box::new(fused), Some(Box::new(plain)))])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::place::gpu_places;

    #[test]
    fn operators_and_their_compositions_run_and_have_a_gradient() {
        for place in [Place::cpu()].into_iter().chain(gpu_places()) {
            for mut operator in all(&Size::all()["tiny"], &place).unwrap() {
                let pass = if operator.differentiable { Pass::Both } else { Pass::Forward };
                let name = operator.name;
                let failed = |e| panic!("{name} in {}: {e}", place.format());
                (operator.fused)(pass).unwrap_or_else(failed);
                if let Some(plain) = &mut operator.plain {
                    plain(pass).unwrap_or_else(failed);
                }
            }
        }
    }
}
