//! Softmax cross-entropy fused with the tied vocabulary projection, and its argmax-only twin.
//!
//! ```text
//! loss = Σ_r w_r (ln Σ_v exp(h_r·e_v) − h_r·e_{t_r}),   p = softmax(H Eᵀ)
//! dH = w (p − onehot) E,   dE = (w (p − onehot))ᵀ H
//! ```
//!
//! Rows go through in blocks: one block of logits is computed into a buffer that is used again, becomes
//! the probabilities in place, and is multiplied into both gradients at once. So logits are computed
//! once, and no [R, V] matrix exists. The gradients wait inside the operator; the backward pass scales
//! them. Blocks depend on V alone and sums have a fixed order: results do not depend on threads.

use crate::collector::Home;
use crate::context::Operand;
use crate::gradients::gradient_of;
use crate::simd::{self, LANES, Mat, Real, dispatch, fold, matmul, rows_per_block};
use crate::storage::{Saved, error, ids, slice, tensor, to_vec, view};
use crate::{screened_argmax, with_float};
use candle_core::{CpuStorage, CustomOp2, DType, Layout, Result, Shape, Tensor};
use gemm::Parallelism;
use rayon::prelude::*;

const OP: &str = "tied_cross_entropy";
/// Elements summed in single precision before they join a double-precision total.
const CHUNK: usize = 1024;

/// Rows whose logits exist at the same time: 64 MiB of them in `f32`, but 64 to 512 rows: each block reads and
/// writes the whole gradient of the embedding once.
fn block_rows(vocabulary: usize) -> usize {
    ((1 << 24) / vocabulary.max(1)).clamp(64, 512)
}

/// Σ_r w_r · cross-entropy(hidden_r Eᵀ, target_r), a scalar, from `hidden` `[R, D]`, `embedding`
/// `[V, D]`, `targets` U32 `[R]` and `weights` `[R]` (all 1 when `None`; a row of weight 0 is left out,
/// whatever its logits). In nats.
///
/// Differentiable in `hidden` and `embedding`; the gradient of an input that asks for none is not
/// computed. `weights` are constants.
///
/// f32 and f64 on the CPU, f32 and bf16 on a GPU. There embedding and weights may be f32 beside bf16 hidden states,
/// and the loss is f32.
///
/// # Errors
/// Shapes or types that do not fit; on the CPU a target that is not below V. A GPU cannot say so without
/// waiting: such a target makes the loss NaN, unless its row has weight 0.
pub fn tied_cross_entropy(
    hidden: &Tensor,
    table: &dyn Operand,
    targets: &Tensor,
    weights: Option<&Tensor>,
) -> Result<Tensor> {
    let embedding = table.tensor();
    let shape = LogitSizes::of(OP, hidden, embedding)?;
    on_gpu!(hidden, {
        target_shape(OP, targets, &shape)?;
        if let Some(w) = weights {
            weight_shape(w, hidden, &shape)?;
        }
        crate::cuda::cross_entropy::tied_cross_entropy(hidden, table, targets, weights)
    });
    let targets = target_ids(OP, targets, &shape)?;
    let weights = match weights {
        Some(w) => {
            weight_shape(w, hidden, &shape)?;
            Some(with_float!(OP, w.dtype(), T => {
                Ok(to_vec::<T>(OP, w)?.into_iter().map(Real::as_f64).collect())
            })?)
        }
        None => None,
    };
    let wanted = [hidden.track_op(), embedding.track_op()];
    let home = Home::of(&[hidden, table]);
    let op = TiedCrossEntropy { targets, weights, wanted, home, gradients: Saved::new() };
    hidden.contiguous()?.apply_op2(&embedding.contiguous()?, op)
}

