//! What attention is asked for, on both devices: its sizes, and which keys a position sees.

use crate::simd::{Mat, Real};
use crate::storage::{error, ids};
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// Numbers a head may have in attention on a GPU.
pub const GPU_HEAD_SIZES: [usize; 6] = [32, 48, 64, 96, 128, 160];

/// Sizes of one attention: B rows of T queries over U keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttentionSizes {
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head: usize,
    /// Sets of spans, a divisor of Hkv: each belongs to as many key heads, one after the other.
    pub(crate) sets: usize,
}

impl AttentionSizes {
    /// From q `[B, T, H, Dh]` and k, v `[B, U, Hkv, Dh]`.
    pub(crate) fn new(op: &str, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Self> {
        if let ([batch, queries, heads, head], [b, keys, kv_heads, dh]) = (q.dims(), k.dims())
            && (batch, head) == (b, dh)
            && k.dims() == v.dims()
            && *kv_heads > 0
            && heads % kv_heads == 0
        {
            let [batch, queries, keys] = [*batch, *queries, *keys];
            return Ok(Self {
                batch,
                queries,
                keys,
                heads: *heads,
                kv_heads: *kv_heads,
                head: *head,
                sets: 1,
            });
        }
        Err(error(
            op,
            format_args!(
                "q {:?}, k {:?} and v {:?} do not fit: expected q [B, T, H, Dh], k and v [B, U, Hkv, Dh] \
                 with H a multiple of Hkv",
                q.dims(),
                k.dims(),
                v.dims()
            ),
        ))
    }

    /// With this many sets of spans.
    pub(crate) fn of_sets(self, sets: usize) -> Self {
        Self { sets, ..self }
    }

    /// Where the spans of key head `g` in row `b` begin in `[sets, B, T]`.
    pub(crate) fn spans_at(&self, b: usize, g: usize) -> usize {
        (g * self.sets / self.kv_heads * self.batch + b) * self.queries
    }

    /// Query heads that share a key head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub(crate) fn scale<T: Real>(&self) -> T {
        T::of_f64(1.0 / (self.head as f64).sqrt())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch * self.queries * self.heads * self.head == 0
    }

    /// The keys (or values) from `first` up to `last` of key head `g` in row `b`.
    pub(crate) fn keys_of<'a, T>(
        &self,
        k: &'a [T],
        b: usize,
        g: usize,
        first: usize,
        last: usize,
    ) -> Mat<'a, T> {
        let stride = self.kv_heads * self.head;
        let at = (b * self.keys + first) * stride + g * self.head;
        Mat::strided(&k[at.min(k.len())..], last - first, self.head, stride, 1)
    }
}

/// The keys `start..end` that a query sees; both ends never decrease from a query to the next.
pub type Span = (u32, u32);

/// Which keys each query of a batch sees, for [`crate::span_attention`]. Clones share them.
#[derive(Clone, Debug)]
pub struct Spans {
    /// `[sets, B, T]`
    pub(crate) of_queries: Arc<Vec<Span>>,
    /// B, T, U.
    sizes: [usize; 3],
    sets: usize,
}

impl Spans {
    /// Of T queries over U keys in each of B rows: `start..end` of query t of row b at b·T + t.
    ///
    /// # Errors
    /// Another number of spans; one that is empty or goes beyond U; an end that decreases from a query of a row to the
    /// next.
    pub fn new([batch, queries, keys]: [usize; 3], spans: Vec<Span>) -> Result<Self> {
        if spans.len() != batch * queries {
            return Err(error(
                "spans",
                format_args!("{} spans for {batch} rows of {queries} queries", spans.len()),
            ));
        }
        for (i, &(start, end)) in spans.iter().enumerate() {
            if start >= end || end as usize > keys {
                return Err(error("spans", format_args!("{start}..{end} is no part of {keys} keys")));
            }
            if i % queries > 0 && (start < spans[i - 1].0 || end < spans[i - 1].1) {
                let before = spans[i - 1];
                return Err(error("spans", format_args!("{start}..{end} comes after {before:?} in a row")));
            }
        }
        Ok(Self { of_queries: Arc::new(spans), sizes: [batch, queries, keys], sets: 1 })
    }

