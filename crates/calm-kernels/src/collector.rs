//! Which parameters of a context some buffer collects, and the backward pass that runs through one.

use crate::buffer::Buffer;
use crate::context::{self, Context, Operand};
use crate::products::Products;
use crate::storage::error;
use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, TensorId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::ThreadId;

/// A context's part in backward passes.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    /// Parameters whose gradients go into buffers, and into how many.
    collected: RwLock<HashMap<TensorId, usize>>,
    /// The pass that runs through one of them.
    pass: Mutex<Option<Pass>>,
}

#[derive(Debug)]
struct Pass {
    thread: ThreadId,
    /// None while an operator writes into it.
    buffer: Option<Buffer>,
}

/// The buffer of the running pass, as long as an operator writes into it.
struct Lent<'a> {
    collector: &'a Collector,
    buffer: Buffer,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.collector.pass().as_mut() {
            pass.buffer = Some(std::mem::take(&mut self.buffer));
        }
    }
}

impl Collector {
    /// That of a context.
    pub(crate) fn of(context: &Context) -> Arc<Self> {
        context.kept()
    }

    fn collected(&self) -> RwLockReadGuard<'_, HashMap<TensorId, usize>> {
        self.collected.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn collected_mut(&self) -> RwLockWriteGuard<'_, HashMap<TensorId, usize>> {
        self.collected.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn pass(&self) -> MutexGuard<'_, Option<Pass>> {
        self.pass.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// These parameters have one more buffer.
    pub(crate) fn add(&self, ids: &[TensorId]) {
        let mut collected = self.collected_mut();
        for id in ids {
            *collected.entry(*id).or_default() += 1;
        }
    }

    /// They have one less.
    pub(crate) fn remove(&self, ids: &[TensorId]) {
        let mut collected = self.collected_mut();
        for id in ids {
            if let Some(count) = collected.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    collected.remove(id);
                }
            }
        }
    }

    /// Whether the gradient of this tensor goes into a buffer.
    pub(crate) fn collects(&self, tensor: &Tensor) -> bool {
        self.collected().contains_key(&tensor.id())
    }

    /// Begins a pass on this thread; takes the buffer.
    pub(crate) fn begin(&self, buffer: &mut Buffer) -> Result<()> {
        let mut pass = self.pass();
        if pass.is_some() {
            return Err(error("backward", "another pass through a buffer of these parameters runs already"));
        }
        buffer.begin_pass();
        *pass = Some(Pass { thread: std::thread::current().id(), buffer: Some(std::mem::take(buffer)) });
        Ok(())
    }

    /// Ends the pass; gives the buffer back.
    pub(crate) fn end(&self) -> Option<Buffer> {
        self.pass().take().and_then(|pass| pass.buffer)
    }

    /// The buffer of the pass that runs on this thread.
    fn borrow(&self) -> Option<Lent<'_>> {
        let mut pass = self.pass();
        let here = pass.as_mut().filter(|pass| pass.thread == std::thread::current().id())?;
        Some(Lent { collector: self, buffer: here.buffer.take()? })
    }

    /// `write(buffer, parameter)` with the buffer of the running pass, for a parameter that some buffer collects:
    /// whether it is one. What is complete then is handed out.
    ///
    /// # Errors
    /// Those of `write` and of whoever takes what is handed out; a parameter of a buffer whose pass does not run here.
    pub(crate) fn write(
        &self,
        parameter: &Tensor,
        write: impl FnOnce(&mut Buffer, usize) -> Result<()>,
    ) -> Result<bool> {
        if !self.collects(parameter) {
            return Ok(false);
        }
        if let Some(mut lent) = self.borrow()
            && let Some(i) = lent.buffer.place(parameter.id())
        {
            write(&mut lent.buffer, i)?;
            return lent.buffer.wrote(i).map(|()| true);
        }
        Err(error(
            "backward",
            "a parameter's gradient came outside of the bucket that collects it; run the backward pass through the \
             bucket, or drop the bucket first",
        ))
    }

    /// Adds the gradients of parameters that candle computed in a part of the running pass.
    ///
    /// # Errors
    /// No pass that runs on this thread.
    pub(crate) fn add_from(&self, gradients: &GradStore) -> Result<()> {
        let Some(mut lent) = self.borrow() else {
            return Err(error(
                "backward",
                "a part that is computed again leaves its parameters' gradients in a bucket only; run the \
                 backward pass through one",
            ));
        };
        for &id in gradients.get_ids() {
            if let (Some(i), Some(gradient)) = (lent.buffer.place(id), gradients.get_id(id)) {
                lent.buffer.add(i, gradient)?;
            }
        }
        Ok(())
    }
}

/// What an operator keeps of its context for the backward pass.
pub(crate) struct Home {
    pub(crate) context: Context,
    pub(crate) collector: Arc<Collector>,
    /// The operands that a buffer collected when the operator ran.
    pub(crate) collected: Vec<TensorId>,
}

impl Home {
    /// Of operands in the forward pass; None without a context.
    pub(crate) fn of(operands: &[&dyn Operand]) -> Option<Self> {
        let context = context::of(operands)?.clone();
        let collector = Collector::of(&context);
        let tensors = operands.iter().map(|operand| operand.tensor());
        let collected = tensors.filter(|t| collector.collects(t)).map(Tensor::id).collect();
        Some(Self { context, collector, collected })
    }

    /// How products are computed; fast without a context.
    pub(crate) fn products(home: Option<&Self>) -> Products {
        home.map_or(Products::Fast, |home| home.context.products())
    }
}
