//! Operators of any number of inputs in candle's autograd, whose own operators have three at most.
//!
//! Parameters that a [`crate::FlatGradients`] collects are left out of the graph as long as another input
//! leads to a variable: their gradients go into the buffer anyway. What remains are a few activations, which
//! are the operator's inputs. More than three (in tests, or without a buffer) go through a chain of links, as in
//! [`crate::nary`].

use super::Gpu;
use crate::storage::error;
use crate::{Context, Operand};
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Layout, Result, Shape, Tensor,
};
use std::sync::{Arc, Mutex, PoisonError};

/// What such an operator computes.
pub(crate) trait Operator: Send + Sync + 'static {
    /// Its name in errors.
    const NAME: &'static str;

    /// The output of contiguous inputs.
    fn forward(&self, gpu: &Gpu, inputs: &[Tensor]) -> Result<(CudaStorage, Shape)>;

    /// A gradient for each input; None where an input has none or where it went into the buffer of
    /// parameters. `output` is what `forward` gave; `grad` is contiguous.
    fn backward(
        &self,
        gpu: &Gpu,
        inputs: &[Tensor],
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>>;
}

struct Node<O> {
    operator: O,
    gpu: Gpu,
    inputs: Vec<Tensor>,
    /// Indices of the inputs that are in the graph.
    linked: Vec<usize>,
    /// For links, what the operator's backward pass has left.
    gradients: Mutex<Vec<Option<Tensor>>>,
}

/// The operator applied to `inputs`, differentiable in those that lead to a variable. Integer inputs may be
/// among them.
pub(crate) fn apply<O: Operator>(operator: O, inputs: &[&dyn Operand]) -> Result<Tensor> {
    let gpu = Gpu::of_all(O::NAME, inputs)?;
    let inputs = inputs.iter().map(|t| t.tensor().contiguous()).collect::<Result<Vec<_>>>()?;
    let tracked: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].track_op()).collect();
    if tracked.is_empty() {
        let (storage, shape) = operator.forward(&gpu, &inputs)?;
        return gpu.wrap(storage, shape);
    }
    let collected = |t: &Tensor| gpu.context().map(Context::gradients).is_some_and(|g| g.collects(t));
    let mut linked: Vec<usize> = tracked.iter().copied().filter(|&i| !collected(&inputs[i])).collect();
    if linked.is_empty() {
        linked.push(tracked[0]);
    }
    let node = Arc::new(Node { operator, gpu, inputs, linked, gradients: Mutex::default() });
    let input = |i: usize| node.inputs[node.linked[i]].clone();
    let finish = Direct(node.clone());
    match node.linked.len() {
        1 => input(0).apply_op1(finish),
        2 => input(0).apply_op2(&input(1), finish),
        3 => input(0).apply_op3(&input(1), &input(2), finish),
        count => {
            let mut chain = Tensor::zeros(1, DType::F32, &node.gpu.device())?;
            for i in 0..count {
                chain = chain.apply_op2(&input(i), Link { node: node.clone(), place: i })?;
            }
            chain.apply_op1(Finish(node))
        }
    }
}

impl<O: Operator> Node<O> {
    fn forward(&self) -> Result<(CudaStorage, Shape)> {
        self.operator.forward(&self.gpu, &self.inputs)
    }

    /// Gradients of the linked inputs.
    fn backward(&self, output: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut all = self.operator.backward(&self.gpu, &self.inputs, output, &grad.contiguous()?)?;
        if (0..all.len()).any(|i| all[i].is_some() && !self.linked.contains(&i)) {
            return Err(crate::gradients::bucket_gone());
        }
        Ok(self.linked.iter().map(|&i| all.get_mut(i).and_then(Option::take)).collect())
    }
}

/// What the CPU answers: these operators are made of tensors on a GPU.
fn no_cpu<O: Operator>() -> Result<(CpuStorage, Shape)> {
    Err(error(O::NAME, "expects tensors on a GPU"))
}

/// Up to three linked inputs.
struct Direct<O>(Arc<Node<O>>);

impl<O: Operator> CustomOp1 for Direct<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        no_cpu::<O>()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.forward()
    }

    fn bwd(&self, _: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.0.backward(res, grad)?.swap_remove(0))
    }
}

impl<O: Operator> CustomOp2 for Direct<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        no_cpu::<O>()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.forward()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut all = self.0.backward(res, grad)?.into_iter();
        Ok((all.next().flatten(), all.next().flatten()))
    }
}

impl<O: Operator> CustomOp3 for Direct<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        no_cpu::<O>()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        self.0.forward()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut all = self.0.backward(res, grad)?.into_iter();
        Ok((all.next().flatten(), all.next().flatten(), all.next().flatten()))
    }
}

/// One of many linked inputs; between links goes one number without meaning.
struct Link<O> {
    node: Arc<Node<O>>,
    place: usize,
}

/// The end of the chain, which computes.
struct Finish<O>(Arc<Node<O>>);

impl<O: Operator> CustomOp2 for Link<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        no_cpu::<O>()
    }

    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let gpu = &self.node.gpu;
        Ok((gpu.storage(gpu.zeros::<f32>(1)?), Shape::from(1)))
    }

    fn bwd(
        &self,
        chain: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.node.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        let gradient = gradients.get_mut(self.place).and_then(Option::take);
        Ok((chain.track_op().then(|| grad.clone()), gradient))
    }
}

impl<O: Operator> CustomOp1 for Finish<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        no_cpu::<O>()
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> Result<(CudaStorage, Shape)> {
        self.0.forward()
    }

    fn bwd(&self, chain: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradients = self.0.backward(res, grad)?;
        *self.0.gradients.lock().unwrap_or_else(PoisonError::into_inner) = gradients;
        Ok(Some(chain.clone().detach()))
    }
}
