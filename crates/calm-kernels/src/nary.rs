//! Operators of any number of inputs in candle's autograd, whose own operators have three at most, without what
//! candle's backward pass costs between them: it makes zeros for the gradient of every tensor and adds each part.
//!
//! In candle's graph a **token** stands for an operator, one number without meaning; the output comes from it:
//!
//! ```text
//! input 1   input 2
//!    └────┬────┘
//!       token ──► output ──► operators of candle's
//!         │
//!         └─────► tokens of operators that read the output, in the same context
//! ```
//!
//! In the backward pass such operators hand the gradient of the output to the operator itself ([`Source`]), and candle
//! only a number; from operators of candle's it comes by way of the output. At the token, when all parts have
//! come, the operator computes the gradients of its inputs. Without a context every operator is one of candle's to the
//! others, which is right, if slower.
//!
//! Up to three inputs that are in the graph are inputs of the token. More go through a chain of numbers:
//!
//! ```text
//! input 1   input 2         input n
//!    │         │               │
//!  Link ───► Link ──► … ──► Link ───► token
//! ```
//!
//! There the token computes all gradients and each Link hands on the one of its input.
//!
//! Parameters that a [`crate::FlatGradients`] on a GPU collects are left out of the graph as long as another
//! input leads to a variable: their gradients go into the buffer anyway. What remains are a few activations.

use crate::Operand;
use crate::context::{self, Context};
use crate::gradients::bucket_gone;
use crate::outputs::{Output, Outputs, Source};
use crate::storage::error;
use candle_core::op::BackpropOp;
use candle_core::{
    CpuStorage, CudaStorage, CustomOp1, CustomOp2, CustomOp3, DType, Error, Layout, Result, Shape, Storage,
    Tensor, TensorId,
};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

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

    /// The sum of two parts of a gradient.
    fn sum(&self, a: &Tensor, b: &Tensor) -> Result<Tensor>;

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
    /// For each of them, which output of an operator it is, if it is one.
    sources: Vec<Option<Output>>,
    /// Indices of those whose gradients go into a buffer.
    collected: Vec<usize>,
    /// For links, what the operator's backward pass has left: one pass at a time runs through a graph.
    gradients: Mutex<Vec<Option<Tensor>>>,
    /// The output's numbers.
    output: OnceLock<Tensor>,
    /// The sum of what has come of its gradient.
    arrived: Mutex<Option<Tensor>>,
}

/// The operator applied to `inputs`, differentiable in those that lead to a variable. Integer inputs may be
/// among them.
pub(crate) fn apply<P: Place, O: Operator<P>>(operator: O, inputs: &[&dyn Operand]) -> Result<Tensor> {
    let Some(first) = inputs.first() else {
        return Err(error(O::NAME, "has no inputs"));
    };
    let (place, device) = (P::of(O::NAME, inputs)?, first.tensor().device().clone());
    let context = context::of(inputs);
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
    let outputs: Option<Arc<Outputs>> = context.map(Context::kept);
    let source = |&i: &usize| outputs.as_ref().and_then(|outputs| outputs.find(&inputs[i]));
    let sources: Vec<Option<Output>> = linked.iter().map(source).collect();
    let node = Arc::new(Node {
        operator,
        place,
        inputs,
        linked,
        sources,
        collected,
        gradients: Mutex::default(),
        output: OnceLock::new(),
        arrived: Mutex::default(),
    });
    let input = |i: usize| match &node.sources[i] {
        Some(output) => output.token.clone(),
        None => node.inputs[node.linked[i]].clone(),
    };
    let direct = Direct(node.clone());
    let token = match node.linked.len() {
        1 => input(0).apply_op1(direct),
        2 => input(0).apply_op2(&input(1), direct),
        3 => input(0).apply_op3(&input(1), &input(2), direct),
        count => {
            let mut chain = Tensor::zeros(1, DType::F32, &device)?;
            for i in 0..count {
                chain = chain.apply_op2(&input(i), Link { node: node.clone(), at: i })?;
            }
            chain.apply_op1(Last(node.clone()))
        }
    }?;
    let id = Arc::new(OnceLock::new());
    let output = token.apply_op1(Out { node: node.clone(), outputs: outputs.clone(), id: id.clone() })?;
    let _ = node.output.set(output.detach());
    let _ = id.set(output.id());
    if let Some(outputs) = outputs {
        outputs.add(&output, Output { token, source: node });
    }
    Ok(output)
}

