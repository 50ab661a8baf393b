//! Launches of `kernels/energy_block.cu` and `kernels/layer_norm.cu` for the energy block on [`super::backend`].

use super::gpu::address;
use super::rows::{self, Parts};
use super::{Element, Gpu, Launch};
use candle_core::Result;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};

/// What the backward pass of the norm leaves.
pub(super) struct NormGradients<T> {
    /// With the residual's gradient added, `[rows, D]`.
    pub(super) dx: CudaSlice<T>,
    /// The norm's value again, `[rows, D]`, where it is wanted.
    pub(super) y: Option<CudaSlice<T>>,
    /// dw, then db `[2, D]`, where they are wanted.
    pub(super) sums: Option<CudaSlice<f32>>,
}

/// Of x `[rows, D]` from dy and the `residual`'s gradient.
#[allow(clippy::too_many_arguments, reason = "one kernel's")]
pub(super) fn norm_backward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    [w, b]: [&CudaView<'_, T>; 2],
    dy: &CudaSlice<T>,
    residual: &CudaView<'_, T>,
    rows: usize,
    eps: f64,
    [with_y, with_sums]: [bool; 2],
) -> Result<NormGradients<T>> {
    let d = w.len();
    let mut dx = gpu.empty::<T>(x.len())?;
    let y = with_y.then(|| gpu.empty::<T>(x.len())).transpose()?;
    let mut statistics = gpu.empty::<f32>(2 * rows)?;
    let (r, width, eps) = (rows as u32, d as u32, eps as f32);
    if rows > 0 {
        let to_y = address(gpu, y.as_ref());
        launch!(
            gpu,
            LAYER_NORM,
            format!("layer_norm_residual_backward_{}", T::SUFFIX),
            rows::warps(rows),
            x,
            w,
            b,
            dy,
            residual,
            &mut dx,
            &to_y,
            &mut statistics,
            &r,
            &width,
            &eps,
        );
    }
    let sums = || {
        rows::sum(gpu, rows, 2 * d, |partial, Parts { rows_each, launch }| {
            let kernel = format!("layer_norm_weight_parts_{}", T::SUFFIX);
            launch!(gpu, LAYER_NORM, kernel, launch, x, dy, &statistics, partial, &r, &width, &rows_each);
            Ok(())
        })
    };
    Ok(NormGradients { sums: with_sums.then(sums).transpose()?, dx, y })
}

/// silu(x + (shared + bias)) of x `[R, N, D]`, shared `[R, D]`, bias `[D]`.
pub(super) fn bias_silu<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    shared: Option<&CudaView<'_, T>>,
    bias: &CudaView<'_, T>,
    [r, n, d]: [usize; 3],
) -> Result<CudaSlice<T>> {
    let mut y = gpu.empty::<T>(r * n * d)?;
    if r * n * d > 0 {
        let (kernel, launch) = (format!("bias_silu_{}", T::SUFFIX), Launch::cells(r * n, d));
        let (shared, sizes) = (address(gpu, shared), [r, n, d].map(|x| x as u32));
        launch!(gpu, ENERGY_BLOCK, kernel, launch, x, &shared, bias, &mut y, &sizes[0], &sizes[1], &sizes[2],);
    }
    Ok(y)
}

/// What the backward pass of an activation leaves.
pub(super) struct Gradients<T, S> {
    /// Like the activation's input.
    pub(super) dx: CudaSlice<T>,
    /// The activation's value again, where it is wanted.
    pub(super) y: Option<CudaSlice<T>>,
    /// Of what is shared: `[R, D]` of a shared term, or the sums over rows for a bias.
    pub(super) shared: S,
}

