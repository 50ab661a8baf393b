//! Causal attention with segments, its gradients, and attention over a cache against the CPU operators.

use crate::common::*;
use calm_kernels::{Spans, branch_attention, cached_attention, causal_attention, span_attention};
use calm_twins::{
    AttentionSizes, BRANCHES, Branches, CACHED_PART, Element, Launch, Span, TileLaunch, cached_shared_bytes,
    segment_spans,
};
use candle_core::{Device, Tensor};
use half::bf16;
use std::fmt::Debug;

/// S positions, H query and G key heads of Dh, lengths of each row's segments (the rest is filler).
#[derive(Clone, Copy, Debug)]
struct Case {
    s: usize,
    h: usize,
    g: usize,
    dh: usize,
    rows: &'static [&'static [usize]],
}

const CASES: [Case; 18] = [
    Case { s: 1, h: 2, g: 1, dh: 48, rows: &[&[1]] },
    Case { s: 7, h: 2, g: 2, dh: 32, rows: &[&[7], &[3, 2]] },
    Case { s: 64, h: 4, g: 2, dh: 64, rows: &[&[64], &[10, 50, 4]] },
    Case { s: 65, h: 3, g: 1, dh: 48, rows: &[&[65], &[1, 63, 1]] },
    Case { s: 200, h: 4, g: 4, dh: 64, rows: &[&[200], &[70, 60], &[]] },
    Case { s: 97, h: 2, g: 2, dh: 96, rows: &[&[97], &[33, 64]] },
    Case { s: 70, h: 2, g: 1, dh: 128, rows: &[&[31, 32]] },
    Case { s: 130, h: 2, g: 1, dh: 160, rows: &[&[129]] },
    Case { s: 15, h: 4, g: 1, dh: 64, rows: &[&[15], &[1, 14]] },
    Case { s: 16, h: 4, g: 2, dh: 96, rows: &[&[16]] },
    Case { s: 17, h: 2, g: 2, dh: 128, rows: &[&[16, 1]] },
    Case { s: 63, h: 1, g: 1, dh: 160, rows: &[&[63], &[20, 43]] },
    Case { s: 128, h: 1, g: 1, dh: 32, rows: &[&[128]] },
    Case { s: 129, h: 2, g: 1, dh: 48, rows: &[&[129]] },
    Case { s: 200, h: 2, g: 1, dh: 128, rows: &[&[200]] },
    Case { s: 200, h: 1, g: 1, dh: 160, rows: &[&[150, 50]] },
    Case { s: 200, h: 4, g: 1, dh: 96, rows: &[&[5, 190]] },
    Case { s: 300, h: 2, g: 1, dh: 32, rows: &[&[300], &[127, 1, 2, 130]] },
];

impl Case {
    fn segments(&self) -> Vec<u32> {
        let mut ids = Vec::new();
        for lengths in self.rows {
            let start = ids.len();
            for (i, &n) in lengths.iter().enumerate() {
                ids.extend(vec![i as u32; n]);
            }
            ids.resize(start + self.s, u32::MAX);
        }
        ids
    }

    fn spans(&self) -> Vec<Span> {
        let ids = self.segments();
        let mut spans: Vec<Span> = Vec::new();
        for (i, id) in ids.iter().enumerate() {
            let t = i % self.s;
            let start = if t > 0 && *id == ids[i - 1] { spans[i - 1].start } else { t as u32 };
            spans.push(Span { start, end: t as u32 + 1 });
        }
        spans
    }

    fn sizes(&self) -> AttentionSizes {
        AttentionSizes {
            batch: self.rows.len() as u32,
            queries: self.s as u32,
            keys: self.s as u32,
            heads: self.h as u32,
            kv_heads: self.g as u32,
            sets: 1,
            scale: (1.0 / (self.dh as f64).sqrt()) as f32,
        }
    }
}

/// What a forward and a backward pass give.
#[derive(Debug, PartialEq)]
struct Results<T> {
    out: Vec<T>,
    delta: Vec<f32>,
    dq: Vec<T>,
    dk: Vec<T>,
    dv: Vec<T>,
}

/// The kernels on [q, k, v, dout], the backward pass with `delta` where it is given.
fn twin<T: Element + PartialEq + Debug>(c: Case, x: [&[T]; 4], given: Option<&[f32]>) -> Results<T> {
    twin_of(c.dh, c.sizes(), &c.spans(), x, given)
}