impl<P: Place, O: Operator<P>> Node<P, O> {
    fn forward(&self) -> Result<(Storage, Shape)> {
        let (storage, shape) = self.operator.forward(&self.place, &self.inputs)?;
        Ok((P::any(storage), shape))
    }

    /// What candle takes for gradients of the linked inputs, or of their tokens; those of outputs of operators go
    /// to these.
    fn backward(&self) -> Result<Vec<Option<Tensor>>> {
        let grad = lock(&self.arrived).take();
        let (Some(grad), Some(output)) = (grad, self.output.get()) else {
            return Err(error(O::NAME, "no gradient has come for its output"));
        };
        let mut all = self.operator.backward(&self.place, &self.inputs, output, &grad.contiguous()?)?;
        // An operator has written the gradients of its parameters; one in an activation's place is handed out.
        for &i in &self.collected {
            if let Some(gradient) = all.get_mut(i).and_then(Option::take)
                && !self.place.collect(&self.inputs[i], &gradient)?
            {
                return Err(bucket_gone());
            }
        }
        let handed = self.linked.iter().zip(&self.sources).map(|(&i, output)| {
            let gradient = all.get_mut(i).and_then(Option::take);
            let Some(Output { token, source }) = output else { return Ok(gradient) };
            if let Some(gradient) = gradient {
                source.take(&gradient)?;
            }
            Ok(Some(token.detach()))
        });
        handed.collect()
    }
}

impl<P: Place, O: Operator<P>> Source for Node<P, O> {
    fn take(&self, gradient: &Tensor) -> Result<()> {
        let mut arrived = lock(&self.arrived);
        let sum = match arrived.take() {
            None => gradient.detach(),
            Some(before) => self.place.sum(&before, gradient)?,
        };
        *arrived = Some(sum);
        Ok(())
    }
}

/// One pass at a time runs through a graph, and none after one that failed: parts that had come then are still there.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A token of up to three linked inputs.
struct Direct<P, O>(Arc<Node<P, O>>);

/// One of many linked inputs; between links goes one number without meaning.
struct Link<P, O> {
    node: Arc<Node<P, O>>,
    at: usize,
}

/// The token at the end of a chain.
struct Last<P, O>(Arc<Node<P, O>>);

/// The output, by its token.
struct Out<P, O> {
    node: Arc<Node<P, O>>,
    outputs: Option<Arc<Outputs>>,
    id: Arc<OnceLock<TensorId>>,
}

impl<P, O> Drop for Out<P, O> {
    fn drop(&mut self) {
        if let (Some(outputs), Some(id)) = (&self.outputs, self.id.get()) {
            outputs.remove(*id);
        }
    }
}

/// The forward pass of an operator of candle's; what candle hands it, the node has already.
macro_rules! forward {
    ($output:expr; $($storage:ident $layout:ident),+) => {
        fn name(&self) -> &'static str {
            O::NAME
        }

        fn cpu_fwd(&self, $($storage: &CpuStorage, $layout: &Layout),+) -> Result<(CpuStorage, Shape)> {
            match $output(self)? {
                (Storage::Cpu(storage), shape) => Ok((storage, shape)),
                _ => Err(elsewhere(O::NAME)),
            }
        }

        fn cuda_fwd(&self, $($storage: &CudaStorage, $layout: &Layout),+) -> Result<(CudaStorage, Shape)> {
            match $output(self)? {
                (Storage::Cuda(storage), shape) => Ok((storage, shape)),
                _ => Err(elsewhere(O::NAME)),
            }
        }
    };
}

fn elsewhere(op: &str) -> Error {
    error(op, "has its output on another device than its inputs")
}

/// One number.
fn number<P: Place, O>(node: &Node<P, O>) -> Result<(Storage, Shape)> {
    Ok((P::any(node.place.one_number()?), Shape::from(1)))
}

impl<P: Place, O: Operator<P>> CustomOp1 for Direct<P, O> {
    forward!(|own: &Self| number(&own.0); _s _l);

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.0.backward()?.swap_remove(0))
    }
}

