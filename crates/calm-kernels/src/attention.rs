//! Attention over spans of keys, causal attention inside segments for one, with grouped key heads, without the [S, S] matrix.
//!
//! ```text
//! s_tu = q_t·k_u / √Dh  for u in the span of t; causal: u ≤ t in the segment of t
//! p_tu = exp(s_tu − L_t),  L_t = ln Σ_u exp s_tu          o_t = Σ_u p_tu v_u
//! dv_u = Σ_t p_tu do_t      dp_tu = do_t·v_u              ds_tu = p_tu (dp_tu − do_t·o_t)
//! dq_t = Σ_u ds_tu k_u / √Dh                              dk_u = Σ_t ds_tu q_t / √Dh
//! ```
//! Blocks of queries at a time: a block's scores are two matrix products away from its output, and the
//! backward pass computes them again from L, the only thing kept. One task a (row, key head, block) in
//! the forward pass, one a (row, key head) in the backward pass, whose key gradients add up in a fixed
//! order.

use crate::attention_sizes::{AttentionSizes, Sight, Span, Spans, segment_spans};
use crate::context::{self, Operand};
use crate::products::Products;
use crate::simd::{self, LANES, Mat, Real, dispatch, dot, fold};
use crate::storage::{self, Saved, error, slice, tensor, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape, Tensor, WithDType};
use gemm::Parallelism;
use rayon::prelude::*;
use std::marker::PhantomData;
use std::sync::Arc;

const OP: &str = "causal_attention";
const SPANS: &str = "span_attention";
/// Queries whose scores are computed together.
const BLOCK: usize = 64;

/// Attention of q `[B, S, H, Dh]` over k, v `[B, S, Hkv, Dh]`: a tensor like q.
///
/// Position t sees the positions u ≤ t of its segment: the run of equal ids in segments (U32 `[B, S]`)
/// that t stands in. Key head g serves the query heads g·H/Hkv .. (g+1)·H/Hkv; scores are scaled by
/// 1/√Dh. Filler positions may have any id: like every position they see at least themselves.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU, which takes heads of 32, 48, 64, 96, 128 and 160; the inputs
/// may have any strides.
///
/// # Errors
/// Shapes that do not fit, H not a multiple of Hkv, element types that differ or that the device does not
/// take, segments that are not U32.
pub fn causal_attention(queries: &dyn Operand, k: &Tensor, v: &Tensor, segments: &Tensor) -> Result<Tensor> {
    let q = queries.tensor();
    let sizes = AttentionSizes::new(OP, q, k, v)?;
    if sizes.keys != sizes.queries || segments.dims() != [sizes.batch, sizes.queries] {
        return Err(error(
            OP,
            format_args!(
                "q {:?}, k {:?} and segments {:?} do not fit: expected q [B, S, H, Dh], k and v \
                 [B, S, Hkv, Dh], segments [B, S]",
                q.dims(),
                k.dims(),
                segments.dims()
            ),
        ));
    }
    on_gpu!(q, crate::cuda::attention::causal_attention(sizes, queries, k, v, segments));
    let spans = segment_spans(&storage::ids(OP, segments)?, sizes.queries);
    over_spans(OP, sizes, (Arc::new(spans), context::products(&[queries])), [q, k, v])
}

/// Attention of q `[B, T, H, Dh]` over k, v `[B, U, Hkv, Dh]`, where each query sees its span of the keys, of several
/// sets that of its head: a tensor like q. Key heads, scale, element types and sizes of heads as in
/// [`causal_attention`]; without gradient, and of fewer than sixteen queries, a GPU takes any head of up to 256.
///
/// # Errors
/// Spans of other sizes, or of a number of sets that is no divisor of Hkv; otherwise as [`causal_attention`].
pub fn span_attention(queries: &dyn Operand, k: &Tensor, v: &Tensor, spans: &Spans) -> Result<Tensor> {
    let q = queries.tensor();
    let sizes = AttentionSizes::new(SPANS, q, k, v)?;
    let needed = [sizes.batch, sizes.queries, sizes.keys];
    let Some(sizes) = Sight::Spans(spans).fit(sizes) else {
        return Err(error(
            SPANS,
            format_args!(
                "{} sets of spans of {:?} (rows, queries, keys) do not fit {needed:?} and {} key heads",
                spans.sets(),
                spans.sizes(),
                sizes.kv_heads
            ),
        ));
    };
    on_gpu!(q, crate::cuda::attention_inference::span_attention(SPANS, sizes, queries, [k, v], spans));
    over_spans(SPANS, sizes, (spans.of_queries.clone(), context::products(&[queries])), [q, k, v])
}