    /// Of heads that do not all see the same: the first of the N sets belongs to the first N-th of the heads and so on. All
    /// heads of a key head must see the same, so N must be a divisor of their number.
    ///
    /// # Errors
    /// No set, or sets of different sizes.
    pub fn of_heads(sets: &[Self]) -> Result<Self> {
        let Some(Self { sizes, .. }) = sets.first() else { return Err(error("spans", "no set of spans")) };
        if let Some(other) = sets.iter().find(|s| s.sizes != *sizes) {
            return Err(error("spans", format_args!("sets of {sizes:?} and {:?}", other.sizes)));
        }
        let of_queries = sets.iter().flat_map(|set| set.of_queries.iter().copied()).collect();
        let count = sets.iter().map(|set| set.sets).sum();
        Ok(Self { of_queries: Arc::new(of_queries), sizes: *sizes, sets: count })
    }

    /// Sets of spans.
    pub fn sets(&self) -> usize {
        self.sets
    }

    /// B, T and U.
    pub fn sizes(&self) -> [usize; 3] {
        self.sizes
    }
}

/// Which keys each of the positions of whole rows sees.
#[derive(Clone, Copy, Debug)]
pub enum Sight<'a> {
    /// The run of equal ids in U32 `[B, S]` that it stands in, up to itself.
    Segments(&'a Tensor),
    /// Spans of S queries over S keys.
    Spans(&'a Spans),
}

impl<'a> From<&'a Tensor> for Sight<'a> {
    fn from(segments: &'a Tensor) -> Self {
        Self::Segments(segments)
    }
}

impl<'a> From<&'a Spans> for Sight<'a> {
    fn from(spans: &'a Spans) -> Self {
        Self::Spans(spans)
    }
}

impl Sight<'_> {
    /// The sizes with as many sets of spans, if this can be seen in an attention of these.
    pub(crate) fn fit(self, sizes: AttentionSizes) -> Option<AttentionSizes> {
        let [b, t, u] = [sizes.batch, sizes.queries, sizes.keys];
        let fits = match self {
            Self::Segments(segments) => u == t && segments.dims() == [b, t],
            Self::Spans(spans) => spans.sizes == [b, t, u] && sizes.kv_heads.is_multiple_of(spans.sets),
        };
        fits.then(|| sizes.of_sets(self.sets()))
    }

    fn sets(self) -> usize {
        match self {
            Self::Segments(_) => 1,
            Self::Spans(spans) => spans.sets,
        }
    }

    /// Of segments their shape, of spans rows, queries, keys and the number of sets.
    pub(crate) fn dims(self) -> Vec<usize> {
        match self {
            Self::Segments(segments) => segments.dims().to_vec(),
            Self::Spans(spans) => spans.sizes.into_iter().chain([spans.sets]).collect(),
        }
    }

    /// `[sets, B, S]`, on the CPU.
    pub(crate) fn spans(self, op: &str) -> Result<Arc<Vec<Span>>> {
        match self {
            Self::Segments(segments) => {
                let s = segments.dims().last().copied().unwrap_or(1);
                Ok(Arc::new(segment_spans(&ids(op, segments)?, s)))
            }
            Self::Spans(spans) => Ok(spans.of_queries.clone()),
        }
    }
}

/// Spans `[B, S]` of positions that see their segment up to themselves.
pub(crate) fn segment_spans(segments: &[u32], s: usize) -> Vec<Span> {
    let mut spans = Vec::with_capacity(segments.len());
    for row in segments.chunks_exact(s.max(1)) {
        let mut start = 0;
        for t in 0..row.len() {
            if t > 0 && row[t] != row[t - 1] {
                start = t;
            }
            spans.push((start as u32, t as u32 + 1));
        }
    }
    spans
}
