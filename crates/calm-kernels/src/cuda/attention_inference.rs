//! Twin of `../attention_inference.rs` on `kernels/attention_inference.cu`, and on `attention.cu` where a tile
//! of queries is full enough.

use super::attention::{DeviceSizes, HEAD_SIZES, Span, aligned, forward, listed, over_spans, spans_of};
use super::{Element, Gpu, Launch, View, rows, view};
use crate::Operand;
use crate::attention_sizes::{AttentionSizes, Sight, Spans};
use crate::storage::error;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DevicePtr, DeviceRepr};
use candle_core::{Result, Tensor};

/// Keys of one part of the attention over a cache, threads of a block, and the largest head: PART of
/// `kernels/attention_inference.cu`.
const PART: usize = 256;
/// From so many new positions on, tiles of queries are taken.
const TILE_QUERIES: usize = 16;
/// Branches that one launch adds: BRANCHES of `kernels/attention_inference.cu`.
const BRANCHES: usize = 8;

/// Device addresses of the keys and values that one launch adds, as the kernel has them.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Branches {
    keys: [u64; BRANCHES],
    values: [u64; BRANCHES],
    count: u32,
    padding: u32,
}

// SAFETY: numbers without padding of the compiler's, in C's layout.
unsafe impl DeviceRepr for Branches {}

/// Contiguous tensors without history, at multiples of 16 bytes.
fn plain<'a>(op: &str, gpu: &Gpu, tensors: impl IntoIterator<Item = &'a Tensor>) -> Result<Vec<Tensor>> {
    let one = |t: &Tensor| {
        if !t.device().same_device(&gpu.device()) {
            return Err(error(
                op,
                format_args!("inputs on {:?} and {:?}", gpu.device().location(), t.device().location()),
            ));
        }
        aligned(&t.detach().contiguous()?)
    };
    tensors.into_iter().map(one).collect()
}

fn views<'a, T: Element>(op: &str, tensors: &'a [Tensor]) -> Result<Vec<View<'a, T>>> {
    tensors.iter().map(|t| view(op, t)).collect()
}

/// Shapes checked by the caller; `sizes.keys` is at least `sizes.queries`.
pub(crate) fn cached_attention(
    op: &str,
    sizes: AttentionSizes,
    q: &dyn Operand,
    [k, v]: [&Tensor; 2],
) -> Result<Tensor> {
    let cached = sizes.keys - sizes.queries;
    let row = (0..sizes.queries).map(|t| Span { start: 0, end: (cached + t + 1) as u32 });
    let spans: Vec<Span> = (0..sizes.batch).flat_map(|_| row.clone()).collect();
    without_gradient(op, sizes, q, [k, v], &spans)
}

/// Shapes checked by the caller.
pub(crate) fn span_attention(
    op: &str,
    sizes: AttentionSizes,
    q: &dyn Operand,
    [k, v]: [&Tensor; 2],
    spans: &Spans,
) -> Result<Tensor> {
    let spans = listed(spans);
    let tracked = q.tensor().track_op() || k.track_op() || v.track_op();
    if !tracked && !sizes.is_empty() {
        return without_gradient(op, sizes, q, [k, v], &spans);
    }
    let spans = Gpu::of(op, q)?.shared(&spans)?;
    over_spans(sizes, q, [k, v], spans)
}

fn without_gradient(
    op: &str,
    sizes: AttentionSizes,
    q: &dyn Operand,
    [k, v]: [&Tensor; 2],
    spans: &[Span],
) -> Result<Tensor> {
    let gpu = Gpu::of(op, q)?;
    let inputs = plain(op, &gpu, [q.tensor(), k, v])?;
    with_element!(op, inputs[0].dtype(), T => {
        let views = views::<T>(op, &inputs)?;
        let of = [&views[0].get(), &views[1].get(), &views[2].get()];
        let out = if sizes.is_empty() {
            gpu.empty::<T>(0)?
        } else {
            // The same for all layers of a step.
            let spans = gpu.shared(spans)?;
            if sizes.queries >= TILE_QUERIES && HEAD_SIZES.contains(&sizes.head) {
                forward(&gpu, op, sizes, &spans, of, false)?.0
            } else {
                over_cache(&gpu, op, sizes, &spans, of)?
            }
        };
        gpu.tensor(out, inputs[0].shape())
    })
}

