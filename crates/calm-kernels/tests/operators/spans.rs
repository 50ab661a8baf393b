//! Attention over spans of keys against the plain composition.

use crate::attention::attention_plain;
use crate::common::*;
use calm_kernels::{Sight, Span, Spans, branch_attention, gradcheck, span_attention};
use candle_core::{DType, Device, Tensor};

/// Spans of T queries over U keys in each row: ends that stay, go on and leap; some of one key.
fn spans([b, t, u]: [usize; 3]) -> Vec<Span> {
    let mut all = Vec::new();
    for row in 0..b {
        let (mut start, mut end) = (row % u, row % u + 1);
        for i in 0..t {
            end = (end + [0, 1, 0, 0, 2, 5][(i * 7 + row) % 6]).min(u);
            if i % 11 == 10 {
                start = end - 1;
            }
            all.push((start as u32, end as u32));
        }
    }
    all
}

/// `sees` of spans.
fn seen([b, t, u]: [usize; 3], spans: &[Span]) -> Tensor {
    let sees = spans
        .iter()
        .flat_map(|(start, end)| (0..u as u32).map(move |key| u8::from(*start <= key && key < *end)));
    Tensor::from_vec(sees.collect::<Vec<u8>>(), (b, t, u), &Device::Cpu).unwrap()
}

/// Span attention of these sizes and spans is the plain composition, with its gradients and without.
fn assert_plain(sizes: [usize; 3], [h, g, dh]: [usize; 3], list: &[Span]) {
    let [b, t, u] = sizes;
    let (spans, sees) = (Spans::new(sizes, list.to_vec()).unwrap(), seen(sizes, list));
    let inputs = [
        (random(&[b, t, h, dh], 1) * 3.0).unwrap(),
        (random(&[b, u, g, dh], 2) * 3.0).unwrap(),
        random(&[b, u, g, dh], 3),
    ];
    compare(
        &inputs,
        |v| span_attention(&v[0], &v[1], &v[2], &spans),
        |v| attention_plain(&v[0], &v[1], &v[2], &sees),
        3e-6,
    );
    // Without gradient, in both ways that a GPU has for it.
    let [q, k, v] = inputs.map(|t| t.to_dtype(DType::F32).unwrap());
    let want = attention_plain(&q, &k, &v, &sees).unwrap();
    assert!(worst(&span_attention(&q, &k, &v, &spans).unwrap(), &want) < 3e-6);
    if let Some(device) = gpu() {
        let [q, k, v] = [q, k, v].map(|t| t.to_device(&device).unwrap());
        assert!(worst(&span_attention(&q, &k, &v, &spans).unwrap(), &want) < 1e-5);
    }
}

#[test]
fn each_query_sees_its_span_of_any_number_of_keys() {
    // [B, T, U], heads, key heads, Dh: fewer keys than queries, more, one, and one query.
    for ([b, t, u], h, g, dh) in [
        ([2, 40, 9], 4, 2, 32),
        ([3, 9, 70], 2, 1, 64),
        ([1, 130, 66], 3, 3, 48),
        ([2, 5, 1], 2, 2, 96),
        ([3, 1, 20], 4, 1, 32),
        ([1, 70, 300], 2, 1, 128),
    ] {
        let sizes = [b, t, u];
        assert_plain(sizes, [h, g, dh], &spans(sizes));
    }
}

#[test]
fn keys_that_nobody_sees_and_a_few_queries_that_begin_late() {
    // Only the first third of many keys is seen; as a text in pieces, fewer than 16 queries see a later part.
    let early: Vec<Span> = (0..40).map(|i| (i / 4, 1 + 2 * i)).collect();
    let late: Vec<Span> = (0..9).map(|i| (11 + 3 * i, 14 + 6 * i)).collect();
    for heads in [[4, 2, 64], [2, 1, 32]] {
        assert_plain([1, 40, 240], heads, &early);
        assert_plain([2, 20, 240], heads, &early);
        assert_plain([1, 9, 70], heads, &late);
        assert_plain([3, 3, 210], heads, &late);
    }
}

