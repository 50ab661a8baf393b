//! Twin of `../attention.rs` on `kernels/attention.cu`, `attention_backward.cu` and `attention_spans.cu`.

use super::per_tensor::PerTensor;
use super::{Element, Gpu, Launch, view};
use crate::Operand;
use crate::attention_sizes::{AttentionSizes, Sight};
use crate::nary::{Operator, apply};
use crate::storage::{Saved, error};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, DeviceRepr};
use candle_core::{CudaStorage, DType, Result, Shape, Tensor};
use std::sync::Arc;

/// Head sizes that have kernels over tiles.
pub(super) const HEAD_SIZES: [usize; 6] = crate::attention_sizes::GPU_HEAD_SIZES;

/// The keys `start..end` that a query sees, as the kernels have it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) end: u32,
}

// SAFETY: two numbers without padding, in C's layout.
unsafe impl DeviceRepr for Span {}

/// Sizes of one attention as the kernels have them.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct DeviceSizes {
    batch: u32,
    queries: u32,
    keys: u32,
    heads: u32,
    kv_heads: u32,
    sets: u32,
    pub(super) scale: f32,
}

// SAFETY: seven numbers of four bytes without padding, in C's layout.
unsafe impl DeviceRepr for DeviceSizes {}

impl DeviceSizes {
    pub(super) fn of(s: AttentionSizes) -> Self {
        Self {
            batch: s.batch as u32,
            queries: s.queries as u32,
            keys: s.keys as u32,
            heads: s.heads as u32,
            kv_heads: s.kv_heads as u32,
            sets: s.sets as u32,
            scale: (1.0 / (s.head as f64).sqrt()) as f32,
        }
    }
}

/// How a kernel over tiles is launched: threads of a block, the queries (or, for key gradients, the keys) of
/// one head that it has, and bytes of shared memory.
struct Tile {
    threads: u32,
    rows: usize,
    shared_bytes: usize,
}

impl Tile {
    /// A block for every `rows` of `positions` of `heads` heads a row.
    fn launch(self, s: AttentionSizes, heads: usize, positions: usize) -> Launch {
        let blocks = s.batch * heads * positions.div_ceil(self.rows);
        Launch::of(blocks, 1, self.threads).shared(self.shared_bytes as u32)
    }

    /// In f32, with so many rows of Dh + 1 floats and 64 of 33 weights.
    fn of_f32(head: usize, shared_rows: usize) -> Self {
        Self { threads: 128, rows: 64, shared_bytes: 4 * (shared_rows * (head + 1) + 64 * 33) }
    }

    /// In bf16, with so many rows of Dh + 8 numbers.
    fn of_bf16(head: usize, threads: u32, shared_rows: usize) -> Self {
        Self { threads, rows: 128, shared_bytes: 2 * shared_rows * (head + 8) }
    }
}

/// Of `attention_DH_T`.
fn forward_launch<T: Element>(s: AttentionSizes) -> Launch {
    let keys = match s.head {
        64 => 128,
        ..128 => 64,
        128 => 32,
        _ => 16,
    };
    let tile = match T::DTYPE {
        DType::BF16 => Tile::of_bf16(s.head, 128, 128 + 2 * keys),
        _ => Tile::of_f32(s.head, 64 + 2 * 32),
    };
    tile.launch(s, s.heads, s.queries)
}

/// Of `attention_queries_DH_T`.
fn queries_launch<T: Element>(s: AttentionSizes) -> Launch {
    let threads = if s.head < 128 { 128 } else { 256 };
    let columns = if matches!(s.head, 64 | 128) { 64 } else { 32 };
    let tile = match T::DTYPE {
        DType::BF16 => Tile::of_bf16(s.head, threads, 2 * 128 + 4 * columns),
        _ => Tile::of_f32(s.head, 2 * 64 + 2 * 32),
    };
    tile.launch(s, s.heads, s.queries)
}

/// Of `attention_keys_DH_T`.
fn keys_launch<T: Element>(s: AttentionSizes) -> Launch {
    let threads = if s.head <= 64 { 128 } else { 256 };
    let columns = if s.head == 96 { 64 } else { 32 };
    let mut tile = match T::DTYPE {
        DType::BF16 => Tile::of_bf16(s.head, threads, 2 * 128 + 4 * columns),
        _ => Tile::of_f32(s.head, 2 * 64 + 2 * 32),
    };
    if T::DTYPE == DType::BF16 {
        // Log sums and deltas of two tiles of queries.
        tile.shared_bytes += 16 * columns;
    }
    tile.launch(s, s.kv_heads, s.keys)
}

