//! Tied cross-entropy against the composition of tensor operations that keeps all logits.

use crate::common;
use calm_kernels::philox::{NoiseKey, RowId, normal};
use calm_kernels::{gradcheck, tied_argmax, tied_cross_entropy, tied_cross_entropy_rows};
use candle_core::{D, DType, Device, Result, Tensor, Var};

fn randn(stream: &str, scale: f64, dims: &[usize], dtype: DType) -> Tensor {
    let row = [RowId { example: 0, position: 0 }];
    let x = normal(NoiseKey::new(5, stream, 0), &row, 1, dims.iter().product());
    (Tensor::from_vec(x, dims, &Device::Cpu).unwrap().to_dtype(dtype).unwrap() * scale).unwrap()
}

struct Case {
    hidden: Tensor,
    embedding: Tensor,
    targets: Tensor,
    weights: Tensor,
}

fn case(r: usize, d: usize, v: usize, dtype: DType) -> Case {
    let targets: Vec<u32> = (0..r).map(|i| (i * i * 31 + 7 * i) as u32 % v as u32).collect();
    let weights: Vec<f64> = (0..r).map(|i| [1.0, 0.0, 0.5, 2.0][i % 4]).collect();
    Case {
        hidden: randn("hidden", 1.0, &[r, d], dtype),
        embedding: randn("embedding", 0.7, &[v, d], dtype),
        targets: Tensor::new(targets, &Device::Cpu).unwrap(),
        weights: Tensor::new(weights, &Device::Cpu).unwrap().to_dtype(dtype).unwrap(),
    }
}

/// Loss of each row from all logits.
fn plain_rows(hidden: &Tensor, embedding: &Tensor, targets: &Tensor) -> Result<Tensor> {
    let logits = hidden.matmul(&embedding.t()?)?;
    let logits = logits.broadcast_sub(&logits.max_keepdim(D::Minus1)?.detach())?;
    let normaliser = logits.exp()?.sum(1)?.log()?;
    normaliser - logits.gather(&targets.unsqueeze(1)?, 1)?.squeeze(1)?
}

fn max_abs(t: &Tensor) -> f64 {
    let t = t.to_dtype(DType::F64).unwrap().abs().unwrap().flatten_all().unwrap();
    t.to_vec1::<f64>().unwrap().into_iter().fold(0.0, |a, b| if b.is_nan() { b } else { a.max(b) })
}

fn relative(got: &Tensor, want: &Tensor) -> f64 {
    let got = got.to_dtype(DType::F64).unwrap();
    max_abs(&(got - want).unwrap()) / max_abs(want)
}

/// [loss, gradient of hidden, gradient of embedding] of loss·factor.
fn with_gradients(c: &Case, factor: f64, f: impl Fn(&Tensor, &Tensor) -> Result<Tensor>) -> [Tensor; 3] {
    let hidden = Var::from_tensor(&c.hidden).unwrap();
    let embedding = Var::from_tensor(&c.embedding).unwrap();
    let loss = f(&hidden, &embedding).unwrap();
    let grads = (&loss * factor).unwrap().backward().unwrap();
    [loss, grads.get(&hidden).unwrap().clone(), grads.get(&embedding).unwrap().clone()]
}

fn exact(c: &Case) -> Case {
    let double = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
    Case {
        hidden: double(&c.hidden),
        embedding: double(&c.embedding),
        targets: c.targets.clone(),
        weights: double(&c.weights),
    }
}

