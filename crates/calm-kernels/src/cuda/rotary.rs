//! Twin of `../rotary.rs` on `kernels/rotary.cu`.

use super::turns::Turns;
use super::{Gpu, view};
use crate::Operand;
use crate::nary::{Operator, apply};
use candle_core::{CudaStorage, Result, Shape, Tensor};

const OP: &str = "rotary";

/// x `[B, S, H, Dh]`, positions U32 `[B, S]`, checked by the caller.
pub(crate) fn rotary(x: &dyn Operand, positions: &Tensor, theta: f64) -> Result<Tensor> {
    let gpu = Gpu::of(OP, x)?;
    let turns = Turns::new(&gpu, OP, positions, x.tensor().dim(3)?, theta)?;
    apply(Rotary { turns }, &[x])
}

struct Rotary {
    turns: Turns,
}

impl Operator<Gpu> for Rotary {
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
