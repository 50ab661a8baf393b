//! The attention half of a layer, `y = x + output(attention(query(h), key(h), value(h)))` with
//! h = RMSNorm(x) and rotary angles on queries and keys, as one operator.
//!
//! Fused for the reason of [`crate::mlp_block`]. Kept for the backward pass: rotated queries and keys,
//! values, the heads' output and the scores' log sums.

use crate::attention::{Forward, Sizes, Span, attend, backward, segment_spans};
use crate::gradients::{gradient_of, put};
use crate::nary::{Operator, apply};
use crate::rotary::Rotary;
use crate::rows::{self, add_to};
use crate::simd::{Mat, matmul};
use crate::storage::{Saved, error, ids, tensor, view, views};
use crate::{rms_norm, with_float};
use candle_core::{CpuStorage, Result, Shape, Tensor, WithDType};
use gemm::Parallelism::Rayon;

/// What tells heads and positions apart.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape<'a> {
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads Hkv, a divisor of H.
    pub kv_heads: usize,
    /// Base of the rotary angles.
    pub theta: f64,
    /// Of the norm.
    pub eps: f64,
    /// U32 `[B, S]`, for the rotary angles.
    pub positions: &'a Tensor,
    /// U32 `[B, S]`: a position sees the run of equal ids up to itself.
    pub segments: &'a Tensor,
}

/// `x + attention(h)` outputᵀ for x `[B, S, D]`, norm `[D]`, query and output `[D, D]`, key and value
/// `[Hkv·D/H, D]`: a tensor like x, differentiable in all of them.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU, which takes heads as [`crate::causal_attention`] does and f32
/// parameters with bf16 x. The same as [`crate::rms_norm`], [`crate::linear`], [`crate::rotary`] and
/// [`crate::causal_attention`] one after the other.
///
/// # Errors
/// Shapes that do not fit, H not a divisor of D or not a multiple of Hkv, odd heads, element types that
/// differ or that the device does not take, positions or segments that are not U32.
pub fn attention_block(
    x: &Tensor,
    norm: &dyn crate::Operand,
    matrices: [&dyn crate::Operand; 4],
    shape: AttentionShape<'_>,
) -> Result<Tensor> {
    const OP: &str = AttentionBlock::NAME;
    let (norm, [query, key, value, output]) = (norm.tensor(), matrices.map(|m| m.tensor()));
    let inputs = [x, norm, query, key, value, output];
    let (h, kv) = (shape.heads, shape.kv_heads);
    let fits = match *x.dims() {
        [b, s, d] => {
            let kv_width = d.checked_div(h).unwrap_or(0) * kv;
            let split = h > 0 && kv > 0 && d % h == 0 && h % kv == 0 && (d / h) % 2 == 0;
            let matrices = [query.dims(), output.dims()] == [[d, d]; 2]
                && [key.dims(), value.dims()] == [[kv_width, d]; 2];
            split
                && matrices
                && norm.dims() == [d]
                && [shape.positions.dims(), shape.segments.dims()] == [[b, s]; 2]
        }
        _ => false,
    };
    if !fits {
        let dims = inputs.map(Tensor::dims);
        return Err(error(
            OP,
            format_args!(
                "{dims:?}, {h} heads over {kv}, positions {:?}, segments {:?} do not fit: expected x [B, S, D], \
                 norm [D], query [D, D], key and value [Hkv·Dh, D], output [D, D], positions and segments [B, S]",
                shape.positions.dims(),
                shape.segments.dims()
            ),
        ));
    }
    let (b, s, d) = x.dims3()?;
    let sizes = Sizes { batch: b, queries: s, keys: s, heads: h, kv_heads: kv, head: d / h };
    on_gpu!(x, crate::cuda::attention_block::attention_block(inputs, sizes, shape));
    let operator = AttentionBlock {
        sizes,
        spans: segment_spans(&ids(OP, shape.segments)?, s),
        rotary: Rotary::new(None, &ids(OP, shape.positions)?, sizes.head, shape.theta),
        eps: shape.eps,
        keep: inputs.iter().any(|t| t.track_op()),
        kept: Saved::new(),
    };
    apply(operator, &inputs)
}

struct AttentionBlock {
    sizes: Sizes,
    spans: Vec<Span>,
    rotary: Rotary,
    eps: f64,
    /// Whether a backward pass may follow.
    keep: bool,
    /// q, k, v, output of the heads, log sums.
    kept: Saved<[Tensor; 5]>,
}