#[test]
fn loss_and_gradients_match_the_composition() {
    let mut worst = [0.0f64; 2];
    // 700 rows of 9,001 ids are two blocks of logits.
    for (r, d, v) in [(1, 1, 2), (5, 3, 7), (33, 16, 100), (130, 64, 1025), (700, 8, 9001)] {
        for (at, dtype) in [DType::F32, DType::F64].into_iter().enumerate() {
            for weighted in [true, false] {
                let c = case(r, d, v, dtype);
                let e = exact(&c);
                let weights = weighted.then_some(&c.weights);
                let got = with_gradients(&c, 0.25, |h, e| tied_cross_entropy(h, e, &c.targets, weights));
                let want = with_gradients(&e, 0.25, |h, m| {
                    let rows = plain_rows(h, m, &e.targets)?;
                    if weighted { (rows * &e.weights)?.sum_all() } else { rows.sum_all() }
                });
                assert_eq!(got[0].rank(), 0);
                for (got, want) in got.iter().zip(&want) {
                    worst[at] = worst[at].max(relative(got, want));
                }
            }
        }
    }
    println!("relative errors, f32 and f64: {:.2e} {:.2e}", worst[0], worst[1]);
    assert!(worst[0] < 3e-6 && worst[1] < 1e-13, "{worst:?}");
}

#[test]
fn gradients_pass_the_gradient_check() {
    let c = case(5, 3, 7, DType::F64);
    gradcheck::check(
        &[c.hidden.clone(), c.embedding.clone()],
        |v| {
            let loss = tied_cross_entropy(&v[0], &v[1], &c.targets, Some(&c.weights))?;
            loss.sqr()? + loss
        },
        1e-7,
    )
    .unwrap();
}

#[test]
fn a_tied_embedding_collects_both_of_its_gradients() {
    // The same variable as hidden states and as embedding.
    let e = randn("tied", 0.5, &[6, 4], DType::F64);
    let targets = Tensor::new(&[0u32, 5, 2, 2, 1, 3], &Device::Cpu).unwrap();
    gradcheck::check(&[e], |v| tied_cross_entropy(&v[0].sin()?, &v[0], &targets, None), 1e-7).unwrap();
}

#[test]
fn rows_give_losses_and_the_most_probable_id() {
    for dtype in [DType::F32, DType::F64] {
        let c = case(600, 16, 9000, dtype);
        let (loss, best) = tied_cross_entropy_rows(&c.hidden, &c.embedding, &c.targets).unwrap();
        let e = exact(&c);
        let want = plain_rows(&e.hidden, &e.embedding, &c.targets).unwrap();
        assert!(relative(&loss, &want) < if dtype == DType::F32 { 2e-6 } else { 1e-13 });
        let logits = e.hidden.matmul(&e.embedding.t().unwrap()).unwrap();
        let want = logits.argmax(1).unwrap().to_vec1::<u32>().unwrap();
        assert_eq!(best.to_vec1::<u32>().unwrap(), want);
        assert_eq!(
            tied_argmax(&c.hidden, &c.embedding).unwrap().to_vec1::<u32>().unwrap(),
            best.to_vec1::<u32>().unwrap()
        );
        let total = tied_cross_entropy(&c.hidden, &c.embedding, &c.targets, None).unwrap();
        let sum = loss.to_dtype(DType::F64).unwrap().sum_all().unwrap();
        assert!(relative(&total, &sum) < 1e-6);
    }
}

#[test]
fn ties_go_to_the_lowest_id_and_nan_never_wins() {
    let hidden = Tensor::new(&[[1f32], [-1.0], [0.0], [f32::NAN]], &Device::Cpu).unwrap();
    let mut table = vec![0.0f32; 1000];
    table[300] = 2.0;
    table[301] = 2.0;
    table[999] = 2.0;
    table[700] = -3.0;
    table[701] = -3.0;
    let table = Tensor::from_vec(table, (1000, 1), &Device::Cpu).unwrap();
    let best = tied_argmax(&hidden, &table).unwrap().to_vec1::<u32>().unwrap();
    assert_eq!(best, vec![300, 700, 0, 0]);
}