/// A few queries over many keys: parts of the keys, then the sums of the parts.
fn over_cache<T: Element>(
    gpu: &Gpu,
    op: &str,
    sizes: AttentionSizes,
    spans: &CudaSlice<Span>,
    [q, k, v]: [&CudaView<'_, T>; 3],
) -> Result<CudaSlice<T>> {
    let head = sizes.head;
    if head > PART {
        return Err(error(
            op,
            format_args!("heads of {head} numbers have no kernel on a GPU, only those up to {PART}"),
        ));
    }
    let entries = sizes.batch * sizes.queries * sizes.heads;
    let parts = entries * sizes.keys.div_ceil(PART);
    let (mut stats, mut values) = (gpu.empty::<f32>(2 * parts)?, gpu.empty::<f32>(parts * head)?);
    let (s, dh) = (DeviceSizes::of(sizes), head as u32);
    let kernel = format!("cached_parts_{}", T::SUFFIX);
    let shared = size_of::<f32>() * (head + 2 * PART);
    let launch = Launch::of(parts, 1, PART as u32).shared(shared as u32);
    launch!(gpu, ATTENTION_INFERENCE, kernel, launch, q, k, v, spans, &mut stats, &mut values, &s, &dh);

    let mut out = gpu.empty::<T>(entries * head)?;
    let kernel = format!("cached_sum_{}", T::SUFFIX);
    let launch = Launch::of(entries, 1, dh.next_multiple_of(32));
    let (entries, keys) = (entries as u64, sizes.keys as u32);
    launch!(
        gpu,
        ATTENTION_INFERENCE,
        kernel,
        launch,
        &stats,
        &values,
        &mut out,
        &entries,
        &keys,
        &dh,
        &s.scale
    );
    Ok(out)
}

/// Shapes checked by the caller.
pub(crate) fn branch_attention(
    op: &str,
    sizes: AttentionSizes,
    q: &dyn Operand,
    [k, v]: [&Tensor; 2],
    sees: Sight<'_>,
    branch_k: &[Tensor],
    branch_v: &[Tensor],
) -> Result<Tensor> {
    let gpu = Gpu::of(op, q)?;
    let spans = spans_of(&gpu, op, sees)?;
    let inputs = plain(op, &gpu, [q.tensor(), k, v])?;
    let (keys, values) = (plain(op, &gpu, branch_k)?, plain(op, &gpu, branch_v)?);
    with_element!(op, inputs[0].dtype(), T => {
        let views_of = views::<T>(op, &inputs)?;
        let (keys, values) = (views::<T>(op, &keys)?, views::<T>(op, &values)?);
        let q = views_of[0].get();
        let of = [&q, &views_of[1].get(), &views_of[2].get()];
        let (mut out, mut log_sums) = forward(&gpu, op, sizes, &spans, of, !keys.is_empty())?;
        let chunks = keys.chunks(BRANCHES).zip(values.chunks(BRANCHES));
        let last = chunks.len().saturating_sub(1);
        for (i, (keys, values)) in chunks.enumerate().filter(|_| !sizes.is_empty()) {
            log_sums = add_branches(&gpu, sizes, &q, (keys, values), log_sums, &mut out, i < last)?;
        }
        gpu.tensor(out, inputs[0].shape())
    })
}

/// Adds up to BRANCHES keys and values to `out` and the log sums, which are returned; those that no launch
/// follows for (`more`) are the old ones.
fn add_branches<T: Element>(
    gpu: &Gpu,
    sizes: AttentionSizes,
    q: &CudaView<'_, T>,
    (keys, values): (&[View<'_, T>], &[View<'_, T>]),
    log_sums: CudaSlice<f32>,
    out: &mut CudaSlice<T>,
    more: bool,
) -> Result<CudaSlice<f32>> {
    let stream = gpu.stream();
    let mut branches = Branches { count: keys.len() as u32, ..Branches::default() };
    for (to, from) in [(&mut branches.keys, keys), (&mut branches.values, values)] {
        for (to, from) in to.iter_mut().zip(from) {
            // The tensors outlive the launch, and what frees them is behind it on the stream.
            *to = from.get().device_ptr(&stream).0;
        }
    }
    let entries = sizes.batch * sizes.queries * sizes.heads;
    let kernel = format!("add_branches_{}", T::SUFFIX);
    let launch = rows::launch(entries);
    let (count, group, dh) = (entries as u64, (sizes.heads / sizes.kv_heads) as u32, sizes.head as u32);
    let scale = DeviceSizes::of(sizes).scale;
    let tail = (&count, &group, &dh, &scale);
    if more {
        let mut next = gpu.empty::<f32>(entries)?;
        launch!(
            gpu,
            ATTENTION_INFERENCE,
            kernel,
            launch,
            q,
            &branches,
            &log_sums,
            &mut next,
            out,
            tail.0,
            tail.1,
            tail.2,
            tail.3
        );
        return Ok(next);
    }
    let none = 0u64;
    launch!(
        gpu,
        ATTENTION_INFERENCE,
        kernel,
        launch,
        q,
        &branches,
        &log_sums,
        &none,
        out,
        tail.0,
        tail.1,
        tail.2,
        tail.3
    );
    Ok(log_sums)
}
