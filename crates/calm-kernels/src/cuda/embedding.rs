//! Twin of `../embedding.rs` on `kernels/embedding.cu` and `kernels/sort.cu`.
//!
//! The ids stay on the GPU: one that is outside the table is no error here, its row is NaN.

use super::driver::failed;
use super::gradients::gradient_of;
use super::{Element, Gpu, Launch, view};
use crate::Operand;
use crate::nary::{Operator, apply};
use crate::storage::error;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, CudaViewMut};
use candle_core::{CudaStorage, DType, Result, Shape, Tensor};
use half::bf16;

const OP: &str = "embedding";
/// Keys that the sort keeps in shared memory; the smallest number it can sort.
const SORT_TILE: usize = 1024;
/// Sorted places of one tile of the backward pass.
const TILE: usize = 64;

/// Rows of type `dtype` of table `[V, D]` for ids (U32, any shape), checked by the caller.
pub(crate) fn embedding(
    ids: &Tensor,
    table: &dyn Operand,
    frozen_row: Option<u32>,
    dtype: DType,
) -> Result<Tensor> {
    apply(Embedding { frozen_row, dtype }, &[table, ids])
}

struct Embedding {
    frozen_row: Option<u32>,
    dtype: DType,
}

/// A size in the kernels' type.
fn size(count: usize) -> Result<u32> {
    u32::try_from(count).map_err(|_| error(OP, format_args!("{count} is too much for one lookup")))
}

/// `[count, D]` in type T of a table in type F.
fn gather<F: Element, T: Element>(
    gpu: &Gpu,
    kernel: &str,
    ids: &CudaView<'_, u32>,
    table: &CudaView<'_, F>,
    (v, d): (usize, usize),
) -> Result<CudaSlice<T>> {
    let mut out = gpu.empty::<T>(ids.len() * d)?;
    let (launch, count) = (Launch::cells(ids.len(), d), ids.len() as u64);
    launch!(gpu, EMBEDDING, kernel, launch, ids, table, &mut out, &count, &size(d)?, &size(v)?);
    Ok(out)
}

/// Keys id·2³² + place in order, the network of `kernels/sort.cu`; larger ones follow the first `ids.len()`.
fn sorted(gpu: &Gpu, ids: &CudaView<'_, u32>) -> Result<CudaSlice<u64>> {
    let padded = ids.len().next_power_of_two().max(SORT_TILE);
    let (count, all) = (size(ids.len())?, size(padded)?);
    let mut keys = gpu.raw::<u64>(padded)?;
    launch!(gpu, SORT, "sort_keys", Launch::elements(padded), ids, &mut keys, &count, &all);
    let tiles = Launch::of(padded / SORT_TILE, 1, 256);
    let tile = SORT_TILE as u32;
    launch!(gpu, SORT, "sort_tiles", tiles, &mut keys, &all, &2u32, &tile);
    let mut k = 2 * tile;
    while k <= all {
        let mut j = k / 2;
        while j >= tile {
            launch!(gpu, SORT, "sort_step", Launch::elements(padded / 2), &mut keys, &all, &k, &j);
            j /= 2;
        }
        launch!(gpu, SORT, "sort_tiles", tiles, &mut keys, &all, &k, &k);
        // Ends the loop behind 2³¹ keys.
        k = k.saturating_mul(2);
    }
    Ok(keys)
}

/// Writes the gradient of the table `[V, D]`, or adds it.
fn scatter<T: Element>(
    gpu: &Gpu,
    ids: &CudaView<'_, u32>,
    dout: &CudaView<'_, T>,
    into: &mut CudaViewMut<'_, f32>,
    accumulate: bool,
    (v, d, frozen): (usize, usize, Option<u32>),
) -> Result<()> {
    if v * d == 0 {
        return Ok(());
    }
    if ids.is_empty() {
        return if accumulate { Ok(()) } else { gpu.stream().memset_zeros(into).map_err(failed) };
    }
    let keys = sorted(gpu, ids)?;
    let (count, v_count, width) = (size(ids.len())?, size(v)?, size(d)?);
    let mut first = gpu.raw::<u32>(v + 1)?;
    launch!(gpu, EMBEDDING, "embedding_first", Launch::elements(v + 1), &keys, &mut first, &count, &v_count);
    let tiles = ids.len().div_ceil(TILE);
    let mut parts = gpu.empty::<f32>(tiles * 2 * d)?;
    let (launch, kernel) = (Launch::cells(2 * tiles, d), format!("embedding_parts_{}", T::SUFFIX));
    launch!(gpu, EMBEDDING, kernel, launch, &keys, &first, dout, &mut parts, &count, &width, &v_count);
    let (frozen, accumulate) = (frozen.unwrap_or(u32::MAX), u32::from(accumulate));
    let (launch, kernel) = (Launch::cells(v, d), format!("embedding_backward_{}", T::SUFFIX));
    launch!(
        gpu,
        EMBEDDING,
        kernel,
        launch,
        &keys,
        &first,
        dout,
        &parts,
        into,
        &v_count,
        &width,
        &frozen,
        &accumulate
    );
    Ok(())
}

impl Operator<Gpu> for Embedding {
    const NAME: &'static str = OP;

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (table, sizes) = (&inputs[0], inputs[0].dims2()?);
        let mut dims = inputs[1].dims().to_vec();
        dims.push(sizes.1);
        let ids = view::<u32>(OP, &inputs[1])?;
        let storage = match (table.dtype(), self.dtype) {
            (DType::F32, DType::BF16) => {
                let table = view::<f32>(OP, table)?;
                let kernel = "embedding_f32_bf16";
                gpu.storage(gather::<f32, bf16>(gpu, kernel, &ids.get(), &table.get(), sizes)?)
            }
            (of_table, dtype) if of_table == dtype => with_element!(OP, dtype, T => {
                let kernel = format!("embedding_{}", T::SUFFIX);
                let table = view::<T>(OP, table)?;
                Ok(gpu.storage(gather::<T, T>(gpu, &kernel, &ids.get(), &table.get(), sizes)?))
            })?,
            (of_table, dtype) => {
                return Err(error(OP, format_args!("a table of {of_table:?} has no rows of {dtype:?}")));
            }
        };
        Ok((storage, Shape::from(dims)))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        _output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let (v, d) = inputs[0].dims2()?;
        let ids = view::<u32>(OP, &inputs[1])?;
        with_element!(OP, grad.dtype(), T => {
            let dout = view::<T>(OP, grad)?;
            let gradient = gradient_of(gpu, &inputs[0], |into, accumulate| {
                scatter(gpu, &ids.get(), &dout.get(), into, accumulate, (v, d, self.frozen_row))
            })?;
            Ok(vec![gradient, None])
        })
    }
}