fn twin_of<T: Element + PartialEq + Debug>(
    dh: usize,
    sizes: AttentionSizes,
    spans: &[Span],
    x: [&[T]; 4],
    given: Option<&[f32]>,
) -> Results<T> {
    let head = dh as u32;
    let (n_q, n_k, entries) = (x[0].len(), x[1].len(), x[0].len() / dh);
    let (attention, queries, keys) = T::KERNELS.attention(head).unwrap();
    let blank = |n: usize| vec![T::of(f32::NAN); n];
    same_for(&grids(128, 0), |launch| {
        let (mut out, mut dq, mut dk, mut dv) = (blank(n_q), blank(n_q), blank(n_k), blank(n_k));
        let (mut log_sums, mut delta) = (vec![f32::NAN; entries], vec![f32::NAN; entries]);
        let of_tiles = |TileLaunch { threads, shared_bytes, .. }| Launch { threads, shared_bytes, ..launch };
        let [forward, of_queries, of_keys] = T::attention_launches(head).map(of_tiles);
        let [q, k, v, dout] = x.map(<[T]>::as_ptr);
        let spans = spans.as_ptr();
        // SAFETY: q, out, dout, dq are [b, t, h, dh], k, v, dk, dv [b, u, g, dh], spans [b, t] with ends up
        // to u, log_sums and delta [b, t, h].
        unsafe {
            attention(forward, q, k, v, spans, out.as_mut_ptr(), log_sums.as_mut_ptr(), sizes);
            let (o, d) = (out.as_ptr(), delta.as_mut_ptr());
            (T::KERNELS.attention_delta)(launch, dout, o, d, entries as u64, head);
            let (l, d) = (log_sums.as_ptr(), given.unwrap_or(&delta).as_ptr());
            queries(of_queries, q, k, v, dout, spans, l, d, dq.as_mut_ptr(), sizes);
            let (dk, dv) = (dk.as_mut_ptr(), dv.as_mut_ptr());
            keys(of_keys, q, k, v, dout, spans, l, d, dk, dv, sizes);
        }
        Results { out, delta, dq, dk, dv }
    })
}

fn attention_is_the_cpus<T: Element + PartialEq + Debug>(tolerance: f32, rounded_tolerance: f32) {
    for c in CASES {
        let b = c.rows.len();
        let (of_q, of_k) = ((b, c.s, c.h, c.dh), (b, c.s, c.g, c.dh));
        let (n_q, n_k) = (b * c.s * c.h * c.dh, b * c.s * c.g * c.dh);
        let [q, dout]: [Vec<T>; 2] = [randn(n_q, "q", 1.5), randn(n_q, "dout", 1.0)];
        let [k, v]: [Vec<T>; 2] = [randn(n_k, "k", 1.5), randn(n_k, "v", 1.0)];

        let vars = [var(&q, of_q), var(&k, of_k), var(&v, of_k)];
        let segments = Tensor::from_vec(c.segments(), (b, c.s), &Device::Cpu).unwrap();
        let want = causal_attention(&vars[0], &vars[1], &vars[2], &segments).unwrap();
        let grads = gradients(&want, &dout, &[&vars[0], &vars[1], &vars[2]]);
        let want = flat(&want);
        let dots = |out: &[f32]| -> Vec<f32> {
            let rows = out.chunks_exact(c.dh).zip(dout.chunks_exact(c.dh));
            let dot = |(o, d): (&[f32], &[T])| {
                o.iter().zip(d).map(|(o, d)| f64::from(*o) * f64::from(d.as_f32())).sum::<f64>() as f32
            };
            rows.map(dot).collect()
        };

        // With do·o of the CPU's output the only difference is the order of sums; with the kernel's own, a
        // bf16 output brings its rounding.
        let inputs = [&q[..], &k[..], &v[..], &dout[..]];
        let exact = dots(&want);
        for (given, of_gradients) in [(Some(&exact[..]), tolerance), (None, rounded_tolerance)] {
            let got = twin(c, inputs, given);
            assert_close(&got.out, &want, tolerance, &format!("output of {c:?}"));
            assert_close(&got.delta, &dots(&to_f32(&got.out)), 1e-6, &format!("do·o of {c:?}"));
            let all = [(got.dq, "dq", of_gradients), (got.dk, "dk", of_gradients), (got.dv, "dv", tolerance)];
            for ((got, name, tolerance), want) in all.iter().zip(&grads) {
                // With one key a gradient is 0, left over from numbers of about 1.
                let allowed = tolerance * largest(want).max(1.0);
                assert_near(got, want, allowed, &format!("{name} of {c:?}"));
            }
        }
    }
}

#[test]
fn causal_attention_agrees() {
    attention_is_the_cpus::<f32>(3e-6, 3e-6);
    // Weights are rounded to bf16.
    attention_is_the_cpus::<bf16>(6e-3, 1e-2);
}

