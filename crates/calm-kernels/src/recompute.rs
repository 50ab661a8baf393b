//! Part of a model whose activations are computed again in the backward pass, so that only its input is kept
//! (Chen et al. 2016, "Training deep nets with sublinear memory cost").

use crate::collector::Collector;
use crate::context::Context;
use crate::storage::error;
use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Result, Shape, Storage, Tensor, Var};

const OP: &str = "recomputed";

/// `f(x)`, differentiable in x and in the parameters that `f` uses, which are those of `context`: the backward pass
/// must run through a [`crate::FlatGradients`] of theirs; others are constants to it. `f` must give the same for
/// the same x: noise from counters does.
///
/// # Errors
/// Those of `f`; a backward pass that does not run through a buffer of `context`.
pub fn recomputed(
    context: &Context,
    x: &Tensor,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if !x.track_op() {
        return f(x);
    }
    let x = x.contiguous()?;
    x.apply_op1(Recomputed { context: context.clone(), x: x.detach(), f })
}

struct Recomputed<F> {
    context: Context,
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
        // Operators have left most of them in the buffer; those of candle's own operators are here.
        Collector::of(&self.context).add_from(&grads)?;
        if dx.is_none() {
            return Err(error(OP, "no gradient reaches the input of a part that is computed again"));
        }
        Ok(dx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FlatGradients, Parameter, mlp_block};
    use candle_core::Device;

    fn var(shape: &[usize], seed: u64) -> Var {
        let rows = [crate::RowId { example: 0, position: 0 }];
        let values =
            crate::philox::normal(crate::NoiseKey::new(seed, "t", 0), &rows, 1, shape.iter().product());
        Var::from_vec(values, shape, &Device::Cpu).unwrap()
    }

    /// Of a context: norm, gate, up, down, and a factor that only an operator of candle's reads.
    fn parameters(context: &Context) -> Vec<Parameter> {
        let shapes: [&[usize]; 5] = [&[8], &[12, 8], &[12, 8], &[8, 12], &[8]];
        let of = |(i, shape)| context.parameter(var(shape, i as u64 + 2).into_inner()).unwrap();
        shapes.into_iter().enumerate().map(of).collect()
    }

    /// A part of a model, computed again in the backward pass or not.
    fn part(context: &Context, w: &[Parameter], x: &Tensor, again: bool) -> Result<Tensor> {
        let w = w.to_vec();
        let f = move |x: &Tensor| mlp_block(x, &w[0], [&w[1], &w[2], &w[3]], 1e-6)?.broadcast_mul(&w[4]);
        if again { recomputed(context, x, f) } else { f(x) }
    }

    #[test]
    fn gradients_are_those_of_the_part_itself_to_the_bit() {
        let context = Context::new(&Device::Cpu);
        let (x, w) = (var(&[5, 8], 1), parameters(&context));
        let mut all = Vec::new();
        for again in [false, true] {
            let mut flat = FlatGradients::new(&context, w.iter().map(|p| &**p)).unwrap();
            let inner = (x.as_tensor() * 2.0).unwrap();
            let y = part(&context, &w, &inner, again).unwrap();
            let grads = flat.collect(|| y.sqr()?.sum_all()?.backward()).unwrap();
            for (i, parameter) in w.iter().enumerate() {
                if let Some(gradient) = grads.get(parameter) {
                    flat.add(i, gradient).unwrap();
                }
            }
            assert!((0..w.len()).all(|i| flat.reached(i)));
            let dx = grads.get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            all.push((
                y.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                dx,
                flat.host_values().unwrap().to_vec(),
            ));
        }
        assert_eq!(all[0], all[1]);
    }

    #[test]
    fn a_pass_outside_of_a_bucket_is_an_error_and_leaves_no_gradient_out() {
        let context = Context::new(&Device::Cpu);
        let (x, w) = (var(&[5, 8], 1), parameters(&context));
        let loss = || part(&context, &w, &x, true)?.sqr()?.sum_all();
        let e = loss().unwrap().backward().unwrap_err().to_string();
        assert!(e.contains("bucket"), "{e}");
        let _flat = FlatGradients::new(&context, w.iter().map(|p| &**p)).unwrap();
        let e = loss().unwrap().backward().unwrap_err().to_string();
        assert!(e.contains("bucket"), "{e}");
    }
}