fn over_spans(
    name: &'static str,
    sizes: AttentionSizes,
    (spans, products): (Arc<Vec<Span>>, Products),
    [q, k, v]: [&Tensor; 3],
) -> Result<Tensor> {
    let keep = q.track_op() || k.track_op() || v.track_op();
    let op = SpanAttention { name, sizes, spans, products, keep, log_sums: Saved::new() };
    q.contiguous()?.apply_op3(&k.contiguous()?, &v.contiguous()?, op)
}

/// Query rows that one matrix product takes: a block of positions of one head, or, when there is only
/// one position, all heads of a key head.
#[derive(Clone, Copy)]
struct Panel {
    /// First element of the first row in q, and the distance to the next row.
    at: usize,
    stride: usize,
    rows: usize,
    /// First position, and how many positions a row advances (1 or 0).
    position: usize,
    advance: usize,
    /// First (position, head) in `[B, T, H]`, and the distance to the next row.
    entry: usize,
    entry_stride: usize,
}

impl Panel {
    /// The panels of block `i` of key head `g` in row `b`.
    fn of_block(sizes: AttentionSizes, b: usize, g: usize, i: usize) -> impl Iterator<Item = Self> {
        let group = sizes.group();
        let single = sizes.queries == 1;
        let position = i * BLOCK;
        let rows = if single { group } else { BLOCK.min(sizes.queries - position) };
        let step = if single { 1 } else { sizes.heads };
        (0..if single { 1 } else { group }).map(move |j| {
            let entry = (b * sizes.queries + position) * sizes.heads + g * group + j;
            Self {
                at: entry * sizes.head,
                stride: step * sizes.head,
                rows,
                position,
                advance: usize::from(!single),
                entry,
                entry_stride: step,
            }
        })
    }

    /// Spans of the rows: all of them lie in the span of the first row's start to the last row's end.
    fn spans<'a>(&self, spans: &'a [Span], sizes: AttentionSizes, b: usize, g: usize) -> &'a [Span] {
        let first = sizes.spans_at(b, g) + self.position;
        &spans[first..first + (self.rows - 1) * self.advance + 1]
    }

    /// First element of row `i`'s own key in a branch `[B, T, Hkv, Dh]`.
    #[inline(always)]
    fn branch_at(&self, sizes: AttentionSizes, b: usize, g: usize, i: usize) -> usize {
        let position = self.position + i * self.advance;
        ((b * sizes.queries + position) * sizes.kv_heads + g) * sizes.head
    }

    fn rows_of<'a, T>(&self, x: &'a [T], head: usize) -> Mat<'a, T> {
        Mat::strided(&x[self.at..], self.rows, head, self.stride, 1)
    }

    fn row<'a, T>(&self, x: &'a [T], i: usize, head: usize) -> &'a [T] {
        &x[self.at + i * self.stride..][..head]
    }
}