#[test]
fn extreme_logits_stay_finite_and_nan_comes_out() {
    let targets = Tensor::new(&[0u32], &Device::Cpu).unwrap();
    let hidden = Tensor::new(&[[1f32]], &Device::Cpu).unwrap();
    let table = Tensor::new(&[[-1e4f32], [1e4], [0.0]], &Device::Cpu).unwrap();
    let c = Case { hidden, embedding: table, targets, weights: Tensor::new(&[1f32], &Device::Cpu).unwrap() };
    let [loss, h, e] = with_gradients(&c, 1.0, |h, e| tied_cross_entropy(h, e, &c.targets, None));
    assert_eq!(loss.to_scalar::<f32>().unwrap(), 2e4);
    assert_eq!(h.to_vec2::<f32>().unwrap(), vec![vec![2e4]]);
    assert_eq!(e.flatten_all().unwrap().to_vec1::<f32>().unwrap(), vec![-1.0, 1.0, 0.0]);
    let bad = Tensor::new(&[[f32::NAN]], &Device::Cpu).unwrap();
    let loss = tied_cross_entropy(&bad, &c.embedding, &c.targets, None).unwrap();
    assert!(loss.to_scalar::<f32>().unwrap().is_nan());
}

#[test]
fn a_row_of_weight_zero_has_no_part_in_anything() {
    let mut c = case(3, 4, 10, DType::F32);
    c.weights = Tensor::new(&[1f32, 0.0, 1.0], &Device::Cpu).unwrap();
    let run =
        |c: &Case| with_gradients(c, 1.0, |h, e| tied_cross_entropy(h, e, &c.targets, Some(&c.weights)));
    let clean = run(&c);
    assert_eq!(max_abs(&clean[1].narrow(0, 1, 1).unwrap()), 0.0);
    let kept = Tensor::new(&[[1f32], [0.0], [1.0]], &Device::Cpu).unwrap();
    c.hidden = c.hidden.broadcast_mul(&kept).unwrap();
    let other = run(&c);
    for i in [0, 1, 2] {
        assert_eq!(max_abs(&(&clean[i] - &other[i]).unwrap()), 0.0);
    }
}

#[test]
fn only_what_is_asked_for_gets_a_gradient() {
    let c = case(9, 4, 10, DType::F32);
    let full = with_gradients(&c, 1.0, |h, e| tied_cross_entropy(h, e, &c.targets, None));
    let hidden = Var::from_tensor(&c.hidden).unwrap();
    let grads = tied_cross_entropy(&hidden, &c.embedding, &c.targets, None).unwrap().backward().unwrap();
    assert_eq!(max_abs(&(grads.get(&hidden).unwrap() - &full[1]).unwrap()), 0.0);
    assert!(grads.get(&c.embedding).is_none());
    let embedding = Var::from_tensor(&c.embedding).unwrap();
    let grads = tied_cross_entropy(&c.hidden, &embedding, &c.targets, None).unwrap().backward().unwrap();
    assert_eq!(max_abs(&(grads.get(&embedding).unwrap() - &full[2]).unwrap()), 0.0);
    let loss = tied_cross_entropy(&c.hidden, &c.embedding, &c.targets, None).unwrap();
    assert!(!loss.track_op());
    assert!(relative(&loss, &full[0].to_dtype(DType::F64).unwrap()) < 1e-6);
}

#[test]
fn results_do_not_depend_on_threads() {
    let c = case(300, 48, 20_011, DType::F32);
    let run = || {
        let out = with_gradients(&c, 0.5, |h, e| tied_cross_entropy(h, e, &c.targets, Some(&c.weights)));
        let (rows, best) = tied_cross_entropy_rows(&c.hidden, &c.embedding, &c.targets).unwrap();
        let mut bits: Vec<u32> = best.to_vec1().unwrap();
        for t in out.iter().chain([&rows]) {
            bits.extend(t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|v| v.to_bits()));
        }
        bits
    };
    let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
    assert_eq!(pool(1).install(run), pool(3).install(run));
}

#[test]
fn an_empty_batch_has_loss_zero() {
    let hidden = Tensor::zeros((0, 4), DType::F32, &Device::Cpu).unwrap();
    let table = Var::zeros((10, 4), DType::F32, &Device::Cpu).unwrap();
    let targets = Tensor::zeros(0, DType::U32, &Device::Cpu).unwrap();
    let loss = tied_cross_entropy(&hidden, &table, &targets, None).unwrap();
    assert_eq!(loss.to_scalar::<f32>().unwrap(), 0.0);
    assert_eq!(max_abs(loss.backward().unwrap().get(&table).unwrap()), 0.0);
    assert_eq!(tied_argmax(&hidden, &table).unwrap().dims(), &[0]);
}

