//! Causal, cached and branch attention against naive loops, plain compositions and each other; spans: `spans.rs`.

use crate::common::*;
use calm_kernels::{branch_attention, cached_attention, causal_attention, gradcheck};
use candle_core::{D, DType, Device, Result, Tensor, Var};
use std::slice::from_ref;

/// Plain composition: all scores, minus infinity where `sees[b][t][u]` is false, softmax.
pub fn attention_plain(q: &Tensor, k: &Tensor, v: &Tensor, sees: &Tensor) -> Result<Tensor> {
    let (b, t, h, dh) = q.dims4()?;
    let (_, u, g, _) = k.dims4()?;
    // Repeat every key head for its group of query heads.
    let heads = |x: &Tensor| {
        x.unsqueeze(3)?
            .broadcast_as((b, u, g, h / g, dh))?
            .reshape((b, u, h, dh))?
            .transpose(1, 2)?
            .contiguous()
    };
    let (k, v) = (heads(k)?, heads(v)?);
    let q = q.transpose(1, 2)?.contiguous()?;
    let scores = (q.matmul(&k.t()?)? / (dh as f64).sqrt())?;
    let mask = sees.unsqueeze(1)?.broadcast_as((b, h, t, u))?;
    let off = Tensor::full(-1e30, (b, h, t, u), &Device::Cpu)?.to_dtype(q.dtype())?;
    let scores = mask.where_cond(&scores, &off)?;
    let p = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?.detach())?.exp()?;
    let p = p.broadcast_div(&p.sum_keepdim(D::Minus1)?)?;
    p.matmul(&v)?.transpose(1, 2)?.contiguous()
}

/// `sees` of causal attention in segments.
fn causal(segments: &Tensor) -> Tensor {
    let rows = segments.to_vec2::<u32>().unwrap();
    let s = rows[0].len();
    let mut sees = Vec::new();
    for row in &rows {
        for t in 0..s {
            sees.extend((0..s).map(|u| u8::from(u <= t && row[u] == row[t])));
        }
    }
    Tensor::from_vec(sees, (rows.len(), s, s), &Device::Cpu).unwrap()
}

/// Segments of `lengths`, numbered from 0; what is left of `s` is filler.
fn segments(rows: &[&[usize]], s: usize) -> Tensor {
    let mut ids = Vec::new();
    for lengths in rows {
        let mut row: Vec<u32> = Vec::new();
        for (i, n) in lengths.iter().enumerate() {
            row.extend(vec![i as u32; *n]);
        }
        row.resize(s, u32::MAX);
        ids.extend(row);
    }
    Tensor::from_vec(ids, (rows.len(), s), &Device::Cpu).unwrap()
}

struct Case {
    s: usize,
    h: usize,
    g: usize,
    dh: usize,
    rows: &'static [&'static [usize]],
}

const CASES: [Case; 7] = [
    Case { s: 1, h: 2, g: 1, dh: 4, rows: &[&[1]] },
    Case { s: 7, h: 2, g: 2, dh: 5, rows: &[&[7], &[3, 2]] },
    Case { s: 64, h: 4, g: 2, dh: 16, rows: &[&[64], &[10, 50, 4]] },
    Case { s: 65, h: 3, g: 1, dh: 48, rows: &[&[65], &[1, 63, 1]] },
    Case { s: 200, h: 4, g: 4, dh: 64, rows: &[&[200], &[70, 60], &[]] },
    Case { s: 130, h: 2, g: 1, dh: 160, rows: &[&[129]] },
    Case { s: 0, h: 2, g: 1, dh: 4, rows: &[&[], &[]] },
];

fn qkv(c: &Case) -> [Tensor; 3] {
    let b = c.rows.len();
    [
        (random(&[b, c.s, c.h, c.dh], 1) * 3.0).unwrap(),
        (random(&[b, c.s, c.g, c.dh], 2) * 3.0).unwrap(),
        random(&[b, c.s, c.g, c.dh], 3),
    ]
}

