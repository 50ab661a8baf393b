//! Each fused operator beside the plain composition of tensor operations that it replaces, at the shapes
//! of a size's training steps.

use calm_kernels as ops;
use calm_kernels::{AdamWStep, DropoutMask, NoiseKey, RowId, TargetNoise, philox};
use candle_core::{D, DType, Device, Result, Tensor, Var};

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
pub struct Operator {
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

fn randn(stream: &str, shape: &[usize]) -> Result<Var> {
    let values = philox::normal(NoiseKey::new(1, stream, 0), &row_ids(1), 1, shape.iter().product());
    Var::from_vec(values, shape, &Device::Cpu)
}

const THETA: f64 = 10_000.0;
const EPS: f64 = 1e-6;

/// All operators at the shapes of `s`: rows are the energy head's (positions times samples) where the head
/// uses the operator, else the backbone's or the decoder's.
///
/// # Errors
/// The tensors cannot be made.
pub fn all(s: &Size) -> Result<Vec<Operator>> {
    let (b, t, d, h) = (s.batch_rows, s.context_chunks, s.hidden, s.heads);
    let (positions, n) = (b * t, s.samples);
    let rows = positions * n;
    let float = size_of::<f32>() as f64;
    let mut all = Vec::new();
    let mut add = |name, shape: String, amount, fused: Run, plain: Option<Run>| {
        all.push(Operator { name, shape, amount, differentiable: true, fused, plain });
    };
    let bytes = |elements: usize| Amount::Bytes(elements as f64 * float);

    let (x, w, bias) = (randn("x", &[rows, d])?, randn("w", &[d, d])?, randn("b", &[d])?);
    {
        let (x2, w2, b2) = (x.clone(), w.clone(), bias.clone());
        let (x, w, bias) = (x.clone(), w.clone(), bias.clone());
        add(
            "linear",
            format!("[{rows}, {d}] x [{d}, {d}]"),
            Amount::Flops(6.0 * (rows * d * d) as f64),
            tensor_run(move || ops::linear(&x, &w, Some(&bias))),
            Some(tensor_run(move || x2.matmul(&w2.t()?)?.broadcast_add(&b2))),
        );
    }
    {
        let (y, v) = (randn("y", &[positions, d])?, bias.clone());
        let (y2, v2) = (y.clone(), v.clone());
        add(
            "rms_norm",
            format!("[{positions}, {d}]"),
            bytes(5 * positions * d),
            tensor_run(move || ops::rms_norm(&y, &v, EPS)),
            Some(tensor_run(move || {
                let scale = (y2.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
                y2.broadcast_div(&scale)?.broadcast_mul(&v2)
            })),
        );
    }
    {
        let (x2, w2, b2) = (x.clone(), bias.clone(), randn("b2", &[d])?);
        let (x, w, bias) = (x.clone(), bias.clone(), b2.clone());
        add(
            "layer_norm",
            format!("[{rows}, {d}]"),
            bytes(5 * rows * d),
            tensor_run(move || ops::layer_norm(&x, Some(&w), Some(&bias), EPS)),
            Some(tensor_run(move || {
                let x = x2.broadcast_sub(&x2.mean_keepdim(D::Minus1)?)?;
                let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + EPS)?.sqrt()?;
                x.broadcast_div(&scale)?.broadcast_mul(&w2)?.broadcast_add(&b2)
            })),
        );
    }
    {
        let (x2, x) = (x.clone(), x.clone());
        add(
            "silu",
            format!("[{rows}, {d}]"),
            bytes(5 * rows * d),
            tensor_run(move || ops::silu(&x)),
            Some(tensor_run(move || x2.silu())),
        );
    }
    {
        let (x, c) = (randn("x3", &[positions, n, d])?, randn("c", &[positions, d])?);
        let (x2, c2) = (x.clone(), c.clone());
        add(
            "add_silu",
            format!("[{positions}, {n}, {d}]"),
            bytes(5 * rows * d + 3 * positions * d),
            tensor_run(move || ops::add_silu(&x, &c)),
            Some(tensor_run(move || x2.broadcast_add(&c2.unsqueeze(1)?)?.silu())),
        );
    }
    {
        let (gate, up) =
            (randn("gate", &[positions, s.intermediate])?, randn("up", &[positions, s.intermediate])?);
        let (gate2, up2) = (gate.clone(), up.clone());
        add(
            "swiglu",
            format!("[{positions}, {}]", s.intermediate),
            bytes(8 * positions * s.intermediate),
            tensor_run(move || ops::swiglu(&gate, &up)),
            Some(tensor_run(move || gate2.silu()? * up2.as_tensor())),
        );
    }
    {
        let x = randn("packed", &[rows, 2 * d])?;
        let x2 = x.clone();
        add(
            "swiglu_packed",
            format!("[{rows}, {}]", 2 * d),
            bytes(8 * rows * d),
            tensor_run(move || ops::swiglu_packed(&x)),
            Some(tensor_run(move || {
                let halves = x2.chunk(2, 1)?;
                halves[0].silu()? * &halves[1]
            })),
        );
    }
    let dh = d / h;
    let place: Vec<u32> = (0..positions).map(|i| (i % t) as u32).collect();
    let place = Tensor::from_vec(place, (b, t), &Device::Cpu)?;
    {
        let x = randn("heads", &[b, t, h, dh])?;
        let (x2, place2) = (x.clone(), place.clone());
        let half = dh / 2;
        let frequencies: Vec<f32> =
            (0..half).map(|i| THETA.powf(-2.0 * i as f64 / dh as f64) as f32).collect();
        let angles = place2.to_dtype(DType::F32)?.reshape((b, t, 1, 1))?.broadcast_mul(&Tensor::from_vec(
            frequencies,
            (1, 1, 1, half),
            &Device::Cpu,
        )?)?;
        let (cos, sin) = (angles.cos()?, angles.sin()?);
        let place = place.clone();
        add(
            "rotary",
            format!("[{b}, {t}, {h}, {dh}]"),
            bytes(4 * positions * d),
            tensor_run(move || ops::rotary(&x, &place, THETA)),
            Some(tensor_run(move || {
                let (a, b) = (x2.narrow(3, 0, half)?, x2.narrow(3, half, half)?);
                let first = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
                let second = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
                Tensor::cat(&[first, second], 3)
            })),
        );
    }
    {
        // The baseline's context: K times as long.
        let t = t * s.chunk_size;
        let kv = s.kv_heads;
        let q = randn("q", &[b, t, h, dh])?;
        let (k, v) = (randn("k", &[b, t, kv, dh])?, randn("v", &[b, t, kv, dh])?);
        let segments = Tensor::zeros((b, t), DType::U32, &Device::Cpu)?;
        let (q2, k2, v2) = (q.clone(), k.clone(), v.clone());
        let mask: Vec<f32> =
            (0..t * t).map(|i| if i % t > i / t { f32::NEG_INFINITY } else { 0.0 }).collect();
        let mask = Tensor::from_vec(mask, (1, 1, t, t), &Device::Cpu)?;
        let plain = move || {
            let q = q2.transpose(1, 2)?.contiguous()?;
            let spread = |x: &Tensor| {
                let x = x.transpose(1, 2)?.unsqueeze(2)?.expand((b, kv, h / kv, t, dh))?;
                x.contiguous()?.reshape((b, h, t, dh))
            };
            let scores = (q.matmul(&spread(&k2)?.t()?)? / (dh as f64).sqrt())?.broadcast_add(&mask)?;
            let e = scores.broadcast_sub(&scores.detach().max_keepdim(D::Minus1)?)?.exp()?;
            let p = e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?;
            p.matmul(&spread(&v2)?)?.transpose(1, 2)?.contiguous()
        };
        // Two products forward, five backward, over the keys up to each position.
        let flops = 7.0 * 2.0 * (b * h * dh) as f64 * (t * (t + 1) / 2) as f64;
        add(
            "causal_attention",
            format!("[{b}, {t}, {h}, {dh}]"),
            Amount::Flops(flops),
            tensor_run(move || ops::causal_attention(&q, &k, &v, &segments)),
            Some(tensor_run(plain)),
        );
    }
    let tokens = s.ae_rows * s.ae_context * s.chunk_size;
    let width = s.ae_hidden;
    let (hidden, table) = (randn("hidden", &[tokens, width])?, randn("table", &[s.vocab, width])?);
    let target: Vec<u32> = (0..tokens).map(|i| (i * 7919 % s.vocab) as u32).collect();
    let target = Tensor::from_vec(target, tokens, &Device::Cpu)?;
    {
        let (x, e, y) = (hidden.clone(), table.clone(), target.clone());
        let (x2, e2, y2) = (hidden.clone(), table.clone(), target.clone());
        let plain = move || {
            let logits = x2.matmul(&e2.t()?)?;
            let max = logits.detach().max_keepdim(1)?;
            let sum = logits.broadcast_sub(&max)?.exp()?.sum_keepdim(1)?.log()?;
            let lse = (sum + max)?.squeeze(1)?;
            (lse - logits.gather(&y2.unsqueeze(1)?, 1)?.squeeze(1)?)?.sum_all()
        };
        add(
            "tied_cross_entropy",
            format!("[{tokens}, {width}] x [{}, {width}]", s.vocab),
            Amount::Flops(6.0 * (tokens * width * s.vocab) as f64),
            tensor_run(move || ops::tied_cross_entropy(&x, &e, &y, None)),
            Some(tensor_run(plain)),
        );
    }
    {
        let (e, y) = (table.clone(), target.clone());
        let (e2, y2) = (table.clone(), target.clone());
        add(
            "embedding",
            format!("[{tokens}] of [{}, {width}]", s.vocab),
            bytes(4 * tokens * width + s.vocab * width),
            tensor_run(move || ops::embedding(&y, &e, None)),
            Some(tensor_run(move || e2.index_select(&y2, 0))),
        );
    }
    {
        let x = randn("z", &[rows, d])?;
        let x2 = x.clone();
        let ids = row_ids(rows);
        let key = NoiseKey::new(1, "dropout", 0);
        add(
            "dropout",
            format!("[{rows}, {d}]"),
            bytes(4 * rows * d),
            tensor_run(move || ops::dropout(&x, 0.15, DropoutMask::Draw { key, rows: &ids })),
            Some(tensor_run(move || {
                let keep = Tensor::rand(0f32, 1f32, x2.dims(), &Device::Cpu)?.ge(0.15)?;
                x2.as_tensor() * (keep.to_dtype(DType::F32)? / 0.85)?
            })),
        );
    }
    {
        let (m, l) = (s.targets, s.latent);
        let x = randn("predictions", &[positions, n, l])?;
        let mean = randn("mean", &[positions, l])?.as_detached_tensor();
        let log_std = ((randn("log_std", &[positions, l])?.as_detached_tensor() * 0.1)? - 1.2)?;
        let (x2, mean2, log_std2, alpha) = (x.clone(), mean.clone(), log_std.clone(), s.alpha);
        let plain = move || {
            let eps = Tensor::randn(0f32, 1f32, (positions, m, l), &Device::Cpu)?;
            let z = eps.broadcast_mul(&log_std2.exp()?.unsqueeze(1)?)?.broadcast_add(&mean2.unsqueeze(1)?)?;
            let power = |a: &Tensor, b: &Tensor| {
                let d = a.unsqueeze(2)?.broadcast_sub(&b.unsqueeze(1)?)?;
                // A point has distance 0 to itself, where the root has no slope.
                (d.sqr()?.sum(3)? + 1e-12)?.powf(alpha / 2.0)?.sum((1, 2))
            };
            let pull = (power(&x2, &z)? * (2.0 / (n * m) as f64))?;
            pull - (power(&x2, &x2)? / (n * (n - 1)) as f64)?
        };
        // Of each pair difference, square and sum, and as much again for the gradient.
        let flops = (positions * (n * m + n * (n - 1) / 2) * 6 * l) as f64;
        let (ids, key) = (row_ids(positions), NoiseKey::new(1, "target", 0));
        let fused = move || {
            let noise = TargetNoise::Draw { key, rows: &ids, samples: m };
            ops::energy_score(&x, &mean, &log_std, noise, alpha)
        };
        add(
            "energy_score",
            format!("[{positions}, {n}, {l}], M {m}"),
            Amount::Flops(flops),
            tensor_run(fused),
            Some(tensor_run(plain)),
        );
    }

    let mut forward = |name, shape: String, amount, fused: Run, plain: Option<Run>| {
        all.push(Operator { name, shape, amount, differentiable: false, fused, plain });
    };
    {
        let (x, e) = (hidden.as_detached_tensor(), table.as_detached_tensor());
        let (x2, e2) = (x.clone(), e.clone());
        forward(
            "tied_argmax",
            format!("[{tokens}, {width}] x [{}, {width}]", s.vocab),
            Amount::Flops(2.0 * (tokens * width * s.vocab) as f64),
            tensor_run(move || ops::tied_argmax(&x, &e)),
            Some(tensor_run(move || x2.matmul(&e2.t()?)?.argmax(1))),
        );
    }
    {
        let kv = s.kv_heads;
        let q = randn("q", &[1, 1, h, dh])?.as_detached_tensor();
        let keys = randn("k", &[1, t, kv, dh])?.as_detached_tensor();
        let values = randn("v", &[1, t, kv, dh])?.as_detached_tensor();
        forward(
            "cached_attention",
            format!("1 of {t} positions, {h} heads of {dh}"),
            bytes(2 * t * kv * dh),
            tensor_run(move || ops::cached_attention(&q, &keys, &values)),
            None,
        );
    }
    {
        let n = 4 * d * d * s.layers;
        let (mut p, mut m, mut v) = (vec![0.1f32; n], vec![0.0f32; n], vec![0.0f32; n]);
        let g = vec![1e-3f32; n];
        let mut step = 0;
        let (mut p2, m2, v2) = (p.clone(), randn("m", &[n])?, randn("v", &[n])?);
        let g2 = Tensor::from_slice(&g, n, &Device::Cpu)?;
        forward(
            "adamw",
            format!("[{n}], clipping norm included"),
            bytes(8 * n),
            Box::new(move |_| {
                step += 1;
                let norm = ops::squared_norm(&g).sqrt();
                let grad_scale = (1.0 / norm).min(1.0);
                let settings = AdamWStep {
                    lr: 1e-4,
                    beta1: 0.9,
                    beta2: 0.95,
                    eps: 1e-8,
                    weight_decay: 0.1,
                    step,
                    grad_scale,
                };
                ops::adamw(&mut p, &g, &mut m, &mut v, &settings);
                Ok(())
            }),
            Some(Box::new(move |_| {
                let norm = g2.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
                let g = (&g2 * f64::from((1.0 / norm).min(1.0)))?;
                let m = ((m2.as_tensor() * 0.9)? + (&g * 0.1)?)?;
                let v = ((v2.sqr()?.sqrt()? * 0.95)? + (g.sqr()? * 0.05)?)?;
                let p = Tensor::from_slice(&p2, n, &Device::Cpu)?;
                let update = (m / (v.sqrt()? + 1e-8)?)?;
                p2 = ((p * 0.99999)? - (update * 1e-4)?)?.to_vec1()?;
                Ok(())
            })),
        );
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_and_their_compositions_run_and_have_a_gradient() {
        for mut operator in all(&Size::all()["tiny"]).unwrap() {
            let pass = if operator.differentiable { Pass::Both } else { Pass::Forward };
            (operator.fused)(pass).unwrap();
            if let Some(plain) = &mut operator.plain {
                plain(pass).unwrap();
            }
        }
    }
}
