//! The energy score against the N×M×L composition of tensor operations, against naive double
//! precision, and by gradient check.

use crate::common;
use calm_kernels::philox::{NoiseKey, RowId, normal};
use calm_kernels::{TargetNoise, energy_score, energy_score_rows_no_grad, gradcheck};
use candle_core::{DType, Device, Result, Tensor, Var};

fn rows(r: usize) -> Vec<RowId> {
    (0..r as u32).map(|i| RowId { example: i / 3, position: i % 3 }).collect()
}

fn key() -> NoiseKey {
    NoiseKey::new(17, "targets", 4)
}

/// Reproducible normals as a tensor.
fn randn(stream: &str, scale: f64, dims: &[usize], dtype: DType) -> Tensor {
    let count = dims.iter().product();
    let row = [RowId { example: 0, position: 0 }];
    let x = normal(NoiseKey::new(5, stream, 0), &row, 1, count);
    (Tensor::from_vec(x, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap() * scale).unwrap()
}

struct Case {
    pred: Tensor,
    mean: Tensor,
    log_std: Tensor,
    noise: Tensor,
}

fn case(r: usize, n: usize, m: usize, l: usize, dtype: DType) -> Case {
    let drawn = normal(key(), &rows(r), m, l);
    let noise = Tensor::from_vec(drawn, (r, m, l), &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
    Case {
        pred: randn("pred", 1.0, &[r, n, l], dtype),
        mean: randn("mean", 1.0, &[r, l], dtype),
        log_std: (randn("log_std", 0.2, &[r, l], dtype) - 1.0).unwrap(),
        noise: noise.transpose(0, 1).unwrap().contiguous().unwrap(),
    }
}

/// The whole N×M×L composition, as in the paper's formula.
fn plain(c: &Case, pred: &Tensor, alpha: f64) -> Result<Tensor> {
    let (_, n, l) = pred.dims3()?;
    let m = c.noise.dims()[0];
    let z = c.noise.broadcast_mul(&c.log_std.exp()?)?.broadcast_add(&c.mean)?.transpose(0, 1)?;
    let power = |d: Tensor| d.sqr()?.sum(3)?.powf(0.5 * alpha);
    let to_target = power(pred.unsqueeze(2)?.broadcast_sub(&z.contiguous()?.unsqueeze(1)?)?)?;
    let mut loss = (to_target.sum((1, 2))? * (2.0 / (n * m) as f64))?;
    // Pairs without the diagonal, whose gradient through the root would be NaN.
    for a in 0..n {
        for b in a + 1..n {
            let d = (pred.narrow(1, a, 1)? - pred.narrow(1, b, 1)?)?.reshape(((), 1, 1, l))?;
            loss = (loss - (power(d)?.reshape(((),))? * (2.0 / (n * (n - 1)) as f64))?)?;
        }
    }
    Ok(loss)
}

fn max_abs(t: &Tensor) -> f64 {
    let t = t.to_dtype(DType::F64).unwrap().abs().unwrap().flatten_all().unwrap();
    t.to_vec1::<f64>().unwrap().into_iter().fold(0.0, |a, b| if b.is_nan() { b } else { a.max(b) })
}

fn relative(got: &Tensor, want: &Tensor) -> f64 {
    let got = got.to_dtype(DType::F64).unwrap();
    let want = want.to_dtype(DType::F64).unwrap();
    max_abs(&(got - &want).unwrap()) / max_abs(&want)
}

/// (loss per row, gradient of Σ_r w_r loss_r) of `f`.
fn with_gradient(pred: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor>) -> (Tensor, Tensor) {
    let pred = Var::from_tensor(pred).unwrap();
    let loss = f(&pred).unwrap();
    let r = loss.dims1().unwrap();
    let weights: Vec<f64> = (0..r).map(|i| 1.0 + 0.5 * i as f64).collect();
    let weights = Tensor::new(weights, &Device::Cpu).unwrap().to_dtype(loss.dtype()).unwrap();
    let weights = weights.to_device(loss.device()).unwrap();
    let grads = (&loss * weights).unwrap().sum_all().unwrap().backward().unwrap();
    (loss, grads.get(&pred).unwrap().clone())
}

fn bits(t: &Tensor) -> Vec<u32> {
    t.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect()
}

#[test]
fn values_and_gradients_match_the_composition() {
    let mut worst = [0.0f64; 4];
    for (r, n, m, l) in [(3, 2, 1, 1), (5, 8, 100, 128), (2, 3, 5, 7), (9, 4, 13, 33), (1, 2, 8, 64)] {
        for alpha in [1.0, 0.5, 1.5, 1.9] {
            for (dtype, at) in [(DType::F32, 0), (DType::F64, 2)] {
                let c = case(r, n, m, l, dtype);
                let exact = case(r, n, m, l, DType::F64);
                // The double-precision truth for exactly the inputs that the operator gets.
                let exact_inputs = Case {
                    pred: c.pred.to_dtype(DType::F64).unwrap(),
                    mean: c.mean.to_dtype(DType::F64).unwrap(),
                    log_std: c.log_std.to_dtype(DType::F64).unwrap(),
                    noise: exact.noise,
                };
                let (loss, grad) = with_gradient(&c.pred, |p| {
                    energy_score(p, &c.mean, &c.log_std, TargetNoise::Given(&c.noise), alpha)
                });
                let (want, want_grad) = with_gradient(&exact_inputs.pred, |p| plain(&exact_inputs, p, alpha));
                worst[at] = worst[at].max(relative(&loss, &want));
                worst[at + 1] = worst[at + 1].max(relative(&grad, &want_grad));
            }
        }
    }
    println!(
        "relative errors: f32 value, gradient, f64 value, gradient: {:?}",
        worst.map(|w| format!("{w:.1e}"))
    );
    assert!(worst[0] < 1e-6 && worst[1] < 2e-6, "{worst:?}");
    assert!(worst[2] < 1e-13 && worst[3] < 1e-13, "{worst:?}");
}

#[test]
fn drawn_targets_are_the_normals_of_the_row() {
    for (n, m, l) in [(8, 100, 128), (2, 3, 5), (3, 17, 30)] {
        for dtype in [DType::F32, DType::F64] {
            let c = case(6, n, m, l, dtype);
            let ids = rows(6);
            let drawn = TargetNoise::Draw { key: key(), rows: &ids, samples: m };
            let a = with_gradient(&c.pred, |p| energy_score(p, &c.mean, &c.log_std, drawn, 1.0));
            let b = with_gradient(&c.pred, |p| {
                energy_score(p, &c.mean, &c.log_std, TargetNoise::Given(&c.noise), 1.0)
            });
            assert_eq!(max_abs(&(a.0 - b.0).unwrap()), 0.0);
            assert_eq!(max_abs(&(a.1 - b.1).unwrap()), 0.0);
        }
    }
}

#[test]
fn gradients_pass_the_gradient_check() {
    let c = case(2, 3, 6, 5, DType::F64);
    for alpha in [0.3, 1.0, 1.7] {
        gradcheck::check(
            std::slice::from_ref(&c.pred),
            |v| {
                let noise = TargetNoise::Given(&c.noise);
                let rows = energy_score(&v[0], &c.mean, &c.log_std, noise, alpha)?;
                (rows.sqr()? + rows)?.sum_all()
            },
            1e-7,
        )
        .unwrap();
    }
}

#[test]
fn coincident_points_have_zero_gradient_for_every_alpha() {
    for dtype in [DType::F32, DType::F64] {
        for alpha in [0.1, 1.0, 1.5] {
            // All samples coincide with each other and with all targets.
            let pred = Tensor::ones((2, 4, 19), dtype, &Device::Cpu).unwrap();
            let mean = Tensor::ones((2, 19), dtype, &Device::Cpu).unwrap();
            let noise = Tensor::zeros((6, 2, 19), dtype, &Device::Cpu).unwrap();
            let (loss, grad) = with_gradient(&pred, |p| {
                energy_score(p, &mean, &mean.zeros_like()?, TargetNoise::Given(&noise), alpha)
            });
            assert_eq!((max_abs(&loss), max_abs(&grad)), (0.0, 0.0));
            // Samples coincide only with each other: the start of training, all gradients equal.
            let zeros = pred.zeros_like().unwrap();
            let (loss, grad) = with_gradient(&zeros, |p| {
                energy_score(p, &mean, &mean.zeros_like()?, TargetNoise::Given(&noise), alpha)
            });
            assert!((max_abs(&loss) - 2.0 * 19f64.powf(alpha / 2.0)).abs() < 1e-5);
            let first = grad.narrow(1, 0, 1).unwrap();
            assert_eq!(max_abs(&grad.broadcast_sub(&first).unwrap()), 0.0);
            assert!(max_abs(&grad) > 0.0);
        }
    }
}

#[test]
fn nearly_coincident_points_keep_a_finite_unit_gradient() {
    for d in [1e-3f32, 1e-10, 1e-18, 1e-22] {
        let pred = Tensor::new(&[[[0.0f32], [1.0]]], &Device::Cpu).unwrap();
        let mean = Tensor::new(&[[d]], &Device::Cpu).unwrap();
        let log_std = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap();
        let noise = Tensor::zeros((1, 1, 1), DType::F32, &Device::Cpu).unwrap();
        let (_, grad) =
            with_gradient(&pred, |p| energy_score(p, &mean, &log_std, TargetNoise::Given(&noise), 1.0));
        let got = grad.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0];
        // −1 from the target (unless it coincides in single precision), +1 from the other sample.
        let want = if d > 1e-19 { 0.0 } else { 1.0 };
        assert!((got - want).abs() < 1e-6, "{d}: {got}");
    }
}

#[test]
fn a_deterministic_prediction_at_the_mean_scores_twice_the_mean_norm() {
    // E‖Y − μ‖·2 for Y ~ N(μ, σ²) in 128 dimensions at σ = 0.3, minus 0: 2·3.3875.
    let (r, m, l) = (64, 100, 128);
    let pred = Tensor::zeros((r, 2, l), DType::F32, &Device::Cpu).unwrap();
    let mean = Tensor::zeros((r, l), DType::F32, &Device::Cpu).unwrap();
    let log_std = (mean.ones_like().unwrap() * 0.3f64.ln()).unwrap();
    let ids = rows(r);
    let noise = TargetNoise::Draw { key: key(), rows: &ids, samples: m };
    let loss = energy_score_rows_no_grad(&pred, &mean, &log_std, noise, 1.0).unwrap();
    let got = loss.mean_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((got - 6.775).abs() < 0.02, "{got}");
}

#[test]
fn values_without_gradient_are_the_same_and_nothing_flows_back() {
    let c = case(5, 4, 11, 20, DType::F32);
    let (loss, _) =
        with_gradient(&c.pred, |p| energy_score(p, &c.mean, &c.log_std, TargetNoise::Given(&c.noise), 1.0));
    let noise = TargetNoise::Given(&c.noise);
    let pred = Var::from_tensor(&c.pred).unwrap();
    let alone = energy_score_rows_no_grad(&pred, &c.mean, &c.log_std, noise, 1.0).unwrap();
    assert_eq!(bits(&loss), bits(&alone));
    assert!(!alone.track_op());
    let constant = energy_score(&c.pred, &c.mean, &c.log_std, noise, 1.0).unwrap();
    assert_eq!(bits(&loss), bits(&constant));
}

#[test]
fn targets_receive_no_gradient() {
    let c = case(3, 2, 4, 8, DType::F32);
    let [pred, mean, log_std] = [&c.pred, &c.mean, &c.log_std].map(|t| Var::from_tensor(t).unwrap());
    let noise = TargetNoise::Given(&c.noise);
    let loss = energy_score(&pred, &mean, &log_std, noise, 1.0).unwrap();
    let grads = loss.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&pred).is_some() && grads.get(&mean).is_none() && grads.get(&log_std).is_none());
}