/// Of [`bias_silu`] with a shared term.
#[allow(clippy::too_many_arguments, reason = "one kernel's")]
pub(super) fn shared_bias_silu_backward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    shared: &CudaView<'_, T>,
    bias: &CudaView<'_, T>,
    dy: &CudaSlice<T>,
    [r, n, d]: [usize; 3],
    with_y: bool,
) -> Result<Gradients<T, CudaSlice<T>>> {
    let mut dx = gpu.empty::<T>(r * n * d)?;
    let y = with_y.then(|| gpu.empty::<T>(r * n * d)).transpose()?;
    let mut dshared = gpu.empty::<T>(r * d)?;
    if r * d > 0 {
        let (to_y, sizes) = (address(gpu, y.as_ref()), [r, n, d].map(|x| x as u32));
        launch!(
            gpu,
            ENERGY_BLOCK,
            format!("shared_bias_silu_backward_{}", T::SUFFIX),
            Launch::cells(r, d),
            x,
            shared,
            bias,
            dy,
            &mut dx,
            &mut dshared,
            &to_y,
            &sizes[0],
            &sizes[1],
            &sizes[2],
        );
    }
    Ok(Gradients { dx, y, shared: dshared })
}

/// Of [`bias_silu`] without a shared term, and of [`bias_swiglu`]: `kernel` takes x `[rows, D]` (`[rows, 2 D]` of
/// the gate) and dy `[rows, D]`; the bias is as wide as x.
fn bias_backward<T: Element>(
    gpu: &Gpu,
    kernel: &str,
    x: &CudaView<'_, T>,
    bias: &CudaView<'_, T>,
    dy: &CudaSlice<T>,
    [rows, d]: [usize; 2],
    with_y: bool,
) -> Result<Gradients<T, CudaSlice<f32>>> {
    let width = bias.len();
    let mut dx = gpu.empty::<T>(rows * width)?;
    let y = with_y.then(|| gpu.empty::<T>(rows * d)).transpose()?;
    let shared = rows::sum(gpu, rows, width, |partial, Parts { rows_each, launch }| {
        let (kernel, to_y) = (format!("{kernel}_{}", T::SUFFIX), address(gpu, y.as_ref()));
        let (r, d) = (rows as u32, d as u32);
        launch!(gpu, ENERGY_BLOCK, kernel, launch, x, bias, dy, &mut dx, &to_y, partial, &r, &d, &rows_each,);
        Ok(())
    })?;
    Ok(Gradients { dx, y, shared })
}

/// Of [`bias_silu`] without a shared term.
pub(super) fn bias_silu_backward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    bias: &CudaView<'_, T>,
    dy: &CudaSlice<T>,
    sizes: [usize; 2],
    with_y: bool,
) -> Result<Gradients<T, CudaSlice<f32>>> {
    bias_backward(gpu, "bias_silu_backward", x, bias, dy, sizes, with_y)
}

/// silu(g + b_g)·(u + b_u) `[rows, D]` of [g | u] `[rows, 2 D]` and the bias [b_g | b_u].
pub(super) fn bias_swiglu<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    bias: &CudaView<'_, T>,
    [rows, d]: [usize; 2],
) -> Result<CudaSlice<T>> {
    let mut y = gpu.empty::<T>(rows * d)?;
    if rows * d > 0 {
        let (kernel, launch) = (format!("bias_swiglu_{}", T::SUFFIX), Launch::cells(rows, d));
        launch!(gpu, ENERGY_BLOCK, kernel, launch, x, bias, &mut y, &(rows as u64), &(d as u32));
    }
    Ok(y)
}

/// Of [`bias_swiglu`].
pub(super) fn bias_swiglu_backward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    bias: &CudaView<'_, T>,
    dy: &CudaSlice<T>,
    sizes: [usize; 2],
    with_y: bool,
) -> Result<Gradients<T, CudaSlice<f32>>> {
    bias_backward(gpu, "bias_swiglu_backward", x, bias, dy, sizes, with_y)
}

/// x + bias, x `[rows, D]`.
pub(super) fn add_bias<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    bias: &CudaView<'_, T>,
    [rows, d]: [usize; 2],
) -> Result<CudaSlice<T>> {
    let mut y = gpu.empty::<T>(rows * d)?;
    if rows * d > 0 {
        let (kernel, launch) = (format!("add_bias_{}", T::SUFFIX), Launch::cells(rows, d));
        launch!(gpu, ENERGY_BLOCK, kernel, launch, x, bias, &mut y, &(rows as u64), &(d as u32));
    }
    Ok(y)
}
