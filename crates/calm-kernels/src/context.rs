//! What operators share from call to call, owned by one parameter store: nothing here is the process's.
//!
//! ```text
//! ParamStore ── owns ──► Context ◄── carries ── Parameter ── dereferences to ──► Tensor
//!                          │
//!                          ├ gradients: what buffers collect, and the backward pass that runs through one
//!                          ├ copies of the parameters in bf16                         (GPU)
//!                          ├ tables: rotary angles; on a GPU spans of segments too
//!                          └ staging memory, and the last uploads of row addresses    (GPU)
//! ```
//!
//! **How an operator finds it.** Arguments that may bring a context are [`Operand`]s. A [`Parameter`] brings that
//! of its store; a plain `Tensor` or `Var` brings none; [`Context::with`] lends one to an activation. An operator
//! works in the context of its first operand that has one: parameters of another store are plain tensors to it,
//! which is right, if slower. Where a tensor is made from nothing (uploads, noise) the context comes with the
//! [`Destination`].
//!
//! **Without a context** everything computes the same numbers: tables are made for the call, uploads go straight
//! from the host's memory (which may wait for the GPU), and gradients take candle's way.
//!
//! **Gradients, one rule on both devices.** While a [`crate::FlatGradients`] of a context lives, the gradients that
//! operators compute for its parameters go into it, and only in a pass that runs through it
//! ([`crate::FlatGradients::collect`]), on the thread that runs the pass. Any other backward pass that reaches such
//! a parameter, through an operator that took it as one (a contiguous [`Parameter`] in a parameter's place), is an
//! error, also if the buffer lived only when the operator ran: never a gradient that is missing, or that appears in
//! a buffer which nobody asked. In an activation's place a parameter's gradient takes candle's way on the CPU, and a GPU
//! refuses the graph. Without a buffer plain
//! `loss.backward()` gives all gradients. (To make the plain pass work beside a buffer, a GPU would have to keep every
//! parameter in candle's graph, at some ten launches a layer.) A buffer on the CPU collects `f32` parameters;
//! those in `f64` (of gradient checks) take candle's way with it and without.
//!
//! A handle is cheap to clone. A lock is held while something is looked up or, the first time, made (a table, an upload,
//! the copies); never while an operator works on activations.

use crate::collector::Collector;
use crate::rotary::DenseTables;
use crate::storage::error;
use candle_core::{DType, Device, Result, Tensor, TensorId, Var};
use std::fmt::{Debug, Formatter};
use std::ops::Deref;
use std::sync::Arc;

/// What operators on the parameters of one store share. Clones are the same context.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    device: Device,
    gradients: Collector,
    turns: DenseTables,
    #[cfg(feature = "cuda")]
    gpu: crate::cuda::Shared,
}

impl Context {
    /// For parameters on `device`.
    pub fn new(device: &Device) -> Self {
        Self(Arc::new(Inner {
            device: device.clone(),
            gradients: Collector::default(),
            turns: DenseTables::default(),
            #[cfg(feature = "cuda")]
            gpu: crate::cuda::Shared::default(),
        }))
    }

    /// Where its parameters live.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// A parameter of this context.
    ///
    /// # Errors
    /// A tensor on another device.
    pub fn parameter(&self, tensor: Tensor) -> Result<Parameter> {
        if !tensor.device().same_device(self.device()) {
            return Err(error(
                "parameter",
                format_args!(
                    "is on {:?}, its context on {:?}",
                    tensor.device().location(),
                    self.device().location()
                ),
            ));
        }
        Ok(Parameter { tensor, context: self.clone() })
    }

    /// An activation as an operand that brings this context, for operators without parameters.
    pub fn with<'a>(&'a self, tensor: &'a Tensor) -> InContext<'a> {
        InContext { tensor, context: self }
    }

