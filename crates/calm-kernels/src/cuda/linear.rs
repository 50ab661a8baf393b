//! Twin of `../linear.rs`: products by cuBLAS, the bias by `kernels/linear.cu`.

use super::buffer::put;
use super::copies::weight;
use super::gradients::gradient_of;
use super::matrix::{Mat, matmul, product};
use super::{Element, Gpu, rows, view};
use crate::Operand;
use crate::nary::{Operator, apply};
use candle_core::cuda_backend::cudarc::driver::{CudaSlice, CudaView};
use candle_core::{CudaStorage, Result, Shape, Tensor};

/// x `[.., I]`, w `[O, I]`, b `[O]`, checked by the caller.
pub(crate) fn linear(x: &Tensor, w: &dyn Operand, b: Option<&dyn Operand>) -> Result<Tensor> {
    match b {
        Some(b) => apply(Linear, &[x, w, b]),
        None => apply(Linear, &[x, w]),
    }
}

struct Linear;

/// Number of rows R, inputs I and outputs O.
fn sizes(x: &Tensor, w: &Tensor) -> Result<(usize, usize, usize)> {
    let (outputs, inputs) = w.dims2()?;
    let leading: usize = x.dims()[..x.rank() - 1].iter().product();
    Ok((leading, inputs, outputs))
}

/// y `[R, O]`. The product is added to rows that hold the bias: as much memory moves as in a pass that adds the
/// bias, and a sum in bf16 is rounded once.
pub(super) fn forward<T: Element>(
    gpu: &Gpu,
    x: &CudaView<'_, T>,
    w: &CudaView<'_, T>,
    b: Option<&CudaView<'_, T>>,
    (r, i, o): (usize, usize, usize),
) -> Result<CudaSlice<T>> {
    let (x, w) = (Mat::new(x.slice(..), r, i), Mat::new(w.slice(..), o, i));
    let Some(b) = b else {
        return product(gpu, &x, &w.t());
    };
    let mut y = rows::repeat(gpu, b, r)?;
    matmul(gpu, &mut y.as_view_mut(), o, &x, &w.t(), true)?;
    Ok(y)
}

impl Operator<Gpu> for Linear {
    const NAME: &'static str = "linear";

    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)> {
        let sizes = sizes(&inputs[0], &inputs[1])?;
        let mut dims = inputs[0].dims().to_vec();
        if let Some(last) = dims.last_mut() {
            *last = sizes.2;
        }
        with_element!(Self::NAME, inputs[0].dtype(), T => {
            let (x, w) = (view::<T>(Self::NAME, &inputs[0])?, weight::<T>(gpu, Self::NAME, &inputs[1])?);
            let b = inputs.get(2).map(|b| weight::<T>(gpu, Self::NAME, b)).transpose()?;
            let b = b.as_ref().map(|b| b.get());
            let y = forward(gpu, &x.get(), &w.get(), b.as_ref(), sizes)?;
            Ok((gpu.storage(y), Shape::from(dims)))
        })
    }

    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        _output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>> {
        let (r, i, o) = sizes(&inputs[0], &inputs[1])?;
        with_element!(Self::NAME, grad.dtype(), T => {
            let (x, dy_) = (view::<T>(Self::NAME, &inputs[0])?, view::<T>(Self::NAME, grad)?);
            let dy = Mat::new(dy_.get(), r, o);
            let dx = if inputs[0].track_op() {
                let w = weight::<T>(gpu, Self::NAME, &inputs[1])?;
                Some(gpu.tensor(product(gpu, &dy, &Mat::new(w.get(), o, i))?, inputs[0].shape())?)
            } else {
                None
            };
            let dw = gradient_of(gpu, &inputs[1], |into, accumulate| {
                matmul(gpu, into, i, &dy.t(), &Mat::new(x.get(), r, i), accumulate)
            })?;
            let mut all = vec![dx, dw];
            if let Some(b) = inputs.get(2) {
                all.push(gradient_of(gpu, b, |into, accumulate| {
                    put(gpu, into, &rows::column_sums(gpu, &dy_.get(), o)?, accumulate)
                })?);
            }
            Ok(all)
        })
    }
}
