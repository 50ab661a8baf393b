//! The moments of AdamW and its updates, beside the parameters wherever these are; clipping by the global norm.
//!
//! On the CPU the operators of `adamw.rs` do the work. On a GPU three launches do: the norm of all gradients, its
//! factor, and the update of all parameters with their copies in bf16; the factor stays on the GPU, so that
//! nothing waits.

use crate::adamw::{AdamWStep, adamw, squared_norm};
use crate::clip::{Clip, Factor};
use crate::context::Context;
use crate::gradients::FlatGradients;
use crate::storage::error;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};
use std::cell::RefCell;
use std::ops::Range;

impl FlatGradients {
    /// The factor that brings the Euclidean norm of all gradients down to `max_norm` where it is larger. Squares
    /// and sums in double precision, in a fixed order.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn clip(&mut self, max_norm: f64) -> Result<Clip> {
        #[cfg(feature = "cuda")]
        if self.on_gpu() {
            return Ok(Clip(Factor::Device(crate::cuda::adamw::clip(self, max_norm)?)));
        }
        let norm = squared_norm(self.host_values()?).sqrt();
        Ok(Clip(Factor::Host { norm, factor: if norm > max_norm { max_norm / norm } else { 1.0 } }))
    }
}

/// First and second moments of a list of f32 parameters.
#[derive(Debug)]
pub struct Moments {
    parameters: Vec<(Tensor, bool)>,
    ranges: Vec<Range<usize>>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Host([Vec<f32>; 2]),
    #[cfg(feature = "cuda")]
    Device(crate::cuda::adamw::DeviceMoments),
}

impl Moments {
    /// Zeros for these parameters of `context`; the flag says whether weight decay applies to them.
    ///
    /// # Errors
    /// Parameters on a GPU that has no memory left for it.
    pub fn new(context: &Context, parameters: Vec<(Tensor, bool)>) -> Result<Self> {
        let mut ranges = Vec::with_capacity(parameters.len());
        let mut end = 0;
        for (parameter, _) in &parameters {
            let start = end;
            end += parameter.elem_count();
            ranges.push(start..end);
        }
        let values = match context.device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => {
                Values::Device(crate::cuda::adamw::DeviceMoments::new(context, end)?)
            }
            _ => Values::Host([vec![0.0; end], vec![0.0; end]]),
        };
        Ok(Self { parameters, ranges, values })
    }

    /// Updates all parameters and their moments; `settings.grad_scale` is not looked at: `clip` has the factor, and
    /// `settings.weight_decay` is that of the parameters that take any. Copies in bf16 follow.
    ///
    /// # Errors
    /// Gradients of other parameters; what a GPU answers.
    pub fn update(&mut self, gradients: &mut FlatGradients, settings: &AdamWStep, clip: &Clip) -> Result<()> {
        match &mut self.values {
            Values::Host([first, second]) => {
                #[allow(
                    clippy::infallible_destructuring_match,
                    reason = "with the feature `cuda` it can fail"
                )]
                let factor = match clip.0 {
                    Factor::Host { factor, .. } => factor,
                    #[cfg(feature = "cuda")]
                    Factor::Device(_) => {
                        return Err(error("adamw", "the factor is on a GPU, the parameters are not"));
                    }
                };
                let gradients = gradients.host_values()?;
                if gradients.len() != first.len() {
                    return Err(error("adamw", "the gradients are not those of these parameters"));
                }
                for ((parameter, decays), range) in self.parameters.iter().zip(&self.ranges) {
                    let weight_decay = if *decays { settings.weight_decay } else { 0.0 };
                    parameter.inplace_op1(&Update {
                        grad: &gradients[range.clone()],
                        first: RefCell::new(&mut first[range.clone()]),
                        second: RefCell::new(&mut second[range.clone()]),
                        settings: AdamWStep { weight_decay, grad_scale: factor, ..*settings },
                    })?;
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Values::Device(moments) => moments.update(&self.parameters, gradients, settings, clip),
        }
    }

    /// Copies of the first and second moments of parameter `i`.
    ///
    /// # Errors
    /// What a GPU answers.
    pub fn read(&self, i: usize) -> Result<[Vec<f32>; 2]> {
        let range = self.ranges[i].clone();
        match &self.values {
            Values::Host(both) => Ok(both.each_ref().map(|m| m[range.clone()].to_vec())),
            #[cfg(feature = "cuda")]
            Values::Device(moments) => moments.read(range),
        }
    }

    /// Sets the first and second moments of parameter `i`.
    ///
    /// # Errors
    /// Another number of elements.
    pub fn write(&mut self, i: usize, moments: [&[f32]; 2]) -> Result<()> {
        let range = self.ranges[i].clone();
        if moments.iter().any(|m| m.len() != range.len()) {
            return Err(error(
                "adamw",
                format_args!("moments of {} elements for {}", moments[0].len(), range.len()),
            ));
        }
        match &mut self.values {
            Values::Host(both) => {
                for (to, from) in both.iter_mut().zip(moments) {
                    to[range.clone()].copy_from_slice(from);
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Values::Device(own) => own.write(range, moments),
        }
    }
}

struct Update<'a> {
    grad: &'a [f32],
    first: RefCell<&'a mut [f32]>,
    second: RefCell<&'a mut [f32]>,
    settings: AdamWStep,
}

impl InplaceOp1 for Update<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(data), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            return Err(error("adamw", "needs contiguous f32 parameters"));
        };
        let (mut first, mut second) = (self.first.borrow_mut(), self.second.borrow_mut());
        adamw(&mut data[from..to], self.grad, &mut first, &mut second, &self.settings);
        Ok(())
    }
}
