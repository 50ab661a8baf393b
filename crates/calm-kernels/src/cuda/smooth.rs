//! Twin of `../smooth.rs` on `kernels/smooth.cu`.

use super::rows::warps;
use super::{Gpu, Launch, view};
use crate::nary::{Operator, apply};
use candle_core::{CudaStorage, Result, Shape, Tensor};

/// z `[B, M, D]`, p and documents `[B, M]`, checked by the caller.
pub(crate) fn smooth(z: &Tensor, p: &Tensor, documents: &Tensor) -> Result<Tensor> {
    apply(Smooth, &[z, p, documents])
}

struct Smooth;

impl Operator<Gpu> for Smooth {
    const NAME: &'static str = "smooth";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let (b, m, d) = inputs[0].dims3()?;
        let (p, documents) = (view::<f32>(Self::NAME, &inputs[1])?, view::<u32>(Self::NAME, &inputs[2])?);
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let z = view::<T>(Self::NAME, &inputs[0])?;
            let mut y = gpu.empty::<T>(b * m * d)?;
            let kernel = format!("smooth_{}", <T as super::Element>::SUFFIX);
            let (z, p, documents, launch) = (z.get(), p.get(), documents.get(), Launch::cells(b, d));
            launch!(gpu, SMOOTH, kernel, launch, &z, &p, &documents, &mut y, &(b as u32), &(m as u32), &(d as u32));
            Ok((gpu.storage(y), inputs[0].shape().clone()))
        })
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let (b, m, d) = inputs[0].dims3()?;
        let (p, documents) = (view::<f32>(Self::NAME, &inputs[1])?, view::<u32>(Self::NAME, &inputs[2])?);
        with_element!(Self::NAME, grad.dtype(), T => {
            let (z, y) = (view::<T>(Self::NAME, &inputs[0])?, view::<T>(Self::NAME, output)?);
            let dy = view::<T>(Self::NAME, grad)?;
            let (z, y, dy, p, documents) = (z.get(), y.get(), dy.get(), p.get(), documents.get());
            let mut g = gpu.empty::<f32>(b * m * d)?;
            let (mut dz, mut dp) = (gpu.empty::<T>(b * m * d)?, gpu.empty::<f32>(b * m)?);
            let (rows, steps, width) = (b as u32, m as u32, d as u32);
            let (kernel, launch) = (format!("smooth_slopes_{}", <T as super::Element>::SUFFIX), Launch::cells(b, d));
            launch!(gpu, SMOOTH, kernel, launch, &dy, &p, &documents, &mut g, &rows, &steps, &width);
            let (kernel, launch) = (format!("smooth_backward_{}", <T as super::Element>::SUFFIX), warps(b * m));
            launch!(
                gpu, SMOOTH, kernel, launch, &z, &p, &documents, &y, &g, &mut dz, &mut dp, &rows, &steps, &width
            );
            Ok(vec![
                Some(gpu.tensor(dz, inputs[0].shape())?),
                Some(gpu.tensor(dp, inputs[1].shape())?),
                None,
            ])
        })
    }
}
