//! Operators of any number of inputs in candle's autograd, whose own operators have three at most.
//!
//! Up to three inputs that are in the graph are the inputs of one operator of candle's. More go through a chain:
//!
//! ```text
//! input 1   input 2         input n
//!    │         │               │
//!  Link ───► Link ──► … ──► Link ───► Finish ──► output        (between links: one number, without meaning)
//! ```
//!
//! Finish computes the output from all inputs. In the backward pass, which candle runs from right to left,
//! Finish computes all gradients and each Link hands on the one of its input.
//!
//! Parameters that a [`crate::FlatGradients`] on a GPU collects are left out of the graph as long as another
//! input leads to a variable: their gradients go into the buffer anyway. What remains are a few activations.

use crate::Operand;
use crate::gradients::bucket_gone;
use crate::storage::error;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Error, Layout, Result, Shape, Storage,
    Tensor,
};
use std::sync::{Arc, Mutex, PoisonError};

/// Where the tensors of an operator are: the CPU, or a GPU.
pub(crate) trait Place: Send + Sync + Sized + 'static {
    /// Memory of a tensor there.
    type Storage;

    /// The place of operands, in the context of the first that has one.
    fn of(op: &str, operands: &[&dyn Operand]) -> Result<Self>;

    /// Any place's memory.
    fn any(storage: Self::Storage) -> Storage;

    /// Memory of one number without meaning, in f32.
    fn one_number(&self) -> Result<Self::Storage>;

    /// Whether the gradient of this tensor goes into a buffer without being in the graph.
    fn is_collected(&self, tensor: &Tensor) -> bool;

    /// Adds a gradient to the buffer that collects this parameter: whether one does.
    ///
    /// # Errors
    /// A buffer whose pass does not run here.
    fn collect(&self, parameter: &Tensor, gradient: &Tensor) -> Result<bool>;
}

/// What such an operator computes at a place.
pub(crate) trait Operator<P: Place>: Send + Sync + 'static {
    /// Its name in errors.
    const NAME: &'static str;

    /// The output of contiguous inputs.
    fn forward(&self, place: &P, inputs: &[Tensor]) -> Result<(P::Storage, Shape)>;

    /// A gradient for each input; None where an input has none or where it went into the buffer of
    /// parameters. `output` is what `forward` gave; `grad` is contiguous.
    fn backward(
        &self,
        place: &P,
        inputs: &[Tensor],
        output: &Tensor,
        grad: &Tensor,
    ) -> Result<Vec<Option<Tensor>>>;
}

struct Node<P, O> {
    operator: O,
    place: P,
    inputs: Vec<Tensor>,
    /// Indices of the inputs that are in the graph.
    linked: Vec<usize>,
    /// Indices of those whose gradients go into a buffer.
    collected: Vec<usize>,
    /// For links, what the operator's backward pass has left: one pass at a time runs through a graph.
    gradients: Mutex<Vec<Option<Tensor>>>,
}

/// The operator applied to `inputs`, differentiable in those that lead to a variable. Integer inputs may be
/// among them.
pub(crate) fn apply<P: Place, O: Operator<P>>(operator: O, inputs: &[&dyn Operand]) -> Result<Tensor> {
    let Some(first) = inputs.first() else {
        return Err(error(O::NAME, "has no inputs"));
    };
    let (place, device) = (P::of(O::NAME, inputs)?, first.tensor().device().clone());
    if let Some(other) = inputs.iter().map(|o| o.tensor()).find(|t| !t.device().same_device(&device)) {
        return Err(error(
            O::NAME,
            format_args!("inputs on {:?} and {:?}", device.location(), other.device().location()),
        ));
    }
    let inputs = inputs.iter().map(|o| o.tensor().contiguous()).collect::<Result<Vec<_>>>()?;
    let tracked: Vec<usize> = (0..inputs.len()).filter(|&i| inputs[i].track_op()).collect();
    if tracked.is_empty() {
        let (storage, shape) = operator.forward(&place, &inputs)?;
        return Ok(Tensor::from_storage(P::any(storage), shape, BackpropOp::none(), false));
    }
    let first = tracked[0];
    let (collected, mut linked): (Vec<usize>, Vec<usize>) =
        tracked.into_iter().partition(|&i| place.is_collected(&inputs[i]));
    if linked.is_empty() {
        linked.push(first);
    }
    let node = Arc::new(Node { operator, place, inputs, linked, collected, gradients: Mutex::default() });
    let input = |i: usize| node.inputs[node.linked[i]].clone();
    let finish = Direct(node.clone());
    match node.linked.len() {
        1 => input(0).apply_op1(finish),
        2 => input(0).apply_op2(&input(1), finish),
        3 => input(0).apply_op3(&input(1), &input(2), finish),
        count => {
            let mut chain = Tensor::zeros(1, DType::F32, &device)?;
            for i in 0..count {
                chain = chain.apply_op2(&input(i), Link { node: node.clone(), at: i })?;
            }
            chain.apply_op1(Finish(node))
        }
    }
}

