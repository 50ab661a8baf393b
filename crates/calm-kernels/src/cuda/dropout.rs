//! Twin of `../dropout.rs` on `kernels/dropout.cu`: the mask is drawn where it is used, again for the
//! gradient.

use super::{Element, Gpu, Launch, view};
use crate::Operand;
use crate::nary::{Operator, apply};
use crate::philox::{NoiseKey, RowId};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaStorage, Result, Shape, Tensor};
use std::sync::Arc;

/// x `[.., D]` with a row address for each D, checked by the caller.
pub(crate) fn drawn(x: &dyn Operand, p: f64, key: NoiseKey, rows: &[RowId]) -> Result<Tensor> {
    let gpu = Gpu::of(Dropout::NAME, x)?;
    apply(Dropout { key, count: rows.len(), rows: gpu.shared(rows)?, p }, &[x])
}

struct Dropout {
    key: NoiseKey,
    /// Addresses of `count` rows.
    rows: Arc<CudaSlice<RowId>>,
    count: usize,
    p: f64,
}

impl Dropout {
    /// x·mask
    fn run<T: Element>(&self, gpu: &Gpu, x: &CudaView<'_, T>) -> Result<CudaSlice<T>> {
        let d = x.len() / self.count.max(1);
        let mut y = gpu.empty::<T>(x.len())?;
        let (launch, kernel) = (Launch::cells(self.count, d.div_ceil(4)), format!("dropout_{}", T::SUFFIX));
        let (r, d, p, keep) = (self.count as u32, d as u32, self.p as f32, (1.0 / (1.0 - self.p)) as f32);
        launch!(gpu, DROPOUT, kernel, launch, x, &self.key, &*self.rows, &mut y, &r, &d, &p, &keep);
        Ok(y)
    }
}

impl Operator<Gpu> for Dropout {
    const NAME: &'static str = "dropout";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let y = self.run(gpu, &view::<T>(Self::NAME, &inputs[0])?.get())?;
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
        with_element!(Self::NAME, grad.dtype(), T => {
            let dx = self.run(gpu, &view::<T>(Self::NAME, grad)?.get())?;
            Ok(vec![Some(gpu.tensor(dx, inputs[0].shape())?)])
        })
    }
}