impl<P: Place, O: Operator<P>> CustomOp2 for Direct<P, O> {
    forward!(|own: &Self| number(&own.0); _s1 _l1, _s2 _l2);

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut all = self.0.backward()?.into_iter();
        Ok((all.next().flatten(), all.next().flatten()))
    }
}

impl<P: Place, O: Operator<P>> CustomOp3 for Direct<P, O> {
    forward!(|own: &Self| number(&own.0); _s1 _l1, _s2 _l2, _s3 _l3);

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut all = self.0.backward()?.into_iter();
        Ok((all.next().flatten(), all.next().flatten(), all.next().flatten()))
    }
}

impl<P: Place, O: Operator<P>> CustomOp2 for Link<P, O> {
    forward!(|own: &Self| number(&own.node); _s1 _l1, _s2 _l2);

    fn bwd(
        &self,
        chain: &Tensor,
        _: &Tensor,
        _: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let gradient = lock(&self.node.gradients).get_mut(self.at).and_then(Option::take);
        Ok((chain.track_op().then(|| grad.clone()), gradient))
    }
}

impl<P: Place, O: Operator<P>> CustomOp1 for Last<P, O> {
    forward!(|own: &Self| number(&own.0); _s _l);

    fn bwd(&self, chain: &Tensor, _: &Tensor, _: &Tensor) -> Result<Option<Tensor>> {
        let gradients = self.0.backward()?;
        *lock(&self.0.gradients) = gradients;
        Ok(Some(chain.detach()))
    }
}

impl<P: Place, O: Operator<P>> CustomOp1 for Out<P, O> {
    forward!(|own: &Self| own.node.forward(); _s _l);

    fn bwd(&self, token: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        self.node.take(grad)?;
        Ok(Some(token.detach()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Parameter, mlp_block};
    use candle_core::{Device, Var};

    const D: usize = 8;

    /// a = block(x), b = block(a), block(b) + 2 a: an operator and one of candle's read a.
    fn value(x: &Var, w: [&dyn Operand; 4]) -> Tensor {
        let block = |x: &Tensor| mlp_block(x, w[0], [w[1], w[2], w[3]], 1e-6).unwrap();
        let a = block(x);
        (block(&block(&a)) + (a * 2.0).unwrap()).unwrap()
    }

    #[test]
    fn parts_of_a_gradient_meet_at_the_operator_with_a_context_and_without() {
        let device = Device::Cpu;
        let var = |seed: usize, shape: &[usize]| {
            let count: usize = shape.iter().product();
            Var::from_vec((0..count).map(|i| ((i + 31 * seed) as f32 * 0.7).sin()).collect(), shape, &device)
                .unwrap()
        };
        let x = var(1, &[3, D]);
        let vars = [var(2, &[D]), var(3, &[12, D]), var(4, &[12, D]), var(5, &[D, 12])];
        let gradients = |y: &Tensor| {
            let grads = y.sqr().unwrap().sum_all().unwrap().backward().unwrap();
            let of = |v: &Var| grads.get(v).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
            std::iter::once(&x).chain(&vars).flat_map(of).collect::<Vec<f32>>()
        };
        let plain = gradients(&value(&x, std::array::from_fn(|i| &vars[i] as &dyn Operand)));

        let context = Context::new(&device);
        let parameter = |v: &Var| context.parameter(v.as_tensor().clone()).unwrap();
        let parameters: Vec<Parameter> = vars.iter().map(parameter).collect();
        let y = value(&x, std::array::from_fn(|i| &parameters[i] as &dyn Operand));
        let outputs: Arc<Outputs> = context.kept();
        assert_eq!(outputs.len(), 3, "operators of a context know each other's outputs");
        let handed = gradients(&y);
        for (a, b) in plain.iter().zip(&handed) {
            assert!((a - b).abs() <= 1e-5 * a.abs().max(1.0), "{a} and {b}");
        }
        // The same graph once more: nothing is left of the first pass.
        assert_eq!(gradients(&y), handed);
        drop(y);
        assert_eq!(outputs.len(), 0, "what stands for a tensor goes with it");
    }
}