#[test]
fn results_do_not_depend_on_threads_and_a_second_backward_agrees() {
    let c = case(37, 8, 21, 128, DType::F32);
    let ids = rows(37);
    let run = || {
        let noise = TargetNoise::Draw { key: key(), rows: &ids, samples: 21 };
        let pred = Var::from_tensor(&c.pred).unwrap();
        let loss = energy_score(&pred, &c.mean, &c.log_std, noise, 1.0).unwrap();
        let total = loss.sum_all().unwrap();
        let first = total.backward().unwrap().get(&pred).unwrap().clone();
        let second = total.backward().unwrap().get(&pred).unwrap().clone();
        assert_eq!(bits(&first), bits(&second));
        (bits(&loss), bits(&first))
    };
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    assert_eq!(pool(1).install(run), pool(3).install(run));
}

#[test]
fn strided_predictions_are_accepted_with_their_gradient() {
    let c = case(3, 4, 5, 8, DType::F64);
    let swapped = c.pred.transpose(0, 1).unwrap().contiguous().unwrap();
    let noise = TargetNoise::Given(&c.noise);
    let a = with_gradient(&c.pred, |p| energy_score(p, &c.mean, &c.log_std, noise, 1.0));
    let b = with_gradient(&swapped, |p| energy_score(&p.transpose(0, 1)?, &c.mean, &c.log_std, noise, 1.0));
    assert_eq!(max_abs(&(a.0 - b.0).unwrap()), 0.0);
    assert_eq!(max_abs(&(a.1 - b.1.transpose(0, 1).unwrap()).unwrap()), 0.0);
}