/// More cases for a GPU, with the other sizes of heads that it takes.
const GPU_CASES: [Case; 4] = [
    Case { s: 1, h: 2, g: 1, dh: 32, rows: &[&[1]] },
    Case { s: 7, h: 2, g: 2, dh: 96, rows: &[&[7], &[3, 2]] },
    Case { s: 64, h: 4, g: 2, dh: 32, rows: &[&[64], &[10, 50, 4]] },
    Case { s: 70, h: 2, g: 1, dh: 128, rows: &[&[31, 32]] },
];

/// The cases whose heads have kernels on a GPU.
fn gpu_cases() -> impl Iterator<Item = &'static Case> {
    CASES.iter().filter(|c| c.s > 0 && [48, 64, 160].contains(&c.dh)).chain(&GPU_CASES)
}

fn on_device_of(v: &[Var], t: &Tensor) -> Tensor {
    t.to_device(v[0].device()).unwrap()
}

#[test]
fn values_and_gradients_equal_the_plain_composition() {
    for c in CASES.iter().filter(|c| c.s > 0).chain(&GPU_CASES) {
        let seg = segments(c.rows, c.s);
        let sees = causal(&seg);
        compare_on_cpu(
            &qkv(c),
            |v| causal_attention(&v[0], &v[1], &v[2], &seg),
            |v| attention_plain(&v[0], &v[1], &v[2], &sees),
            3e-6,
        );
    }
    for c in gpu_cases() {
        let seg = segments(c.rows, c.s);
        let sees = causal(&seg);
        compare_on_gpu(
            &qkv(c),
            |v| causal_attention(&v[0], &v[1], &v[2], &on_device_of(v, &seg)),
            |v| attention_plain(&v[0], &v[1], &v[2], &sees),
            1e-5,
            2e-2,
        );
    }
}

#[test]
fn gradients_pass_the_check_by_differences() {
    let seg = segments(&[&[3, 2], &[4]], 5);
    let inputs = [random(&[2, 5, 4, 3], 1), random(&[2, 5, 2, 3], 2), random(&[2, 5, 2, 3], 3)];
    gradcheck::check(&inputs, |v| causal_attention(&v[0], &v[1], &v[2], &seg)?.powf(3.0)?.sum_all(), 1e-7)
        .unwrap();
}

#[test]
fn later_positions_and_other_segments_have_no_influence() {
    let c = &Case { s: 150, h: 2, g: 1, dh: 8, rows: &[&[100, 40]] };
    let seg = segments(c.rows, c.s);
    let [q, k, v] = qkv(c);
    let before = causal_attention(&q, &k, &v, &seg).unwrap();
    // Huge values at 60, in the first segment: seen from 60 on, up to the end of that segment.
    let bump = |t: &Tensor| {
        let mut x = flat(t);
        x[60 * 8..61 * 8].iter_mut().for_each(|v| *v = 50.0);
        Tensor::from_vec(x, t.dims(), &Device::Cpu).unwrap()
    };
    let after = causal_attention(&q, &bump(&k), &bump(&v), &seg).unwrap();
    for t in 0..c.s {
        let (a, b) = (before.narrow(1, t, 1).unwrap(), after.narrow(1, t, 1).unwrap());
        assert_eq!(flat(&a) == flat(&b), !(60..100).contains(&t), "position {t}");
    }
}

#[test]
fn the_first_position_of_a_segment_returns_its_own_value() {
    let seg = segments(&[&[2, 3]], 6);
    let q = random(&[1, 6, 1, 4], 1);
    let v = random(&[1, 6, 1, 4], 2);
    let out = causal_attention(&q, &q, &v, &seg).unwrap();
    for t in [0, 2, 5] {
        assert!(worst(&out.narrow(1, t, 1).unwrap(), &v.narrow(1, t, 1).unwrap()) < 1e-15);
    }
}