/// Loss of each row, `[R]` in nats (f32 on a GPU), and its most probable id, U32 `[R]` (the lowest of equals). No
/// gradient.
///
/// # Errors
/// As [`tied_cross_entropy`].
pub fn tied_cross_entropy_rows(
    hidden: &Tensor,
    table: &dyn Operand,
    targets: &Tensor,
) -> Result<(Tensor, Tensor)> {
    const OP: &str = "tied_cross_entropy_rows";
    let embedding = table.tensor();
    let shape = LogitSizes::of(OP, hidden, embedding)?;
    on_gpu!(hidden, {
        target_shape(OP, targets, &shape)?;
        crate::cuda::cross_entropy::rows(hidden, table, targets)
    });
    let targets = target_ids(OP, targets, &shape)?;
    let (hidden, embedding) = (hidden.contiguous()?, embedding.contiguous()?);
    with_float!(OP, hidden.dtype(), T => {
        let rows = each_row::<T, _>(
            &view::<T>(OP, &hidden)?,
            &view::<T>(OP, &embedding)?,
            &shape,
            #[inline(always)]
            |r, logits| {
                let max = simd::max(logits);
                let loss = log_sum_exp(logits, max) - logits[targets[r] as usize].as_f64();
                (T::of_f64(loss), first_of(logits, max))
            },
        );
        let (losses, best): (Vec<T>, Vec<u32>) = rows.into_iter().unzip();
        Ok((tensor(losses, shape.r)?, tensor(best, shape.r)?))
    })
}

/// The id whose embedding has the largest product with each row of `hidden` `[R, D]`: U32 `[R]`, the
/// lowest id of equals; NaN logits never win. No gradient. Many rows in `f32` are screened in 8 bits first
/// where the processor can (`screened_argmax.rs`); the winner is
/// decided in `f32`. Where two products differ by less than the rounding of `f32`, either may win, whichever
/// way was taken. On a GPU f32 and bf16 are taken, and products are sums in f32.
///
/// # Errors
/// Shapes or types that do not fit.
pub fn tied_argmax(hidden: &Tensor, table: &dyn Operand) -> Result<Tensor> {
    const OP: &str = "tied_argmax";
    let embedding = table.tensor();
    let shape = LogitSizes::of(OP, hidden, embedding)?;
    on_gpu!(hidden, crate::cuda::cross_entropy::argmax(hidden, table));
    let (hidden, embedding) = (hidden.contiguous()?, embedding.contiguous()?);
    if hidden.dtype() == DType::F32 && screened_argmax::pays(shape.r) {
        let (h, e) = (view::<f32>(OP, &hidden)?, view::<f32>(OP, &embedding)?);
        if let Some(best) = screened_argmax::argmax(&h, &e, shape.v, shape.d) {
            return tensor(best, shape.r);
        }
    }
    with_float!(OP, hidden.dtype(), T => {
        let best = each_row::<T, _>(
            &view::<T>(OP, &hidden)?,
            &view::<T>(OP, &embedding)?,
            &shape,
            #[inline(always)]
            |_, logits| first_of(logits, simd::max(logits)),
        );
        tensor(best, shape.r)
    })
}

struct LogitSizes {
    r: usize,
    d: usize,
    v: usize,
}

impl LogitSizes {
    fn of(op: &str, hidden: &Tensor, embedding: &Tensor) -> Result<Self> {
        match (hidden.dims(), embedding.dims()) {
            (&[r, d], &[v, e]) if d == e && v > 0 && fits(embedding, hidden) => Ok(Self { r, d, v }),
            (h, e) => Err(error(
                op,
                format_args!(
                    "needs hidden [R, D] and embedding [V, D] of one type with V > 0, got {h:?} of {:?} and \
                     {e:?} of {:?}",
                    hidden.dtype(),
                    embedding.dtype()
                ),
            )),
        }
    }
}

/// The weights `[R]` have the type of hidden; on a GPU they may also be f32.
fn weight_shape(w: &Tensor, hidden: &Tensor, shape: &LogitSizes) -> Result<()> {
    if w.dims() == [shape.r] && fits(w, hidden) {
        return Ok(());
    }
    Err(error(
        OP,
        format_args!(
            "weights must be [R] = [{}] of {:?}, got {:?} of {:?}",
            shape.r,
            hidden.dtype(),
            w.dims(),
            w.dtype()
        ),
    ))
}

/// Whether a tensor has the type of hidden, or on a GPU f32.
fn fits(t: &Tensor, hidden: &Tensor) -> bool {
    t.dtype() == hidden.dtype() || (hidden.device().is_cuda() && t.dtype() == DType::F32)
}

fn target_shape(op: &str, targets: &Tensor, shape: &LogitSizes) -> Result<()> {
    if targets.dims() == [shape.r] {
        return Ok(());
    }
    Err(error(
        op,
        format_args!(
            "targets must be [R] = [{}], as many as rows of hidden; got {:?}",
            shape.r,
            targets.dims()
        ),
    ))
}

