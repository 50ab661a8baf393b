//! The factor that clips the gradients of a step, wherever it is.

use candle_core::Result;

/// The factor of all gradients of a step, and the norm it comes from.
#[derive(Clone, Debug)]
pub struct Clip(pub(crate) Factor);

#[derive(Clone, Debug)]
pub(crate) enum Factor {
    Host {
        norm: f64,
        factor: f64,
    },
    #[cfg(feature = "cuda")]
    Device(crate::cuda::clip::DeviceFactor),
}

/// What clipping found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClipReport {
    /// Euclidean norm of all gradients before clipping.
    pub norm: f64,
    /// Steps since the buffer was made whose norm was not finite; on a GPU they changed nothing.
    pub skipped: u64,
}

impl Clip {
    /// A factor that is known.
    pub fn by(factor: f64) -> Self {
        Self(Factor::Host { norm: 0.0, factor })
    }

    /// The factor that brings the Euclidean norm of gradients down to `max_norm` where it is larger, from the squares of
    /// every [`NORM_CHUNK`](crate::NORM_CHUNK) of them, in order.
    pub fn of_squares(squares: &[f64], max_norm: f64) -> Self {
        let norm = squares.iter().sum::<f64>().sqrt();
        Self(Factor::Host { norm, factor: if norm > max_norm { max_norm / norm } else { 1.0 } })
    }

    /// The norm; on a GPU this waits for it.
    ///
    /// # Errors
    /// What went wrong on the GPU since the last call that waited.
    pub fn read(&self) -> Result<ClipReport> {
        match &self.0 {
            Factor::Host { norm, .. } => {
                Ok(ClipReport { norm: *norm, skipped: u64::from(!norm.is_finite()) })
            }
            #[cfg(feature = "cuda")]
            Factor::Device(factor) => {
                let (norm, skipped) = factor.read()?;
                Ok(ClipReport { norm, skipped })
            }
        }
    }
}