#[test]
fn bad_arguments_are_named() {
    let c = case(5, 4, 10, DType::F32);
    let fails = |result: Result<Tensor>, words: &[&str]| {
        let err = result.unwrap_err().to_string();
        assert!(words.iter().all(|w| err.contains(w)), "{err}");
    };
    let loss = |h: &Tensor, t: &Tensor, w: Option<&Tensor>| tied_cross_entropy(h, &c.embedding, t, w);
    let narrow = c.hidden.narrow(1, 0, 3).unwrap();
    fails(loss(&narrow, &c.targets, None), &["tied_cross_entropy", "[5, 3]", "[10, 4]"]);
    fails(tied_argmax(&narrow, &c.embedding), &["tied_argmax", "[5, 3]", "[10, 4]"]);
    fails(loss(&c.hidden, &c.targets.narrow(0, 0, 4).unwrap(), None), &["targets", "[5]", "[4]"]);
    fails(loss(&c.hidden, &c.targets.to_dtype(DType::I64).unwrap(), None), &["U32", "I64"]);
    let outside = Tensor::new(&[0u32, 1, 10, 3, 4], &Device::Cpu).unwrap();
    fails(loss(&c.hidden, &outside, None), &["target 10", "row 2", "10 ids"]);
    fails(
        tied_cross_entropy_rows(&c.hidden, &c.embedding, &outside).map(|r| r.0),
        &["tied_cross_entropy_rows", "target 10"],
    );
    let wrong = c.weights.narrow(0, 0, 2).unwrap();
    fails(loss(&c.hidden, &c.targets, Some(&wrong)), &["weights", "[5]", "[2]"]);
    let double = c.hidden.to_dtype(DType::F64).unwrap();
    fails(loss(&double, &c.targets, None), &["F64", "F32"]);
    let half = |t: &Tensor| t.to_dtype(DType::BF16).unwrap();
    fails(tied_argmax(&half(&c.hidden), &half(&c.embedding)), &["f32 or f64", "BF16"]);
}

/// The case on a GPU: hidden states in `dtype`, everything else in f32.
fn on_gpu(c: &Case, dtype: DType, gpu: &Device) -> Case {
    let there = |t: &Tensor| t.to_device(gpu).unwrap();
    Case {
        hidden: there(&c.hidden.to_dtype(dtype).unwrap()),
        embedding: there(&c.embedding),
        targets: there(&c.targets),
        weights: there(&c.weights),
    }
}

/// As the GPU sees the case: hidden states and embedding rounded to `dtype`, in double precision.
fn exact_rounded(c: &Case, dtype: DType) -> Case {
    let round = |t: &Tensor| t.to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap();
    Case {
        hidden: round(&c.hidden),
        embedding: round(&c.embedding),
        targets: c.targets.clone(),
        weights: c.weights.to_dtype(DType::F64).unwrap(),
    }
}

fn here(t: &Tensor) -> Tensor {
    t.to_device(&Device::Cpu).unwrap()
}

#[test]
fn a_gpu_matches_the_composition_with_f32_embeddings_and_either_type_of_hidden_states() {
    let Some(gpu) = common::gpu() else { return };
    for (r, d, v) in [(1, 1, 2), (5, 3, 7), (33, 16, 100), (130, 64, 1025), (700, 8, 9001)] {
        for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
            for weighted in [true, false] {
                let c = case(r, d, v, DType::F32);
                let (there, exact) = (on_gpu(&c, dtype, &gpu), exact_rounded(&c, dtype));
                let weights = weighted.then_some(&there.weights);
                let got =
                    with_gradients(&there, 0.25, |h, e| tied_cross_entropy(h, e, &there.targets, weights));
                let want = with_gradients(&exact, 0.25, |h, m| {
                    let rows = plain_rows(h, m, &exact.targets)?;
                    if weighted { (rows * &exact.weights)?.sum_all() } else { rows.sum_all() }
                });
                assert_eq!((got[0].rank(), got[0].dtype()), (0, DType::F32));
                assert_eq!((got[1].dtype(), got[2].dtype()), (dtype, DType::F32));
                assert!(relative(&here(&got[0]), &want[0]) < 5e-6, "loss");
                for (got, want) in got[1..].iter().zip(&want[1..]) {
                    let off = relative(&here(got), want);
                    assert!(off < tolerance, "{dtype:?} at {r} {d} {v}: {off:.1e}");
                }
            }
        }
    }
}