/// An output buffer whose rows are written by different tasks.
struct Scatter<'a, T> {
    data: *mut T,
    len: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: the only access is `write`, whose callers write disjoint elements; T (f32, f64, through
// `Real: Send`) may be written from any thread.
unsafe impl<T: Send> Sync for Scatter<'_, T> {}

impl<'a, T: Copy> Scatter<'a, T> {
    fn new(out: &'a mut Vec<T>, len: usize) -> Self {
        out.reserve_exact(len);
        Self { data: out.as_mut_ptr(), len, borrow: PhantomData }
    }

    /// Copies `row` to element `at` and on.
    ///
    /// # Safety
    /// No other task may write the same elements.
    unsafe fn write(&self, at: usize, row: &[T]) {
        assert!(row.len() <= self.len && at <= self.len - row.len());
        // SAFETY: in bounds by the assertion, exclusively ours by the caller's promise, and `row` is
        // borrowed elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(row.as_ptr(), self.data.add(at), row.len()) }
    }
}

/// The first `n` elements of a scratch vector that grows as needed.
fn scratch<T: Real>(v: &mut Vec<T>, n: usize) -> &mut [T] {
    if v.len() < n {
        v.resize(n, T::ZERO);
    }
    &mut v[..n]
}

/// x_i = exp(scale·(x_i − shift)); the sum over fixed lanes.
#[inline(always)]
fn exp_and_sum<T: Real>(x: &mut [T], shift: T, scale: T) -> T {
    let mut acc = [T::ZERO; LANES];
    let (chunks, rest) = x.as_chunks_mut::<LANES>();
    for chunk in chunks {
        for (a, x) in acc.iter_mut().zip(chunk) {
            *x = ((*x - shift) * scale).exp();
            *a += *x;
        }
    }
    for (a, x) in acc.iter_mut().zip(rest) {
        *x = ((*x - shift) * scale).exp();
        *a += *x;
    }
    fold(acc)
}

/// Extra keys and values `[B, T, Hkv, Dh]`, one for every query, that only that query sees.
pub(crate) type Branch<'a, T> = (&'a [T], &'a [T]);

/// (output `[B, T, H, Dh]`, log sums `[B, T, H]`: empty unless `keep`).
pub(crate) fn attend<T: Real>(
    sizes: AttentionSizes,
    spans: &[Span],
    products: Products,
    (q, k, v): (&[T], &[T], &[T]),
    branches: &[Branch<'_, T>],
    keep: bool,
) -> (Vec<T>, Vec<T>) {
    if sizes.is_empty() {
        return (Vec::new(), Vec::new());
    }
    let (dh, scale) = (sizes.head, sizes.scale::<T>());
    let entries = sizes.batch * sizes.queries * sizes.heads;
    let kept = if keep { entries } else { 0 };
    let (mut out, mut log_sums) = (Vec::new(), Vec::new());
    let to_out = Scatter::new(&mut out, entries * dh);
    let to_log_sums = Scatter::new(&mut log_sums, kept);
    let blocks = sizes.queries.div_ceil(BLOCK);

    let task = |(scores, result): &mut (Vec<T>, Vec<T>), i: usize| {
        let (b, g, block) = (i / blocks / sizes.kv_heads, i / blocks % sizes.kv_heads, i % blocks);
        for panel in Panel::of_block(sizes, b, g, block) {
            let spans = panel.spans(spans, sizes, b, g);
            let (first, last) = (spans[0].0 as usize, spans[spans.len() - 1].1 as usize);
            let n = last - first;
            let scores = scratch(scores, panel.rows * n);
            let result = scratch(result, panel.rows * dh);
            let keys = sizes.keys_of(k, b, g, first, last);
            products.matmul(scores, panel.rows_of(q, dh), keys.t(), false, Parallelism::None);

            // Row by row: the unnormalised probabilities in place, their sum and the branches'.
            let mut extra = vec![T::ZERO; branches.len() * panel.rows];
            let mut totals = vec![(T::ZERO, T::ZERO); panel.rows];
            dispatch(
                #[inline(always)]
                || {
                    for (r, total) in totals.iter_mut().enumerate() {
                        let span = spans[r * panel.advance];
                        let row = &mut scores[r * n..(r + 1) * n];
                        let (start, end) = (span.0 as usize - first, span.1 as usize - first);
                        row[..start].fill(T::ZERO);
                        row[end..].fill(T::ZERO);
                        let seen = &mut row[start..end];
                        let extra = &mut extra[r * branches.len()..(r + 1) * branches.len()];
                        let at = panel.branch_at(sizes, b, g, r);
                        let query = panel.row(q, r, dh);
                        let mut shift = simd::max(seen);
                        for (e, (key, _)) in extra.iter_mut().zip(branches) {
                            *e = dot(query, &key[at..at + dh]);
                            shift = if *e > shift { *e } else { shift };
                        }
                        let sum = exp_and_sum(seen, shift, scale) + exp_and_sum(extra, shift, scale);
                        *total = (shift, sum);
                    }
                },
            );
            let values = sizes.keys_of(v, b, g, first, last);
            products.matmul(result, Mat::new(scores, panel.rows, n), values, false, Parallelism::None);
            dispatch(
                #[inline(always)]
                || {
                    for (r, result) in result.chunks_exact_mut(dh).enumerate() {
                        let at = panel.branch_at(sizes, b, g, r);
                        for (j, (_, value)) in branches.iter().enumerate() {
                            let p = extra[r * branches.len() + j];
                            for (o, &x) in result.iter_mut().zip(&value[at..at + dh]) {
                                *o += p * x;
                            }
                        }
                        let inverse = T::ONE / totals[r].1;
                        for o in result.iter_mut() {
                            *o *= inverse;
                        }
                    }
                },
            );
            for (r, (row, (shift, sum))) in result.chunks_exact(dh).zip(&totals).enumerate() {
                let entry = panel.entry + r * panel.entry_stride;
                // SAFETY: an entry (b, t, h) belongs to one row of one panel of one task.
                unsafe { to_out.write(entry * dh, row) };
                if keep {
                    // SAFETY: as above.
                    unsafe { to_log_sums.write(entry, &[*shift * scale + sum.ln()]) };
                }
            }
        }
    };
    let tasks = sizes.batch * sizes.kv_heads * blocks;
    (0..tasks).into_par_iter().for_each_init(|| (Vec::new(), Vec::new()), task);
    // SAFETY: the tasks have written every entry (b, t, h) of both buffers: all blocks of all heads.
    unsafe {
        out.set_len(entries * dh);
        log_sums.set_len(kept);
    }
    (out, log_sums)
}

/// What the backward pass reads.
pub(crate) struct Forward<'a, T> {
    pub(crate) q: &'a [T],
    pub(crate) k: &'a [T],
    pub(crate) v: &'a [T],
    pub(crate) out: &'a [T],
    pub(crate) log_sums: &'a [T],
}

/// (dq, dk, dv)
pub(crate) fn backward<T: Real>(
    sizes: AttentionSizes,
    spans: &[Span],
    kept: &Forward<'_, T>,
    grad: &[T],
) -> (Vec<T>, Vec<T>, Vec<T>) {
    if sizes.is_empty() {
        let zeros = vec![T::ZERO; kept.k.len()];
        return (Vec::new(), zeros.clone(), zeros);
    }
    let (dh, scale) = (sizes.head, sizes.scale::<T>());
    let (mut dq, mut dk, mut dv) = (Vec::new(), Vec::new(), Vec::new());
    let to_dq = Scatter::new(&mut dq, kept.q.len());
    let to_dk = Scatter::new(&mut dk, kept.k.len());
    let to_dv = Scatter::new(&mut dv, kept.v.len());

    let task = |[p, dp, dq, dk, dv]: &mut [Vec<T>; 5], i: usize| {
        let (b, g) = (i / sizes.kv_heads, i % sizes.kv_heads);
        let (dk, dv) = (scratch(dk, sizes.keys * dh), scratch(dv, sizes.keys * dh));
        dk.fill(T::ZERO);
        dv.fill(T::ZERO);
        for block in 0..sizes.queries.div_ceil(BLOCK) {
            for panel in Panel::of_block(sizes, b, g, block) {
                let spans = panel.spans(spans, sizes, b, g);
                let (first, last) = (spans[0].0 as usize, spans[spans.len() - 1].1 as usize);
                let n = last - first;
                let (p, dp) = (scratch(p, panel.rows * n), scratch(dp, panel.rows * n));
                let dq = scratch(dq, panel.rows * dh);
                let (queries, grads) = (panel.rows_of(kept.q, dh), panel.rows_of(grad, dh));
                let keys = sizes.keys_of(kept.k, b, g, first, last);
                let values = sizes.keys_of(kept.v, b, g, first, last);
                simd::matmul(p, queries, keys.t(), false, Parallelism::None);
                simd::matmul(dp, grads, values.t(), false, Parallelism::None);
                dispatch(
                    #[inline(always)]
                    || {
                        let rows = p.chunks_exact_mut(n).zip(dp.chunks_exact_mut(n));
                        for (r, (p, dp)) in rows.enumerate() {
                            let span = spans[r * panel.advance];
                            let (start, end) = (span.0 as usize - first, span.1 as usize - first);
                            for row in [&mut *p, &mut *dp] {
                                row[..start].fill(T::ZERO);
                                row[end..].fill(T::ZERO);
                            }
                            let log_sum = kept.log_sums[panel.entry + r * panel.entry_stride];
                            let mean = dot(panel.row(grad, r, dh), panel.row(kept.out, r, dh));
                            for (p, dp) in p[start..end].iter_mut().zip(&mut dp[start..end]) {
                                *p = (*p * scale - log_sum).exp();
                                *dp = *p * (*dp - mean) * scale;
                            }
                        }
                    },
                );
                let (p, ds) = (Mat::new(p, panel.rows, n), Mat::new(dp, panel.rows, n));
                simd::matmul(dq, ds, keys, false, Parallelism::None);
                let seen = first * dh..last * dh;
                simd::matmul(&mut dk[seen.clone()], ds.t(), queries, true, Parallelism::None);
                simd::matmul(&mut dv[seen], p.t(), grads, true, Parallelism::None);
                for (r, row) in dq.chunks_exact(dh).enumerate() {
                    // SAFETY: an entry (b, t, h) belongs to one row of one panel of one task.
                    unsafe { to_dq.write((panel.entry + r * panel.entry_stride) * dh, row) };
                }
            }
        }
        for (u, (dk, dv)) in dk.chunks_exact(dh).zip(dv.chunks_exact(dh)).enumerate() {
            let at = ((b * sizes.keys + u) * sizes.kv_heads + g) * dh;
            // SAFETY: the key (b, u, g) belongs to this task alone.
            unsafe {
                to_dk.write(at, dk);
                to_dv.write(at, dv);
            }
        }
    };
    (0..sizes.batch * sizes.kv_heads).into_par_iter().for_each_init(Default::default, task);
    // SAFETY: the tasks have written every query and every key of every head and row.
    unsafe {
        dq.set_len(kept.q.len());
        dk.set_len(kept.k.len());
        dv.set_len(kept.v.len());
    }
    (dq, dk, dv)
}

struct SpanAttention {
    name: &'static str,
    sizes: AttentionSizes,
    spans: Arc<Vec<Span>>,
    products: Products,
    /// Whether a backward pass may follow.
    keep: bool,
    /// L `[B, T, H]`.
    log_sums: Saved<Tensor>,
}

impl CustomOp3 for SpanAttention {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        with_float!(self.name, s1.dtype(), T => {
            let inputs = (slice::<T>(self.name, s1, l1)?, slice::<T>(self.name, s2, l2)?, slice::<T>(self.name, s3, l3)?);
            let (out, log_sums) = attend(self.sizes, &self.spans, self.products, inputs, &[], self.keep);
            if self.keep {
                let entries = log_sums.len();
                self.log_sums.set(tensor(log_sums, entries)?);
            }
            Ok((T::to_cpu_storage_owned(out), l1.shape().clone()))
        })
    }

    fn bwd(
        &self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let log_sums = self.log_sums.get(self.name)?;
        with_float!(self.name, q.dtype(), T => {
            let views = [q, k, v, res, &log_sums, &grad].map(|t| view::<T>(self.name, t));
            let [q_, k_, v_, out, log_sums, grad] = views;
            let (q_, k_, v_, out, log_sums, grad) = (q_?, k_?, v_?, out?, log_sums?, grad?);
            let kept = Forward { q: &q_, k: &k_, v: &v_, out: &out, log_sums: &log_sums };
            let (dq, dk, dv) = backward::<T>(self.sizes, &self.spans, &kept, &grad);
            Ok((
                Some(tensor(dq, q.shape())?),
                Some(tensor(dk, k.shape())?),
                Some(tensor(dv, v.shape())?),
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_start_where_a_segment_starts_and_end_at_the_position() {
        let spans = segment_spans(&[5, 5, 2, 2, 7, 7, 7, 5], 4);
        assert_eq!(spans, [(0, 1), (0, 2), (2, 3), (2, 4), (0, 1), (0, 2), (0, 3), (3, 4)]);
        assert!(segment_spans(&[], 0).is_empty());
    }
}
