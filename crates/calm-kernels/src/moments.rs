//! The moments of AdamW and its updates, beside the parameters wherever these are; clipping by the global norm.
//!
//! On the CPU the operators of `adamw.rs` do the work. On a GPU three launches do: the norm of all gradients, its
//! factor, and the update of all parameters with their copies in bf16; the factor stays on the GPU, so that
//! nothing waits.

use crate::adamw::{AdamWStep, Treatment, adamw, squares_by_chunk};
use crate::clip::{Clip, Factor};
use crate::context::Context;
use crate::gradients::FlatGradients;
use crate::moment_pieces::{common, pieces};
use crate::pieces::Part;
use crate::storage::{error, view};
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor};
use std::borrow::Cow;
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
        Ok(Clip::of_squares(&squares_by_chunk(self.host_values()?), max_norm))
    }

    /// The squares of every [`NORM_CHUNK`](crate::NORM_CHUNK) of a part that begins where one does, for [`Clip::of_squares`].
    ///
    /// # Errors
    /// Parameters that are not on the CPU; a part that there is not.
    pub fn squares(&mut self, part: Range<usize>) -> Result<Vec<f64>> {
        let values = self.host_values()?.get(part);
        Ok(squares_by_chunk(values.ok_or_else(|| error("clip", "there are no such gradients"))?))
    }
}

/// First and second moments of a list of f32 parameters, or of a part of it.
#[derive(Debug)]
pub struct Moments {
    parameters: Vec<(Tensor, Treatment)>,
    /// Of each parameter in the list of all, one after the other.
    ranges: Vec<Range<usize>>,
    /// What there are moments of.
    part: Range<usize>,
    values: Values,
}

#[derive(Debug)]
enum Values {
    Host([Vec<f32>; 2]),
    #[cfg(feature = "cuda")]
    Device(crate::cuda::adamw::DeviceMoments),
}

impl Moments {
    /// Zeros for these parameters of `context`.
    ///
    /// # Errors
    /// Parameters on a GPU that has no memory left for it.
    pub fn new(context: &Context, parameters: Vec<(Tensor, Treatment)>) -> Result<Self> {
        let end = parameters.iter().map(|(parameter, _)| parameter.elem_count()).sum();
        Self::of_part(context, parameters, 0..end)
    }

    /// The same of a part of the list of all elements: others are never updated here.
    ///
    /// # Errors
    /// As [`Moments::new`]; a part that the list does not have.
    pub fn of_part(
        context: &Context,
        parameters: Vec<(Tensor, Treatment)>,
        part: Range<usize>,
    ) -> Result<Self> {
        let mut ranges = Vec::with_capacity(parameters.len());
        let mut end = 0;
        for (parameter, _) in &parameters {
            let start = end;
            end += parameter.elem_count();
            ranges.push(start..end);
        }
        if part.end > end || part.start > part.end {
            return Err(error("adamw", format_args!("no moments of {part:?} of {end} elements here")));
        }
        let values = match context.device() {
            #[cfg(feature = "cuda")]
            candle_core::Device::Cuda(_) => {
                Values::Device(crate::cuda::adamw::DeviceMoments::new(context, part.len())?)
            }
            _ => Values::Host([vec![0.0; part.len()], vec![0.0; part.len()]]),
        };
        Ok(Self { parameters, ranges, part, values })
    }