#[test]
fn a_gpu_gives_rows_and_the_most_probable_id() {
    let Some(gpu) = common::gpu() else { return };
    for dtype in [DType::F32, DType::BF16] {
        // More columns than a block of logits without gradients has.
        let c = case(4200, 4, 1500, DType::F32);
        let (there, exact) = (on_gpu(&c, dtype, &gpu), exact_rounded(&c, dtype));
        let (loss, best) = tied_cross_entropy_rows(&there.hidden, &there.embedding, &there.targets).unwrap();
        let want = plain_rows(&exact.hidden, &exact.embedding, &c.targets).unwrap();
        assert!(relative(&here(&loss), &want) < 5e-6);
        let best = here(&best).to_vec1::<u32>().unwrap();
        let logits = exact.hidden.matmul(&exact.embedding.t().unwrap()).unwrap();
        let (largest, chosen) = (logits.max(1).unwrap(), Tensor::new(best.clone(), &Device::Cpu).unwrap());
        let chosen = logits.gather(&chosen.unsqueeze(1).unwrap(), 1).unwrap().squeeze(1).unwrap();
        assert!(max_abs(&(largest - chosen).unwrap()) < 1e-5);
        let argmax = tied_argmax(&there.hidden, &there.embedding).unwrap();
        assert_eq!(here(&argmax).to_vec1::<u32>().unwrap(), best);
        let total = tied_cross_entropy(&there.hidden, &there.embedding, &there.targets, None).unwrap();
        let sum = here(&loss).to_dtype(DType::F64).unwrap().sum_all().unwrap();
        assert!(relative(&here(&total), &sum) < 1e-6);
    }
}

#[test]
fn on_a_gpu_ties_go_to_the_lowest_id_and_nan_never_wins() {
    let Some(gpu) = common::gpu() else { return };
    let hidden = Tensor::new(&[[1f32], [-1.0], [0.0], [f32::NAN]], &gpu).unwrap();
    let mut table = vec![0.0f32; 1000];
    (table[300], table[301], table[999], table[700], table[701]) = (2.0, 2.0, 2.0, -3.0, -3.0);
    let table = Tensor::from_vec(table, (1000, 1), &gpu).unwrap();
    let best = here(&tied_argmax(&hidden, &table).unwrap()).to_vec1::<u32>().unwrap();
    assert_eq!(best, vec![300, 700, 0, 0]);
}

#[test]
fn on_a_gpu_a_target_outside_the_vocabulary_makes_the_loss_nan() {
    let Some(gpu) = common::gpu() else { return };
    let mut c = on_gpu(&case(4, 4, 10, DType::F32), DType::F32, &gpu);
    let loss = |c: &Case| {
        let total = tied_cross_entropy(&c.hidden, &c.embedding, &c.targets, Some(&c.weights)).unwrap();
        here(&total).to_scalar::<f32>().unwrap()
    };
    // Row 1 has weight 0.
    c.targets = Tensor::new(&[0u32, 10, 3, 4], &gpu).unwrap();
    assert!(loss(&c).is_finite());
    c.targets = Tensor::new(&[0u32, 1, 10, 4], &gpu).unwrap();
    assert!(loss(&c).is_nan());
    let (rows, _) = tied_cross_entropy_rows(&c.hidden, &c.embedding, &c.targets).unwrap();
    let rows = here(&rows).to_vec1::<f32>().unwrap();
    assert!(rows[2].is_nan() && rows[3].is_finite());
}