impl AttentionBlock {
    /// Rows R = B·S, width D, width of keys and values.
    fn widths(&self) -> (usize, usize, usize) {
        let s = self.sizes;
        (s.batch * s.queries, s.heads * s.head, s.kv_heads * s.head)
    }

    fn dims(&self, heads: usize) -> [usize; 4] {
        [self.sizes.batch, self.sizes.queries, heads, self.sizes.head]
    }
}

impl Operator for AttentionBlock {
    const NAME: &'static str = "attention_block";

    fn forward(&self, inputs: &[Tensor]) -> Result<(CpuStorage, Shape)> {
        let (r, d, kv) = self.widths();
        with_float!(Self::NAME, inputs[0].dtype(), T => {
            let [x, norm, query, key, value, output] = views::<T, 6>(Self::NAME, inputs)?;
            let h = rms_norm::forward(&x, &norm, self.eps);
            let h = Mat::new(&h, r, d);
            let q = rows::product(r * d, h, Mat::new(&query, d, d).t());
            let q = self.rotary.rotate(&q, &self.dims(self.sizes.heads));
            let k = rows::product(r * kv, h, Mat::new(&key, kv, d).t());
            let k = self.rotary.rotate(&k, &self.dims(self.sizes.kv_heads));
            let v = rows::product(r * kv, h, Mat::new(&value, kv, d).t());
            let (out, log_sums) = attend(self.sizes, &self.spans, (&q, &k, &v), &[], self.keep);
            let mut y = rows::copy(&x);
            matmul(&mut y, Mat::new(&out, r, d), Mat::new(&output, d, d).t(), true, Rayon(0));
            if self.keep {
                let entries = log_sums.len();
                self.kept.set([
                    tensor(q, (r, d))?,
                    tensor(k, (r, kv))?,
                    tensor(v, (r, kv))?,
                    tensor(out, (r, d))?,
                    tensor(log_sums, entries)?,
                ]);
            }
            Ok((<T as WithDType>::to_cpu_storage_owned(y), inputs[0].shape().clone()))
        })
    }

    fn backward(&self, inputs: &[Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (r, d, kv) = self.widths();
        let kept = self.kept.get(Self::NAME)?;
        with_float!(Self::NAME, grad.dtype(), T => {
            let [x, norm, query, key, value, output] = views::<T, 6>(Self::NAME, inputs)?;
            let [q, k, v, out, log_sums] = views::<T, 5>(Self::NAME, &kept)?;
            let dy_ = view::<T>(Self::NAME, grad)?;
            let dy = Mat::new(&dy_, r, d);
            let d_output = gradient_of::<T>(None, &inputs[5], |into, accumulate| {
                matmul(into, dy.t(), Mat::new(&out, r, d), accumulate, Rayon(0));
            })?;
            let d_out = rows::product(r * d, dy, Mat::new(&output, d, d));
            let kept = Forward { q: &q, k: &k, v: &v, out: &out, log_sums: &log_sums };
            let (dq, dk, dv) = backward(self.sizes, &self.spans, &kept, &d_out);
            let back = self.rotary.inverse();
            let dq = back.rotate(&dq, &self.dims(self.sizes.heads));
            let dk = back.rotate(&dk, &self.dims(self.sizes.kv_heads));
            let (dq, dk, dv) = (Mat::new(&dq, r, d), Mat::new(&dk, r, kv), Mat::new(&dv, r, kv));
            let h = rms_norm::forward(&x, &norm, self.eps);
            let h = Mat::new(&h, r, d);
            let of = |input: &Tensor, slope: Mat<'_, T>| {
                gradient_of::<T>(None, input, |into, accumulate| matmul(into, slope.t(), h, accumulate, Rayon(0)))
            };
            let (d_query, d_key, d_value) = (of(&inputs[2], dq)?, of(&inputs[3], dk)?, of(&inputs[4], dv)?);
            let mut dh = rows::product(r * d, dq, Mat::new(&query, d, d));
            matmul(&mut dh, dk, Mat::new(&key, kv, d), true, Rayon(0));
            matmul(&mut dh, dv, Mat::new(&value, kv, d), true, Rayon(0));
            let (mut dx, d_norm) = rms_norm::backward(&x, &norm, &dh, self.eps);
            add_to(&mut dx, &dy_);
            let d_norm = gradient_of(None, &inputs[1], |into, accumulate| put(into, &d_norm, accumulate))?;
            let dx = inputs[0].track_op().then(|| tensor(dx, inputs[0].shape())).transpose()?;
            Ok(vec![dx, d_norm, d_query, d_key, d_value, d_output])
        })
    }
}
