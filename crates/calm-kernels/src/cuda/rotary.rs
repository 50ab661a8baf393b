//! Twin of `../rotary.rs` on `kernels/rotary.cu`.

use super::operator::{Operator, apply};
use super::{Element, Gpu, Launch, view};
use crate::rotary::frequencies;
use crate::storage::error;
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaStorage, Result, Shape, Tensor};

const OP: &str = "rotary";

/// x `[B, S, H, Dh]`, positions U32 `[B, S]`, checked by the caller.
pub(crate) fn rotary(x: &Tensor, positions: &Tensor, theta: f64) -> Result<Tensor> {
    let gpu = Gpu::of(OP, x)?;
    let turns = Turns::new(&gpu, positions, x.dim(3)?, theta)?;
    apply(Rotary { turns }, &[x])
}

/// Cosines and sines for the positions of a batch, `[B·S, 2, Dh/2]`. They are computed on the GPU, for any
/// position, from the frequencies of the CPU and in double precision as there.
pub(super) struct Turns {
    table: CudaSlice<f32>,
    half: usize,
}

impl Turns {
    /// For positions `[B, S]` and heads of `size` numbers.
    pub(super) fn new(gpu: &Gpu, positions: &Tensor, size: usize, theta: f64) -> Result<Self> {
        if !positions.device().same_device(&gpu.device()) {
            return Err(error(
                OP,
                format_args!("the positions are on {:?}, the heads on a GPU", positions.device().location()),
            ));
        }
        let positions = positions.contiguous()?;
        let (rows, half) = (positions.elem_count(), size / 2);
        let positions = view::<u32>(OP, &positions)?;
        let frequency = gpu.shared(&frequencies(half, theta))?;
        let mut table = gpu.empty::<f32>(rows * 2 * half)?;
        let (launch, positions) = (Launch::cells(rows, half), positions.get());
        let sizes = (rows as u64, half as u32);
        launch!(gpu, ROTARY, "rotary_turns", launch, &positions, &*frequency, &mut table, &sizes.0, &sizes.1);
        Ok(Self { table, half })
    }

    /// x `[B, S, H, Dh]`, rotated, or rotated back.
    pub(super) fn rotate<T: Element>(
        &self,
        gpu: &Gpu,
        x: &CudaView<'_, T>,
        heads: usize,
        back: bool,
    ) -> Result<CudaSlice<T>> {
        let row = heads * 2 * self.half;
        let rows = x.len() / row.max(1);
        let mut y = gpu.empty::<T>(x.len())?;
        let (launch, kernel) = (Launch::cells(rows, row / 2), format!("rotary_{}", T::SUFFIX));
        // Without an index, row i of x has row i of the table.
        let (index, sign) = (0u64, if back { -1.0f32 } else { 1.0 });
        let (r, h, dh) = (rows as u64, heads as u32, 2 * self.half as u32);
        launch!(gpu, ROTARY, kernel, launch, x, &index, &self.table, &mut y, &r, &h, &dh, &sign);
        Ok(y)
    }
}

struct Rotary {
    turns: Turns,
}

impl Operator for Rotary {
    const NAME: &'static str = OP;

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let heads = inputs[0].dim(2)?;
        with_element!(OP, inputs[0].dtype(), T => {
            let y = self.turns.rotate(gpu, &view::<T>(OP, &inputs[0])?.get(), heads, false)?;
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
        let heads = inputs[0].dim(2)?;
        with_element!(OP, grad.dtype(), T => {
            let dx = self.turns.rotate(gpu, &view::<T>(OP, grad)?.get(), heads, true)?;
            Ok(vec![Some(gpu.tensor(dx, inputs[0].shape())?)])
        })
    }
}