    /// Keeps copies of `parameters` in `dtype`, in place of those that were kept before: operators whose activations
    /// have that type read them, and [`crate::Moments::update`] keeps them up to date. None are kept where none
    /// are needed: for parameters of that type, or no parameters. Without copies operators convert a parameter at
    /// every call.
    ///
    /// # Errors
    /// Parameters that are not contiguous f32 tensors on this context's device; another type than theirs on
    /// the CPU, or than bf16 on a GPU; no memory left.
    pub fn keep_copies<'a>(
        &self,
        parameters: impl IntoIterator<Item = &'a Tensor>,
        dtype: DType,
    ) -> Result<()> {
        let parameters: Vec<Tensor> = parameters.into_iter().cloned().collect();
        let needed = parameters.iter().any(|p| p.dtype() != dtype);
        #[cfg(feature = "cuda")]
        if self.device().is_cuda() && (!needed || dtype == DType::BF16) {
            let parameters = if needed { parameters } else { Vec::new() };
            return self.gpu().copies.keep(self, parameters);
        }
        if needed {
            return Err(error(
                "parameter copies",
                format_args!("{dtype:?} beside f32 parameters is for bf16 on a GPU; use f32 here"),
            ));
        }
        Ok(())
    }

    /// Copies all parameters again, after something else than an optimiser changed them.
    ///
    /// # Errors
    /// What the GPU answers.
    pub fn refresh_copies(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        if self.device().is_cuda() {
            return self.gpu().copies.refresh(self);
        }
        Ok(())
    }

    pub(crate) fn gradients(&self) -> &Collector {
        &self.0.gradients
    }

    pub(crate) fn turns(&self) -> &DenseTables {
        &self.0.turns
    }

    #[cfg(feature = "cuda")]
    pub(crate) fn gpu(&self) -> &crate::cuda::Shared {
        &self.0.gpu
    }
}

impl Debug for Context {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({})", crate::device::name(self.device()))
    }
}

/// A parameter of a model: a tensor and the context of its store.
#[derive(Clone, Debug)]
pub struct Parameter {
    tensor: Tensor,
    context: Context,
}

impl Parameter {
    /// What operators on it share.
    pub fn context(&self) -> &Context {
        &self.context
    }
}

impl Deref for Parameter {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.tensor
    }
}

/// An activation with the context that [`Context::with`] lends it.
#[derive(Clone, Copy, Debug)]
pub struct InContext<'a> {
    tensor: &'a Tensor,
    context: &'a Context,
}

/// A tensor that goes into an operator, and the context it brings, if any.
pub trait Operand: Debug {
    /// The tensor.
    fn tensor(&self) -> &Tensor;

    /// The context.
    fn context(&self) -> Option<&Context> {
        None
    }
}

impl dyn Operand + '_ {
    /// The tensor's shape.
    pub(crate) fn dims(&self) -> &[usize] {
        self.tensor().dims()
    }

    /// Whether the tensor leads to a variable.
    pub(crate) fn track_op(&self) -> bool {
        self.tensor().track_op()
    }
}

impl Operand for Tensor {
    fn tensor(&self) -> &Tensor {
        self
    }
}

impl Operand for Var {
    fn tensor(&self) -> &Tensor {
        self.as_tensor()
    }
}

impl Operand for Parameter {
    fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    fn context(&self) -> Option<&Context> {
        Some(&self.context)
    }
}

impl Operand for InContext<'_> {
    fn tensor(&self) -> &Tensor {
        self.tensor
    }

    fn context(&self) -> Option<&Context> {
        Some(self.context)
    }
}

/// The context of the first operand that has one.
pub(crate) fn of<'a>(operands: &[&'a dyn Operand]) -> Option<&'a Context> {
    operands.iter().find_map(|operand| operand.context())
}

/// What an operator keeps of its context for the backward pass.
pub(crate) struct Home {
    pub(crate) context: Context,
    /// The operands that a buffer collected when the operator ran.
    pub(crate) collected: Vec<TensorId>,
}

impl Home {
    /// Of operands in the forward pass; None without a context.
    pub(crate) fn of(operands: &[&dyn Operand]) -> Option<Self> {
        let context = of(operands)?.clone();
        let tensors = operands.iter().map(|operand| operand.tensor());
        let collected = tensors.filter(|t| context.gradients().collects(t)).map(Tensor::id).collect();
        Some(Self { context, collected })
    }
}

/// Where a tensor is made: a device, or a context, whose staging memory is used then.
pub trait Destination {
    /// The device.
    fn device(&self) -> &Device;

    /// The context, if there is one.
    fn context(&self) -> Option<&Context> {
        None
    }
}

impl Destination for Device {
    fn device(&self) -> &Device {
        self
    }
}

impl Destination for Context {
    fn device(&self) -> &Device {
        &self.0.device
    }

    fn context(&self) -> Option<&Context> {
        Some(self)
    }
}

/// Where the parameter is.
impl Destination for Parameter {
    fn device(&self) -> &Device {
        self.context.device()
    }

    fn context(&self) -> Option<&Context> {
        Some(&self.context)
    }
}
