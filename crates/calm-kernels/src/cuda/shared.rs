//! What a [`Context`] holds on its GPU.

use super::attention::Span;
use super::copies::Copies;
use super::per_tensor::PerTensor;
use super::staging::Staging;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;

#[cfg(doc)]
use crate::Context;

/// A context's part on its GPU.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) copies: Copies,
    pub(super) staging: Staging,
    /// Spans of segments.
    pub(super) spans: PerTensor<(), CudaSlice<Span>>,
    /// Cosines and sines of positions, by head size and the bits of theta.
    pub(super) turns: PerTensor<(usize, u64), CudaSlice<f32>>,
}
