//! Part of a model whose activations are computed again in the backward pass, so that only its input is kept
//! (Chen et al. 2016, "Training deep nets with sublinear memory cost").

use crate::storage::error;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, Var};

const OP: &str = "recomputed";

/// `f(x)`, differentiable in x and in the parameters that `f` uses; these must be collected by a
/// [`crate::FlatGradients`] in the backward pass. `f` must give the same for the same x: noise from counters
/// does.
///
/// # Errors
/// Those of `f`; in the backward pass, parameters that no buffer collects.
pub fn recomputed(
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() {
        return f(x);
    }
    let x = x.contiguous()?;
    x.apply_op1(Recomputed { x: x.detach(), f })
}

struct Recomputed<F> {
    x: Tensor,
    f: F,
}

impl<F: Fn(&Tensor) -> Result<Tensor>> Recomputed<F> {
    /// The output and its shape; what it leaves behind for a backward pass is dropped at once.
    fn forward(&self) -> Result<(Tensor, Shape)> {
        let out = (self.f)(&self.x)?.contiguous()?.detach();
        let shape = out.shape().clone();
        Ok((out, shape))
    }
}

impl<F: Fn(&Tensor) -> Result<Tensor> + Send + Sync> CustomOp1 for Recomputed<F> {
    fn name(&self) -> &'static str {
        OP
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        let (out, shape) = self.forward()?;
        let (storage, layout) = out.storage_and_layout();
        match &*storage {
            Storage::Cpu(storage) => Ok((storage.try_clone(layout)?, shape)),
            _ => Err(error(OP, "the output is on another device than the input")),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        let (out, shape) = self.forward()?;
        let (storage, layout) = out.storage_and_layout();
        match &*storage {
            Storage::Cuda(storage) => Ok((storage.try_clone(layout)?, shape)),
            _ => Err(error(OP, "the output is on another device than the input")),
        }
    }

    fn bwd(&self, x: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let x = Var::from_tensor(&x.detach())?;
        let out = (self.f)(x.as_tensor())?;
        // The gradient of this sum with respect to the output is `grad`.
        let mut grads = (out * grad.detach())?.sum_all()?.backward()?;
        let dx = grads.remove(x.as_tensor());
        if dx.is_none() {
            return Err(error(OP, "no gradient reaches the input of a part that is computed again"));
        }
        Ok(dx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FlatGradients, mlp_block};
    use candle_core::{DType, Device};

    #[test]
    fn gradients_are_those_of_the_part_itself_to_the_bit() {
        let var = |shape: &[usize], seed: u64| {
            let rows = [crate::RowId { example: 0, position: 0 }];
            let values =
                crate::philox::normal(crate::NoiseKey::new(seed, "t", 0), &rows, 1, shape.iter().product());
            Var::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let (x, norm) = (var(&[5, 8], 1), var(&[8], 2));
        let [gate, up, down] = [var(&[12, 8], 3), var(&[12, 8], 4), var(&[8, 12], 5)];
        let parameters = [&norm, &gate, &up, &down];
        let run = |again: bool| {
            let (n, w) = (norm.as_tensor().clone(), [&gate, &up, &down].map(|w| w.as_tensor().clone()));
            let f = move |x: &Tensor| mlp_block(x, &n, [&w[0], &w[1], &w[2]], 1e-6);
            let x = (x.as_tensor() * 2.0).unwrap();
            let y = if again { recomputed(&x, f) } else { f(&x) }.unwrap();
            (y.to_dtype(DType::F32).unwrap(), x)
        };
        let mut all = Vec::new();
        for again in [false, true] {
            let mut flat = FlatGradients::new(parameters.map(|p| p.as_tensor())).unwrap();
            let (y, _) = run(again);
            let grads = flat.collect(|| y.sqr().unwrap().sum_all().unwrap().backward()).unwrap();
            let dx = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            all.push((
                y.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                dx,
                flat.host_values().unwrap().to_vec(),
            ));
        }
        assert_eq!(all[0], all[1]);
    }
}