/// T queries over U keys, each with a span of its own.
fn spans_are_the_cpus<T: Element + PartialEq + Debug>(tolerance: f32, of_gradients: f32) {
    for (b, t, u, h, g, dh, sets) in [
        (2usize, 40usize, 9usize, 4usize, 2usize, 32usize, 1usize),
        (1, 300, 80, 2, 1, 64, 1),
        (2, 9, 200, 2, 2, 48, 1),
        (1, 130, 129, 1, 1, 128, 1),
        (2, 65, 1, 2, 1, 96, 1),
        (2, 40, 9, 4, 2, 32, 2),
        (2, 300, 280, 2, 2, 64, 2),
        (2, 70, 150, 4, 4, 48, 2),
        (1, 130, 129, 2, 2, 128, 2),
        (1, 140, 140, 2, 2, 160, 2),
        (1, 33, 40, 3, 3, 96, 3),
    ] {
        let what = format!("{t} queries, {u} keys, batch {b}, heads {h}/{g} of {dh}, {sets} sets");
        let first: Vec<(u32, u32)> = (0..b * t)
            .map(|i| {
                let at = i % t;
                let end = (1 + at * u * 3 / (2 * t)).min(u);
                // A second document begins at a third of the queries.
                let start = if at * 3 < t { 0 } else { (t.div_ceil(3) * u * 3 / (2 * t)).min(end - 1) };
                (start as u32, end as u32)
            })
            .collect();
        // The other sets see what comes, from a query's place on.
        let ahead = |set: usize| (0..b * t).map(move |i| ((i % t * (u - 1) / (set * t)) as u32, u as u32));
        let all: Vec<Vec<(u32, u32)>> =
            std::iter::once(first).chain((1..sets).map(|set| ahead(set).collect())).collect();
        let device: Vec<Span> = all.concat().iter().map(|&(start, end)| Span { start, end }).collect();
        let sizes = AttentionSizes {
            batch: b as u32,
            queries: t as u32,
            keys: u as u32,
            heads: h as u32,
            kv_heads: g as u32,
            sets: sets as u32,
            scale: (1.0 / (dh as f64).sqrt()) as f32,
        };
        let (n_q, n_k) = (b * t * h * dh, b * u * g * dh);
        let [q, dout]: [Vec<T>; 2] = [randn(n_q, "q", 1.5), randn(n_q, "dout", 1.0)];
        let [k, v]: [Vec<T>; 2] = [randn(n_k, "k", 1.5), randn(n_k, "v", 1.0)];
        let (of_q, of_k) = ((b, t, h, dh), (b, u, g, dh));
        let vars = [var(&q, of_q), var(&k, of_k), var(&v, of_k)];
        let all: Vec<Spans> = all.into_iter().map(|list| Spans::new([b, t, u], list).unwrap()).collect();
        let spans = Spans::of_heads(&all).unwrap();
        let want = span_attention(&vars[0], &vars[1], &vars[2], &spans).unwrap();
        let grads = gradients(&want, &dout, &[&vars[0], &vars[1], &vars[2]]);
        let got = twin_of(dh, sizes, &device, [&q[..], &k, &v, &dout], None);
        assert_close(&got.out, &flat(&want), tolerance, &format!("output of {what}"));
        for ((got, name), want) in [(got.dq, "dq"), (got.dk, "dk"), (got.dv, "dv")].iter().zip(&grads) {
            let allowed = of_gradients * largest(want).max(1.0);
            assert_near(got, want, allowed, &format!("{name} of {what}"));
        }
    }
}

#[test]
fn span_attention_agrees() {
    // A gradient over one key is 0, left over from numbers of about 10.
    spans_are_the_cpus::<f32>(3e-6, 1e-5);
    spans_are_the_cpus::<bf16>(6e-3, 1e-2);
}