impl<P: Place, O: Operator<P>> Node<P, O> {
    fn forward(&self) -> Result<(Storage, Shape)> {
        let (storage, shape) = self.operator.forward(&self.place, &self.inputs)?;
        Ok((P::any(storage), shape))
    }

    /// Gradients of the linked inputs.
    fn backward(&self, output: &Tensor, grad: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let mut all = self.operator.backward(&self.place, &self.inputs, output, &grad.contiguous()?)?;
        // An operator has written the gradients of its parameters; one in an activation's place is handed out.
        for &i in &self.collected {
            if let Some(gradient) = all.get_mut(i).and_then(Option::take)
                && !self.place.collect(&self.inputs[i], &gradient)?
            {
                return Err(bucket_gone());
            }
        }
        Ok(self.linked.iter().map(|&i| all.get_mut(i).and_then(Option::take)).collect())
    }
}

/// Up to three linked inputs.
struct Direct<P, O>(Arc<Node<P, O>>);

/// One of many linked inputs; between links goes one number without meaning.
struct Link<P, O> {
    node: Arc<Node<P, O>>,
    at: usize,
}

/// The end of the chain, which computes.
struct Finish<P, O>(Arc<Node<P, O>>);

/// The forward pass of an operator of candle's; what candle hands it, the node has already.
macro_rules! forward {
    ($($storage:ident $layout:ident),+) => {
        fn name(&self) -> &'static str {
            O::NAME
        }

        fn cpu_fwd(&self, $($storage: &CpuStorage, $layout: &Layout),+) -> Result<(CpuStorage, Shape)> {
            match self.output()? {
                (Storage::Cpu(storage), shape) => Ok((storage, shape)),
                _ => Err(elsewhere(O::NAME)),
            }
        }

        fn cuda_fwd(&self, $($storage: &CudaStorage, $layout: &Layout),+) -> Result<(CudaStorage, Shape)> {
            match self.output()? {
                (Storage::Cuda(storage), shape) => Ok((storage, shape)),
                _ => Err(elsewhere(O::NAME)),
            }
        }
    };
}

fn elsewhere(op: &str) -> Error {
    error(op, "has its output on another device than its inputs")
}

impl<P: Place, O: Operator<P>> Direct<P, O> {
    fn output(&self) -> Result<(Storage, Shape)> {
        self.0.forward()
    }
}

impl<P: Place, O: Operator<P>> CustomOp1 for Direct<P, O> {
    forward!(_s _l);

    fn bwd(&self, _: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.0.backward(res, grad)?.swap_remove(0))
    }
}

impl<P: Place, O: Operator<P>> CustomOp2 for Direct<P, O> {
    forward!(_s1 _l1, _s2 _l2);

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

impl<P: Place, O: Operator<P>> CustomOp3 for Direct<P, O> {
    forward!(_s1 _l1, _s2 _l2, _s3 _l3);

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

impl<P: Place, O: Operator<P>> Link<P, O> {
    fn output(&self) -> Result<(Storage, Shape)> {
        Ok((P::any(self.node.place.one_number()?), Shape::from(1)))
    }
}

impl<P: Place, O: Operator<P>> CustomOp2 for Link<P, O> {
    forward!(_s1 _l1, _s2 _l2);

    fn bwd(
        &self,
        chain: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.node.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        let gradient = gradients.get_mut(self.at).and_then(Option::take);
        Ok((chain.track_op().then(|| grad.clone()), gradient))
    }
}

impl<P: Place, O: Operator<P>> Finish<P, O> {
    fn output(&self) -> Result<(Storage, Shape)> {
        self.0.forward()
    }
}

impl<P: Place, O: Operator<P>> CustomOp1 for Finish<P, O> {
    forward!(_s _l);

    fn bwd(&self, chain: &Tensor, res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradients = self.0.backward(res, grad)?;
        *self.0.gradients.lock().unwrap_or_else(PoisonError::into_inner) = gradients;
        Ok(Some(chain.clone().detach()))
    }
}