#[test]
fn scores_of_zero_give_the_mean_of_a_span() {
    let spans = Spans::new([1, 3, 6], vec![(0, 1), (1, 4), (4, 6)]).unwrap();
    let x = random(&[1, 6, 2, 32], 1);
    let zeros = |n: usize| Tensor::zeros((1, n, 2, 32), DType::F64, &Device::Cpu).unwrap();
    let means = span_attention(&zeros(3), &zeros(6), &x, &spans).unwrap();
    for (slot, (start, end)) in [(0, 1), (1, 4), (4, 6)].into_iter().enumerate() {
        let want = x.narrow(1, start, end - start).unwrap().mean_keepdim(1).unwrap();
        assert!(worst(&means.narrow(1, slot, 1).unwrap(), &want) < 1e-15);
    }
}

#[test]
fn spans_that_no_kernel_could_take_are_refused() {
    let wrong = |sizes, spans: &[Span]| Spans::new(sizes, spans.to_vec()).unwrap_err().to_string();
    assert!(wrong([1, 2, 3], &[(0, 1)]).contains("1 spans for 1 rows of 2 queries"));
    assert!(wrong([1, 2, 3], &[(0, 1), (1, 1)]).contains("1..1 is no part of 3 keys"));
    assert!(wrong([1, 2, 3], &[(0, 1), (1, 4)]).contains("1..4"));
    assert!(wrong([1, 2, 3], &[(1, 2), (0, 2)]).contains("comes after"));
    assert!(wrong([1, 2, 3], &[(0, 3), (0, 2)]).contains("comes after"));
    // From row to row they begin anew.
    let spans = Spans::new([2, 1, 3], vec![(1, 3), (0, 1)]).unwrap();
    let (q, k) = (random(&[2, 2, 2, 4], 1), random(&[2, 3, 2, 4], 1));
    let e = span_attention(&q, &k, &k, &spans).unwrap_err().to_string();
    assert!(e.contains("span_attention") && e.contains("[2, 1, 3]"), "{e}");
}

#[test]
fn gradients_of_spans_pass_the_check_by_differences() {
    let spans = Spans::new([2, 3, 4], vec![(0, 2), (0, 3), (2, 4), (1, 2), (1, 2), (1, 4)]).unwrap();
    let inputs = [random(&[2, 3, 4, 3], 1), random(&[2, 4, 2, 3], 2), random(&[2, 4, 2, 3], 3)];
    gradcheck::check(&inputs, |v| span_attention(&v[0], &v[1], &v[2], &spans)?.powf(3.0)?.sum_all(), 1e-7)
        .unwrap();
}

/// Two sets: what [`spans`] gives, and what lies from a query's place on.
fn two_sets([b, t, u]: [usize; 3]) -> [Spans; 2] {
    let ahead = (0..b * t).map(|i| ((i % t * (u - 1) / t) as u32, u as u32)).collect();
    [Spans::new([b, t, u], spans([b, t, u])).unwrap(), Spans::new([b, t, u], ahead).unwrap()]
}

/// The same attention, each half of the heads by itself.
fn half_by_half(v: &[Tensor; 3], sets: &[Spans; 2]) -> candle_core::Result<Tensor> {
    let half = |i: usize| {
        let part = |x: &Tensor| x.narrow(2, i * x.dim(2)? / 2, x.dim(2)? / 2)?.contiguous();
        span_attention(&part(&v[0])?, &part(&v[1])?, &part(&v[2])?, &sets[i])
    };
    Tensor::cat(&[half(0)?, half(1)?], 2)
}

