//! Which tensors of a context are outputs of its operators, so that an operator that reads one hands its
//! gradient straight to the operator that made it ([`crate::nary`]).

use candle_core::{Result, Tensor, TensorId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What takes the gradient of an output: the operator that made it.
pub(crate) trait Source: Send + Sync {
    /// One more part of the gradient.
    ///
    /// # Errors
    /// A part of another shape than one that has come.
    fn take(&self, gradient: &Tensor) -> Result<()>;
}

/// An output: what stands for it in candle's graph, and who takes its gradient.
#[derive(Clone)]
pub(crate) struct Output {
    pub(crate) token: Tensor,
    pub(crate) source: Arc<dyn Source>,
}

/// Outputs by their tensors, as long as these live.
#[derive(Default)]
pub(crate) struct Outputs(Mutex<HashMap<TensorId, Output>>);

impl Outputs {
    fn known(&self) -> MutexGuard<'_, HashMap<TensorId, Output>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, tensor: &Tensor, output: Output) {
        self.known().insert(tensor.id(), output);
    }

    pub(crate) fn find(&self, tensor: &Tensor) -> Option<Output> {
        self.known().get(&tensor.id()).cloned()
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.known().len()
    }

    /// What goes may be the last to hold other outputs, which go in turn: not under the lock.
    pub(crate) fn remove(&self, id: TensorId) {
        let gone = self.known().remove(&id);
        drop(gone);
    }
}