    /// Updates all parameters and their moments; `settings.grad_scale` is not looked at: `clip` has the factor, and
    /// `settings` are those of a parameter without factors that takes weight decay. Copies in bf16 follow.
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
                if gradients.len() != self.ranges.last().map_or(0, |range| range.end) {
                    return Err(error("adamw", "the gradients are not those of these parameters"));
                }
                for piece in pieces(&self.parameters, &self.ranges, &self.part) {
                    let held = within(&piece.elements, &self.part);
                    piece.parameter.inplace_op1(&Update {
                        from: piece.from,
                        grad: &gradients[piece.elements],
                        first: RefCell::new(&mut first[held.clone()]),
                        second: RefCell::new(&mut second[held]),
                        settings: AdamWStep { grad_scale: factor, ..settings.of(piece.treatment) },
                    })?;
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Values::Device(moments) => {
                let end = self.ranges.last().map_or(0, |range| range.end);
                let own: Vec<_> = pieces(&self.parameters, &self.ranges, &self.part).collect();
                moments.update(&own, gradients, end, settings, clip)
            }
        }
    }

    /// What there are moments of, in the list of all elements.
    pub fn part(&self) -> Range<usize> {
        self.part.clone()
    }

    /// Whether any of it is of parameter `i`.
    pub fn holds(&self, i: usize) -> bool {
        common(&self.ranges[i], &self.part).is_some()
    }

    /// First and second moments of the part; from a GPU copies of them.
    ///
    /// # Errors
    /// What a GPU answers; this waits for it.
    pub fn of_own(&self) -> Result<[Cow<'_, [f32]>; 2]> {
        match &self.values {
            Values::Host(both) => Ok(both.each_ref().map(|m| Cow::Borrowed(m.as_slice()))),
            #[cfg(feature = "cuda")]
            Values::Device(moments) => Ok(moments.read(0..self.part.len())?.map(Cow::Owned)),
        }
    }

    /// Copies the part of the parameters to its place in a list of all elements, which is where the parameters are.
    ///
    /// # Errors
    /// A list elsewhere, or of another length; what a GPU answers.
    pub fn lay_parameters(&self, list: Part<'_>) -> Result<()> {
        let own = pieces(&self.parameters, &self.ranges, &self.part);
        match (list, &self.values) {
            (Part::Host(list), Values::Host(_)) => {
                for piece in own {
                    let values = view::<f32>("adamw", piece.parameter)?;
                    let count = piece.elements.len();
                    list[piece.elements].copy_from_slice(&values[piece.from..piece.from + count]);
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            (Part::Device(list, _), Values::Device(moments)) => moments.lay(&own.collect::<Vec<_>>(), list),
            #[cfg(feature = "cuda")]
            _ => Err(elsewhere()),
        }
    }

    /// Sets all parameters to what a list of all elements holds; copies in bf16 follow.
    ///
    /// # Errors
    /// As [`Moments::lay_parameters`].
    pub fn take_parameters(&self, list: Part<'_>) -> Result<()> {
        let end = self.ranges.last().map_or(0, |range| range.end);
        let mut all = pieces(&self.parameters, &self.ranges, &(0..end));
        match (list, &self.values) {
            (Part::Host(list), Values::Host(_)) => {
                all.try_for_each(|piece| piece.parameter.inplace_op1(&Replace(&list[piece.elements])))
            }
            #[cfg(feature = "cuda")]
            (Part::Device(list, _), Values::Device(moments)) => moments.take(&all.collect::<Vec<_>>(), list),
            #[cfg(feature = "cuda")]
            _ => Err(elsewhere()),
        }
    }

    /// Copies of the first and second moments of parameter `i`.
    ///
    /// # Errors
    /// What a GPU answers; a parameter of which only a part is here.
    pub fn read(&self, i: usize) -> Result<[Vec<f32>; 2]> {
        let range = &self.ranges[i];
        let Some(own) = common(range, &self.part).filter(|own| own == range) else {
            return Err(error("adamw", "the moments of a parameter are with other processes"));
        };
        let range = within(&own, &self.part);
        match &self.values {
            Values::Host(both) => Ok(both.each_ref().map(|m| m[range.clone()].to_vec())),
            #[cfg(feature = "cuda")]
            Values::Device(moments) => moments.read(range),
        }
    }

    /// Sets the first and second moments of parameter `i`, as far as they are here.
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
                let Some(own) = common(&range, &self.part) else { return Ok(()) };
                for (to, from) in both.iter_mut().zip(moments) {
                    to[within(&own, &self.part)].copy_from_slice(&from[within(&own, &range)]);
                }
                Ok(())
            }
            #[cfg(feature = "cuda")]
            Values::Device(device) => {
                let Some(own) = common(&range, &self.part) else { return Ok(()) };
                device.write(within(&own, &self.part), moments.map(|m| &m[within(&own, &range)]))
            }
        }
    }
}

#[cfg(feature = "cuda")]
fn elsewhere() -> candle_core::Error {
    error("adamw", "the list is not where the parameters are")
}

/// A range by its place in a larger one.
fn within(range: &Range<usize>, whole: &Range<usize>) -> Range<usize> {
    range.start - whole.start..range.end - whole.start
}

/// The update of the elements of a parameter from `from` on, as many as there are gradients.
struct Update<'a> {
    from: usize,
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
        let part = self.from..self.from + self.grad.len();
        adamw(&mut data[from..to][part], self.grad, &mut first, &mut second, &self.settings);
        Ok(())
    }
}

/// Other values in the place of a parameter's.
struct Replace<'a>(&'a [f32]);

impl InplaceOp1 for Replace<'_> {
    fn name(&self) -> &'static str {
        "replace"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(data), Some((from, to))) = (storage, layout.contiguous_offsets()) else {
            return Err(error("replace", "needs contiguous f32 parameters"));
        };
        data[from..to].copy_from_slice(self.0);
        Ok(())
    }
}