/// Those of a context's last batches.
#[derive(Default)]
struct Spans(PerTensor<(), CudaSlice<Span>>);

/// Spans `[B, S]` of positions that see their segment (U32 `[B, S]`) up to themselves; once for all layers of a
/// batch.
fn segment_spans(gpu: &Gpu, op: &str, segments: &Tensor) -> Result<Arc<CudaSlice<Span>>> {
    let make = || {
        let (rows, s) = segments.dims2()?;
        let contiguous = segments.contiguous()?;
        let segments = view::<u32>(op, &contiguous)?;
        let mut spans = gpu.raw::<Span>(rows * s)?;
        if rows * s > 0 {
            let launch = Launch::of(rows, 1, 256);
            let (rows, s) = (rows as u32, s as u32);
            launch!(gpu, ATTENTION_SPANS, "segment_spans", launch, &segments.get(), &mut spans, &rows, &s);
        }
        Ok(spans)
    };
    match gpu.kept::<Spans>() {
        Some(spans) => spans.0.get(segments, (), make),
        None => make().map(Arc::new),
    }
}

/// The spans of all positions, `[sets, B, S]`; once for all layers of a batch that have the same.
pub(super) fn spans_of(gpu: &Gpu, op: &str, sees: Sight<'_>) -> Result<Arc<CudaSlice<Span>>> {
    match sees {
        Sight::Segments(segments) => segment_spans(gpu, op, segments),
        Sight::Spans(spans) => gpu.shared(&listed(spans)),
    }
}

/// Spans as the kernels have them.
pub(super) fn listed(spans: &crate::Spans) -> Vec<Span> {
    spans.of_queries.iter().map(|&(start, end)| Span { start, end }).collect()
}

/// That there are kernels for heads of this size.
fn check_head(op: &str, head: usize) -> Result<()> {
    if HEAD_SIZES.contains(&head) {
        return Ok(());
    }
    Err(error(
        op,
        format_args!(
            "heads of {head} numbers have no kernel on a GPU, only those of {HEAD_SIZES:?}; choose the number of \
             heads so that hidden_size / heads is one of them, or run on the CPU"
        ),
    ))
}

/// The tensor itself, or a copy if it does not begin at a multiple of 16 bytes, which the kernels of bf16 need.
pub(super) fn aligned(tensor: &Tensor) -> Result<Tensor> {
    if (tensor.layout().start_offset() * tensor.dtype().size_in_bytes()).is_multiple_of(16) {
        Ok(tensor.clone())
    } else {
        tensor.force_contiguous()
    }
}

/// Output `[B, T, H, Dh]` of q over k and v, and with `keep` log sums `[B, T, H]`.
pub(super) fn forward<T: Element>(
    gpu: &Gpu,
    op: &str,
    sizes: AttentionSizes,
    spans: &CudaSlice<Span>,
    [q, k, v]: [&CudaView<'_, T>; 3],
    keep: bool,
) -> Result<(CudaSlice<T>, CudaSlice<f32>)> {
    let entries = sizes.batch * sizes.queries * sizes.heads;
    let mut out = gpu.empty::<T>(entries * sizes.head)?;
    let mut log_sums = gpu.empty::<f32>(if keep { entries } else { 0 })?;
    if sizes.is_empty() {
        return Ok((out, log_sums));
    }
    check_head(op, sizes.head)?;
    let kernel = format!("attention_{}_{}", sizes.head, T::SUFFIX);
    let (launch, s) = (forward_launch::<T>(sizes), DeviceSizes::of(sizes));
    if keep {
        launch!(gpu, ATTENTION, kernel, launch, q, k, v, spans, &mut out, &mut log_sums, &s);
    } else {
        let none = 0u64;
        launch!(gpu, ATTENTION, kernel, launch, q, k, v, spans, &mut out, &none, &s);
    }
    Ok((out, log_sums))
}

/// What the backward pass reads.
pub(super) struct Forward<'a, T> {
    pub(super) q: CudaView<'a, T>,
    pub(super) k: CudaView<'a, T>,
    pub(super) v: CudaView<'a, T>,
    pub(super) out: CudaView<'a, T>,
    pub(super) log_sums: CudaView<'a, f32>,
}

