//! Embedding lookup with a deterministic scatter-add as its backward pass.
//!
//! ```text
//! out_i = table[id_i],   dtable[v] = Σ_{i: id_i = v} dout_i   (in the order of i)
//! ```
//!
//! Backward: the positions are sorted by id (a counting sort), and fixed ranges of ids are summed in
//! parallel, each by one task, so that no two tasks write the same row.

use crate::collector::Home;
use crate::context::Operand;
use crate::gradients::gradient_of;
use crate::simd::{Real, rows_per_block};
use crate::storage::{error, expect_ids, ids, slice, view};
use crate::with_float;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CustomOp1, DType, Layout, Result, Shape, Tensor};
use rayon::prelude::*;

const OP: &str = "embedding";

struct Embedding {
    ids: Vec<u32>,
    dims: Vec<usize>,
    frozen_row: Option<u32>,
    home: Option<Home>,
}

/// Rows of `table` `[V, D]` for `ids` (U32, any shape): `[.., D]` of the table's type, f32 or f64 on the CPU, f32
/// or bf16 on a GPU.
///
/// Differentiable in `table`; `frozen_row` (a padding id) is looked up as any other and receives a
/// gradient of exactly 0. On a GPU, which nothing waits for here, an id that is not below V gives a row of
/// NaN and has no gradient.
///
/// # Errors
/// A table that is not a matrix, ids that are not U32 or, on the CPU, not below V.
pub fn embedding(ids: &Tensor, table: &dyn Operand, frozen_row: Option<u32>) -> Result<Tensor> {
    embedding_as(ids, table, frozen_row, table.tensor().dtype())
}

/// As [`embedding`], with rows of type `dtype`: the table's own, or on a GPU bf16 rows of an f32 table.
///
/// # Errors
/// As [`embedding`]; another type.
pub fn embedding_as(
    ids_tensor: &Tensor,
    weight: &dyn Operand,
    frozen_row: Option<u32>,
    dtype: DType,
) -> Result<Tensor> {
    let table = weight.tensor();
    let &[v, _] = table.dims() else {
        return Err(error(OP, format_args!("the table must be [V, D], got {:?}", table.dims())));
    };
    expect_ids(OP, ids_tensor)?;
    if let Some(row) = frozen_row.filter(|&row| row as usize >= v) {
        return Err(error(OP, format_args!("frozen row {row} is outside the table {:?}", table.dims())));
    }
    on_gpu!(table, crate::cuda::embedding::embedding(ids_tensor, weight, frozen_row, dtype));
    if dtype != table.dtype() {
        return Err(error(
            OP,
            format_args!("a table of {:?} has no rows of {dtype:?} on the CPU", table.dtype()),
        ));
    }
    let ids = ids(OP, ids_tensor)?;
    if let Some(at) = ids.iter().position(|&id| id as usize >= v) {
        return Err(error(
            OP,
            format_args!(
                "id {} at flat position {at} of {:?} is outside the table {:?}; are tokenizer and model a \
                 pair?",
                ids[at],
                ids_tensor.dims(),
                table.dims()
            ),
        ));
    }
    let home = Home::of(&[weight]);
    table.contiguous()?.apply_op1(Embedding { ids, dims: ids_tensor.dims().to_vec(), frozen_row, home })
}

impl Embedding {
    fn gather<T: Real>(&self, table: &[T], d: usize) -> Vec<T> {
        let mut out = vec![T::ZERO; self.ids.len() * d];
        if d > 0 {
            let rows = rows_per_block(d);
            out.par_chunks_mut(rows * d).zip(self.ids.par_chunks(rows)).for_each(|(out, ids)| {
                for (out, &id) in out.chunks_exact_mut(d).zip(ids) {
                    out.copy_from_slice(&table[id as usize * d..][..d]);
                }
            });
        }
        out
    }

    /// Writes the gradient of the table `[V, D]`, or adds it.
    fn scatter<T: Real>(&self, grad: &[T], out: &mut [T], accumulate: bool, v: usize, d: usize) {
        // first[id] .. first[id + 1] are the places of `id` in `positions`.
        let mut first = vec![0usize; v + 1];
        for &id in &self.ids {
            first[id as usize + 1] += 1;
        }
        for id in 0..v {
            first[id + 1] += first[id];
        }
        let mut next = first.clone();
        let mut positions = vec![0usize; self.ids.len()];
        for (at, &id) in self.ids.iter().enumerate() {
            positions[next[id as usize]] = at;
            next[id as usize] += 1;
        }
        if d > 0 {
            let rows = rows_per_block(d);
            out.par_chunks_mut(rows * d).enumerate().for_each(|(block, out)| {
                for (i, row) in out.chunks_exact_mut(d).enumerate() {
                    let id = block * rows + i;
                    if !accumulate {
                        row.fill(T::ZERO);
                    }
                    if self.frozen_row.is_some_and(|frozen| frozen as usize == id) {
                        continue;
                    }
                    for &at in &positions[first[id]..first[id + 1]] {
                        for (sum, &g) in row.iter_mut().zip(&grad[at * d..][..d]) {
                            *sum += g;
                        }
                    }
                }
            });
        }
    }
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (_, d) = layout.shape().dims2()?;
        let mut dims = self.dims.clone();
        dims.push(d);
        with_float!(OP, storage.dtype(), T => {
            let out = self.gather::<T>(slice(OP, storage, layout)?, d);
            Ok((<T as candle_core::WithDType>::to_cpu_storage_owned(out), Shape::from(dims)))
        })
    }

    fn bwd(&self, table: &Tensor, _res: &Tensor, grad_res: &Tensor) -> Result<Option<Tensor>> {
        let (v, d) = table.dims2()?;
        let grad = grad_res.contiguous()?;
        with_float!(OP, grad.dtype(), T => {
            let grad = view::<T>(OP, &grad)?;
            gradient_of(self.home.as_ref(), table, |out, accumulate| {
                self.scatter::<T>(&grad, out, accumulate, v, d);
            })
        })
    }
}
