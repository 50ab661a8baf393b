//! Parameters in the format of the activations, where that is narrower than theirs: bf16 on a GPU.

use candle_core::{DType, Result, Tensor};

/// Copies of f32 parameters in bf16. While they live, operators with bf16 activations read them in place of the
/// parameters; [`crate::Moments::update`] keeps them up to date. Without them such operators convert a parameter
/// at every call.
#[derive(Debug)]
pub struct ComputeCopies {
    #[cfg(feature = "cuda")]
    copies: crate::cuda::ComputeCopies,
}

impl ComputeCopies {
    /// Copies of `parameters` in `dtype`; None where none are needed: in f32, or without parameters.
    ///
    /// # Errors
    /// A format other than f32 on the CPU; no memory left on the GPU.
    pub fn new<'a>(parameters: impl IntoIterator<Item = &'a Tensor>, dtype: DType) -> Result<Option<Self>> {
        let mut parameters = parameters.into_iter().peekable();
        match parameters.peek() {
            None => return Ok(None),
            Some(first) if dtype == first.dtype() => return Ok(None),
            Some(_) => {}
        }
        #[cfg(feature = "cuda")]
        if dtype == DType::BF16 && parameters.peek().is_some_and(|p| p.device().is_cuda()) {
            return Ok(Some(Self { copies: crate::cuda::ComputeCopies::new(parameters)? }));
        }
        Err(crate::storage::error(
            "compute copies",
            format_args!("{dtype:?} beside f32 parameters is for bf16 on a GPU; use f32 here"),
        ))
    }

    /// Copies all parameters again, after something else than an optimiser changed them.
    ///
    /// # Errors
    /// What the GPU answers.
    pub fn refresh(&self) -> Result<()> {
        #[cfg(feature = "cuda")]
        self.copies.refresh()?;
        Ok(())
    }
}