#[test]
fn large_scores_do_not_overflow() {
    let c = &CASES[4];
    let seg = segments(c.rows, c.s);
    let inputs: Vec<Var> = qkv(c)
        .iter()
        .map(|t| Var::from_tensor(&(t * 40.0).unwrap().to_dtype(DType::F32).unwrap()).unwrap())
        .collect();
    let y = causal_attention(&inputs[0], &inputs[1], &inputs[2], &seg).unwrap();
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(flat(&y).iter().all(|v| v.is_finite()));
    for v in &inputs {
        assert!(flat(grads.get(v).unwrap()).iter().all(|v| v.is_finite()));
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for c in [&CASES[2], &CASES[4]] {
        let seg = segments(c.rows, c.s);
        same_bits_for_any_thread_count(&qkv(c), |v| causal_attention(&v[0], &v[1], &v[2], &seg));
    }
}

#[test]
fn any_strides_give_the_same_result() {
    let seg = segments(&[&[4], &[2, 1]], 4);
    // [B, H, S, Dh] seen as [B, S, H, Dh]
    let turned = |seed| random(&[2, 3, 4, 5], seed).transpose(1, 2).unwrap();
    let (q, k, v) = (turned(1), turned(2), turned(3));
    let want = attention_plain(&q, &k, &v, &causal(&seg)).unwrap();
    assert!(worst(&causal_attention(&q, &k, &v, &seg).unwrap(), &want) < 1e-12);
    let last = cached_attention(&q.narrow(1, 3, 1).unwrap(), &k, &v).unwrap();
    assert!(worst(&last.get(0).unwrap(), &want.get(0).unwrap().narrow(0, 3, 1).unwrap()) < 1e-12);
    let seg_t = seg.t().unwrap().contiguous().unwrap().t().unwrap();
    assert!(worst(&branch_attention(&q, &k, &v, &seg_t, &[], &[]).unwrap(), &want) < 1e-12);
}

#[test]
fn cached_attention_equals_the_last_positions_of_causal_attention() {
    for (s, h, g, dh) in [(1, 2, 1, 4), (9, 4, 2, 5), (200, 4, 1, 16), (150, 2, 2, 64)] {
        let inputs = qkv(&Case { s, h, g, dh, rows: &[&[], &[], &[]] });
        let seg = Tensor::zeros((3, s), DType::U32, &Device::Cpu).unwrap();
        for (dtype, tol) in [(DType::F64, 1e-13), (DType::F32, 1e-6)] {
            let [q, k, v] = inputs.clone().map(|t| t.to_dtype(dtype).unwrap());
            let full = causal_attention(&q, &k, &v, &seg).unwrap();
            for t in [1, 2, 70, s] {
                if t <= s {
                    let got = cached_attention(&q.narrow(1, s - t, t).unwrap(), &k, &v).unwrap();
                    assert!(worst(&got, &full.narrow(1, s - t, t).unwrap()) < tol, "{t} of {s}");
                }
            }
        }
    }
}

/// Causal attention on each prefix followed by the branch's own positions, one (b, s) at a time.
fn branch_naive(q: &Tensor, k: &Tensor, v: &Tensor, seg: &Tensor, bk: &[Tensor], bv: &[Tensor]) -> Tensor {
    let ids = seg.to_vec2::<u32>().unwrap();
    let s = q.dim(1).unwrap();
    let mut rows = Vec::new();
    for (bi, ids) in ids.iter().enumerate() {
        for t in 0..s {
            let start = (0..=t).rev().take_while(|&u| ids[u] == ids[t]).last().unwrap();
            let join = |shared: &Tensor, branch: &[Tensor]| {
                let at = |x: &Tensor, from, n| x.narrow(0, bi, 1).unwrap().narrow(1, from, n).unwrap();
                let mut parts = vec![at(shared, start, t + 1 - start)];
                parts.extend(branch.iter().map(|x| at(x, t, 1)));
                Tensor::cat(&parts, 1).unwrap()
            };
            let (k, v) = (join(k, bk), join(v, bv));
            let n = k.dim(1).unwrap();
            let query = q.narrow(0, bi, 1).unwrap().narrow(1, t, 1).unwrap();
            let sees = Tensor::ones((1, 1, n), DType::U8, &Device::Cpu).unwrap();
            rows.push(attention_plain(&query.contiguous().unwrap(), &k, &v, &sees).unwrap());
        }
    }
    Tensor::cat(&rows, 1).unwrap().reshape(q.shape()).unwrap()
}

#[test]
fn branch_attention_sees_its_prefix_and_its_own_keys() {
    for c in [&CASES[0], &CASES[1], &CASES[2], &CASES[3]] {
        let seg = segments(c.rows, c.s);
        let [q, k, v] = qkv(c);
        let shape = k.dims().to_vec();
        let bk: Vec<Tensor> = (0..3).map(|i| (random(&shape, 10 + i) * 3.0).unwrap()).collect();
        let bv: Vec<Tensor> = (0..3).map(|i| random(&shape, 20 + i)).collect();
        for n in [0, 1, 3] {
            let want = branch_naive(&q, &k, &v, &seg, &bk[..n], &bv[..n]);
            let got = branch_attention(&q, &k, &v, &seg, &bk[..n], &bv[..n]).unwrap();
            assert!(worst(&got, &want) < 1e-13);
            let single = |t: &Tensor| t.to_dtype(DType::F32).unwrap();
            let singles = |list: &[Tensor]| list.iter().map(single).collect::<Vec<_>>();
            let got = branch_attention(
                &single(&q),
                &single(&k),
                &single(&v),
                &seg,
                &singles(&bk[..n]),
                &singles(&bv[..n]),
            );
            assert!(worst(&got.unwrap(), &want) < 1e-6);
        }
    }
}

#[test]
fn a_branch_of_the_true_continuation_equals_causal_attention_of_the_whole_sequence() {
    let (s, roll) = (90, 3);
    let [q, k, v] = qkv(&Case { s, h: 4, g: 2, dh: 16, rows: &[&[], &[]] });
    let zeros = |n| Tensor::zeros((2, n), DType::U32, &Device::Cpu).unwrap();
    let full = causal_attention(&q, &k, &v, &zeros(s)).unwrap();
    let n = s - roll;
    // Branch i of position t is the true position t + i; the query is the true position t + roll.
    let at = |x: &Tensor, i: usize| x.narrow(1, i, n).unwrap();
    let bk: Vec<Tensor> = (1..=roll).map(|i| at(&k, i)).collect();
    let bv: Vec<Tensor> = (1..=roll).map(|i| at(&v, i)).collect();
    let got = branch_attention(&at(&q, roll), &at(&k, 0), &at(&v, 0), &zeros(n), &bk, &bv).unwrap();
    assert!(worst(&got, &at(&full, roll)) < 1e-13);
}

/// Where there is a GPU: the value of `f` on it, in f32 and bf16, is the one on the CPU in double precision, of
/// the same rounded numbers.
fn values_on_gpu(inputs: &[Tensor], f: impl Fn(&[Tensor]) -> Result<Tensor>, what: &str) {
    let Some(gpu) = gpu() else { return };
    for (dtype, tol) in [(DType::F32, 5e-6), (DType::BF16, 1e-2)] {
        let rounded: Vec<Tensor> = inputs.iter().map(|t| t.to_dtype(dtype).unwrap()).collect();
        let exact: Vec<Tensor> = rounded.iter().map(|t| t.to_dtype(DType::F64).unwrap()).collect();
        let there: Vec<Tensor> = rounded.iter().map(|t| t.to_device(&gpu).unwrap()).collect();
        let got = f(&there).unwrap();
        assert_eq!(got.dtype(), dtype);
        let off = worst(&got.to_device(&Device::Cpu).unwrap(), &f(&exact).unwrap());
        assert!(off <= tol, "{what} in {dtype:?} on the GPU is off by {off:.1e}");
    }
}

#[test]
fn cached_attention_on_a_gpu_equals_the_cpus() {
    // Below and above the number of new positions from which tiles of queries are taken; heads with tiles and
    // without.
    for (s, h, g, dh) in [(1, 2, 1, 4), (9, 4, 2, 20), (600, 4, 1, 64), (300, 2, 2, 48), (40, 2, 1, 256)] {
        let inputs = qkv(&Case { s, h, g, dh, rows: &[&[], &[], &[]] });
        for t in [1, 2, 15, 16, 70].into_iter().filter(|&t| t <= s) {
            let new = |x: &[Tensor]| cached_attention(&x[0].narrow(1, s - t, t)?, &x[1], &x[2]);
            values_on_gpu(&inputs, new, &format!("{t} of {s} with heads of {dh}"));
        }
    }
}

#[test]
fn branch_attention_on_a_gpu_equals_the_cpus() {
    for c in gpu_cases() {
        let seg = segments(c.rows, c.s);
        for n in [0, 1, 3, 8, 19] {
            let mut inputs = qkv(c).to_vec();
            let shape = inputs[1].dims().to_vec();
            inputs.extend((0..n).map(|i| (random(&shape, 10 + i) * 3.0).unwrap()));
            inputs.extend((0..n).map(|i| random(&shape, 40 + i)));
            let branched = |x: &[Tensor]| {
                let (keys, values) = x[3..].split_at(n as usize);
                branch_attention(&x[0], &x[1], &x[2], &seg.to_device(x[0].device())?, keys, values)
            };
            values_on_gpu(&inputs, branched, &format!("{n} branches, heads of {}", c.dh));
        }
    }
}

#[test]
fn heads_without_a_kernel_are_an_error_with_the_remedy() {
    let Some(gpu) = gpu() else { return };
    let on_gpu = |t: Tensor| t.to_dtype(DType::F32).unwrap().to_device(&gpu).unwrap();
    let q = on_gpu(random(&[1, 3, 2, 40], 1));
    let seg = segments(&[&[3]], 3).to_device(&gpu).unwrap();
    let e = causal_attention(&q, &q, &q, &seg).unwrap_err().to_string();
    assert!(e.contains("causal_attention") && e.contains("40") && e.contains("160"), "{e}");
    assert!(e.contains("hidden_size"), "{e}");
    let wide = on_gpu(random(&[1, 3, 1, 257], 1));
    let e = cached_attention(&wide, &wide, &wide).unwrap_err().to_string();
    assert!(e.contains("cached_attention") && e.contains("256"), "{e}");
    // Segments must be ids on the same device.
    assert!(causal_attention(&q, &q, &q, &segments(&[&[3]], 3)).is_err());
    assert!(causal_attention(&q, &q, &q, &seg.to_dtype(DType::F32).unwrap()).is_err());
}

#[test]
fn segments_of_a_batch_do_not_stay_for_another() {
    // Many tensors one after the other, so that places in memory are used again.
    let Some(gpu) = gpu() else { return };
    let c = &GPU_CASES[1];
    let [q, k, v] = qkv(c).map(|t| t.to_dtype(DType::F32).unwrap());
    let there = [&q, &k, &v].map(|t| t.to_device(&gpu).unwrap());
    for lengths in [[7, 0], [3, 4], [1, 6], [6, 1], [2, 5], [5, 2], [7, 0]] {
        let seg = segments(&[&lengths, &[7]], c.s);
        let want = causal_attention(&q, &k, &v, &seg).unwrap();
        let seg = seg.to_device(&gpu).unwrap();
        for _ in 0..2 {
            let got = causal_attention(&there[0], &there[1], &there[2], &seg).unwrap();
            assert!(worst(&got.to_device(&Device::Cpu).unwrap(), &want) < 1e-5, "{lengths:?}");
        }
    }
}

#[test]
fn inference_operators_leave_no_gradient_history() {
    let v = Var::from_tensor(&random(&[1, 2, 1, 4], 1)).unwrap();
    let seg = segments(&[&[2]], 2);
    assert!(!cached_attention(&v, &v, &v).unwrap().track_op());
    assert!(!branch_attention(&v, &v, &v, &seg, &[], &[]).unwrap().track_op());
}

#[test]
fn empty_inputs_give_empty_outputs() {
    let c = &CASES[6];
    for device in [Some(Device::Cpu), gpu()].into_iter().flatten() {
        let there = |t: &Tensor| t.to_dtype(DType::F32).unwrap().to_device(&device).unwrap();
        let vars: Vec<Var> = qkv(c).iter().map(|t| Var::from_tensor(&there(t)).unwrap()).collect();
        let seg = segments(c.rows, c.s).to_device(&device).unwrap();
        let y = causal_attention(&vars[0], &vars[1], &vars[2], &seg).unwrap();
        assert_eq!(y.dims(), [2, 0, 2, 4]);
        // (Candle itself cannot begin a backward pass with an empty tensor on a GPU.)
        if device.is_cpu() {
            let grads = y.sum_all().unwrap().backward().unwrap();
            assert_eq!(grads.get(&vars[1]).unwrap().dims(), [2, 0, 1, 4]);
        }
        let keys = there(&random(&[2, 5, 1, 4], 1));
        assert_eq!(cached_attention(&vars[0], &keys, &keys).unwrap().dims(), [2, 0, 2, 4]);
        let one = [vars[1].as_detached_tensor()];
        let branched = branch_attention(&vars[0], &vars[1], &vars[2], &seg, &one, &one).unwrap();
        assert_eq!(branched.dims(), [2, 0, 2, 4]);
    }
}

#[test]
fn wrong_shapes_and_types_are_errors_that_name_them() {
    let t = |dims: &[usize]| random(dims, 1);
    let (q, k) = (t(&[2, 5, 4, 6]), t(&[2, 5, 2, 6]));
    let seg = segments(&[&[5], &[5]], 5);
    let named = |r: Result<Tensor>, op: &str, part: &str| {
        let err = r.unwrap_err().to_string();
        assert!(err.contains(op) && err.contains(part), "{err}");
    };
    let name = "causal_attention";
    named(causal_attention(&q, &t(&[2, 5, 3, 6]), &t(&[2, 5, 3, 6]), &seg), name, "[2, 5, 3, 6]");
    named(causal_attention(&q, &t(&[2, 5, 0, 6]), &t(&[2, 5, 0, 6]), &seg), name, "[2, 5, 0, 6]");
    named(causal_attention(&q, &k, &t(&[2, 4, 2, 6]), &seg), name, "[2, 4, 2, 6]");
    named(causal_attention(&q, &t(&[2, 4, 2, 6]), &t(&[2, 4, 2, 6]), &seg), name, "[2, 4, 2, 6]");
    named(causal_attention(&q, &t(&[2, 5, 2, 7]), &t(&[2, 5, 2, 7]), &seg), name, "[2, 5, 2, 7]");
    named(causal_attention(&q, &k, &k, &seg.t().unwrap()), name, "[5, 2]");
    named(causal_attention(&q, &k, &k, &seg.to_dtype(DType::I64).unwrap()), name, "I64");
    named(causal_attention(&q, &k.to_dtype(DType::F32).unwrap(), &k, &seg), name, "F32");
    named(causal_attention(&t(&[5, 4, 6]), &k, &k, &seg), name, "[5, 4, 6]");
    named(
        cached_attention(&q, &k.narrow(1, 0, 4).unwrap(), &k.narrow(1, 0, 4).unwrap()),
        "cached_attention",
        "[2, 4, 2, 6]",
    );
    let k32 = k.to_dtype(DType::F32).unwrap();
    named(cached_attention(&q, &k32, &k32), "cached_attention", "F32");
    let branch = |bk: &[Tensor], bv: &[Tensor]| branch_attention(&q, &k, &k, &seg, bk, bv);
    named(branch(&[t(&[2, 5, 4, 6])], from_ref(&k)), "branch_attention", "[2, 5, 4, 6]");
    named(branch(from_ref(&k), &[]), "branch_attention", "branch keys");
    named(branch(from_ref(&k), &[k32]), "branch_attention", "F32");
}
