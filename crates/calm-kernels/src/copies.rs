//! Copies of the parameters in the type of the activations, kept in their context (bf16 on a GPU only).

use crate::Context;
use crate::storage::error;
use candle_core::{DType, Result, Tensor};

impl Context {
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
            return crate::cuda::copies::keep(self, parameters);
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
            return crate::cuda::copies::refresh(self);
        }
        Ok(())
    }
}
