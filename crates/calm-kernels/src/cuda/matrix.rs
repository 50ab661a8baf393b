//! Matrix products by cuBLAS on device memory, in the layouts that exist (no transposed copies).

use super::driver::failed;
use super::{Element, Gpu};
use crate::storage::error;
use candle_core::Result;
use candle_core::cuda_backend::cudarc::cublas::result::gemm_ex;
use candle_core::cuda_backend::cudarc::cublas::sys::{
    cublasComputeType_t, cublasGemmAlgo_t, cublasOperation_t,
};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView, CudaViewMut, DevicePtr, DevicePtrMut};
use std::ffi::c_void;

/// A matrix of `rows` by `columns`; its elements lie row by row with `stride` elements between rows, or, when
/// transposed, column by column.
pub(crate) struct Mat<'a, T> {
    data: CudaView<'a, T>,
    rows: usize,
    columns: usize,
    stride: usize,
    transposed: bool,
}

impl<'a, T> Mat<'a, T> {
    /// All rows one after the other.
    pub(crate) fn new(data: CudaView<'a, T>, rows: usize, columns: usize) -> Self {
        Self::strided(data, rows, columns, columns)
    }

    /// `stride` elements from a row to the next.
    pub(crate) fn strided(data: CudaView<'a, T>, rows: usize, columns: usize, stride: usize) -> Self {
        Self { data, rows, columns, stride, transposed: false }
    }

    /// The transposed matrix, the same memory.
    pub(crate) fn t(&self) -> Self {
        Self {
            data: self.data.slice(..),
            rows: self.columns,
            columns: self.rows,
            stride: self.stride,
            transposed: !self.transposed,
        }
    }

    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn columns(&self) -> usize {
        self.columns
    }

    /// Elements that its memory must have.
    fn span(&self) -> usize {
        let (outer, inner) =
            if self.transposed { (self.columns, self.rows) } else { (self.rows, self.columns) };
        if outer * inner == 0 { 0 } else { (outer - 1) * self.stride + inner }
    }
}

/// `dst = a·b`, or `dst += a·b`; dst has `stride` elements from a row to the next. Sums are in f32; where cuBLAS cuts
/// a long sum in parts, those may meet in the type of dst.
pub(crate) fn matmul<T: Element, D: Element>(
    gpu: &Gpu,
    dst: &mut CudaViewMut<'_, D>,
    stride: usize,
    a: &Mat<'_, T>,
    b: &Mat<'_, T>,
    accumulate: bool,
) -> Result<()> {
    let (m, k, n) = (a.rows, a.columns, b.columns);
    let needed = if m * n == 0 { 0 } else { (m - 1) * stride + n };
    if b.rows != k || a.data.len() < a.span() || b.data.len() < b.span() || dst.len() < needed || stride < n {
        return Err(error(
            "matmul",
            format_args!("[{m}, {k}] by [{}, {n}] into {} elements do not fit", b.rows, dst.len()),
        ));
    }
    if m * n == 0 {
        return Ok(());
    }
    let stream = gpu.stream();
    // cuBLAS works in the context of the calling thread.
    stream.context().bind_to_thread().map_err(failed)?;
    if k == 0 {
        // cuBLAS refuses matrices without columns.
        let (runs, run) = if stride == n { (1, m * n) } else { (m, n) };
        for i in (0..runs).filter(|_| !accumulate) {
            stream.memset_zeros(&mut dst.slice_mut(i * stride..i * stride + run)).map_err(failed)?;
        }
        return Ok(());
    }
    // cuBLAS works column by column: to it a matrix is its own transpose, and dstᵀ = bᵀ·aᵀ.
    let operation = |transposed| match transposed {
        true => cublasOperation_t::CUBLAS_OP_T,
        false => cublasOperation_t::CUBLAS_OP_N,
    };
    let size = |x: usize| i32::try_from(x).map_err(|_| error("matmul", "a matrix has too many rows"));
    let (alpha, beta) = (1.0f32, if accumulate { 1.0f32 } else { 0.0 });
    let blas = gpu.cuda().cublas_handle();
    let (a_memory, _a) = a.data.device_ptr(&stream);
    let (b_memory, _b) = b.data.device_ptr(&stream);
    let (dst_memory, _dst) = dst.device_ptr_mut(&stream);
    // SAFETY: the three memories have the elements that the sizes and strides speak of (checked above), alpha
    // and beta are f32 as the compute type asks, and the handle works on the stream that owns the memory.
    unsafe {
        gemm_ex(
            *blas.handle(),
            operation(b.transposed),
            operation(a.transposed),
            size(n)?,
            size(m)?,
            size(k)?,
            (&raw const alpha).cast::<c_void>(),
            b_memory as *const c_void,
            T::CUBLAS,
            size(b.stride)?,
            a_memory as *const c_void,
            T::CUBLAS,
            size(a.stride)?,
            (&raw const beta).cast::<c_void>(),
            dst_memory as *mut c_void,
            D::CUBLAS,
            size(stride)?,
            cublasComputeType_t::CUBLAS_COMPUTE_32F,
            cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
        )
    }
    .map_err(|e| error("matmul", format_args!("{e:?}")))
}

/// `a·b` in new memory.
pub(crate) fn product<T: Element>(gpu: &Gpu, a: &Mat<'_, T>, b: &Mat<'_, T>) -> Result<CudaSlice<T>> {
    let mut out = gpu.empty::<T>(a.rows * b.columns)?;
    matmul(gpu, &mut out.as_view_mut(), b.columns, a, b, false)?;
    Ok(out)
}