#[test]
fn an_empty_batch_gives_no_rows() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let noise = TargetNoise::Draw { key: key(), rows: &[], samples: 3 };
    let loss = energy_score(&zeros(&[0, 2, 4]), &zeros(&[0, 4]), &zeros(&[0, 4]), noise, 1.0).unwrap();
    assert_eq!(loss.dims(), &[0]);
}

#[test]
fn bad_arguments_are_named() {
    let c = case(3, 2, 4, 8, DType::F32);
    let given = TargetNoise::Given(&c.noise);
    let fails = |pred: &Tensor, mean: &Tensor, noise: TargetNoise<'_>, alpha: f64, words: &[&str]| {
        let err = energy_score(pred, mean, &c.log_std, noise, alpha).unwrap_err().to_string();
        assert!(words.iter().all(|w| err.contains(w)) && err.contains("energy_score"), "{err}");
    };
    fails(&c.pred.narrow(1, 0, 1).unwrap(), &c.mean, given, 1.0, &["N >= 2", "[3, 1, 8]"]);
    fails(&c.pred.flatten(0, 1).unwrap(), &c.mean, given, 1.0, &["[R, N, L]", "[6, 8]"]);
    fails(&c.pred, &c.mean.narrow(1, 0, 7).unwrap(), given, 1.0, &["mean", "[3, 8]", "[3, 7]"]);
    fails(&c.pred, &c.mean.to_dtype(DType::F64).unwrap(), given, 1.0, &["mean", "F64"]);
    fails(&c.pred.to_dtype(DType::BF16).unwrap(), &c.mean, given, 1.0, &["f32 or f64", "BF16"]);
    for alpha in [0.0, 2.0, -1.0, f64::NAN] {
        fails(&c.pred, &c.mean, given, alpha, &["alpha", "(0, 2)"]);
    }
    let ids = rows(2);
    let short = TargetNoise::Draw { key: key(), rows: &ids, samples: 4 };
    fails(&c.pred, &c.mean, short, 1.0, &["3 rows", "2 row addresses"]);
    let ids = rows(3);
    fails(&c.pred, &c.mean, TargetNoise::Draw { key: key(), rows: &ids, samples: 0 }, 1.0, &["M >= 1"]);
    let wrong = c.noise.transpose(0, 1).unwrap();
    fails(&c.pred, &c.mean, TargetNoise::Given(&wrong), 1.0, &["[M, R, L]", "[3, 4, 8]"]);
    let wide = Tensor::zeros((3, 2, 1025), DType::F32, &Device::Cpu).unwrap();
    fails(&wide, &c.mean, given, 1.0, &["1024", "1025"]);
}