#[test]
fn heads_may_see_different_keys() {
    for ([b, t, u], h, g, dh) in [
        ([2, 40, 9], 4, 2, 32),
        ([3, 9, 70], 2, 2, 64),
        ([1, 130, 66], 4, 4, 48),
        ([3, 1, 20], 4, 2, 32),
        ([1, 70, 300], 2, 2, 128),
    ] {
        let sets = two_sets([b, t, u]);
        let spans = Spans::of_heads(&sets).unwrap();
        assert_eq!((spans.sets(), spans.sizes()), (2, [b, t, u]));
        let inputs = [
            (random(&[b, t, h, dh], 1) * 3.0).unwrap(),
            (random(&[b, u, g, dh], 2) * 3.0).unwrap(),
            random(&[b, u, g, dh], 3),
        ];
        compare(
            &inputs,
            |v| span_attention(&v[0], &v[1], &v[2], &spans),
            |v| half_by_half(&[0, 1, 2].map(|i| v[i].as_tensor().clone()), &sets),
            3e-6,
        );
        // Without gradient, in both ways that a GPU has for it.
        let inputs = inputs.map(|x| x.to_dtype(DType::F32).unwrap());
        let want = half_by_half(&inputs, &sets).unwrap();
        let [q, k, v] = &inputs;
        assert!(worst(&span_attention(q, k, v, &spans).unwrap(), &want) < 3e-6);
        if let Some(device) = gpu() {
            let [q, k, v] = [q, k, v].map(|x| x.to_device(&device).unwrap());
            assert!(worst(&span_attention(&q, &k, &v, &spans).unwrap(), &want) < 1e-5);
        }
    }
}

#[test]
fn branches_leave_a_trunk_of_several_sets() {
    let (b, s, h, g, dh) = (2, 20, 4, 2, 32);
    let sets = two_sets([b, s, s]);
    let spans = Spans::of_heads(&sets).unwrap();
    let of = |heads: usize, seed| random(&[b, s, heads, dh], seed).to_dtype(DType::F32).unwrap();
    let (q, k, v, key, value) = (of(h, 1), of(g, 2), of(g, 3), of(g, 4), of(g, 5));
    let half = |i: usize| {
        let part = |x: &Tensor| {
            let heads = x.dim(2).unwrap() / 2;
            x.narrow(2, i * heads, heads).unwrap().contiguous().unwrap()
        };
        let (key, value) = ([part(&key)], [part(&value)]);
        branch_attention(&part(&q), &part(&k), &part(&v), Sight::Spans(&sets[i]), &key, &value).unwrap()
    };
    let want = Tensor::cat(&[half(0), half(1)], 2).unwrap();
    let (keys, values) = ([key], [value]);
    assert!(worst(&branch_attention(&q, &k, &v, &spans, &keys, &values).unwrap(), &want) < 3e-6);
    if let Some(device) = gpu() {
        let [q, k, v] = [&q, &k, &v].map(|x| x.to_device(&device).unwrap());
        let [keys, values] = [keys, values].map(|x| x.map(|x| x.to_device(&device).unwrap()));
        assert!(worst(&branch_attention(&q, &k, &v, &spans, &keys, &values).unwrap(), &want) < 1e-5);
    }
}

#[test]
fn gradients_of_several_sets_pass_the_check_by_differences() {
    let set = |list: Vec<Span>| Spans::new([1, 3, 4], list).unwrap();
    let sets = [set(vec![(0, 2), (0, 3), (2, 4)]), set(vec![(0, 4), (1, 4), (3, 4)])];
    let spans = Spans::of_heads(&sets).unwrap();
    let inputs = [random(&[1, 3, 4, 3], 1), random(&[1, 4, 2, 3], 2), random(&[1, 4, 2, 3], 3)];
    gradcheck::check(&inputs, |v| span_attention(&v[0], &v[1], &v[2], &spans)?.powf(3.0)?.sum_all(), 1e-7)
        .unwrap();
}

#[test]
fn sets_that_fit_no_heads_are_refused() {
    let set = |u| Spans::new([1, 2, u], vec![(0, 1), (0, 2)]).unwrap();
    assert!(Spans::of_heads(&[]).unwrap_err().to_string().contains("no set"));
    assert!(Spans::of_heads(&[set(2), set(3)]).unwrap_err().to_string().contains("[1, 2, 3]"));
    let three = Spans::of_heads(&[set(2), set(2), set(2)]).unwrap();
    let q = random(&[1, 2, 4, 4], 1);
    let e = span_attention(&q, &q, &q, &three).unwrap_err().to_string();
    assert!(e.contains("span_attention") && e.contains("3 sets"), "{e}");
}
