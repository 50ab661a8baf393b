//! Twin of `../attention_block.rs`: cuBLAS for the products, `kernels/attention.cu` and its neighbours between.

use super::attention::{self, Span, segment_spans};
use super::copies::weight;
use super::gradients::{gradient_of, put};
use super::matrix::{Mat, matmul, product};
use super::operator::{Operator, apply};
use super::turns::Turns;
use super::{Gpu, rms_norm, rows, view};
use crate::attention::Sizes;
use crate::attention_block::AttentionShape;
use crate::storage::Saved;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{CudaStorage, Result, Shape, Tensor};
use std::sync::Arc;

/// Inputs x, norm, query, key, value, output, with shapes checked by the caller.
pub(crate) fn attention_block(
    inputs: [&Tensor; 6],
    sizes: Sizes,
    shape: AttentionShape<'_>,
) -> Result<Tensor> {
    let gpu = Gpu::of(AttentionBlock::NAME, inputs[0])?;
    let operator = AttentionBlock {
        sizes,
        spans: segment_spans(&gpu, AttentionBlock::NAME, shape.segments)?,
        turns: Turns::new(&gpu, AttentionBlock::NAME, shape.positions, sizes.head, shape.theta)?,
        eps: shape.eps,
        keep: inputs.iter().any(|t| t.track_op()),
        kept: Saved::new(),
        log_sums: Saved::new(),
    };
    apply(operator, &inputs.map(|t| t as &dyn crate::Operand))
}

struct AttentionBlock {
    sizes: Sizes,
    spans: Arc<CudaSlice<Span>>,
    turns: Turns,
    eps: f64,
    /// Whether a backward pass may follow.
    keep: bool,
    /// q, k, v, output of the heads.
    kept: Saved<[Tensor; 4]>,
    log_sums: Saved<Arc<CudaSlice<f32>>>,
}

impl AttentionBlock {
    /// Rows R = B·S, width D, width of keys and values.
    fn widths(&self) -> (usize, usize, usize) {
        let s = self.sizes;
        (s.batch * s.queries, s.heads * s.head, s.kv_heads * s.head)
    }
}

impl Operator for AttentionBlock {
    const NAME: &'static str = "attention_block";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (r, d, kv) = self.widths();
        let s = self.sizes;
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let x = view::<T>(Self::NAME, &inputs[0])?;
            let of = |i: usize| weight::<T>(gpu, Self::NAME, &inputs[i]);
            let (norm, query, key, value, output) = (of(1)?, of(2)?, of(3)?, of(4)?, of(5)?);
            let h = rms_norm::forward(gpu, &x.get(), &norm.get(), self.eps)?;
            let h = Mat::new(h.as_view(), r, d);
            let q = product(gpu, &h, &Mat::new(query.get(), d, d).t())?;
            let q = self.turns.rotate(gpu, &q.slice(..r * d), s.heads, false)?;
            let k = product(gpu, &h, &Mat::new(key.get(), kv, d).t())?;
            let k = self.turns.rotate(gpu, &k.slice(..r * kv), s.kv_heads, false)?;
            let v = product(gpu, &h, &Mat::new(value.get(), kv, d).t())?;
            let of = [&q.as_view(), &k.as_view(), &v.as_view()];
            let (out, log_sums) = attention::forward(gpu, Self::NAME, s, &self.spans, of, self.keep)?;
            let mut y = rows::copy(gpu, &x.get())?;
            let (mixed, output) = (Mat::new(out.as_view(), r, d), Mat::new(output.get(), d, d));
            matmul(gpu, &mut y.as_view_mut(), d, &mixed, &output.t(), true)?;
            if self.keep {
                self.kept.set([
                    gpu.tensor(q, (r, d))?,
                    gpu.tensor(k, (r, kv))?,
                    gpu.tensor(v, (r, kv))?,
                    gpu.tensor(out, (r, d))?,
                ]);
                self.log_sums.set(Arc::new(log_sums));
            }
            Ok((gpu.storage(y), inputs[0].shape().clone()))
        })
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        _output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let (r, d, kv) = self.widths();
        let s = self.sizes;
        let (kept, log_sums) = (self.kept.get(Self::NAME)?, self.log_sums.get(Self::NAME)?);
        with_element!(Self::NAME, grad.dtype(), T => {
            let x = view::<T>(Self::NAME, &inputs[0])?;
            let of = |i: usize| weight::<T>(gpu, Self::NAME, &inputs[i]);
            let (norm, query, key, value, output) = (of(1)?, of(2)?, of(3)?, of(4)?, of(5)?);
            let [q, k, v, out] = [0, 1, 2, 3].map(|i| view::<T>(Self::NAME, &kept[i]));
            let (q, k, v, out) = (q?, k?, v?, out?);
            let dy_ = view::<T>(Self::NAME, grad)?;
            let dy = Mat::new(dy_.get(), r, d);
            let mixed = Mat::new(out.get(), r, d);
            let d_output = gradient_of(gpu, &inputs[5], |into, accumulate| {
                matmul(gpu, into, d, &dy.t(), &mixed, accumulate)
            })?;
            let d_out = product(gpu, &dy, &Mat::new(output.get(), d, d))?;
            let kept = attention::Forward {
                q: q.get(),
                k: k.get(),
                v: v.get(),
                out: out.get(),
                log_sums: &log_sums,
            };
            let (dq, dk, dv) =
                attention::backward(gpu, Self::NAME, s, &self.spans, &kept, &d_out.as_view())?;
            let dq = self.turns.rotate(gpu, &dq.slice(..r * d), s.heads, true)?;
            let dk = self.turns.rotate(gpu, &dk.slice(..r * kv), s.kv_heads, true)?;
            let dq = Mat::new(dq.as_view(), r, d);
            let (dk, dv) = (Mat::new(dk.as_view(), r, kv), Mat::new(dv.as_view(), r, kv));
            let h = rms_norm::forward(gpu, &x.get(), &norm.get(), self.eps)?;
            let h = Mat::new(h.as_view(), r, d);
            let of = |input: &Tensor, slope: &Mat<'_, T>| {
                gradient_of(gpu, input, |into, accumulate| matmul(gpu, into, d, &slope.t(), &h, accumulate))
            };
            let (d_query, d_key, d_value) =
                (of(&inputs[2], &dq)?, of(&inputs[3], &dk)?, of(&inputs[4], &dv)?);
            let mut dh = product(gpu, &dq, &Mat::new(query.get(), d, d))?;
            matmul(gpu, &mut dh.as_view_mut(), d, &dk, &Mat::new(key.get(), kv, d), true)?;
            matmul(gpu, &mut dh.as_view_mut(), d, &dv, &Mat::new(value.get(), kv, d), true)?;
            let wanted = inputs[1].track_op();
            let (mut dx, d_norm) =
                rms_norm::backward(gpu, &x.get(), &norm.get(), &dh.as_view(), self.eps, wanted)?;
            let d_norm = match d_norm {
                Some(d_norm) => {
                    gradient_of(gpu, &inputs[1], |into, accumulate| put(gpu, into, &d_norm, accumulate))?
                }
                None => None,
            };
            rows::add_to(gpu, &mut dx, &dy_.get())?;
            let dx = inputs[0].track_op().then(|| gpu.tensor(dx, inputs[0].shape())).transpose()?;
            Ok(vec![dx, d_norm, d_query, d_key, d_value, d_output])
        })
    }
}