impl Case {
    fn to_device(&self, device: &Device) -> Self {
        let [pred, mean, log_std, noise] =
            [&self.pred, &self.mean, &self.log_std, &self.noise].map(|t| t.to_device(device).unwrap());
        Self { pred, mean, log_std, noise }
    }
}

/// The inputs rounded to bf16 and back, but for the given posterior and noise.
fn rounded(c: &Case) -> Case {
    let pred = c.pred.to_dtype(DType::BF16).unwrap().to_dtype(c.pred.dtype()).unwrap();
    Case { pred, mean: c.mean.clone(), log_std: c.log_std.clone(), noise: c.noise.clone() }
}

#[test]
fn a_gpu_gives_the_cpus_losses_and_gradients_from_the_same_draws() {
    let Some(gpu) = common::gpu() else { return };
    for (r, n, m, l) in [(3, 2, 1, 1), (5, 8, 100, 128), (2, 3, 17, 33), (9, 9, 13, 130), (1, 2, 3, 1024)] {
        for alpha in [1.0, 0.5, 1.5] {
            let c = case(r, n, m, l, DType::F32);
            let ids = rows(r);
            let drawn = TargetNoise::Draw { key: key(), rows: &ids, samples: m };
            let there = c.to_device(&gpu);
            let want = with_gradient(&c.pred, |p| energy_score(p, &c.mean, &c.log_std, drawn, alpha));
            for noise in [drawn, TargetNoise::Given(&there.noise)] {
                let (loss, grad) = with_gradient(&there.pred, |p| {
                    energy_score(p, &there.mean, &there.log_std, noise, alpha)
                });
                let (loss, grad) =
                    (loss.to_device(&Device::Cpu).unwrap(), grad.to_device(&Device::Cpu).unwrap());
                assert!(relative(&loss, &want.0) < 1e-6, "loss at {:?}", (r, n, m, l, alpha));
                assert!(relative(&grad, &want.1) < 1e-6, "gradient at {:?}", (r, n, m, l, alpha));
            }
            // Predictions in bf16: the score of their values in f32, the gradient rounded.
            let c = rounded(&c);
            let want = with_gradient(&c.pred, |p| energy_score(p, &c.mean, &c.log_std, drawn, alpha));
            let pred = c.pred.to_dtype(DType::BF16).unwrap().to_device(&gpu).unwrap();
            let (loss, grad) =
                with_gradient(&pred, |p| energy_score(p, &there.mean, &there.log_std, drawn, alpha));
            assert_eq!((loss.dtype(), grad.dtype()), (DType::F32, DType::BF16));
            let (loss, grad) = (loss.to_device(&Device::Cpu).unwrap(), grad.to_device(&Device::Cpu).unwrap());
            assert!(relative(&loss, &want.0) < 1e-6, "bf16 loss at {:?}", (r, n, m, l, alpha));
            assert!(relative(&grad, &want.1) < 8e-3, "bf16 gradient at {:?}", (r, n, m, l, alpha));
            // Without a gradient the same losses.
            let alone = energy_score_rows_no_grad(&pred, &there.mean, &there.log_std, drawn, alpha).unwrap();
            assert!(!alone.track_op());
            assert_eq!(bits(&alone.to_device(&Device::Cpu).unwrap()), bits(&loss));
        }
    }
}

