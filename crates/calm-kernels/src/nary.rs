//! Operators of any number of inputs; candle's custom operators have three at most.
//!
//! ```text
//! input 1   input 2         input n
//!    │         │               │
//!  Link ───► Link ──► … ──► Link ───► Finish ──► output        (between links: one number, without meaning)
//! ```
//!
//! Finish computes the output from all inputs. In the backward pass, which candle runs from right to left,
//! Finish computes all gradients and each Link hands on the one of its input.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Result, Shape, Tensor};

/// What such an operator computes.
pub(crate) trait Operator: Send + Sync + 'static {
    /// Its name in errors.
    const NAME: &'static str;

    /// The output of contiguous inputs.
    fn forward(&self, inputs: &[Tensor]) -> Result<(CpuStorage, Shape)>;

    /// A gradient for each input, as [`crate::gradients::gradient_of`] gives them; `grad` is contiguous.
    fn backward(&self, inputs: &[Tensor], grad: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

struct Node<O> {
    operator: O,
    inputs: Vec<Tensor>,
    gradients: Mutex<Vec<Option<Tensor>>>,
}

struct Link<O> {
    node: Arc<Node<O>>,
    input: usize,
}

struct Finish<O>(Arc<Node<O>>);

/// The operator applied to `inputs`, differentiable in those that lead to a variable.
pub(crate) fn apply<O: Operator>(operator: O, inputs: &[&Tensor]) -> Result<Tensor> {
    let inputs = inputs.iter().map(|t| t.contiguous()).collect::<Result<Vec<_>>>()?;
    let node = Arc::new(Node { operator, inputs, gradients: Mutex::default() });
    let mut chain = Tensor::zeros(1, DType::F32, &Device::Cpu)?;
    for (i, input) in node.inputs.iter().enumerate().filter(|(_, t)| t.track_op()) {
        chain = chain.apply_op2(input, Link { node: node.clone(), input: i })?;
    }
    chain.apply_op1(Finish(node))
}

fn nothing() -> (CpuStorage, Shape) {
    (CpuStorage::F32(vec![0.0]), Shape::from(1))
}

impl<O: Operator> CustomOp2 for Link<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        Ok(nothing())
    }

    fn bwd(
        &self,
        chain: &Tensor,
        _input: &Tensor,
        _res: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.node.gradients.lock().unwrap_or_else(PoisonError::into_inner);
        let gradient = gradients.get_mut(self.input).and_then(Option::take);
        Ok((chain.track_op().then(|| grad.clone()), gradient))
    }
}

impl<O: Operator> CustomOp1 for Finish<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        self.0.operator.forward(&self.0.inputs)
    }

    fn bwd(&self, chain: &Tensor, _res: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let gradients = self.0.operator.backward(&self.0.inputs, &grad.contiguous()?)?;
        *self.0.gradients.lock().unwrap_or_else(PoisonError::into_inner) = gradients;
        Ok(Some(chain.clone().detach()))
    }
}