fn target_ids(op: &str, targets: &Tensor, shape: &LogitSizes) -> Result<Vec<u32>> {
    target_shape(op, targets, shape)?;
    let targets = ids(op, targets)?;
    match targets.iter().position(|&t| t as usize >= shape.v) {
        Some(at) => Err(error(
            op,
            format_args!(
                "target {} at row {at} is outside the vocabulary of {} ids; are tokenizer and model a pair?",
                targets[at], shape.v
            ),
        )),
        None => Ok(targets),
    }
}

struct TiedCrossEntropy {
    targets: Vec<u32>,
    weights: Option<Vec<f64>>,
    /// Whether hidden and embedding ask for a gradient.
    wanted: [bool; 2],
    home: Option<Home>,
    gradients: Saved<[Option<Tensor>; 2]>,
}

impl TiedCrossEntropy {
    fn forward<T: Real>(&self, hidden: &[T], embedding: &[T], shape: &LogitSizes) -> Result<T> {
        let &LogitSizes { r, d, v } = shape;
        let block = block_rows(v);
        let mut logits = vec![T::ZERO; block.min(r) * v];
        let mut losses = vec![0.0f64; block.min(r)];
        let [want_hidden, want_embedding] = self.wanted;
        let mut d_hidden = vec![T::ZERO; if want_hidden { r * d } else { 0 }];
        let mut d_embedding = vec![T::ZERO; if want_embedding { v * d } else { 0 }];
        let table = Mat::new(embedding, v, d);
        let mut total = 0.0;
        for first in (0..r).step_by(block) {
            let rows = block.min(r - first);
            let logits = &mut logits[..rows * v];
            let losses = &mut losses[..rows];
            let h = Mat::new(&hidden[first * d..(first + rows) * d], rows, d);
            matmul(logits, h, table.t(), false, Parallelism::Rayon(0));
            let task = rows_per_block(v);
            let blocks = logits.par_chunks_mut(task * v).zip(losses.par_chunks_mut(task)).enumerate();
            blocks.for_each(|(b, (logits, losses))| {
                for (i, (row, loss)) in logits.chunks_exact_mut(v).zip(losses).enumerate() {
                    let r = first + b * task + i;
                    let weight = self.weights.as_ref().map_or(1.0, |w| w[r]);
                    *loss = dispatch(
                        #[inline(always)]
                        || {
                            if want_hidden || want_embedding {
                                loss_and_slope(row, self.targets[r] as usize, weight)
                            } else if weight == 0.0 {
                                0.0
                            } else {
                                let max = simd::max(row);
                                weight * (log_sum_exp(row, max) - row[self.targets[r] as usize].as_f64())
                            }
                        },
                    );
                }
            });
            losses.iter().for_each(|loss| total += loss);
            let slope = Mat::new(&*logits, rows, v);
            if want_hidden {
                let d_hidden = &mut d_hidden[first * d..(first + rows) * d];
                matmul(d_hidden, slope, table, false, Parallelism::Rayon(0));
            }
            if want_embedding {
                matmul(&mut d_embedding, slope.t(), h, first > 0, Parallelism::Rayon(0));
            }
        }
        let keep =
            |wanted: bool, data: Vec<T>, rows: usize| wanted.then(|| tensor(data, (rows, d))).transpose();
        self.gradients.set([keep(want_hidden, d_hidden, r)?, keep(want_embedding, d_embedding, v)?]);
        Ok(T::of_f64(total))
    }
}

/// `each(row number, logits of the row)` for every row, block by block.
fn each_row<T: Real, O: Send + Clone + Default>(
    hidden: &[T],
    embedding: &[T],
    shape: &LogitSizes,
    each: impl Fn(usize, &[T]) -> O + Sync,
) -> Vec<O> {
    let &LogitSizes { r, d, v } = shape;
    let block = block_rows(v);
    let mut logits = vec![T::ZERO; block.min(r) * v];
    let mut out = vec![O::default(); r];
    for (b, out) in out.chunks_mut(block).enumerate() {
        let (first, rows) = (b * block, out.len());
        let logits = &mut logits[..rows * v];
        let h = Mat::new(&hidden[first * d..(first + rows) * d], rows, d);
        matmul(logits, h, Mat::new(embedding, v, d).t(), false, Parallelism::Rayon(0));
        let task = rows_per_block(v);
        out.par_chunks_mut(task).zip(logits.par_chunks(task * v)).enumerate().for_each(
            |(t, (out, logits))| {
                for (i, (out, row)) in out.iter_mut().zip(logits.chunks_exact(v)).enumerate() {
                    *out = dispatch(
                        #[inline(always)]
                        || each(first + t * task + i, row),
                    );
                }
            },
        );
    }
    out
}

