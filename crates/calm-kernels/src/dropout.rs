//! Inverted dropout with a mask that is a function of where the row stands in training.
//!
//! ```text
//! y = x·mask,   mask = [u ≥ p] / (1 − p),   u uniform in [0, 1)
//! ```

use crate::context::Operand;
use crate::philox::{NoiseKey, RowId, uniform_into};
use crate::simd::{Real, rows_per_block};
use crate::storage::{error, slice, tensor, to_vec, view};
use crate::with_float;
use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

const OP: &str = "dropout";

/// Where the mask comes from.
#[derive(Clone, Copy, Debug)]
pub enum DropoutMask<'a> {
    /// Drawn inside: element d of row r is kept where the uniform of dimension d, sample 0, is at least p.
    Draw {
        /// Stream and step.
        key: NoiseKey,
        /// Address of each row.
        rows: &'a [RowId],
    },
    /// Given: the factor of every element, 0 or 1/(1 − p), in the shape and type of the input.
    Given(&'a Tensor),
}

struct Dropout<T> {
    mask: Vec<T>,
}

/// Inverted dropout of an input x `[.., D]` (R rows of D): each element becomes 0 with probability `p`, else is
/// multiplied by 1/(1 − p). Differentiable; f32 and f64 on the CPU, f32 and bf16 on a GPU. Without `p` (0) a
/// drawn mask changes nothing.
///
/// # Errors
/// `p` outside [0, 1), a mask or a list of rows that does not fit `x`.
pub fn dropout(input: &dyn Operand, p: f64, mask: DropoutMask<'_>) -> Result<Tensor> {
    let x = input.tensor();
    if !(0.0..1.0).contains(&p) {
        return Err(error(OP, format_args!("the probability must lie in [0, 1), got {p}")));
    }
    let Some(&d) = x.dims().last() else {
        return Err(error(OP, "needs at least one dimension, got a scalar"));
    };
    #[cfg(feature = "cuda")]
    if x.device().is_cuda() {
        mask.check(x, d)?;
        return match mask {
            DropoutMask::Draw { .. } if p == 0.0 => x.contiguous(),
            DropoutMask::Draw { key, rows } => crate::cuda::dropout::drawn(input, p, key, rows),
            DropoutMask::Given(mask) => x * mask.detach(),
        };
    }
    let x = x.contiguous()?;
    with_float!(OP, x.dtype(), T => {
        mask.check(&x, d)?;
        let mask = match mask {
            DropoutMask::Draw { .. } if p == 0.0 => return Ok(x),
            DropoutMask::Draw { key, rows } => draw::<T>(key, rows, d, p),
            DropoutMask::Given(mask) => to_vec::<T>(OP, mask)?,
        };
        x.apply_op1(Dropout { mask })
    })
}

impl DropoutMask<'_> {
    /// That the mask fits x `[.., D]`.
    fn check(&self, x: &Tensor, d: usize) -> Result<()> {
        match self {
            Self::Draw { rows, .. } if rows.len() * d != x.elem_count() => Err(error(
                OP,
                format_args!("{} row addresses do not fit an input {:?}", rows.len(), x.dims()),
            )),
            Self::Given(mask) if mask.dims() != x.dims() || mask.dtype() != x.dtype() => Err(error(
                OP,
                format_args!(
                    "the mask must be {:?} of {:?} like the input, got {:?} of {:?}",
                    x.dims(),
                    x.dtype(),
                    mask.dims(),
                    mask.dtype()
                ),
            )),
            _ => Ok(()),
        }
    }
}

fn draw<T: Real>(key: NoiseKey, rows: &[RowId], d: usize, p: f64) -> Vec<T> {
    let keep = T::of_f64(1.0 / (1.0 - p));
    let p = p as f32;
    let mut mask = vec![T::ZERO; rows.len() * d];
    if d > 0 {
        let block = rows_per_block(d);
        mask.par_chunks_mut(block * d).zip(rows.par_chunks(block)).for_each(|(mask, rows)| {
            let mut uniforms = vec![0.0; d];
            for (mask, &row) in mask.chunks_exact_mut(d).zip(rows) {
                uniform_into(key, row, 0, d, &mut uniforms);
                for (m, &u) in mask.iter_mut().zip(&uniforms) {
                    *m = if u >= p { keep } else { T::ZERO };
                }
            }
        });
    }
    mask
}

impl<T: Real> Dropout<T> {
    fn apply(&self, x: &[T]) -> Vec<T> {
        let mut out = vec![T::ZERO; x.len()];
        let block = rows_per_block(1);
        let inputs = x.par_chunks(block).zip(self.mask.par_chunks(block));
        out.par_chunks_mut(block).zip(inputs).for_each(|(out, (x, mask))| {
            for ((o, &x), &m) in out.iter_mut().zip(x).zip(mask) {
                *o = x * m;
            }
        });
        out
    }
}

impl<T: Real> CustomOp1 for Dropout<T> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let out = self.apply(slice::<T>(OP, storage, layout)?);
        Ok((T::to_cpu_storage_owned(out), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        let grad = grad_res.contiguous()?;
        let out = self.apply(&view::<T>(OP, &grad)?);
        Ok(Some(tensor(out, x.shape().clone())?))
    }
}