#[test]
fn scores_far_apart_neither_overflow_nor_vanish() {
    let c = Case { s: 70, h: 1, g: 1, dh: 32, rows: &[&[70]] };
    let n = c.s * c.dh;
    let [q, k, v]: [Vec<f32>; 3] = [randn(n, "q", 40.0), randn(n, "k", 40.0), randn(n, "v", 1.0)];
    let launch = first_of_tiles::<f32>(32);
    let mut out = vec![f32::NAN; n];
    let (spans, none) = (c.spans(), std::ptr::null_mut());
    let (q_, k_, v_, out_) = (q.as_ptr(), k.as_ptr(), v.as_ptr(), out.as_mut_ptr());
    let attention = f32::KERNELS.attention(32).unwrap().0;
    // SAFETY: q, k, v and out are [1, s, 1, dh], spans [1, s].
    unsafe { attention(launch, q_, k_, v_, spans.as_ptr(), out_, none, c.sizes()) };
    let shape = (1, c.s, 1, c.dh);
    let segments = Tensor::from_vec(c.segments(), (1, c.s), &Device::Cpu).unwrap();
    let want =
        causal_attention(&tensor(&q, shape), &tensor(&k, shape), &tensor(&v, shape), &segments).unwrap();
    // Scores around 10⁴ have an absolute error of 10⁻³, which the exponential makes a relative one.
    assert_close(&out, &flat(&want), 5e-3, "output");
}

/// A launch of the forward kernel.
fn first_of_tiles<T: Element>(head: u32) -> Launch {
    let TileLaunch { threads, shared_bytes, .. } = T::attention_launches(head)[0];
    Launch { grid: 3, threads, shared_bytes, reversed: 1 }
}

/// T new positions after C cached ones.
fn cached_is_the_cpus<T: Element + PartialEq + Debug>(tolerance: f32, of_tiles: f32) {
    for (b, t, c, h, g, dh) in [
        (1usize, 1usize, 0usize, 1usize, 1usize, 48usize),
        (2, 1, 255, 4, 2, 64),
        (1, 1, 700, 3, 1, 96),
        (3, 2, 40, 2, 2, 160),
        (1, 5, 254, 2, 1, 20),
        (1, 70, 30, 2, 1, 64),
    ] {
        let what = format!("{t} new after {c}, batch {b}, heads {h}/{g} of {dh}");
        let u = c + t;
        let (n_q, n_k) = (b * t * h * dh, b * u * g * dh);
        let q: Vec<T> = randn(n_q, "q", 1.5);
        let [k, v]: [Vec<T>; 2] = [randn(n_k, "k", 1.5), randn(n_k, "v", 1.0)];
        let spans: Vec<Span> = (0..b * t).map(|i| Span { start: 0, end: (c + i % t + 1) as u32 }).collect();
        let sizes = AttentionSizes {
            batch: b as u32,
            queries: t as u32,
            keys: u as u32,
            heads: h as u32,
            kv_heads: g as u32,
            sets: 1,
            scale: (1.0 / (dh as f64).sqrt()) as f32,
        };
        let parts = u.div_ceil(CACHED_PART as usize);
        let out = same_for(&grids(CACHED_PART, cached_shared_bytes(dh as u32)), |launch| {
            let mut stats = vec![f32::NAN; b * t * h * parts * 2];
            let mut values = vec![f32::NAN; b * t * h * parts * dh];
            let mut out = vec![T::of(f32::NAN); n_q];
            let (entries, keys, head) = ((b * t * h) as u64, u as u32, dh as u32);
            let (q, k, v, spans) = (q.as_ptr(), k.as_ptr(), v.as_ptr(), spans.as_ptr());
            // SAFETY: q and out are [b, t, h, dh], k and v [b, u, g, dh], spans [b, t] with ends up to u,
            // stats [b, t, h, parts, 2], values [b, t, h, parts, dh].
            unsafe {
                let (to_stats, to_values) = (stats.as_mut_ptr(), values.as_mut_ptr());
                (T::KERNELS.cached_parts)(launch, q, k, v, spans, to_stats, to_values, sizes, head);
                let (stats, values, out) = (stats.as_ptr(), values.as_ptr(), out.as_mut_ptr());
                (T::KERNELS.cached_sum)(launch, stats, values, out, entries, keys, head, sizes.scale);
            }
            out
        });
        let (of_q, of_k) = ((b, t, h, dh), (b, u, g, dh));
        let want = cached_attention(&tensor(&q, of_q), &tensor(&k, of_k), &tensor(&v, of_k)).unwrap();
        assert_close(&out, &flat(&want), tolerance, &what);

        // Many new positions go through the tiles of the training kernel.
        if let Some((attention, ..)) = T::KERNELS.attention(dh as u32) {
            let mut out = vec![T::of(f32::NAN); n_q];
            let launch = first_of_tiles::<T>(dh as u32);
            let (q, k, v, spans) = (q.as_ptr(), k.as_ptr(), v.as_ptr(), spans.as_ptr());
            // SAFETY: as above; no log sums are asked for.
            unsafe { attention(launch, q, k, v, spans, out.as_mut_ptr(), std::ptr::null_mut(), sizes) };
            assert_close(&out, &flat(&want), of_tiles, &format!("tiles: {what}"));
        }
    }
}