#[test]
fn a_gpu_takes_empty_batches_and_names_bad_arguments() {
    let Some(gpu) = common::gpu() else { return };
    let hidden = Tensor::zeros((0, 4), DType::F32, &gpu).unwrap();
    let table = Var::zeros((10, 4), DType::F32, &gpu).unwrap();
    let targets = Tensor::zeros(0, DType::U32, &gpu).unwrap();
    let loss = tied_cross_entropy(&hidden, &table, &targets, None).unwrap();
    assert_eq!(here(&loss).to_scalar::<f32>().unwrap(), 0.0);
    assert_eq!(max_abs(&here(loss.backward().unwrap().get(&table).unwrap())), 0.0);
    assert_eq!(tied_argmax(&hidden, &table).unwrap().dims(), &[0]);
    let c = on_gpu(&case(5, 4, 10, DType::F32), DType::F32, &gpu);
    let fails = |result: Result<Tensor>, words: &[&str]| {
        let err = result.unwrap_err().to_string();
        assert!(words.iter().all(|w| err.contains(w)), "{err}");
    };
    let loss = |t: &Tensor, w: &Tensor| tied_cross_entropy(&c.hidden, &c.embedding, t, Some(w));
    fails(loss(&c.targets.narrow(0, 0, 4).unwrap(), &c.weights), &["targets", "[5]", "[4]"]);
    fails(
        loss(&here(&c.targets).to_dtype(DType::I64).unwrap().to_device(&gpu).unwrap(), &c.weights),
        &["U32", "I64"],
    );
    fails(loss(&c.targets, &c.weights.narrow(0, 0, 2).unwrap()), &["weights", "[5]", "[2]"]);
}

#[cfg(feature = "cuda")]
#[test]
fn a_buffer_on_a_gpu_collects_the_gradient_of_the_embedding() {
    use calm_kernels::{Context, FlatGradients};
    let Some(gpu) = common::gpu() else { return };
    let c = case(33, 16, 100, DType::F32);
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 2e-2)] {
        let (there, exact) = (on_gpu(&c, dtype, &gpu), exact_rounded(&c, dtype));
        let want = with_gradients(&exact, 0.25, |h, m| plain_rows(h, m, &exact.targets)?.sum_all());
        let (hidden, table) =
            (Var::from_tensor(&there.hidden).unwrap(), Var::from_tensor(&there.embedding).unwrap());
        let context = Context::new(&gpu);
        let table = context.parameter(table.into_inner()).unwrap();
        context.keep_copies([&*table], dtype).unwrap();
        let mut flat = FlatGradients::new(&context, [&*table]).unwrap();
        for round in [1.0, 2.0] {
            let loss = tied_cross_entropy(&hidden, &table, &there.targets, None).unwrap();
            let loss = (loss * 0.25).unwrap();
            let grads = flat.collect(|| loss.backward()).unwrap();
            assert!(grads.get(&table).is_none());
            assert!(relative(&here(grads.get(&hidden).unwrap()), &want[1]) < tolerance);
            let sum = Tensor::from_vec(flat.get(0).unwrap().unwrap(), (100, 16), &Device::Cpu).unwrap();
            assert!(relative(&(sum / round).unwrap(), &want[2]) < tolerance, "round {round}");
        }
    }
}

/// A look, not a benchmark.
#[test]
#[ignore = "prints timings only"]
fn speed() {
    for (r, d, v) in [(4096, 256, 8192), (1024, 768, 32_000)] {
        let c = case(r, d, v, DType::F32);
        let (hidden, embedding) =
            (Var::from_tensor(&c.hidden).unwrap(), Var::from_tensor(&c.embedding).unwrap());
        let mut best = f64::INFINITY;
        let mut product = f64::INFINITY;
        for _ in 0..4 {
            let start = std::time::Instant::now();
            drop(tied_cross_entropy(&hidden, &embedding, &c.targets, None).unwrap());
            best = best.min(start.elapsed().as_secs_f64());
            let start = std::time::Instant::now();
            drop(c.hidden.matmul(&c.embedding.t().unwrap()).unwrap());
            product = product.min(start.elapsed().as_secs_f64());
        }
        println!("R {r} D {d} V {v}: {:.0} ms; one plain product {:.0} ms", best * 1e3, product * 1e3);
    }
}