/// (dq, dk, dv)
pub(super) fn backward<T: Element>(
    gpu: &Gpu,
    op: &str,
    sizes: AttentionSizes,
    spans: &CudaSlice<Span>,
    kept: &Forward<'_, T>,
    grad: &CudaView<'_, T>,
) -> Result<(CudaSlice<T>, CudaSlice<T>, CudaSlice<T>)> {
    let Forward { q, k, v, out, log_sums } = kept;
    if sizes.is_empty() {
        return Ok((gpu.zeros(q.len())?, gpu.zeros(k.len())?, gpu.zeros(v.len())?));
    }
    check_head(op, sizes.head)?;
    let s = DeviceSizes::of(sizes);
    let entries = sizes.batch * sizes.queries * sizes.heads;
    let mut delta = gpu.empty::<f32>(entries)?;
    let kernel = format!("attention_delta_{}", T::SUFFIX);
    // Four threads a row.
    let launch = Launch::of(entries, 64, 256);
    let (count, head) = (entries as u64, sizes.head as u32);
    launch!(gpu, ATTENTION_BACKWARD, kernel, launch, grad, out, &mut delta, &count, &head);

    let mut dq = gpu.empty::<T>(q.len())?;
    let kernel = format!("attention_queries_{head}_{}", T::SUFFIX);
    let launch = queries_launch::<T>(sizes);
    launch!(gpu, ATTENTION_BACKWARD, kernel, launch, q, k, v, grad, spans, log_sums, &delta, &mut dq, &s);

    let (mut dk, mut dv) = (gpu.empty::<T>(k.len())?, gpu.empty::<T>(v.len())?);
    let kernel = format!("attention_keys_{head}_{}", T::SUFFIX);
    let launch = keys_launch::<T>(sizes);
    launch!(
        gpu,
        ATTENTION_BACKWARD,
        kernel,
        launch,
        q,
        k,
        v,
        grad,
        spans,
        log_sums,
        &delta,
        &mut dk,
        &mut dv,
        &s
    );
    Ok((dq, dk, dv))
}

/// Shapes checked by the caller.
pub(crate) fn causal_attention(
    sizes: AttentionSizes,
    q: &dyn Operand,
    k: &Tensor,
    v: &Tensor,
    segments: &Tensor,
) -> Result<Tensor> {
    const OP: &str = "causal_attention";
    over_spans(sizes, q, [k, v], segment_spans(&Gpu::of(OP, q)?, OP, segments)?)
}

/// Shapes checked by the caller.
pub(super) fn over_spans(
    sizes: AttentionSizes,
    q: &dyn Operand,
    [k, v]: [&Tensor; 2],
    spans: Arc<CudaSlice<Span>>,
) -> Result<Tensor> {
    let keep = q.tensor().track_op() || k.track_op() || v.track_op();
    apply(SpanAttention { sizes, spans, keep, log_sums: Saved::new() }, &[q, k, v])
}

struct SpanAttention {
    sizes: AttentionSizes,
    spans: Arc<CudaSlice<Span>>,
    /// Whether a backward pass may follow.
    keep: bool,
    /// L `[B, T, H]`.
    log_sums: Saved<Arc<CudaSlice<f32>>>,
}

impl Operator<Gpu> for SpanAttention {
    const NAME: &'static str = "attention";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let inputs = inputs.iter().map(aligned).collect::<Result<Vec<_>>>()?;
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let [q, k, v] = [0, 1, 2].map(|i| view::<T>(Self::NAME, &inputs[i]));
            let (q, k, v) = (q?, k?, v?);
            let of = [&q.get(), &k.get(), &v.get()];
            let (out, log_sums) = forward(gpu, Self::NAME, self.sizes, &self.spans, of, self.keep)?;
            if self.keep {
                self.log_sums.set(Arc::new(log_sums));
            }
            Ok((gpu.storage(out), inputs[0].shape().clone()))
        })
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let all = [&inputs[0], &inputs[1], &inputs[2], output, grad];
        let all = all.into_iter().map(aligned).collect::<Result<Vec<_>>>()?;
        let log_sums = self.log_sums.get(Self::NAME)?;
        with_element!(Self::NAME, grad.dtype(), T => {
            let [q, k, v, out, grad] = [0, 1, 2, 3, 4].map(|i| view::<T>(Self::NAME, &all[i]));
            let (q, k, v, out, grad) = (q?, k?, v?, out?, grad?);
            let kept =
                Forward { q: q.get(), k: k.get(), v: v.get(), out: out.get(), log_sums: log_sums.as_view() };
            let (dq, dk, dv) = backward(gpu, Self::NAME, self.sizes, &self.spans, &kept, &grad.get())?;
            let of = |i: usize, gradient| gpu.tensor::<T>(gradient, inputs[i].shape()).map(Some);
            Ok(vec![of(0, dq)?, of(1, dk)?, of(2, dv)?])
        })
    }
}