#[test]
fn cached_attention_agrees() {
    cached_is_the_cpus::<f32>(3e-6, 3e-6);
    cached_is_the_cpus::<bf16>(1e-6, 6e-3);
}

#[test]
fn spans_are_the_runs_of_equal_ids() {
    for c in CASES {
        let (segments, rows, s) = (c.segments(), c.rows.len() as u32, c.s as u32);
        let got = same_for(&launches(), |launch| {
            let mut spans = vec![Span { start: u32::MAX, end: 0 }; segments.len()];
            // SAFETY: segments and spans are [rows, s].
            unsafe { segment_spans(launch, segments.as_ptr(), spans.as_mut_ptr(), rows, s) };
            spans
        });
        assert_eq!(got, c.spans(), "{c:?}");
    }
}

/// Branches that leave every position, so many that several launches follow each other.
fn branches_are_the_cpus<T: Element + PartialEq + Debug>(tolerance: f32) {
    for (c, count) in [(CASES[0], 1), (CASES[2], 3), (CASES[3], BRANCHES), (CASES[4], 2 * BRANCHES + 1)] {
        let b = c.rows.len();
        let (n_q, n_k) = (b * c.s * c.h * c.dh, b * c.s * c.g * c.dh);
        let q: Vec<T> = randn(n_q, "q", 1.5);
        let [k, v]: [Vec<T>; 2] = [randn(n_k, "k", 1.5), randn(n_k, "v", 1.0)];
        let of = |name: &str, scale| -> Vec<Vec<T>> {
            (0..count).map(|i| randn(n_k, &format!("{name} {i}"), scale)).collect()
        };
        let (keys, values) = (of("keys", 1.5), of("values", 1.0));

        let (head, sizes, spans) = (c.dh as u32, c.sizes(), c.spans());
        let entries = b * c.s * c.h;
        let out = same_for(&grids(256, 0), |launch| {
            let mut out = vec![T::of(f32::NAN); n_q];
            let mut log_sums = vec![f32::NAN; entries];
            let TileLaunch { threads, shared_bytes, .. } = T::attention_launches(head)[0];
            let tiles = Launch { threads, shared_bytes, ..launch };
            let attention = T::KERNELS.attention(head).unwrap().0;
            let (to, sums) = (out.as_mut_ptr(), log_sums.as_mut_ptr());
            // SAFETY: q and out are [b, s, h, dh], k and v [b, s, g, dh], spans [b, s], log sums [b, s, h].
            unsafe { attention(tiles, q.as_ptr(), k.as_ptr(), v.as_ptr(), spans.as_ptr(), to, sums, sizes) };
            for (keys, values) in keys.chunks(BRANCHES).zip(values.chunks(BRANCHES)) {
                let mut next = vec![f32::NAN; entries];
                let mut branches = Branches {
                    keys: [std::ptr::null(); BRANCHES],
                    values: [std::ptr::null(); BRANCHES],
                    count: keys.len() as u32,
                };
                for (i, (key, value)) in keys.iter().zip(values).enumerate() {
                    branches.keys[i] = key.as_ptr().cast();
                    branches.values[i] = value.as_ptr().cast();
                }
                let (group, scale) = ((c.h / c.g) as u32, sizes.scale);
                let (n, from, to) = (entries as u64, log_sums.as_ptr(), next.as_mut_ptr());
                // SAFETY: as above; every branch is [b, s, g, dh].
                unsafe {
                    let (q, out) = (q.as_ptr(), out.as_mut_ptr());
                    (T::KERNELS.add_branches)(launch, q, branches, from, to, out, n, group, head, scale);
                }
                log_sums = next;
            }
            out
        });

        let (of_q, of_k) = ((b, c.s, c.h, c.dh), (b, c.s, c.g, c.dh));
        let segments = Tensor::from_vec(c.segments(), (b, c.s), &Device::Cpu).unwrap();
        let all = |list: &[Vec<T>]| list.iter().map(|x| tensor(x, of_k)).collect::<Vec<_>>();
        let (q, k, v) = (tensor(&q, of_q), tensor(&k, of_k), tensor(&v, of_k));
        let want = branch_attention(&q, &k, &v, &segments, &all(&keys), &all(&values)).unwrap();
        assert_close(&out, &flat(&want), tolerance, &format!("{count} branches of {c:?}"));
    }
}

#[test]
fn branches_agree() {
    branches_are_the_cpus::<f32>(3e-6);
    // The output is rounded after each launch.
    branches_are_the_cpus::<bf16>(8e-3);
}