#[test]
fn coincident_points_have_zero_gradient_on_a_gpu() {
    let Some(gpu) = common::gpu() else { return };
    for dtype in [DType::F32, DType::BF16] {
        for alpha in [0.1, 1.0, 1.5] {
            let ones = |dims: &[usize], dtype| {
                Tensor::ones(dims, DType::F32, &Device::Cpu)
                    .and_then(|t| t.to_dtype(dtype)?.to_device(&gpu))
                    .unwrap()
            };
            let (pred, mean) = (ones(&[2, 4, 19], dtype), ones(&[2, 19], DType::F32));
            let zeros = Tensor::zeros((6, 2, 19), DType::F32, &Device::Cpu).unwrap().to_device(&gpu).unwrap();
            let log_std = zeros.narrow(0, 0, 1).unwrap().squeeze(0).unwrap();
            let (loss, grad) =
                with_gradient(&pred, |p| energy_score(p, &mean, &log_std, TargetNoise::Given(&zeros), alpha));
            let (loss, grad) = (loss.to_device(&Device::Cpu).unwrap(), grad.to_device(&Device::Cpu).unwrap());
            assert_eq!((max_abs(&loss), max_abs(&grad)), (0.0, 0.0));
        }
    }
}

#[test]
fn a_gpu_takes_empty_batches_and_names_bad_arguments() {
    let Some(gpu) = common::gpu() else { return };
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &gpu).unwrap();
    let noise = TargetNoise::Draw { key: key(), rows: &[], samples: 3 };
    let pred = Var::from_tensor(&zeros(&[0, 2, 4])).unwrap();
    let loss = energy_score(&pred, &zeros(&[0, 4]), &zeros(&[0, 4]), noise, 1.0).unwrap();
    assert_eq!(loss.dims(), &[0]);
    let c = case(3, 2, 4, 8, DType::F32);
    let there = c.to_device(&gpu);
    let fails = |pred: &Tensor, mean: &Tensor, alpha: f64, words: &[&str]| {
        let noise = TargetNoise::Given(&there.noise);
        let err = energy_score(pred, mean, &there.log_std, noise, alpha).unwrap_err().to_string();
        assert!(words.iter().all(|w| err.contains(w)) && err.contains("energy_score"), "{err}");
    };
    fails(&there.pred, &there.mean, 2.0, &["alpha", "(0, 2)"]);
    fails(&there.pred, &there.mean.narrow(1, 0, 7).unwrap(), 1.0, &["mean", "[3, 7]"]);
    fails(&there.pred, &c.mean, 1.0, &["on a GPU"]);
}