/// Turns a row of logits into weight·(p − onehot(target)) and returns weight·loss.
#[inline(always)]
fn loss_and_slope<T: Real>(row: &mut [T], target: usize, weight: f64) -> f64 {
    if weight == 0.0 {
        row.fill(T::ZERO);
        return 0.0;
    }
    let max = simd::max(row);
    let at_target = row[target].as_f64();
    let mut sum = 0.0;
    for chunk in row.chunks_mut(CHUNK) {
        let mut acc = [T::ZERO; LANES];
        let (lanes, rest) = chunk.as_chunks_mut::<LANES>();
        for lane in lanes {
            for i in 0..LANES {
                let e = (lane[i] - max).exp();
                lane[i] = e;
                acc[i] += e;
            }
        }
        for (a, x) in acc.iter_mut().zip(rest) {
            *x = (*x - max).exp();
            *a += *x;
        }
        sum += fold(acc).as_f64();
    }
    let scale = T::of_f64(weight / sum);
    for x in row.iter_mut() {
        *x *= scale;
    }
    row[target] -= T::of_f64(weight);
    weight * (max.as_f64() + sum.ln() - at_target)
}

/// ln Σ exp(x) given the largest x; sums of short chunks in the type, their total in double precision.
#[inline(always)]
fn log_sum_exp<T: Real>(row: &[T], max: T) -> f64 {
    let mut sum = 0.0;
    for chunk in row.chunks(CHUNK) {
        sum += simd::sum_map(
            chunk,
            #[inline(always)]
            |x| (x - max).exp(),
        )
        .as_f64();
    }
    max.as_f64() + sum.ln()
}

/// Index of the first element equal to `max`; 0 if there is none.
#[inline(always)]
fn first_of<T: Real>(row: &[T], max: T) -> u32 {
    for (c, chunk) in row.chunks(256).enumerate() {
        if chunk.iter().fold(false, |any, &x| any | (x == max)) {
            let inside = chunk.iter().position(|&x| x == max).unwrap_or(0);
            return (c * 256 + inside) as u32;
        }
    }
    0
}

impl CustomOp2 for TiedCrossEntropy {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        use candle_core::backend::BackendStorage;
        let (r, d) = l1.shape().dims2()?;
        let shape = LogitSizes { r, d, v: l2.shape().dims2()?.0 };
        with_float!(OP, s1.dtype(), T => {
            let loss = self.forward::<T>(slice(OP, s1, l1)?, slice(OP, s2, l2)?, &shape)?;
            Ok((<T as candle_core::WithDType>::to_cpu_storage_owned(vec![loss]), Shape::from(())))
        })
    }

    fn bwd(
        &self,
        hidden: &Tensor,
        embedding: &Tensor,
        _res: &Tensor,
        grad_res: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let kept = self.gradients.get(OP)?;
        with_float!(OP, grad_res.dtype(), T => {
            let factor = to_vec::<T>(OP, grad_res)?[0];
            let [d_hidden, d_embedding] = [(hidden, &kept[0]), (embedding, &kept[1])].map(|(input, kept)| {
                let Some(kept) = kept else { return Ok(None) };
                let kept = view::<T>(OP, kept)?;
                gradient_of(self.home.as_ref(), input, |into, accumulate| {
                    put_scaled(into, &kept, factor, accumulate);
                })
            });
            Ok((d_hidden?, d_embedding?))
        })
    }
}

/// dst = factor·src, or dst += factor·src.
fn put_scaled<T: Real>(dst: &mut [T], src: &[T], factor: T, accumulate: bool) {
    let block = rows_per_block(1);
    dst.par_chunks_mut(block).zip(src.par_chunks(block)).for_each(|(dst, src)| {
        if accumulate {
            dst.iter_mut().zip(src).for_each(|(d, &s)| *d += s * factor);
        } else {
            dst.iter_mut().zip(src).for_each(|(d, &s)| *d = s * factor);
        }
    });
}
