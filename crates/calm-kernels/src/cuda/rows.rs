//! What operators over rows share: launches of kernels that take several threads a row, and sums over rows in
//! a fixed order (`kernels/column_sums.cu`).

use super::driver::failed;
use super::{Element, Gpu, Launch};
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};

/// Threads of a block, and those that share a row.
const THREADS: u32 = 256;
const LANES: u32 = 16;

/// A launch of a kernel that takes [`LANES`] threads a row.
pub(super) fn launch(rows: usize) -> Launch {
    Launch::of(rows, (THREADS / LANES) as usize, THREADS)
}

/// A launch of a kernel that takes a warp a row (`kernels/rows.cuh`).
pub(super) fn warps(rows: usize) -> Launch {
    Launch::of(rows, (THREADS / 32) as usize, THREADS)
}

/// How a sum over rows is cut.
#[derive(Clone, Copy)]
pub(super) struct Parts {
    /// Rows of one part.
    pub(super) rows_each: u32,
    /// Launch of the kernel that sums each part.
    pub(super) launch: Launch,
}

/// Sums `[columns]` over rows: `parts(partial, cut)` leaves `[parts, columns]`, which are added in a fixed order. The
/// cut depends on the shape alone, so sums do not depend on the card.
pub(super) fn sum(
    gpu: &Gpu,
    rows: usize,
    columns: usize,
    parts: impl FnOnce(&mut CudaSlice<f32>, Parts) -> Result<()>,
) -> Result<CudaSlice<f32>> {
    if rows * columns == 0 {
        return gpu.zeros::<f32>(columns);
    }
    // At most 512 parts, of at least 32 rows: enough threads to keep memory busy, and few bytes beside the rows'.
    let rows_each = rows.div_ceil(512).max(32);
    let count = rows.div_ceil(rows_each);
    let mut partial = gpu.empty::<f32>(count * columns)?;
    parts(&mut partial, Parts { rows_each: rows_each as u32, launch: Launch::cells(count, columns) })?;
    let mut out = gpu.empty::<f32>(columns)?;
    // Four columns take LANES threads; small blocks, so that more multiprocessors have one.
    let launch = Launch::of(columns.div_ceil(4), 4, 4 * LANES);
    launch!(gpu, COLUMN_SUMS, "sum_parts", launch, &partial, &mut out, &(count as u32), &(columns as u32));
    Ok(out)
}

/// A copy of `x`.
pub(super) fn copy<T: Element>(gpu: &Gpu, x: &CudaView<'_, T>) -> Result<CudaSlice<T>> {
    let mut out = gpu.empty::<T>(x.len())?;
    if !x.is_empty() {
        gpu.stream().memcpy_dtod(x, &mut out.slice_mut(..x.len())).map_err(failed)?;
    }
    Ok(out)
}

/// `[rows, D]`, each a copy of `row` `[D]`.
pub(super) fn repeat<T: Element>(gpu: &Gpu, row: &CudaView<'_, T>, rows: usize) -> Result<CudaSlice<T>> {
    let d = row.len();
    let mut out = gpu.empty::<T>(rows * d)?;
    let kernel = format!("repeat_row_{}", T::SUFFIX);
    launch!(gpu, LINEAR, kernel, Launch::cells(rows, d), row, &mut out, &(rows as u64), &(d as u32));
    Ok(out)
}

/// x_i += y_i for the elements of y.
pub(super) fn add_to<T: Element>(gpu: &Gpu, x: &mut CudaSlice<T>, y: &CudaView<'_, T>) -> Result<()> {
    let kernel = format!("add_{}", T::SUFFIX);
    launch!(gpu, CAST, kernel, Launch::elements(y.len()), y, x, &(y.len() as u64));
    Ok(())
}

/// x + y of as many elements.
pub(super) fn sum_of<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    y: &CudaView<'_, T>,
) -> Result<CudaSlice<T>> {
    let mut out = gpu.empty::<T>(x.len())?;
    let kernel = format!("sum_{}", T::SUFFIX);
    launch!(gpu, CAST, kernel, Launch::elements(x.len()), x, y, &mut out, &(x.len() as u64));
    Ok(out)
}

/// Σ over the rows of x `[rows, columns]`.
pub(super) fn column_sums<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    columns: usize,
) -> Result<CudaSlice<f32>> {
    let rows = x.len() / columns.max(1);
    sum(gpu, rows, columns, |partial, Parts { rows_each, launch }| {
        let kernel = format!("column_parts_{}", T::SUFFIX);
        launch!(gpu, COLUMN_SUMS, kernel, launch, x, partial, &(rows as u32), &(columns as u32), &rows_each);
        Ok(())
    })
}
