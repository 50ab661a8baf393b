//! What operators share from call to call, owned by one parameter store: nothing here is the process's.
//!
//! ```text
//! ParamStore ── owns ──► Context ◄── carries ── Parameter ── dereferences to ──► Tensor
//!                          │
//!                          ├ gradients: what buffers collect, and the backward pass that runs through one
//!                          ├ outputs: which tensors its operators made, and who takes their gradients
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
//! a buffer which nobody asked. A parameter in an activation's place has its gradient too, in the buffer or on
//! candle's way: whoever collects adds what has come on that way ([`crate::FlatGradients::add`]). Without a buffer
//! plain `loss.backward()` gives all gradients. (To make the plain pass work beside a buffer, a GPU would have to keep
//! every parameter in candle's graph, at some ten launches a layer.) A buffer on the CPU collects `f32` parameters;
//! those in `f64` (of gradient checks) take candle's way with it and without.
//!
//! **What stands here is known to those who keep it.** A file with something to keep from call to call has a type of
//! its own for it, which the context holds without knowing it (`kept`): so nothing above is named here.
//!
//! A handle is cheap to clone. A lock is held while something is looked up or, the first time, made (a table, an
//! upload, the copies); never while an operator works on activations.

use crate::products::Products;
use crate::storage::error;
use candle_core::{Device, Result, Tensor, Var};
use std::any::Any;
use std::fmt::{Debug, Formatter};
use std::ops::Deref;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What operators on the parameters of one store share. Clones are the same context.
#[derive(Clone)]
pub struct Context(Arc<Inner>);

struct Inner {
    device: Device,
    /// Whether matrix products are [`Products::Fixed`].
    fixed: AtomicBool,
    /// At most one value of a type. A handful, so that a search is as quick as a table.
    kept: Mutex<Vec<Arc<dyn Any + Send + Sync>>>,
}

impl Context {
    /// For parameters on `device`.
    pub fn new(device: &Device) -> Self {
        Self(Arc::new(Inner {
            device: device.clone(),
            fixed: AtomicBool::new(false),
            kept: Mutex::default(),
        }))
    }

    /// Where its parameters live.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// From now on, for good, the operators of inference on the CPU compute in one fixed order and without the C library:
    /// what goes forward through them is the same to the bit on every processor, for any number of threads and of rows.
    /// Training is not meant: products of gradients stay the fast ones.
    pub fn fix(&self) {
        self.0.fixed.store(true, Ordering::Relaxed);
    }

    /// How matrix products are computed.
    pub(crate) fn products(&self) -> Products {
        if self.0.fixed.load(Ordering::Relaxed) { Products::Fixed } else { Products::Fast }
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

    /// What an operator's file keeps here, one value a type: made empty the first time.
    pub(crate) fn kept<T: Any + Default + Send + Sync>(&self) -> Arc<T> {
        let mut kept = self.0.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = kept.iter().find_map(|value| value.clone().downcast().ok()) {
            return found;
        }
        let new = Arc::<T>::default();
        kept.push(new.clone());
        new
    }
}

impl Debug for Context {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context({:?})", self.device().location())
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

/// How operators on these operands compute products.
pub(crate) fn products(operands: &[&dyn Operand]) -> Products {
    of(operands).map_or(Products::Fast, Context::products)
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