/// Not a benchmark, a look: `cargo test --release -p calm-kernels --test operators speed -- --ignored --nocapture`.
#[test]
#[ignore = "prints timings only"]
fn speed() {
    let (r, n, m, l) = (512, 8, 100, 128);
    let c = case(r, n, 1, l, DType::F32);
    let ids = rows(r);
    let time = |name: &str, f: &dyn Fn()| {
        let mut best = f64::INFINITY;
        for _ in 0..20 {
            let start = std::time::Instant::now();
            f();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{name}: {:.2} ms", best * 1e3);
    };
    let draw = TargetNoise::Draw { key: key(), rows: &ids, samples: m };
    let pred = Var::from_tensor(&c.pred).unwrap();
    time("normals only", &|| drop(normal(key(), &ids, m, l)));
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        for alpha in [1.0, 1.5] {
            time(&format!("{threads} threads, alpha {alpha}, forward with gradient"), &|| {
                pool.install(|| drop(energy_score(&pred, &c.mean, &c.log_std, draw, alpha).unwrap()));
            });
        }
        time(&format!("{threads} threads, no gradient"), &|| {
            pool.install(|| {
                drop(energy_score_rows_no_grad(&pred, &c.mean, &c.log_std, draw, 1.0).unwrap());
            });
        });
        time(&format!("{threads} threads, forward and backward"), &|| {
            pool.install(|| {
                let loss = energy_score(&pred, &c.mean, &c.log_std, draw, 1.0).unwrap();
                drop(loss.sum_all().unwrap().backward().unwrap());
            });
        });
    }
}
